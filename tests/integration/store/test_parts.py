"""A scanner that sends a series in parts while it reconstructs: one result, for the complete series."""

from __future__ import annotations

from datetime import timedelta

from dicom_node.receive.completion import decide
from dicom_node.settings import CompletionSettings
from dicom_node.types import Receipt
from tests.integration.store.rows import DECISION, IDENTITY, NOW, RUN, arrive, claim, some_results

POLICY = CompletionSettings()


def after(seconds):
    return NOW + timedelta(seconds=seconds)


def part(ledger, number, at_s, **series):
    """Four slices on a separate association; the last one arrives ``at_s`` seconds after the start."""
    name = f"assoc at {at_s} {series}"
    ledger.arrivals.association_opened(name, "PACS", "127.0.0.1", after(at_s - 1))
    for place in range(4 * number, 4 * number + 4):
        arrive(ledger, place, association=name, at=after(at_s), **series)
    ledger.arrivals.association_closed(name, after(at_s), aborted=False)


def verdict(ledger, at_s):
    """The verdict on the only open revision; recorded if it is complete."""
    (revision,) = ledger.arrivals.due_revisions(after(at_s))
    found = decide(revision.evidence, after(at_s), POLICY)
    if found.complete:
        assert ledger.arrivals.complete(revision, found, after(at_s))
    return found


def route(ledger, at_s):
    (whole,) = ledger.routing.due_revisions()
    ledger.routing.route(whole, [DECISION], None, after(at_s))
    return whole


def finish_job(ledger, at_s):
    assert ledger.jobs.encoded(claim(ledger, after(at_s)), some_results(), IDENTITY, RUN, {}, after(at_s))


def due(ledger, at_s):
    return ledger.deliveries.due("pacs", after(at_s), 10)


def test_four_parts_nine_seconds_apart_give_one_result(ledger):
    part(ledger, 0, 0)
    assert verdict(ledger, 5).complete  # not yet distinguishable from a complete series
    route(ledger, 5)
    finish_job(ledger, 6)
    assert due(ledger, 14.9) == ()
    for number in (1, 2, 3):
        part(ledger, number, 9 * number)
        assert not verdict(ledger, 9 * number + 8).complete
        assert due(ledger, 9 * number + 8) == ()
    assert verdict(ledger, 27 + 60).complete
    assert due(ledger, 27 + 60) == ()  # complete, and not yet routed
    whole = route(ledger, 27 + 60)
    assert (len(whole.spool_names), whole.is_cut_short) == (16, False)
    assert due(ledger, 27 + 60) == ()  # superseded
    finish_job(ledger, 90)
    assert len(due(ledger, 90)) == 2


def test_results_of_a_first_part_are_held_back_until_a_second_would_have_arrived(ledger):
    part(ledger, 0, 0)
    assert verdict(ledger, 5).complete
    route(ledger, 5)
    finish_job(ledger, 6)
    assert due(ledger, 14.9) == ()
    assert len(due(ledger, 15)) == 2


def test_long_job_adds_no_further_delay(ledger):
    part(ledger, 0, 0)
    assert verdict(ledger, 5).complete
    route(ledger, 5)
    finish_job(ledger, 40)
    assert len(due(ledger, 40)) == 2


def test_observed_pauses_of_a_sender_lengthen_the_wait_for_its_next_series(ledger):
    part(ledger, 0, 0)
    part(ledger, 1, 21)
    assert verdict(ledger, 21 + 60).longest_pause_s == 20
    part(ledger, 0, 100, series="1.2.840.2")
    part(ledger, 1, 109, series="1.2.840.3")
    (first, second) = ledger.arrivals.due_revisions(after(130))
    assert (first.evidence.learned_pause_s, second.evidence.learned_pause_s) == (20, 20)
    assert not decide(first.evidence, after(129.9), POLICY).complete
    assert decide(first.evidence, after(130), POLICY).complete


def test_sender_that_starts_over_is_waited_for_while_it_resends(ledger):
    """An association was aborted after a regular half; the next starts over at the first image, at a slow rate."""
    ledger.arrivals.association_opened("first", "PACS", "127.0.0.1", after(0))
    for place in range(8):
        arrive(ledger, place, association="first", at=after(place))
    ledger.arrivals.association_closed("first", after(8), aborted=True)
    assert not verdict(ledger, 20).complete
    ledger.arrivals.association_opened("second", "PACS", "127.0.0.1", after(30))
    for place in range(8):
        assert arrive(ledger, place, association="second", at=after(30 + 8 * place)) is Receipt.DUPLICATE
    waiting = verdict(ledger, 90)
    assert (waiting.complete, waiting.look_again_at) == (False, after(86 + 60))
    for place in range(8, 16):
        arrive(ledger, place, association="second", at=after(94))
    ledger.arrivals.association_closed("second", after(95), aborted=False)
    assert verdict(ledger, 94 + 60).complete
    assert len(route(ledger, 94 + 60).spool_names) == 16


def test_copy_of_a_routed_series_opens_no_revision(ledger):
    part(ledger, 0, 0)
    assert verdict(ledger, 5).complete
    route(ledger, 5)
    part(ledger, 0, 30)
    assert ledger.arrivals.due_revisions(after(3600)) == ()


def test_series_completed_by_the_hard_limit_is_marked(ledger):
    arrive(ledger, 0)
    arrive(ledger, 5, at=after(POLICY.hard_limit_s - 1))
    assert verdict(ledger, POLICY.hard_limit_s).complete
    (whole,) = ledger.routing.due_revisions()
    assert whole.is_cut_short
