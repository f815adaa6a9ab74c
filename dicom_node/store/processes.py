"""Which process serves, listens and works on a data folder: one of each on a machine, so that nothing is done twice.

A row is a claim, as that of a job: its holder renews it, and it ends with its holder. Whether that still lives can be
told at once within one boot and PID namespace, and elsewhere (another container) by its heartbeat. Machines are told
apart by their boot, so that a restarted machine finds no claims of its own, and several machines may share a ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, insert, select, update

from dicom_node.errors import StoreUnavailable
from dicom_node.store.clock import uptime_s
from dicom_node.store.schema import process
from dicom_node.store.workers import WorkerName

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

HEARTBEAT_S = 5.0
LEASE_S = 30.0
"""A process whose death can't be seen is taken for dead after this long without a heartbeat."""


class Role(StrEnum):
    """What one process of a node does, and no other on the same data folder."""

    SERVE = "serve"
    LISTEN = "listen"
    WORK = "work"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has or had a role."""

    role: Role
    pid: int
    host: str
    since: datetime
    lives: bool

    def __str__(self) -> str:
        """For people."""
        return f"PID {self.pid} on {self.host} since {self.since:%Y-%m-%d %H:%M:%S} UTC ({self.role})"


class Processes:
    """The part of the ledger for the processes of the node; ``folder`` is the data folder, ``own`` the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def holder(self, role: Role, folder: str, own: WorkerName) -> Holder | None:
        """The process that has ``role``, or had it and ended without giving it up."""
        with self._database.read() as db:
            row = db.execute(select(process).where(_of(role, folder, own))).one_or_none()
        return None if row is None else _holder(row, own)

    def take(self, role: Role, folder: str, own: WorkerName, at: datetime) -> Holder | None:
        """Take ``role``, also from a dead process. Returns the living process that has it, and changes nothing then."""
        try:
            return self._take(role, folder, own, at)
        except StoreUnavailable:  # on PostgreSQL, when another process took it at the same moment: it has it now
            return self._take(role, folder, own, at)

    def _take(self, role: Role, folder: str, own: WorkerName, at: datetime) -> Holder | None:
        values = {
            "worker": str(own),
            "host": own.host,
            "pid": own.pid,
            "started_at": at,
            "heartbeat_at": at,
            "heartbeat_s": uptime_s(),
        }
        with self._database.write() as db:
            row = db.execute(select(process).where(_of(role, folder, own)).with_for_update()).one_or_none()
            if row is None:
                _forget_other_boots(db, role, folder, own)
                db.execute(insert(process).values(role=role, folder=folder, boot_id=own.boot_id, **values))
                return None
            found = _holder(row, own)
            if found.lives and row.worker != str(own):
                return found
            db.execute(update(process).where(_of(role, folder, own)).values(**values))
        return None

    def beat(self, role: Role, folder: str, own: WorkerName, at: datetime) -> bool:
        """Say that ``own`` still lives. False: another process took the role, because it did not look like that."""
        with self._database.write() as db:
            held = and_(_of(role, folder, own), process.c.worker == str(own))
            beaten = update(process).where(held).values(heartbeat_at=at, heartbeat_s=uptime_s())
            if db.execute(beaten).rowcount:
                return True
        return self.take(role, folder, own, at) is None

    def leave(self, role: Role, folder: str, own: WorkerName) -> None:
        """Give up ``role``."""
        with self._database.write() as db:
            db.execute(delete(process).where(_of(role, folder, own), process.c.worker == str(own)))


def _of(role: Role, folder: str, own: WorkerName) -> Any:
    return and_(process.c.role == role, process.c.folder == folder, process.c.boot_id == own.boot_id)


def _holder(row: Any, own: WorkerName) -> Holder:
    name = WorkerName.parse(row.worker)
    lives = None if name is None else name.lives(own)
    if lives is None:
        lives = uptime_s() - row.heartbeat_s < LEASE_S
    return Holder(Role(row.role), row.pid, row.host, row.started_at, lives)


def _forget_other_boots(db: Connection, role: Role, folder: str, own: WorkerName) -> None:
    """Delete the rows of this host's earlier boots."""
    db.execute(
        delete(process).where(
            process.c.role == role,
            process.c.folder == folder,
            process.c.host == own.host,
            process.c.boot_id != own.boot_id,
        )
    )
