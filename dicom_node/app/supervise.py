"""``dicom-node serve``: start the listener and the work process, restart either if it dies, stop both; raise alarms."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import structlog

from dicom_node.app.alarming import ALARM_LOOK_S, alarming
from dicom_node.app.roles import refuse_if_in_use, role_held
from dicom_node.app.signals import stop_on_signals
from dicom_node.app.stores import open_store
from dicom_node.errors import StoreUnavailable
from dicom_node.operate.schedule import Schedule, Sweep
from dicom_node.route.rules_file import load_rules
from dicom_node.store.clock import now_utc
from dicom_node.store.processes import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger

_WATCH_S = 0.2
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_SOUND_AFTER_S = 60.0
"""After this long without a failure, the restart pause starts at its minimum again."""
_STOP_LIMIT_S = 15.0


def serve(settings: Settings, config_file: Path) -> int:
    """Start the listener and the work process, restart either if it dies, stop both on SIGTERM or SIGINT.

    Returns the exit code: 0 after a requested stop.

    Raises:
        ConfigurationError: rules or ledger can't be used; nothing was started.
        NodeInUse: another node, or a process of it, runs on this data folder; nothing was started.
    """
    stop = stop_on_signals()
    # fail immediately and with the reason, instead of in a child that is restarted again and again
    load_rules(settings.rules_file, settings)
    _, ledger = open_store(settings)
    folder = settings.node.data_folder
    with closing(ledger):
        refuse_if_in_use(ledger.processes, folder, _STOP_LIMIT_S)
        with role_held(ledger.processes, Role.SERVE, folder, stop):
            if not settings.sources:
                structlog.get_logger().warning(
                    "sources.none", reason="no source is configured: no peer may send to this node"
                )
            schedule = Schedule([Sweep("alarms", ALARM_LOOK_S, alarming(settings, ledger).look)])
            schedule.start()
            try:
                _run_children(config_file, stop, _recorder(ledger))
            finally:
                schedule.stop()
    return 0


def _recorder(ledger: Ledger) -> Callable[[str], None]:
    """Records deaths for the alarm about them, in a thread: a ledger that is away must not delay a restart."""

    def record(process: str, at: datetime) -> None:
        with suppress(StoreUnavailable):  # the log has the death
            ledger.alarms.record_death(process, at)

    def record_in_a_thread(process: str) -> None:
        with suppress(RuntimeError):  # no thread can be started now; the log has the death
            threading.Thread(target=record, args=(process, now_utc()), daemon=True).start()

    return record_in_a_thread


def _run_children(config_file: Path, stop: threading.Event, died: Callable[[str], None]) -> None:
    program = [sys.executable, "-m", "dicom_node.cli", "--config", str(config_file)]
    children = [Child(name, [*program, name], died=died) for name in (Role.LISTEN, Role.WORK)]
    for child in children:
        child.start()
    while not stop.wait(_WATCH_S):
        for child in children:
            child.watch()
    for child in children:
        child.terminate()
    for child in children:
        child.join(_STOP_LIMIT_S)


class Child:
    """One process of the node, restarted when it dies.

    The pause before a restart doubles from 1 s to 30 s, so that a process that dies immediately can't fill the log;
    once the process has run for a minute, it starts at 1 s again. ``clock`` is a monotonic clock in seconds. ``output``
    gets what the process writes to stdout; None: our own stdout. ``died`` is called with its name after each death.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        output: BinaryIO | None = None,
        died: Callable[[str], None] | None = None,
    ) -> None:
        self._name = name
        self._command = command
        self._clock = clock
        self._output = output
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._start_at = 0.0
        self._started = 0.0

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process, even if it died and this has not been noticed yet; None while a restart is pending."""
        return self._process

    def start(self) -> None:
        """Start the process now."""
        self._process = subprocess.Popen(
            self._command,
            stdout=self._output,
            start_new_session=True,
            preexec_fn=_stop_with_watcher,  # noqa: PLW1509 - it takes no lock that a thread of ours may hold
        )
        self._started = self._clock()
        structlog.get_logger().info("process.started", name=self._name, pid=self._process.pid)

    def watch(self) -> None:
        """Notice that the process died, or restart it once the pause is over; never waits."""
        if self._process is None:
            if self._clock() >= self._start_at:
                self._start_again()
            return
        code = self._process.poll()
        if code is None:
            return
        if self._clock() - self._started > _SOUND_AFTER_S:
            self._deaths = 0
        pause = self._pause()
        structlog.get_logger().error("process.died", name=self._name, exit_code=code, restart_in_s=pause)
        self._process = None
        if self._died is not None:
            self._died(self._name)

    def _start_again(self) -> None:
        """A machine without memory or places for processes must not end the supervisor, and with it the other child."""
        try:
            self.start()
        except (OSError, subprocess.SubprocessError) as error:
            name = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
            structlog.get_logger().error("process.not_started", name=self._name, error=name, restart_in_s=self._pause())

    def _pause(self) -> float:
        """Begin the pause before the next start; its length in s."""
        pause: float = min(_FIRST_PAUSE_S * 2**self._deaths, _LONGEST_PAUSE_S)
        self._deaths += 1
        self._start_at = self._clock() + pause
        return pause

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self._process is not None:
            self._process.terminate()

    def join(self, limit_s: float) -> None:
        """Wait for the process to end; after ``limit_s`` kill it and everything that it started."""
        if self._process is None:
            return
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _stop_with_watcher() -> None:
    """Runs in the child before its program: ask Linux to send it SIGTERM when the supervisor dies for any reason.

    Otherwise the listener of a killed supervisor would continue to occupy the port.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
