"""At most one living process has a role on a data folder; a dead one's is taken over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from dicom_node.store import processes as module
from dicom_node.store.processes import LEASE_S, Role
from dicom_node.store.schema import process
from tests.integration.store.rows import DEAD, NOW, WORKER

FOLDER = "/var/lib/dicom-node"
LATER = NOW + timedelta(hours=1)
INIT = replace(WORKER, pid=1, started_ticks=0)
CONTAINER = replace(WORKER, host="other", pid_namespace=1)
MACHINE = replace(WORKER, boot_id="4cf1a0d6-8a5e-4b8c-9a0f-6d3c1b2a7e55")


@pytest.fixture
def taken(ledger):
    def take(own, role=Role.LISTEN, folder=FOLDER):
        return ledger.processes.take(role, folder, own, LATER)

    return take


def hold(ledger, own, age_s=0.0):
    """``own`` has listened since NOW; its last heartbeat was ``age_s`` ago."""
    assert ledger.processes.take(Role.LISTEN, FOLDER, own, NOW) is None
    with ledger.database.write() as db:
        db.execute(update(process).values(heartbeat_s=process.c.heartbeat_s - age_s))


def test_living_process_keeps_its_role_whatever_its_heartbeat(ledger, taken):
    hold(ledger, WORKER, age_s=10 * LEASE_S)
    holder = taken(INIT)
    assert (holder.pid, holder.host, holder.since, holder.lives) == (WORKER.pid, WORKER.host, NOW, True)
    assert str(holder) == f"PID {WORKER.pid} on {WORKER.host} since 2026-03-01 08:00:00 UTC (listen)"


def test_role_of_a_dead_process_is_taken_over_at_once(ledger, taken):
    hold(ledger, DEAD)
    assert not ledger.processes.holder(Role.LISTEN, FOLDER, WORKER).lives
    assert taken(WORKER) is None
    assert ledger.processes.holder(Role.LISTEN, FOLDER, WORKER).since == LATER


@pytest.mark.parametrize(("age_s", "lives"), [(LEASE_S - 5, True), (LEASE_S + 5, False)])
def test_where_death_cannot_be_seen_the_heartbeat_decides(ledger, taken, age_s, lives):
    hold(ledger, CONTAINER, age_s)
    assert (taken(WORKER) is not None) == lives


def test_roles_folders_and_machines_are_independent(ledger, taken):
    hold(ledger, CONTAINER)
    assert taken(WORKER, role=Role.WORK) is None
    assert taken(WORKER, folder="/elsewhere") is None
    assert taken(MACHINE) is None
    assert taken(WORKER) is not None


def test_restarted_machine_leaves_no_rows_behind(ledger, taken):
    hold(ledger, MACHINE)
    assert taken(WORKER) is None
    with ledger.database.read() as db:
        assert db.execute(select(process.c.boot_id)).scalars().all() == [WORKER.boot_id]
    assert ledger.processes.beat(Role.LISTEN, FOLDER, MACHINE, LATER), "another machine of the same name comes back"


def test_process_that_was_taken_for_dead_notices_it(ledger, taken, monkeypatch):
    hold(ledger, CONTAINER)
    assert ledger.processes.beat(Role.LISTEN, FOLDER, CONTAINER, LATER)
    now = module.uptime_s()
    monkeypatch.setattr(module, "uptime_s", lambda: now + LEASE_S + 1)
    assert taken(WORKER) is None
    assert not ledger.processes.beat(Role.LISTEN, FOLDER, CONTAINER, LATER)
    ledger.processes.leave(Role.LISTEN, FOLDER, CONTAINER)
    assert ledger.processes.holder(Role.LISTEN, FOLDER, WORKER).lives, "it gives up only what is its own"


def test_role_that_was_given_up_is_free(ledger, taken):
    hold(ledger, CONTAINER)
    ledger.processes.leave(Role.LISTEN, FOLDER, CONTAINER)
    assert ledger.processes.holder(Role.LISTEN, FOLDER, WORKER) is None
    assert taken(WORKER) is None


def test_of_processes_that_start_at_the_same_moment_one_gets_the_role(ledger):
    names, together = [replace(WORKER, pid_namespace=number) for number in range(6)], threading.Barrier(6)

    def take(own):
        together.wait(30)
        return ledger.processes.take(Role.WORK, FOLDER, own, NOW)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(take, names))
    assert answers.count(None) == 1
