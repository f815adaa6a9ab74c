"""Draws the result as a picture: three planes in radiological convention with coloured overlay, and a legend."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import ndimage

from dicom_node.encode.pages.planes import Upright, edges, telling_planes, upright

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dicom_node.results import StoredSegment
    from inference.types import Volume

    Box = tuple[slice, slice, slice]
    Place = tuple[float, float, float, float]

BACKGROUND, TEXT, _FAINT, _WARNING = "#0b0e13", "#e6e9ef", "#8b93a3", "#ffb454"
_GREYS = LinearSegmentedColormap.from_list("window", [BACKGROUND, "#ffffff"])
_WINDOW_HU = (-180.0, 260.0)
_FILL, _EDGE = 0.45, 0.95
_BODY_HU = -250
_MARGIN_MM = 12.0
_DPI = 130
_WIDTH_IN, _HEIGHT_IN = 16.0, 9.0
_EDGE_GAP, _GAP, _BOTTOM, _PANEL_HEIGHT = 0.015, 0.012, 0.03, 0.85
_ROW_GAP, _STACKED_HEIGHT = 0.03, 0.3
_LEGEND_STEP_IN, _FEWEST_COLUMNS = 0.25, 2


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One displayed plane; ``aspect`` is pixel height divided by width, ``sides`` are the labels at left and right."""

    name: str
    hu: NDArray[np.int16] | NDArray[np.float32]
    labels: NDArray[np.uint8]
    aspect: float
    sides: tuple[str, str]


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One line of the legend; structures of one kind (ribs, vertebrae) share a line."""

    text: str
    colours: tuple[tuple[float, float, float], ...]
    volume_ml: float


def write_picture(
    path: Path,
    volume: Volume,
    labels_zyx: NDArray[np.uint8],
    *,
    segments: Sequence[StoredSegment],
    groups: Mapping[str, Sequence[LegendEntry]],
    title: str,
    subtitle: str,
) -> None:
    """Write a PNG. ``labels_zyx`` is on the grid of ``volume``; ``groups`` is the legend, with a heading per group.

    The planes shown are those with most structures. The patient's right is on the left of the picture.
    """
    shown = _cropped(upright(volume, labels_zyx))
    colours = np.zeros((256, 3))
    for segment in segments:
        colours[segment.label] = segment.rgb
    with mpl.rc_context({"font.family": "DejaVu Sans", "text.color": TEXT}):
        figure = _draw(shown, colours, groups, title, subtitle)
        figure.savefig(path, dpi=_DPI, facecolor=BACKGROUND, bbox_inches="tight", pad_inches=0.2)


def _draw(
    shown: Upright,
    colours: NDArray[np.float64],
    groups: Mapping[str, Sequence[LegendEntry]],
    title: str,
    subtitle: str,
) -> Figure:
    k, j, i = telling_planes(shown.labels_zyx, tuple(range(1, len(colours))))
    dz, dy, dx = shown.spacing_zyx_mm
    hu, labels = shown.hu_zyx, shown.labels_zyx
    planes = (
        Plane("coronal", hu[::-1, j, :], labels[::-1, j, :], dz / dx, ("R", "L")),
        Plane("sagittal", hu[::-1, :, i], labels[::-1, :, i], dz / dy, ("A", "P")),
        Plane("axial", hu[k], labels[k], dy / dx, ("R", "L")),
    )
    places, legend_place = _layout(shown)
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN))
    for plane, place in zip(planes, places, strict=True):
        draw_plane(figure.add_axes(place), plane, colours)
    _draw_legend(figure.add_axes(legend_place), groups)
    figure.text(_EDGE_GAP, 0.957, title, fontsize=17, fontweight="bold", va="center")
    figure.text(_EDGE_GAP, 0.922, subtitle, fontsize=9.5, color=_FAINT, va="center")
    figure.text(
        1 - _EDGE_GAP,
        0.957,
        "RESEARCH USE ONLY - not for clinical use",
        fontsize=10,
        color=_WARNING,
        ha="right",
        va="center",
    )
    return figure


def _layout(shown: Upright) -> tuple[tuple[Place, Place, Place], Place]:
    """Positions of coronal, sagittal and axial plane and the legend, as fractions of the figure (left, bottom, w, h).

    If the body is taller than wide, the coronal and sagittal planes have full height and the axial plane is above the
    legend. Otherwise the axial plane is large, with the two others stacked beside it above the legend.
    """
    z_mm, y_mm, x_mm = (n * s for n, s in zip(shown.labels_zyx.shape, shown.spacing_zyx_mm, strict=True))
    page = _HEIGHT_IN / _WIDTH_IN
    top = _BOTTOM + _PANEL_HEIGHT
    if z_mm > x_mm:
        widths = [_PANEL_HEIGHT * page * mm / z_mm for mm in (x_mm, y_mm)]
        scale = min(1.0, 0.62 / sum(widths))
        height = _PANEL_HEIGHT * scale
        first = (_EDGE_GAP, top - height, widths[0] * scale, height)
        second = (first[0] + first[2] + _GAP, top - height, widths[1] * scale, height)
        left = second[0] + second[2] + _GAP
        right = 1 - _EDGE_GAP
        axial_height = min(0.36, (right - left) / page * y_mm / x_mm)
        axial_width = axial_height * page * x_mm / y_mm
        third = (left, top - axial_height, axial_width, axial_height)
        return (first, second, third), (left, _BOTTOM, right - left, _PANEL_HEIGHT - axial_height - _ROW_GAP)
    axial_width = min(0.55, _PANEL_HEIGHT * page * x_mm / y_mm)
    axial_height = axial_width / page * y_mm / x_mm
    third = (_EDGE_GAP, top - axial_height, axial_width, axial_height)
    left = _EDGE_GAP + axial_width + _GAP
    width = 1 - _EDGE_GAP - left
    scale = min(width / x_mm, width / y_mm, 2 * _STACKED_HEIGHT * page / (2 * z_mm))
    height = scale / page * z_mm
    first = (left, top - height, scale * x_mm, height)
    second = (left, first[1] - _ROW_GAP - height, scale * y_mm, height)
    return (first, second, third), (left, _BOTTOM, width, second[1] - _ROW_GAP - _BOTTOM)


def draw_plane(axes: Axes, plane: Plane, colours: NDArray[np.float64]) -> None:
    """Draw the labels over the CT. ``colours``: RGB from 0 to 1 by label, [256, 3]."""
    hu, labels, aspect, sides = plane.hu, plane.labels, plane.aspect, plane.sides
    low, high = _WINDOW_HU
    axes.imshow(hu, cmap=_GREYS, vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
    overlay = np.zeros((*labels.shape, 4))
    overlay[..., :3] = colours[labels]
    overlay[..., 3] = np.where(labels > 0, np.where(edges(labels), _EDGE, _FILL), 0.0)
    axes.imshow(overlay, aspect=aspect, interpolation="nearest")
    axes.set_axis_off()
    axes.set_facecolor(BACKGROUND)
    for x, y, words, across, along in (
        (0.015, 0.5, sides[0], "left", "center"),
        (0.985, 0.5, sides[1], "right", "center"),
        (0.0, 1.01, plane.name, "left", "bottom"),
    ):
        axes.text(x, y, words, ha=across, va=along, transform=axes.transAxes, fontsize=9, color=TEXT, alpha=0.85)


def _draw_legend(axes: Axes, groups: Mapping[str, Sequence[LegendEntry]]) -> None:
    lines: list[LegendEntry | str] = []
    for heading, entries in groups.items():
        lines += [heading, *entries] if entries else []
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    height_in = axes.get_position().height * _HEIGHT_IN
    rows = max(1, int(height_in / _LEGEND_STEP_IN))
    lines = _without_stranded_headings(lines, rows)
    step = _LEGEND_STEP_IN / height_in
    width = 1.0 / max(_FEWEST_COLUMNS, -(-len(lines) // rows))
    size = float(np.clip(width * axes.get_position().width * 95, 6.0, 10.0))
    for index, line in enumerate(lines):
        column, row = divmod(index, rows)
        x, y = column * width, 1 - (row + 0.5) * step
        if isinstance(line, str):
            axes.text(x, y, line.upper(), fontsize=size * 0.85, color=_FAINT, fontweight="bold", va="center")
            continue
        _draw_swatch(axes, line.colours, (x, y - step * 0.31, width * 0.055, step * 0.62))
        axes.text(x + width * 0.075, y, line.text, fontsize=size, va="center")
        volume = f"{line.volume_ml:,.0f}" if line.volume_ml >= 10 else f"{line.volume_ml:.1f}"  # noqa: PLR2004
        axes.text(x + width * 0.93, y, f"{volume} ml", fontsize=size * 0.9, color=_FAINT, ha="right", va="center")


def _without_stranded_headings(lines: list[LegendEntry | str], rows: int) -> list[LegendEntry | str]:
    """Move a heading that would be the last line of a column to the top of the next one."""
    placed: list[LegendEntry | str] = []
    for line in lines:
        if isinstance(line, str) and len(placed) % rows == rows - 1:
            placed.append("")
        placed.append(line)
    return placed


def _draw_swatch(axes: Axes, colours: Sequence[tuple[float, float, float]], box: Place) -> None:
    x, y, width, height = box
    stripe = width / len(colours)
    for index, colour in enumerate(colours):
        axes.add_patch(Rectangle((x + index * stripe, y), stripe, height, color=colour, linewidth=0))


def legend_groups(
    segments: Sequence[StoredSegment], volume_ml: Mapping[str, float], group_of: Mapping[str, str]
) -> dict[str, list[LegendEntry]]:
    """The legend: segments by group, largest first, with numbered ones (ribs, vertebrae) combined into one line.

    ``volume_ml`` and ``group_of`` are keyed by the segment's name; segments without a group come last.
    """
    gathered: dict[tuple[str, str], list[StoredSegment]] = {}
    for segment in segments:
        key = (group_of.get(segment.name, "other"), _family(segment.name))
        gathered.setdefault(key, []).append(segment)
    groups: dict[str, list[LegendEntry]] = {}
    for (group, family), members in gathered.items():
        several = f" ({len(members)})" if len(members) > 1 else ""
        entry = LegendEntry(
            text=family.capitalize() + several,
            colours=tuple(member.rgb for member in members),
            volume_ml=sum(volume_ml.get(member.name, 0.0) for member in members),
        )
        groups.setdefault(group, []).append(entry)
    for entries in groups.values():
        entries.sort(key=lambda entry: -entry.volume_ml)
    return groups


def _family(name: str) -> str:
    """``rib_left_4`` and ``rib_right_5`` -> ribs, ``kidney_left`` -> kidney."""
    plain = re.sub(r"\b(left|right)\b", "", name.replace("_", " ").casefold())
    plain = " ".join(plain.split())
    plain = re.sub(r"^vertebrae? .*", "vertebrae", plain)
    return re.sub(r"^rib \d+", "ribs", plain)


def _cropped(whole: Upright) -> Upright:
    """Crop to the body (largest connected part denser than fat, found on every third voxel) and all labels."""
    coarse = (slice(None, None, 3),) * 3
    solid = ndimage.binary_opening(whole.hu_zyx[coarse] > _BODY_HU)
    parts, count = ndimage.label(solid)
    body = np.zeros(parts.shape, dtype=bool)
    if count:
        body = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    body |= whole.labels_zyx[coarse] > 0
    if not body.any():
        return whole
    box: list[slice] = []
    for axis, (size, spacing) in enumerate(zip(whole.labels_zyx.shape, whole.spacing_zyx_mm, strict=True)):
        inside = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis))) * 3
        margin = round(_MARGIN_MM / spacing)
        box.append(slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 3 + margin)))
    cut: Box = (box[0], box[1], box[2])
    affine = whole.affine_lps.copy()
    affine[:3, 3] += affine[:3, :3] @ [piece.start for piece in reversed(cut)]
    return replace(whole, hu_zyx=whole.hu_zyx[cut], labels_zyx=whole.labels_zyx[cut], affine_lps=affine)
