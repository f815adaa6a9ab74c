"""The values that the packages exchange: frozen, and validated on construction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from inference.types import Volume


LABEL_MAP_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""SOP Class of label maps (DICOM 2024d, Supplement 243)."""


class ResultKind(StrEnum):
    """The kinds of result that the node makes."""

    SEGMENTATION = "SEG"
    """Segmentation Storage (1.2.840.10008.5.1.4.1.1.66.4), BINARY."""
    LABELMAP = "LABELMAP"
    """Label Map Segmentation Storage (1.2.840.10008.5.1.4.1.1.66.7)."""
    REPORT = "SR"
    """TID 1500 Measurement Report."""
    CONTOURS = "RTSTRUCT"
    CAPTURE = "SC"
    """Secondary captures: a report page and a series with overlay."""
    DOCUMENT = "PDF"
    """The report page as encapsulated PDF."""
    NOTICE = "NOTICE"
    """An SR that says why a series was not processed."""

    @property
    def family(self) -> ResultKind:
        """What all kinds that replace each other have in common: REPORT for NOTICE, SEGMENTATION for LABELMAP."""
        return _FAMILIES.get(self, self)


_FAMILIES = {ResultKind.LABELMAP: ResultKind.SEGMENTATION, ResultKind.NOTICE: ResultKind.REPORT}


class SegmentationForm(StrEnum):
    """The form in which a destination gets the segmentation."""

    NONE = "none"
    BINARY = "binary"
    LABELMAP = "labelmap"
    AUTO = "auto"
    """A label map if the destination accepts one at negotiation, otherwise BINARY."""
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class ResultRequest:
    """The results that one destination gets from a run; the defaults apply to a destination given by name only.

    ``structures`` and ``contours`` hold names or groups of the anatomy catalogue; ``structures`` None: all that were
    found. ``split_by_group``: one SEG series per anatomical group. ``background``: describe the background of a label
    map as a segment of its own. ``shape``: report the shape of each structure too. ``percentiles``: a file of reference
    percentiles, in which report and pages place the patient; research only, none by default. ``notice``: if a series is
    rejected or fails, send a notice with the reason.
    """

    segmentation: SegmentationForm = SegmentationForm.BINARY
    split_by_group: bool = False
    background: bool = True
    structures: tuple[str, ...] | None = None
    report: bool = True
    ibsi_codes: bool = False
    shape: bool = False
    contours: tuple[str, ...] = ()
    capture: bool = False
    document: bool = False
    notice: bool = False
    percentiles: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigurationError if the options contradict each other."""
        form = self.segmentation
        if self.split_by_group and form is SegmentationForm.NONE:
            raise ConfigurationError("split_by_group requires a segmentation")
        if not self.background and form in (SegmentationForm.NONE, SegmentationForm.BINARY):
            raise ConfigurationError(f"background applies to label maps only, not to segmentation: {form}")
        for name, is_asked in (("ibsi_codes", self.ibsi_codes), ("shape", self.shape)):
            if is_asked and not self.report:
                raise ConfigurationError(f"{name} requires a report")
        if self.percentiles and not (self.report or self.capture or self.document):
            raise ConfigurationError("percentiles requires a report, a capture or a document")
        if self.structures == ():
            raise ConfigurationError("structures must not be empty; omit it to get all structures")
        others = (self.report, self.contours, self.capture, self.document, self.notice)
        if form is SegmentationForm.NONE and not any(others):
            raise ConfigurationError("no result is requested")

    @property
    def asks_peer(self) -> bool:
        """Whether the form depends on what the destination accepts."""
        return self.segmentation is SegmentationForm.AUTO

    def answered(self, *, accepts_labelmap: bool) -> ResultRequest:
        """The request with the form settled by the destination's answer."""
        if not self.asks_peer:
            return self
        form = SegmentationForm.LABELMAP if accepts_labelmap else SegmentationForm.BINARY
        return replace(self, segmentation=form)


class Receipt(StrEnum):
    """How the ledger classified an accepted instance."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"
    """Same SOP Instance UID in the same series with the same bytes: acknowledged, and nothing more is stored."""
    REPLACEMENT = "REPLACEMENT"
    """Same SOP Instance UID in the same series with other bytes: the newest is current, the old bytes stay."""
    OUTDATED = "OUTDATED"
    """From a file in the spool that is older than the recorded bytes of this instance: recorded, but never current."""
    REUSED = "REUSED"
    """The SOP Instance UID belongs to another image of the series: refused, nothing is recorded."""


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """One instance whose data set is durable in the spool.

    ``spool_name`` is our own file name relative to the spool; ``dataset_sha256`` is over the data set bytes as they
    came (without preamble and file meta information). ``position_mm`` is the slice's place along its own normal, where
    the header has one, and ``orientation`` the six direction cosines as received; both serve series completion only.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    spool_name: str
    dataset_sha256: str
    size_bytes: int
    calling_ae: str
    peer_address: str
    association_id: str
    received_at: datetime
    position_mm: float | None = None
    orientation: tuple[float, ...] | None = None
    instance_number: int | None = None
    number_of_frames: int | None = None
    pixels_sha256: str | None = None
    """Over the value of Pixel Data as it came; None where there is none."""
    retrieved_by: str = ""
    """The AE title that asked for the instance, by a C-MOVE or for a cohort; empty for one that was sent."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One instance that was answered with a failure and not kept.

    ``sop_instance_uid`` is empty where what was announced is no UID; ``series_instance_uid`` and ``dataset_sha256`` are
    known only where the data set was read to its end.
    """

    sop_instance_uid: str
    series_instance_uid: str | None
    dataset_sha256: str | None
    status: int
    reason: str
    refused_at: datetime


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a stack that one association brought: the ends of its current slices along their normal.

    The association was released at ``closed_at``. Times are UTC.
    """

    opened_at: datetime
    closed_at: datetime
    lowest_mm: float
    highest_mm: float


@dataclass(frozen=True, slots=True)
class SeriesEvidence:
    """Everything that is known about whether a series is whole, at one moment.

    Times are UTC. ``positions_mm`` are the places of the current instances along the slice normal (None where a header
    told none), ``orientations`` counts the distinct orientations. ``expected_count`` is what the sender's own index
    says (Number of Series Related Instances), where it was asked and answered. ``aborted_associations`` counts those
    that broke off and were not followed by one that was released. ``refused_instances`` counts what was refused on the
    associations of the series, or by its sender at that time, and was not received since. ``stretches`` are what the
    released associations brought, in the order in which they were opened. ``learned_pause_s`` is the longest pause
    after which this sender continued one of its recent series in another association.
    """

    instance_count: int
    first_arrival: datetime
    last_arrival: datetime
    open_associations: int
    positions_mm: tuple[float | None, ...]
    orientations: int
    expected_count: int | None = None
    multi_frame: bool = False
    aborted_associations: int = 0
    refused_instances: int = 0
    stretches: tuple[Stretch, ...] = ()
    learned_pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """The verdict on a series: complete or not, why, and when to look again.

    ``is_cut_short``: the hard limit ended the wait, so that images may be missing. ``deliver_from``: work may begin
    at once, but no result leaves the node earlier. ``longest_pause_s``: after how long the sender still continued the
    stack, in another association.
    """

    complete: bool
    reason: str
    look_again_at: datetime | None = None
    is_cut_short: bool = False
    deliver_from: datetime | None = None
    longest_pause_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class SourceInstance:
    """One stored instance of a series: its file, and its header (everything but pixel data, with ``file_meta``).

    ``remark`` says where the file contradicts its own data set; empty as a rule. ``pixel_data_offset`` is where Pixel
    Data begins in the file; None where nobody has noted it, or the file is no Part 10 file that can be read as it is.
    """

    path: Path
    header: Dataset
    remark: str = ""
    pixel_data_offset: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """All current instances of one series, one per SOP Instance UID.

    ``unchecked_hu``: the rescaled values count as Hounsfield units even where they don't look like it.
    """

    series_instance_uid: str
    study_instance_uid: str
    instances: tuple[SourceInstance, ...]
    sending_ae: str = ""
    completion_reason: str = ""
    unchecked_hu: bool = False
    notes: tuple[str, ...] = ()
    """What a reader of results should know of how the instances were found."""


@dataclass(frozen=True, slots=True)
class ConditionOutcome:
    """One condition of a rule, the value that decided it, and whether it held."""

    condition: str
    seen: str
    held: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The rules' decision on one series, with the outcome of every condition of every rule that was evaluated.

    ``rule`` is the rule that decided, ``requests`` the results that each destination gets. ``model`` is None if no rule
    matched, or if the deciding rule refuses the series with ``refusal`` as the reason.
    ``unchecked_hu``: see :class:`Series`.
    """

    rule: str | None
    model: str | None
    requests: Mapping[str, ResultRequest]
    priority: int
    outcomes: Mapping[str, tuple[ConditionOutcome, ...]] = field(default_factory=dict)
    refusal: str | None = None
    unchecked_hu: bool = False

    @property
    def destinations(self) -> tuple[str, ...]:
        """Where the results go."""
        return tuple(self.requests)

    @property
    def reason(self) -> str:
        """One line for people."""
        if self.refusal is not None:
            return f"rule {self.rule!r} refuses: {self.refusal}"
        if self.rule is not None:
            return f"rule {self.rule!r} matched"
        if not self.outcomes:
            return "no rules are configured"
        first_misses = (
            f"{name}: {next(f'{o.condition} (found: {o.seen})' for o in outcomes if not o.held)}"
            for name, outcomes in self.outcomes.items()
        )
        return "no rule matched; " + "; ".join(first_misses)


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """The image that a plane of a volume came from; ``frame_number`` (from 1) for multi-frame objects only."""

    sop_instance_uid: str
    sop_class_uid: str
    frame_number: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """A CT volume and the frames it came from.

    ``source`` holds the voxels of the source frames: plane k of its array *is* ``frames[k]``, rows and columns as
    stored. ``volume`` is the orthogonal input of a segmenter: the same object as ``source`` or, if the gantry was
    tilted, ``source`` sheared upright by whole pixels.
    ``headers`` are the headers of the source instances (classic CT: one per plane,
    in plane order; multi-frame CT: one). ``shear_xy_pixels_per_plane`` is the in-plane shift between neighbouring
    source planes in (column, row) pixels; (0, 0) without tilt.
    """

    volume: Volume
    source: Volume
    frames: tuple[SourceFrame, ...]
    headers: tuple[Dataset, ...]
    shear_xy_pixels_per_plane: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()


def whole_pixels(pixels: float) -> int:
    """The whole pixels by which a source plane is shifted on the upright grid of a tilted gantry.

    Half a pixel is rounded to the same side however it was computed: images and overlays meet on that grid.
    """
    return round(round(pixels, 6))


@dataclass(frozen=True, slots=True)
class EarlierResult:
    """A result of an earlier revision of the same source series; ``revision`` is that revision.

    It belongs to the study that the series belonged to at that time.
    """

    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    revision: int


def notes_on_missing_images(missing_instances: int, refused_instances: int, *, is_cut_short: bool) -> tuple[str, ...]:
    """Why a series is not known to be whole, as results, log and ledger say it; see :class:`ResultContext`."""
    notes = []
    if missing_instances:
        notes.append(f"incomplete series. Missing instances according to the sender: {missing_instances}")
    if refused_instances:
        notes.append(f"incomplete series. Instances that were sent and refused: {refused_instances}")
    if is_cut_short:
        notes.append("incomplete series. The time limit was reached while images were still expected")
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class ResultContext:
    """Facts about one run that the result objects state.

    ``started_at`` is the start of the analysis (UTC; IHE AIR: Content Date/Time), ``revision`` the revision of the
    source series (from 1), ``content_digest`` the SHA-256 over the instances that went in, ``completion_reason``
    why the series was taken as whole, ``missing_instances`` how many more the sender counts (0 where it was not asked),
    ``refused_instances`` how many were sent with the series and not kept, ``is_cut_short`` whether the hard limit ended
    the wait for more, ``device_uid`` the UID of this installation. ``earlier`` are the results that each destination
    already holds (key None: those that no destination was to have) and this run replaces.
    """

    started_at: datetime
    revision: int
    content_digest: str
    station_name: str
    device_uid: str
    completion_reason: str = ""
    missing_instances: int = 0
    refused_instances: int = 0
    is_cut_short: bool = False
    earlier: Mapping[str | None, tuple[EarlierResult, ...]] = field(default_factory=dict)

    @property
    def is_incomplete(self) -> bool:
        """Whether images are missing or may be missing."""
        return bool(self.notes_on_missing)

    @property
    def notes_on_missing(self) -> tuple[str, ...]:
        """See :func:`notes_on_missing_images`."""
        return notes_on_missing_images(self.missing_instances, self.refused_instances, is_cut_short=self.is_cut_short)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedResult:
    """A checked result object in memory; the pipeline writes it to the spool.

    ``content`` is the whole DICOM Part 10 file, and the UIDs are those in it. ``destinations`` requested it.
    """

    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    content: bytes | memoryview
    destinations: tuple[str, ...] = ()

    @property
    def dataset(self) -> Dataset:
        """The data set, parsed from ``content`` on each call."""
        return dcmread(BytesIO(self.content))


@dataclass(frozen=True, slots=True)
class ResultInstance:
    """A result object durable in the spool. ``path`` is a DICOM Part 10 file."""

    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str
    size_bytes: int
    destinations: tuple[str, ...] = ()
    """Where it goes; the ledger records this as deliveries."""


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """The answer of one destination to one result instance.

    ``status`` is the DIMSE status, if one was received. ``reason`` is for people and never contains patient data.
    ``is_damaged``: it was not sent, because its file is not what was written; ``is_missing``: because it has none.
    """

    sop_instance_uid: str
    delivered: bool
    retry: bool
    status: int | None
    reason: str
    is_damaged: bool = False
    is_missing: bool = False
