"""Composition root of ``dicom-node work``: builds from the settings everything that runs after the spool.

It shares only the ledger and the spool with ``listening.py``, so each process can be killed and started independently;
``supervise.py`` starts and watches both.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from dicom_node.app.alarming import ALARM_LOOK_S, alarming
from dicom_node.app.roles import is_served, role_held
from dicom_node.app.signals import stop_on_signals
from dicom_node.app.stores import open_store
from dicom_node.deliver.abilities import Abilities
from dicom_node.errors import StoreUnavailable
from dicom_node.operate.housekeeping import purge_expired
from dicom_node.operate.ledger_check import check_ledger
from dicom_node.operate.nightly import Nightly
from dicom_node.operate.schedule import Schedule, Sweep
from dicom_node.pipeline.completing import Completing
from dicom_node.pipeline.delivering import Asking, Delivering
from dicom_node.pipeline.job import Means
from dicom_node.pipeline.notices import Notices
from dicom_node.pipeline.outcomes import Settling
from dicom_node.pipeline.places import Places
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.pipeline.reusing import Reusing
from dicom_node.pipeline.routing import Routing
from dicom_node.pipeline.running import Running
from dicom_node.reading.reader import ImageReader
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.route.rules_file import load_rules
from dicom_node.store.clock import Moment
from dicom_node.store.disk import DiskWatermark
from dicom_node.store.processes import Role
from dicom_node.store.workers import WorkerName
from dicom_node.work.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicom_node.operate.ledger_check import LedgerReport
    from dicom_node.route.rules import Rules
    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool

    MoreSweeps = Callable[[Settings, Ledger, WorkerPool, threading.Event], Sequence[Sweep]]

_IDLE_PAUSE_S = 0.3
_RECOVERY_SWEEP_S = 10.0
_HOUSEKEEPING_SWEEP_S = 60.0
_ADOPTION_SWEEP_S = 300.0
_UNCLAIMED_AGE_S = 60.0
_NIGHTLY_LOOK_S = 60.0
_ADOPTION_AT_START_S = (0.0, _UNCLAIMED_AGE_S)
"""Again when what was left by a crash right before the start is old enough."""
_LEDGER_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The parts of the work process, connected to one ledger and one spool."""

    completing: Completing
    routing: Routing
    running: Running
    delivering: Delivering


def open_pipeline(
    settings: Settings,
    ledger: Ledger,
    spool: Spool,
    rules: Rules,
    workers: WorkerPool,
    reader: ImageReader | None = None,
) -> Pipeline:
    """Connect the parts of the work process; each gets only the settings and the ledger access that it needs."""
    node, worker = settings.node, WorkerName.own()
    abilities = Abilities(node.ae_title)
    results = ResultStore(ledger.jobs, ledger.results, spool, Installation(node.station_name, ledger.device_uid()))
    reader = reader or ImageReader()
    notices = Notices(spool, reader, results)
    asking = Asking(settings.destinations, abilities)
    reusing = Reusing(ledger.results, spool, workers)
    means = Means(settings.models, spool, reader, workers, Places(), reusing, asking, results)
    settling = Settling(ledger.jobs, spool, notices)
    return Pipeline(
        completing=Completing(ledger.arrivals, settings.completion, settings.sources, node.ae_title),
        routing=Routing(ledger.routing, spool, reader, rules, notices, settings.work.attempts),
        running=Running(ledger.jobs, means, settling, worker, settings.work.attempts),
        delivering=Delivering(
            ledger.deliveries,
            ledger.elapsed,
            settings.destinations,
            settings.delivery,
            abilities,
            node.ae_title,
            worker,
            ledger.jobs,
            settings.work.attempts,
        ),
    )


def run_work(settings: Settings, more_sweeps: MoreSweeps | None = None) -> None:
    """Run everything after the spool until SIGTERM or SIGINT; ``more_sweeps`` are made from the same objects.

    Raises:
        NodeInUse: another process works on this data folder.
    """
    stop = stop_on_signals()
    spool, ledger = open_store(settings)
    with closing(ledger), role_held(ledger.processes, Role.WORK, settings.node.data_folder, stop):
        _work(settings, spool, ledger, more_sweeps, stop)


def _work(
    settings: Settings, spool: Spool, ledger: Ledger, more_sweeps: MoreSweeps | None, stop: threading.Event
) -> None:
    rules = load_rules(settings.rules_file, settings)
    workers = WorkerPool(settings.models, settings.work)
    reader = ImageReader()
    reader.prepare()
    pipeline = open_pipeline(settings, ledger, spool, rules, workers, reader)
    pipeline.running.recover_jobs()
    pipeline.delivering.recover()
    more = more_sweeps(settings, ledger, workers, stop) if more_sweeps else []
    schedule = Schedule([*_sweeps(settings, ledger, spool, pipeline, stop), *more])
    schedule.start()
    structlog.get_logger().info(
        "work.started", models=sorted(settings.models), destinations=sorted(settings.destinations)
    )

    def end_job() -> None:
        stop.wait()
        pipeline.running.stop()

    def preload() -> None:
        for name in settings.work.preload:
            workers.load(name)

    threading.Thread(target=end_job, name="stop", daemon=True).start()
    threading.Thread(target=preload, name="preload", daemon=True).start()
    try:
        _run_jobs(pipeline.running, stop, settings.work.jobs_at_once)
    finally:
        schedule.stop()
        workers.close()


def _sweeps(settings: Settings, ledger: Ledger, spool: Spool, pipeline: Pipeline, stop: threading.Event) -> list[Sweep]:
    every = settings.operate.sweep_s
    watermark = DiskWatermark(settings.node.data_folder, settings.operate)

    def complete_and_route() -> None:
        pipeline.completing.complete_due()
        pipeline.routing.route_complete()

    def deliver_to(name: str) -> Callable[[], None]:
        return lambda: pipeline.delivering.deliver(name)

    def adopt() -> None:
        adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, _UNCLAIMED_AGE_S)

    def recover() -> None:
        pipeline.running.recover_jobs()
        pipeline.delivering.recover()

    def keep_house() -> None:
        purge_expired(ledger, spool, settings.operate, Moment.now())
        watermark.look()

    def check() -> LedgerReport:
        return check_ledger(ledger.consistency, spool, is_stopping=stop.is_set)

    alarms = alarming(settings, ledger)

    def look_for_alarms() -> None:
        if not is_served(ledger.processes, settings.node.data_folder):  # the supervisor looks, whatever happens to us
            alarms.look()

    def keep(report: LedgerReport) -> None:
        ledger.alarms.record_check(report.violations)

    return [
        Sweep("completion", every, complete_and_route),
        Sweep("recovery", _RECOVERY_SWEEP_S, recover),
        Sweep("adoption", _ADOPTION_SWEEP_S, adopt, first_pauses_s=_ADOPTION_AT_START_S),
        Sweep("housekeeping", _HOUSEKEEPING_SWEEP_S, keep_house),
        Sweep("alarms", ALARM_LOOK_S, look_for_alarms),
        *_nightly(settings.operate.ledger_check, check, keep),
        *(Sweep(f"delivery to {name}", every, deliver_to(name)) for name in settings.destinations),
    ]


def _nightly(at: str, check: Callable[[], LedgerReport], keep: Callable[[LedgerReport], None]) -> list[Sweep]:
    return [] if at == "off" else [Sweep("ledger check", _NIGHTLY_LOOK_S, Nightly(at, check, keep).check_due)]


def _run_jobs(running: Running, stop: threading.Event, at_once: int) -> None:
    """Run one thread per concurrent job; an exception in one of them stops all and is raised here."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="job") as runners:
        threads = [runners.submit(_run_one_after_another, running, stop) for _ in range(at_once)]
        wait(threads, return_when=FIRST_EXCEPTION)
        stop.set()
    for thread in threads:
        thread.result()


def _run_one_after_another(running: Running, stop: threading.Event) -> None:
    log = structlog.get_logger()
    while not stop.is_set():
        try:
            running.run_next_job(_IDLE_PAUSE_S)
        except StoreUnavailable as error:
            log.warning("ledger.unavailable", reason=str(error))
            stop.wait(_LEDGER_PAUSE_S)
