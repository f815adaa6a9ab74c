"""Read results back into values: the label map from a SEG, the measurements from a report.

This uses pydicom and numpy, not the code that wrote the objects, so that reading verifies writing. It reads the objects
of this node, and segmentations of other systems if each voxel belongs to at most one segment.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array

from dicom_node.errors import ResultUnreadable
from inference.types import Geometry, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_HIGHEST_LABEL = 255
_LARGEST_OFFSET_VOXELS = 0.05
_LARGEST_STEP_DIFFERENCE = 2e-3
"""From pixel to pixel, relative to the spacing. Cosines that vary within a series differ by less."""
_MEASUREMENT_GROUP = "125007"
_TRACKING_IDENTIFIER = "112039"
_TRACKING_UID = "112040"
_DERIVATION = "121401"
_VOLUME = "118565006"
_ATTENUATION = "112031"
_MEAN = "373098007"
_COVERAGE_INCOMPLETE, _YES = "130576", "373066001"
_FINDING, _FINDING_SITE, _LATERALITY = "121071", "363698007", "272741003"
_ALGORITHM = ("111001", "111003", "111002")
_SOURCE_SERIES = "121232"
_PERCENTILE_RANKING, _POPULATION_DESCRIPTION = "121415", "121405"
_GREY = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """One segment of a SEG.

    ``label`` is its Segment Number, ``name`` its Segment Label (in our objects, a name in :mod:`inference.structures`),
    ``cielab`` its encoded Recommended Display CIELab Value (PS3.3 C.10.7.1.1), empty if it has none.
    """

    label: int
    name: str
    tracking_uid: str
    cielab: tuple[int, ...]

    @property
    def rgb(self) -> tuple[float, float, float]:
        """The recommended colour in sRGB, 0..1 each; grey if none is recommended."""
        if not self.cielab:
            return _GREY
        from highdicom.color import CIELabColor  # noqa: PLC0415 - takes longer to load than a SEG to read

        red, green, blue = CIELabColor.from_dicom_value(list(self.cielab)).to_rgb()
        return red / 255, green / 255, blue / 255


@dataclass(frozen=True, slots=True, eq=False)
class StoredSegmentation:
    """The label map of a SEG: ``labels_zyx`` is uint8 on ``geometry``, 0 outside all segments.

    ``algorithm`` is the Segment Algorithm Name of the first segment, ``software`` every value of Software Versions (in
    our objects, node and model).
    """

    labels_zyx: NDArray[np.uint8]
    geometry: Geometry
    segments: tuple[StoredSegment, ...]
    algorithm: str
    software: tuple[str, ...] = ()

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """The name of every segment, present or not."""
        return {segment.label: segment.name for segment in self.segments}


@dataclass(frozen=True, slots=True)
class StoredValue:
    """One numeric measurement: Code Value and meaning of its concept, of its derivation ("" for none), UCUM unit.

    ``percentile``: where it stands in a reference population (PS3.16 TID 311), for research only; None if no number is
    stated. ``population`` describes that population; "" if there is none. A description without a number says that the
    percentile is beyond the outermost ones.
    """

    concept: str
    meaning: str
    derivation: str
    derivation_meaning: str
    value: float
    unit: str
    percentile: float | None = None
    population: str = ""


@dataclass(frozen=True, slots=True)
class StoredStructure:
    """One Measurement Group of a TID 1500 report; ``name`` is its Tracking Identifier."""

    name: str
    tracking_uid: str
    values: tuple[StoredValue, ...]
    truncated: bool = False
    """Whether the group says that its anatomy is not covered as a whole."""
    finding: tuple[str, str] = ("", "")
    """Code Value and Code Meaning of the Finding."""
    finding_site: tuple[str, str] = ("", "")
    laterality: str = ""
    """The meaning of the Laterality of the Finding Site, such as ``Left``; "" if there is none."""
    algorithm: tuple[str, str, str] = ("", "", "")
    """Name, version and parameters of the algorithm (TID 4019)."""
    source_series_uid: str = ""
    """Source Series for Segmentation."""

    @property
    def volume_ml(self) -> float | None:
        """Volume in ml; None if the group has none."""
        return self.value(_VOLUME, "", "ml")

    @property
    def mean_hu(self) -> float | None:
        """Mean attenuation in HU; None if the group has none."""
        return self.value(_ATTENUATION, _MEAN, "[hnsf'U]")

    def value(self, concept: str, derivation: str, unit: str) -> float | None:
        """The value of these codes (concept, derivation or "", UCUM unit); None if the group has none."""
        for stated in self.values:
            if (stated.concept, stated.derivation, stated.unit) == (concept, derivation, unit):
                return stated.value
        return None


def read_segmentation(path: Path, geometry: Geometry | None = None) -> StoredSegmentation:
    """Unpack a binary SEG or a label map; each frame goes to the plane at its stated position.

    ``geometry``: the grid of the source images, which the labels then have. Without it, they have the smallest grid
    that contains every frame, because frames without voxels are usually omitted.

    Raises:
        ResultUnreadable: it is no SEG, no binary one or label map, has labels above 255 or segments that overlap, its
            planes are not evenly spaced, a frame lies on no plane of ``geometry``, or the file is damaged.
    """
    with translated(path):
        return _segmentation(path, geometry)


def read_report(path: Path) -> tuple[StoredStructure, ...]:
    """Every Measurement Group of a TID 1500 report, in the order of the report.

    Raises:
        ResultUnreadable: it is not a Structured Report, or the file is damaged.
    """
    with translated(path):
        dataset = dcmread(path)
        if dataset.get("Modality") != "SR":
            raise ResultUnreadable(f"{path.name}: expected a Structured Report, found {dataset.get('Modality')}")
        return tuple(_structure(group) for group in _containers(dataset, _MEASUREMENT_GROUP))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate exceptions: on a damaged object pydicom and numpy raise anything, and quote its values.

    Raises:
        ResultUnreadable: something was raised in the block.
    """
    try:
        yield
    except ResultUnreadable:
        raise
    except OSError as error:
        raise ResultUnreadable(f"can't read {path}: {error.strerror or type(error).__name__}") from error
    except InvalidDicomError as error:
        raise ResultUnreadable(f"{path.name} is not a DICOM file") from error
    except Exception as error:
        raise ResultUnreadable(f"{path.name} is damaged or incomplete ({type(error).__name__})") from error


# ---- segmentations


def _segmentation(path: Path, geometry: Geometry | None) -> StoredSegmentation:
    dataset = dcmread(path)
    if dataset.get("SegmentationType") not in ("BINARY", "LABELMAP"):
        kind = dataset.get("SegmentationType") or dataset.get("Modality")
        raise ResultUnreadable(f"{path.name}: expected a binary segmentation or a label map, found {kind}")
    segments = tuple(_segment(item) for item in dataset.SegmentSequence if item.SegmentNumber)
    if any(segment.label > _HIGHEST_LABEL for segment in segments):
        raise ResultUnreadable(f"{path.name}: {len(segments)} segments; at most {_HIGHEST_LABEL} are supported")
    positions = np.array([_position(dataset, frame) for frame in range(int(dataset.NumberOfFrames))])
    grid = geometry if geometry is not None else _grid_of(dataset, positions, path.name)
    if grid.shape_zyx[1:] != (dataset.Rows, dataset.Columns):
        seen = f"{dataset.Rows} x {dataset.Columns}"
        raise ResultUnreadable(
            f"{path.name}: frames are {seen}, expected {grid.shape_zyx[1]} x {grid.shape_zyx[2]} as in the images"
        )
    if geometry is not None and len(positions):
        _refuse_other_axes(dataset, geometry, path.name)
    labels_zyx = np.zeros(grid.shape_zyx, np.uint8)
    for frame, plane in enumerate(_planes(positions, grid, path.name)):
        _put(labels_zyx[plane], dataset, frame, path.name)
    first = dataset.SegmentSequence[0] if segments else Dataset()
    algorithm, versions = first.get("SegmentAlgorithmName"), dataset.get("SoftwareVersions")
    software = [versions] if isinstance(versions, str) else versions or ()
    return StoredSegmentation(labels_zyx, grid, segments, str(algorithm or ""), tuple(map(str, software)))


def _segment(item: Dataset) -> StoredSegment:
    return StoredSegment(
        label=int(item.SegmentNumber),
        name=str(item.SegmentLabel),
        tracking_uid=str(item.get("TrackingUID", "")),
        cielab=tuple(int(value) for value in item.get("RecommendedDisplayCIELabValue") or ()),
    )


def _position(dataset: Dataset, frame: int) -> list[float]:
    return [float(value) for value in _group(dataset, frame, "PlanePositionSequence").ImagePositionPatient]


def _group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """A functional group of one frame; it is shared if it is the same in all frames (PS3.3 C.7.6.16.1)."""
    own = dataset.PerFrameFunctionalGroupsSequence[frame]
    item: Dataset = (own if keyword in own else dataset.SharedFunctionalGroupsSequence[0])[keyword].value[0]
    return item


def _grid_of(dataset: Dataset, positions: NDArray[np.float64], name: str) -> Geometry:
    """The grid between the outermost frames (PS3.3 C.7.6.16.2.1, C.7.6.16.2.3 and C.7.6.16.2.4)."""
    orientation = _group(dataset, 0, "PlaneOrientationSequence").ImageOrientationPatient
    row, column = np.array(orientation, np.float64).reshape(2, 3)
    measures = _group(dataset, 0, "PixelMeasuresSequence")
    row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
    normal = np.cross(row, column)
    heights = positions @ normal
    lowest, highest = int(heights.argmin()), int(heights.argmax())
    thickness = float(measures.get("SpacingBetweenSlices") or measures.SliceThickness)
    planes = round(float(heights[highest] - heights[lowest]) / thickness) + 1
    step = (positions[highest] - positions[lowest]) / (planes - 1) if planes > 1 else normal * thickness
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = (
        row * column_mm,
        column * row_mm,
        step,
        positions[lowest],
    )
    try:
        return Geometry((planes, int(dataset.Rows), int(dataset.Columns)), affine)
    except InvalidValueError as error:
        raise ResultUnreadable(f"{name}: its frames do not form a grid: {error}") from error


def _refuse_other_axes(dataset: Dataset, geometry: Geometry, name: str) -> None:
    """Rows and columns must run as those of the images: the position of the first pixel alone doesn't tell."""
    orientation = _group(dataset, 0, "PlaneOrientationSequence").ImageOrientationPatient
    row_mm, column_mm = (float(value) for value in _group(dataset, 0, "PixelMeasuresSequence").PixelSpacing)
    row, column = np.array(orientation, np.float64).reshape(2, 3)
    step = np.column_stack([row * column_mm, column * row_mm])
    expected = geometry.affine_lps[:3, :2]
    if float((np.abs(step - expected) / np.linalg.norm(expected, axis=0)).max()) > _LARGEST_STEP_DIFFERENCE:
        raise ResultUnreadable(
            f"{name}: its columns and rows are {step.T.round(4).tolist()} mm apart, those of the images "
            f"{expected.T.round(4).tolist()}"
        )


def _planes(positions: NDArray[np.float64], grid: Geometry, name: str) -> list[int]:
    """The plane of ``grid`` for each frame."""
    homogeneous = np.column_stack([positions, np.ones(len(positions))])
    indices = homogeneous @ np.linalg.inv(grid.affine_lps).T[:, :3]
    planes = np.rint(indices[:, 2]).astype(int)
    offsets = np.abs(indices - np.column_stack([np.zeros((len(planes), 2)), planes])).max(axis=1)
    for frame, (plane, offset) in enumerate(zip(planes, offsets, strict=True)):
        if offset > _LARGEST_OFFSET_VOXELS or not 0 <= plane < grid.shape_zyx[0]:
            raise ResultUnreadable(
                f"{name}: frame {frame + 1} is at {positions[frame].tolist()}, which is not a plane of the images"
            )
    return [int(plane) for plane in planes]


def _put(labels_yx: NDArray[np.uint8], dataset: Dataset, frame: int, name: str) -> None:
    if dataset.SegmentationType == "LABELMAP":
        values = pixel_array(dataset, index=frame)
        if values.max(initial=0) > _HIGHEST_LABEL:
            raise ResultUnreadable(f"{name}: label {values.max()}; the highest supported is {_HIGHEST_LABEL}")
        labels_yx[...] = values
        return
    inside = _frame_bits(dataset, frame)
    if labels_yx[inside].any():
        raise ResultUnreadable(f"{name}: segments overlap in frame {frame + 1}, which a label map can't represent")
    labels_yx[inside] = _group(dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber


def _frame_bits(dataset: Dataset, frame: int) -> NDArray[np.bool_]:
    """Frames are packed without padding, one bit per pixel, least significant bit first (PS3.5 8.1.1, 8.2)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    first = frame * rows * columns
    octets = packed[first // 8 : -(-(first + rows * columns) // 8)]
    bits = np.unpackbits(octets, bitorder="little")[first % 8 :][: rows * columns]
    return bits.reshape(rows, columns).astype(bool)


# ---- reports


def _structure(group: Dataset) -> StoredStructure:
    values = []
    texts: dict[str, str] = {}
    codes: dict[str, tuple[str, str]] = {}
    laterality = ""
    for item in group.ContentSequence:
        code, meaning = _code(item.get("ConceptNameCodeSequence"))
        if item.ValueType == "NUM" and item.get("MeasuredValueSequence"):
            number, unit = _number(item)
            values.append(StoredValue(code, meaning, *_child_code(item, _DERIVATION), number, unit, *_rank(item)))
        elif item.ValueType == "CODE":
            codes.setdefault(code, _code(item.get("ConceptCodeSequence")))
            laterality = laterality or _child_code(item, _LATERALITY)[1] if code == _FINDING_SITE else laterality
        else:
            texts.setdefault(code, str(item.get("TextValue") or item.get("UID") or ""))
    name, version, parameters = (texts.get(code, "") for code in _ALGORITHM)
    return StoredStructure(
        name=texts.get(_TRACKING_IDENTIFIER, ""),
        tracking_uid=texts.get(_TRACKING_UID, ""),
        values=tuple(values),
        truncated=codes.get(_COVERAGE_INCOMPLETE, ("", ""))[0] == _YES,
        finding=codes.get(_FINDING, ("", "")),
        finding_site=codes.get(_FINDING_SITE, ("", "")),
        laterality=laterality,
        algorithm=(name, version, parameters),
        source_series_uid=texts.get(_SOURCE_SERIES, ""),
    )


def _number(item: Dataset) -> tuple[float, str]:
    """The value of a NUM item and its UCUM unit."""
    (measured,) = item.MeasuredValueSequence
    value = float(measured.get("FloatingPointValue", measured.NumericValue))
    return value, _code(measured.MeasurementUnitsCodeSequence)[0]


def _rank(item: Dataset) -> tuple[float | None, str]:
    """The percentile of a measurement, and the description of its population."""
    percentile = _child(item, _PERCENTILE_RANKING)
    stated = _number(percentile)[0] if percentile.get("MeasuredValueSequence") else None
    return stated, str(_child(item, _POPULATION_DESCRIPTION).get("TextValue", ""))


def _child_code(item: Dataset, concept: str) -> tuple[str, str]:
    """The code of the child of ``item`` with this concept name; empty if there is none."""
    return _code(_child(item, concept).get("ConceptCodeSequence"))


def _child(item: Dataset, concept: str) -> Dataset:
    """The first child of ``item`` with this concept name; without attributes if there is none."""
    children = (child for child in item.get("ContentSequence", ()) if _name(child) == concept)
    return next(children, Dataset())


def _name(item: Dataset) -> str:
    return _code(item.get("ConceptNameCodeSequence"))[0]


def _code(sequence: Any) -> tuple[str, str]:
    return (str(sequence[0].CodeValue), str(sequence[0].CodeMeaning)) if sequence else ("", "")


def _containers(content: Dataset, concept: str) -> Iterator[Dataset]:
    for item in content.get("ContentSequence", ()):
        if item.ValueType == "CONTAINER" and _code(item.get("ConceptNameCodeSequence"))[0] == concept:
            yield item
        else:
            yield from _containers(item, concept)
