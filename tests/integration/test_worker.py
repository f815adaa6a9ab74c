"""The worker process: what it returns, and what happens when it is killed, frozen, slow or left idle."""

import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError, SegmentationImpossible, Stopping, WorkerLost
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.local import LocalWorker
from dicom_node.work.models import describe_model
from dicom_node.work.pool import WorkerPool
from inference.tissue import TissueSegmenter
from inference.types import Geometry, Padding, Volume
from tests.support.nnunet_models import plans, write_model, write_package
from tests.support.scripted_worker import Script
from tests.support.waiting import wait_until

WORK = WorkSettings(device="cpu", threads=1, heartbeat_limit_s=20, job_limit_s=120)
TISSUE = TissueModelSettings(kind="tissue")


def volume_of(shape=(24, 60, 50), spacing=(2.0, 2.0, 3.0), dtype=np.int16):
    hu = np.random.default_rng(0).normal(0, 300, shape).astype(dtype)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-12.5, 8.25, 1001)
    return Volume(hu, Geometry(shape, affine))


def nothing(*_):
    pass


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def tissue_worker():
    worker = LocalWorker("tissue", TISSUE, WORK)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """Small windows over a large volume: slow enough to be interrupted, with a progress message per window."""
    folder = tmp_path_factory.mktemp("worker")
    model = write_model(folder / "m", described=plans(patch=(32, 32, 32), spacing=(1.5, 1.5, 1.5), features=(16, 32)))
    return write_package(folder / "library", model, name="slow", minimum_slices=10).folder


@pytest.fixture
def slow_worker(slow_model):
    settings = NnunetModelSettings(kind="nnunet", package=slow_model)
    worker = LocalWorker("slow", settings, WORK.model_copy(update={"heartbeat_limit_s": 4}))
    yield worker
    worker.close()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_child_returns_the_same_labels_as_the_model_here_and_stays_warm(tissue_worker, dtype):
    volume = volume_of(dtype=dtype)
    steps = []
    result = tissue_worker.segment(volume, lambda fraction, stage: steps.append((fraction, stage)))
    expected = TissueSegmenter("tissue").segment(volume, nothing)
    np.testing.assert_array_equal(result.labels_zyx, expected.labels_zyx)
    assert result.geometry is volume.geometry
    assert (result.model, result.names_by_label) == (expected.model, expected.names_by_label)
    of_here = replace(expected.run, stage_seconds=result.run.stage_seconds)
    assert (result.run, set(result.run.stage_seconds)) == (of_here, {"thresholds"})
    assert (steps[0][0], steps[-1]) == (0.0, (1.0, "done"))
    first = tissue_worker.process_id
    tissue_worker.segment(volume, nothing)
    assert tissue_worker.process_id == first
    assert tissue_worker.identity() == expected.model


@pytest.mark.parametrize("region", [None, (1, 60, 50), (24, 60, 50)], ids=["by HU", "in one plane for all", "in each"])
def test_child_treats_padding_like_the_model_here(tissue_worker, region):
    """40 HU is padding in planes 3 to 20, in half of the image if there is a region: air for the model."""
    whole = volume_of()
    hu = np.where(whole.voxels_zyx > 0, np.int16(40), np.int16(-900))
    inside = None if region is None else np.indices(region)[1] < 30
    bounds = np.full(24, 40.0)
    bounds[:3] = bounds[21:] = np.nan
    volume = Volume(hu, whole.geometry, Padding(bounds, bounds, inside))
    labels = tissue_worker.segment(volume, nothing).labels_zyx
    np.testing.assert_array_equal(labels, TissueSegmenter("tissue").segment(volume, nothing).labels_zyx)
    seen = volume.with_air_for_padding()
    np.testing.assert_array_equal(labels, tissue_worker.segment(seen, nothing).labels_zyx)
    assert (labels != tissue_worker.segment(replace(volume, padding=None), nothing).labels_zyx).any()


BROKEN_OPENVINO = """
from inference.nnunet.networks.openvino_network import OpenVinoNetwork
whole, runs = OpenVinoNetwork.run, []
def run(self, windows):
    runs.append(None)
    if len(runs) == 3:
        raise RuntimeError("Exception from src/inference: the plugin broke")
    return whole(self, windows)
OpenVinoNetwork.run = run
"""


def test_fall_back_in_the_child_is_in_the_report_from_the_pool(slow_model, tmp_path, monkeypatch):
    pool = WorkerPool({"slow": NnunetModelSettings(kind="nnunet", package=slow_model)}, WORK)
    volume = volume_of()
    with pool.turn() as turn:
        planned = turn.infer(pool.prepare("slow", volume, nothing), nothing)
    pool.close()
    assert planned.run.backend.startswith("OpenVINO ")
    assert (planned.run.device, planned.run.notes) == ("CPU", ())
    assert set(planned.run.stage_seconds) == {"prepare", "inference", "restore"}

    (tmp_path / "sitecustomize.py").write_text(BROKEN_OPENVINO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = WorkerPool({"slow": NnunetModelSettings(kind="nnunet", package=slow_model)}, WORK)
    with pool.turn() as turn:
        fallen_back = turn.infer(pool.prepare("slow", volume, nothing), nothing)
    pool.close()
    (note,) = fallen_back.run.notes
    assert "the plugin broke" in note.text
    assert note.changes_answer
    assert fallen_back.run.backend.startswith("torch ")
    assert (fallen_back.labels_zyx == planned.labels_zyx).mean() > 0.95


def test_child_killed_while_working_is_lost_and_the_next_call_works(slow_worker):
    killed = []

    def kill_once(fraction, stage):
        if fraction > 0.1 and not killed:
            killed.append(slow_worker.process_id)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(WorkerLost, match="signal SIGKILL"):
        slow_worker.segment(volume_of(), kill_once)
    assert slow_worker.process_id is None
    assert slow_worker.segment(volume_of(), nothing).labels_zyx.any()
    assert slow_worker.process_id not in (None, killed[0])


def test_child_killed_while_idle_is_replaced(tissue_worker):
    tissue_worker.identity()
    pid = tissue_worker.process_id
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tissue_worker.process_id is None)
    tissue_worker.segment(volume_of(), nothing)
    assert tissue_worker.process_id != pid


def test_frozen_child_is_given_up_and_killed_after_the_heartbeat_limit(slow_worker):
    frozen = []

    def freeze_once(fraction, stage):
        if fraction > 0.1 and not frozen:
            frozen.append(slow_worker.process_id)
            os.kill(frozen[0], signal.SIGSTOP)

    with pytest.raises(WorkerLost, match="sent no heartbeat for 4 s"):
        slow_worker.segment(volume_of(), freeze_once)
    assert not is_running(frozen[0])


def test_child_that_takes_too_long_is_given_up_although_alive(slow_model):
    settings = NnunetModelSettings(kind="nnunet", package=slow_model)
    hurried = LocalWorker("slow", settings, WORK.model_copy(update={"job_limit_s": 0.3}))
    try:
        with pytest.raises(WorkerLost, match=r"exceeded the time limit of 0\.3 s"):
            hurried.segment(volume_of(), nothing)
        assert hurried.process_id is None
    finally:
        hurried.close()


def test_refusal_by_the_model_is_passed_on_and_the_child_stays(slow_worker):
    slow_worker.identity()
    pid = slow_worker.process_id
    with pytest.raises(SegmentationImpossible, match="5 slices; the model needs at least 10"):
        slow_worker.segment(volume_of((5, 40, 40)), nothing)
    assert slow_worker.process_id == pid


def test_model_other_than_the_approved_one_is_not_loaded(slow_model):
    digest = describe_model("m", NnunetModelSettings(kind="nnunet", package=slow_model), WORK).digest
    approved = NnunetModelSettings(kind="nnunet", package=slow_model, digest=digest)
    other = approved.model_copy(update={"digest": "0" * 64})
    assert describe_model("m", approved, WORK).digest == digest
    with pytest.raises(ConfigurationError, match=digest):
        describe_model("m", other, WORK)
    worker = LocalWorker("m", other, WORK)
    with pytest.raises(SegmentationImpossible, match=digest):
        worker.segment(volume_of(), nothing)
    assert worker.process_id is None


def test_child_loads_the_model_described_by_the_settings(tissue_worker, slow_worker):
    assert describe_model("tissue", TISSUE, WORK) == tissue_worker.identity()
    assert describe_model("slow", slow_worker._model, WORK) == slow_worker.identity()
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        describe_model("x", NnunetModelSettings(kind="nnunet", package=Path("/nowhere")), WORK)


def test_lack_of_file_descriptors_is_tried_again(tissue_worker):
    tissue_worker.identity()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    fresh = LocalWorker("fresh", TISSUE, WORK)
    # shared memory can be opened for the HU, but not for the labels
    free = [number for number in range(max(used) + 3) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[1], limits[1]))
    try:
        with pytest.raises(WorkerLost, match=r"can't send a volume to the worker of model .*: Too many open files"):
            tissue_worker.segment(volume_of(), nothing)
        with pytest.raises(WorkerLost, match=r"can't start the worker of model .*: Too many open files"):
            fresh.segment(volume_of(), nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        fresh.close()
    assert {int(path.name) for path in Path("/proc/self/fd").iterdir()} <= used | {free[0]}
    assert tissue_worker.segment(volume_of(), nothing).labels_zyx.any()


def test_error_in_a_progress_callback_ends_the_child_and_is_raised(slow_worker):
    def fail(fraction, stage):
        raise RuntimeError("the ledger is away")

    with pytest.raises(RuntimeError, match="ledger is away"):
        slow_worker.segment(volume_of(), fail)
    assert slow_worker.process_id is None


def test_closing_from_another_thread_ends_the_segmentation(slow_worker):
    started = threading.Event()
    closer = threading.Thread(target=lambda: (started.wait(), slow_worker.close()))
    closer.start()
    with pytest.raises(Stopping):
        slow_worker.segment(volume_of(), lambda *_: started.set())
    closer.join()
    assert slow_worker.process_id is None


def test_two_simultaneous_volumes_give_the_same_labels_as_each_alone(slow_worker):
    volumes = [volume_of((24, 40, 30)), volume_of((20, 30, 44), dtype=np.float32)]
    alone = [slow_worker.segment(volume, nothing).labels_zyx for volume in volumes]
    with ThreadPoolExecutor() as threads:
        together = threads.map(lambda volume: slow_worker.segment(volume, nothing).labels_zyx, volumes)
        for expected, labels in zip(alone, together, strict=True):
            np.testing.assert_array_equal(labels, expected)


@pytest.fixture
def script(tmp_path, monkeypatch):
    return Script(tmp_path / "script", monkeypatch)


@pytest.fixture
def scripted(script):
    worker = LocalWorker("scripted", TISSUE, WORK)
    yield worker
    worker.close()


def numbered(number):
    return Volume(np.full((4, 6, 5), number, np.int16), Geometry((4, 6, 5), np.eye(4)))


def labels_of(worker, prepared):
    return set(np.unique(worker.infer(prepared, nothing).labels_zyx))


def test_next_volume_is_prepared_during_an_inference(script, scripted):
    script.hold("infer 1")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(scripted.segment, numbered(1), nothing)
        script.wait_for("infer 1 begins")
        waiting = scripted.prepare(numbered(2), nothing)
        assert "infer 1 ends" not in script.events()
        script.release("infer 1")
        assert labels_of(scripted, waiting) == {2}
        assert np.unique(first.result().labels_zyx) == [1]
    assert script.events().count("prepare 2 begins") == 1


def test_killed_child_loses_its_running_volumes_but_not_the_waiting_ones(script, scripted):
    script.hold("infer 1")
    script.hold("prepare 3")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(scripted.segment, numbered(1), nothing)
        script.wait_for("infer 1 begins")
        waiting = scripted.prepare(numbered(2), nothing)
        third = threads.submit(scripted.prepare, numbered(3), nothing)
        script.wait_for("prepare 3 begins")
        os.kill(scripted.process_id, signal.SIGKILL)
        for lost in (first, third):
            with pytest.raises(WorkerLost, match="signal SIGKILL"):
                lost.result()
    assert labels_of(scripted, waiting) == {2}
    assert script.events().count("prepare 2 ends") == 2


def test_refused_volume_does_not_affect_the_other(script, scripted):
    script.hold("infer 1")
    script.fail("prepare 2", "refuse")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(scripted.segment, numbered(1), nothing)
        script.wait_for("infer 1 begins")
        with pytest.raises(SegmentationImpossible, match="the script says no"):
            scripted.prepare(numbered(2), nothing)
        script.release("infer 1")
        assert first.result().labels_zyx.all()


def test_memory_not_available_during_an_inference_is_requested_again_after_it(script, scripted):
    script.hold("infer 1")
    script.fail("prepare 2", "memory")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(scripted.segment, numbered(1), nothing)
        script.wait_for("infer 1 begins")
        pid = scripted.process_id
        waiting = scripted.prepare(numbered(2), nothing)
        script.release("infer 1")
        assert labels_of(scripted, waiting) == {2}
        assert first.result().labels_zyx.all()
    assert scripted.process_id == pid
    assert [event for event in script.events() if event.startswith("prepare 2")] == [
        "prepare 2 begins",
        "prepare 2 begins",
        "prepare 2 ends",
    ]


def test_child_that_runs_out_of_memory_reports_it_and_is_replaced(script, scripted):
    script.fail("infer 1", "memory")
    with pytest.raises(WorkerLost, match=r"failed: out of memory: Unable to allocate 256\. MiB"):
        scripted.segment(numbered(1), nothing)
    assert scripted.process_id is None
    assert labels_of(scripted, scripted.prepare(numbered(1), nothing)) == {1}


def test_child_possibly_killed_by_the_kernel_is_reported_as_out_of_memory(script, scripted):
    script.fail("infer 1", "kill")
    with pytest.raises(WorkerLost, match=r"signal SIGKILL, .*for lack of memory"):
        scripted.segment(numbered(1), nothing)


def test_closed_worker_starts_no_new_child(tissue_worker):
    tissue_worker.close()
    with pytest.raises(Stopping):
        tissue_worker.identity()
    assert tissue_worker.process_id is None


NODE = """
import sys, threading, time
import numpy as np
from dicom_node.settings import TissueModelSettings, WorkSettings
from dicom_node.work.local import LocalWorker
from tests.support.waiting import wait_until
worker = LocalWorker("tissue", TissueModelSettings(kind="tissue"), WorkSettings(device="cpu", threads=1))
if sys.argv[1] == "thread":
    thread = threading.Thread(target=worker.identity)
    thread.start()
    thread.join()
else:
    worker.identity()
print(worker.process_id, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("started_by", "frozen"), [("main", False), ("thread", False), ("thread", True)])
def test_child_ends_with_the_node(started_by, frozen):
    root = Path(__file__).resolve().parents[2]
    node = subprocess.Popen([sys.executable, "-c", NODE, started_by], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(node.stdout.readline())
        assert is_running(pid)
        if frozen:
            os.kill(pid, signal.SIGSTOP)
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    wait_until(lambda: not is_running(pid))


def test_child_does_not_inherit_the_nodes_settings(tissue_worker, monkeypatch):
    monkeypatch.setenv("DICOM_NODE__LEDGER_URL", "postgresql://node:secret@db/ledger")
    tissue_worker.identity()
    assert b"secret" not in Path(f"/proc/{tissue_worker.process_id}/environ").read_bytes()
