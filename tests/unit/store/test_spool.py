"""The spool: complete files under the node's own names, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import EncodingError, PixelDataInvalid, StoreUnavailable
from dicom_node.standard.files import read_headers, read_series_folder
from dicom_node.standard.part10 import FileMeta
from dicom_node.store.spool import Spool, order_of
from dicom_node.types import EncodedResult, ResultKind
from tests.support.received_series import write_instance

META = FileMeta(CTImageStorage, "1.2.3.4.5", ImplicitVRLittleEndian, "SENDER")
UID_ELEMENT = b"\x08\x00\x18\x00\x0a\x00\x00\x001.2.3.4.5\x00"


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def files(spool, suffix=""):
    return [path for path in spool._root.rglob(f"*{suffix}") if path.is_file()]


def test_instance_is_a_part_10_file_with_the_received_bytes(spool):
    written = write_instance(spool, META, UID_ELEMENT)
    assert written.dataset_sha256 == hashlib.sha256(UID_ELEMENT).hexdigest()
    assert written.size_bytes == len(UID_ELEMENT)
    path = spool.path(written.spool_name)
    assert path.read_bytes().endswith(UID_ELEMENT)
    read = dcmread(path)
    assert read.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.5"
    assert read.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert read.file_meta.SourceApplicationEntityTitle == "SENDER"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == spool._root.stat().st_mode & 0o777 == 0o700


def test_uncommitted_writer_leaves_nothing_behind(spool):
    with spool.open_instance(META) as writer:
        writer.write(b"12345678")
        assert files(spool, ".part")
        assert files(spool, ".dcm") == []
        with writer.dataset() as seen:
            assert bytes(seen) == b"12345678"
        assert writer.digest(slice(2, 5)) == hashlib.sha256(b"345").hexdigest()
        assert writer.digest(slice(5, 5)) is None
    assert files(spool) == []


@pytest.mark.parametrize("name", ["", ".", "../x", "/etc/passwd", "a/../../x", "a/.."])
def test_no_name_leads_out_of_the_spool(spool, name):
    with pytest.raises(ValueError, match="outside the spool"):
        spool.path(name)


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_disk_is_store_unavailable_and_leaves_nothing(spool, monkeypatch, call, code):
    write_instance(spool, META, UID_ELEMENT)  # the folders exist

    def fail(*_args, **_kwargs):
        raise OSError(code, "")

    failing = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    setattr(failing, call, fail)
    monkeypatch.setattr("dicom_node.store.durable.os", failing)
    with pytest.raises(StoreUnavailable, match=errno.errorcode[code]):
        write_instance(spool, META, UID_ELEMENT)
    assert len(files(spool)) == 1


def test_only_old_leftovers_are_removed(spool):
    kept = write_instance(spool, META, UID_ELEMENT)
    folder = spool.path(kept.spool_name).parent
    old, new = folder / "old.part", folder / "new.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 100,) * 2)
    assert spool.remove_leftovers(older_than_s=60) == 1
    assert sorted(files(spool)) == sorted([new, spool.path(kept.spool_name)])
    assert list(spool.names(older_than_s=0)) == [kept.spool_name]
    assert list(spool.names(older_than_s=60)) == []


def dataset(series="1.2.1", instance="1.2.1.1", **values) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = CTImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = "1.2", series, instance
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def encoded(made: Dataset) -> EncodedResult:
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    uids = (made.SOPClassUID, made.SOPInstanceUID, made.SeriesInstanceUID, made.file_meta.TransferSyntaxUID)
    return EncodedResult(ResultKind.SEGMENTATION, *uids, buffer.getvalue())


def test_result_is_read_back_equal(spool):
    made = dataset(PatientName="Äneas", SpecificCharacterSet="ISO_IR 192")
    ((result, name),) = spool.write_results([encoded(made)])
    content = result.path.read_bytes()
    assert (result.sha256, result.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert result.path == spool.path(name)
    assert result.path.stat().st_mode & 0o777 == 0o600
    assert dcmread(result.path) == made
    assert (result.sop_instance_uid, result.transfer_syntax_uid) == ("1.2.1.1", ExplicitVRLittleEndian)


def test_result_that_cannot_be_written_leaves_nothing(spool, monkeypatch):
    def disk_is_full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    made = encoded(dataset())
    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(StoreUnavailable, match="ENOSPC"):
        spool.write_results([made])
    assert files(spool) == []


def test_several_results_are_written_in_order(spool):
    made = [encoded(dataset(instance=f"1.2.1.{number}")) for number in range(1, 20)]
    written = spool.write_results(iter(made))
    assert [result.sop_instance_uid for result, _ in written] == [each.sop_instance_uid for each in made]
    assert [result.path.read_bytes() for result, _ in written] == [each.content for each in made]
    assert sorted(files(spool)) == sorted(result.path for result, _ in written)


def test_file_that_cannot_be_looked_at_is_left_for_later_and_the_others_are_found(spool, monkeypatch):
    names = [write_instance(spool, META, UID_ELEMENT).spool_name for _ in range(3)]
    look = Path.stat

    def stat_of(path, **how):
        if path == spool.path(names[1]):
            raise OSError(errno.EIO, "")
        return look(path, **how)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "stat", stat_of)
        assert list(spool.names(-1)) == [names[0], names[2]]
    assert list(spool.names(-1)) == names


def test_if_one_of_several_results_cannot_be_written_none_is_left(spool, monkeypatch):
    def only_small_files_fit(descriptor):
        if os.fstat(descriptor).st_size > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    large = dataset(BitsAllocated=8, PixelData=bytes(200_000), Rows=5)
    large["PixelData"].VR = "OB"
    monkeypatch.setattr(os, "fsync", only_small_files_fit)
    with pytest.raises(StoreUnavailable, match="ENOSPC"):
        spool.write_results([encoded(each) for each in (dataset(), large, dataset())])
    assert files(spool) == []


def test_every_writer_into_a_folder_made_by_another_makes_it_durable(spool, tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def record(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    other = Spool(tmp_path / "spool")  # made by another process, which may die between mkdir and sync
    monkeypatch.setattr(Spool, "new_instance_name", lambda _spool: f"20260301/08/{uuid4().hex}.dcm")
    hour = spool.path(write_instance(spool, META, UID_ELEMENT).spool_name).parent
    monkeypatch.setattr(os, "fsync", record)
    write_instance(other, META, UID_ELEMENT)
    assert {hour, hour.parent, hour.parent.parent} <= set(synced)
    synced.clear()
    write_instance(other, META, UID_ELEMENT)
    assert hour.parent not in synced


def until_written(spool, content):
    """The only file with ``content``, as soon as it exists."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if [path.read_bytes() for path in files(spool)] == [content]:
            return files(spool)[0]
        time.sleep(0.01)
    raise AssertionError("not written")


def test_results_are_written_while_others_are_made(spool):
    first, second = encoded(dataset()), encoded(dataset(instance="1.2.1.2"))
    with spool.writing_results() as writing:
        writing.add(first)
        until_written(spool, first.content)
        writing.add(second)
        written = writing.written()
    assert [result.sop_instance_uid for result, _ in written] == ["1.2.1.1", "1.2.1.2"]
    assert [result.path.read_bytes() for result, _ in written] == [first.content, second.content]


def test_results_of_a_long_run_are_not_mistaken_for_unclaimed_files(spool):
    first = encoded(dataset())
    with spool.writing_results() as writing:
        writing.add(first)
        os.utime(until_written(spool, first.content), (time.time() - 100,) * 2)
        assert list(spool.names(older_than_s=60)) == []
        ((_, name),) = writing.written()
    # nor before its row is written
    assert list(spool.names(older_than_s=60)) == []
    assert list(spool.names(older_than_s=0)) == [name]


def test_results_whose_names_cannot_be_made_durable_are_removed(spool, monkeypatch):
    def no_folder(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    write_instance(spool, META, UID_ELEMENT)  # the folders exist
    monkeypatch.setattr(os, "fsync", no_folder)
    with pytest.raises(StoreUnavailable, match="EIO"):
        spool.write_results([encoded(dataset())])
    assert len(files(spool)) == 1


def test_if_a_later_result_cannot_be_made_the_earlier_ones_are_removed(spool):
    def results():
        yield from (encoded(dataset(instance=f"1.2.1.{number}")) for number in range(1, 20))
        raise EncodingError("the last cannot be made")

    with pytest.raises(EncodingError):
        spool.write_results(results())
    assert files(spool) == []


def test_headers_keep_file_meta_and_leave_pixels(tmp_path):
    dataset(BitsAllocated=8, PixelData=bytes(100), Rows=5).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (read,) = read_headers([tmp_path / "a.dcm"])
    assert read.header.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert read.header.Rows == 5
    assert "PixelData" not in read.header


def test_headers_of_missing_and_non_dicom_files(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM")
    with pytest.raises(PixelDataInvalid, match=r"a\.dcm"):
        read_headers([tmp_path / "a.dcm"])
    with pytest.raises(StoreUnavailable, match=r"b\.dcm is missing"):
        read_headers([tmp_path / "b.dcm"])


def test_folder_gives_its_series_and_skips_other_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for number, (series, instance) in enumerate([("1.2.1", "1"), ("1.2.1", "2"), ("1.2.2", "3"), ("1.2.1", "2")]):
        dataset(series, f"1.2.9.{instance}", BitsAllocated=8, PixelData=b"\0\0").save_as(
            tmp_path / "deep" / f"{number}", enforce_file_format=True
        )
    (tmp_path / "readme.txt").write_text("not DICOM")
    (tmp_path / "cut.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL")
    (tmp_path / "empty").touch()
    first, second = read_series_folder(tmp_path)
    assert (first.series_instance_uid, len(first.instances)) == ("1.2.1", 2)
    assert (second.series_instance_uid, len(second.instances)) == ("1.2.2", 1)
    assert first.study_instance_uid == "1.2"


def test_every_real_series_can_be_read(shared_data):
    folder = shared_data / "derived" / "totalsegmentator_example_sendable"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    (series,) = read_series_folder(folder)
    assert len(series.instances) > 10


def test_names_of_instances_keep_their_order_whatever_the_clock_does(spool, monkeypatch):
    clock = iter([5_000_000, 5_000_000, 3_000_000, 1_000_000, 9_000_000])
    monkeypatch.setattr("dicom_node.store.spool.now_ns", lambda: next(clock))
    orders = [order_of(write_instance(spool, META, UID_ELEMENT).spool_name) for _ in range(3)]
    restarted = Spool(spool._root)
    orders += [order_of(write_instance(restarted, META, UID_ELEMENT).spool_name) for _ in range(2)]
    assert orders == [5000, 5001, 5002, 5003, 9000]
    assert order_of(f"20260301/08/{uuid4().hex}.dcm") is None


def test_instance_marked_as_refused_is_no_complete_file_until_it_is_unmarked(spool):
    kept, refused = (write_instance(spool, META, UID_ELEMENT).spool_name for _ in range(2))
    spool.mark_refused(refused)
    spool.mark_refused("20260301/08/gone.dcm")
    assert list(spool.names(-1)) == [kept]
    assert list(spool.refused(-1)) == [refused]
    assert list(spool.refused(60)) == []
    spool.unmark_refused(refused)
    assert list(spool.names(-1)) == [kept, refused]
    assert list(spool.refused(-1)) == []


def test_mark_that_cannot_be_written_is_store_unavailable(spool, monkeypatch):
    name = write_instance(spool, META, UID_ELEMENT).spool_name

    def disk_is_full(*_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(Path, "touch", disk_is_full)
    with pytest.raises(StoreUnavailable, match="ENOSPC"):
        spool.mark_refused(name)
