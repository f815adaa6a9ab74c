"""A gate that admits one thread at a time, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Self

from dicom_node.errors import Stopping

if TYPE_CHECKING:
    from types import TracebackType


class Gate:
    """Admits one thread at a time, first come, first served (a plain lock may starve a waiting thread)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Pass] = deque()
        self._closed = False

    def enter(self) -> Pass:
        """Wait for admission, which lasts until the pass is released.

        Raises:
            Stopping: the gate was closed first.
        """
        mine = Pass(self)
        with self._changed:
            self._queue.append(mine)
            self._changed.wait_for(lambda: self._closed or self._queue[0] is mine)
            if self._closed:
                self._queue.remove(mine)
                raise Stopping
        return mine

    def close(self) -> None:
        """Turn away all current and future waiters; the thread inside is not affected."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _leave(self, one: Pass) -> None:
        with self._changed:
            if one in self._queue:
                self._queue.remove(one)
                self._changed.notify_all()


class Pass:
    """Admission to a gate; released at the end of its ``with`` block, or earlier by :meth:`leave`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def leave(self) -> None:
        """Admit the next thread; a second call does nothing."""
        self._gate._leave(self)  # noqa: SLF001 - two halves of one thing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
