"""What OHIF, a real one in a real browser, shows of the node's results that a real Orthanc holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from dicom_node.types import ResultKind, ResultRequest, SegmentationForm
from inference.structures import structure
from tests.browser.studies import encoded, prone, small_phantom, tilted, written
from tests.browser.viewer import Viewer

if TYPE_CHECKING:
    from tests.browser.studies import Study

FORMS = {"binary": ResultKind.SEGMENTATION, "label map": ResultKind.LABELMAP}
BOTH = {"viewer": ResultRequest(SegmentationForm.BOTH)}
COLOUR_TOLERANCE = 3
"""Of 255: colours travel as CIELab of 16 bit and are blended in software."""


@pytest.fixture
def viewer(browser, origin):
    opened = Viewer(browser, origin)
    yield opened
    opened.close()


def stored(archive, study: Study) -> Study:
    for path in sorted(study.folder.glob("*.dcm")):
        archive.put(path.read_bytes())
    for result in study.results:
        archive.put(result.content)
    return study


@pytest.fixture(scope="module")
def series_of(archive, tmp_path_factory):
    """A study of this sort, made and stored once."""
    made: dict[str, Study] = {}

    def make(name: str) -> Study:
        if name not in made:
            rows, columns, bend = SORTS[name]
            case = small_phantom(11 + list(SORTS).index(name), rows, columns)
            study = encoded(written(case, tmp_path_factory.mktemp("ct"), bend), case, BOTH)
            made[name] = stored(archive, study)
        return made[name]

    return make


SORTS = {
    "axial": (64, 80, None),
    "tilted": (64, 80, tilted),
    "prone": (64, 80, prone),
    "odd": (63, 81, None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sort", ["axial", "tilted", "prone"])
def test_every_voxel_name_and_colour_is_shown(sort, form, series_of, viewer, screenshot):
    study = series_of(sort)
    (segmentation,) = study.of(FORMS[form])
    viewer.open(study.study_uid, study.series_uid, segmentation.series_instance_uid)
    viewer.load(segmentation.series_instance_uid)
    assert_shows(viewer, study, segmentation.series_instance_uid)
    viewer.keep_screenshot(screenshot)
    assert viewer.complaints == []


def assert_shows(viewer: Viewer, study: Study, seg_uid: str) -> None:
    """Label map, names, colours and drawn pixels of the segmentation are those of ``study``."""
    number_of = segment_numbers(study)
    shown = viewer.labels(seg_uid)
    assert set(shown) == set(study.truth)
    for uid, labels in study.truth.items():
        np.testing.assert_array_equal(shown[uid], number_of[labels], err_msg=f"image {uid}")
    names = {int(number_of[label]): study.names[label] for label in np.flatnonzero(number_of)}
    assert viewer.names(seg_uid) == names
    colours = {number: structure(name).rgb for number, name in names.items()}
    assert set(viewer.colours(seg_uid)) == set(colours)
    for number, colour in viewer.colours(seg_uid).items():
        assert np.abs(np.subtract(colour, colours[number])).max() <= 1, f"{names[number]}: {colour}"
    for uid in richest_images(study):
        assert_drawn(viewer, study, seg_uid, uid, number_of, colours)


def segment_numbers(study: Study) -> np.ndarray:
    """The number that each label has as a segment: those that are there, from 1 on."""
    present = np.unique(np.concatenate([np.unique(labels) for labels in study.truth.values()]))
    number_of = np.zeros(256, np.uint8)
    number_of[present[present > 0]] = np.arange(1, np.count_nonzero(present) + 1)
    return number_of


def richest_images(study: Study, count: int = 2) -> list[str]:
    """The images with most structures."""
    return sorted(study.truth, key=lambda uid: -len(np.unique(study.truth[uid])))[:count]


def assert_drawn(viewer, study, seg_uid, image_uid, number_of, colours) -> None:
    """On each voxel of a structure the screen has its colour over the image's grey, or its outline; else grey alone."""
    labels = study.truth[image_uid]
    clear = binary_erosion(labels == 0, np.ones((3, 3)))  # outlines reach over the edge of their structure
    places = np.concatenate([places_of(labels == label) for label in np.unique(labels[labels > 0])])
    colour = np.array([colours[int(number_of[labels[y, x]])] for x, y in places])
    viewer.scroll_to(image_uid)
    viewer.show(seg_uid, visible=False)
    settled(lambda: np.ptp(viewer.pixels_at(places), axis=1), "the image without the overlay")
    grey, beside = viewer.pixels_at(places), viewer.pixels_at(places_of(clear))
    viewer.show(seg_uid, visible=True)
    filled = grey + (colour - grey) * viewer.fill_alpha()
    try:
        settled(lambda: differences(viewer.pixels_at(places), filled, colour), "a structure", 8)
    except AssertionError:
        viewer.keep_screenshot(__import__("pathlib").Path("/tmp/Vwork/fail.png"))
        px = viewer.pixels_at(places)
        e = differences(px, filled, colour)
        for (x, y), d, q, f, c in zip(places, e, px, filled, colour):
            if d > 3: print(x, y, labels[y, x], study.names[int(labels[y, x])], d, q, f, c, labels[y-1:y+2, x-1:x+2].tolist())
        print(len(e), (e > 3).sum())
        raise
    assert differences(viewer.pixels_at(places_of(clear)), beside).max() <= COLOUR_TOLERANCE


def places_of(mask: np.ndarray, most: int = 40) -> np.ndarray:
    """Some pixels (column, row) of ``mask``, from all over it."""
    found = np.argwhere(mask)[:, ::-1]
    return found[:: -(-len(found) // most)]


def differences(shown: np.ndarray, *expected: np.ndarray) -> np.ndarray:
    """How far each pixel is from the nearest of what it may be."""
    return np.min([np.abs(shown - each).max(axis=1) for each in expected], axis=0)


def settled(off, what: str, limit_s: float = 60) -> None:
    """Wait until the screen differs by no more than rounding."""
    end = time.monotonic() + limit_s
    while (off_by := off().max()) > COLOUR_TOLERANCE:
        assert time.monotonic() < end, f"{what}: a pixel is {off_by:.0f} of 255 off"
        time.sleep(0.1)
