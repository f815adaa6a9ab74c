"""Between analysis and store: read the images of a revision, store its results, and collect what the results state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import ImagesAway, StoredBytesChanged, StoreUnavailable
from dicom_node.store.clock import now_utc
from dicom_node.types import ResultContext, ResultInstance, Series

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from dicom_node.analysis import Findings
    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.reading.reader import ImageReader
    from dicom_node.store.jobs import Jobs
    from dicom_node.store.results import Results
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.types import EncodedResult

StoredResults = list[tuple[ResultInstance, str]]
"""Result objects in the spool, each with its spool name; not yet recorded in the ledger."""


@dataclass(frozen=True, slots=True)
class Installation:
    """This node as its results identify it: Station Name and Device UID."""

    station_name: str
    device_uid: str


def read_series(spool: Spool, reader: ImageReader, revision: CompleteRevision, *, keep: bool = False) -> Series:
    """The headers of the current instances of ``revision``; ``keep`` where it will be reconstructed next.

    Raises:
        ImagesAway: a file is missing or the disk fails.
        StoredBytesChanged: a file is not what was received.
        SeriesRejected: a file does not contain a readable instance, or the headers are beyond a limit.
        ReaderLost: the process that reads them died or took too long.
    """
    try:
        changed = spool.changed(revision.files)
        if changed:
            raise StoredBytesChanged(changed, len(revision.files))
        instances = reader.read([spool.path(name) for name in revision.spool_names], keep=keep)
    except StoreUnavailable as error:
        raise ImagesAway(str(error)) from error
    return Series(
        series_instance_uid=revision.series_instance_uid,
        study_instance_uid=revision.study_instance_uid,
        instances=instances,
        sending_ae=revision.sending_ae,
        completion_reason=revision.reason,
    )


class ResultStore:
    """Writes results into the spool and records them in the ledger."""

    def __init__(self, jobs: Jobs, earlier: Results, spool: Spool, installation: Installation) -> None:
        self._jobs = jobs
        self._earlier = earlier
        self._spool = spool
        self._installation = installation

    def context(self, revision: CompleteRevision, model: str | None, started_at: datetime) -> ResultContext:
        """What results of ``model`` on ``revision`` state besides the findings; ``model`` None: refused by a rule."""
        return ResultContext(
            started_at=started_at,
            revision=revision.unchanged_since,
            content_digest=revision.content_digest,
            station_name=self._installation.station_name,
            device_uid=self._installation.device_uid,
            completion_reason=revision.reason,
            missing_instances=revision.missing_instances,
            refused_instances=revision.refused_instances,
            is_cut_short=revision.is_cut_short,
            earlier=self._earlier.earlier(revision, model),
        )

    def keep(self, attempt: Attempt, findings: Findings, results: Iterable[EncodedResult]) -> StoredResults | None:
        """Write ``results`` as they are made and record them: RUNNING -> ENCODED.

        Returns what was stored, or None if the job was lost to another worker in the meantime; nothing is kept then.

        Raises:
            StoreUnavailable: spool or ledger can't be written; nothing is left behind.
        """
        with self._spool.writing_results() as writing:
            with attempt.stage("encode"):
                for result in results:
                    writing.add(result)
            with attempt.stage("store"):
                stored = writing.written()
        labels = findings.segmentation
        if self._jobs.encoded(
            attempt.claimed,
            stored,
            labels.model,
            labels.run,
            attempt.stage_seconds,
            now_utc(),
            labels.names_by_label,
            findings.notes_on_images,
            lambda: self._spool.check_files(stored),
        ):
            return stored
        self._spool.discard(stored)
        return None
