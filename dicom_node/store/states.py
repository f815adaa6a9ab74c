"""The states in the ledger; ARCHITECTURE.md has the diagram of their transitions."""

from __future__ import annotations

from enum import StrEnum


class RevisionState(StrEnum):
    """The state of one revision of a series."""

    OPEN = "OPEN"
    """Instances may still arrive."""
    COMPLETE = "COMPLETE"
    """Complete, and not routed yet."""
    ROUTED = "ROUTED"


class JobState(StrEnum):
    """The state of one job: one model on one revision of a series."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    ENCODED = "ENCODED"
    """The results are durable, but not all are delivered yet."""
    DELIVERED = "DELIVERED"
    """Every destination has its results."""
    KEPT = "KEPT"
    """The results are durable, and no destination asked for any."""
    REJECTED = "REJECTED"
    """Not a series for this model, or for any."""
    FAILED = "FAILED"
    """A person must look."""
    SUPERSEDED = "SUPERSEDED"
    """A newer revision of the series was routed before this job ended."""


class DeliveryState(StrEnum):
    """The state of one result instance at one destination."""

    WAITING = "WAITING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"
    """Not sent, because a newer revision of the series has its own result."""


class PullState(StrEnum):
    """The state of one series of a cohort."""

    SELECTED = "SELECTED"
    PULLING = "PULLING"
    """Its images are on their way, or were when the process was killed."""
    PULLED = "PULLED"
    """All images that the archive counts are in the spool; the queue has the rest to do."""
    DONE = "DONE"
    REFUSED = "REFUSED"
    """Not a series for the model."""
    FAILED = "FAILED"
    """It could not be pulled whole, or its job failed; a person must look."""
