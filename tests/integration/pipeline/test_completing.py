"""Which series are closed, and when the sender is asked for their number of images."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import structlog
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from dicom_node.errors import StoreUnavailable
from dicom_node.pipeline.completing import Completing
from dicom_node.settings import CompletionSettings, SourceSettings
from dicom_node.store.arrivals import Arrivals
from dicom_node.store.clock import now_utc
from tests.integration.store.rows import NOW, arrive
from tests.support.waiting import wait_until

AT_ONCE = CompletionSettings(regular_quiet_s=0, otherwise_quiet_s=0)
NEVER = CompletionSettings(regular_quiet_s=10**9, otherwise_quiet_s=10**9, hard_limit_s=10**9)


@contextmanager
def sender_that_counts(count):
    """An archive with ``count`` images of every series; gives its settings and the queries it received."""
    asked = []

    def answer(event):
        asked.append(str(event.identifier.SeriesInstanceUID))
        found = Dataset()
        found.QueryRetrieveLevel = "SERIES"
        found.StudyInstanceUID = event.identifier.StudyInstanceUID
        found.SeriesInstanceUID = event.identifier.SeriesInstanceUID
        found.NumberOfSeriesRelatedInstances = count
        yield 0xFF00, found

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    try:
        yield SourceSettings(ae_title="PACS", count_host="127.0.0.1", count_port=server.server_address[1]), asked
    finally:
        server.shutdown()


def closed(ledger):
    return {revision.series_instance_uid: revision.reason for revision in ledger.routing.due_revisions()}


def test_quiet_series_is_closed_with_its_evidence(ledger):
    for number in (1, 2, 3):
        arrive(ledger, number)
    with structlog.testing.capture_logs() as log:
        Completing(ledger.arrivals, AT_ONCE, (), "NODE").complete_due()
    (reason,) = closed(ledger).values()
    (line,) = [line for line in log if line["event"] == "series.complete"]
    assert (line["instances"], line["reason"]) == (3, reason)
    assert reason.startswith("3 ")


def test_series_that_cannot_be_written_does_not_hold_up_the_others(ledger):
    class Unwritable(Arrivals):
        def complete(self, revision, verdict, at):
            if revision.series_instance_uid == "1.2.840.1":
                raise StoreUnavailable("the database is away")
            return super().complete(revision, verdict, at)

    arrive(ledger, 1, series="1.2.840.1")
    arrive(ledger, 1, series="1.2.840.2")
    completing = Completing(Unwritable(ledger.database), AT_ONCE, (), "NODE")
    with structlog.testing.capture_logs() as log:
        completing.complete_due()
    assert closed(ledger).keys() == {"1.2.840.2"}
    assert [line["series"] for line in log if line["event"] == "series.not_completed"] == ["1.2.840.1"]


def test_the_senders_count_closes_a_series_at_once(ledger):
    with sender_that_counts(2) as (source, asked):
        arrive(ledger, 1)
        arrive(ledger, 2)
        Completing(ledger.arrivals, NEVER, [source], "NODE").complete_due()
    assert asked == ["1.2.840.1"]
    assert "2 of 2 " in closed(ledger)["1.2.840.1"]


def test_the_sender_is_asked_again_when_an_image_has_arrived(ledger):
    with sender_that_counts(3) as (source, asked):
        completing = Completing(ledger.arrivals, NEVER, [source], "NODE")
        for number in (1, 2):
            arrive(ledger, number)
            completing.complete_due()
            assert len(asked) == number
        assert closed(ledger) == {}
        arrive(ledger, 3)
        completing.complete_due()
    assert "3 of 3 " in closed(ledger)["1.2.840.1"]


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
