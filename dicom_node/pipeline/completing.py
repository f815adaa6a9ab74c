"""Closes complete series; asks the sender for its count of instances if possible."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import DicomNodeError
from dicom_node.network.questions import Heard
from dicom_node.receive import completion
from dicom_node.receive.count import CountQuestion, counts
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.settings import CompletionSettings, SourceSettings
    from dicom_node.store.arrivals import Arrivals, OpenRevision

_PATIENCE_S = 0.5
"""For all answers of all senders together; a series whose sender needs longer is looked at again in the next sweep."""
_SET_ASIDE_S = 60.0


class Completing:
    """Closes series revisions.

    Args:
        arrivals: what was received.
        policy: how long a series must be quiet.
        sources: the peers that may send; some can be queried for the number of instances of a series.
        ae_title: our AE title for that query.
    """

    def __init__(
        self, arrivals: Arrivals, policy: CompletionSettings, sources: Iterable[SourceSettings], ae_title: str
    ) -> None:
        self._arrivals = arrivals
        self._policy = policy
        self._sources = {source.ae_title.strip(): source for source in sources}
        self._counts = counts(ae_title)
        self._set_aside: dict[int, float] = {}
        self._log = structlog.get_logger()

    def complete_due(self) -> None:
        """Check every series that changed or is due for a check, and close those that are complete.

        Whatever happens to one series, the others are checked; it is looked at again after a while.
        """
        now = time.monotonic()
        self._set_aside = {revision: until for revision, until in self._set_aside.items() if until > now}
        due = self._arrivals.due_revisions(now_utc(), self._set_aside, self._crashed)
        for revision in due:  # all senders at the same time
            source = self._source_to_ask(revision)
            if source is not None:
                self._counts.want(source, _question(revision))
        for revision in due:
            try:
                self._look_at(revision, now + _PATIENCE_S)
            except DicomNodeError as error:
                self._log.warning("series.not_completed", series=revision.series_instance_uid, reason=str(error))
            except Exception:  # noqa: BLE001 - no series may hold up the others
                self._crashed(revision.id, revision.series_instance_uid)

    def _look_at(self, revision: OpenRevision, patience_ends: float) -> None:
        source = self._source_to_ask(revision)
        if source is None:
            self._decide(revision)
            return
        reply = self._counts.reply(source, _question(revision), patience_ends - time.monotonic())
        if reply.heard is Heard.ANSWER:
            self._arrivals.set_expected_count(revision, reply.answer)
            self._decide(revision.with_expected_count(reply.answer))
        elif reply.heard is Heard.SILENCE:  # its quiet time decides; if that is not over, the sender is asked again
            self._decide(revision)

    def _decide(self, revision: OpenRevision) -> None:
        verdict = completion.decide(revision.evidence, now_utc(), self._policy)
        if verdict.complete:
            if self._arrivals.complete(revision, verdict, now_utc()):
                self._log.info(
                    "series.complete",
                    series=revision.series_instance_uid,
                    revision=revision.revision,
                    instances=revision.evidence.instance_count,
                    reason=verdict.reason,
                )
        elif verdict.look_again_at is not None:
            self._arrivals.postpone(revision, verdict.look_again_at)

    def _source_to_ask(self, revision: OpenRevision) -> SourceSettings | None:
        source = self._sources.get(revision.sending_ae)
        if source is None or source.count_host is None or revision.count_asked or revision.evidence.open_associations:
            return None
        return source

    def _crashed(self, revision_id: int, series_instance_uid: str) -> None:
        self._set_aside[revision_id] = time.monotonic() + _SET_ASIDE_S
        self._log.exception("series.completion_crashed", series=series_instance_uid, again_in_s=_SET_ASIDE_S)


def _question(revision: OpenRevision) -> CountQuestion:
    return CountQuestion(revision.study_instance_uid, revision.series_instance_uid, revision.version)
