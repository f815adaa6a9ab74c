"""Outliers as pictures: the three planes on which two segmentations of a structure differ most."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dicom_node.demo.picture import BACKGROUND, TEXT, Plane, draw_plane
from dicom_node.encode.pages.planes import telling_planes, upright
from inference.types import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dicom_node.compare.outliers import Outlier
    from dicom_node.evaluate.cases import Truth
    from dicom_node.labelmaps import LabelMap, LabelSource

_BOTH, _FIRST, _SECOND = 1, 2, 3
_COLOURS = {_BOTH: (0.45, 0.85, 0.55), _FIRST: (0.35, 0.65, 1.0), _SECOND: (1.0, 0.6, 0.2)}
"""Told apart in the common forms of colour blindness."""
_MARGIN_MM = 25.0
_SIZE_IN, _DPI = (10.0, 4.0), 100


def outlier_picture(outlier: Outlier, first: Truth, second: LabelSource) -> bytes:
    """A PNG; what both found green, what only one found in its own colour, on the CT if it is there.

    Raises:
        ResultUnreadable: a segmentation can't be read.
        SeriesRejected: the CT can't be read, or has another grid than the segmentation.
    """
    expected = first.read()
    found = second.read(expected.geometry)
    parts_zyx = _parts(expected, found, outlier.structure)
    volume = first.image.read() if first.image is not None else None
    if volume is None or not volume.geometry.same_grid(expected.geometry):
        volume = Volume(np.zeros(expected.geometry.shape_zyx, np.int16), expected.geometry)
    shown = upright(volume, parts_zyx)
    box = _box(shown.labels_zyx, shown.spacing_zyx_mm)
    hu, labels = shown.hu_zyx[box], shown.labels_zyx[box]
    k, j, i = telling_planes(labels, (_FIRST, _SECOND))
    dz, dy, dx = shown.spacing_zyx_mm
    planes = (
        Plane("axial", hu[k], labels[k], dy / dx, ("R", "L")),
        Plane("coronal", hu[::-1, j, :], labels[::-1, j, :], dz / dx, ("R", "L")),
        Plane("sagittal", hu[::-1, :, i], labels[::-1, :, i], dz / dy, ("A", "P")),
    )
    figure = Figure(figsize=_SIZE_IN, facecolor=BACKGROUND)
    colours = np.zeros((256, 3))
    for label, colour in _COLOURS.items():
        colours[label] = colour
    places: list[Axes] = list(figure.subplots(1, 3))
    for axes, plane in zip(places, planes, strict=True):
        draw_plane(axes, plane, colours)
    figure.subplots_adjust(0.01, 0.1, 0.99, 0.93, 0.03)
    for at, label, text in ((0.02, _BOTH, "both"), (0.12, _FIRST, outlier.first), (0.45, _SECOND, outlier.second)):
        words = text if label == _BOTH else f"only {text}"
        figure.text(at, 0.03, f"\N{BLACK SQUARE} {words}", color=_COLOURS[label], fontsize=9)
    figure.text(0.99, 0.03, "RESEARCH USE ONLY", color=TEXT, fontsize=8, ha="right")
    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI, format="png", facecolor=BACKGROUND, metadata={"Software": None})
    return content.getvalue()


def _parts(expected: LabelMap, found: LabelMap, structure: str) -> NDArray[np.uint8]:
    masks = [
        np.isin(each.labels_zyx, [label for label, name in each.names_by_label.items() if name == structure])
        for each in (expected, found)
    ]
    parts: NDArray[np.uint8] = np.zeros(masks[0].shape, np.uint8)
    parts[masks[0] & masks[1]] = _BOTH
    parts[masks[0] & ~masks[1]] = _FIRST
    parts[masks[1] & ~masks[0]] = _SECOND
    return parts


def _box(labels_zyx: NDArray[np.uint8], spacing_zyx_mm: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """Around all of the structure, with a margin."""
    box = []
    for axis, spacing in enumerate(spacing_zyx_mm):
        inside = np.flatnonzero(labels_zyx.any(axis=tuple(each for each in range(3) if each != axis)))
        margin = round(_MARGIN_MM / spacing)
        box.append(slice(max(0, int(inside[0]) - margin), int(inside[-1]) + 1 + margin))
    return box[0], box[1], box[2]
