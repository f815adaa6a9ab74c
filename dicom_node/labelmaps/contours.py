"""RT Structure Sets as label maps: which voxel centres their contours enclose (by scikit-image), plane by plane.

Several contours of an ROI on one plane are combined by the even-odd rule: a contour inside another is a hole. That is
what ``CLOSEDPLANAR_XOR`` means (PS3.3 C.8.8.6.3) and what planning systems mean by nested ``CLOSED_PLANAR`` contours,
for which the standard gives no rule. Where the rule matters, the label map has a note, because some programs
(plastimatch by default) fill the hole. Keyholes are the same to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydicom import Dataset, dcmread
from skimage.draw import polygon

from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps.label_map import LabelMap
from dicom_node.labelmaps.painting import Canvas
from dicom_node.results import translated
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.types import Geometry

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_LARGEST_OFFSET_PLANES = 0.25
"""How far a contour may lie from a plane: rounded coordinates, not contours of another series."""
_FEWEST_POINTS = 3
_HIGHEST_LABEL = 255


class _Roi(NamedTuple):
    name: str
    contours: tuple[NDArray[np.float64], ...]
    """Vertices (column, row, plane) on the grid."""


def read_contours(path: Path, geometry: Geometry) -> LabelMap:
    """The label map of a structure set on ``geometry``, the grid of its CT; labels count from 1 in the order of ROIs.

    A voxel is inside where its centre is. Where ROIs overlap, the later one is kept and the overlap reported; notes
    name contours that are no closed curves, planes that an ROI skips, and nested contours.

    Raises:
        ResultUnreadable: no structure set, a damaged one, more than 255 ROIs, two ROIs of one name, or a contour that
            does not lie on a plane of ``geometry``.
    """
    with translated(path):
        dataset = dcmread(path)
        if dataset.get("Modality") != "RTSTRUCT":
            raise ResultUnreadable(f"{path.name}: expected an RT Structure Set, found {dataset.get('Modality')}")
        notes: list[str] = []
        rois = tuple(_rois(dataset, geometry, path.name, notes))
        if len(rois) > _HIGHEST_LABEL:
            raise ResultUnreadable(f"{path.name}: {len(rois)} ROIs, a label map holds at most {_HIGHEST_LABEL}")
        canvas = Canvas(geometry.shape_zyx)
        for label, roi in enumerate(rois, start=1):
            _paint(canvas, roi, label, notes)
        names = {label: roi.name for label, roi in enumerate(rois, start=1)}
        try:
            return LabelMap(canvas.labels_zyx, names, geometry, canvas.overlaps(names), tuple(notes))
        except InvalidValueError as error:
            raise ResultUnreadable(f"{path.name}: {error}") from error


def _rois(dataset: Dataset, geometry: Geometry, file_name: str, notes: list[str]) -> Iterator[_Roi]:
    contours = {
        int(item.ReferencedROINumber): item.get("ContourSequence") or ()
        for item in dataset.get("ROIContourSequence", ())
    }
    index_from_lps = np.linalg.inv(geometry.affine_lps)
    for item in dataset.StructureSetROISequence:
        name = str(item.ROIName).strip()
        vertices = []
        for contour in contours.get(int(item.ROINumber), ()):
            kind, places = str(contour.ContourGeometricType), np.array(contour.ContourData, np.float64).reshape(-1, 3)
            if kind not in _CLOSED or len(places) < _FEWEST_POINTS:
                notes.append(f"{name}: a contour of type {kind} with {len(places)} points encloses nothing, left out")
                continue
            index = places @ index_from_lps[:3, :3].T + index_from_lps[:3, 3]
            _refuse_other_place(index, geometry, f"{file_name}: a contour of {name}")
            vertices.append(index)
        yield _Roi(name, tuple(vertices))


def _refuse_other_place(index_xyz: NDArray[np.float64], geometry: Geometry, what: str) -> None:
    plane = np.rint(index_xyz[0, 2])
    offset = float(np.abs(index_xyz[:, 2] - plane).max())
    if offset > _LARGEST_OFFSET_PLANES:
        raise ResultUnreadable(f"{what} lies {offset:.2f} of the plane spacing from the nearest plane of the CT")
    if not 0 <= plane < geometry.shape_zyx[0]:
        raise ResultUnreadable(
            f"{what} lies on plane {plane:.0f} of the CT, which has planes 0 to {geometry.shape_zyx[0] - 1}"
        )


def _paint(canvas: Canvas, roi: _Roi, label: int, notes: list[str]) -> None:
    by_plane: dict[int, list[NDArray[np.float64]]] = {}
    for vertices in roi.contours:
        by_plane.setdefault(int(np.rint(vertices[0, 2])), []).append(vertices)
    nested = 0
    for plane, outlines in sorted(by_plane.items()):
        inside = np.zeros(canvas.labels_zyx.shape[1:], np.bool_)
        for vertices in outlines:
            rows, columns = polygon(vertices[:, 1], vertices[:, 0], inside.shape)
            nested += int(np.count_nonzero(inside[rows, columns]))
            inside[rows, columns] ^= True
        canvas.paint(plane, inside, label)
    if nested:
        notes.append(f"{roi.name}: nested contours, by which {nested} voxels are outside (even-odd rule)")
    if by_plane:
        skipped = max(by_plane) - min(by_plane) + 1 - len(by_plane)
        if skipped:
            notes.append(f"{roi.name}: {skipped} planes between its contours have none")
