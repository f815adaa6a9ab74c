"""A series that is sent to the node while a cohort pulls it: the rules decide, not the order of the cohort."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node.store.cohorts import Selected
from dicom_node.store.routing import Order
from dicom_node.store.states import PullState
from dicom_node.types import Decision, Receipt
from tests.integration.store.rows import DECISION, NOW, SERIES, arrive, complete

OURS = "NODE"
NO_RULE = Decision(rule=None, model=None, requests={}, priority=0)
LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def cohorts(ledger):
    """The cohort ``c`` pulls the series."""
    ledger.cohorts.begin(Order("c", "other", {}, -1000), "0" * 64, OURS)
    ledger.cohorts.select("c", [Selected(SERIES, "1.2.840.9", 2)])
    (series,) = ledger.cohorts.to_pull("c", NOW, 9)
    ledger.cohorts.pull_started(series, NOW - timedelta(minutes=1))
    return ledger.cohorts


def pulled(ledger, number, content="a", at=NOW):
    return arrive(ledger, number, content, association="pull", at=at, retrieved_by=OURS)


def sent(ledger, number, content="a", at=NOW, retrieved_by=""):
    name = f"sent-{number}-{content}-{at.timestamp()}"
    values = {"at": at, "sender": "SCANNER", "retrieved_by": retrieved_by, "name": name}
    return arrive(ledger, number, content, association="clinic", **values)


def route(ledger, revision):
    order = ledger.routing.order_for(revision)
    decision = DECISION if order is None else order.decision()
    return ledger.routing.route(revision, [decision], None, LATER)


def job_rules(ledger):
    return sorted((job.rule, str(job.state)) for job in ledger.overview.jobs(9))


def test_what_a_cohort_pulled_is_routed_by_its_order(ledger, cohorts):
    pulled(ledger, 1)
    pulled(ledger, 2)
    revision = complete(ledger)
    assert (revision.sent, ledger.routing.order_for(revision).cohort) == (False, "c")


@pytest.mark.parametrize("number", [1, 3], ids=["a copy", "another image"])
@pytest.mark.parametrize("retrieved_by", ["", "WORKSTATION"], ids=["C-STORE", "C-MOVE of someone else"])
def test_series_sent_while_it_is_pulled_was_sent(ledger, cohorts, number, retrieved_by):
    pulled(ledger, 1)
    pulled(ledger, 2)
    sent(ledger, number, retrieved_by=retrieved_by)
    revision = complete(ledger)
    assert (revision.sent, revision.sending_ae) == (True, "SCANNER")
    assert ledger.routing.order_for(revision) is None


def test_series_whose_first_image_was_sent_stays_so_whatever_is_pulled(ledger, cohorts):
    sent(ledger, 1)
    pulled(ledger, 2)
    revision = complete(ledger)
    assert (revision.sent, ledger.routing.order_for(revision)) == (True, None)


@pytest.mark.parametrize("is_routed", [True, False], ids=["routed", "complete"])
def test_copies_sent_after_the_pull_are_routed_by_the_rules_once(ledger, cohorts, is_routed):
    pulled(ledger, 1)
    first = complete(ledger)
    if is_routed:
        route(ledger, first)
    assert sent(ledger, 1, at=LATER) is Receipt.DUPLICATE
    if not is_routed:
        assert ledger.routing.order_for(first) is None
        route(ledger, first)
    second = complete(ledger, LATER)
    assert (second.revision, second.sent, second.sending_ae) == (2, True, "SCANNER")
    assert second.content_digest == first.content_digest
    assert ledger.routing.content_already_routed(second) is False
    route(ledger, second)
    assert ("ct", "QUEUED") in job_rules(ledger)
    assert sent(ledger, 1, at=LATER) is Receipt.DUPLICATE
    assert ledger.arrivals.due_revisions(LATER + timedelta(hours=1)) == ()
    answers = cohorts.answers("c", SERIES, LATER)
    assert [str(answer.state) for answer in answers.jobs] == ["QUEUED"], "the cohort gets its job in addition"


def test_later_bytes_of_a_pull_do_not_supersede_the_jobs_of_a_series_that_was_sent(ledger, cohorts):
    sent(ledger, 1)
    route(ledger, complete(ledger))
    pulled(ledger, 1, "b", at=LATER)
    second = complete(ledger, LATER)
    assert (second.sent, ledger.routing.order_for(second)) == (False, None)


def test_series_that_was_sent_before_the_pull_does_not_count(ledger, cohorts):
    long_before = NOW - timedelta(days=1)
    sent(ledger, 1, at=long_before)
    route(ledger, complete(ledger, long_before))
    pulled(ledger, 1, "b")
    assert ledger.routing.order_for(complete(ledger)).cohort == "c"


def test_copies_of_a_series_that_no_cohort_pulled_open_nothing(ledger):
    arrive(ledger, 1, association="")  # adopted from the spool
    route(ledger, complete(ledger))
    assert sent(ledger, 1, at=LATER) is Receipt.DUPLICATE
    assert ledger.arrivals.due_revisions(LATER + timedelta(hours=1)) == ()


def test_images_that_were_refused_are_refused_for_the_cohort_too(ledger, cohorts):
    sent(ledger, 1)
    whole = complete(ledger)
    ledger.routing.route(whole, [NO_RULE], "two images, one UID", NOW)
    (answer,) = cohorts.answers("c", SERIES, LATER).jobs
    assert (str(answer.state), answer.reason) == ("REJECTED", "two images, one UID")


@pytest.mark.parametrize(
    "decision", [DECISION, replace(NO_RULE, refusal="too thick", rule="ct"), NO_RULE], ids=["other", "refused", "none"]
)
def test_what_the_rules_make_of_a_series_is_no_answer_to_the_cohort(ledger, cohorts, decision):
    sent(ledger, 1)
    ledger.routing.route(complete(ledger), [decision], None, NOW)
    (answer,) = cohorts.answers("c", SERIES, LATER).jobs
    assert str(answer.state) == "QUEUED"


def test_file_found_in_the_spool_during_a_pull_belongs_to_the_pull(ledger, cohorts):
    arrive(ledger, 1, association="")
    assert ledger.routing.order_for(complete(ledger)).cohort == "c"
    assert cohorts.counts("c")[PullState.PULLING] == 1
