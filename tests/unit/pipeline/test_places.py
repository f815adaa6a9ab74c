"""Places for one job at a time, and what happens to waiting jobs when the node is stopped."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicom_node.errors import Stopping
from dicom_node.pipeline.places import Places
from tests.support.waiting import wait_until

LONG_S = 60


@pytest.fixture
def places():
    return Places()


def test_job_that_must_run_alone_waits_for_the_others(places):
    entered, may_leave = threading.Event(), threading.Event()

    def other():
        with places.job_under_way():
            entered.set()
            assert may_leave.wait(LONG_S)

    def alone():
        with places.job_under_way():
            places.wait_for_others()
            return may_leave.is_set()

    with ThreadPoolExecutor() as threads:
        threads.submit(other)
        assert entered.wait(LONG_S)
        waiting = threads.submit(alone)
        wait_until(lambda: places._under_way == 2)
        may_leave.set()
        assert waiting.result(LONG_S)


def test_failed_job_no_longer_counts_as_running(places):
    with pytest.raises(ValueError, match="fails"), places.job_under_way():
        raise ValueError("fails")
    with places.job_under_way():
        places.wait_for_others()  # returns at once


def test_closing_turns_away_waiting_and_new_jobs(places):
    with ThreadPoolExecutor() as threads, places.intake.enter(), places.encoding.enter():
        gates = [threads.submit(gate.enter) for gate in (places.intake, places.encoding)]

        def alone():
            with places.job_under_way(), places.job_under_way():
                places.wait_for_others()

        waiting = [*gates, threads.submit(alone), threads.submit(places.wait_until_closed, LONG_S)]
        wait_until(lambda: places._under_way == 2)
        places.close()
        for each in waiting[:3]:
            with pytest.raises(Stopping):
                each.result(LONG_S)
        waiting[3].result(LONG_S)
    for gate in (places.intake, places.encoding):
        with pytest.raises(Stopping):
            gate.enter()
    with places.job_under_way(), pytest.raises(Stopping):
        places.wait_for_others()
