"""The clock of the node's durable times."""

from __future__ import annotations

from datetime import UTC, datetime


def now_utc() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
