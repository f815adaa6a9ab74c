"""Received files whose bytes changed on the disk. Nothing is made of them, and the sender may send them again.

A damaged instance is no longer the current one of its UID, so that it can be received again like a new one. Until then
it counts as refused: a series without it is not whole. An image whose file is gone is damaged, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, exists, insert, select, update

from dicom_node.store.schema import IS_CURRENT, instance, refusal, revision_instance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

_REASON = "the stored bytes changed"
_NO_STATUS = 0
"""It was accepted when it was received."""


def note_damage(db: Connection, spool_names: Sequence[str], at: datetime) -> None:
    """Mark the instances in these files as damaged."""
    sound = and_(instance.c.spool_name.in_(spool_names), instance.c.damaged_at.is_(None))
    was_current = select(
        instance.c.association_id,
        instance.c.calling_ae,
        instance.c.sop_instance_uid,
        instance.c.series_instance_uid,
        instance.c.dataset_sha256,
    ).where(sound, IS_CURRENT)
    lost = [dict(row._mapping) for row in db.execute(was_current)]  # noqa: SLF001 - SQLAlchemy's documented name
    if lost:
        refused = {"status": _NO_STATUS, "reason": _REASON, "refused_at": at}
        db.execute(insert(refusal), [row | refused for row in lost])
    db.execute(update(instance).where(sound).values(current=False, damaged_at=at))


def trust_again(db: Connection, revision_id: int) -> None:
    """Take the damaged instances of a revision for sound, unless they were received again.

    A person asks for it who has put the files back; whoever reads them next checks them.
    """
    again = instance.alias()
    members = select(revision_instance.c.instance_id).where(revision_instance.c.revision_id == revision_id)
    damaged = db.execute(
        select(instance.c.id, instance.c.sop_instance_uid, instance.c.dataset_sha256).where(
            instance.c.id.in_(members), instance.c.damaged_at.is_not(None), instance.c.purged_at.is_(None)
        )
    ).all()
    for each in damaged:
        replaced = exists().where(
            again.c.series_instance_uid == instance.c.series_instance_uid,
            again.c.sop_instance_uid == instance.c.sop_instance_uid,
            again.c.current,
        )
        restored = update(instance).where(instance.c.id == each.id, ~replaced)
        if db.execute(restored.values(current=True, damaged_at=None)).rowcount:
            db.execute(
                delete(refusal).where(
                    refusal.c.sop_instance_uid == each.sop_instance_uid,
                    refusal.c.dataset_sha256 == each.dataset_sha256,
                    refusal.c.reason == _REASON,
                )
            )
