"""The only file that knows the order of the rooms: receive, route, reconstruct, segment, encode, deliver.

Each method does one step for whatever is due and leaves a durable fact behind, so that a process that dies anywhere is
continued by the next one. ``_settle`` is the one place where an outcome becomes a job state.

Several jobs are under way at once, each in a thread that calls :meth:`Pipeline.run_next_job`::

    door ─ claim ▸ read ▸ reconstruct ▸ prepare ─▶ device ─ segment ─▶ desk ─ measure ▸ encode ▸ store

In each place is one job. The door is left when the device is reached, so that no more than one volume waits for it.
A job that is tried again runs alone: whatever it did to the first attempt, it does to nobody else's.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from dicom_node.deliver import retry
from dicom_node.deliver.abilities import Abilities
from dicom_node.deliver.scu import send
from dicom_node.encode.run import encode_in_turn, encode_notice
from dicom_node.errors import DicomNodeError, Disposition, SegmentationImpossible, WorkerLost
from dicom_node.receive import completion
from dicom_node.receive.count import expected_count
from dicom_node.reconstruct import check_extent, labels_on_source, reconstruct
from dicom_node.route.rules import decide
from dicom_node.standard.files import read_headers
from dicom_node.types import Decision, ResultContext, ResultKind, Series
from dicom_node.work.gate import Gate
from dicom_node.work.models import minimum_extent
from inference.measure import measure
from inference.types import InvalidValueError, Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dicom_node.route.rules import Rules
    from dicom_node.settings import Settings, SourceSettings
    from dicom_node.store.arrivals import OpenRevision
    from dicom_node.store.deliveries import DueDelivery
    from dicom_node.store.jobs import ClaimedJob
    from dicom_node.store.ledger import Ledger
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.types import DeliveryOutcome, Reconstruction, ResultInstance, ResultRequest
    from dicom_node.work.gate import Pass
    from dicom_node.work.pool import WorkerPool
    from inference.types import ModelIdentity

_LEASE = timedelta(seconds=60)
_LEASE_RENEWAL_S = 1.0
_RETRY_PAUSE_S = 5.0
DELIVERIES_PER_ASSOCIATION = 200


class Pipeline:
    """The steps of the node over one ledger, one spool and one set of rules."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        rules: Rules,
        workers: WorkerPool,
        device_uid: str,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._rules = rules
        self._workers = workers
        self._device_uid = device_uid
        self._sources: dict[str, SourceSettings] = {source.ae_title.strip(): source for source in settings.sources}
        self._worker_name = f"{settings.node.station_name}/local"
        self._stopping = threading.Event()
        self._door = Gate()
        self._desk = Gate()
        self._under_way = _Count()
        self._abilities = Abilities(settings.node.ae_title)
        self._log = structlog.get_logger()

    # ---- receive: is the series whole?

    def complete_series(self) -> None:
        """Look at every series that has news or whose time has come, and close those that are whole."""
        for revision in self._ledger.arrivals.due_revisions(now_utc()):
            try:
                self._complete(self._ask_sender(revision))
            except DicomNodeError as error:  # one series that can't be written shall not hold up the others
                self._log.warning("series.not_completed", series=revision.series_instance_uid, reason=str(error))

    def _complete(self, asked: OpenRevision) -> None:
        verdict = completion.decide(asked.evidence, now_utc(), self._settings.completion)
        if verdict.complete:
            if self._ledger.arrivals.complete(asked, verdict.reason, now_utc()):
                self._log.info(
                    "series.complete",
                    series=asked.series_instance_uid,
                    revision=asked.revision,
                    instances=asked.evidence.instance_count,
                    reason=verdict.reason,
                )
        elif verdict.look_again_at is not None:
            self._ledger.arrivals.postpone(asked, verdict.look_again_at)

    def _ask_sender(self, revision: OpenRevision) -> OpenRevision:
        source = self._sources.get(revision.sending_ae)
        if source is None or source.count_host is None or revision.count_asked or revision.evidence.open_associations:
            return revision
        count = expected_count(
            source, self._settings.node.ae_title, revision.study_instance_uid, revision.series_instance_uid
        )
        self._ledger.arrivals.set_expected_count(revision, count)
        return revision.with_expected_count(count)

    # ---- route: which model, where to?

    def route_series(self) -> None:
        """Put every whole series before the rules."""
        for revision in self._ledger.routing.due_revisions():
            if self._ledger.routing.content_already_routed(revision):
                self._ledger.routing.skip(revision)
                self._log.info("series.unchanged", series=revision.series_instance_uid, revision=revision.revision)
                continue
            decisions, reason = self._decide(revision)
            notices = self._refusal_notices(revision, decisions)
            jobs = self._ledger.routing.route(revision, decisions, reason, now_utc(), notices)
            if not jobs:  # another process routed it first
                self._discard(notices)
            self._log.info(
                "series.routed",
                series=revision.series_instance_uid,
                revision=revision.revision,
                jobs=list(jobs),
                rules=[decision.rule for decision in decisions],
                reason=reason or "; ".join(decision.reason for decision in decisions),
            )

    def _decide(self, revision: CompleteRevision) -> tuple[tuple[Decision, ...], str | None]:
        try:
            return decide(self._read(revision), self._rules), None
        except DicomNodeError as error:
            return (_NO_RULE,), str(error)
        except Exception as error:  # noqa: BLE001 - a series nobody foresaw must not stop the others
            self._log.exception("series.unreadable", series=revision.series_instance_uid)
            return (_NO_RULE,), f"the headers could not be read: {type(error).__name__}"

    def _refusal_notices(
        self, revision: CompleteRevision, decisions: tuple[Decision, ...]
    ) -> list[tuple[ResultInstance, str]]:
        """What the destinations are told that a rule which refuses the series names."""
        (decision, *others) = decisions
        if others or decision.model is not None or decision.refusal is None:
            return []
        return self._notices(revision, None, decision.refusal, decision.requests)

    def _read(self, revision: CompleteRevision) -> Series:
        return Series(
            series_instance_uid=revision.series_instance_uid,
            study_instance_uid=revision.study_instance_uid,
            instances=read_headers([self._spool.path(name) for name in revision.spool_names]),
            sending_ae=revision.sending_ae,
            completion_reason=revision.reason,
        )

    # ---- reconstruct, segment, measure, encode

    def run_next_job(self, idle_pause_s: float = 0.0) -> bool:
        """Claim the most urgent job and take it to ENCODED, REJECTED, FAILED or back into the queue.

        May run in several threads at once. Returns whether there was a job; where there is none it waits
        ``idle_pause_s`` at the door, so that of all threads one alone asks the ledger.
        """
        try:
            place = self._door.enter()
        except WorkerLost:
            return False
        with place:
            now = now_utc()
            claimed = self._ledger.jobs.claim(self._worker_name, now, now + _LEASE)
            if claimed is None:
                self._stopping.wait(idle_pause_s)
                return False
            with self._under_way:
                self._run(_Run(claimed, place))
        return True

    def _run(self, run: _Run) -> None:
        try:
            with self._lease(run):
                self._work(run)
        except DicomNodeError as error:
            self._settle(run, error.disposition, str(error))
        except MemoryError:
            self._settle(run, Disposition.RETRY, "out of memory")
        except Exception as error:  # noqa: BLE001 - becomes FAILED, with a place in the log
            self._log.exception("job.crashed", job=run.claimed.id)
            self._settle(
                run,
                Disposition.FAIL,
                f"unexpected {type(error).__name__}; the log of job {run.claimed.id} tells where",
            )

    def stop(self) -> None:
        """End the running jobs, from another thread: they go back into the queue, and the attempts do not count.

        Only what is being encoded already is taken to its end.
        """
        self._stopping.set()
        self._door.close()
        self._desk.close()
        self._under_way.close()
        self._workers.close()

    def recover_jobs(self, *, at_start: bool = False) -> None:
        """Jobs whose worker died go back into the queue, or are FAILED when their attempts are used up."""
        requeued, failed = self._ledger.jobs.recover_stalled(
            now_utc(), self._settings.work.attempts, self._worker_name if at_start else None
        )
        if requeued or failed:
            self._log.warning("jobs.recovered", requeued=requeued, failed=failed)

    def _work(self, run: _Run) -> None:
        claimed, workers = run.claimed, self._workers
        if claimed.model not in workers:
            raise SegmentationImpossible(f"model {claimed.model!r} is not configured any more")
        if run.is_alone:
            with run.stage("wait"):
                self._under_way.wait_for_others()
        started_at = now_utc()
        with run.stage("read"):
            series = self._read(claimed.revision)
        with run.stage("reconstruct"):
            reconstruction = reconstruct(series)
            self._check_extent(claimed.model, reconstruction)
        if self._stopping.is_set():
            raise WorkerLost("the node is being stopped")
        with run.stage("prepare"):
            order = workers.prepare(claimed.model, reconstruction.volume, run.on_progress)
        with run.stage("wait"):
            turn = workers.turn()
        with turn:
            run.leave_door()
            with run.stage("segment"):
                upright = turn.infer(order, run.on_progress)
        requests = claimed.requests
        if any(request.asks_peer for request in requests.values()):
            with run.stage("ask"):
                requests = self._answered(requests)
        with run.stage("wait"):
            desk = self._desk.enter()
        with desk:
            self._finish(run, started_at, reconstruction, upright, requests)

    def _answered(self, requests: Mapping[str, ResultRequest]) -> dict[str, ResultRequest]:
        """``requests`` after a question to each destination whose form depends on what it accepts."""
        answered = {}
        for name, request in requests.items():
            destination = self._settings.destinations.get(name)
            accepts = request.asks_peer and destination is not None and self._abilities.accepts_labelmap(destination)
            answered[name] = request.answered(accepts_labelmap=accepts)
        return answered

    def _finish(
        self,
        run: _Run,
        started_at: datetime,
        reconstruction: Reconstruction,
        upright: Segmentation,
        requests: Mapping[str, ResultRequest],
    ) -> None:
        claimed = run.claimed
        with run.stage("measure"):
            with_shape = any(request.shape for request in requests.values())
            try:
                segmentation = _on_source_grid(reconstruction, upright)
                measurements = measure(reconstruction.source, segmentation, with_shape=with_shape)
            except InvalidValueError as error:
                raise SegmentationImpossible(f"model {claimed.model!r} gave an invalid label map: {error}") from error
        with self._spool.writing_results() as writing:
            with run.stage("encode"):
                context = self._context(claimed.revision, claimed.model, started_at)
                for result in encode_in_turn(reconstruction, segmentation, measurements, context, requests):
                    writing.add(result)
            with run.stage("store"):
                stored = writing.written()
        kept = self._ledger.jobs.encoded(
            claimed, stored, segmentation.model, segmentation.run, run.stage_seconds, now_utc()
        )
        if not kept:
            self._discard(stored)
        self._log_job(run, "ENCODED" if kept else "SUPERSEDED", "", segmentation.model, reconstruction, stored)

    def _context(self, revision: CompleteRevision, model: str | None, started_at: datetime) -> ResultContext:
        return ResultContext(
            started_at=started_at,
            revision=revision.first_revision_with_content,
            content_digest=revision.content_digest,
            station_name=self._settings.node.station_name,
            device_uid=self._device_uid,
            completion_reason=revision.reason,
            missing_instances=revision.missing_instances,
            earlier=self._ledger.results.earlier(revision, model),
        )

    def _check_extent(self, model: str, reconstruction: Reconstruction) -> None:
        check_extent(reconstruction, *minimum_extent(model, self._settings.models[model]))

    def _discard(self, stored: list[tuple[ResultInstance, str]]) -> None:
        for _, name in stored:
            self._spool.delete(name)

    def _settle(self, run: _Run, disposition: Disposition, reason: str) -> None:
        """The one place where an outcome that is not success becomes a job state."""
        jobs, claimed, now = self._ledger.jobs, run.claimed, now_utc()
        notices: list[tuple[ResultInstance, str]] = []
        if disposition is Disposition.REJECT:
            notices = self._notices(claimed.revision, claimed.model, reason, claimed.requests)
            state, changed = "REJECTED", jobs.rejected(claimed, reason, now, notices)
        elif disposition is Disposition.RETRY and self._stopping.is_set():
            state, changed = "QUEUED", jobs.give_back(claimed, "the node was stopped; queued again")
        elif disposition is Disposition.RETRY and claimed.attempt < self._settings.work.attempts:
            pause = timedelta(seconds=_RETRY_PAUSE_S * 2 ** (claimed.attempt - 1))
            state, changed = "QUEUED", jobs.put_back(claimed, reason, now + pause)
        else:
            notices = self._notices(claimed.revision, claimed.model, reason, claimed.requests)
            state, changed = "FAILED", jobs.failed(claimed, f"{reason} (attempt {claimed.attempt})", now, notices)
        if not changed:
            self._discard(notices)
        self._log_job(run, state if changed else "SUPERSEDED", reason, stored=notices)

    def _notices(
        self, revision: CompleteRevision, model: str | None, reason: str, requests: Mapping[str, ResultRequest]
    ) -> list[tuple[ResultInstance, str]]:
        """What the destinations are told that want to know of a series that came to nothing."""
        wanted = tuple(name for name, request in requests.items() if request.notice)
        if not wanted:
            return []
        try:
            context = self._context(revision, model, now_utc())
            headers = [instance.header for instance in self._read(revision).instances]
            encoded = encode_notice(headers, model, reason, context, wanted)
            return self._spool.write_results(encoded)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being written, the job has ended all the same
            self._log.warning(
                "notice.not_written",
                series=revision.series_instance_uid,
                revision=revision.revision,
                model=model,
                error=type(error).__name__,
            )
            return []

    def _log_job(
        self,
        run: _Run,
        state: str,
        reason: str,
        model: ModelIdentity | None = None,
        reconstruction: Reconstruction | None = None,
        stored: list[tuple[ResultInstance, str]] | None = None,
    ) -> None:
        """The canonical line: everything about one attempt of one job."""
        self._log.info(
            "job",
            job=run.claimed.id,
            attempt=run.claimed.attempt,
            state=state,
            reason=reason,
            rule=run.claimed.rule,
            model=run.claimed.model,
            model_version=model.version if model else None,
            model_digest=model.digest if model else None,
            series=run.claimed.revision.series_instance_uid,
            revision=run.claimed.revision.revision,
            shape_zyx=list(reconstruction.source.geometry.shape_zyx) if reconstruction else None,
            results=[instance.sop_instance_uid for instance, _ in stored or ()],
            result_bytes=sum(instance.size_bytes for instance, _ in stored or ()),
            seconds=round(run.seconds, 3),
            stage_seconds=run.stage_seconds,
        )

    @contextmanager
    def _lease(self, run: _Run) -> Iterator[None]:
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_LEASE_RENEWAL_S):
                try:
                    if not self._ledger.jobs.renew_lease(run.claimed, now_utc() + _LEASE, run.progress, run.stage_name):
                        return
                except DicomNodeError as error:
                    self._log.warning("lease.not_renewed", job=run.claimed.id, reason=str(error))

        thread = threading.Thread(target=renew, name=f"lease of job {run.claimed.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # ---- deliver

    def deliver(self, destination_name: str) -> None:
        """Offer ``destination_name`` everything that is due there, and record each answer as it comes."""
        due = self._ledger.deliveries.due(destination_name, now_utc(), DELIVERIES_PER_ASSOCIATION)
        destination = self._settings.destinations.get(destination_name)
        if not due or destination is None:
            return
        by_uid: dict[str, list[DueDelivery]] = {}
        for delivery in due:
            by_uid.setdefault(delivery.instance.sop_instance_uid, []).append(delivery)
        self._ledger.deliveries.starting(due, now_utc())

        def record(outcome: DeliveryOutcome) -> None:
            for delivery in by_uid[outcome.sop_instance_uid]:
                self._record_delivery(destination_name, delivery, outcome)

        send(
            destination,
            self._settings.node.ae_title,
            [deliveries[0].instance for deliveries in by_uid.values()],
            record,
        )

    def _record_delivery(self, destination_name: str, delivery: DueDelivery, outcome: DeliveryOutcome) -> None:
        now = now_utc()
        again = None
        if not (outcome.delivered or outcome.retry) and delivery.instance.kind is ResultKind.LABELMAP:
            self._abilities.forget(self._settings.destinations[destination_name])
        if not outcome.delivered:
            again = retry.next_attempt(
                attempts=delivery.attempts + 1,
                refusals=delivery.refusals + int(not outcome.retry),
                refused=not outcome.retry,
                first_attempt_at=delivery.first_attempt_at or now,
                now=now,
                policy=self._settings.delivery,
                give_up_after_s=self._settings.destinations[destination_name].give_up_after_s,
                jitter=random.random(),  # noqa: S311 - spreads load, guards no secret
            )
        self._ledger.deliveries.record(delivery, outcome, again, now)
        self._log.info(
            "delivery",
            job=delivery.job_id,
            destination=destination_name,
            sop_instance=outcome.sop_instance_uid,
            delivered=outcome.delivered,
            status=None if outcome.status is None else f"0x{outcome.status:04X}",
            reason=outcome.reason,
            attempts=delivery.attempts + 1,
            next_attempt_at=again.isoformat() if again else None,
        )


class _Run:
    """One attempt of one job while it lasts: where it is and how long each stage took."""

    def __init__(self, claimed: ClaimedJob, door: Pass) -> None:
        self.claimed = claimed
        self.is_alone = claimed.attempt > 1
        self._door = door
        self.progress = 0.0
        self.stage_name = ""
        self.stage_seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stage_name = name
        start = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[name] = round(self.stage_seconds.get(name, 0) + time.monotonic() - start, 3)

    def leave_door(self) -> None:
        """Let the next job in, unless this one must be alone."""
        if not self.is_alone:
            self._door.leave()

    def on_progress(self, fraction: float, stage: str) -> None:
        self.progress, self.stage_name = fraction, stage


class _Count:
    """How many jobs are under way: each is one ``with`` block."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._closed = False

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(self, *_: object) -> None:
        self._change(-1)

    def wait_for_others(self) -> None:
        """Until the caller's job is the only one; who holds the door knows that no other will come.

        Raises:
            WorkerLost: closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._number == 1 or self._closed)
            if self._closed:
                raise WorkerLost("the node is being stopped")

    def close(self) -> None:
        """Wait for nobody any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _change(self, by: int) -> None:
        with self._changed:
            self._number += by
            self._changed.notify_all()


_NO_RULE = Decision(rule=None, model=None, requests={}, priority=0)


def _on_source_grid(reconstruction: Reconstruction, upright: Segmentation) -> Segmentation:
    if reconstruction.volume is reconstruction.source:
        return upright
    return Segmentation(
        labels_zyx=labels_on_source(reconstruction, upright.labels_zyx),
        geometry=reconstruction.source.geometry,
        names_by_label=upright.names_by_label,
        model=upright.model,
        run=upright.run,
    )


def now_utc() -> datetime:
    """The one clock of the node's durable times."""
    return datetime.now(UTC)
