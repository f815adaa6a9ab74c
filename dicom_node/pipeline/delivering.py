"""Sends results to their destinations, and queries what destinations accept."""

from __future__ import annotations

import random
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from dicom_node.deliver import retry
from dicom_node.deliver.abilities import shows_binary
from dicom_node.deliver.scu import send
from dicom_node.errors import StoreUnavailable
from dicom_node.pipeline.lease import LEASE, renewed
from dicom_node.store.clock import Moment, now_utc
from dicom_node.types import ResultKind, SegmentationForm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from dicom_node.deliver.abilities import Abilities
    from dicom_node.settings import DeliverySettings, DestinationSettings
    from dicom_node.store.deliveries import Deliveries, DueDelivery
    from dicom_node.store.elapsed import Elapsed
    from dicom_node.store.jobs import Jobs
    from dicom_node.store.workers import WorkerName
    from dicom_node.types import DeliveryOutcome, ResultRequest

DELIVERIES_PER_ASSOCIATION = 200
_RENEWAL_S = 10.0
_GONE_AFTER = 3
"""Attempts; by then, nobody is putting a file back."""


class _ClaimLost(Exception):
    """The lease of what is being sent expired: another process may be sending it."""


class Delivering:
    """Sends each destination its due results, one destination at a time.

    Args:
        deliveries: the pending deliveries.
        elapsed: how much time has passed, whatever the clock says.
        destinations: the configured destinations, by name.
        policy: how long to wait after a failure, and how often to try again.
        abilities: what the destinations accept.
        ae_title: our AE title.
        worker: the name under which this process claims deliveries.
        jobs: whose results are made again if a stored one is damaged.
        attempts: the maximum number of attempts per job.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        elapsed: Elapsed,
        destinations: Mapping[str, DestinationSettings],
        policy: DeliverySettings,
        abilities: Abilities,
        ae_title: str,
        worker: WorkerName,
        jobs: Jobs,
        attempts: int,
    ) -> None:
        self._deliveries = deliveries
        self._elapsed = elapsed
        self._destinations = destinations
        self._policy = policy
        self._abilities = abilities
        self._ae_title = ae_title
        self._worker = worker
        self._jobs = jobs
        self._attempts = attempts
        self._log = structlog.get_logger()

    def deliver(self, destination_name: str) -> None:
        """Send ``destination_name`` all its due results, and record each answer as soon as it arrives."""
        destination = self._destinations.get(destination_name)
        if destination is None:
            return
        now = Moment.now()
        claimed = self._deliveries.claim(
            destination_name,
            self._worker,
            now.at,
            now.at + LEASE,
            DELIVERIES_PER_ASSOCIATION,
            self._elapsed.read(now),
        )
        if claimed:
            try:
                with self._held(claimed, destination_name):
                    self._send(destination_name, destination, claimed)
            except _ClaimLost:
                self._log.warning("deliveries.lost", destination=destination_name, deliveries=len(claimed))

    def recover(self) -> None:
        """Let deliveries be made again whose process died in the middle."""
        recovered = self._deliveries.recover_stalled(self._worker, now_utc())
        if recovered:
            self._log.warning("deliveries.recovered", deliveries=recovered)

    @contextmanager
    def _held(self, claimed: Sequence[DueDelivery], destination_name: str) -> Iterator[None]:
        """Keep ``claimed`` until the block ends; if it raises, those without an answer are due again."""

        def renew(until: datetime) -> bool:
            return self._deliveries.renew_lease(claimed, until)

        with renewed(renew, _RENEWAL_S, destination=destination_name):
            try:
                yield
            except BaseException:
                with suppress(StoreUnavailable):  # the lease ends in any case
                    self._deliveries.give_back(claimed)
                raise

    def _send(self, name: str, destination: DestinationSettings, claimed: Sequence[DueDelivery]) -> None:
        by_uid: dict[str, list[DueDelivery]] = {}
        for delivery in claimed:
            by_uid.setdefault(delivery.instance.sop_instance_uid, []).append(delivery)

        def record(outcome: DeliveryOutcome) -> None:
            for delivery in by_uid[outcome.sop_instance_uid]:
                self._record(name, destination, delivery, outcome)

        send(destination, self._ae_title, [deliveries[0].instance for deliveries in by_uid.values()], record)

    def _record(
        self, name: str, destination: DestinationSettings, delivery: DueDelivery, outcome: DeliveryOutcome
    ) -> None:
        now = Moment.now()
        is_gone = outcome.is_missing and delivery.attempts >= _GONE_AFTER and self._deliveries.has_no_file(delivery)
        if (outcome.is_damaged or is_gone) and self._is_made_again(name, delivery, now.at):
            return
        is_refused = not (outcome.delivered or outcome.retry or outcome.is_damaged)
        if is_refused and delivery.instance.kind is ResultKind.LABELMAP:
            self._abilities.forget(destination)
        is_over = outcome.delivered or outcome.is_damaged
        again = None if is_over else self._next_attempt(destination, delivery, outcome, now)
        recorded = self._deliveries.record(delivery, outcome, again, now.at)
        self._log.info(
            "delivery",
            job=delivery.job_id,
            destination=name,
            sop_instance=outcome.sop_instance_uid,
            delivered=outcome.delivered,
            status=None if outcome.status is None else f"0x{outcome.status:04X}",
            reason=outcome.reason,
            attempts=delivery.attempts,
            next_attempt_at=again.isoformat() if again else None,
            recorded=recorded,
        )
        if not recorded and self._deliveries.is_lost(delivery):
            raise _ClaimLost

    def _is_made_again(self, name: str, delivery: DueDelivery, now: datetime) -> bool:
        """Whether the job of a damaged or missing result runs again, or has; notices are not made again."""
        if not self._deliveries.holds(delivery):  # another damaged result of the job was found first
            return True
        is_made_again = delivery.instance.kind is not ResultKind.NOTICE and self._jobs.encode_again(
            delivery.job_id, self._attempts, now
        )
        self._log.error(
            "result.damaged",
            job=delivery.job_id,
            destination=name,
            sop_instance=delivery.instance.sop_instance_uid,
            is_made_again=is_made_again,
        )
        return is_made_again

    def _next_attempt(
        self, destination: DestinationSettings, delivery: DueDelivery, outcome: DeliveryOutcome, now: Moment
    ) -> datetime | None:
        elapsed_s = self._elapsed.read(now)
        return retry.next_attempt(
            attempts=delivery.attempts,
            refusals=delivery.refusals + int(not outcome.retry),
            refused=not outcome.retry,
            waited_s=elapsed_s - (elapsed_s if delivery.first_attempt_s is None else delivery.first_attempt_s),
            now=now.at,
            policy=self._policy,
            give_up_after_s=destination.give_up_after_s,
            jitter=random.random(),  # noqa: S311 - spreads the load; not for security
        )


class Asking:
    """Settles the results for destinations whose results depend on what they accept."""

    def __init__(self, destinations: Mapping[str, DestinationSettings], abilities: Abilities) -> None:
        self._destinations = destinations
        self._abilities = abilities

    def answered(self, requests: Mapping[str, ResultRequest]) -> dict[str, ResultRequest]:
        """``requests``, after querying each destination whose results depend on what it accepts."""
        asked = {
            name: destination
            for name, request in requests.items()
            if request.asks_peer and (destination := self._destinations.get(name)) is not None
        }
        for destination in asked.values():  # all at the same time
            self._abilities.want(destination)
        accepts = {name: self._abilities.accepts_labelmap(destination) for name, destination in asked.items()}
        return {name: request.answered(accepts_labelmap=accepts.get(name, False)) for name, request in requests.items()}

    def not_showing(self, requests: Mapping[str, ResultRequest], columns: int) -> tuple[str, ...]:
        """The destinations whose viewer shows no segmentation of the answered ``requests``, on images this wide."""
        return tuple(
            name
            for name, request in requests.items()
            if request.segmentation is SegmentationForm.BINARY
            and (destination := self._destinations.get(name)) is not None
            and not shows_binary(destination, columns)
        )
