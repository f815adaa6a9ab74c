"""The objects that a run makes: each distinct one once, however many destinations asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dicom_node.encode.provenance import plain, replacing
from dicom_node.errors import EncodingError
from dicom_node.types import EarlierResult, ResultKind, ResultRequest, SegmentationForm
from inference.structures import STRUCTURES, structure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Segment

_GROUPS = tuple(dict.fromkeys(structure.group for structure in STRUCTURES))
_KINDS = {
    SegmentationForm.NONE: (),
    SegmentationForm.BINARY: (ResultKind.SEGMENTATION,),
    SegmentationForm.LABELMAP: (ResultKind.LABELMAP,),
    SegmentationForm.BOTH: (ResultKind.SEGMENTATION, ResultKind.LABELMAP),
}
_NAMES_IN_DESCRIPTION = 2


@dataclass(frozen=True, slots=True)
class Selection:
    """The structures of an object: those chosen by name or group (None: all), within one ``group`` or all of them."""

    chosen: tuple[str, ...] | None = None
    group: str | None = None

    def of(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """The selected ``segments``, numbered from 1."""
        held = (segment for segment in segments if self._holds(segment.structure.name, segment.structure.group))
        return tuple(replace(segment, number=number) for number, segment in enumerate(held, start=1))

    def names(self, names: Iterable[str]) -> tuple[str, ...]:
        """The selected ``names``."""
        return tuple(name for name in names if self._holds(name, structure(name).group))

    def on(self, provenance: Provenance, replaced: tuple[EarlierResult, ...], variant: str = "") -> Provenance:
        """``provenance`` of an object with this selection that supersedes ``replaced``: both stated, with its own UIDs.

        ``variant`` distinguishes objects of one kind and selection.
        """
        parts = [variant, *(self.chosen or ()), f"group {self.group}" if self.group else ""]
        parts.extend(map(_after, replaced))
        identity = replace(provenance.identity, variant=" ".join(filter(None, parts)))
        provenance = replacing(replace(provenance, identity=identity), replaced)
        if self.chosen is None and self.group is None:
            return provenance
        asked = f"group {self.group}" if self.group else ", ".join(self.chosen or ())
        said = plain(f"Contains only the requested structures: {asked}.", 1024)
        statements = (*provenance.statements, said)
        return replace(provenance, statements=statements, part=f"({self._title})")

    @property
    def _title(self) -> str:
        if self.group is not None:
            return self.group
        names = self.chosen or ()
        return ", ".join(names) if len(names) <= _NAMES_IN_DESCRIPTION else f"{len(names)} structures"

    def _holds(self, name: str, group: str) -> bool:
        if self.group not in (None, group):
            return False
        return self.chosen is None or name in self.chosen or group in self.chosen


@dataclass(frozen=True, slots=True)
class SegmentationVariant:
    """One SEG; ``index`` counts the SEG series of one kind that a destination gets."""

    kind: ResultKind
    selection: Selection
    background: bool
    index: int
    replaced: tuple[EarlierResult, ...] = ()

    def on(self, provenance: Provenance) -> Provenance:
        """``provenance`` of this object."""
        return self.selection.on(provenance, self.replaced, self.form)

    @property
    def known_as(self) -> str:
        """What distinguishes it from other SEGs of the run with the same choice of structures."""
        parts = (self.kind, self.form, self.selection.group, *map(_after, self.replaced))
        return " ".join(part for part in parts if part)

    @property
    def form(self) -> str:
        """How it deviates from the default SEG of its kind."""
        return "without background" if self.kind is ResultKind.LABELMAP and not self.background else ""


@dataclass(frozen=True, slots=True)
class ReportVariant:
    """One SR, on the structures of ``selection``, that refers to ``segmentations``.

    ``percentiles``: the digest of the reference percentiles in which it places the patient; empty for none.
    """

    selection: Selection
    segmentations: tuple[SegmentationVariant, ...]
    ibsi_codes: bool
    shape: bool = False
    percentiles: str = ""
    replaced: tuple[EarlierResult, ...] = ()

    def on(self, provenance: Provenance, segments: tuple[Segment, ...]) -> Provenance:
        """``provenance`` of this object, on these ``segments``."""
        refers_to = {each.known_as for each in self.segmentations}
        if segments and not self.segmentations:
            refers_to = {"nothing"}
        parts = [f"on {', '.join(sorted(refers_to))}" if refers_to - {ResultKind.SEGMENTATION} else ""]
        parts.append("with IBSI codes" if self.ibsi_codes else "")
        parts.append("with shape" if self.shape else "")
        parts.append(_placed_in(self.percentiles))
        return self.selection.on(provenance, self.replaced, " ".join(filter(None, parts)))


@dataclass(frozen=True, slots=True)
class ContoursVariant:
    """One RT Structure Set with the contours of ``selection``."""

    selection: Selection
    replaced: tuple[EarlierResult, ...] = ()

    def on(self, provenance: Provenance) -> Provenance:
        """``provenance`` of this object."""
        return self.selection.on(provenance, self.replaced)


@dataclass(frozen=True, slots=True)
class PagesVariant:
    """The report page on ``selection``: as secondary captures, with an overlay series, or as a document.

    ``percentiles`` as for a report.
    """

    kind: ResultKind
    selection: Selection
    percentiles: str = ""
    replaced: tuple[EarlierResult, ...] = ()

    def on(self, provenance: Provenance) -> Provenance:
        """``provenance`` of these objects."""
        return self.selection.on(provenance, self.replaced, _placed_in(self.percentiles))


Variant = SegmentationVariant | ReportVariant | ContoursVariant | PagesVariant


def variants(
    requests: Mapping[str, ResultRequest],
    segments: tuple[Segment, ...],
    earlier: Mapping[str | None, tuple[EarlierResult, ...]],
    digests: Mapping[str, str],
) -> Mapping[Variant, tuple[str, ...]]:
    """Each object to make, with the destinations that get it; without a destination, the default objects.

    An object names the ``earlier`` results that it supersedes; destinations that hold different ones get different
    objects. ``digests`` are those of the files of percentiles.

    Raises:
        EncodingError: a destination has not been asked yet what it accepts, or a file of percentiles was not read.
    """
    wanted: dict[Variant, tuple[str, ...]] = {}
    if not requests:
        return dict.fromkeys(_of(ResultRequest(), segments, earlier.get(None, ()), ""), ())
    for destination, request in requests.items():
        if request.asks_peer:
            raise EncodingError(f"{destination} has not been asked yet what it accepts")
        if request.percentiles and request.percentiles not in digests:
            raise EncodingError(f"the percentiles that {destination} gets have not been read")
        digest = digests.get(request.percentiles, "")
        for variant in _of(request, segments, earlier.get(destination, ()), digest):
            wanted[variant] = (*wanted.get(variant, ()), destination)
    return wanted


def _of(
    request: ResultRequest, segments: tuple[Segment, ...], earlier: tuple[EarlierResult, ...], percentiles: str
) -> list[Variant]:
    def replaced(kind: ResultKind) -> tuple[EarlierResult, ...]:
        return tuple(each for each in earlier if each.kind.family is kind.family)

    kinds = _KINDS[request.segmentation]
    chosen = None if request.structures is None else tuple(sorted(set(request.structures)))
    made: dict[ResultKind, list[SegmentationVariant]] = {kind: [] for kind in kinds}
    for kind in kinds:
        for index, group in enumerate(_GROUPS if request.split_by_group else (None,)):
            selection = Selection(chosen, group)
            if selection.of(segments):
                background = request.background and kind is ResultKind.LABELMAP
                made[kind].append(SegmentationVariant(kind, selection, background, index, replaced(kind)))
    found: list[Variant] = [variant for kind in kinds for variant in made[kind]]
    if request.report:
        referenced = tuple(made[kinds[0]]) if kinds else ()
        found.append(
            ReportVariant(
                Selection(chosen),
                referenced,
                request.ibsi_codes,
                request.shape,
                percentiles,
                replaced(ResultKind.REPORT),
            )
        )
    contoured = Selection(tuple(sorted(set(request.contours))))
    if contoured.of(segments):
        found.append(ContoursVariant(contoured, replaced(ResultKind.CONTOURS)))
    pages = {ResultKind.CAPTURE: request.capture, ResultKind.DOCUMENT: request.document}
    found.extend(
        PagesVariant(kind, Selection(chosen), percentiles, replaced(kind))
        for kind, is_wanted in pages.items()
        if is_wanted
    )
    return found


def _placed_in(percentiles: str) -> str:
    return f"with percentiles {percentiles}" if percentiles else ""


def _after(earlier: EarlierResult) -> str:
    return f"after {earlier.sop_instance_uid}"
