"""OHIF in Chromium, queried for what it shows."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable

    from playwright.sync_api import Browser, Page

_PATIENCE_MS = 180_000
"""A busy machine draws slowly, and no test here measures time."""
_CANVAS = "canvas.cornerstone-canvas"
_ABORTED = "net::ERR_ABORTED"
"""Of a request that the page itself gave up, as it does when it is left."""
_LATE_IMAGE = "IMAGE_LOAD_ERROR TypeError: handler is not a function"
"""OHIF 3.13 says this of an image that was loaded for a viewport which is gone by then, as happens while a segmentation
is opened: the event's listener calls a handler that OHIF never sets. A request that fails is a complaint of its own."""


class Viewer:
    """One study open in OHIF; errors reported by the page are in ``complaints``."""

    def __init__(self, browser: Browser, origin: str) -> None:
        self._origin = origin
        self._context = browser.new_context(viewport={"width": 1400, "height": 900}, service_workers="block")
        self._context.set_default_timeout(_PATIENCE_MS)
        self._context.add_init_script(path=Path(__file__).with_name("ohif.js"))
        self.page: Page = self._context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self._complain(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "requestfailed", lambda it: it.failure != _ABORTED and self.complaints.append(f"{it.failure} {it.url}")
        )
        self.page.on("response", lambda got: got.status >= 400 and self.complaints.append(f"{got.status} {got.url}"))

    def _complain(self, text: str) -> None:
        if _LATE_IMAGE not in text:
            self.complaints.append(text)

    def close(self) -> None:
        self._context.close()

    def open(self, study_uid: str, first: str, *others: str, mode: str = "segmentation") -> None:
        """Open these series; return when OHIF lists all of them and shows images of the first."""
        address = f"{self._origin}/{mode}?StudyInstanceUIDs={study_uid}&SeriesInstanceUIDs="
        self.page.goto(address + ",".join((first, *others)), wait_until="commit")
        self.page.wait_for_function("all => all.every(uid => window.ask.displaySet(uid))", arg=[first, *others])
        self.wait_for(first)
        # dispatched as below: a guided tour may cover it
        self.page.locator("[data-cy=confirm-and-hide-button]").dispatch_event("click")
        if mode == "viewer":
            self.page.get_by_text("Skip all").click()

    def wait_for(self, series_uid: str) -> None:
        """Wait until an image of this series is on the screen."""
        self.page.wait_for_function("uid => window.ask.shows(uid)", arg=series_uid)

    def double_click(self, series_uid: str) -> None:
        """Open a series as a user does; dispatched, so that an overlay cannot take the click."""
        identifier = self.page.evaluate("uid => window.ask.displaySet(uid).displaySetInstanceUID", series_uid)
        self.page.locator(f"[id='thumbnail-{identifier}']").dispatch_event("dblclick")

    def load(self, series_uid: str) -> None:
        """Open a segmentation and confirm that it is to be drawn on the images."""
        self.double_click(series_uid)
        self.page.locator("[data-cy=yes-hydrate-btn]").click()
        self.page.wait_for_function("uid => window.ask.hydrated(uid)", arg=series_uid)

    def names(self, series_uid: str) -> dict[int, str]:
        """Segment label by segment number."""
        return _by_number(self.page.evaluate("uid => window.ask.names(uid)", series_uid))

    def colours(self, series_uid: str) -> dict[int, tuple[int, int, int]]:
        """The sRGB colour in which the viewport draws each segment number."""
        found = self.page.evaluate("uid => window.ask.colours(uid)", series_uid)
        return {number: tuple(colour) for number, colour in _by_number(found).items()}

    def labels(self, series_uid: str) -> dict[str, np.ndarray]:
        """Segment numbers (rows, columns) by SOP Instance UID of the image on which they are drawn."""
        planes = self.page.evaluate("uid => window.ask.labels(uid)", series_uid)
        return {
            uid: np.frombuffer(base64.b64decode(plane["numbers"]), np.uint8).reshape(plane["rows"], plane["columns"])
            for uid, plane in planes.items()
        }

    def image_on_screen(self) -> str:
        """SOP Instance UID of the image shown in the viewport."""
        return str(self.page.evaluate("window.ask.imageOnScreen()"))

    def scroll_to(self, sop_instance_uid: str) -> None:
        """Scroll to this image."""
        self.page.wait_for_function("uid => window.ask.scrolledTo(uid)", arg=sop_instance_uid, polling=500)

    def show(self, series_uid: str, *, visible: bool) -> None:
        """Switch the overlay on or off."""
        self.page.evaluate("([uid, visible]) => window.ask.show(uid, visible)", [series_uid, visible])

    def fill_alpha(self) -> float:
        """Opacity of a segment's interior: 0..1."""
        return float(self.page.evaluate("window.ask.fillAlpha()"))

    def pixels_at(self, places_xy: Iterable[tuple[int, int]]) -> np.ndarray:
        """Colours (n, 3) on the screen at the centres of these image pixels (column, row)."""
        wanted = [[int(x), int(y)] for x, y in places_xy]
        places = np.array(self.page.evaluate("pixels => window.ask.places(pixels)", wanted))
        screen = self.screen()
        x, y = np.floor(places).astype(int).T
        return screen[y, x].astype(float)

    def screen(self) -> np.ndarray:
        """The viewport as drawn, (rows, columns, 3)."""
        picture = self.page.locator(_CANVAS).first.screenshot(animations="disabled")
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

    def keep_screenshot(self, path: Path) -> None:
        """Save the whole window, for people to look at."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)


def _by_number(mapping: dict[str, object]) -> dict[int, object]:
    return {int(number): value for number, value in mapping.items()}
