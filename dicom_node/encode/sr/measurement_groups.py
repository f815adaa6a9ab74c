"""The Measurement Groups of a report (PS3.16 TID 1411), written from the bytes of one that highdicom made.

highdicom takes 20 ms per group. The template contains every item that a group may have; values are inserted as bytes,
and items that do not apply to a structure are left out.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dicom_node.encode import tags
from dicom_node.encode.codes import (
    ATTENUATION_COEFFICIENT,
    CUBIC_MILLIMETER,
    ELONGATION,
    FLATNESS,
    HOUNSFIELD_UNIT,
    IBSI_MAXIMUM,
    IBSI_MEAN,
    IBSI_MEDIAN,
    IBSI_MINIMUM,
    IBSI_VOLUME,
    LEAST_AXIS,
    MAJOR_AXIS,
    MAXIMUM,
    MAXIMUM_DIAMETER,
    MEAN,
    MEDIAN,
    MESH_SURFACE,
    MESH_VOLUME,
    MILLILITER,
    MILLIMETER,
    MINIMUM,
    MINOR_AXIS,
    NO_UNITS,
    SPHERICITY,
    SQUARE_MILLIMETER,
    STANDARD_DEVIATION,
    VOLUME,
    concept,
)
from dicom_node.encode.decimals import decimal
from dicom_node.encode.provenance import plain
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import (
    element,
    encoded_elements,
    item_of,
    items,
    sequence,
    text_element,
    values,
    within,
)

if TYPE_CHECKING:
    from pydicom.sr.coding import Code as DicomCode

    from dicom_node.encode.segments import Finding, Rank, Segment
    from inference.structures import Code, Structure
    from inference.types import ShapeMeasurement


_IMAGING_MEASUREMENTS = "126010"
_TRACKING_IDENTIFIER = "112039"
_TRACKING_UID = "112040"
_FINDING_CATEGORY = "276214006"
_FINDING = "121071"
_FINDING_SITE = "363698007"
_REFERENCED_SEGMENT = "121191"
_PERCENTILE_RANKING = "121415"
_POPULATION_DESCRIPTION = "121405"
_REFERENCE_AUTHORITY = "121406"
_OF_RANKED_ALONE = (_PERCENTILE_RANKING, _POPULATION_DESCRIPTION, _REFERENCE_AUTHORITY)
"""PS3.16 TID 311: a measurement without a rank has none of them."""
_OF_TRUNCATED_ALONE = ("130576", "121106")
"""Anatomy coverage incomplete, and the comment on it."""


def finding_site(structure: Structure) -> tuple[Code, Code | None]:
    """Finding Site and its Laterality."""
    if structure.region is not None:
        return structure.region, structure.region_modifier
    return structure.type, structure.type_modifier


class Stated(NamedTuple):
    """One measurement as a group states it; an undefined value is None."""

    kind: DicomCode
    value: float | None
    unit: DicomCode
    derivation: DicomCode | None = None
    rank: Rank | None = None


def measured_values(segment: Segment, *, ibsi_codes: bool) -> list[Stated]:
    """Every measurement, in the order of a group.

    With ``ibsi_codes``, those that have an IBSI code are repeated with it. Shape is included if it was measured.

    Raises:
        EncodingError: a value is not finite.
    """
    measured, name = segment.measurement, segment.structure.name
    stated = [
        Stated(VOLUME, measured.volume_ml, MILLILITER, rank=segment.volume_rank),
        Stated(ATTENUATION_COEFFICIENT, measured.mean_hu, HOUNSFIELD_UNIT, MEAN, segment.mean_hu_rank),
        Stated(ATTENUATION_COEFFICIENT, measured.sd_hu, HOUNSFIELD_UNIT, STANDARD_DEVIATION),
        Stated(ATTENUATION_COEFFICIENT, measured.min_hu, HOUNSFIELD_UNIT, MINIMUM),
        Stated(ATTENUATION_COEFFICIENT, measured.max_hu, HOUNSFIELD_UNIT, MAXIMUM),
        Stated(ATTENUATION_COEFFICIENT, measured.median_hu, HOUNSFIELD_UNIT, MEDIAN),
    ]
    if ibsi_codes:
        stated += [
            Stated(IBSI_VOLUME, 1000.0 * measured.volume_ml, CUBIC_MILLIMETER),
            Stated(IBSI_MEAN, measured.mean_hu, HOUNSFIELD_UNIT),
            Stated(IBSI_MINIMUM, measured.min_hu, HOUNSFIELD_UNIT),
            Stated(IBSI_MAXIMUM, measured.max_hu, HOUNSFIELD_UNIT),
            Stated(IBSI_MEDIAN, measured.median_hu, HOUNSFIELD_UNIT),
        ]
    if measured.shape is not None:
        stated += _shape_values(measured.shape)
    for each in stated:
        if each.value is not None and not math.isfinite(each.value):
            kind, derivation = each.kind.meaning, each.derivation
            what = kind if derivation is None else f"{derivation.meaning} of {kind}"
            raise EncodingError(f"{what} of {name} is {each.value}, expected a finite number")
    return stated


def _shape_values(shape: ShapeMeasurement) -> list[Stated]:
    return [
        Stated(MESH_VOLUME, shape.mesh_volume_mm3, CUBIC_MILLIMETER),
        Stated(MESH_SURFACE, shape.surface_area_mm2, SQUARE_MILLIMETER),
        Stated(SPHERICITY, shape.sphericity, NO_UNITS),
        Stated(MAXIMUM_DIAMETER, shape.maximum_diameter_mm, MILLIMETER),
        Stated(MAJOR_AXIS, shape.major_axis_mm, MILLIMETER),
        Stated(MINOR_AXIS, shape.minor_axis_mm, MILLIMETER),
        Stated(LEAST_AXIS, shape.least_axis_mm, MILLIMETER),
        Stated(ELONGATION, shape.elongation, NO_UNITS),
        Stated(FLATNESS, shape.flatness, NO_UNITS),
    ]


def any_rank(found: tuple[Finding, ...]) -> Rank | None:
    """One of the ranks that a report on ``found`` states; None if it states none."""
    ranks = (rank for each in found for rank in (each.segment.volume_rank, each.segment.mean_hu_rank) if rank)
    return next(ranks, None)


def with_everything(finding: Finding, rank: Rank | None) -> Finding:
    """``finding`` with a laterality and truncated, so that highdicom's group contains every possible item.

    ``rank`` is that of volume and mean, whatever its percentile.
    """
    segment, structure = finding.segment, finding.segment.structure
    site, side = finding_site(structure)
    shape = segment.measurement.shape
    rank = None if rank is None else replace(rank, percentile=1.0)
    whole = replace(
        segment,
        structure=replace(structure, region=site, region_modifier=side or site),
        measurement=replace(
            segment.measurement,
            truncated=True,
            shape=None if shape is None else replace(shape, elongation=1.0, flatness=1.0),
        ),
        volume_rank=rank,
        mean_hu_rank=rank,
    )
    return replace(finding, segment=whole)


def with_groups(report: memoryview, found: tuple[Finding, ...], *, ibsi_codes: bool) -> dict[int, bytes]:
    """A replacement for the Content Sequence of ``report`` that contains the groups of ``found``.

    The one group of ``report`` is that of a finding :func:`with_everything`. Either all of ``found`` refer to a SEG, or
    none does.

    Raises:
        EncodingError: a measurement is not finite.
    """
    children = []
    for child in items(values(report)[tags.CONTENT]):
        if _name(child) == _IMAGING_MEASUREMENTS:
            (group,) = items(values(child)[tags.CONTENT])
            template = _GroupTemplate.of(group, ibsi_codes=ibsi_codes, has_ranks=any_rank(found) is not None)
            container = encoded_elements(child)
            container[tags.CONTENT] = sequence(tags.CONTENT, map(template.filled, found))
            children.append(b"".join(container.values()))
        else:
            children.append(bytes(child))
    return {tags.CONTENT: sequence(tags.CONTENT, children)}


@dataclass(frozen=True, slots=True)
class _GroupTemplate:
    """The elements of a group, and those of each child Content Item with the code of its Concept Name.

    ``ibsi_codes`` says whether values are repeated with IBSI codes, ``has_ranks`` whether any has a rank.
    """

    group: dict[int, bytes]
    children: tuple[tuple[str, dict[int, bytes]], ...]
    ibsi_codes: bool
    has_ranks: bool

    @classmethod
    def of(cls, group: memoryview, *, ibsi_codes: bool, has_ranks: bool) -> _GroupTemplate:
        children = tuple((_name(child), encoded_elements(child)) for child in items(values(group)[tags.CONTENT]))
        return cls(encoded_elements(group), children, ibsi_codes, has_ranks)

    def filled(self, finding: Finding) -> bytes:
        """The group of ``finding``."""
        segment, structure = finding.segment, finding.segment.structure
        site, side = finding_site(structure)
        changes = {
            _TRACKING_IDENTIFIER: {tags.TEXT_VALUE: text_element(tags.TEXT_VALUE, b"UT", plain(structure.name, 64))},
            _TRACKING_UID: {tags.UID: text_element(tags.UID, b"UI", segment.tracking_uid)},
            _FINDING_CATEGORY: {tags.CONCEPT_CODE: _concept(structure.category)},
            _FINDING: {tags.CONCEPT_CODE: _concept(structure.type)},
            _FINDING_SITE: {tags.CONCEPT_CODE: _concept(site)},
        }
        measured = iter(measured_values(segment, ibsi_codes=self.ibsi_codes))
        contents = []
        for name, child in self.children:
            if name in _OF_TRUNCATED_ALONE and not segment.measurement.truncated:
                continue
            changed = child | changes.get(name, {})
            if name == _FINDING_SITE:
                changed[tags.CONTENT] = (
                    b"" if side is None else within(child, tags.CONTENT, {tags.CONCEPT_CODE: _concept(side)})
                )
            elif name == _REFERENCED_SEGMENT and finding.reference is not None:
                uid = finding.reference.sop_instance_uid
                changes_of_sop = {
                    tags.REFERENCED_SOP_INSTANCE_UID: text_element(tags.REFERENCED_SOP_INSTANCE_UID, b"UI", uid),
                    tags.REFERENCED_SEGMENT_NUMBER: element(
                        tags.REFERENCED_SEGMENT_NUMBER, b"US", struct.pack("<H", segment.number)
                    ),
                }
                changed[tags.REFERENCED_SOP] = within(child, tags.REFERENCED_SOP, changes_of_sop)
            elif tags.MEASURED_VALUE in child:
                stated = next(measured)
                if stated.value is None:
                    continue
                changed[tags.MEASURED_VALUE] = within(child, tags.MEASURED_VALUE, _number(stated.value))
                if self.has_ranks and tags.CONTENT in child:
                    changed[tags.CONTENT] = _properties(child[tags.CONTENT], stated.rank)
            contents.append(b"".join(changed.values()))
        return b"".join((self.group | {tags.CONTENT: sequence(tags.CONTENT, contents)}).values())


def _properties(content: bytes, rank: Rank | None) -> bytes:
    """The children of a measurement, those of TID 311 as in ``rank``; nothing where it has no others and no rank."""
    parts = []
    for child in items(values(memoryview(content))[tags.CONTENT]):
        name, part = _name(child), encoded_elements(child)
        if name in _OF_RANKED_ALONE:
            if rank is None or (name == _PERCENTILE_RANKING and rank.number is None):
                continue
            part |= _as_ranked(name, part, rank)
        parts.append(b"".join(part.values()))
    return sequence(tags.CONTENT, parts) if parts else b""


def _as_ranked(name: str, part: dict[int, bytes], rank: Rank) -> dict[int, bytes]:
    if name == _PERCENTILE_RANKING:
        assert rank.number is not None
        return {tags.MEASURED_VALUE: within(part, tags.MEASURED_VALUE, _number(rank.number))}
    said = rank.population if name == _POPULATION_DESCRIPTION else rank.authority
    return {tags.TEXT_VALUE: text_element(tags.TEXT_VALUE, b"UT", said)}


def _number(value: float) -> dict[int, bytes]:
    """A number in both forms: exact, and as a decimal string of at most 16 characters for older readers."""
    return {
        tags.FLOATING_POINT_VALUE: element(tags.FLOATING_POINT_VALUE, b"FD", struct.pack("<d", value)),
        tags.NUMERIC_VALUE: text_element(tags.NUMERIC_VALUE, b"DS", str(decimal(value))),
    }


@lru_cache(maxsize=1024)
def _concept(code: Code) -> bytes:
    return sequence(tags.CONCEPT_CODE, [item_of(concept(code))])


def _name(content_item: memoryview) -> str:
    """The code of the Concept Name of a Content Item."""
    (name,) = items(values(content_item)[tags.CONCEPT_NAME_CODE])
    return bytes(values(name)[tags.CODE_VALUE]).rstrip(b" ").decode("ascii")
