"""Spool files that no ledger row knows: a crash between rename and row, or a ledger restored from a backup.

Nothing on the disk is thrown away on the ledger's word alone: a whole CT instance without a row is recorded as received
(its sender was told nothing, or was told 0x0000 by a ledger that is gone; in both cases the node must have it), but it
never replaces newer bytes of the instance. One whose sender was told that it is not stored is marked; it is removed
unless its row was committed all the same. Results without a row are removed, since their job runs again and makes the
same instances; purged files are removed.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import structlog
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info

from dicom_node.errors import InstanceRefused, MalformedDataset, StoreUnavailable
from dicom_node.receive.header import read_header
from dicom_node.receive.policy import check_dataset
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.standard.uids import CT_SOP_CLASSES, MULTI_FRAME_CT_SOP_CLASSES, is_well_formed_uid
from dicom_node.store.durable import digest_of_part
from dicom_node.types import Receipt, ReceivedInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from dicom_node.receive.header import InstanceHeader
    from dicom_node.store.spool import Spool

    _Claims = Callable[[Collection[str]], Mapping[str, bool]]

_ASKED_AT_ONCE = 500
_KEPT = (Receipt.NEW, Receipt.REPLACEMENT, Receipt.OUTDATED)
_OF_BROKEN_META = (BytesLengthException, NotImplementedError, struct.error)
"""What pydicom raises for File Meta Information that is broken, besides ValueError."""
_LONGEST_AE_TITLE = 16
_LEFTOVER_AGE_S = 600.0
"""No writer leaves a temporary file untouched for this long, however slow its sender or disk, and no database takes as
long for a COMMIT whose answer was lost."""


class AdoptionLedger(Protocol):
    """What the adoption of files needs of the ledger."""

    def record_instance(self, received: ReceivedInstance) -> Receipt:
        """The bytes of ``received`` are durable in the spool."""

    def current_file(self, series_instance_uid: str, sop_instance_uid: str) -> str | None:
        """The spool name of the current bytes of an instance."""

    def nothing_recorded(self) -> AbstractContextManager[None]:
        """Nothing is recorded during the block."""
        ...


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was done: instances recorded, and files removed."""

    adopted: int
    removed: int


def adopt_unclaimed(
    spool: Spool,
    ledger: AdoptionLedger,
    claims: _Claims,
    older_than_s: float,
) -> Adoption:
    """Record or remove every complete spool file older than ``older_than_s`` that is not claimed.

    ``claims``: for those of some names that are in the ledger, whether their files are still needed. Temporary files of
    killed processes are removed too; at its start the listener removes only those that are old enough then.
    """
    adopted, removed = 0, spool.remove_leftovers(_LEFTOVER_AGE_S) + _settle_refused(spool, claims)
    unclaimed = (name for name, is_claimed in _with_claims(spool.names(older_than_s), claims) if not is_claimed)
    # whoever wrote a file may only be held up, and still record it, remove it, or tell its sender that it is not stored
    left = (name for name in unclaimed if spool.is_left(name))
    for name, is_claimed in _with_claims(left, claims):
        if is_claimed:
            continue
        try:
            received = None if is_claimed is not None else _received(spool.path(name), name)
            if received is not None:
                spool.make_durable(name)  # the process that wrote it may have been killed before that
        except (OSError, StoreUnavailable):
            continue  # the disk may give it back: what could not be read is neither recorded nor removed
        except Exception:  # noqa: BLE001 - no file may hold up the others
            structlog.get_logger().exception("spool.file_crashed", file=name)
            continue
        if received is not None and _is_kept(spool, ledger, received):
            adopted += 1
        elif _remove_unclaimed(spool, ledger, claims, name):
            removed += 1
    if adopted or removed:
        structlog.get_logger().warning("spool.unclaimed", adopted=adopted, removed=removed)
    return Adoption(adopted, removed)


def _is_kept(spool: Spool, ledger: AdoptionLedger, received: ReceivedInstance) -> bool:
    """Record what was found; whether its file is needed. A copy is, if it takes the place of a file that is gone."""
    receipt = ledger.record_instance(received)
    if receipt is Receipt.DUPLICATE:
        name = ledger.current_file(received.series_instance_uid, received.sop_instance_uid)
        return name is not None and spool.replace_if_gone(name, received.spool_name)
    return receipt in _KEPT


def _remove_unclaimed(spool: Spool, ledger: AdoptionLedger, claims: _Claims, name: str) -> bool:
    """Remove a file unless it was claimed meanwhile: whoever wrote it may only have been held up."""
    with ledger.nothing_recorded():
        if claims((name,)).get(name):
            return False
        spool.delete(name)
    return True


def _settle_refused(spool: Spool, claims: _Claims) -> int:
    """Remove the files of refused instances and their marks, except files with a row; returns how many files."""
    removed = 0
    for name, is_claimed in _with_claims(spool.refused(_LEFTOVER_AGE_S), claims):
        path = spool.path(name)
        try:
            if not is_claimed and path.exists():
                spool.delete(name)
                if path.exists():
                    continue  # without its mark it would be adopted
                removed += 1
        except OSError:
            continue
        spool.unmark_refused(name)
    return removed


def _with_claims(names: Iterator[str], claims: _Claims) -> Iterator[tuple[str, bool | None]]:
    """Each name with what ``claims`` says of it, or None; the ledger has more names than the spool has files."""
    while some := tuple(islice(names, _ASKED_AT_ONCE)):
        claimed = claims(some)
        yield from ((name, claimed.get(name)) for name in some)


def _received(path: Path, name: str) -> ReceivedInstance | None:
    """What the file says that it is; None when it is no instance that this node receives.

    Raises:
        OSError: it can't be read.
    """
    try:
        meta = read_file_meta_info(path)
        sop_class_uid, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        if sop_class_uid not in CT_SOP_CLASSES or not is_well_formed_uid(syntax):
            return None
        with path.open("rb") as file:
            start, stop = data_set_start(file.read(HEAD_LENGTH)), file.seek(0, os.SEEK_END)
            header = _header(file, start, syntax, is_multi_frame=sop_class_uid in MULTI_FRAME_CT_SOP_CLASSES)
            check_dataset(sop_class_uid, str(meta.MediaStorageSOPInstanceUID), header)
            pixels = slice(start + header.pixel_data.start, start + header.pixel_data.stop)
            dataset_sha256 = digest_of_part(file.fileno(), slice(start, stop))
            pixels_sha256 = digest_of_part(file.fileno(), pixels) if pixels.start < pixels.stop else None
        calling_ae = _ae_title(str(meta.get("SourceApplicationEntityTitle", "")))
    except (InvalidDicomError, MalformedDataset, InstanceRefused, AttributeError, ValueError, *_OF_BROKEN_META):
        return None
    return ReceivedInstance(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        series_instance_uid=header.series_instance_uid,
        study_instance_uid=header.study_instance_uid,
        transfer_syntax_uid=syntax,
        spool_name=name,
        dataset_sha256=dataset_sha256,
        size_bytes=stop - start,
        calling_ae=calling_ae,
        peer_address="",
        association_id="",
        received_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        position_mm=header.position_mm,
        orientation=header.orientation,
        instance_number=header.instance_number,
        number_of_frames=header.number_of_frames,
        pixels_sha256=pixels_sha256,
    )


def _ae_title(text: str) -> str:
    """An AE title that a database takes; empty if ``text``, from a file that may be broken, is none."""
    return text if len(text) <= _LONGEST_AE_TITLE and text.isprintable() else ""


def _header(file: BinaryIO, start: int, syntax: str, *, is_multi_frame: bool) -> InstanceHeader:
    with (
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as whole,
        whole[start:] as dataset,
    ):
        return read_header(dataset, syntax, is_multi_frame=is_multi_frame)
