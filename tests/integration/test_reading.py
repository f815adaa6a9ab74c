"""Children that read: what they hand over, and what becomes of series that are made to end them."""

from __future__ import annotations

import os
import signal
import struct
import threading
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import structlog
import yaml
from pydicom import dcmread
from pydicom.uid import RLELossless

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.errors import (
    GeometryRefused,
    LimitExceeded,
    NotEligible,
    PixelDataInvalid,
    ReaderLost,
    ReadingFailed,
    SeriesRejected,
    Stopping,
    StoreUnavailable,
)
from dicom_node.reading.limits import Budget
from dicom_node.reading.reader import ImageReader
from dicom_node.reconstruct import reconstruct
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.files import read_headers
from dicom_node.standard.part10 import data_set_start
from dicom_node.store.states import JobState
from dicom_node.work.memory import resident_bytes
from dicom_node.work.pool import WorkerPool
from tests.support import scripted_reader
from tests.support.ct_series import Stack, noise, write
from tests.support.mutated_headers import outcomes
from tests.support.received_series import as_received, receive_instances
from tests.support.waiting import wait_until

SMALL = Budget(headers_s=2, decoding_s=2, wall_factor=20)
"""Limits that a test can wait for."""
MIB = 2**20
CRASHED = "the image reader stopped unexpectedly while {}: signal SIGSEGV"


def paths_of(series):
    return [instance.path for instance in series.instances]


def rewritten(series, change, *indices):
    """The series with ``change`` done to the files of the given instances, or of all."""
    for index in indices or range(len(series.instances)):
        path = series.instances[index].path
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return series


@pytest.fixture
def reader():
    with ImageReader(SMALL) as opened:
        yield opened


def in_child(reader, series, *, keep=True):
    read = replace(series, instances=reader.read(paths_of(series), keep=keep))
    return reader.reconstruct(read)


def halves(dataset):
    dataset.RescaleSlope = 0.5


KINDS = {
    "int16": (Stack(noise((5, 16, 12))), None),
    "float32": (Stack(noise((5, 16, 12))), halves),
    "tilted": (Stack(noise((5, 16, 12)), step_mm=(0.0, 0.6, 2.5)), None),
    "compressed": (Stack(noise((5, 16, 12))), lambda dataset: dataset.compress(RLELossless)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_the_child_gives_what_is_reconstructed_here(reader, tmp_path, kind, keep):
    stack, change = KINDS[kind]
    series = write(tmp_path, stack)
    if change is not None:
        rewritten(series, change)
    expected = reconstruct(replace(series, instances=read_headers(paths_of(series))))
    made = in_child(reader, series, keep=keep)
    for of_here, of_child in ((expected.volume, made.volume), (expected.source, made.source)):
        np.testing.assert_array_equal(of_child.voxels_zyx, of_here.voxels_zyx)
        assert of_child.voxels_zyx.dtype == of_here.voxels_zyx.dtype
        np.testing.assert_array_equal(of_child.geometry.affine_lps, of_here.geometry.affine_lps)
    assert (made.volume is made.source) == (expected.volume is expected.source)
    assert (made.frames, made.notes) == (expected.frames, expected.notes)
    assert made.shear_xy_pixels_per_plane == expected.shear_xy_pixels_per_plane
    assert made.headers == expected.headers
    assert [header.file_meta for header in made.headers] == [header.file_meta for header in expected.headers]


def test_a_child_stays_warm_and_a_second_thread_gets_its_own(reader, tmp_path):
    series = write(tmp_path, Stack(noise((4, 8, 8))))
    in_child(reader, series)
    (child,) = reader._all
    in_child(reader, series)
    assert [child] == reader._all
    threads = [threading.Thread(target=in_child, args=(reader, series)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(reader._all) <= 2


def test_the_voxels_that_were_handed_over_do_not_count_as_memory_of_the_child(reader, tmp_path, monkeypatch):
    series = write(tmp_path, Stack(noise((4, 2000, 2000))))
    made = in_child(reader, series)
    (child,) = reader._all
    size_bytes = made.volume.voxels_zyx.nbytes
    process_bytes = resident_bytes(child.process.process.pid)
    monkeypatch.setattr("dicom_node.reading.reader._LARGEST_IDLE_BYTES", process_bytes + size_bytes // 2)
    in_child(reader, series)
    assert [child] == reader._all


def test_a_file_that_has_changed_since_its_header_was_read_is_refused(reader, tmp_path):
    series = write(tmp_path, Stack(noise((4, 8, 8))))
    read = replace(series, instances=reader.read(paths_of(series), keep=True))
    insert(paths_of(series)[1], private(b"OB", bytes(100)))
    with pytest.raises(PixelDataInvalid, match="no Pixel Data"):
        reader.reconstruct(read)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda ds: setattr(ds, "Modality", "MR"), NotEligible, "Modality is not CT"),
        (lambda ds: setattr(ds, "ImagePositionPatient", [0, 0, 0]), GeometryRefused, "position"),
        (lambda ds: setattr(ds, "Rows", 65535), PixelDataInvalid, "Pixel Data states"),
    ],
)
def test_a_refusal_is_the_same_error_with_the_same_words(reader, tmp_path, change, error, reason):
    series = rewritten(write(tmp_path, Stack(noise((4, 8, 8)))), change)
    with pytest.raises(error, match=reason) as here:
        reconstruct(replace(series, instances=read_headers(paths_of(series))))
    with pytest.raises(error) as there:
        in_child(reader, series)
    assert str(there.value) == str(here.value)


def test_what_can_t_be_read_is_an_error_and_the_child_stays(reader, tmp_path):
    series = write(tmp_path, Stack(noise((4, 8, 8))))
    reader.read(paths_of(series))
    (child,) = reader._all
    with pytest.raises(StoreUnavailable, match="is missing"):
        reader.read([tmp_path / "no.dcm"])
    (tmp_path / "no.dcm").write_bytes(b"Doe^John")
    with pytest.raises(PixelDataInvalid, match="not readable as DICOM"):
        reader.read([tmp_path / "no.dcm"])
    assert [child] == reader._all


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("spin", LimitExceeded, r"decoding 288 pixels of 4 files took more than the limit of 2\.\d+ s of CPU time"),
        ("sleep", ReaderLost, r"decoding 288 pixels of 4 files took longer than the limit of 4\.\d+ s"),
        ("crash", ReaderLost, CRASHED.format("decoding 288 pixels of 4 files")),
        ("memory", LimitExceeded, r"decoding 288 pixels of 4 files took more than the limit of \d+ MiB of memory"),
        ("fault", ReadingFailed, "decoding 288 pixels of 4 files: unexpected RuntimeError"),
    ],
)
def test_a_decoder_that_ends_its_child_is_an_error_and_the_next_series_is_decoded(
    tmp_path, monkeypatch, how, error, reason
):
    scripted_reader.script(tmp_path / "script", monkeypatch, how)
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()
    bad = write(tmp_path / "bad", Stack(noise((4, scripted_reader.ROWS, 8))))
    good = write(tmp_path / "good", Stack(noise((4, 8, 8))))
    budget = replace(SMALL, wall_factor=2) if how == "sleep" else SMALL
    with ImageReader(budget) as reader, structlog.testing.capture_logs() as log:
        with pytest.raises(error, match=reason) as raised:
            in_child(reader, bad)
        assert in_child(reader, good).volume.geometry.shape_zyx == (4, 8, 8)
    assert "Doe" not in f"{log} {raised.value}"
    assert [line["event"] for line in log] == {"fault": ["reading.crashed"], "crash": ["child.ended"]}.get(how, [])
    if how == "crash":  # what it wrote names our files, and reasons end in patients' studies
        assert "volume.py" in log[0]["output"]
        assert str(raised.value) == reason


def test_a_closed_reader_ends_calls_and_children(tmp_path, monkeypatch):
    scripted_reader.script(tmp_path / "script", monkeypatch, "sleep")
    (tmp_path / "bad").mkdir()
    bad = write(tmp_path / "bad", Stack(noise((4, scripted_reader.ROWS, 8))))
    reader = ImageReader()
    ended = []

    def call():
        try:
            in_child(reader, bad)
        except Stopping as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: bool(reader._all) and not reader._idle)
    (child,) = reader._all
    reader.close()
    thread.join(20)
    assert len(ended) == 1
    assert not child.process.is_running
    with pytest.raises(Stopping):
        reader.read(paths_of(bad))


def test_an_idle_child_that_was_killed_is_replaced(reader, tmp_path):
    series = write(tmp_path, Stack(noise((4, 8, 8))))
    reader.read(paths_of(series))
    (child,) = reader._all
    os.kill(child.process.process.pid, signal.SIGKILL)
    wait_until(lambda: not child.process.is_running)
    assert len(reader.read(paths_of(series))) == 4


ITEM, UNDEFINED = struct.pack("<HHI", 0xFFFE, 0xE000, 0), 0xFFFFFFFF


def insert(path, element):
    content = path.read_bytes()
    start = content.index(struct.pack("<HH", 0x0028, 0x0010))
    with path.open("wb") as file:
        file.write(content[:start])
        file.write(element)
        file.write(content[start:])


def private(vr, content, length=None):
    return struct.pack("<HH2sHI", 0x0019, 0x1001, vr, 0, len(content) if length is None else length) + content


class Node:
    """A node with the commissioning model, all of whose series run."""

    def __init__(self, folder, budget=SMALL, attempts=2):
        settings = {
            "node": {"data_folder": "data"},
            "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
            "models": {"tissue": {"kind": "tissue"}},
            "work": {"attempts": attempts},
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
        self.settings = load_settings(folder / "node.yaml")
        self.spool, self.ledger = open_store(self.settings)
        self.workers = WorkerPool(self.settings.models, self.settings.work)
        rules = load_rules(self.settings.rules_file, self.settings)
        self.pipeline = open_pipeline(self.settings, self.ledger, self.spool, rules, self.workers, ImageReader(budget))

    def receive(self, folder, rows=8, patient="T1"):
        """A series of 4 planes, complete; returns its UID."""
        folder.mkdir()
        series = write(folder, Stack(noise((4, rows, 8))))
        rewritten(series, lambda dataset: setattr(dataset, "PatientID", patient))
        receive_instances(self.spool, self.ledger, series.instances)
        self.pipeline.completing.complete_due()
        return series.series_instance_uid

    def files(self, series_instance_uid):
        """Those of a series that is not routed yet, in the spool."""
        names, _ = self.ledger.arrivals.current_instances(series_instance_uid)
        return [self.spool.path(name) for name in names]

    def change(self, series_instance_uid, change):
        """Change the files of a series that is not routed yet, as if they had been received so."""
        names, _ = self.ledger.arrivals.current_instances(series_instance_uid)
        change(self.files(series_instance_uid))
        for name in names:
            whole = self.spool.path(name).read_bytes()
            as_received(self.spool, self.ledger, name, whole[data_set_start(whole) :])

    def work(self):
        """All that can be done, as often as it is tried."""
        for _ in range(self.settings.work.attempts):
            self.pipeline.routing.route_complete()
        while self.pipeline.running.run_next_job():
            pass

    def jobs(self):
        return {job.series_instance_uid: (job.state, job.reason) for job in self.ledger.overview.jobs(9)}

    def close(self):
        self.pipeline.running.stop()
        self.ledger.close()


@pytest.fixture
def node(tmp_path):
    opened = Node(tmp_path)
    yield opened
    opened.close()


def with_private_values_of_200_mb(paths):
    for path in paths:
        insert(path, private(b"OB", bytes(200 * MIB)))


def with_2_million_items(paths):
    insert(paths[2], private(b"SQ", ITEM * 2_000_000))


def of_17_gigapixels(paths):
    for path in paths:
        dataset = dcmread(path)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (with_2_million_items, "more sequence items in headers than the limit of 100,000"),
        (of_17_gigapixels, "voxels: 17179344900 are stated, the limit is 2147483648"),
    ],
)
def test_a_poisonous_series_is_rejected_by_its_limit_and_the_next_one_gets_its_result(node, tmp_path, poison, reason):
    bad = node.receive(tmp_path / "bad")
    node.change(bad, poison)
    good = node.receive(tmp_path / "good")
    node.work()
    assert node.jobs()[good][0] is JobState.KEPT
    state, seen = node.jobs()[bad]
    assert (state, reason in seen) == (JobState.REJECTED, True), seen


def test_private_values_of_any_size_do_not_matter(node, tmp_path):
    series = node.receive(tmp_path / "a")
    node.change(series, with_private_values_of_200_mb)
    node.work()
    assert node.jobs()[series][0] is JobState.KEPT


@pytest.mark.parametrize(
    ("how", "routing", "reason"),
    [
        ("spin", True, "reading the headers of 4 files took more than the limit of 2.08 s of CPU time"),
        ("crash", True, CRASHED.format("reading the headers of 4 files")),
        ("spin", False, "s of CPU time"),
        ("crash", False, CRASHED.format("decoding 288 pixels of 4 files")),
    ],
)
def test_a_series_that_ends_its_child_is_tried_as_often_as_others_and_the_next_one_gets_its_result(
    tmp_path, monkeypatch, how, routing, reason
):
    scripted_reader.script(tmp_path / "script", monkeypatch, how)
    node = Node(tmp_path, attempts=2)
    bad = node.receive(
        tmp_path / "bad",
        rows=8 if routing else scripted_reader.ROWS,
        patient=scripted_reader.PATIENT if routing else "T1",
    )
    good = node.receive(tmp_path / "good")
    monkeypatch.setattr("dicom_node.pipeline.outcomes.FIRST_PAUSE", timedelta())
    node.work()
    assert node.jobs()[good][0] is JobState.KEPT
    state, seen = node.jobs()[bad]
    assert state is (JobState.FAILED if how == "crash" and not routing else JobState.REJECTED)
    assert reason in seen
    assert ("(attempt 2)" in seen) == (how == "crash")
    node.close()


def test_mutated_headers_end_with_a_volume_or_a_reason(tmp_path):
    found = list(outcomes(tmp_path, count=210, seed=0))
    refusals = {each.__name__ for each in [SeriesRejected, *SeriesRejected.__subclasses__()]}
    assert {outcome.error for outcome in found} - refusals <= {""}
    assert all(outcome.reason for outcome in found if outcome.error)
    assert all(not outcome.error for outcome in found if outcome.is_sound)
    assert len(found) > len({outcome.reason for outcome in found}) > 20
