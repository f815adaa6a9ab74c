"""One process of each role per data folder: a second one ends before it touches anything."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import NodeInUse, StoreUnavailable
from dicom_node.store.clock import now_utc
from dicom_node.store.processes import HEARTBEAT_S, Role
from dicom_node.store.workers import WorkerName

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.store.processes import Holder, Processes

_LOOK_AGAIN_S = 0.1


@contextmanager
def role_held(processes: Processes, role: Role, data_folder: Path, stop: threading.Event) -> Iterator[None]:
    """Have ``role`` at ``data_folder`` until the block ends; ``stop`` is set if another process takes it away.

    Raises:
        NodeInUse: another process has it.
        ConfigurationError: ``/proc`` can't be read.
        StoreUnavailable: the ledger is unavailable.
    """
    own, folder, ended = WorkerName.own(), _name(data_folder), threading.Event()
    _refuse(data_folder, processes.take(role, folder, own, now_utc()))

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(StoreUnavailable):  # whoever needs the ledger for more than this reports it
                if not processes.beat(role, folder, own, now_utc()):
                    structlog.get_logger().error("process.replaced", role=role)
                    stop.set()
                    return

    beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(StoreUnavailable):  # the next process sees that this one has ended
            processes.leave(role, folder, own)


def refuse_if_in_use(processes: Processes, data_folder: Path, limit_s: float) -> None:
    """Fail if a process serves, listens or works already.

    The processes of a supervisor that was killed end by themselves: for up to ``limit_s`` they are waited for.

    Raises:
        NodeInUse: one does.
    """
    own, folder = WorkerName.own(), _name(data_folder)
    supervisor = processes.holder(Role.SERVE, folder, own)
    if supervisor is not None and supervisor.lives:
        _refuse(data_folder, supervisor)
    deadline = time.monotonic() + (limit_s if supervisor is not None else 0.0)
    for role in (Role.LISTEN, Role.WORK):
        while (holder := processes.holder(role, folder, own)) is not None and holder.lives:
            if time.monotonic() >= deadline:
                _refuse(data_folder, holder)
            time.sleep(_LOOK_AGAIN_S)


def holders(processes: Processes, data_folder: Path) -> tuple[Holder, ...]:
    """The processes of the node of `data_folder` on this machine, also those that ended without saying so.

    Raises:
        StoreUnavailable: the ledger is unavailable.
    """
    own, folder = WorkerName.own(), _name(data_folder)
    return tuple(holder for role in Role if (holder := processes.holder(role, folder, own)) is not None)


def is_served(processes: Processes, data_folder: Path) -> bool:
    """Whether a living supervisor has the node of `data_folder`.

    Raises:
        StoreUnavailable: the ledger is unavailable.
    """
    supervisor = processes.holder(Role.SERVE, _name(data_folder), WorkerName.own())
    return supervisor is not None and supervisor.lives


def _refuse(data_folder: Path, holder: Holder | None) -> None:
    if holder is not None:
        raise NodeInUse(f"{data_folder} is in use by {holder}")


def _name(data_folder: Path) -> str:
    return str(data_folder.resolve())
