"""The clock for all times in the ledger."""

from __future__ import annotations

from datetime import UTC, datetime


def now_utc() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)
