"""Labels on the source grid from logits on the network's coarser grid.

``smooth``: in a cell (the box between 2 x 2 x 2 neighbouring network voxels) whose eight corners agree, that label; in
any other cell the logits of the labels at its corners are interpolated trilinearly and the highest wins. Borders are
then smooth surfaces through the cells, neighbours share them without gap, and a label never appears where none of the
surrounding network voxels has it. Only the cells on borders cost time.
``nearest``: the label of the nearest network voxel, which is what TotalSegmentator does by default.

Positions are corner aligned, the exact inverse of :func:`inference.nnunet.grid.resample`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from inference.nnunet.grid import neighbours, sample_positions

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Interpolation = Literal["smooth", "nearest"]
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the source voxels of one axis lie among the network's voxels."""

    positions: NDArray[np.float64]
    lower: NDArray[np.int64]
    weight: NDArray[np.float32]
    """Of the upper neighbour, 0..1."""
    inside: NDArray[np.bool_]


class _Plane(NamedTuple):
    """One plane of the network's grid."""

    logits: NDArray[np.float32]
    """[y, x, channel]"""
    channels: NDArray[np.uint8]
    """[y, x]: the channel with the highest logit."""

    def copy(self) -> _Plane:
        return _Plane(self.logits.copy(), self.channels.copy())


class Restorer:
    """Takes slabs of logits in ascending order and writes labels into the canonical view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in canonical order, written in place. Voxels that a part calls
            background keep what is there, so that a later part overwrites an earlier one.
        network_shape: the whole resampled grid.
        offset: first voxel of the box of that grid which the network sees (nnU-Net crops to non-zero HU).
        shape: size of that box.
        label_by_channel: the number to write for each output channel.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8],
        network_shape: tuple[int, int, int],
        offset: tuple[int, int, int],
        shape: tuple[int, int, int],
        label_by_channel: NDArray[np.uint8],
        *,
        interpolation: Interpolation = "smooth",
    ) -> None:
        self._labels = labels
        self._label_by_channel = label_by_channel
        self._nearest = interpolation == "nearest"
        self._shape = shape
        self._z, self._y, self._x = (
            _axis(*sizes, nearest=self._nearest)
            for sizes in zip(labels.shape, network_shape, offset, shape, strict=True)
        )
        self._last: _Plane | None = None

    def accept(self, first: int, logits: torch.Tensor) -> None:
        """Restore what lies in a slab [plane, y, x, channel] whose first plane is ``first`` (of the box).

        Slabs come in ascending order without gap. The slab may be overwritten after the call.
        """
        channels = logits.argmax(dim=-1).cpu().numpy().astype(np.uint8)
        values = logits.cpu().numpy()
        for k in range(len(values)):
            here = _Plane(values[k], channels[k])
            if self._last is not None:
                self._layer(first + k - 1, self._last, here)
            elif self._shape[0] == 1:
                self._layer(0, here, here)
            self._last = here
        if self._last is not None:
            self._last = self._last.copy()

    def _layer(self, plane: int, below: _Plane, above: _Plane) -> None:
        """Write every source plane that lies between network planes ``plane`` and ``plane + 1``."""
        positions = self._z.positions
        to_the_end = plane >= self._shape[0] - 2
        chosen = np.flatnonzero(self._z.inside & (positions >= plane) & ((positions < plane + 1) | to_the_end))
        if chosen.size == 0:
            return
        if self._nearest:
            for k in chosen:
                self._write_nearest(int(k), (above if positions[k] > plane else below).channels)
            return
        layer = _Layer.between(below, above, self._y, self._x)
        for k in chosen:
            self._write_cells(int(k), layer, float(positions[k] - plane))

    def _write_nearest(self, plane: int, channels: NDArray[np.uint8]) -> None:
        # positions are whole numbers here, so the weight of the upper neighbour is 0, or 1 at the far edge
        rows = self._y.lower + self._y.weight.astype(np.int64)
        columns = self._x.lower + self._x.weight.astype(np.int64)
        self._put(plane, channels[rows][:, columns])

    def _write_cells(self, plane: int, layer: _Layer, height: float) -> None:
        channels = layer.plain.copy()
        flat = channels.reshape(-1)
        for cells in layer.border:
            flat[cells.pixels] = cells.winners(height)
        self._put(plane, channels)

    def _put(self, plane: int, channels: NDArray[np.uint8]) -> None:
        seen = self._label_by_channel[channels]
        if not (self._y.inside.all() and self._x.inside.all()):
            seen[~self._y.inside] = 0
            seen[:, ~self._x.inside] = 0
        np.copyto(self._labels[plane], seen, where=seen != 0)


def _axis(count: int, network_count: int, offset: int, size: int, *, nearest: bool) -> _Axis:
    within = sample_positions(count, network_count) - offset
    inside = (within > -0.5 - _EPSILON) & (within < size - 0.5 + _EPSILON)
    positions = np.clip(within, 0, size - 1)
    if nearest:
        positions = np.floor(positions + 0.5)
    lower, _, weight = neighbours(positions, size)
    return _Axis(positions, lower, weight.astype(np.float32), inside)


@dataclass(frozen=True, slots=True)
class _BorderCells:
    """Cells of a layer that have labels in equal number at their corners, and the source pixels that lie in them."""

    channels: NDArray[np.uint8]
    """[cell, candidate]: the channels at the cell's corners."""
    below: NDArray[np.float32]
    """[cell, candidate, corner]: logits at the four lower corners."""
    above: NDArray[np.float32]
    pixels: NDArray[np.int64]
    """[pixel]: index into the flattened source plane."""
    weights: NDArray[np.float32]
    """[pixel, corner]"""
    cell: NDArray[np.int64]
    """[pixel]: the cell it lies in."""

    def winners(self, height: float) -> NDArray[np.uint8]:
        """The channel with the highest interpolated logit at each pixel, ``height`` (0..1) above the lower plane."""
        logits = self.below + (self.above - self.below) * np.float32(height)
        if logits.shape[1] == 2:  # noqa: PLR2004 - of two channels the sign of the difference decides
            difference = logits[:, 1] - logits[:, 0]
            best = (np.einsum("pc,pc->p", difference[self.cell], self.weights) > 0).astype(np.intp)
        else:
            best = np.einsum("pkc,pc->pk", logits[self.cell], self.weights).argmax(axis=1)
        channels: NDArray[np.uint8] = self.channels[self.cell, best]
        return channels


@dataclass(frozen=True, slots=True)
class _Layer:
    """The cells between two network planes, ready to be cut at any height."""

    plain: NDArray[np.uint8]
    """[y, x] of the source: the channel where a cell's corners agree (where they do not, that of its first corner)."""
    border: tuple[_BorderCells, ...]

    @classmethod
    def between(cls, below: _Plane, above: _Plane, y: _Axis, x: _Axis) -> _Layer:
        """Find the border cells and the pixels in them."""
        corner_places = _corner_places(*below.channels.shape)
        corners = np.stack([p.channels.reshape(-1)[place] for p in (below, above) for place in corner_places])
        plain = corners[0][y.lower][:, x.lower]
        is_border = (corners != corners[0]).any(axis=0)
        if not is_border.any():
            return cls(plain, ())
        candidates, counts = _distinct(corners[:, is_border].T)
        places = np.stack([place[is_border] for place in corner_places], axis=1)
        number = np.full(is_border.shape, -1, np.int64)
        number[is_border] = np.arange(len(counts))
        pixels = np.flatnonzero(is_border[y.lower][:, x.lower])
        rows, columns = np.divmod(pixels, len(x.lower))
        cell = number[y.lower[rows], x.lower[columns]]
        weights = _corner_weights(y.weight[rows], x.weight[columns])
        groups = []
        for of_group in (counts == 2, counts > 2):  # noqa: PLR2004 - pairs are by far the most
            if not of_group.any():
                continue
            channels = candidates[of_group, : counts[of_group].max()]
            chosen = of_group[cell]
            groups.append(
                _BorderCells(
                    channels,
                    _logits_at(below, places[of_group], channels),
                    _logits_at(above, places[of_group], channels),
                    pixels[chosen],
                    weights[chosen],
                    cell=(np.cumsum(of_group) - 1)[cell[chosen]],
                )
            )
        return cls(plain, tuple(groups))


def _corner_places(rows: int, columns: int) -> list[NDArray[np.int64]]:
    """Flat indices of the four in-plane corners of every cell; a plane of one row or column has flat cells."""
    y = np.arange(max(rows - 1, 1))
    x = np.arange(max(columns - 1, 1))
    return [
        np.minimum(y + dy, rows - 1)[:, None] * columns + np.minimum(x + dx, columns - 1)
        for dy in (0, 1)
        for dx in (0, 1)
    ]


def _distinct(corners: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The distinct channels of each row, ascending and padded with the row's first; and how many there are."""
    ordered = np.sort(corners, axis=1)
    repeated = np.zeros(ordered.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    counts = (~repeated).sum(axis=1)
    front = np.take_along_axis(ordered, np.argsort(repeated, axis=1, kind="stable"), axis=1)
    padding = np.arange(ordered.shape[1]) >= counts[:, None]
    return np.where(padding, front[:, :1], front), counts


def _corner_weights(y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], axis=1)


def _logits_at(plane: _Plane, places: NDArray[np.int64], channels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [cell, candidate, corner] at the four corners ``places`` [cell, corner]."""
    flat = plane.logits.reshape(-1, plane.logits.shape[-1])
    values: NDArray[np.float32] = flat[places[:, None, :], channels[:, :, None]]
    return values
