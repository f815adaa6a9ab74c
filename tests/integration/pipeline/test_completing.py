"""Which series are closed, and when the sender is asked for their number of images."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
import structlog
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind
from sqlalchemy import update

from dicom_node.errors import StoreUnavailable
from dicom_node.network import questions
from dicom_node.pipeline.completing import Completing
from dicom_node.settings import CompletionSettings, SourceSettings
from dicom_node.store.arrivals import Arrivals
from dicom_node.store.clock import now_utc
from dicom_node.store.schema import instance
from tests.integration.store.rows import NOW, arrive
from tests.support.dicom_peers import raw_peer, with_count
from tests.support.waiting import wait_until

AT_ONCE = CompletionSettings(regular_quiet_s=0, otherwise_quiet_s=0)
NEVER = CompletionSettings(regular_quiet_s=10**9, otherwise_quiet_s=10**9, hard_limit_s=10**9)
SEVERAL = [f"1.2.840.{number}" for number in range(1, 9)]


@contextmanager
def sender_that_counts(count, ae_title="PACS"):
    """An archive with ``count`` images of every series; gives its settings and the queries it received.

    ``count`` by series, where they differ; a text is sent as it is.
    """
    asked = []

    def answer(event):
        series = str(event.identifier.SeriesInstanceUID)
        asked.append(series)
        found = Dataset()
        found.QueryRetrieveLevel = "SERIES"
        found.StudyInstanceUID = event.identifier.StudyInstanceUID
        found.SeriesInstanceUID = series
        with_count(found, count[series] if isinstance(count, dict) else str(count))
        yield 0xFF00, found

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    try:
        yield SourceSettings(ae_title=ae_title, count_host="127.0.0.1", count_port=server.server_address[1]), asked
    finally:
        server.shutdown()


def closed(ledger):
    return {revision.series_instance_uid: revision.reason for revision in ledger.routing.due_revisions()}


def complete_all(ledger, completing):
    """Sweep until every series is closed, or waits for its quiet time."""

    def nothing_is_due():
        completing.complete_due()
        return not ledger.arrivals.due_revisions(now_utc())

    wait_until(nothing_is_due)
    return closed(ledger)


def test_quiet_series_is_closed_with_its_evidence(ledger):
    for number in (1, 2, 3):
        arrive(ledger, number)
    with structlog.testing.capture_logs() as log:
        Completing(ledger.arrivals, AT_ONCE, (), "NODE").complete_due()
    (reason,) = closed(ledger).values()
    (line,) = [line for line in log if line["event"] == "series.complete"]
    assert (line["instances"], line["reason"]) == (3, reason)
    assert reason.startswith("3 ")


class Failing(Arrivals):
    """Fails with ``error`` whenever the series is to be closed."""

    def __init__(self, database, error):
        super().__init__(database)
        self._error = error
        self.tried = 0

    def complete(self, revision, verdict, at):
        if revision.series_instance_uid == "1.2.840.1":
            self.tried += 1
            raise self._error
        return super().complete(revision, verdict, at)


def test_series_that_cannot_be_written_does_not_hold_up_the_others(ledger):
    arrive(ledger, 1, series="1.2.840.1")
    arrive(ledger, 1, series="1.2.840.2")
    failing = Failing(ledger.database, StoreUnavailable("the database is away"))
    with structlog.testing.capture_logs() as log:
        Completing(failing, AT_ONCE, (), "NODE").complete_due()
    assert closed(ledger).keys() == {"1.2.840.2"}
    assert [line["series"] for line in log if line["event"] == "series.not_completed"] == ["1.2.840.1"]


def test_series_that_fails_unexpectedly_is_set_aside_and_looked_at_again(ledger, monkeypatch):
    arrive(ledger, 1, series="1.2.840.1")
    arrive(ledger, 1, series="1.2.840.2")
    failing = Failing(ledger.database, OverflowError("Python int too large to convert to SQLite INTEGER"))
    completing = Completing(failing, AT_ONCE, (), "NODE")
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            completing.complete_due()
    assert closed(ledger).keys() == {"1.2.840.2"}
    assert failing.tried == 1
    assert [line["series"] for line in log if line["event"] == "series.completion_crashed"] == ["1.2.840.1"]
    monkeypatch.setattr("dicom_node.pipeline.completing._SET_ASIDE_S", 0.0)
    completing._set_aside.clear()
    for _ in range(2):
        completing.complete_due()
    assert failing.tried == 3


def test_series_whose_row_is_damaged_does_not_hold_up_the_others(ledger):
    arrive(ledger, 1, series="1.2.840.1")
    arrive(ledger, 1, series="1.2.840.2")
    with ledger.database.write() as db:
        damaged = update(instance).where(instance.c.series_instance_uid == "1.2.840.1")
        db.execute(damaged.values(orientation=["north"]))
    completing = Completing(ledger.arrivals, AT_ONCE, (), "NODE")
    with structlog.testing.capture_logs() as log:
        for _ in range(2):
            completing.complete_due()
    assert closed(ledger).keys() == {"1.2.840.2"}
    assert [line["series"] for line in log if line["event"] == "series.completion_crashed"] == ["1.2.840.1"]


def test_the_senders_count_closes_a_series_at_once(ledger):
    with sender_that_counts(2) as (source, asked):
        arrive(ledger, 1)
        arrive(ledger, 2)
        found = complete_all(ledger, Completing(ledger.arrivals, NEVER, [source], "NODE"))
    assert asked == ["1.2.840.1"]
    assert "2 of 2 " in found["1.2.840.1"]


def test_the_sender_is_asked_again_when_an_image_has_arrived(ledger):
    with sender_that_counts(3) as (source, asked):
        completing = Completing(ledger.arrivals, NEVER, [source], "NODE")
        for number in (1, 2):
            arrive(ledger, number)
            assert complete_all(ledger, completing) == {}
            assert len(asked) == number
        arrive(ledger, 3)
        found = complete_all(ledger, completing)
    assert "3 of 3 " in found["1.2.840.1"]


def test_the_sender_is_not_asked_again_merely_because_time_has_passed(ledger):
    a_moment = CompletionSettings(regular_quiet_s=1, otherwise_quiet_s=1)
    with sender_that_counts(3) as (source, asked):
        completing = Completing(ledger.arrivals, a_moment, [source], "NODE")
        arrive(ledger, 1, at=now_utc())

        def is_closed():
            completing.complete_due()
            return closed(ledger)

        (reason,) = wait_until(is_closed).values()
    assert "1 of 3 " in reason
    assert len(asked) == 1


@pytest.mark.parametrize("ae_title", ["PACS", "OTHER"])
def test_sender_is_not_asked_while_an_association_is_open_or_under_another_title(ledger, ae_title):
    with sender_that_counts(1) as (source, asked):
        if ae_title == "PACS":
            ledger.arrivals.association_opened("assoc-1", "PACS", "127.0.0.1", NOW)
        arrive(ledger, 1)
        Completing(ledger.arrivals, NEVER, [source.model_copy(update={"ae_title": ae_title})], "NODE").complete_due()
    assert (asked, closed(ledger)) == ([], {})


def test_silent_sender_holds_up_neither_another_nor_for_long_its_own_series(ledger, monkeypatch):
    for limit in ("receive.count.ANSWER_TIMEOUT_S", "receive.count.LIMIT_S", "network.questions.LIMIT_S"):
        monkeypatch.setattr(f"dicom_node.{limit}", 60.0)
    called, go_on = [], threading.Event()

    def say_nothing(_connection):
        called.append(1)
        go_on.wait(60)

    with raw_peer(say_nothing) as mute, sender_that_counts(1, "OTHER") as (other, _):
        source = SourceSettings(ae_title="PACS", count_host="127.0.0.1", count_port=mute)
        completing = Completing(ledger.arrivals, AT_ONCE, [source, other], "NODE")
        for series in SEVERAL:
            arrive(ledger, 1, series=series)
        arrive(ledger, 1, series="1.2.840.77", sender="OTHER")

        def other_is_closed():
            completing.complete_due()
            return "1.2.840.77" in closed(ledger)

        wait_until(other_is_closed)
        assert closed(ledger).keys() == {"1.2.840.77"}, "the silent peer is still being asked"
        go_on.set()  # the connection is closed without an answer
        found = complete_all(ledger, completing)
    assert found.keys() == {*SEVERAL, "1.2.840.77"}
    assert "reported" not in found[SEVERAL[0]]
    assert len(called) <= questions.AT_ONCE < len(SEVERAL), "a peer that gave no answer is left alone for a while"


@pytest.mark.filterwarnings("ignore:Value .* is not valid for elements with a VR of IS:UserWarning")
def test_counts_that_are_none_disturb_nobody(ledger):
    counts = dict(
        zip(
            SEVERAL,
            ["9" * 20, "4294967296", "-1", "many", "1\\1", "1e400", "", "1"],
            strict=True,
        )
    )
    with sender_that_counts(counts) as (source, asked), structlog.testing.capture_logs() as log:
        for series in SEVERAL:
            arrive(ledger, 1, series=series)
        found = complete_all(ledger, Completing(ledger.arrivals, AT_ONCE, [source], "NODE"))
    assert found.keys() == set(SEVERAL) == set(asked)
    assert [series for series, reason in found.items() if "reported by the sender" in reason] == [SEVERAL[-1]]
    assert [line["event"] for line in log if line["log_level"] in ("error", "warning")] == ["count.failed"] * 6


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=3650)])
def test_series_of_a_listener_whose_clock_is_ahead_is_closed_after_its_quiet_time(ledger, ahead):
    for number in (1, 2, 3):
        arrive(ledger, number, at=now_utc() + ahead)
    a_moment = CompletionSettings(regular_quiet_s=0.2, otherwise_quiet_s=0.2)
    completing = Completing(ledger.arrivals, a_moment, (), "NODE")

    def is_closed():
        completing.complete_due()
        return closed(ledger)

    is_closed()
    assert ledger.overview.open_series()[0].last_arrival <= now_utc()
    (reason,) = wait_until(is_closed).values()
    assert "no new instance for 0.2 s" in reason


def test_clock_that_was_set_back_holds_up_no_series(ledger):
    arrive(ledger, 1, at=now_utc() + timedelta(hours=1))
    (revision,) = ledger.arrivals.due_revisions(now_utc() + timedelta(hours=1))
    ledger.arrivals.postpone(revision, now_utc() + timedelta(hours=2))
    assert len(ledger.arrivals.due_revisions(now_utc())) == 1
