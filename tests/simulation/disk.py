"""A disk that keeps after a power cut only what was synced, under real files that the production code can map and walk.

The files lie in a real folder, so that everything is read from them as always. What changes them passes here: of each
file the content at its last sync is known, of each folder the names at its last sync and every change since. A power
cut keeps of what was not synced what the seed draws: some changes of names (each whole: a rename is atomic), some of a
file's last bytes. A killed process leaves all as it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.store.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

_SHARES_KEPT = (0.0, 0.5, 1.0)


@dataclass(eq=False, slots=True)
class Inode:
    """A file or a folder: what was written, and what of it is durable."""

    is_folder: bool = False
    written: bytes = b""
    synced: bytes = b""
    written_at_ns: int = 0

    def lose_power(self, draw: Random) -> None:
        """Keep what is durable, and some of the rest."""
        if self.written != self.synced:
            kept = draw.choice((len(self.synced), draw.randint(len(self.synced), len(self.written)), len(self.written)))
            self.written = self.synced = self.written[:kept]


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of a folder's names, whole or not at all: ``gone`` disappears, ``path`` is ``inode`` from now on."""

    gone: Path | None
    path: Path | None
    inode: Inode | None

    def apply(self, names: dict[Path, Inode]) -> None:
        if self.gone is not None:
            names.pop(self.gone, None)
        if self.path is not None and self.inode is not None:
            names[self.path] = self.inode


class Platter:
    """The files below ``root`` as running processes see them and as a power cut would leave them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._names: dict[Path, Inode] = {}
        self._durable: dict[Path, Inode] = {}
        self._changes: dict[Path, list[_Change]] = {}

    def inode(self, path: Path) -> Inode:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._names[path]

    def has(self, path: Path) -> bool:
        return path in self._names

    def change(self, gone: Path | None, path: Path | None, inode: Inode | None) -> None:
        """Change the names in one folder."""
        change = _Change(gone, path, inode)
        change.apply(self._names)
        folder = (path or gone or self.root).parent
        self._changes.setdefault(folder, []).append(change)

    def sync_folder(self, folder: Path) -> None:
        for change in self._changes.pop(folder, ()):
            change.apply(self._durable)

    def lose_power(self, draw: Random) -> None:
        """Leave what is durable, and what the seed draws of the rest."""
        for changes in self._changes.values():
            share = draw.choice(_SHARES_KEPT)
            for change in changes:
                if draw.random() < share:
                    change.apply(self._durable)
        self._changes.clear()
        names = self._durable
        self._names = {path: inode for path, inode in names.items() if self._is_reachable(path)}
        self._durable = dict(self._names)
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, inode in sorted(self._names.items()):
            if inode.is_folder:
                path.mkdir()
            else:
                inode.lose_power(draw)
                path.write_bytes(inode.written)
                os.utime(path, ns=(inode.written_at_ns,) * 2)

    def _is_reachable(self, path: Path) -> bool:
        return path.parent == self.root or (path.parent in self._durable and self._is_reachable(path.parent))


class SimulatedDisk(Disk):
    """The disk as one process has it; ``point`` is told of each operation before and after it.

    ``point`` may end the process there, let others run first, or (before it) answer with the errno of a fault.
    """

    def __init__(self, platter: Platter, now_ns: Callable[[], int], point: Callable[[str, str], int | None]) -> None:
        self._platter = platter
        self._now_ns = now_ns
        self._point = point
        self._open: dict[int, Inode] = {}
        self._created: dict[int, tuple[int, int]] = {}

    def create(self, file: Path) -> int:
        self._begin("create", file)
        descriptor = super().create(file)
        self._open[descriptor] = inode = Inode(written_at_ns=self._now_ns())
        os.utime(descriptor, ns=(inode.written_at_ns,) * 2)
        self._created[descriptor] = _identity(descriptor)
        self._platter.change(None, file, inode)
        self._end("create")
        return descriptor

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        self._begin("write")
        written = super().write(descriptor, content)
        inode = self._open[descriptor]
        inode.written += bytes(content[:written])
        inode.written_at_ns = self._now_ns()
        os.utime(descriptor, ns=(inode.written_at_ns,) * 2)
        self._end("write")
        return written

    def sync_file(self, descriptor: int) -> None:
        self._begin("sync file")
        inode = self._open[descriptor]
        inode.synced = inode.written
        self._end("sync file")

    def sync_found(self, file: Path) -> None:
        self._begin("sync found file", file)
        inode = self._platter.inode(file)
        inode.synced = inode.written
        self._end("sync found file")

    def sync_folder(self, folder: Path) -> None:
        self._begin("sync folder", folder)
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        self._platter.sync_folder(folder)
        self._end("sync folder")

    def rename(self, file: Path, to: Path) -> None:
        self._begin("rename", to)
        super().rename(file, to)
        self._platter.change(file, to, self._platter.inode(file))
        self._end("rename")

    def unlink(self, file: Path) -> None:
        self._begin("unlink", file)
        super().unlink(file)
        if self._platter.has(file):
            self._platter.change(file, None, None)
        self._end("unlink")

    def make_folder(self, folder: Path) -> None:
        self._begin("make folder", folder)
        super().make_folder(folder)
        if not self._platter.has(folder):
            self._platter.change(None, folder, Inode(is_folder=True))
        self._end("make folder")

    def touch(self, file: Path) -> None:
        self._begin("touch", file)
        super().touch(file)
        if not self._platter.has(file):
            self._platter.change(None, file, Inode())
        self._written_now(file)
        self._end("touch")

    def freshen(self, file: Path) -> None:
        self._begin("freshen", file)
        self._written_now(file)
        self._end("freshen")

    def threads(self, count: int, name: str) -> Executor:
        return _AtOnce()

    def unlock_all(self) -> None:
        """A dead process has no lock any more."""
        for descriptor in self._still_open():
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close_all(self) -> None:
        """Close what a dead process left open."""
        for descriptor in self._still_open():
            os.close(descriptor)

    def _still_open(self) -> Iterator[int]:
        for descriptor, created in self._created.items():
            with suppress(OSError):
                if _identity(descriptor) == created:
                    yield descriptor

    def _written_now(self, file: Path) -> None:
        inode = self._platter.inode(file)
        inode.written_at_ns = self._now_ns()
        os.utime(file, ns=(inode.written_at_ns,) * 2)

    def _begin(self, operation: str, file: Path | None = None) -> None:
        fault = self._point(f"before {operation}", "" if file is None else file.name)
        if fault is not None:
            raise OSError(fault, os.strerror(fault))

    def _end(self, operation: str) -> None:
        self._point(f"after {operation}", "")


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class _AtOnce(Executor):
    """Runs each task when it is submitted, in the thread of the caller: the order is the same every time."""

    def submit(self, task, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(task(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised by result(), as by any executor
            future.set_exception(error)
        return future
