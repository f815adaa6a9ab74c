"""Files without a row: recorded or removed, never forgotten."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from sqlalchemy import select

from dicom_node.errors import StoreUnavailable
from dicom_node.receive import adopt as adopt_module
from dicom_node.receive.adopt import Adoption, adopt_unclaimed
from dicom_node.standard.part10 import FileMeta
from dicom_node.store.durable import Disk
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import instance
from dicom_node.store.spool import Spool
from dicom_node.types import EncodedResult, Receipt, ReceivedInstance, ResultKind
from tests.support.received_series import write_instance
from tests.support.waiting import wait_until

RESULT = EncodedResult(ResultKind.REPORT, "1.2", "1.2.6", "1.2.7", ExplicitVRLittleEndian, b"a report")


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture
def ledger(tmp_path, spool):
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", spool)
    yield opened
    opened.close()


def encoded(sop_class, number):
    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"1.2.3.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.4", "1.2.5"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, implicit_vr=False, little_endian=True)
    return FileMeta(str(sop_class), ds.SOPInstanceUID, str(ExplicitVRLittleEndian), "PACS"), buffer.getvalue()


def age(path, age_s=120):
    os.utime(path, (time.time() - age_s,) * 2)


def spooled(spool, sop_class=CTImageStorage, number=1, age_s=120):
    written = write_instance(spool, *encoded(sop_class, number))
    age(spool.path(written.spool_name), age_s)
    return written


def adopt(spool, ledger):
    return adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=60)


def test_instance_without_a_row_is_recorded_as_received(spool, ledger):
    written = spooled(spool)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=0)
    names, sending_ae = ledger.arrivals.current_instances("1.2.5")
    assert (names, sending_ae) == ((written.spool_name,), "PACS")
    assert adopt(spool, ledger) == Adoption(adopted=0, removed=0)
    (revision,) = ledger.arrivals.due_revisions(ledger_clock())
    assert revision.evidence.positions_mm == (1.0,)


def ledger_clock():
    from dicom_node.store.clock import now_utc  # noqa: PLC0415 - the node's own clock

    return now_utc()


def test_second_copy_and_orphaned_result_are_removed(spool, ledger):
    kept = spooled(spool)
    adopt(spool, ledger)
    copy, orphan = spooled(spool), spooled(spool, SegmentationStorage, number=2)
    assert adopt(spool, ledger) == Adoption(adopted=0, removed=2)
    assert spool.path(kept.spool_name).exists()
    assert not spool.path(copy.spool_name).exists()
    assert not spool.path(orphan.spool_name).exists()


def recorded(ledger, written):
    """Record the file as the listener finally would."""
    return ledger.arrivals.record_instance(
        ReceivedInstance(
            sop_instance_uid="1.2.3.1",
            sop_class_uid=str(CTImageStorage),
            series_instance_uid="1.2.5",
            study_instance_uid="1.2.4",
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            spool_name=written.spool_name,
            dataset_sha256=written.dataset_sha256,
            size_bytes=written.size_bytes,
            calling_ae="PACS",
            peer_address="127.0.0.1",
            association_id="slow",
            received_at=ledger_clock(),
        )
    )


def test_file_adopted_before_the_listener_wrote_its_row_is_kept(spool, ledger):
    """The disk stalled between rename and row: if the row were a DUPLICATE, the listener would delete the only copy."""
    written = spooled(spool)
    adopt(spool, ledger)
    assert recorded(ledger, written) is Receipt.NEW
    assert ledger.overview.counts().instances["current"] == 1


@pytest.mark.parametrize(("ahead_s", "adopted"), [(600, 0), (10 * 365 * 86400, 1)])
def test_instance_written_before_the_clock_was_set_back_is_recorded_before_it_has_caught_up(
    spool, ledger, ahead_s, adopted
):
    spooled(spool, age_s=-ahead_s)
    assert adopt(spool, ledger) == Adoption(adopted, removed=0)


def test_file_is_left_to_a_writer_that_is_held_up(spool, ledger):
    """It may still fail: then it removes the file, or its sender is told that the instance is not stored."""
    meta, dataset = encoded(CTImageStorage, number=1)
    with spool.open_instance(meta) as writer:
        writer.write(dataset)
        age(spool.path(writer.commit().spool_name), age_s=3600)
        assert adopt(spool, ledger) == Adoption(adopted=0, removed=0)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=0)


def test_row_written_during_the_sweep_keeps_its_file(spool, ledger):
    written = spooled(spool)
    claims = ledger.retention.claims([written.spool_name])
    recorded(ledger, written)
    adopt_unclaimed(spool, ledger.arrivals, lambda _: claims, older_than_s=60)
    assert spool.path(written.spool_name).exists()


def test_file_that_cannot_be_read_now_is_left_for_a_later_sweep(spool, ledger, monkeypatch):
    written = spooled(spool)

    def fail(*_):
        raise OSError(errno.EIO, "")

    with monkeypatch.context() as failing:
        failing.setattr(os, "pread", fail)
        assert adopt(spool, ledger) == Adoption(adopted=0, removed=0)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=0)
    assert ledger.arrivals.current_instances("1.2.5")[0] == (written.spool_name,)


def test_file_that_was_found_is_synced_before_its_row_is_written(spool, ledger, monkeypatch):
    """A process killed right after the rename did not sync it, and a repeated instance is acknowledged on its row."""
    path, done = spool.path(spooled(spool).spool_name), []
    fsync, record = os.fsync, ledger.arrivals.record_instance

    def note_sync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def note_row(received):
        done.append("row")
        return record(received)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(ledger.arrivals, "record_instance", note_row)
    adopt(spool, ledger)
    assert {path, path.parent} <= set(done[: done.index("row")])


def test_result_whose_row_was_written_during_the_sweep_keeps_its_file(spool, ledger):
    ((_, name),) = spool.write_results([RESULT])
    looks = iter([{}, {name: True}])
    adopt_unclaimed(spool, ledger.arrivals, lambda _: next(looks), older_than_s=-1)
    assert spool.path(name).exists()


def test_results_that_were_removed_before_their_row_was_written_have_none(spool):
    stored = spool.write_results([RESULT])
    spool.check_files(stored)
    spool.delete(stored[0][1])
    with pytest.raises(StoreUnavailable, match="was removed before its row was written"):
        spool.check_files(stored)


def test_no_clock_makes_a_file_a_leftover_that_is_being_written(spool, ledger):
    meta, dataset = encoded(CTImageStorage, number=1)
    with spool.open_instance(meta) as writer:
        writer.write(dataset)
        (part,) = spool.path("any").parent.rglob("*.part")
        age(part, age_s=3600)
        assert adopt(spool, ledger) == Adoption(adopted=0, removed=0)
        assert spool.path(writer.commit().spool_name).exists()


def test_results_are_no_leftovers_while_others_of_their_run_are_made(spool):
    """A listener that starts meanwhile removes what is older than a minute."""
    with spool.writing_results() as writing:
        writing.add(RESULT)
        wait_until(lambda: [future.done() for future in writing._writing] == [True])
        (part,) = spool.path("any").parent.rglob("*.part")
        age(part, age_s=3600)
        assert spool.remove_leftovers(60) == 0
        ((stored, _),) = writing.written()
    assert stored.path.read_bytes() == RESULT.content
    assert not spool.disk.has_writer(stored.path)


def test_leftovers_of_a_killed_writer_are_removed_once_no_writer_can_be_alive(spool, ledger):
    ages = {"old": 700, "young": 300}
    for name, age_s in ages.items():
        path = spool.path(f"{name}.part")
        path.write_bytes(b"half")
        age(path, age_s)
    assert adopt(spool, ledger) == Adoption(adopted=0, removed=1)
    assert not spool.path("old.part").exists()
    assert spool.path("young.part").exists()


class StuckDisk(Disk):
    """Removes nothing whose name says that it is stuck."""

    def unlink(self, file):
        if "stuck" in file.name:
            raise OSError(errno.EIO, "")
        super().unlink(file)


def test_file_that_cannot_be_removed_keeps_no_other_from_being_settled(tmp_path, ledger):
    spool = Spool(tmp_path / "spool", disk=StuckDisk())
    spooled(spool)
    for name in ("other.part", "stuck.part", "other.refused", "stuck.refused"):
        spool.path(name).touch()
        age(spool.path(name), age_s=700)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=1)
    assert {path.name for path in spool.path("any").parent.iterdir() if path.is_file()} == {
        "stuck.part",
        "stuck.refused",
    }


BROKEN_META = {
    "VR that is none": lambda file: file.replace(b"\2\0\x10\0UI", b"\2\0\x10\0EL", 1),
    "number of three bytes": lambda file: file[:138] + b"\3\0" + file[140:],
    "end within a length": lambda file: file[:154],
    "AE title of binary": lambda file: file.replace(b"AE\4\0PACS", b"AE\4\0P\0\0S", 1),
    "transfer syntax that is none": lambda file: file.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008\0" * 2, 1)[:-8],
}


@pytest.mark.parametrize("fault", BROKEN_META)
def test_file_with_broken_meta_information_keeps_no_other_from_being_adopted(spool, ledger, fault):
    broken = spool.path(spooled(spool).spool_name)
    content = broken.read_bytes()
    broken.write_bytes(BROKEN_META[fault](content))
    assert broken.read_bytes() != content
    age(broken)
    whole = spooled(spool, number=2)
    found = adopt(spool, ledger)
    names, _ = ledger.arrivals.current_instances("1.2.5")
    assert whole.spool_name in names
    assert found.adopted + found.removed == 2
    with ledger.database.read() as db:
        assert {row.calling_ae for row in db.execute(select(instance))} <= {"PACS", ""}


class UnreadableDisk(Disk):
    """Syncs no file whose name has been noted."""

    def __init__(self):
        self.unreadable = ""

    def sync_found(self, file):
        if file.name == self.unreadable:
            raise OSError(errno.EIO, "")
        super().sync_found(file)


@pytest.mark.parametrize("fault", ["of the disk", "of ours"])
def test_file_that_fails_stays_and_keeps_no_other_from_being_adopted(tmp_path, ledger, monkeypatch, fault):
    spool = Spool(tmp_path / "spool", disk=UnreadableDisk())
    failing, sound = spooled(spool), spooled(spool, number=2)
    if fault == "of the disk":
        spool.disk.unreadable = Path(failing.spool_name).name
    else:
        checked = adopt_module.check_dataset

        def fail_once(*of):
            monkeypatch.setattr(adopt_module, "check_dataset", checked)
            raise RuntimeError("a fault")

        monkeypatch.setattr(adopt_module, "check_dataset", fail_once)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=0)
    assert ledger.arrivals.current_instances("1.2.5")[0] == (sound.spool_name,)
    assert spool.path(failing.spool_name).exists()


def test_copy_takes_the_place_of_a_file_that_is_gone(spool, ledger):
    """Its listener was killed between the row of the duplicate and that: the copy has the only bytes."""
    first = spooled(spool)
    adopt(spool, ledger)
    content = spool.path(first.spool_name).read_bytes()
    copy = spooled(spool)
    spool.delete(first.spool_name)
    assert adopt(spool, ledger) == Adoption(adopted=1, removed=0)
    assert spool.path(first.spool_name).read_bytes() == content
    assert not spool.path(copy.spool_name).exists()


def test_recent_files_are_left_to_their_writer(spool, ledger):
    spooled(spool, age_s=0)
    assert adopt(spool, ledger) == Adoption(adopted=0, removed=0)
    assert ledger.arrivals.current_instances("1.2.5") == ((), "")


def test_more_files_than_one_batch_are_adopted(spool, ledger, monkeypatch):
    monkeypatch.setattr("dicom_node.receive.adopt._ASKED_AT_ONCE", 2)
    names = {spooled(spool, number=n).spool_name for n in range(3)}
    assert adopt(spool, ledger) == Adoption(adopted=3, removed=0)
    names |= {spooled(spool, number=n).spool_name for n in range(3, 5)}
    orphan = spooled(spool, SegmentationStorage, number=9)
    assert adopt(spool, ledger) == Adoption(adopted=2, removed=1)
    assert set(spool.names(-1)) == names
    assert orphan.spool_name not in names


def test_lost_ledger_can_be_rebuilt_from_the_spool(spool, tmp_path):
    names = {spooled(spool, number=n).spool_name for n in range(5)}
    fresh = Ledger(f"sqlite:///{tmp_path / 'fresh.sqlite3'}", spool)
    assert adopt(spool, fresh) == Adoption(adopted=5, removed=0)
    assert set(fresh.arrivals.current_instances("1.2.5")[0]) == names
    fresh.close()
