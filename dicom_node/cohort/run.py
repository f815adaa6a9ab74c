"""``dicom-node cohort run``: a client of a node that pulls the series of a cohort and collects their rows.

The node does the work. Pulled instances are stored as received ones: C-GET and files by this process with the
listener's own code (:mod:`dicom_node.cohort.intake`), C-MOVE by the listener. A revision is complete once it has as
many instances as the archive counts, and is routed by the order of the cohort instead of the rules: one model, at a
priority below that of any rule, so that a clinical series waits at most for the running job. When the job has ended,
its report is read back into rows. If the node had the series already, its own job is used, or the missing one added.

Every fact is in the ledger (:mod:`dicom_node.store.cohorts`) and every row in a file named by its series, so the same
command continues after any kill: interrupted pulls are repeated, which adds no duplicates, and completed pulls are in
the queue. Two runs of one data set exclude each other by a lock on its folder, which the kernel releases with the
process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import structlog

from dicom_node.app.stores import open_store
from dicom_node.app.supervise import Child
from dicom_node.cohort.collecting import Collecting
from dicom_node.cohort.intake import Entrance, Intake
from dicom_node.cohort.pseudonym import read_key
from dicom_node.cohort.reports import REPORT_SOP_CLASSES, ReportIntake
from dicom_node.cohort.sources import Wanted, source_of
from dicom_node.cohort.table import CohortTable, read_rows
from dicom_node.errors import ConfigurationError, Disposition, NetworkError, StoreUnavailable
from dicom_node.standard.uids import CT_SOP_CLASSES
from dicom_node.store.clock import now_utc
from dicom_node.store.disk import DiskWatermark
from dicom_node.store.states import JobState, PullState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from dicom_node.cohort.definition import Definition
    from dicom_node.cohort.sources import Source
    from dicom_node.settings import Settings
    from dicom_node.store.cohorts import Cohorts, CohortSeries
    from dicom_node.store.ledger import Ledger

_LOOK_AGAIN_S, _COLLECT_EVERY_S = 0.2, 1.0
_ARCHIVE_PAUSE_S = 60.0
"""Delay before an unreachable archive is tried again, without a limit on the number of attempts."""
_PULL_AGAIN = timedelta(seconds=30)
_STOP_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a cohort: ``done + refused + failed + waiting`` is ``selected``.

    ``reason``: why nothing is being pulled at the moment; "" if something is, or if there is nothing left to pull.
    """

    selected: int
    done: int
    refused: int
    failed: int
    waiting: int
    reason: str = ""

    @property
    def ended(self) -> int:
        """Series that are finished."""
        return self.done + self.refused + self.failed


def progress_of(cohorts: Cohorts, name: str, reason: str = "") -> Progress:
    """The counts in the ledger."""
    counts = cohorts.counts(name)
    done, refused, failed = (counts[state] for state in (PullState.DONE, PullState.REFUSED, PullState.FAILED))
    selected = sum(counts.values())
    return Progress(selected, done, refused, failed, selected - done - refused - failed, reason)


def run_cohort(
    settings: Settings,
    definition: Definition,
    *,
    config: Path | None,
    retry: bool,
    on_progress: Callable[[Progress], None],
) -> dict[str, Any]:
    """Run the cohort until every series is done, refused or failed; returns the summary.

    ``config``: start a work process with this configuration file, for a machine on which no node runs. ``retry``: pull
    failed series again.

    Raises:
        ConfigurationError: key, data set, list or cohort can't be used, or another run has the data set.
        NetworkError: the archive is unreachable or refuses the query, before anything was selected.
        StoreUnavailable: the ledger is unavailable.
    """
    pseudonyms = read_key(definition.key_file)
    table = CohortTable(definition.data_set)
    table.open_for(pseudonyms, definition.dates)
    started = time.monotonic()
    with _alone(definition.data_set), _node(settings, config) as (spool, ledger):
        table.remove_leftovers()
        disk = DiskWatermark(settings.spool_folder, settings.operate, settings.receive.minimum_free_disk_bytes)
        retrieves_as = definition.retrieves_as(settings.node.ae_title)
        entrance = Entrance(spool, ledger.arrivals, disk, ledger.cohorts.stored_count, retrieves_as)
        largest_bytes = settings.receive.maximum_instance_bytes
        wanted = Wanted("CT", CT_SOP_CLASSES, partial(Intake, entrance), largest_bytes)
        if definition.stored_reports:
            wanted = replace(
                wanted,
                modality="SR",
                sop_classes=REPORT_SOP_CLASSES,
                open=lambda *_: ReportIntake(table, pseudonyms, definition.dates),
            )
        source = source_of(definition, settings.node.ae_title, wanted)
        if not ledger.cohorts.begin(definition.order, definition.digest(), retrieves_as):
            ledger.cohorts.select(definition.name, source.select())
            ledger.cohorts.end_selection(definition.name, now_utc())
        if retry:
            _retry(ledger, definition.name)
        collecting = Collecting(definition.name, ledger.cohorts, spool, table, pseudonyms, definition.dates)
        with Pulling(definition, source, ledger.cohorts, settings.spool_folder, collecting) as pulling:
            _until_ended(definition.name, ledger.cohorts, pulling, collecting, on_progress)
        final = progress_of(ledger.cohorts, definition.name)
    return {
        "cohort": definition.name,
        "selected": final.selected,
        "done": final.done,
        "refused": final.refused,
        "failed": final.failed,
        "waiting": final.waiting,
        "rows": read_rows(definition.data_set).num_rows,
        "data_set": str(definition.data_set),
        "seconds": round(time.monotonic() - started, 3),
    }


def _retry(ledger: Ledger, name: str) -> None:
    """Pull the failed series again, and run their failed jobs again."""
    for series in ledger.cohorts.in_state(name, PullState.FAILED):
        answers = ledger.cohorts.answers(name, series.series_instance_uid, now_utc())
        for answer in answers.jobs if answers else ():
            if answer.state is JobState.FAILED:
                ledger.jobs.retry(answer.job_id, now_utc())
    ledger.cohorts.retry(name)


def _until_ended(
    name: str,
    cohorts: Cohorts,
    pulling: Pulling,
    collecting: Collecting,
    on_progress: Callable[[Progress], None],
) -> None:
    log = structlog.get_logger()
    pause = threading.Event()
    collect_at = 0.0
    while True:
        try:
            if time.monotonic() >= collect_at:
                for series in cohorts.in_state(name, PullState.PULLED):
                    collecting.collect(series)
                collect_at = time.monotonic() + _COLLECT_EVERY_S
            reason = pulling.start_due()
            progress = progress_of(cohorts, name, reason)
        except StoreUnavailable as error:
            log.warning("cohort.store_unavailable", reason=str(error))
            pause.wait(1.0)
            continue
        on_progress(progress)
        if not progress.waiting:
            return
        pause.wait(_LOOK_AGAIN_S)


class Pulling:
    """Pulls series within the limits of a cohort; a context manager that waits for running pulls."""

    def __init__(
        self, definition: Definition, source: Source, cohorts: Cohorts, spool_folder: Path, collecting: Collecting
    ) -> None:
        self._name, self._limits = definition.name, definition.limits
        self._is_done_when_pulled = definition.stored_reports
        self._source = source
        self._cohorts = cohorts
        self._spool_folder = spool_folder
        self._collecting = collecting
        self._threads = ThreadPoolExecutor(definition.limits.at_once, thread_name_prefix="pull")
        self._under_way: dict[int, Future[None]] = {}
        self._next_start = self._archive_back = 0.0
        self._log = structlog.get_logger()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def start_due(self) -> str:
        """Start as many pulls as the limits allow; returns why none is running, "" if one is or none is left."""
        for key, future in list(self._under_way.items()):
            if future.done():
                del self._under_way[key]
                future.result()
        counts = self._cohorts.counts(self._name)
        room = min(
            self._limits.at_once - len(self._under_way),
            self._limits.in_queue - counts[PullState.PULLED] - len(self._under_way),
        )
        reason = self._why_not()
        if room > 0 and not reason:
            due = self._cohorts.to_pull(self._name, now_utc(), self._limits.at_once + room)
            for series in [each for each in due if each.id not in self._under_way][:room]:
                self._under_way[series.id] = self._threads.submit(self._pull, series)
                self._next_start = time.monotonic() + 3600 / (self._limits.series_per_hour or sys.maxsize)
                if self._why_not():
                    break
        to_pull = counts[PullState.SELECTED] + counts[PullState.PULLING]
        return reason if to_pull and not self._under_way else ""

    def _why_not(self) -> str:
        if not self._limits.is_open_at(datetime.now().astimezone()):
            return f"series are pulled only from {self._limits.hours}"
        if shutil.disk_usage(self._spool_folder).free < self._limits.free_disk_bytes:
            return f"less than {self._limits.free_disk_gib:g} GiB is free on the spool's disk"
        if time.monotonic() < self._archive_back:
            return "the archive is unreachable; it is tried again in a minute"
        if time.monotonic() < self._next_start:
            return f"the limit of {self._limits.series_per_hour:g} series per hour is reached"
        return ""

    def _pull(self, series: CohortSeries) -> None:
        """SELECTED or PULLING -> PULLED, or a later attempt, or FAILED."""
        self._cohorts.pull_started(series, now_utc())
        try:
            pulled = self._source.pull(series.selected)
        except OSError as error:  # of the disk on which what comes is kept for a moment: no fault of the series
            reason = f"pulled images can't be stored: {error.strerror or type(error).__name__}"
            self._log.warning("cohort.store_unavailable", reason=reason)
            self._cohorts.pull_again(series, reason, now_utc() + _PULL_AGAIN, counts=False)
            return
        except NetworkError as error:
            self._log.warning("cohort.archive", cohort=self._name, reason=str(error))
            if error.disposition is Disposition.RETRY:  # the archive is unreachable: not counted against the series
                self._archive_back = time.monotonic() + _ARCHIVE_PAUSE_S
                self._cohorts.pull_again(series, str(error), now_utc() + _PULL_AGAIN, counts=False)
            else:
                self._again_or_failed(series, str(error))
            return
        expected = series.expected_count
        if pulled.stored and (expected is None or pulled.stored >= expected):
            if self._is_done_when_pulled:
                self._cohorts.ended(series, PullState.DONE, "", now_utc())
            else:
                self._cohorts.pulled(series)
            return
        missing = f"{pulled.stored} of {'an unknown number of' if expected is None else expected} instances arrived"
        reason = f"{missing} ({pulled.refused})" if pulled.refused else missing
        self._again_or_failed(series, reason)

    def _again_or_failed(self, series: CohortSeries, reason: str) -> None:
        if series.attempts + 1 < self._limits.attempts:
            self._cohorts.pull_again(series, reason, now_utc() + _PULL_AGAIN, counts=True)
            return
        self._collecting.explain(series, PullState.FAILED, reason)
        self._cohorts.ended(series, PullState.FAILED, reason, now_utc())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the data set; the kernel releases the lock when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another `cohort run` is writing {folder}") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _node(settings: Settings, config: Path | None) -> Iterator[tuple[Any, Ledger]]:
    """Spool and ledger, and a work process if ``config`` is given."""
    spool, ledger = open_store(settings)
    try:
        if config is None:
            yield spool, ledger
            return
        with _work(settings, config):
            yield spool, ledger
    finally:
        ledger.close()


@contextmanager
def _work(settings: Settings, config: Path) -> Iterator[None]:
    """A work process next to this one, restarted when it dies; its log goes to a file in the data folder."""
    command = [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "work"]
    ended = threading.Event()
    with (settings.node.data_folder / "cohort-work.log").open("ab") as log:
        child = Child("work", command, output=log)

        def watch() -> None:
            child.start()
            while not ended.wait(_LOOK_AGAIN_S):
                child.watch()
            child.terminate()
            child.join(_STOP_LIMIT_S)

        watching = threading.Thread(target=watch, name="work", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
