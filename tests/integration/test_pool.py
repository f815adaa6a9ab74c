"""Which models are in memory and which has the device, with real worker processes."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dicom_node.errors import SegmentationImpossible, Stopping
from dicom_node.settings import Settings, TissueModelSettings, WorkSettings
from dicom_node.work.gate import Gate
from dicom_node.work.memory import machine_bytes, resident_bytes
from dicom_node.work.pool import WorkerPool
from inference.types import Geometry, Volume
from tests.support.scripted_worker import Script
from tests.support.waiting import wait_until

MIB = 1024**2
A_MODEL = 400
"""MiB taken by a model in these tests; a worker process itself takes about 60 more."""


@pytest.fixture
def script(tmp_path, monkeypatch):
    made = Script(tmp_path / "script", monkeypatch)
    for name in "abc":
        made.grow(f"load {name}", A_MODEL)
    return made


@pytest.fixture
def make_pool(script):
    made = []

    def make(limit_mib):
        percent = 100 * limit_mib * MIB / machine_bytes()
        work = WorkSettings(device="cpu", threads=1, job_limit_s=60, resident_memory_percent=percent)
        made.append(WorkerPool({name: TissueModelSettings(kind="tissue") for name in "abc"}, work))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def numbered(number):
    return Volume(np.full((4, 6, 5), number, np.int16), Geometry((4, 6, 5), np.eye(4)))


def nothing(*_):
    pass


def segment(pool, model, number):
    order = pool.prepare(model, numbered(number), nothing)
    with pool.turn() as turn:
        result = turn.infer(order, nothing)
    assert result.model.name == model
    return set(np.unique(result.labels_zyx))


def residents(pool):
    return list(pool.state()["residents_mib"])


def process_of(pool, model):
    return pool._residents[model].worker.process_id


def held_mib(pool):
    return sum(resident_bytes(pid) for name in "abc" if (pid := process_of(pool, name))) / MIB


def test_least_recently_used_model_is_unloaded_to_keep_the_limit(make_pool, script):
    pool = make_pool(2.6 * A_MODEL)
    for model in "aba":
        assert segment(pool, model, 1) == {1}
    warm = process_of(pool, "a")
    assert residents(pool) == ["b", "a"]
    assert segment(pool, "c", 2) == {2}
    assert residents(pool) == ["a", "c"]
    assert process_of(pool, "a") == warm
    assert 2 * A_MODEL < held_mib(pool) < 2.6 * A_MODEL
    assert segment(pool, "b", 3) == {3}
    assert residents(pool) == ["c", "b"]
    assert [event for event in script.events() if event.startswith("load") and event.endswith("ends")] == [
        f"load {name} ends" for name in "abcb"
    ]


def test_single_model_may_exceed_the_limit(make_pool):
    pool = make_pool(A_MODEL / 2)
    assert segment(pool, "a", 1) == {1}
    warm = process_of(pool, "a")
    assert segment(pool, "a", 2) == {2}
    assert process_of(pool, "a") == warm
    assert segment(pool, "b", 3) == {3}
    assert residents(pool) == ["b"]


def test_model_that_grew_causes_the_others_to_be_unloaded(make_pool, script):
    pool = make_pool(2.8 * A_MODEL)
    segment(pool, "a", 1)
    segment(pool, "b", 2)
    assert residents(pool) == ["a", "b"]
    script.grow("infer 3", A_MODEL)
    segment(pool, "b", 3)
    assert residents(pool) == ["b"]


def test_models_take_turns_on_the_device_and_both_stay_loaded(make_pool, script):
    pool = make_pool(10 * A_MODEL)
    script.hold("infer 1")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(segment, pool, "a", 1)
        script.wait_for("infer 1 begins")
        second = threads.submit(segment, pool, "b", 2)
        wait_until(lambda: len(pool._device._queue) == 2)
        script.release("infer 1")
        assert (first.result(), second.result()) == ({1}, {2})
    events = script.events()
    assert events.index("load b ends") < events.index("infer 1 ends") < events.index("infer 2 begins")


def test_model_without_room_next_to_the_one_in_use_is_loaded_after_it(make_pool, script):
    pool = make_pool(1.5 * A_MODEL)
    script.hold("infer 1")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(segment, pool, "a", 1)
        script.wait_for("infer 1 begins")
        assert pool.prepare("b", numbered(2), nothing).prepared is None
        second = threads.submit(segment, pool, "b", 2)
        script.release("infer 1")
        assert (first.result(), second.result()) == ({1}, {2})
    assert residents(pool) == ["b"]


def test_prepared_volume_survives_the_unloading_of_its_model(make_pool, script):
    pool = make_pool(1.5 * A_MODEL)
    order = pool.prepare("a", numbered(1), nothing)
    assert segment(pool, "b", 2) == {2}
    assert residents(pool) == ["b"]
    with pool.turn() as turn:
        assert set(np.unique(turn.infer(order, nothing).labels_zyx)) == {1}


def test_owner_of_the_device_waits_for_memory_freed_by_another_call(make_pool, script, monkeypatch):
    pool = make_pool(1.5 * A_MODEL)
    script.hold("prepare 1")
    with ThreadPoolExecutor() as threads:
        preparing = threads.submit(pool.prepare, "a", numbered(1), nothing)
        script.wait_for("prepare 1 begins")
        waits, wait = threading.Event(), pool._changed.wait
        monkeypatch.setattr(pool._changed, "wait", lambda: (waits.set(), wait()))
        other = threads.submit(segment, pool, "b", 2)
        assert waits.wait(20)
        script.release("prepare 1")
        preparing.result()
        assert other.result() == {2}
    events = script.events()
    assert events.index("prepare 1 ends") < events.index("load b begins")
    assert held_mib(pool) < 1.5 * A_MODEL


def test_preloaded_model_is_warm_for_the_first_volume_and_a_broken_one_is_harmless(make_pool, script):
    pool = make_pool(10 * A_MODEL)
    script.fail("load b", "refuse")
    pool.load("b")
    pool.load("a")
    assert residents(pool) == ["a"]
    assert segment(pool, "a", 1) == {1}
    assert script.events().count("load a begins") == 1
    script.fail("load b", "refuse")
    with pytest.raises(SegmentationImpossible, match="the script says no"):
        segment(pool, "b", 2)
    assert segment(pool, "b", 2) == {2}


def test_model_to_preload_must_be_configured():
    with pytest.raises(ValueError, match=r"work\.preload\.1\n  unknown model 'b'; configured: a"):
        Settings(models={"a": {"kind": "tissue"}}, work={"preload": ["a", "b"]})


def test_closing_ends_running_and_waiting_calls(make_pool, script):
    pool = make_pool(10 * A_MODEL)
    script.hold("infer 1")
    with ThreadPoolExecutor() as threads:
        works = threads.submit(segment, pool, "a", 1)
        script.wait_for("infer 1 begins")
        waits = threads.submit(segment, pool, "b", 2)
        script.wait_for("prepare 2 ends")
        pids = [process_of(pool, name) for name in "ab"]
        pool.close()
        for ended in (works, waits):
            with pytest.raises(Stopping):
                ended.result()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(Stopping):
        segment(pool, "a", 3)


def test_gate_admits_in_order_of_request():
    gate = Gate()
    order = []

    def go_through(number):
        with gate.enter():
            order.append(number)

    threads = [threading.Thread(target=go_through, args=(number,)) for number in range(8)]
    with gate.enter():
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda: len(gate._queue) == number + 2)  # noqa: B023 - called before the next one asks
    for thread in threads:
        thread.join()
    assert order == list(range(8))
