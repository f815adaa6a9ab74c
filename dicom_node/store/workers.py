"""The names by which workers claim jobs, and whether the process behind a name is known to be dead.

A process is known by the boot and the PID namespace in which it runs, its PID, and its start time, because PIDs are
used again. Whether it lives can be told only within the same boot and namespace; anywhere else (another machine,
another container, before a restart of either) a claim is trusted until its lease ends, which no worker renews after
its death. The host name is for people: machines may share one.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from dicom_node.errors import ConfigurationError
from dicom_node.store.clock import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROC = Path("/proc")
_STATE, _START_TIME = 0, 19
"""Places in ``/proc/PID/stat`` after the name in parentheses: fields 3 and 22 of proc(5)."""
_DEAD_STATES = "ZX"
_PARTS_BESIDE_HOST = 4


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Identifies one process uniquely. ``started_ticks`` is its start time in clock ticks since boot (proc(5))."""

    host: str
    boot_id: str
    pid_namespace: int
    pid: int
    started_ticks: int

    def __str__(self) -> str:
        """The text in the ledger, which :meth:`parse` reads."""
        return f"{self.host}/{self.boot_id}/{self.pid_namespace}/{self.pid}/{self.started_ticks}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The name in ``text``; None where there is none (version 0.1.0 wrote the station name)."""
        host, *others = text.rsplit("/", _PARTS_BESIDE_HOST)
        if len(others) != _PARTS_BESIDE_HOST:
            return None
        boot_id, *numbers = others
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            return None
        pid_namespace, pid, started_ticks = map(int, numbers)
        return cls(host, boot_id, pid_namespace, pid, started_ticks)

    @classmethod
    def own(cls) -> Self:
        """The name of this process.

        Raises:
            ConfigurationError: ``/proc`` can't be read.
        """
        try:
            return cls(
                host=socket.gethostname(),
                boot_id=boot_id(),
                pid_namespace=(_PROC / "self/ns/pid").stat().st_ino,
                pid=os.getpid(),
                started_ticks=int(_process_status("self")[_START_TIME]),
            )
        except OSError as error:
            raise ConfigurationError(f"can't read /proc, which identifies a worker: {error.strerror}") from error

    def lives(self, seen_from: WorkerName) -> bool | None:
        """Whether this process still runs, as far as ``seen_from``, a living process, can tell.

        None: it can't be told, because the two run in different boots or namespaces, or processes are hidden.
        """
        if (self.boot_id, self.pid_namespace) != (seen_from.boot_id, seen_from.pid_namespace):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # alive, and another user's
        try:
            if (_PROC / "self").readlink().name != str(os.getpid()):
                return None  # /proc is that of another namespace, and its PIDs are other processes
            status = _process_status(self.pid)
        except OSError:
            return None  # hidden from us (hidepid in proc(5)), or it ended just now
        return status[_STATE] not in _DEAD_STATES and int(status[_START_TIME]) == self.started_ticks


def dead_and_living(claimants: Iterable[str | None], seen_from: WorkerName) -> tuple[list[str], list[str]]:
    """Those of the ``claimants`` of rows that are known to be dead, and those known to live.

    A name is never used again, so the dead can't claim again.
    """
    names = {text: WorkerName.parse(text) for text in claimants if text is not None}
    lives = {text: None if name is None else name.lives(seen_from) for text, name in names.items()}
    return [text for text, alive in lives.items() if alive is False], [text for text, alive in lives.items() if alive]


def _process_status(pid: int | Literal["self"]) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the third on; the second, a name in parentheses, may hold anything."""
    return (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
