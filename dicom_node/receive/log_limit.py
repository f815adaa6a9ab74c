"""Log lines that a peer causes by connecting: a few for each address and minute, then one that counts the others."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress

import structlog

LINES_PER_ADDRESS = 10
WINDOW_S = 60.0
_MOST_ADDRESSES = 1000
_OTHERS = "others"
"""All addresses beyond the first thousand of a window together."""


class LogLimit:
    """Decides for each line whether it is logged; from any thread."""

    def __init__(self) -> None:
        self._lines: Counter[str] = Counter()
        self._ends: threading.Timer | None = None
        self._lock = threading.Lock()

    def may_log(self, address: str) -> bool:
        """Whether a line because of ``address`` is logged now; it is counted otherwise."""
        with self._lock:
            if self._ends is None:
                self._begin()
            known = address in self._lines or len(self._lines) < _MOST_ADDRESSES
            key = address if known else _OTHERS
            self._lines[key] += 1
            return self._lines[key] <= LINES_PER_ADDRESS

    def close(self) -> None:
        """End the window: log how many lines were left out."""
        with self._lock:
            lines, self._lines = self._lines, Counter()
            if self._ends is not None:
                self._ends.cancel()
                self._ends = None
        for address, count in lines.items():
            if count > LINES_PER_ADDRESS:
                structlog.get_logger().warning("association.not_logged", peer=address, lines=count - LINES_PER_ADDRESS)

    def _begin(self) -> None:
        ends = threading.Timer(WINDOW_S, self.close)
        ends.daemon = True
        with suppress(RuntimeError):  # no thread can be started now; the next line tries again
            ends.start()
            self._ends = ends
