"""A complete revision of a series: its fixed members, and the content that results derive from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from dicom_node.store.schema import instance, revision_instance, series_revision
from dicom_node.store.spool import StoredFile
from dicom_node.types import notes_on_missing_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection


_MEMBER = (
    instance.c.sop_instance_uid,
    instance.c.dataset_sha256,
    instance.c.transfer_syntax_uid,
    instance.c.pixels_sha256,
    instance.c.spool_name,
)
_REPEATED = (*_MEMBER, instance.c.id, instance.c.association_id)


@dataclass(frozen=True, slots=True)
class CompleteRevision:
    """A complete series revision and the files of its instances."""

    id: int
    series_instance_uid: str
    study_instance_uid: str
    sending_ae: str
    revision: int
    unchanged_since: int
    """The revision since which the content of this series is unchanged (usually itself); results derive from it."""
    reason: str
    content_digest: str
    same_images_as: str | None
    """The content of an earlier revision from which only patient and study differ, where there is one."""
    sent: bool
    """Whether some of its instances were sent to the node; false where a cohort pulled them all."""
    files: tuple[StoredFile, ...]
    missing_instances: int
    """How many more instances the sender counts; 0 if it was not queried."""
    refused_instances: int
    """How many instances of the series were refused."""
    is_cut_short: bool
    """Whether the hard limit ended the wait for more."""
    deliver_from: datetime | None
    """No result is sent earlier, because more of the series may arrive until then; None: send immediately."""

    @property
    def spool_names(self) -> tuple[str, ...]:
        """The names of the files."""
        return tuple(file.spool_name for file in self.files)

    @property
    def notes_on_missing(self) -> tuple[str, ...]:
        """See :func:`~dicom_node.types.notes_on_missing_images`."""
        return notes_on_missing_images(self.missing_instances, self.refused_instances, is_cut_short=self.is_cut_short)

    def due_at(self, at: datetime) -> datetime:
        """When results that are recorded ``at`` may be sent."""
        return at if self.deliver_from is None else max(at, self.deliver_from)


@dataclass(frozen=True, slots=True)
class Member:
    """One instance of a revision: the digest of its bytes, how its pixels are stored, and its file."""

    dataset_sha256: str
    transfer_syntax_uid: str
    pixels_sha256: str | None
    """Of the value of Pixel Data as it was received; None if there is none, or if an older version received it."""
    spool_name: str

    def stores_pixels_of(self, other: Member) -> bool:
        """Whether both are known to have the same bytes of pixel data in the same transfer syntax."""
        if self.pixels_sha256 is None or self.pixels_sha256 != other.pixels_sha256:
            return False
        return self.transfer_syntax_uid == other.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class Repeated:
    """An instance of a revision that replaced one that came before it on the same association."""

    sop_instance_uid: str
    before: Member
    now: Member


def bytes_digest(dataset_digests: Iterable[str]) -> str:
    """The digest over the data sets of a revision, from those of its members in any order."""
    return hashlib.sha256("\n".join(sorted(dataset_digests)).encode()).hexdigest()


def members_of(db: Connection, revision_id: int) -> Mapping[str, Member]:
    """The instances of a complete revision by SOP Instance UID."""
    rows = db.execute(
        select(*_MEMBER)
        .select_from(revision_instance.join(instance))
        .where(revision_instance.c.revision_id == revision_id)
    )
    return {row.sop_instance_uid: _member(row) for row in rows}


def repeated_in(db: Connection, revision_id: int) -> Iterator[Repeated]:
    """Each member of a complete revision with every earlier instance of its UID and association that has pixels too.

    Those of earlier associations are what it corrects.
    """
    own = select(series_revision.c.series_instance_uid).where(series_revision.c.id == revision_id).scalar_subquery()
    replaced = db.execute(
        select(*_REPEATED).where(
            instance.c.series_instance_uid == own,
            instance.c.current.is_(False),
            instance.c.association_id != "",
            instance.c.pixels_sha256.is_not(None),
            instance.c.purged_at.is_(None),
        )
    ).all()
    if not replaced:
        return
    members = db.execute(
        select(*_REPEATED)
        .select_from(revision_instance.join(instance))
        .where(revision_instance.c.revision_id == revision_id, instance.c.pixels_sha256.is_not(None))
    )
    by_uid = {(row.sop_instance_uid, row.association_id): row for row in members}
    for before in replaced:
        now = by_uid.get((before.sop_instance_uid, before.association_id))
        if now is not None and before.id < now.id:
            yield Repeated(now.sop_instance_uid, _member(before), _member(now))


def _member(row: Any) -> Member:
    return Member(row.dataset_sha256, row.transfer_syntax_uid, row.pixels_sha256, row.spool_name)


def complete_revision(db: Connection, revision_id: int) -> CompleteRevision:
    """The revision with its members, in either state (COMPLETE or ROUTED)."""
    row = db.execute(select(series_revision).where(series_revision.c.id == revision_id)).one()
    rows = db.execute(
        select(instance.c.spool_name, instance.c.dataset_sha256, instance.c.transfer_syntax_uid)
        .select_from(revision_instance.join(instance))
        .where(revision_instance.c.revision_id == revision_id)
        .order_by(instance.c.id)
    )
    files = tuple(StoredFile(*columns) for columns in rows)
    evidence = row.evidence or {}
    deliver_from = evidence.get("deliver_from")
    last_other = db.execute(
        select(func.max(series_revision.c.revision)).where(
            series_revision.c.series_instance_uid == row.series_instance_uid,
            series_revision.c.revision < row.revision,
            series_revision.c.content_digest != row.content_digest,
        )
    ).scalar_one()
    return CompleteRevision(
        id=row.id,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        sending_ae=row.sending_ae,
        revision=row.revision,
        unchanged_since=(last_other or 0) + 1,
        reason=row.reason,
        content_digest=row.content_digest,
        same_images_as=row.same_images_as,
        sent=row.sent,
        files=files,
        missing_instances=max(0, (row.expected_count or 0) - len(files)),
        refused_instances=evidence.get("refused_instances", 0),
        is_cut_short=evidence.get("is_cut_short", False),
        deliver_from=None if deliver_from is None else datetime.fromisoformat(deliver_from),
    )
