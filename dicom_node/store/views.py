"""The ledger as people and programs see it: frozen values without patient data, and their JSON form.

The field names are the keys of the JSON that ``dicom-node status``, ``jobs`` and ``job`` print for programs: fields may
be added, but not renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import DataclassInstance

    from dicom_node.store.states import DeliveryState, JobState, RevisionState
    from dicom_node.types import ConditionOutcome, ResultKind
    from inference.types import ModelIdentity, RunReport


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each are in which state. ``associations`` has ``open``; ``instances`` has ``current``, ``replaced``
    (newer bytes arrived under the same UID), ``damaged`` (the stored bytes changed) and ``purged``.
    """

    associations: Mapping[str, int]
    instances: Mapping[str, int]
    series: Mapping[RevisionState, int]
    jobs: Mapping[JobState, int]
    deliveries: Mapping[DeliveryState, int]


@dataclass(frozen=True, slots=True)
class OpenSeries:
    """A series that is still arriving; ``look_again_at`` is None if it is due for a check now."""

    series_instance_uid: str
    revision: int
    sending_ae: str
    first_arrival: datetime
    last_arrival: datetime
    look_again_at: datetime | None
    expected_count: int | None


@dataclass(frozen=True, slots=True)
class JobRow:
    """One line of the list of jobs; ``progress`` is a fraction (0..1)."""

    id: int
    state: JobState
    model: str | None
    rule: str | None
    priority: int
    attempts: int
    progress: float
    stage: str
    reason: str
    created_at: datetime
    ended_at: datetime | None
    series_instance_uid: str
    study_instance_uid: str
    revision: int
    sending_ae: str


@dataclass(frozen=True, slots=True)
class RevisionView:
    """The revision of a series that a job works on, and the evidence that it is complete."""

    id: int
    series_instance_uid: str
    study_instance_uid: str
    sending_ae: str
    revision: int
    state: RevisionState
    version: int
    first_arrival: datetime
    last_arrival: datetime
    look_again_at: datetime | None
    expected_count: int | None
    count_asked_version: int | None
    completed_at: datetime | None
    reason: str | None
    evidence: Mapping[str, Any] | None
    content_digest: str | None
    bytes_digest: str | None
    same_images_as: str | None
    sent: bool
    """Whether some of its instances were sent to the node; false where a cohort pulled them all."""
    routing_attempts: int


@dataclass(frozen=True, slots=True)
class ResultView:
    """One result of a job; ``purged_at`` is when its file was deleted."""

    id: int
    job_id: int
    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    spool_name: str
    sha256: str
    size_bytes: int
    purged_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One result at one destination, and the last answer (``last_status``: the DIMSE status).

    ``first_attempt_s``: the elapsed time (:mod:`dicom_node.store.elapsed`) at the first attempt.
    """

    id: int
    result_id: int
    destination: str
    state: DeliveryState
    attempts: int
    refusals: int
    claimed_by: str | None
    lease_until: datetime | None
    first_attempt_at: datetime | None
    first_attempt_s: float | None
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_reason: str


@dataclass(frozen=True, slots=True)
class JobView:
    """Everything about one job. ``decision`` maps the name of each rule to the outcomes of its conditions,
    ``destinations`` each destination to its options when the series was routed. ``unchecked_hu``: the rule takes the
    values for Hounsfield units whatever they look like. ``not_counted``: how many attempts were cut off by
    what is no fault of the job. ``image_notes`` say what a reader should know of the images that were reconstructed,
    ``notes`` why the series is not known to be whole.
    """

    id: int
    revision_id: int
    rule: str | None
    model: str | None
    destinations: Mapping[str, Mapping[str, Any]]
    priority: int
    unchecked_hu: bool
    decision: Mapping[str, tuple[ConditionOutcome, ...]]
    state: JobState
    reason: str
    attempts: int
    not_counted: int
    claimed_by: str | None
    lease_until: datetime | None
    not_before: datetime | None
    created_at: datetime
    requeued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    progress: float
    stage: str
    stage_seconds: Mapping[str, float] | None
    model_identity: ModelIdentity | None
    run_report: RunReport | None
    names_by_label: Mapping[str, str] | None
    image_notes: tuple[str, ...]
    series: RevisionView
    results: tuple[ResultView, ...]
    deliveries: tuple[DeliveryView, ...]
    notes: tuple[str, ...]


def json_form(view: DataclassInstance) -> dict[str, Any]:
    """``view`` as dicts, lists and plain values, ready for :func:`json.dumps`; times as ISO 8601."""
    return {field.name: _plain(getattr(view, field.name)) for field in fields(view)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return json_form(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value
