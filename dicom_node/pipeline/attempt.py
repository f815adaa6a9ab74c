"""One attempt of one job, and its canonical log line."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.analysis import Findings
    from dicom_node.store.jobs import ClaimedJob
    from dicom_node.store.states import JobState
    from dicom_node.types import ResultInstance


class Attempt:
    """The progress of an attempt, and the duration of each stage."""

    def __init__(self, claimed: ClaimedJob) -> None:
        self.claimed = claimed
        self.progress = 0.0
        self.stage_name = ""
        self.stage_seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def is_alone(self) -> bool:
        """Whether no other job may run at the same time: what ended the first attempt must not end other jobs too."""
        return self.claimed.counted > 1

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to stage ``name``."""
        self.stage_name = name
        start = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[name] = round(self.stage_seconds.get(name, 0) + time.monotonic() - start, 3)

    def on_progress(self, fraction: float, stage: str) -> None:
        """Record the progress that the worker reports."""
        self.progress, self.stage_name = fraction, stage

    def log(
        self, state: JobState, reason: str, results: Sequence[ResultInstance], findings: Findings | None = None
    ) -> None:
        """Log the canonical line: everything about this attempt."""
        claimed = self.claimed
        model = findings.segmentation.model if findings else None
        run = findings.segmentation.run if findings else None
        structlog.get_logger().info(
            "job",
            job=claimed.id,
            attempt=claimed.attempt,
            state=state,
            reason=reason,
            rule=claimed.rule,
            model=claimed.model,
            model_version=model.version if model else None,
            model_digest=model.digest if model else None,
            backend=run.backend if run else None,
            device=run.device if run else None,
            precision=run.precision if run else None,
            notes=[*claimed.revision.notes_on_missing, *(findings.notes if findings else ())],
            series=claimed.revision.series_instance_uid,
            revision=claimed.revision.revision,
            shape_zyx=list(findings.ct.source.geometry.shape_zyx) if findings else None,
            results=[instance.sop_instance_uid for instance in results],
            result_bytes=sum(instance.size_bytes for instance in results),
            seconds=round(time.monotonic() - self._started, 3),
            stage_seconds=self.stage_seconds,
            engine_seconds={name: round(seconds, 3) for name, seconds in run.stage_seconds.items()} if run else {},
        )
