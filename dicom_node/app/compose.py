"""Composition root: settings become objects, objects are started and stopped.

Three processes: ``serve`` watches the other two; ``listen`` is the listener and nothing else (one busy Python thread
beside it takes pynetdicom from 200 to 4 instances a second); ``work`` is everything after the spool. They meet in the
ledger and the spool alone, so each may be killed and started on its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dicom_node.errors import ConfigurationError, StoreUnavailable
from dicom_node.operate.housekeeping import purge_expired
from dicom_node.operate.schedule import Schedule, Sweep
from dicom_node.pipeline import Pipeline, now_utc
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.receive.scp import Listener
from dicom_node.route.rules import decide, explain, load_rules
from dicom_node.store.disk import DiskWatermark
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool, read_headers, read_series_folder
from dicom_node.types import Series
from dicom_node.work.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.settings import Settings

_IDLE_PAUSE_S = 0.3
_RECOVERY_SWEEP_S = 10.0
_HOUSEKEEPING_SWEEP_S = 60.0
_ADOPTION_SWEEP_S = 300.0
_UNCLAIMED_AGE_S = 60.0
_RESTART_PAUSE_S = 1.0
_STOP_LIMIT_S = 15.0


def open_store(settings: Settings) -> tuple[Spool, Ledger]:
    """The spool and the ledger of this node; folders are made (mode 0700) and the schema is brought up to date.

    Raises:
        ConfigurationError: the data folder can't be made or written, the ledger's URL or schema is not usable.
        StoreUnavailable: spool or ledger are away.
    """
    folder = settings.node.data_folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.ledger_url is None:
            settings.ledger_file.touch(mode=0o600)  # SQLite would make it readable for all
    except OSError as error:
        raise ConfigurationError(f"node.data_folder {folder} can't be used: {error.strerror}") from error
    spool = Spool(settings.spool_folder)
    return spool, Ledger(settings.effective_ledger_url, spool)


def run_listener(settings: Settings) -> None:
    """The listener, until SIGTERM or SIGINT."""
    stop = _stop_on_signals()
    spool, ledger = open_store(settings)
    ledger.arrivals.close_interrupted_associations(now_utc())
    listener = Listener(settings, spool, ledger.arrivals)
    try:
        listener.start()
    except OSError as error:
        place = f"{settings.node.bind_address}:{settings.node.port}"
        raise ConfigurationError(f"can't listen on {place}: {os.strerror(error.errno or 0)}") from error
    stop.wait()
    listener.stop()
    ledger.close()


def run_work(settings: Settings) -> None:
    """Everything after the spool, until SIGTERM or SIGINT."""
    stop = _stop_on_signals()
    spool, ledger = open_store(settings)
    rules = load_rules(settings.rules_file, settings)
    workers = WorkerPool(settings.models, settings.work)
    pipeline = Pipeline(settings, ledger, spool, rules, workers, ledger.device_uid())
    pipeline.recover_jobs(at_start=True)
    schedule = Schedule(_sweeps(settings, ledger, spool, pipeline))
    schedule.start()
    structlog.get_logger().info(
        "work.started", models=sorted(settings.models), destinations=sorted(settings.destinations)
    )

    def end_job() -> None:
        stop.wait()
        pipeline.stop()

    def preload() -> None:
        for name in settings.work.preload:
            workers.load(name)

    threading.Thread(target=end_job, name="stop", daemon=True).start()
    threading.Thread(target=preload, name="preload", daemon=True).start()
    try:
        _run_jobs(pipeline, stop, settings.work.jobs_at_once)
    finally:
        schedule.stop()
        workers.close()
        ledger.close()


def _sweeps(settings: Settings, ledger: Ledger, spool: Spool, pipeline: Pipeline) -> list[Sweep]:
    every = settings.operate.sweep_s
    watermark = DiskWatermark(settings.node.data_folder, settings.operate)

    def complete_and_route() -> None:
        pipeline.complete_series()
        pipeline.route_series()

    def deliver_to(name: str) -> Callable[[], None]:
        return lambda: pipeline.deliver(name)

    def adopt() -> None:
        adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims(), _UNCLAIMED_AGE_S)

    def keep_house() -> None:
        purge_expired(ledger, spool, settings.operate, now_utc())
        watermark.look()

    return [
        Sweep("completion", every, complete_and_route),
        Sweep("recovery", _RECOVERY_SWEEP_S, pipeline.recover_jobs),
        Sweep("adoption", _ADOPTION_SWEEP_S, adopt),
        Sweep("housekeeping", _HOUSEKEEPING_SWEEP_S, keep_house),
        *(Sweep(f"delivery to {name}", every, deliver_to(name)) for name in settings.destinations),
    ]


def _run_jobs(pipeline: Pipeline, stop: threading.Event, at_once: int) -> None:
    """As many threads as jobs may be under way; a fault in one of them stops all and is raised here."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="job") as runners:
        running = [runners.submit(_run_one_after_another, pipeline, stop) for _ in range(at_once)]
        wait(running, return_when=FIRST_EXCEPTION)
        stop.set()
    for runner in running:
        runner.result()


def _run_one_after_another(pipeline: Pipeline, stop: threading.Event) -> None:
    log = structlog.get_logger()
    while not stop.is_set():
        try:
            pipeline.run_next_job(_IDLE_PAUSE_S)
        except StoreUnavailable as error:
            log.warning("ledger.unavailable", reason=str(error))
            stop.wait(_RESTART_PAUSE_S)


def serve(settings: Settings, config_file: Path) -> int:
    """Start the listener and the work process, restart whichever dies, stop both on SIGTERM or SIGINT.

    Returns the exit code: 0 after a stop that was asked for.
    """
    stop = _stop_on_signals()
    _check_before_start(settings)
    children = {name: _Child(name, config_file) for name in ("listen", "work")}
    for child in children.values():
        child.start()
    while not stop.wait(0.2):
        for child in children.values():
            child.watch()
    for child in children.values():
        child.terminate()
    for child in children.values():
        child.join()
    return 0


def _check_before_start(settings: Settings) -> None:
    """Fail at once, with the reason, rather than in a child that is restarted for ever."""
    load_rules(settings.rules_file, settings)
    _, ledger = open_store(settings)
    ledger.close()
    if not settings.sources:
        structlog.get_logger().warning("sources.none", reason="no source is configured: nobody may send to this node")


class _Child:
    """One process of the node, started again when it dies, with a growing pause so that a broken one can't spin."""

    def __init__(self, name: str, config_file: Path) -> None:
        self._name = name
        self._command = [sys.executable, "-m", "dicom_node.cli", "--config", str(config_file), name]
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._start_at = 0.0
        self._started = 0.0

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            start_new_session=True,
            preexec_fn=_stop_with_watcher,  # noqa: PLW1509 - the watcher has one thread
        )
        self._started = time.monotonic()
        structlog.get_logger().info("process.started", name=self._name, pid=self._process.pid)

    def watch(self) -> None:
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            return
        if time.monotonic() - self._started > 60:  # noqa: PLR2004 - it lived for a minute: a new story
            self._deaths = 0
        pause = min(_RESTART_PAUSE_S * 2**self._deaths, 30.0)
        structlog.get_logger().error("process.died", name=self._name, exit_code=code, restart_in_s=pause)
        self._deaths += 1
        self._process = None
        self._start_at = time.monotonic() + pause

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def join(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _stop_with_watcher() -> None:
    """In a child before it runs: Linux shall send it SIGTERM when its watcher dies, however that dies.

    Else a killed watcher would leave a listener behind that keeps the port from the next one.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def explain_rules(settings: Settings, series: str) -> list[dict[str, Any]]:
    """Why ``series`` would or would not run: a folder of DICOM files, or the UID of a series in the spool.

    Raises:
        ConfigurationError: it is neither a folder with DICOM files nor known to the ledger.
    """
    rules = load_rules(settings.rules_file, settings)
    folder = Path(series)
    found = read_series_folder(folder) if folder.is_dir() else (_received_series(settings, series),)
    if not found:
        raise ConfigurationError(f"{folder} holds no DICOM instance of any series")
    return [
        {
            "series_instance_uid": one.series_instance_uid,
            "instances": len(one.instances),
            "conditions": [asdict(row) for row in explain(one, rules)],
            "decisions": [
                {
                    "rule": decision.rule,
                    "model": decision.model,
                    "destinations": list(decision.destinations),
                    "reason": decision.reason,
                }
                for decision in decide(one, rules)
            ],
        }
        for one in found
    ]


def _received_series(settings: Settings, series_instance_uid: str) -> Series:
    spool, ledger = open_store(settings)
    try:
        names, sending_ae = ledger.arrivals.current_instances(series_instance_uid)
    finally:
        ledger.close()
    if not names:
        raise ConfigurationError(f"{series_instance_uid} is neither a folder nor a series that this node keeps")
    instances = read_headers(spool.path(name) for name in names)
    study_instance_uid = str(instances[0].header.get("StudyInstanceUID", ""))
    return Series(series_instance_uid, study_instance_uid, instances, sending_ae)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
