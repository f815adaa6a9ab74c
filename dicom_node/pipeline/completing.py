"""Closes complete series; asks the sender for its count of instances if possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import DicomNodeError
from dicom_node.receive import completion
from dicom_node.receive.count import expected_count
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.settings import CompletionSettings, SourceSettings
    from dicom_node.store.arrivals import Arrivals, OpenRevision


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
        self._ae_title = ae_title
        self._log = structlog.get_logger()

    def complete_due(self) -> None:
        """Check every series that changed or is due for a check, and close those that are complete."""
        for revision in self._arrivals.due_revisions(now_utc()):
            try:
                self._decide(self._with_count(revision))
            except DicomNodeError as error:  # one series that can't be written must not hold up the others
                self._log.warning("series.not_completed", series=revision.series_instance_uid, reason=str(error))

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

    def _with_count(self, revision: OpenRevision) -> OpenRevision:
        source = self._sources.get(revision.sending_ae)
        if source is None or source.count_host is None or revision.count_asked or revision.evidence.open_associations:
            return revision
        count = expected_count(source, self._ae_title, revision.study_instance_uid, revision.series_instance_uid)
        self._arrivals.set_expected_count(revision, count)
        return revision.with_expected_count(count)
