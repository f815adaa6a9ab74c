"""Which instances are refused instead of being corrections, and what is recorded of them, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node.store.schema import instance
from dicom_node.types import Completion, Receipt
from tests.integration.store.rows import NOW, SERIES, arrive, claim, complete, purge, queued_job, refused

DUPLICATE_SOP_INSTANCE = 0x0111
JPEG_LS = "1.2.840.10008.1.2.4.80"
LATER = NOW + timedelta(seconds=30)


def open_association(ledger, name="assoc-1", calling_ae="PACS", at=NOW):
    ledger.arrivals.association_opened(name, calling_ae, "127.0.0.1", at)


def refused_instances(ledger):
    (revision,) = ledger.arrivals.due_revisions(NOW + timedelta(hours=1))
    return revision.evidence.refused_instances


# ---- one SOP Instance UID, several images


@pytest.mark.parametrize(
    ("second", "receipt"),
    [
        ({"place": 8}, Receipt.REUSED),
        ({"pixels": "other"}, Receipt.REUSED),
        ({"pixels": "first", "place": 1.0004}, Receipt.REPLACEMENT),
        ({"pixels": None}, Receipt.REPLACEMENT),
        ({"association": "assoc-2", "pixels": "other"}, Receipt.REPLACEMENT),
        ({"association": "assoc-2", "place": 8}, Receipt.REUSED),
        ({"direction": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)}, Receipt.REUSED),
        ({"association": "assoc-2", "direction": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)}, Receipt.REUSED),
        ({"pixels": "other", "syntax": "1.2.840.10008.1.2.5"}, Receipt.REPLACEMENT),
        ({"place": 8, "syntax": "1.2.840.10008.1.2.5"}, Receipt.REUSED),
        ({"pixels": "other", "direction": None}, Receipt.REUSED),
        ({"place": 8, "direction": None}, Receipt.REPLACEMENT),
    ],
    ids=[
        "elsewhere",
        "other pixels",
        "other header",
        "digest not known",
        "corrected later",
        "elsewhere, a new association",
        "another direction",
        "another direction, a new association",
        "in another transfer syntax",
        "elsewhere, in another transfer syntax",
        "other pixels, without a position",
        "without a position",
    ],
)
def test_instance_under_a_known_uid_is_a_copy_a_correction_or_refused(ledger, second, receipt):
    arrive(ledger, 1, pixels="first")
    arrive(ledger, 2, place=8)
    assert arrive(ledger, 1, content="b", **({"pixels": "first"} | second)) is receipt
    (revision,) = ledger.arrivals.due_revisions(NOW)
    assert revision.evidence.positions_mm.count(8.0) == 1
    assert revision.evidence.instance_count == 2


def test_geometry_of_a_routed_series_may_be_corrected(ledger):
    queued_job(ledger)
    assert arrive(ledger, 1, content="b", place=4, association="assoc-2", at=LATER) is Receipt.REPLACEMENT


def in_order(number):
    return f"20260301/08/{number:016x}-{'0' * 16}.dcm"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": in_order(2)}, {"name": in_order(1), "at": LATER}),
        ({}, {"at": NOW - timedelta(seconds=1)}),
        ({"name": in_order(2)}, {"at": NOW - timedelta(seconds=1)}),
    ],
    ids=["by its name, whatever its time", "by its time", "by its time, of another version"],
)
def test_older_bytes_from_the_spool_are_recorded_and_never_current(ledger, first, second):
    arrive(ledger, 1, **first)
    (current,), _ = ledger.arrivals.current_instances(SERIES)
    complete(ledger)
    assert arrive(ledger, 1, content="b", association="", **second) is Receipt.OUTDATED
    assert ledger.arrivals.due_revisions(LATER) == ()
    assert ledger.arrivals.current_instances(SERIES)[0] == (current,)


@pytest.mark.parametrize(
    "second", [{"name": in_order(3)}, {"at": LATER}], ids=["by its name, whatever its time", "by its time"]
)
def test_newer_bytes_from_the_spool_replace_older_ones(ledger, second):
    arrive(ledger, 1, name=in_order(2) if "name" in second else None)
    assert arrive(ledger, 1, content="b", association="", **second) is Receipt.REPLACEMENT


def test_older_bytes_of_a_purged_series_are_purged_too(ledger):
    arrive(ledger, 1)
    with ledger.database.write() as db:
        db.execute(instance.update().values(current=False, purged_at=LATER))
    older = {"name": "older", "at": NOW - timedelta(seconds=1)}
    assert arrive(ledger, 1, content="b", association="", **older) is Receipt.OUTDATED
    assert ledger.retention.claims(["older"]) == {"older": False}


def test_refused_instance_is_refused_again_when_the_series_is_resent(ledger):
    open_association(ledger)
    arrive(ledger, 1, pixels="first")
    assert arrive(ledger, 1, content="b", place=4) is Receipt.REUSED
    ledger.arrivals.association_closed(
        "assoc-1", NOW, aborted=False, refusals=[refused(1, status=DUPLICATE_SOP_INSTANCE, content="b")]
    )
    whole = complete(ledger)
    ledger.routing.route(whole, [], None, NOW)
    assert arrive(ledger, 1, association="assoc-2", at=LATER) is Receipt.DUPLICATE
    assert arrive(ledger, 1, content="b", place=4, association="assoc-2", at=LATER) is Receipt.REUSED


@pytest.mark.parametrize(
    ("later", "pairs"),
    [
        ([{"pixels": "other", "syntax": JPEG_LS}], [("first", "other")]),
        ([{"pixels": "other", "syntax": JPEG_LS}, {"content": "c"}], [("first", "first"), ("other", "first")]),
        ([{"syntax": JPEG_LS, "pixels": None}], []),
        ([{"pixels": "other", "syntax": JPEG_LS, "association": "assoc-2"}], []),
        ([{"pixels": "other", "syntax": JPEG_LS}, {"content": "c", "association": "assoc-2"}], []),
        ([{"pixels": "other", "syntax": JPEG_LS, "association": ""}], []),
    ],
    ids=["twice", "three times", "no pixels", "on the next association", "corrected by it", "found in the spool"],
)
def test_what_one_association_sent_twice_is_to_be_compared(ledger, later, pairs):
    first = {"pixels": "first"}
    arrive(ledger, 1, **first)
    arrive(ledger, 2, **first)
    for each in later:
        assert arrive(ledger, 1, **{**first, "content": "b", **each}) is Receipt.REPLACEMENT
    repeated = ledger.routing.repeated(complete(ledger))
    assert [(each.before.pixels_sha256, each.now.pixels_sha256) for each in repeated] == pairs
    assert {each.sop_instance_uid for each in repeated} <= {f"{SERIES}.1"}


# ---- refused instances as evidence


@pytest.mark.parametrize(
    ("refusals", "count"),
    [
        ([refused(2)], 1),
        ([refused(2, series=None)], 1),
        ([refused(2), refused(2, at=LATER)], 1),
        ([refused(1, content="b"), refused(1, content="c")], 2),
        ([replace(refused(2, series=None), sop_instance_uid="")] * 2, 2),
        ([refused(2, series="1.2.840.77")], 0),
    ],
    ids=[
        "of the series",
        "of an unknown series",
        "twice the same",
        "two images of one UID",
        "no UIDs",
        "of another series",
    ],
)
def test_refusals_of_an_association_count_for_its_series(ledger, refusals, count):
    open_association(ledger)
    arrive(ledger, 1)
    ledger.arrivals.association_closed("assoc-1", NOW, aborted=False, refusals=refusals)
    assert refused_instances(ledger) == count
    assert complete(ledger).refused_instances == count


def test_instance_stored_later_no_longer_counts_as_refused(ledger):
    open_association(ledger)
    arrive(ledger, 1)
    ledger.arrivals.association_closed("assoc-1", NOW, aborted=False, refusals=[refused(2), refused(3, series=None)])
    assert refused_instances(ledger) == 2
    open_association(ledger, "assoc-2", at=LATER)
    arrive(ledger, 3, association="assoc-2", at=LATER)
    ledger.arrivals.association_closed("assoc-2", LATER, aborted=False)
    assert refused_instances(ledger) == 1


@pytest.mark.parametrize("association", ["assoc-2", ""], ids=["sent again", "found in the spool"])
@pytest.mark.parametrize("was_kept", [True, False], ids=["kept all the same", "not kept"])
@pytest.mark.parametrize("content", ["a", None], ids=["read to its end", "not read"])
def test_instance_that_the_node_has_does_not_count_as_refused(ledger, association, was_kept, content):
    """The ledger's connection may be lost while a row is written, and the disk may be full when a copy arrives."""
    open_association(ledger)
    arrive(ledger, 1)
    refusals = [refused(2, content=content)]
    if was_kept:
        arrive(ledger, 2)
        refusals.append(refused(2, status=DUPLICATE_SOP_INSTANCE, content="b"))
    ledger.arrivals.association_closed("assoc-1", NOW, aborted=False, refusals=refusals)
    assert refused_instances(ledger) == len(refusals)
    if association:
        open_association(ledger, association, at=LATER)
    receipt = arrive(ledger, 2, association=association, at=LATER)
    assert receipt is (Receipt.DUPLICATE if was_kept else Receipt.NEW)
    if association:
        ledger.arrivals.association_closed(association, LATER, aborted=False)
    assert refused_instances(ledger) == len(refusals) - 1


def test_refusals_are_kept_as_long_as_their_series(ledger):
    open_association(ledger)
    queued_job(ledger)
    known = [refused(2), refused(3, series=None)]
    unknown = [refused(4, series="1.2.840.77"), refused(5, series="1.2.840.77", at=LATER)]
    ledger.arrivals.association_closed("assoc-1", NOW, aborted=False, refusals=known)
    open_association(ledger, "assoc-2")
    ledger.arrivals.association_closed("assoc-2", NOW, aborted=False, refusals=unknown)
    assert [ledger.retention.forget_refusals(now_s, 10.0) for now_s in (0.0, 9.9)] == [0, 0]
    assert ledger.retention.forget_refusals(10.0, 10.0) == 2
    ledger.jobs.rejected(claim(ledger), "too few slices", NOW)
    assert purge(ledger)
    assert ledger.retention.forget_refusals(10.0, 10.0) == 2


@pytest.mark.parametrize(
    ("calling_ae", "at", "count"),
    [
        ("PACS", LATER, 1),
        ("PACS", NOW - timedelta(seconds=5), 1),
        ("OTHER", LATER, 0),
        ("PACS", NOW - timedelta(days=1), 0),
    ],
    ids=["then", "before the first instance", "another sender", "long ago"],
)
def test_refusals_of_a_sender_with_one_association_per_instance_count(ledger, calling_ae, at, count):
    """The series of an instance refused for a full disk is unknown, and its association stored nothing."""
    arrive(ledger, 1)
    open_association(ledger, "alone", calling_ae)
    ledger.arrivals.association_closed("alone", at, aborted=False, refusals=[refused(2, series=None, at=at)])
    assert refused_instances(ledger) == count


def test_refusal_changes_the_evidence_of_a_waiting_series(ledger):
    arrive(ledger, 1)
    (revision,) = ledger.arrivals.due_revisions(NOW)
    ledger.arrivals.postpone(revision, NOW + timedelta(hours=2))
    open_association(ledger, "alone")
    ledger.arrivals.association_closed("alone", LATER, aborted=False, refusals=[refused(2, series=None, at=LATER)])
    assert refused_instances(ledger) == 1
    assert not ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW), (
        "the verdict was reached on older evidence"
    )
