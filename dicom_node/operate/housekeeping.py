"""Retention: delete the files of a series some days after its last job ended, but never undelivered results."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from datetime import datetime

    from dicom_node.settings import OperateSettings
    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool

_PURGE_BATCH = 5000


def purge_expired(ledger: Ledger, spool: Spool, settings: OperateSettings, now: datetime) -> int:
    """Delete the spool files of series whose last job ended more than ``retention_days`` ago; returns how many.

    Refusals that concern none of the others are forgotten after as long.
    """
    before = now - timedelta(days=settings.retention_days)
    names = ledger.retention.purge_due(before, now, _PURGE_BATCH)
    ledger.retention.forget_refusals(before)
    for name in names:
        spool.delete(name)
    if names:
        structlog.get_logger().info("retention.purged", files=len(names), retention_days=settings.retention_days)
    return len(names)
