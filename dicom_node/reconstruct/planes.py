"""One plane per frame: where it lies and what its stored values mean, from classic and multi-frame CT alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid
from dicom_node.reconstruct.select import converted_attributes, functional_groups, is_multi_frame
from dicom_node.standard.attributes import finite_numbers, is_stated, items, text, texts, whole_number
from dicom_node.types import SourceFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.types import Series

_LARGEST_SOUND_HU = 2.0**24
"""Whole numbers up to here are exact in float32; real CT stays three orders of magnitude below."""

_OTHER_RESCALE_TYPES = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})
"""Safe to quote: a value beside these may be any text."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One image plane as its header states it.

    ``instance`` is the index into ``Series.instances``, ``frame_index`` counts from 0 within that instance.
    ``position_lps_mm`` is Image Position (Patient), ``orientation`` the six cosines of Image Orientation (Patient),
    ``row_spacing_mm`` the distance between neighbouring rows, ``column_spacing_mm`` between neighbouring columns.
    """

    instance: int
    frame_index: int
    frame: SourceFrame
    rows: int
    columns: int
    position_lps_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    rescale_slope: float
    rescale_intercept: float
    rescale_type: str


def planes_of(series: Series) -> tuple[Plane, ...]:
    """Every plane of an eligible series, in the order of the instances and their frames.

    Raises:
        GeometryRefused: position, orientation or pixel spacing missing or not a number.
        PixelDataInvalid: dimensions, Number of Frames or rescale missing, contradictory or without sense.
        NotEligible: the rescaled values are stated to be something else than Hounsfield units.
    """
    planes: list[Plane] = []
    for index, instance in enumerate(series.instances):
        header = instance.header
        _refuse_modality_lut(header)
        frames = _multi_frame_items(header) if is_multi_frame(header) else [_classic_items(header)]
        planes.extend(_plane(header, index, number, macros) for number, macros in enumerate(frames))
    return tuple(planes)


@dataclass(frozen=True, slots=True)
class _Macros:
    """The data sets that hold each group of attributes for one frame (PS3.3 C.7.6.16.2).

    Some writers of multi-frame objects state the rescale in the header, as in classic images, instead of its macro.
    """

    position: Dataset
    orientation: Dataset
    measures: Dataset
    transformation: Dataset


def _classic_items(header: Dataset) -> _Macros:
    return _Macros(header, header, header, header)


def _multi_frame_items(header: Dataset) -> list[_Macros]:
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    shared = items(header, "SharedFunctionalGroupsSequence")
    stated = whole_number(header, "NumberOfFrames", PixelDataInvalid, _where(header))
    if stated != len(per_frame):
        raise PixelDataInvalid(
            f"{_where(header)}: Number of Frames is {stated}, but there are {len(per_frame)} per-frame items"
        )
    return [
        _Macros(
            position=_macro(group, shared, "PlanePositionSequence"),
            orientation=_macro(group, shared, "PlaneOrientationSequence"),
            measures=_macro(group, shared, "PixelMeasuresSequence"),
            transformation=_macro(group, shared, "PixelValueTransformationSequence") or header,
        )
        for group in per_frame
    ]


def _macro(group: Dataset, shared: Sequence[Dataset], keyword: str) -> Dataset:
    """The one item of a functional group macro, of the frame itself or shared; an empty one where there is none."""
    for candidate in (group, *shared):
        found = items(candidate, keyword)
        if found:
            return found[0]
    return Dataset()


def _plane(header: Dataset, instance: int, frame_index: int, macros: _Macros) -> Plane:
    multi_frame = is_multi_frame(header)
    where = _where(header) + (f" frame {frame_index + 1}" if multi_frame else "")
    row_spacing, column_spacing = finite_numbers(macros.measures, "PixelSpacing", 2, GeometryRefused, where)
    rescale_type = _rescale_type(header, macros.transformation, where)
    slope, intercept = _rescale(macros.transformation, where)
    return Plane(
        instance=instance,
        frame_index=frame_index,
        frame=SourceFrame(
            sop_instance_uid=text(header, "SOPInstanceUID"),
            sop_class_uid=text(header, "SOPClassUID"),
            frame_number=frame_index + 1 if multi_frame else None,
        ),
        rows=_positive(header, "Rows", where),
        columns=_positive(header, "Columns", where),
        position_lps_mm=finite_numbers(macros.position, "ImagePositionPatient", 3, GeometryRefused, where),
        orientation=finite_numbers(macros.orientation, "ImageOrientationPatient", 6, GeometryRefused, where),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        rescale_slope=slope,
        rescale_intercept=intercept,
        rescale_type=rescale_type,
    )


def _refuse_modality_lut(header: Dataset) -> None:
    """A Modality LUT stands in place of a rescale (PS3.3 C.11.1), which CT must have; its values are unsigned."""
    places = [header]
    for group in functional_groups(header):
        places += [*items(group, "PixelValueTransformationSequence"), *converted_attributes(group)]
    if any(is_stated(place, "ModalityLUTSequence") for place in places):
        raise PixelDataInvalid(
            f"{_where(header)}: a Modality LUT Sequence is stated, which excludes Rescale Slope and Intercept (PS3.3 "
            "C.11.1); only these give Hounsfield units"
        )


def _positive(header: Dataset, keyword: str, where: str) -> int:
    number = whole_number(header, keyword, PixelDataInvalid, where)
    if number < 1:
        raise PixelDataInvalid(f"{where}: {keyword} is {number}, expected at least 1")
    return number


def _rescale_type(header: Dataset, transformation: Dataset, where: str) -> str:
    """``HU`` or ``US`` (PS3.3 C.11.1.1.2); every other type says that the values are no Hounsfield units.

    An absent one means HU (PS3.3 C.8.2.1: required if the type is not HU). "Unspecified" is what some systems write
    over true HU and others over perfusion maps, whose background may be -1024 too: of original images the values
    themselves must tell (see ``scale``), of derived ones nobody can.
    """
    rescale_type = text(transformation, "RescaleType").upper() or "HU"
    if rescale_type == "US" and texts(header, "ImageType")[:1] != ("ORIGINAL",):
        raise NotEligible(
            f"{where}: Rescale Type is US (unspecified) and Image Type not ORIGINAL: not Hounsfield units, as far as "
            "the headers tell"
        )
    if rescale_type not in ("HU", "US"):
        named = rescale_type if rescale_type in _OTHER_RESCALE_TYPES else "none of the standard's"
        raise NotEligible(f"{where}: Rescale Type ({named}) states that the values are not Hounsfield units")
    return rescale_type


def _rescale(transformation: Dataset, where: str) -> tuple[float, float]:
    """Slope and intercept to Hounsfield units."""
    (slope,) = finite_numbers(transformation, "RescaleSlope", 1, PixelDataInvalid, where)
    (intercept,) = finite_numbers(transformation, "RescaleIntercept", 1, PixelDataInvalid, where)
    if slope <= 0 or max(slope * 2**16, abs(intercept)) > _LARGEST_SOUND_HU:
        raise PixelDataInvalid(f"{where}: Rescale Slope {slope:g} with Intercept {intercept:g} gives no sound HU")
    return slope, intercept


def _where(header: Dataset) -> str:
    return f"instance {text(header, 'SOPInstanceUID')}"
