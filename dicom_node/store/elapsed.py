"""The time that has passed since the ledger was made, which no clock that is set can change.

What is deleted or given up after some days is so by this time. Within one boot it is the uptime of the machine. How
long a machine was off is known only by its clock: that counts, but no more than ``MOST_OFF_S`` for each start and never
backwards, so that time may be lost but is not invented. Each boot has its own reading, and the furthest counts: several
machines that use one ledger don't add theirs up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from dicom_node.store.schema import boot

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from dicom_node.store.clock import Moment
    from dicom_node.store.database import Database

MOST_OFF_S = 6 * 3600.0
"""Of the time a machine was off, so much counts: its clock may be wrong when it starts."""
_KEPT_EVERY_S = 30.0


class Elapsed:
    """The part of the ledger that knows how much time has passed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, now: Moment) -> float:
        """The seconds that have passed; kept in the ledger from time to time."""
        with self._database.read() as db:
            own = _reading(db, now)
            if own is not None and now.uptime_s - own.uptime_s < _KEPT_EVERY_S:
                return _elapsed_s(db, own, now)
        with self._database.write() as db:
            own = _reading(db, now)
            elapsed_s = _elapsed_s(db, own, now)
            values = {"uptime_s": now.uptime_s, "elapsed_s": elapsed_s, "read_at": now.at}
            if own is None:
                db.execute(insert(boot).values(boot_id=now.boot_id, **values))
            else:
                db.execute(update(boot).where(boot.c.boot_id == now.boot_id).values(**values))
        return elapsed_s


def _reading(db: Connection, now: Moment) -> Any:
    """The last reading of this boot; None if there is none yet."""
    return db.execute(select(boot).where(boot.c.boot_id == now.boot_id)).one_or_none()


def _elapsed_s(db: Connection, own: Any, now: Moment) -> float:
    furthest = db.execute(select(boot).order_by(boot.c.elapsed_s.desc()).limit(1)).one_or_none()
    if furthest is None:
        return 0.0
    if own is not None:
        return float(max(own.elapsed_s + max(now.uptime_s - own.uptime_s, 0.0), furthest.elapsed_s))
    off_s = (now.at - furthest.read_at).total_seconds()
    return float(furthest.elapsed_s + min(max(off_s, 0.0), MOST_OFF_S))
