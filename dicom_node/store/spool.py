"""The spool: all files of the node, each durable under its final name before the ledger mentions it.

Files are written next to their final place as ``*.part`` and renamed when they are complete (results when all results
of their run are). File and folder are synced before the writer reports success, and the ledger names a file only after
that: a file named in the ledger is complete even after a power failure, and a file that is not was never acknowledged.
All names are ours; nothing from the network becomes part of a path. Files have mode 0600, folders 0700. Received data
sets are stored byte for byte.

The name of a received instance begins with its place in the order of arrival, a number that only grows whatever the
clock does: of two files of one instance, the newer one is known without the ledger. An empty file ``*.refused`` beside
an instance says that its sender was told that it is not stored. Whoever receives an instance has its file locked until
it is recorded or marked as refused: a writer that is held up, for however long, is known from one that was killed.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import threading
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dicom_node.errors import StoreFull, StoreUnavailable
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store.clock import now_ns, now_utc
from dicom_node.store.durable import DISK, FOLDER_MODE, PART, Disk, digest_of_part, write_all, write_synced
from dicom_node.types import ResultInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from dicom_node.standard.part10 import FileMeta
    from dicom_node.types import EncodedResult

_FOLDER_SYNC_THREADS = 16
_RESULTS_AT_ONCE = 4
_LONGEST_AHEAD_S = 3600.0
"""A file that is further ahead of the clock was written before that was set back, perhaps by years."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_COMPLETE, _REFUSED = ".dcm", ".refused"
_ORDERED = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}\.dcm")


def order_of(spool_name: str) -> int | None:
    """The place of a received instance in the order of arrival; None where the name has none (written by 0.1)."""
    found = _ORDERED.fullmatch(spool_name.rpartition("/")[2])
    return int(found[1], 16) if found else None


@dataclass(frozen=True, slots=True)
class SpooledInstance:
    """A durable file in the spool; digest and size are those of the data set, without File Meta Information."""

    spool_name: str
    dataset_sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A received file as the ledger knows it."""

    spool_name: str
    dataset_sha256: str
    transfer_syntax_uid: str


class InstanceWriter:
    """Writes one instance to the spool; a context manager that removes the file unless it was committed.

    Nobody else takes the file until the block ends: by then it must have a row, or be marked as refused.
    """

    def __init__(self, spool: Spool, meta: FileMeta) -> None:
        """Opens the temporary file.

        Raises:
            StoreUnavailable: no space, no access.
        """
        self.size_bytes = 0
        self._spool, self._disk = spool, spool.disk
        self._digest = hashlib.sha256()
        self.name = spool.new_instance_name()
        """Its name in the spool, once it is committed."""
        self._final = spool.path(self.name)
        self._part = self._final.with_suffix(PART)
        self._committed = False
        head = meta.encoded()
        self._head_bytes = len(head)
        with _translated("opening a spool file"):
            spool.make_folder(self._final.parent)
            self._descriptor = self._disk.create(self._part)
        try:
            self._write(head)
        except StoreUnavailable:
            self._leave()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def write(self, fragment: bytes | memoryview) -> None:
        """Append a fragment of the data set.

        Raises:
            StoreUnavailable: disk full or failing.
        """
        self._digest.update(fragment)
        self.size_bytes += len(fragment)
        self._write(fragment)

    @contextmanager
    def dataset(self) -> Iterator[memoryview]:
        """The data set bytes written so far, memory-mapped; valid inside the ``with`` block only."""
        with _translated("reading a spool file back"):
            mapped = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        with mapped, memoryview(mapped) as whole, whole[self._head_bytes :] as view:
            yield view

    def digest(self, part: slice) -> str | None:
        """SHA-256 of a part of the data set written so far; None if it is empty.

        Raises:
            StoreUnavailable: the disk fails.
        """
        if part.start == part.stop:
            return None
        with _translated("reading a spool file back"):
            in_file = slice(self._head_bytes + part.start, self._head_bytes + part.stop)
            return digest_of_part(self._descriptor, in_file)

    def commit(self) -> SpooledInstance:
        """Make the file durable under its final name.

        Raises:
            StoreUnavailable: disk full or failing; there is no file under the final name.
        """
        with _translated("syncing a spool file"):
            self._disk.rename(self._part, self._final)
            self._committed = True
            try:
                self._spool.sync(self._descriptor, self._final.parent)
            except OSError:
                self._disk.unlink(self._final)
                self._disk.sync_folder(self._final.parent)
                raise
        return SpooledInstance(self.name, self._digest.hexdigest(), self.size_bytes)

    def _write(self, fragment: bytes | memoryview) -> None:
        with _translated("writing a spool file"):
            write_all(self._descriptor, fragment, self._disk)

    def _leave(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        if not self._committed:
            with suppress(OSError):
                self._disk.unlink(self._part)


class ResultWriting:
    """Writes the results of one run to disk.

    They keep temporary names until the last one is written: a file under its final name that no row claims is removed
    by a sweep, and a run may need longer for its other results than the sweep waits. They are locked until then, as is
    an instance that is being received: a listener that starts meanwhile would take them for leftovers.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool, self._disk = spool, spool.disk
        self._writers = self._disk.threads(_RESULTS_AT_ONCE, "spool-result")
        self._writing: list[Future[tuple[ResultInstance, str]]] = []
        self._paths: list[Path] = []
        self._descriptors: list[int] = []

    def add(self, encoded: EncodedResult) -> None:
        """Start writing a result in the background."""
        name = self._spool.new_name()
        self._paths.append(self._spool.path(name))
        self._writing.append(self._writers.submit(self._write, encoded, name))

    def written(self) -> list[tuple[ResultInstance, str]]:
        """All results, durable, in the order they were added, with their spool names.

        Raises:
            StoreUnavailable: disk full or failing.
        """
        stored = [each.result() for each in self._writing]
        with _translated("naming the results"):
            for path in self._paths:
                part = path.with_suffix(PART)
                self._disk.freshen(part)  # restarts the sweep's clock: the row is written next
                self._disk.rename(part, path)
            for folder in sorted({path.parent for path in self._paths}):
                self._disk.sync_folder(folder)
        return stored

    def abandon(self) -> None:
        """Start no more writes, wait for those in progress, and remove all files."""
        self.end()
        for path in self._paths:
            for each in (path, path.with_suffix(PART)):
                with suppress(OSError):
                    self._disk.unlink(each)

    def end(self) -> None:
        """Wait for the writes in progress, and let the files go."""
        self._writers.shutdown(cancel_futures=True)
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _write(self, encoded: EncodedResult, name: str) -> tuple[ResultInstance, str]:
        final = self._spool.path(name)
        with _translated("writing a result"):
            self._spool.make_folder(final.parent)
            descriptor = self._disk.create(final.with_suffix(PART))
            self._descriptors.append(descriptor)
            digest = write_synced(descriptor, encoded.content, self._disk)
        instance = ResultInstance(
            kind=encoded.kind,
            sop_class_uid=encoded.sop_class_uid,
            sop_instance_uid=encoded.sop_instance_uid,
            series_instance_uid=encoded.series_instance_uid,
            transfer_syntax_uid=encoded.transfer_syntax_uid,
            path=final,
            sha256=digest,
            size_bytes=len(encoded.content),
            destinations=encoded.destinations,
        )
        return instance, name


class Spool:
    """The folder of received instances and results. Safe to use from several threads and processes at once."""

    def __init__(self, root: Path, *, read_only: bool = False, disk: Disk = DISK) -> None:
        """Creates ``root`` if it is missing; ``read_only``: the caller only reads, and it must be there.

        Raises:
            StoreUnavailable: it can't be created, or is not there.
        """
        self._root = root.absolute()
        self.disk = disk
        with _translated("opening the spool folder" if read_only else "making the spool folder"):
            if read_only:
                os.scandir(self._root).close()
            else:
                self._root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                self._root.chmod(FOLDER_MODE)
        self._durable_folders: set[Path] = set()
        self._order = _Order(self._highest_order)
        self._folder_syncs = disk.threads(_FOLDER_SYNC_THREADS, "folder sync")

    def open_instance(self, meta: FileMeta) -> InstanceWriter:
        """A writer for one instance that arrives in fragments.

        Raises:
            StoreUnavailable: no space, no access.
        """
        return InstanceWriter(self, meta)

    def write_results(self, encoded: Iterable[EncodedResult]) -> list[tuple[ResultInstance, str]]:
        """Make result objects durable; returns them in the same order with their spool names. ``sha256`` covers the
        whole file. Several are written at a time, because most of the time is spent waiting for the disk.

        Raises:
            StoreUnavailable: disk full or failing; nothing is left behind.
        """
        with self.writing_results() as writing:
            for each in encoded:
                writing.add(each)
            return writing.written()

    @contextmanager
    def writing_results(self) -> Iterator[ResultWriting]:
        """Write results while others are being made; removes them all if the block raises."""
        writing = ResultWriting(self)
        try:
            yield writing
        except BaseException:
            writing.abandon()
            raise
        finally:
            writing.end()

    def discard(self, stored: Iterable[tuple[ResultInstance, str]]) -> None:
        """Remove results that no ledger row will name."""
        for _, name in stored:
            self.delete(name)

    def lacks(self, path: Path) -> bool:
        """Whether a file is gone from a spool that is there itself; an empty one is a disk that is away."""
        try:
            path.lstat()
        except FileNotFoundError:
            with suppress(OSError), os.scandir(self._root) as entries:
                return any(entries)
        except OSError:
            pass
        return False

    def check_files(self, stored: Iterable[tuple[ResultInstance, str]]) -> None:
        """Check that results are still there: whoever was held up for long after writing them may find them removed.

        Raises:
            StoreUnavailable: one is not.
        """
        for result, name in stored:
            if not result.path.exists():
                raise StoreUnavailable(f"spool: {name} was removed before its row was written")

    def path(self, spool_name: str) -> Path:
        """The path of ``spool_name``.

        Raises:
            ValueError: the name points outside the spool.
        """
        path = self._root / spool_name
        if not spool_name or ".." in path.parts or not path.is_relative_to(self._root) or path == self._root:
            raise ValueError("the spool name points outside the spool")
        return path

    def changed(self, files: Sequence[StoredFile]) -> tuple[str, ...]:
        """The spool names of those of ``files`` whose bytes are not what was received.

        Reads all of them: the 160 MB of a series of 300 take 0.1 s of CPU time.

        Raises:
            StoreUnavailable: a file is missing, or the disk fails.
        """
        return tuple(file.spool_name for file in files if not self._is_as_received(file))

    def missing(self, files: Sequence[StoredFile]) -> tuple[str, ...]:
        """The spool names of those of ``files`` that are not there.

        Raises:
            StoreUnavailable: the disk fails.
        """
        with _translated("looking for files"):
            return tuple(file.spool_name for file in files if not self.path(file.spool_name).exists())

    def _is_as_received(self, file: StoredFile) -> bool:
        path = self.path(file.spool_name)
        with _translated(f"reading {path.name}"), path.open("rb") as stream:
            head = stream.read(HEAD_LENGTH)
            try:
                head += stream.read(data_set_start(head) - HEAD_LENGTH)
            except ValueError:
                return False
            is_of_syntax = file.transfer_syntax_uid.encode() in head
            return is_of_syntax and hashlib.file_digest(stream, "sha256").hexdigest() == file.dataset_sha256

    def delete(self, spool_name: str) -> None:
        """Remove a file if it exists; if that fails, the sweep of unclaimed files removes it later."""
        self._remove(self.path(spool_name))

    def is_left(self, spool_name: str) -> bool:
        """Whether a complete file is there that nobody writes any more, and that is not marked as refused.

        What its writer did with it is final then. A file that can't be opened is not left to anybody.
        """
        path = self.path(spool_name)
        with suppress(OSError):
            return not self.disk.has_writer(path) and not path.with_suffix(_REFUSED).exists()
        return False

    def make_durable(self, spool_name: str) -> None:
        """Make a file durable that was found complete: its writer may have died before it synced the file.

        Raises:
            StoreUnavailable: the file is missing, or the disk fails.
        """
        path = self.path(spool_name)
        with _translated("syncing a file that was found"):
            self.make_folder(path.parent)
            self.disk.sync_found(path)
            self.disk.sync_folder(path.parent)

    def replace_if_gone(self, spool_name: str, by: str) -> bool:
        """Give the file ``by`` the name ``spool_name``, unless there is a file of that name; whether it has it now.

        Raises:
            StoreUnavailable: disk full or failing.
        """
        path, new = self.path(spool_name), self.path(by)
        with _translated("putting a file back"):
            if path.exists():
                return False
            self.make_folder(path.parent)
            self.disk.rename(new, path)
            for folder in sorted({path.parent, new.parent}):
                self.disk.sync_folder(folder)
        return True

    def mark_refused(self, spool_name: str) -> None:
        """Note durably that the sender of an instance is told that it is not stored; nothing if there is no such file.

        Its row may exist all the same, if the connection to the ledger broke during COMMIT: the file stays until that
        is known.

        Raises:
            StoreUnavailable: disk full or failing.
        """
        path = self.path(spool_name)
        with _translated("marking a refused instance"):
            if path.exists():
                self.disk.touch(path.with_suffix(_REFUSED))
                self.disk.sync_folder(path.parent)

    def refused(self, older_than_s: float) -> Iterator[str]:
        """Spool names of all instances marked as refused at least that long ago; the file itself may be gone."""
        for path in self._files(_REFUSED, older_than_s):
            yield self._name_of(path.with_suffix(_COMPLETE))

    def unmark_refused(self, spool_name: str) -> None:
        """Remove the mark of an instance that has a row, or whose file is gone; if that fails, a later sweep does."""
        self._remove(self.path(spool_name).with_suffix(_REFUSED))

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove temporary files of killed processes, except those that can't be removed now; returns how many.

        However old one is by the clock, which may have been set, it stays while the process that writes it lives.
        """
        return sum(self._remove(path) for path in self._files(PART, older_than_s) if not self._is_being_written(path))

    def names(self, older_than_s: float) -> Iterator[str]:
        """Spool names of all complete files that are at least ``older_than_s`` old and not marked as refused.

        In the order of their names: received instances come as they arrived, unless the clock was set back.
        """
        for path in self._files(_COMPLETE, older_than_s, unless_beside=_REFUSED):
            yield self._name_of(path)

    def new_name(self) -> str:
        """A new, unique name: day, hour and a random UUID (one new folder per hour, because each costs a sync)."""
        return f"{now_utc():%Y%m%d/%H}/{uuid.uuid4().hex}.dcm"

    def new_instance_name(self) -> str:
        """A new, unique name for a received instance, with its place in the order of arrival (:func:`order_of`)."""
        return f"{now_utc():%Y%m%d/%H}/{self._order.next():016x}-{uuid.uuid4().hex[:16]}.dcm"

    def continue_order(self) -> None:
        """Find the last place in the order of arrival now, in the names of all files, not when it is needed first."""
        self._order.next()

    def make_folder(self, folder: Path) -> None:
        """Create a folder in the spool and make it and its parents durable.

        An existing folder may have been created by a process or thread that has not synced it and may never do so.
        """
        if folder == self._root or (folder in self._durable_folders and folder.is_dir()):
            return
        self.make_folder(folder.parent)
        self.disk.make_folder(folder)
        self.disk.sync_folder(folder.parent)
        self._durable_folders.add(folder)

    def sync(self, descriptor: int, folder: Path) -> None:
        """Make a renamed file and its name durable. Both syncs run in parallel: in sequence they take 8.9 ms per
        instance, in parallel 2.8 ms (ext4 on a disk with a write cache).

        Raises:
            OSError: one of them failed.
        """
        folder_synced = self._folder_syncs.submit(self.disk.sync_folder, folder)
        try:
            self.disk.sync_file(descriptor)
        finally:
            folder_synced.result()

    def _is_being_written(self, path: Path) -> bool:
        try:
            return self.disk.has_writer(path)
        except OSError:
            return True  # it can't be told

    def _remove(self, path: Path) -> bool:
        """Remove a file if it exists; whether it is gone."""
        with suppress(OSError):
            self.disk.unlink(path)
            return True
        return False

    def _files(self, suffix: str, older_than_s: float, unless_beside: str = "") -> Iterator[Path]:
        now_s = now_utc().timestamp()
        for folder, folders, names in os.walk(self._root):
            folders.sort()
            present = set(names)
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix != suffix or (unless_beside and path.stem + unless_beside in present):
                    continue
                if _is_as_old(path, older_than_s, now_s):
                    yield path

    def _highest_order(self) -> int:
        return max((order_of(name) or 0 for _, _, names in os.walk(self._root) for name in names), default=0)

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _is_as_old(path: Path, age_s: float, now_s: float) -> bool:
    """Whether a file was last written ``age_s`` before ``now_s``, or before the clock was set back.

    One that can't be looked at is left to a later sweep.
    """
    try:
        written_s = path.stat().st_mtime
    except OSError:
        return False
    return now_s - written_s >= age_s or written_s - now_s > _LONGEST_AHEAD_S


class _Order:
    """Numbers that only grow, in every thread, whatever the clock does: its microseconds, or one more than the last."""

    def __init__(self, last: Callable[[], int]) -> None:
        """``last``: the number from which an earlier process of the node went, asked for once."""
        self._find_last = last
        self._last: int | None = None
        self._turn = threading.Lock()

    def next(self) -> int:
        """The next number."""
        with self._turn:
            last = self._find_last() if self._last is None else self._last
            self._last = max(now_ns() // 1000, last + 1)
            return self._last


@contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"spool: {action}: {_name(error)}"
        if error.errno in _NO_SPACE:
            raise StoreFull(what) from error
        raise StoreUnavailable(what) from error


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
