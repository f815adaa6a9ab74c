"""Applies the rules to every complete series and queues the resulting jobs.

A series that a cohort pulled gets the model that the cohort names, or what the rules decide, at low priority.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import (
    DicomNodeError,
    Disposition,
    ImagesAway,
    Stopping,
    StoredBytesChanged,
    StoreFull,
    StoreUnavailable,
)
from dicom_node.pipeline.comparing import Comparing, Likeness
from dicom_node.pipeline.results import read_series
from dicom_node.pipeline.waiting import MOST_WAITS, pause_after
from dicom_node.route.rules import decide
from dicom_node.store.clock import now_utc
from dicom_node.types import Decision

if TYPE_CHECKING:
    from dicom_node.pipeline.notices import Notices
    from dicom_node.pipeline.results import StoredResults
    from dicom_node.reading.reader import ImageReader
    from dicom_node.route.rules import Rules
    from dicom_node.store import routing as store
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool

_NO_RULE = Decision(rule=None, model=None, requests={}, priority=0)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What becomes of a series; with a ``reason`` why nothing can, perhaps a fault that a person must look at."""

    decisions: tuple[Decision, ...] = (_NO_RULE,)
    reason: str | None = None
    is_fault: bool = False


@dataclass(frozen=True, slots=True)
class _Wait:
    """How often a series has been waited for, and until when (monotonic)."""

    waits: int
    until: float


class Routing:
    """Turns complete revisions into jobs.

    Args:
        revisions: those that are complete.
        spool: where their files are.
        reader: reads their headers.
        rules: what is to become of them.
        notices: tells destinations of those that a rule refuses.
        attempts: how often it is tried to read the headers of a series.
    """

    def __init__(
        self,
        revisions: store.Routing,
        spool: Spool,
        reader: ImageReader,
        rules: Rules,
        notices: Notices,
        attempts: int,
    ) -> None:
        self._revisions = revisions
        self._spool = spool
        self._reader = reader
        self._attempts = attempts
        self._rules = rules
        self._notices = notices
        self._log = structlog.get_logger()
        self._waiting: dict[int, _Wait] = {}

    def route_complete(self) -> None:
        """Route every complete revision, except those whose content was already routed."""
        for received in self._revisions.due_revisions():
            wait = self._waiting.get(received.id)
            if wait is not None and time.monotonic() < wait.until:
                continue
            attempt = self._revisions.count_attempt(received)
            try:
                self._look_at(received, attempt)
                self._waiting.pop(received.id, None)
            except Stopping:
                self._revisions.give_back_attempt(received)
                return
            except (ImagesAway, StoreFull) as error:
                self._revisions.give_back_attempt(received)
                self._wait_for(received, error)
            except StoreUnavailable:  # it is not the series that can't be routed
                with suppress(StoreUnavailable):
                    self._revisions.give_back_attempt(received)
                raise
            except Exception as error:  # noqa: BLE001 - no series may hold up the others
                self._crashed(received, attempt, error)

    def _crashed(self, received: CompleteRevision, attempt: int, error: Exception) -> None:
        """Look at it again later; after the last attempt, a person must look."""
        pause_s, before = pause_after(attempt - 1).total_seconds(), self._waiting.get(received.id)
        self._waiting[received.id] = _Wait(0 if before is None else before.waits, time.monotonic() + pause_s)
        self._log.exception(
            "series.routing_crashed", series=received.series_instance_uid, revision=received.revision, attempt=attempt
        )
        if attempt >= self._attempts:
            self._route(
                received, _Outcome(reason=f"unexpected error ({type(error).__name__}): see the log", is_fault=True)
            )

    def _wait_for(self, received: CompleteRevision, error: ImagesAway | StoreFull) -> None:
        """Look at it again later; after a day without its images, a person must look."""
        before = self._waiting.get(received.id)
        waits = 0 if before is None else before.waits
        if waits >= MOST_WAITS and isinstance(error, ImagesAway):
            with suppress(StoreUnavailable):  # what is not there may be sent again
                self._revisions.note_damage(self._spool.missing(received.files), now_utc())
            self._route(received, _Outcome(reason=f"{error}; given up after a day", is_fault=True))
            del self._waiting[received.id]
            return
        pause_s = pause_after(waits).total_seconds()
        self._waiting[received.id] = _Wait(waits + 1, time.monotonic() + pause_s)
        self._not_routed(received, waits + 1, error, retry_in_s=pause_s)

    def _look_at(self, received: CompleteRevision, attempt: int) -> None:
        """Route it, find that there is nothing new, or leave it for another attempt."""
        if attempt > self._attempts:  # nobody lived to say why the others failed
            reason = f"the node stopped unexpectedly each time it read the headers (attempts: {self._attempts})"
            self._route(received, _Outcome(reason=reason))
            return
        revision = self._by_content(received)
        if self._revisions.content_already_routed(revision):
            self._revisions.skip(revision)
            self._log.info("series.unchanged", series=revision.series_instance_uid, revision=revision.revision)
            return
        decided = self._decide(revision, attempt)
        if decided is not None:
            self._route(revision, decided)

    def _by_content(self, revision: CompleteRevision) -> CompleteRevision:
        """``revision``, with what it has in common with an earlier one whose bytes are others."""
        comparing, same_images_as = Comparing(self._spool, self._reader, revision.series_instance_uid), None
        for earlier in self._revisions.in_other_bytes(revision):
            likeness = comparing.likeness(earlier.changed)
            if likeness is Likeness.CONTENT:
                return self._revisions.has_content(revision, earlier.content_digest)
            if likeness is Likeness.IMAGES:  # the oldest of several: all corrections refer to one original
                same_images_as = earlier.content_digest
        return revision if same_images_as is None else self._revisions.has_images(revision, same_images_as)

    def _route(self, revision: CompleteRevision, outcome: _Outcome) -> None:
        decisions, reason = outcome.decisions, outcome.reason
        notices = self._refusal_notices(revision, decisions)
        jobs = self._revisions.route(revision, decisions, reason, now_utc(), notices, is_fault=outcome.is_fault)
        if not jobs:  # another process routed it first
            self._spool.discard(notices)
        self._log.info(
            "series.routed",
            series=revision.series_instance_uid,
            revision=revision.revision,
            jobs=list(jobs),
            rules=[decision.rule for decision in decisions],
            reason=reason or "; ".join(decision.reason for decision in decisions),
        )

    def _decide(self, revision: CompleteRevision, attempt: int) -> _Outcome | None:
        """The decisions of the rules, or the reason why there can be none; None if it is worth another attempt."""
        order = self._revisions.order_for(revision)
        ordered = _without_rules(order) if order is not None else None
        try:
            comparing = Comparing(self._spool, self._reader, revision.series_instance_uid)
            comparing.refuse_other_pixels(self._revisions.repeated(revision))
            if ordered is not None:
                return ordered
            decisions = decide(read_series(self._spool, self._reader, revision), self._rules)
        except (Stopping, ImagesAway):
            raise
        except DicomNodeError as error:
            return self._undecided(revision, attempt, error)
        except Exception as error:  # noqa: BLE001 - one unexpected series must not stop the others
            self._log.exception("series.unreadable", series=revision.series_instance_uid)
            return _Outcome(reason=f"the headers could not be read: {type(error).__name__}")
        if order is not None:
            decisions = tuple(replace(decision, priority=order.priority) for decision in decisions)
        return _Outcome(decisions)

    def _undecided(self, revision: CompleteRevision, attempt: int, error: DicomNodeError) -> _Outcome | None:
        if isinstance(error, StoredBytesChanged):
            self._revisions.note_damage(error.spool_names, now_utc())
            return _Outcome(reason=str(error), is_fault=True)
        if error.disposition is not Disposition.RETRY:
            return _Outcome(reason=str(error))
        if attempt >= self._attempts:
            return _Outcome(reason=f"{error} (attempt {attempt})")
        self._not_routed(revision, attempt, error)
        return None

    def _not_routed(
        self, revision: CompleteRevision, attempt: int, error: DicomNodeError, retry_in_s: float | None = None
    ) -> None:
        self._log.warning(
            "series.not_routed",
            series=revision.series_instance_uid,
            revision=revision.revision,
            attempt=attempt,
            reason=str(error),
            retry_in_s=retry_in_s,
        )

    def _refusal_notices(self, revision: CompleteRevision, decisions: tuple[Decision, ...]) -> StoredResults:
        """Notices for the destinations of a rule that refuses the series."""
        (decision, *others) = decisions
        if others or decision.model is not None or decision.refusal is None:
            return []
        return self._notices.write(revision, None, decision.refusal, decision.requests)


def _without_rules(order: store.Order) -> _Outcome | None:
    """What becomes of a series that a cohort pulled; None if the rules decide."""
    if order.given_up:
        nothing = Decision(f"cohort {order.cohort}", None, {}, order.priority)
        return _Outcome((nothing,), reason=f"the pull of cohort {order.cohort!r} was given up: {order.given_up}")
    decision = order.decision()
    return None if decision is None else _Outcome((decision,))
