"""Nothing is lost in many short histories; and without one of the three things on which that depends, something is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import and_

from dicom_node.receive import scp
from dicom_node.receive.reception import Reception
from dicom_node.store import jobs
from dicom_node.store.schema import job
from dicom_node.store.states import JobState
from dicom_node.types import Receipt
from tests.simulation.disk import SimulatedDisk
from tests.simulation.history import Configuration, configuration, run_history

HISTORIES = 100
BOUND = 40
FOUND_BEFORE = {
    114: "a result was removed as unclaimed while its writer was held up before it wrote the row",
    197: "a file of a killed listener was adopted, and a repeated instance acknowledged on it, before it was synced",
    1215: "a temporary file could not be removed, and the sweep crashed",
    1754: "a file was adopted while its listener was held up, and then its row failed: refused bytes were current",
    2044: "the mark of a refused instance could not be removed, and the sweep crashed",
    2781: "a file was adopted while its listener was held up, and then removed because its sync had failed",
}


@pytest.fixture(scope="module")
def common():
    with configuration() as made:
        yield made


def violations(common: Configuration, seeds: range) -> dict[int, str]:
    records = (run_history(seed, common) for seed in seeds)
    return {record.seed: record.violation for record in records if record.violation}


def is_found(common: Configuration, violation: str, first_seed: int = 0) -> bool:
    """Whether the auditor finds ``violation`` within the bound."""
    seeds = range(first_seed, first_seed + BOUND)
    return any(violation in run_history(seed, common).violation for seed in seeds)


def test_nothing_is_lost(common):
    assert violations(common, range(HISTORIES)) == {}


@pytest.mark.parametrize("seed", FOUND_BEFORE)
def test_seeds_that_found_a_fault(common, seed):
    assert run_history(seed, common).violation == ""


def test_a_seed_makes_the_same_history_every_time(common):
    first, second = (run_history(3, common) for _ in range(2))
    assert first == second
    assert first.points.total() > 100


def test_without_the_sync_of_folders_acknowledged_images_are_lost(common, monkeypatch):
    monkeypatch.setattr(SimulatedDisk, "sync_folder", lambda _disk, _folder: None)
    assert is_found(common, "acknowledged bytes are not in their file")


def test_without_the_fencing_token_a_lost_worker_writes(common, monkeypatch):
    def held(claimed: Any) -> Any:
        return and_(job.c.id == claimed.id, job.c.state == JobState.RUNNING)

    monkeypatch.setattr(jobs, "_held", held)
    # it needs a process that is held up for longer than its lease and a second one that is killed: 2 histories of 100
    assert is_found(common, "the results are of attempt", first_seed=70)


def test_with_the_answer_before_the_row_acknowledged_images_have_none(common, monkeypatch):
    keep, end = Reception._keep, scp._Connection._end
    waiting: dict[str, list[Any]] = {}

    def keep_without_row(reception: Reception) -> None:
        ledger = reception._ledger
        later = waiting.setdefault(reception._sender.association_id, [])

        def record(received: Any) -> Receipt:
            later.append((reception._spool, ledger, received))
            return Receipt.NEW

        reception._ledger = SimpleNamespace(record_instance=record)
        keep(reception)

    def end_with_rows(connection: Any, *, released: bool) -> None:
        for spool, ledger, received in waiting.pop(connection._association_id, []):
            if ledger.record_instance(received) in (Receipt.DUPLICATE, Receipt.REUSED):
                spool.delete(received.spool_name)
        end(connection, released=released)

    monkeypatch.setattr(Reception, "_keep", keep_without_row)
    monkeypatch.setattr(scp._Connection, "_end", end_with_rows)
    assert is_found(common, "acknowledged bytes have no row")
