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
