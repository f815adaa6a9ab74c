"""Sweeps run independently: a slow or failing one neither delays the others nor floods the log."""

from __future__ import annotations

import threading

from dicom_node.operate.schedule import Schedule, Sweep


def test_slow_and_failing_sweeps_stop_no_other_and_slowness_is_no_warning(caplog):
    release, counted = threading.Event(), threading.Semaphore(0)
    running, most = [], []

    def slow() -> None:
        running.append(1)
        most.append(len(running))
        release.wait(20)
        running.pop()

    def broken() -> None:
        raise ValueError("on purpose")

    schedule = Schedule(
        [Sweep("slow", 0.01, slow), Sweep("broken", 0.01, broken), Sweep("quick", 0.01, counted.release)]
    )
    schedule.start()
    try:
        for _ in range(30):
            assert counted.acquire(timeout=20)
    finally:
        release.set()
        schedule.stop()
    assert set(most) == {1}
    assert [record.name for record in caplog.records] == []


def test_first_turns_of_a_rare_sweep_may_come_sooner():
    ran = threading.Semaphore(0)
    schedule = Schedule([Sweep("rare", 3600, ran.release, first_pauses_s=(0.0, 0.01))])
    schedule.start()
    try:
        assert ran.acquire(timeout=20)
        assert ran.acquire(timeout=20)
    finally:
        schedule.stop()
