"""Rows are kept for ever, so frequent queries of the listener and the sweeps must use an index."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from dicom_node.receive.completion import decide
from dicom_node.settings import CompletionSettings
from dicom_node.store.clock import Moment
from dicom_node.store.processes import Role
from dicom_node.store.schema import metadata
from tests.integration.store.rows import (
    DEAD,
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    WORKER,
    arrive,
    claim,
    claim_deliveries,
    deliver,
    purge,
    refused,
    some_results,
)

LATER = NOW + timedelta(minutes=5)


def a_day_of_the_node(ledger):
    """A series with an instance of every kind of receipt, one refused and one late, until results are delivered."""
    for number in (1, 2):
        association = f"assoc-{number}"
        ledger.arrivals.association_opened(association, "PACS", "127.0.0.1", NOW)
        for content in "aab":
            arrive(ledger, 1, content=f"{content}{number}", association=association)
        ledger.arrivals.association_closed(association, NOW, aborted=False, refusals=[refused(7)])
        (revision,) = ledger.arrivals.due_revisions(NOW)
        ledger.arrivals.set_expected_count(revision, 3)
        ledger.arrivals.postpone(revision, LATER)
        (revision,) = ledger.arrivals.due_revisions(LATER)
        assert ledger.arrivals.complete(revision, decide(revision.evidence, LATER, CompletionSettings()), LATER)
        (whole,) = ledger.routing.due_revisions()
        assert len(list(ledger.routing.in_other_bytes(whole))) == number - 1
        assert not ledger.routing.content_already_routed(whole)
        ledger.routing.route(whole, [DECISION], None, LATER)
        ledger.jobs.recover_stalled(WORKER, LATER, 3)
        claimed = claim(ledger, LATER)
        ledger.jobs.renew_lease(claimed, LATER, 0.5, "segment")
        ledger.results.earlier(claimed.revision, "tissue")
        ledger.results.known_labels(claimed.revision, "tissue")
        assert ledger.jobs.encoded(claimed, some_results(), IDENTITY, RUN, {}, LATER)
        for destination in ("pacs", "archive"):
            claimed = claim_deliveries(ledger, destination, LATER)
            ledger.deliveries.renew_lease(claimed, LATER)
            ledger.deliveries.give_back(claimed)
            claim_deliveries(ledger, destination, LATER, worker=DEAD)
            assert ledger.deliveries.recover_stalled(WORKER, LATER) == len(claimed)
            deliver(ledger, destination, LATER)
    for role in Role:
        assert ledger.processes.take(role, "/data", WORKER, LATER) is None
        assert ledger.processes.beat(role, "/data", WORKER, LATER)
        assert ledger.processes.holder(role, "/data", WORKER).lives
        ledger.processes.leave(role, "/data", WORKER)
    ledger.alarms.facts(NOW)
    ledger.alarms.record_check({})
    ledger.retention.claims(["a file"])
    ledger.retention.forget_refusals(0.0, 0.0)
    for at in (LATER, LATER + timedelta(minutes=1)):
        ledger.elapsed.read(Moment(at, "boot", (at - NOW).total_seconds()))
    ledger.elapsed.read(Moment(LATER, "another", 0.0))
    assert purge(ledger)


@pytest.fixture
def plans(ledger):
    """The query plans of all statements of a day, by statement."""
    statements = {}

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            statements.setdefault(statement, parameters)

    engine = ledger.database._engine
    event.listen(engine, "before_cursor_execute", note)
    a_day_of_the_node(ledger)
    event.remove(engine, "before_cursor_execute", note)
    found = {}
    with ledger.database.write() as db:
        is_sqlite = db.dialect.name == "sqlite"
        if not is_sqlite:
            db.execute(
                text("SET LOCAL enable_seqscan = off")
            )  # for tables as small as these it would choose a full scan
        for statement, parameters in statements.items():
            values = parameters[0] if isinstance(parameters, list) else parameters
            explained = db.exec_driver_sql(f"EXPLAIN {'QUERY PLAN ' if is_sqlite else ''}{statement}", values)
            found[statement] = [row[-1] for row in explained]
    return found


def test_no_statement_scans_a_whole_table(plans):
    tables = "|".join(metadata.tables)
    whole = re.compile(rf"SCAN ({tables})$|Seq Scan on ({tables})\b")
    assert {statement: steps for statement, steps in plans.items() if any(map(whole.search, steps))} == {}


def test_arriving_instance_is_looked_up_by_series_and_uid(plans):
    lookup = re.compile(r"SELECT .*instance\.pixels_sha256.*\sWHERE\s.*instance\.sop_instance_uid = ", re.DOTALL)
    found = [steps for statement, steps in plans.items() if lookup.match(statement)]
    assert found
    assert all(any("ix_instance_current" in step for step in steps) for steps in found)
