"""A job of the node as a case of the analysis: images from the spool, labels from a warm worker, results to the spool.

Several jobs run at once, each in a thread of its own; :mod:`dicom_node.pipeline.places` defines which of their steps
may overlap.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import SegmentationImpossible
from dicom_node.pipeline.results import read_series
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState
from dicom_node.work.models import minimum_extent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from dicom_node.analysis import Findings
    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.pipeline.delivering import Asking
    from dicom_node.pipeline.places import Places
    from dicom_node.pipeline.results import ResultStore
    from dicom_node.pipeline.reusing import Reusing
    from dicom_node.reading.reader import ImageReader
    from dicom_node.settings import NnunetModelSettings, TissueModelSettings
    from dicom_node.store.spool import Spool
    from dicom_node.types import EncodedResult, Reconstruction, ResultContext, ResultRequest, Series
    from dicom_node.work.gate import Pass
    from dicom_node.work.pool import WorkerPool
    from inference.types import MinimumExtent, Segmentation, Volume


@dataclass(frozen=True, slots=True)
class Means:
    """What all jobs share."""

    models: Mapping[str, TissueModelSettings | NnunetModelSettings]
    spool: Spool
    reader: ImageReader
    workers: WorkerPool
    places: Places
    reusing: Reusing
    asking: Asking
    results: ResultStore


class JobCase:
    """One attempt of one job as :func:`dicom_node.analysis.analyse` sees it; created when it may begin.

    Raises:
        SegmentationImpossible: the model is no longer configured.
        ConfigurationError: the model's manifest is invalid.
    """

    structures = ()

    def __init__(self, attempt: Attempt, intake: Pass, means: Means) -> None:
        self._attempt = attempt
        self._claimed = attempt.claimed
        self._intake = intake
        self._means = means
        self._started_at = now_utc()
        self._requests: Mapping[str, ResultRequest] = {}
        self.model = self._claimed.model
        if self.model not in means.models:
            raise SegmentationImpossible(f"model {self.model!r} is no longer configured")
        self.unchecked_hu = False  # every image is of a series, which states it
        self.minimum: MinimumExtent = minimum_extent(self.model, means.models[self.model])

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Record the duration of the block."""
        return self._attempt.stage(name)

    def read(self) -> Series:
        """Read the headers from the spool."""
        series = read_series(self._means.spool, self._means.reader, self._claimed.revision, keep=True)
        return replace(series, unchecked_hu=self._claimed.unchecked_hu)

    def reconstruct(self, series: Series) -> Reconstruction:
        """The volume, in the child that has just read the headers."""
        return self._means.reader.reconstruct(series)

    def infer(self, volume: Volume) -> Segmentation:
        """Have the volume prepared, wait for the device, let the next job start, and infer.

        Nothing is inferred if the same model has already given labels to the same images.
        """
        workers, attempt = self._means.workers, self._attempt
        with self.stage("reuse"):
            labels = self._means.reusing.labels(self._claimed.revision, self.model, volume)
        if labels is not None:
            self._let_next_begin()
            return labels
        with self.stage("prepare"):
            order = workers.prepare(self.model, volume, attempt.on_progress)
        with self.stage("wait"):
            turn = workers.turn()
        with turn:
            self._let_next_begin()
            with self.stage("segment"):
                return turn.infer(order, attempt.on_progress)

    def requests(self) -> Mapping[str, ResultRequest]:
        """The results for each destination, after querying those whose form depends on what they accept."""
        self._requests = self._claimed.requests
        if any(request.asks_peer for request in self._requests.values()):
            with self.stage("ask"):
                self._requests = self._means.asking.answered(self._requests)
        return self._requests

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Wait until this job may encode, then reserve that for the duration of the block."""
        with self.stage("wait"):
            place = self._means.places.encoding.enter()
        with place:
            yield

    def context(self) -> ResultContext:
        """What the results of this attempt state."""
        return self._means.results.context(self._claimed.revision, self.model, self._started_at)

    def keep(self, findings: Findings, results: Iterator[EncodedResult]) -> None:
        """Store and record the results, or discard them if another worker has taken over the job in the meantime."""
        stored = self._means.results.keep(self._attempt, findings, results)
        made = [instance for instance, _ in stored or ()]
        is_owed = any(instance.destinations for instance in made)
        state = JobState.SUPERSEDED if stored is None else JobState.ENCODED if is_owed else JobState.KEPT
        self._attempt.log(state, "", made, findings)
        if stored is not None:
            self._warn_of_viewers(findings.ct.source.geometry.shape_zyx[2])

    def _warn_of_viewers(self, columns: int) -> None:
        for destination in self._means.asking.not_showing(self._requests, columns):
            structlog.get_logger().warning(
                "segmentation.not_shown",
                job=self._claimed.id,
                series=self._claimed.revision.series_instance_uid,
                destination=destination,
                columns=columns,
            )

    def _let_next_begin(self) -> None:
        if not self._attempt.is_alone:
            self._intake.leave()
