"""Small CT series as headers and grids, the input of encode, made without pixels and without the reconstruct room."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, LegacyConvertedEnhancedCTImageStorage

from dicom_node.encode.segments import Finding, Segment, SegmentationReference
from dicom_node.types import Reconstruction, ResultContext, SourceFrame
from inference.measure import measure
from inference.structures import structure
from inference.types import Geometry, Measurements, ModelIdentity, Segmentation, Volume

MODEL = ModelIdentity(name="phantom-demo", version="3", digest="ab" * 32, family="nnU-Net")
CONTEXT = ResultContext(
    started_at=datetime(2026, 3, 4, 5, 6, 7, 89000, tzinfo=UTC),
    revision=1,
    content_digest="0f" * 32,
    station_name="node-1",
    device_uid="2.25.1234567890",
    completion_reason="positions are regular and 5 s passed without news",
)
ROOT = "1.2.826.0.1.3680043.8.498"

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIENTATIONS = {
    "axial": AXIAL,
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "rows reversed": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.9659258, 0.2588190, 0.0, -0.2500000, 0.9330127, 0.2588190),
}


def geometry(
    shape_zyx: tuple[int, int, int] = (5, 12, 16),
    orientation: tuple[float, ...] = AXIAL,
    shear_xy_mm: tuple[float, float] = (0.0, 0.0),
    spacing_xyz_mm: tuple[float, float, float] = (0.8, 0.7, 2.5),
) -> Geometry:
    """A grid with rows and columns along ``orientation``; ``shear_xy_mm`` shifts each plane against the last."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing_xyz_mm[0], column * spacing_xyz_mm[1]
    affine[:3, 2] = np.cross(row, column) * spacing_xyz_mm[2] + row * shear_xy_mm[0] + column * shear_xy_mm[1]
    affine[:3, 3] = (-61.5, -40.25, 12.0)
    return Geometry(shape_zyx, affine)


GRIDS: dict[str, tuple[Geometry, bool]] = {
    **{name: (geometry((5, 13, 11), orientation), False) for name, orientation in ORIENTATIONS.items()},
    "tilted": (geometry((5, 13, 11), shear_xy_mm=(0.0, 0.9)), False),
    "tilted oblique": (geometry((5, 13, 11), ORIENTATIONS["oblique"], shear_xy_mm=(0.3, -0.9)), False),
    "one plane": (geometry((1, 13, 11)), False),
    "one voxel": (geometry((1, 1, 1)), False),
    "sizes divisible by eight": (geometry((4, 8, 16)), False),
    "multi-frame": (geometry((5, 13, 11)), True),
    "multi-frame, tilted": (geometry((5, 13, 11), shear_xy_mm=(0.2, 0.9)), True),
}
"""Every arrangement of planes: the grid, and whether the source is one multi-frame object."""


def reconstruction(grid: Geometry | None = None, *, multi_frame: bool = False) -> Reconstruction:
    """The output of reconstruct for a series on ``grid``."""
    grid = grid or geometry()
    voxels = np.random.default_rng(1).integers(-1000, 1500, grid.shape_zyx).astype(np.int16)
    volume = Volume(voxels, grid)
    if multi_frame:
        headers, frames = _multi_frame(grid)
    else:
        headers = tuple(_classic_header(grid, k) for k in range(grid.shape_zyx[0]))
        frames = tuple(SourceFrame(header.SOPInstanceUID, CTImageStorage) for header in headers)
    return Reconstruction(volume=volume, source=volume, frames=frames, headers=headers)


def with_headers(source: Reconstruction, change) -> Reconstruction:
    """``source`` with ``change(header)`` applied to each of its headers."""
    for header in source.headers:
        change(header)
    return source


def segmentation(
    grid: Geometry, names: dict[int, str], labels_zyx: np.ndarray | None = None, model: ModelIdentity = MODEL
) -> Segmentation:
    """Labels on ``grid``: by default every label in a different corner, asymmetric in all three axes."""
    if labels_zyx is None:
        labels_zyx = asymmetric_labels(grid.shape_zyx, sorted(names))
    return Segmentation(labels_zyx.astype(np.uint8), grid, names, model)


def asymmetric_labels(shape_zyx: tuple[int, int, int], labels: list[int]) -> np.ndarray:
    """Boxes that no flip or transposition maps to themselves; later labels have higher indices on every axis."""
    result = np.zeros(shape_zyx, dtype=np.uint8)
    z, y, x = shape_zyx
    for index, label in enumerate(labels):
        k, j, i = index % z, (2 * index) % y, (3 * index) % x
        result[k : k + 2, j : j + 4, i : i + 5] = label
        result[k, j, i] = label
    return result


def measured(source: Reconstruction, labels: Segmentation) -> Measurements:
    """The measurements, made like in the pipeline."""
    return measure(source.source, labels)


def findings(segments: tuple[Segment, ...], seg: Dataset) -> tuple[Finding, ...]:
    """``segments`` as stated in a report on ``seg``."""
    reference = SegmentationReference(str(seg.SOPClassUID), str(seg.SOPInstanceUID), str(seg.SeriesInstanceUID))
    return tuple(Finding(segment, reference) for segment in segments)


def without_mean(measurements: Measurements) -> Measurements:
    """The first structure's mean made NaN."""
    first, *rest = measurements.structures
    return Measurements((replace(first, mean_hu=float("nan")), *rest), measurements.not_found)


def laterality_meaning(name: str) -> str | None:
    """The laterality of a structure as coded in the catalogue."""
    return structure(name).laterality


def _common_header() -> Dataset:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName = "Müller^Jürgen"
    header.PatientID = "P-4711"
    header.PatientBirthDate = "19500203"
    header.PatientSex = "F"
    header.PatientAge = "076Y"
    header.StudyInstanceUID = f"{ROOT}.1"
    header.SeriesInstanceUID = f"{ROOT}.2"
    header.FrameOfReferenceUID = f"{ROOT}.3"
    header.PositionReferenceIndicator = ""
    header.StudyID = "S1"
    header.StudyDate = "20260304"
    header.StudyTime = "040506"
    header.StudyDescription = "Thorax und Abdomen nativ"
    header.AccessionNumber = "A-1"
    header.ReferringPhysicianName = "Weiß^Änne"
    header.Modality = "CT"
    header.SeriesNumber = 5
    header.BodyPartExamined = "CHEST"
    header.Manufacturer = "Acme"
    header.ManufacturerModelName = "Röhre 3000"
    header.SoftwareVersions = ["1.0", "2.0"]
    header.InstitutionName = "Universitätsklinikum"
    return header


def _decimals(values) -> list[str]:
    return [f"{value:.10f}"[:16] for value in values]


def _position(grid: Geometry, k: int) -> list[str]:
    return _decimals(grid.affine_lps[:3, 3] + k * grid.affine_lps[:3, 2])


def _orientation(grid: Geometry) -> list[str]:
    return _decimals(np.concatenate([grid.direction[:, 0], grid.direction[:, 1]]))


def _classic_header(grid: Geometry, k: int) -> Dataset:
    header = _common_header()
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = f"{ROOT}.2.{k + 1}"
    header.InstanceNumber = grid.shape_zyx[0] - k
    header.ImagePositionPatient = _position(grid, k)
    header.ImageOrientationPatient = _orientation(grid)
    header.PixelSpacing = [f"{grid.spacing_xyz_mm[1]:.4f}", f"{grid.spacing_xyz_mm[0]:.4f}"]
    header.SliceThickness = "3"
    _, header.Rows, header.Columns = grid.shape_zyx
    return header


def _multi_frame(grid: Geometry) -> tuple[tuple[Dataset, ...], tuple[SourceFrame, ...]]:
    """One instance whose frames are stored in descending order, so that frame number and plane index differ."""
    planes = grid.shape_zyx[0]
    header = _common_header()
    header.SOPClassUID = LegacyConvertedEnhancedCTImageStorage
    header.SOPInstanceUID = f"{ROOT}.2.1"
    header.NumberOfFrames = planes
    _, header.Rows, header.Columns = grid.shape_zyx
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _orientation(grid)
    measures.PixelSpacing = [f"{grid.spacing_xyz_mm[1]:.4f}", f"{grid.spacing_xyz_mm[0]:.4f}"]
    measures.SliceThickness = "3"
    shared.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in reversed(range(planes)):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _position(grid, k)
        group.PlanePositionSequence = [position]
        group.PlaneOrientationSequence = [orientation]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    frames = tuple(
        SourceFrame(header.SOPInstanceUID, LegacyConvertedEnhancedCTImageStorage, planes - k) for k in range(planes)
    )
    return (header,), frames
