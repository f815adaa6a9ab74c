"""The frames of the source series, plane by plane; they must lie on the grid of the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from dicom_node.encode.source.values import finite_numbers, valid_text
from dicom_node.errors import EncodingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.types import Reconstruction


_PLACE_TOLERANCE = 0.25
"""As a fraction of the smallest spacing: a frame further than this from its grid plane belongs to another plane."""
_ROUNDED_MM = 0.2
"""Positions that are rounded to 0.1 mm are this far off at most, which may be more than small pixels allow."""


@dataclass(frozen=True, slots=True, eq=False)
class SourcePlane:
    """One frame of the source series; ``position_lps_mm`` is its own Image Position (Patient)."""

    sop_instance_uid: str
    sop_class_uid: str
    frame_number: int | None
    position_lps_mm: tuple[float, float, float]


def planes_of(reconstruction: Reconstruction) -> tuple[SourcePlane, ...]:
    """Plane k of the grid of ``reconstruction``, for every k.

    Raises:
        EncodingError: a plane refers to an instance that has no header, or one without a position.
    """
    headers = {valid_text(header, "SOPInstanceUID"): header for header in reconstruction.headers}
    planes = []
    for k, frame in enumerate(reconstruction.frames):
        header = headers.get(frame.sop_instance_uid)
        if header is None:
            raise EncodingError(f"plane {k} refers to instance {frame.sop_instance_uid}, which has no header")
        x, y, z = finite_numbers(plane_attributes(header, frame.frame_number), "ImagePositionPatient", 3)
        planes.append(SourcePlane(frame.sop_instance_uid, frame.sop_class_uid, frame.frame_number, (x, y, z)))
    return tuple(planes)


def plane_attributes(header: Dataset, frame_number: int | None) -> Dataset:
    """Position, orientation and pixel measures of a frame in one data set (``frame_number`` None: a classic image).

    Raises:
        EncodingError: the functional groups can't be read.
    """
    if frame_number is None:
        return header
    result = Dataset()
    try:
        per_frame = header.PerFrameFunctionalGroupsSequence[frame_number - 1]
        for group in (*(header.get("SharedFunctionalGroupsSequence") or ()), per_frame):
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
                for item in group.get(keyword) or ():
                    result.update(item)
    except Exception as error:
        raise EncodingError(f"frame {frame_number} has no readable functional groups") from error
    return result


def refuse_other_places(
    planes: tuple[SourcePlane, ...], orientation: tuple[float, ...], reconstruction: Reconstruction
) -> None:
    """Require the frames to lie on the grid of the labels, so that no reversed or unrelated label map passes.

    Raises:
        EncodingError: they differ from it in number, size, position or orientation; the message says by how much.
    """
    geometry = reconstruction.source.geometry
    count, rows, columns = geometry.shape_zyx
    if len(planes) != count:
        raise EncodingError(f"{len(planes)} source frames for {count} planes")
    first = reconstruction.headers[0]
    (stated_rows,), (stated_columns,) = finite_numbers(first, "Rows", 1), finite_numbers(first, "Columns", 1)
    if (stated_rows, stated_columns) != (rows, columns):
        raise EncodingError(
            f"source images of {stated_rows:g} rows and {stated_columns:g} columns for planes of {rows} and {columns}"
        )
    affine = geometry.affine_lps
    expected = affine[:3, 3] + np.arange(count)[:, np.newaxis] * affine[:3, 2]
    distance = np.linalg.norm(np.array([plane.position_lps_mm for plane in planes]) - expected, axis=1)
    spacing = geometry.spacing_xyz_mm
    limit = max(_PLACE_TOLERANCE * min(spacing), min(_ROUNDED_MM, _PLACE_TOLERANCE * spacing[2]))
    if distance.max() > limit:
        worst = int(distance.argmax())
        raise EncodingError(
            f"plane {worst} of the grid lies {distance[worst]:.3f} mm from the position of its source frame, "
            f"expected at most {limit:.3f} mm"
        )
    cosines = np.concatenate([unit_vector(affine[:3, 0]), unit_vector(affine[:3, 1])])
    deviation = float(np.abs(cosines - np.array(orientation)).max())
    if deviation > _PLACE_TOLERANCE / max(rows, columns, 25):
        raise EncodingError(f"rows and columns of the grid deviate from the source images (cosines by {deviation:.4f})")


def unit_vector(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """``vector`` with length 1."""
    result: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return result
