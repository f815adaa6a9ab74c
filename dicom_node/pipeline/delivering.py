"""Sends results to their destinations, and queries what destinations accept."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog

from dicom_node.deliver import retry
from dicom_node.deliver.abilities import shows_binary
from dicom_node.deliver.scu import send
from dicom_node.store.clock import now_utc
from dicom_node.types import ResultKind, SegmentationForm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from dicom_node.deliver.abilities import Abilities
    from dicom_node.settings import DeliverySettings, DestinationSettings
    from dicom_node.store.deliveries import Deliveries, DueDelivery
    from dicom_node.types import DeliveryOutcome, ResultRequest

DELIVERIES_PER_ASSOCIATION = 200


class Delivering:
    """Sends each destination its due results, one destination at a time.

    Args:
        deliveries: the pending deliveries.
        destinations: the configured destinations, by name.
        policy: how long to wait after a failure, and how often to try again.
        abilities: what the destinations accept.
        ae_title: our AE title.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        destinations: Mapping[str, DestinationSettings],
        policy: DeliverySettings,
        abilities: Abilities,
        ae_title: str,
    ) -> None:
        self._deliveries = deliveries
        self._destinations = destinations
        self._policy = policy
        self._abilities = abilities
        self._ae_title = ae_title
        self._log = structlog.get_logger()

    def deliver(self, destination_name: str) -> None:
        """Send ``destination_name`` all its due results, and record each answer as soon as it arrives."""
        due = self._deliveries.due(destination_name, now_utc(), DELIVERIES_PER_ASSOCIATION)
        destination = self._destinations.get(destination_name)
        if not due or destination is None:
            return
        by_uid: dict[str, list[DueDelivery]] = {}
        for delivery in due:
            by_uid.setdefault(delivery.instance.sop_instance_uid, []).append(delivery)
        self._deliveries.starting(due, now_utc())

        def record(outcome: DeliveryOutcome) -> None:
            for delivery in by_uid[outcome.sop_instance_uid]:
                self._record(destination_name, destination, delivery, outcome)

        send(destination, self._ae_title, [deliveries[0].instance for deliveries in by_uid.values()], record)

    def _record(
        self, name: str, destination: DestinationSettings, delivery: DueDelivery, outcome: DeliveryOutcome
    ) -> None:
        now = now_utc()
        if not (outcome.delivered or outcome.retry) and delivery.instance.kind is ResultKind.LABELMAP:
            self._abilities.forget(destination)
        again = None if outcome.delivered else self._next_attempt(destination, delivery, outcome, now)
        self._deliveries.record(delivery, outcome, again, now)
        self._log.info(
            "delivery",
            job=delivery.job_id,
            destination=name,
            sop_instance=outcome.sop_instance_uid,
            delivered=outcome.delivered,
            status=None if outcome.status is None else f"0x{outcome.status:04X}",
            reason=outcome.reason,
            attempts=delivery.attempts + 1,
            next_attempt_at=again.isoformat() if again else None,
        )

    def _next_attempt(
        self, destination: DestinationSettings, delivery: DueDelivery, outcome: DeliveryOutcome, now: datetime
    ) -> datetime | None:
        return retry.next_attempt(
            attempts=delivery.attempts + 1,
            refusals=delivery.refusals + int(not outcome.retry),
            refused=not outcome.retry,
            first_attempt_at=delivery.first_attempt_at or now,
            now=now,
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
        answered = {}
        for name, request in requests.items():
            destination = self._destinations.get(name)
            accepts = request.asks_peer and destination is not None and self._abilities.accepts_labelmap(destination)
            answered[name] = request.answered(accepts_labelmap=accepts)
        return answered

    def not_showing(self, requests: Mapping[str, ResultRequest], columns: int) -> tuple[str, ...]:
        """The destinations whose viewer shows no segmentation of the answered ``requests``, on images this wide."""
        return tuple(
            name
            for name, request in requests.items()
            if request.segmentation is SegmentationForm.BINARY
            and (destination := self._destinations.get(name)) is not None
            and not shows_binary(destination, columns)
        )
