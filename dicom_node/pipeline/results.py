"""Between analysis and store: read the images of a revision, store its results, and collect what the results state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import file_digest
from typing import TYPE_CHECKING

import numpy as np
import structlog

from dicom_node.errors import ResultUnreadable
from dicom_node.results import read_segmentation
from dicom_node.standard.files import read_headers
from dicom_node.store.clock import now_utc
from dicom_node.types import ResultContext, ResultInstance, Series
from inference.types import RunNote, Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from dicom_node.analysis import Findings
    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.results import StoredSegmentation
    from dicom_node.store.jobs import Jobs
    from dicom_node.store.results import KnownLabels, Results
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.types import EncodedResult
    from inference.types import Volume

StoredResults = list[tuple[ResultInstance, str]]
"""Result objects in the spool, each with its spool name; not yet recorded in the ledger."""


@dataclass(frozen=True, slots=True)
class Installation:
    """This node as its results identify it: Station Name and Device UID."""

    station_name: str
    device_uid: str


def read_series(spool: Spool, revision: CompleteRevision) -> Series:
    """The headers of the current instances of ``revision``.

    Raises:
        StoreUnavailable: a file is missing or the disk fails.
        SeriesRejected: a file does not contain a readable instance.
    """
    return Series(
        series_instance_uid=revision.series_instance_uid,
        study_instance_uid=revision.study_instance_uid,
        instances=read_headers([spool.path(name) for name in revision.spool_names]),
        sending_ae=revision.sending_ae,
        completion_reason=revision.reason,
    )


def _relabelled(stored: StoredSegmentation, known: KnownLabels) -> Segmentation | None:
    """``stored`` with the labels of the model: a SEG numbers its segments anew. None where it has others."""
    labels = {name: label for label, name in known.names_by_label.items()}
    if not {segment.name for segment in stored.segments} <= labels.keys():
        return None
    label_of_segment = np.zeros(256, np.uint8)
    for segment in stored.segments:
        label_of_segment[segment.label] = labels[segment.name]
    note = RunNote(f"labels of job {known.job_id}, which ran on the same images", changes_answer=False)
    return Segmentation(
        labels_zyx=label_of_segment[stored.labels_zyx],
        geometry=stored.geometry,
        names_by_label=known.names_by_label,
        model=known.model,
        run=None if known.run is None else replace(known.run, notes=(*known.run.notes, note)),
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

    def known_labels(self, revision: CompleteRevision, model: str, volume: Volume) -> Segmentation | None:
        """The labels that an earlier job gave to the same images, read back from its SEG; None where there are none.

        Nor are there any of a tilted gantry, where a SEG does not lie on the grid of the volume.
        """
        known = self._earlier.known_labels(revision, model)
        if known is None:
            return None
        path = self._spool.path(known.spool_name)
        try:
            with path.open("rb") as file:
                is_as_written = file_digest(file, "sha256").hexdigest() == known.sha256
            stored = read_segmentation(path, volume.geometry) if is_as_written else None
        except (OSError, ResultUnreadable):
            stored = None
        if stored is None:
            structlog.get_logger().info("labels.not_reused", job=known.job_id)
            return None
        return _relabelled(stored, known)

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
        ):
            return stored
        self._spool.discard(stored)
        return None
