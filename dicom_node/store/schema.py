"""The tables of the ledger. Times are UTC and timezone-aware in Python, regardless of the database.

::

    association 1-n instance n-m series_revision 1-n job 1-n result 1-n delivery
    association 1-n refusal
    cohort 1-n cohort_series

A ``refusal`` is an instance that was not kept; its row goes once the instance was received after all, or some days
after no series whose images are stored is concerned any more.
``instance.current`` is true for the newest bytes of a SOP Instance in its series, unless the stored bytes changed
(``damaged_at``). ``series_revision`` moves OPEN -> COMPLETE -> ROUTED; its ``version`` counts every arrival and every
end of an association, so that a verdict that was reached on older evidence is not written. Its ``bytes_digest`` is over
the data sets as received; ``content_digest`` is the same, or that of an earlier revision that says the same in other
bytes; ``same_images_as`` is that of an earlier revision from which only patient and study differ. ``job.attempts`` is
the fencing token: it is counted before the work starts, and a worker with an older number can no longer change the row.
``job.not_counted`` are the attempts that do not count towards the limit. ``job.destinations`` maps each destination to
what it gets, as it was when the series was routed. A delivery is claimed in the same way. A ``process`` has a role on a
data folder; :mod:`dicom_node.store.processes` has its rules. ``boot`` has the elapsed time, in which ``since_s``,
``noted_s`` and ``first_attempt_s`` are given; :mod:`dicom_node.store.elapsed` explains it. ``settled`` are the series
of which nothing is owed any more. A ``cohort_series`` is a series that a research run pulls;
:mod:`dicom_node.store.cohorts` has its states.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time, for databases that store the zone and for those that don't (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """To the database: UTC, without the zone if the database can't store it."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From the database: timezone-aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_RowId = BigInteger().with_variant(Integer, "sqlite")
_Uid = String(64)

installation = Table(
    "installation",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

association = Table(
    "association",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("calling_ae", String(16), nullable=False),
    Column("peer_address", String(64), nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime, index=True),
    Column("aborted", Boolean, nullable=False, default=False),
)

instance = Table(
    "instance",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("sop_instance_uid", _Uid, nullable=False),
    Column("sop_class_uid", _Uid, nullable=False),
    Column("series_instance_uid", _Uid, nullable=False, index=True),
    Column("study_instance_uid", _Uid, nullable=False),
    Column("transfer_syntax_uid", _Uid, nullable=False),
    Column("spool_name", String(255), nullable=False, unique=True),
    Column("dataset_sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("peer_address", String(64), nullable=False),
    Column("association_id", String(64), nullable=False, index=True),
    Column("received_at", UtcDateTime, nullable=False),
    Column("position_mm", Float),
    Column("orientation", JSON),
    Column("instance_number", BigInteger),
    Column("number_of_frames", BigInteger),
    Column("pixels_sha256", String(64)),
    Column("current", Boolean, nullable=False),
    Column("duplicates", Integer, nullable=False, default=0),
    Column("purged_at", UtcDateTime),
    Column("damaged_at", UtcDateTime),
    Index(
        "ix_instance_current",
        "series_instance_uid",
        "sop_instance_uid",
        unique=True,
        sqlite_where=text("current"),
        postgresql_where=text("current"),
    ),
)
IS_CURRENT = text("instance.current")
"""``instance.c.current`` as ``ix_instance_current`` says it: SQLAlchemy writes ``current = 1`` for SQLite, which then
makes no use of the index and reads every instance that ever arrived.
"""

refusal = Table(
    "refusal",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("association_id", String(64), nullable=False, index=True),
    Column("calling_ae", String(16), nullable=False),
    Column("sop_instance_uid", _Uid, nullable=False, index=True),
    Column("series_instance_uid", _Uid, index=True),
    Column("dataset_sha256", String(64)),
    Column("status", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("refused_at", UtcDateTime, nullable=False, index=True),
    Column("noted_s", Float, index=True),
)

series_revision = Table(
    "series_revision",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("series_instance_uid", _Uid, nullable=False),
    Column("study_instance_uid", _Uid, nullable=False),
    Column("sending_ae", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("first_arrival", UtcDateTime, nullable=False),
    Column("last_arrival", UtcDateTime, nullable=False),
    Column("look_again_at", UtcDateTime),
    Column("expected_count", Integer),
    Column("count_asked_version", Integer),
    Column("completed_at", UtcDateTime),
    Column("reason", Text),
    Column("evidence", JSON),
    Column("content_digest", String(64)),
    Column("bytes_digest", String(64)),
    Column("same_images_as", String(64)),
    Column("sent", Boolean, nullable=False, default=True, server_default=true()),
    Column("routing_attempts", Integer, nullable=False, default=0, server_default="0"),
    UniqueConstraint("series_instance_uid", "revision"),
    Index("ix_series_revision_sender", "sending_ae", "id"),
)

revision_instance = Table(
    "revision_instance",
    metadata,
    Column("revision_id", ForeignKey("series_revision.id"), primary_key=True),
    Column("instance_id", ForeignKey("instance.id"), primary_key=True, index=True),
)

job = Table(
    "job",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("revision_id", ForeignKey("series_revision.id"), nullable=False, index=True),
    Column("rule", String(255)),
    Column("model", String(255)),
    Column("destinations", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("unchecked_hu", Boolean, nullable=False, server_default=false()),
    Column("decision", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False),
    Column("not_counted", Integer, nullable=False, default=0, server_default="0"),
    Column("claimed_by", String(255)),
    Column("lease_until", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("requeued_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("progress", Float, nullable=False, default=0.0),
    Column("stage", String(64), nullable=False, default=""),
    Column("stage_seconds", JSON),
    Column("model_identity", JSON),
    Column("run_report", JSON),
    Column("names_by_label", JSON),
    Column("image_notes", JSON),
    Index("ix_job_queue", "state", "priority", "id"),
)

result = Table(
    "result",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("job_id", ForeignKey("job.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("sop_class_uid", _Uid, nullable=False),
    Column("sop_instance_uid", _Uid, nullable=False, index=True),
    Column("series_instance_uid", _Uid, nullable=False),
    Column("transfer_syntax_uid", _Uid, nullable=False),
    Column("spool_name", String(255), nullable=False, index=True),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("purged_at", UtcDateTime),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("result_id", ForeignKey("result.id"), nullable=False, index=True),
    Column("destination", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("refusals", Integer, nullable=False, default=0),
    Column("claimed_by", String(255), index=True),
    Column("lease_until", UtcDateTime),
    Column("first_attempt_at", UtcDateTime),
    Column("first_attempt_s", Float),
    Column("next_attempt_at", UtcDateTime),
    Column("delivered_at", UtcDateTime),
    Column("last_status", Integer),
    Column("last_reason", Text, nullable=False, default=""),
    UniqueConstraint("result_id", "destination"),
    Index("ix_delivery_due", "state", "destination", "next_attempt_at"),
)

process = Table(
    "process",
    metadata,
    Column("role", String(16), primary_key=True),
    Column("folder", String(1024), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("worker", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("heartbeat_s", Float, nullable=False),
)

boot = Table(
    "boot",
    metadata,
    Column("boot_id", String(64), primary_key=True),
    Column("uptime_s", Float, nullable=False),
    Column("elapsed_s", Float, nullable=False, index=True),
    Column("read_at", UtcDateTime, nullable=False),
)

settled = Table(
    "settled",
    metadata,
    Column("series_instance_uid", _Uid, primary_key=True),
    Column("version", String(128), nullable=False),
    Column("since_s", Float, nullable=False),
)

cohort = Table(
    "cohort",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("definition_sha256", String(64), nullable=False),
    Column("model", String(255)),
    Column("destinations", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("retrieves_as", String(16)),
    Column("selected_at", UtcDateTime),
)

cohort_series = Table(
    "cohort_series",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("cohort", ForeignKey("cohort.name"), nullable=False),
    Column("series_instance_uid", _Uid, nullable=False, index=True),
    Column("study_instance_uid", _Uid, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("expected_count", Integer),
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", UtcDateTime),
    Column("pull_started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    UniqueConstraint("cohort", "series_instance_uid"),
)
