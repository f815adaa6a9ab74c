"""Received instances and the completion of series: the part of the ledger for the listener and the completion sweep."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, case, delete, insert, or_, select, update

from dicom_node.errors import DicomNodeError, StoreUnavailable
from dicom_node.store.revisions import bytes_digest
from dicom_node.store.schema import (
    IS_CURRENT,
    association,
    cohort,
    cohort_series,
    instance,
    refusal,
    revision_instance,
    series_revision,
)
from dicom_node.store.spool import order_of
from dicom_node.store.states import PullState, RevisionState
from dicom_node.types import Completion, Receipt, ReceivedInstance, Refusal, SeriesEvidence, Stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

# Built once: the listener needs them for every instance, and building them takes longer than running them.
_CURRENT_INSTANCE = select(
    instance.c.id,
    instance.c.dataset_sha256,
    instance.c.spool_name,
    instance.c.association_id,
    instance.c.transfer_syntax_uid,
    instance.c.position_mm,
    instance.c.orientation,
    instance.c.pixels_sha256,
).where(
    instance.c.series_instance_uid == bindparam("series"),
    instance.c.sop_instance_uid == bindparam("sop_instance"),
    IS_CURRENT,
)
_LATEST_REVISION = (
    select(series_revision.c.id, series_revision.c.revision, series_revision.c.state, series_revision.c.sent)
    .where(series_revision.c.series_instance_uid == bindparam("series"))
    .order_by(series_revision.c.revision.desc())
    .limit(1)
    # PostgreSQL: wait for a completion that is being written; a late instance must not join a revision that just closed
    .with_for_update()
)
_SAME_PLACE_MM = 1e-3
_SAME_DIRECTION = 1e-4
_ANOTHER_IMAGE = 0x0111
"""The status of such a refusal: Duplicate SOP Instance (PS3.7 annex C)."""
_AROUND = timedelta(minutes=1)
"""Before the first instance of a series: refusals this early count if the sender uses one association per instance."""
_AHEAD = timedelta(seconds=1)
"""Clocks of two machines may differ by this."""
_RECENT_SERIES = 50
"""The number of a sender's recent series from which its pauses are known."""


@dataclass(frozen=True, slots=True)
class OpenRevision:
    """A series revision that is not complete yet; every decision on it is conditional on ``version``."""

    id: int
    version: int
    series_instance_uid: str
    study_instance_uid: str
    sending_ae: str
    revision: int
    evidence: SeriesEvidence
    count_asked: bool
    """Whether the sender was already asked for its count at this version."""

    def with_expected_count(self, count: int | None) -> OpenRevision:
        """The same revision with the sender's answer added to its evidence."""
        return replace(self, evidence=replace(self.evidence, expected_count=count), count_asked=True)


class _Arrival:
    """An instance that a thread of the listener wants to record, and the outcome."""

    def __init__(self, received: ReceivedInstance) -> None:
        self.received = received
        self._outcome: Receipt | Exception | None = None

    @property
    def settled(self) -> bool:
        return self._outcome is not None

    def settle(self, outcome: Receipt | Exception) -> None:
        self._outcome = outcome

    def receipt(self) -> Receipt:
        if isinstance(self._outcome, Receipt):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome


class Arrivals:
    """Associations, instances and series revisions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._arriving: deque[_Arrival] = deque()
        self._recording = threading.Lock()

    # ---- the listener

    def association_opened(self, association_id: str, calling_ae: str, peer_address: str, at: datetime) -> None:
        """An association was accepted; nothing if it is known, perhaps from a COMMIT whose answer was lost."""
        with self._database.write() as db:
            if db.execute(select(association.c.id).where(association.c.id == association_id)).one_or_none() is not None:
                return
            db.execute(
                insert(association).values(
                    id=association_id, calling_ae=calling_ae, peer_address=peer_address, opened_at=at, aborted=False
                )
            )

    def association_closed(
        self, association_id: str, at: datetime, aborted: bool, refusals: Sequence[Refusal] = ()
    ) -> None:
        """An association ended, with ``refusals``; its series are due for a check immediately.

        An instance that was refused earlier and accepted on this association no longer counts as refused.
        """
        # PostgreSQL: like a recording it changes several series, and the two would wait for each other
        with self._recording, self._database.write() as db:
            db.execute(
                update(association)
                .where(association.c.id == association_id, association.c.closed_at.is_(None))
                .values(closed_at=at, aborted=aborted)
            )
            own = instance.c.association_id == association_id
            db.execute(
                delete(refusal).where(refusal.c.sop_instance_uid.in_(select(instance.c.sop_instance_uid).where(own)))
            )
            concerned = [series_revision.c.series_instance_uid.in_(select(instance.c.series_instance_uid).where(own))]
            if refusals:
                calling_ae = db.execute(
                    select(association.c.calling_ae).where(association.c.id == association_id)
                ).scalar_one()
                keys = {"association_id": association_id, "calling_ae": calling_ae}
                db.execute(insert(refusal), [asdict(each) | keys for each in refusals])
                concerned.append(series_revision.c.sending_ae == calling_ae)
            _touch(db, or_(*concerned))

    def close_interrupted_associations(self, at: datetime) -> int:
        """Mark associations of a previous listener process as aborted; called at its start. Returns how many."""
        with self._database.write() as db:
            count = db.execute(
                update(association).where(association.c.closed_at.is_(None)).values(closed_at=at, aborted=True)
            ).rowcount
            if count:
                _touch(db, series_revision.c.state == RevisionState.OPEN)
            return int(count)

    def record_instance(self, received: ReceivedInstance) -> Receipt:
        """Record an instance whose bytes are durable, and open or update the revision of its series.

        Threads that call this at the same time share one transaction, because each waits mostly for the disk. For a
        DUPLICATE the ledger keeps the earlier file: the caller removes the new one.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable.
        """
        arrival = _Arrival(received)
        self._arriving.append(arrival)
        with self._recording:
            if not arrival.settled:
                arrivals = []
                while self._arriving:
                    arrivals.append(self._arriving.popleft())
                self._record_together(arrivals)
        return arrival.receipt()

    def _record_together(self, arrivals: Sequence[_Arrival]) -> None:
        try:
            with self._database.write() as db:
                receipts = [_record(db, arrival.received) for arrival in arrivals]
        except Exception as error:  # noqa: BLE001 - raised again in the calling thread
            if len(arrivals) == 1 or isinstance(error, StoreUnavailable):
                for arrival in arrivals:
                    arrival.settle(error)
            else:
                # one of them is at fault: the others must not fail with it
                for arrival in arrivals:
                    self._record_together([arrival])
            return
        for arrival, receipt in zip(arrivals, receipts, strict=True):
            arrival.settle(receipt)

    @contextmanager
    def nothing_recorded(self) -> Iterator[None]:
        """Nobody records an instance or a result during the block (SQLite), so that a file without a row stays one.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable.
        """
        with self._recording, self._database.write():
            yield

    def current_file(self, series_instance_uid: str, sop_instance_uid: str) -> str | None:
        """The spool name of the current bytes of an instance; None if there are none."""
        keys = {"series": series_instance_uid, "sop_instance": sop_instance_uid}
        with self._database.read() as db:
            known = db.execute(_CURRENT_INSTANCE, keys).one_or_none()
        return None if known is None else str(known.spool_name)

    def current_instances(self, series_instance_uid: str) -> tuple[tuple[str, ...], str]:
        """Spool names of the current instances of a series, and the AE that sent the first; empty if unknown."""
        with self._database.read() as db:
            rows = db.execute(
                select(instance.c.spool_name, instance.c.calling_ae)
                .where(instance.c.series_instance_uid == series_instance_uid, IS_CURRENT)
                .order_by(instance.c.id)
            ).all()
        return tuple(row.spool_name for row in rows), rows[0].calling_ae if rows else ""

    # ---- the completion sweep

    def due_revisions(
        self, now: datetime, set_aside: Collection[int] = (), on_fault: Callable[[int, str], None] | None = None
    ) -> tuple[OpenRevision, ...]:
        """The open revisions that changed or are due for a check, without those whose id is ``set_aside``.

        ``on_fault`` is told, inside the handler of the exception, the id and the Series Instance UID of a revision
        whose evidence can't be collected; without it, the exception is raised.
        """
        self._bring_back(now)
        query = select(series_revision).where(
            series_revision.c.state == RevisionState.OPEN,
            or_(series_revision.c.look_again_at.is_(None), series_revision.c.look_again_at <= now),
        )
        with self._database.read() as db:
            rows = db.execute(query).all()
        found = []
        for row in rows:
            if row.id in set_aside:
                continue
            try:
                with self._database.read() as db:
                    found.append(_open_revision(db, row))
            except DicomNodeError:
                raise
            except Exception:
                if on_fault is None:
                    raise
                on_fault(row.id, row.series_instance_uid)
        return tuple(found)

    def _bring_back(self, now: datetime) -> None:
        """Arrivals ahead of the clock count as of now: a listener was ahead, or the clock was set back since."""
        is_ahead = and_(series_revision.c.state == RevisionState.OPEN, series_revision.c.last_arrival > now + _AHEAD)
        with self._database.read() as db:
            if db.execute(select(series_revision.c.id).where(is_ahead).limit(1)).one_or_none() is None:
                return
        first = case((series_revision.c.first_arrival > now, now), else_=series_revision.c.first_arrival)
        with self._database.write() as db:
            db.execute(
                update(series_revision)
                .where(is_ahead)
                .values(first_arrival=first, last_arrival=now, look_again_at=None)
            )

    def set_expected_count(self, revision: OpenRevision, count: int | None) -> None:
        """Record the sender's count of instances of the series (None: no answer)."""
        with self._database.write() as db:
            db.execute(
                update(series_revision)
                .where(series_revision.c.id == revision.id)
                .values(expected_count=count, count_asked_version=revision.version)
            )

    def postpone(self, revision: OpenRevision, look_again_at: datetime) -> bool:
        """Check the revision again at ``look_again_at`` or when it changes. False: it has already changed."""
        with self._database.write() as db:
            changed = db.execute(
                update(series_revision).where(_unchanged(revision)).values(look_again_at=look_again_at)
            ).rowcount
            return bool(changed)

    def complete(self, revision: OpenRevision, verdict: Completion, at: datetime) -> bool:
        """OPEN -> COMPLETE by ``verdict``, with its evidence, members and content digest.

        False: the revision changed in the meantime.
        """
        with self._database.write() as db:
            members = db.execute(
                select(instance.c.id, instance.c.dataset_sha256)
                .where(instance.c.series_instance_uid == revision.series_instance_uid, IS_CURRENT)
                .order_by(instance.c.sop_instance_uid)
            ).all()
            digest = bytes_digest(m.dataset_sha256 for m in members)
            changed = db.execute(
                update(series_revision)
                .where(_unchanged(revision))
                .values(
                    state=RevisionState.COMPLETE,
                    reason=verdict.reason,
                    completed_at=at,
                    evidence=_evidence_json(revision.evidence, verdict),
                    content_digest=digest,
                    bytes_digest=digest,
                )
            ).rowcount
            if changed:
                db.execute(
                    insert(revision_instance), [{"revision_id": revision.id, "instance_id": m.id} for m in members]
                )
            return bool(changed)


def _record(db: Connection, received: ReceivedInstance) -> Receipt:
    known = db.execute(
        _CURRENT_INSTANCE, {"series": received.series_instance_uid, "sop_instance": received.sop_instance_uid}
    ).one_or_none()
    if known is not None and known.spool_name == received.spool_name:
        # the same file recorded twice: on a slow disk, both the listener and the sweep of unclaimed files recorded it
        return Receipt.NEW
    if known is not None and known.dataset_sha256 == received.dataset_sha256:
        _note_duplicate(db, known.id, received)
        return Receipt.DUPLICATE
    if not received.association_id and (newer := _newer(db, received)) is not None:
        db.execute(
            insert(instance), {**_row(received), "current": False, "duplicates": 0, "purged_at": newer.purged_at}
        )
        return Receipt.OUTDATED
    if known is not None and _is_another_image(db, known, received):
        return Receipt.REUSED
    if known is not None:
        db.execute(update(instance).where(instance.c.id == known.id).values(current=False))
    if not received.association_id:  # from the spool: no association ends that would do this
        _count_as_refused_no_longer(db, received)
    db.execute(insert(instance), {**_row(received), "current": True, "duplicates": 0})
    _note_arrival(db, received)
    return Receipt.NEW if known is None else Receipt.REPLACEMENT


def _newer(db: Connection, received: ReceivedInstance) -> Any | None:
    """The row of newer bytes of an instance that was found in the spool; one that is not purged if there is any.

    The node may have told the sender of the file that it is not stored, and was then sent other bytes.
    """
    same = db.execute(
        select(instance.c.spool_name, instance.c.received_at, instance.c.purged_at)
        .where(
            instance.c.series_instance_uid == received.series_instance_uid,
            instance.c.sop_instance_uid == received.sop_instance_uid,
        )
        .order_by(instance.c.purged_at.is_not(None))
    )
    return next((row for row in same if _came_before(received, row)), None)


def _came_before(received: ReceivedInstance, row: Any) -> bool:
    orders = order_of(received.spool_name), order_of(row.spool_name)
    if orders[0] is not None and orders[1] is not None:
        return orders[0] < orders[1]
    return bool(received.received_at < row.received_at)


def _is_another_image(db: Connection, known: Any, received: ReceivedInstance) -> bool:
    """Whether ``received`` is not a correction of the ``known`` instance but another image with the same UID.

    This is the case if its position or pixels differ on the same association, if its position differs while the series
    is still arriving, or if the same bytes were refused for that before.
    """
    elsewhere = _lies_elsewhere(known, received)
    if known.association_id and known.association_id == received.association_id:
        recoded = known.transfer_syntax_uid != received.transfer_syntax_uid
        digests = {known.pixels_sha256, received.pixels_sha256}
        if elsewhere or (not recoded and None not in digests and len(digests) > 1):
            return True
    if elsewhere:
        latest = db.execute(_LATEST_REVISION, {"series": received.series_instance_uid}).one_or_none()
        if latest is not None and latest.state == RevisionState.OPEN:
            return True
    refused_before = select(refusal.c.id).where(
        refusal.c.sop_instance_uid == received.sop_instance_uid,
        refusal.c.series_instance_uid == received.series_instance_uid,
        refusal.c.dataset_sha256 == received.dataset_sha256,
        refusal.c.status == _ANOTHER_IMAGE,  # bytes refused because the ledger was away are welcome now
    )
    return db.execute(refused_before.limit(1)).one_or_none() is not None


def _lies_elsewhere(known: Any, received: ReceivedInstance) -> bool:
    """Whether both have a position, and the positions differ."""
    if known.position_mm is None or received.position_mm is None or not (known.orientation and received.orientation):
        return False
    if abs(known.position_mm - received.position_mm) > _SAME_PLACE_MM:
        return True
    return any(abs(a - b) > _SAME_DIRECTION for a, b in zip(known.orientation, received.orientation, strict=True))


def _row(received: ReceivedInstance) -> dict[str, Any]:
    row = asdict(received)
    del row["retrieved_by"]  # the revision tells
    row["orientation"] = list(received.orientation) if received.orientation is not None else None
    return row


def _note_arrival(db: Connection, received: ReceivedInstance) -> None:
    latest = db.execute(_LATEST_REVISION, {"series": received.series_instance_uid}).one_or_none()
    if latest is not None and latest.state == RevisionState.OPEN:
        values = {} if latest.sent or not _is_sent(db, received) else _sent_by(received)
        _touch(db, series_revision.c.id == latest.id, last_arrival=received.received_at, **values)
        return
    _open_revision_of(db, received, latest, sent=_is_sent(db, received))


def _open_revision_of(db: Connection, received: ReceivedInstance, latest: Any | None, *, sent: bool) -> None:
    db.execute(
        insert(series_revision).values(
            series_instance_uid=received.series_instance_uid,
            study_instance_uid=received.study_instance_uid,
            sending_ae=received.calling_ae,
            revision=1 if latest is None else latest.revision + 1,
            state=RevisionState.OPEN,
            version=1,
            first_arrival=received.received_at,
            last_arrival=received.received_at,
            expected_count=_counted_by_archive(received.series_instance_uid),
            sent=sent,
        )
    )


def _is_sent(db: Connection, received: ReceivedInstance) -> bool:
    """Whether the instance was sent to the node, and not pulled by a cohort.

    Of one that was found in the spool while a cohort pulls its series nobody knows. If it was sent, its sender was not
    told that it is stored, and sends it again.
    """
    if not received.association_id:
        pulled = _of_pulled_series(select(cohort_series.c.id), received.series_instance_uid)
        return db.execute(pulled.limit(1)).one_or_none() is None
    if not received.retrieved_by:
        return True
    pulls = select(cohort.c.name).where(cohort.c.retrieves_as == received.retrieved_by)
    return db.execute(pulls.limit(1)).one_or_none() is None


def _sent_by(received: ReceivedInstance) -> dict[str, Any]:
    """What a revision says that a cohort pulled, now that its series is also sent."""
    return {"sent": True, "sending_ae": received.calling_ae}


def _counted_by_archive(series_instance_uid: str) -> Any:
    """How many instances the archive counts of a series that a cohort is pulling from it."""
    counted = _of_pulled_series(select(cohort_series.c.expected_count), series_instance_uid)
    return counted.limit(1).scalar_subquery()


def _of_pulled_series(query: Any, series_instance_uid: str) -> Any:
    return query.where(
        cohort_series.c.series_instance_uid == series_instance_uid,
        cohort_series.c.state.in_((PullState.PULLING, PullState.PULLED)),
    )


def _note_duplicate(db: Connection, instance_id: int, received: ReceivedInstance) -> None:
    _count_as_refused_no_longer(db, received)
    db.execute(update(instance).where(instance.c.id == instance_id).values(duplicates=instance.c.duplicates + 1))
    latest = db.execute(_LATEST_REVISION, {"series": received.series_instance_uid}).one_or_none()
    if latest is None:
        return
    is_news = not latest.sent and _is_sent(db, received)
    if latest.state != RevisionState.OPEN:
        if is_news:  # what a cohort did with its bytes is not what the rules do with a series that is sent
            _open_revision_of(db, received, latest, sent=True)
        return
    # after an association that broke off, senders begin again with what arrived already: the rest is still to come
    values = _sent_by(received) if is_news else {}
    db.execute(
        update(series_revision)
        .where(series_revision.c.id == latest.id)
        .values(last_arrival=received.received_at, **values)
    )


def _count_as_refused_no_longer(db: Connection, received: ReceivedInstance) -> None:
    """Another image that was refused because of this UID still counts."""
    db.execute(
        delete(refusal).where(
            refusal.c.sop_instance_uid == received.sop_instance_uid,
            or_(refusal.c.dataset_sha256.is_(None), refusal.c.dataset_sha256 == received.dataset_sha256),
        )
    )


def _touch(db: Connection, where: Any, **values: Any) -> None:
    db.execute(
        update(series_revision)
        .where(where, series_revision.c.state == RevisionState.OPEN)
        .values(version=series_revision.c.version + 1, look_again_at=None, **values)
    )


def _unchanged(revision: OpenRevision) -> Any:
    return and_(
        series_revision.c.id == revision.id,
        series_revision.c.version == revision.version,
        series_revision.c.state == RevisionState.OPEN,
    )


def _open_revision(db: Connection, row: Any) -> OpenRevision:
    instances = db.execute(
        select(
            instance.c.position_mm, instance.c.orientation, instance.c.number_of_frames, instance.c.association_id
        ).where(instance.c.series_instance_uid == row.series_instance_uid, IS_CURRENT)
    ).all()
    carriers = {i.association_id for i in instances}
    associations = db.execute(
        select(association.c.id, association.c.opened_at, association.c.closed_at, association.c.aborted)
        .where(association.c.id.in_(carriers))
        .order_by(association.c.opened_at, association.c.id)
    ).all()
    evidence = SeriesEvidence(
        instance_count=len(instances),
        first_arrival=row.first_arrival,
        last_arrival=row.last_arrival,
        open_associations=sum(a.closed_at is None for a in associations),
        aborted_associations=_not_made_good(associations),
        positions_mm=tuple(i.position_mm for i in instances),
        orientations=len({tuple(round(c, 4) for c in i.orientation) for i in instances if i.orientation}),
        expected_count=row.expected_count,
        multi_frame=any((i.number_of_frames or 1) > 1 for i in instances),
        refused_instances=_refused(db, row, carriers),
        stretches=tuple(_stretches(associations, instances)),
        learned_pause_s=_learned_pause_s(db, row.sending_ae),
    )
    return OpenRevision(
        id=row.id,
        version=row.version,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        sending_ae=row.sending_ae,
        revision=row.revision,
        evidence=evidence,
        count_asked=row.count_asked_version == row.version,
    )


def _not_made_good(associations: Sequence[Any]) -> int:
    """How many associations were aborted and not followed by a later one that was released."""
    released = [a.opened_at for a in associations if a.closed_at is not None and not a.aborted]
    return sum(a.aborted and all(opened < a.closed_at for opened in released) for a in associations)


def _refused(db: Connection, revision: Any, carriers: set[str]) -> int:
    """How many refused instances belong to the series, or may belong to it."""
    nearby = and_(
        refusal.c.series_instance_uid.is_(None),
        refusal.c.calling_ae == revision.sending_ae,
        refusal.c.refused_at >= revision.first_arrival - _AROUND,
    )
    unnamed = and_(refusal.c.series_instance_uid.is_(None), refusal.c.association_id.in_(carriers))
    named = refusal.c.series_instance_uid == revision.series_instance_uid
    rows = db.execute(
        select(refusal.c.id, refusal.c.sop_instance_uid, refusal.c.dataset_sha256).where(or_(named, unnamed, nearby))
    ).all()
    return len({(row.sop_instance_uid or row.id, row.dataset_sha256) for row in rows})


def _stretches(associations: Sequence[Any], instances: Sequence[Any]) -> Iterator[Stretch]:
    """The ``instances`` of each released association whose slices have positions."""
    places: dict[str, list[float]] = {}
    for each in instances:
        if each.position_mm is not None:
            places.setdefault(each.association_id, []).append(each.position_mm)
    for each in associations:
        if each.id in places and each.closed_at is not None and not each.aborted:
            yield Stretch(each.opened_at, each.closed_at, min(places[each.id]), max(places[each.id]))


def _learned_pause_s(db: Connection, sending_ae: str) -> float:
    """The longest pause within one of the recent series of ``sending_ae``."""
    recent = (
        select(series_revision.c.evidence)
        .where(series_revision.c.sending_ae == sending_ae, series_revision.c.completed_at.is_not(None))
        .order_by(series_revision.c.id.desc())
        .limit(_RECENT_SERIES)
    )
    return max((evidence.get("longest_pause_s", 0.0) for evidence in db.execute(recent).scalars()), default=0.0)


def _evidence_json(evidence: SeriesEvidence, verdict: Completion) -> dict[str, Any]:
    positions = [p for p in evidence.positions_mm if p is not None]
    return {
        "instance_count": evidence.instance_count,
        "expected_count": evidence.expected_count,
        "open_associations": evidence.open_associations,
        "aborted_associations": evidence.aborted_associations,
        "refused_instances": evidence.refused_instances,
        "orientations": evidence.orientations,
        "positions_known": len(positions),
        "extent_mm": max(positions) - min(positions) if positions else None,
        "first_arrival": evidence.first_arrival.isoformat(),
        "last_arrival": evidence.last_arrival.isoformat(),
        "is_cut_short": verdict.is_cut_short,
        "longest_pause_s": verdict.longest_pause_s,
        "deliver_from": verdict.deliver_from.isoformat() if verdict.deliver_from else None,
    }
