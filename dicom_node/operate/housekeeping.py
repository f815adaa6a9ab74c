"""Retention: delete the files of a series some days after its last job ended, but never undelivered results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from dicom_node.settings import OperateSettings
    from dicom_node.store.clock import Moment
    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool

_PURGE_BATCH = 5000
_DAY_S = 86400.0


def purge_expired(ledger: Ledger, spool: Spool, settings: OperateSettings, now: Moment) -> int:
    """Delete the spool files of series that were settled ``retention_days`` ago by elapsed time; returns how many.

    Refusals that concern none of the others are forgotten after as long.
    """
    now_s, kept_s = ledger.elapsed.read(now), settings.retention_days * _DAY_S
    names = ledger.retention.purge_due(now_s, kept_s, now.at, _PURGE_BATCH)
    ledger.retention.forget_refusals(now_s, kept_s)
    for name in names:
        spool.delete(name)
    if names:
        structlog.get_logger().info("retention.purged", files=len(names), retention_days=settings.retention_days)
    return len(names)
