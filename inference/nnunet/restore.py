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
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from inference.nnunet.grid import neighbours, sample_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interpolation = Literal["smooth", "nearest"]
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the source voxels of one axis lie among the network's voxels."""

    lower: torch.Tensor
    upper: torch.Tensor
    weight: torch.Tensor
    inside: torch.Tensor
    positions: NDArray[np.float64]


class Restorer:
    """Takes slabs of logits in ascending order and writes labels into the canonical view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in canonical order, written in place. Voxels that a part calls
            background keep what is there, so that a later part overwrites an earlier one.
        network_shape: the whole resampled grid.
        offset, shape: the box of that grid which the network sees (nnU-Net crops to non-zero HU).
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
        device: torch.device | None = None,
    ) -> None:
        self._labels = labels
        self._label_by_channel = label_by_channel
        self._interpolation = interpolation
        self._device = device or torch.device("cpu")
        self._shape = shape
        self._z, self._y, self._x = (
            self._axis(*sizes) for sizes in zip(labels.shape, network_shape, offset, shape, strict=True)
        )
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def _axis(self, count: int, network_count: int, offset: int, size: int) -> _Axis:
        within = sample_positions(count, network_count) - offset
        inside = (within > -0.5 - _EPSILON) & (within < size - 0.5 + _EPSILON)
        positions = np.clip(within, 0, size - 1)
        if self._interpolation == "nearest":
            positions = np.floor(positions + 0.5)
        lower, upper, weight = neighbours(positions, size)
        to = self._device
        return _Axis(
            torch.from_numpy(lower).to(to),
            torch.from_numpy(upper).to(to),
            torch.from_numpy(weight.astype(np.float32)).to(to),
            torch.from_numpy(inside).to(to),
            positions,
        )

    @torch.inference_mode()
    def accept(self, first: int, logits: torch.Tensor) -> None:
        """Restore what lies in a slab [plane, y, x, channel] whose first plane is ``first`` (of the box).

        Slabs come in ascending order without gap. The slab may be overwritten after the call.
        """
        winners = logits.argmax(dim=-1)
        if self._shape[0] == 1:
            self._layer(0, (logits[0], winners[0]), (logits[0], winners[0]))
        for k in range(logits.shape[0]):
            here = (logits[k], winners[k])
            if self._last is not None:
                self._layer(first + k - 1, self._last, here)
            self._last = here
        if self._last is not None:
            self._last = (self._last[0].clone(), self._last[1].clone())

    def _layer(
        self, plane: int, below: tuple[torch.Tensor, torch.Tensor], above: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Write every source plane that lies between network planes ``plane`` and ``plane + 1``."""
        positions = self._z.positions
        last = plane >= self._shape[0] - 2
        chosen = np.flatnonzero((positions >= plane) & ((positions < plane + 1) | last) & self._z.inside.cpu().numpy())
        if chosen.size == 0:
            return
        if self._interpolation == "nearest":
            for k in chosen:
                self._write(int(k), self._nearest_in_plane(above[1] if positions[k] > plane else below[1]))
            return
        cells = _Cells(below, above, self._y, self._x)
        for k in chosen:
            self._write(int(k), cells.at(float(positions[k] - plane)))

    def _nearest_in_plane(self, winners: torch.Tensor) -> torch.Tensor:
        rows = self._y.lower + self._y.weight.long()
        columns = self._x.lower + self._x.weight.long()
        return winners[rows][:, columns]

    def _write(self, plane: int, channels: torch.Tensor) -> None:
        seen = self._label_by_channel[channels.cpu().numpy()]
        seen[~self._y.inside.cpu().numpy()] = 0
        seen[:, ~self._x.inside.cpu().numpy()] = 0
        np.copyto(self._labels[plane], seen, where=seen != 0)


class _Cells:
    """The cells between two network planes, ready to be cut at any height."""

    def __init__(
        self, below: tuple[torch.Tensor, torch.Tensor], above: tuple[torch.Tensor, torch.Tensor], y: _Axis, x: _Axis
    ) -> None:
        columns = below[1].shape[1]
        rows = below[1].shape[0]
        lower_y, upper_y = _cell_edges(rows, y)
        lower_x, upper_x = _cell_edges(columns, x)
        corner_index = torch.stack([a[:, None] * columns + b for a in (lower_y, upper_y) for b in (lower_x, upper_x)])
        corner_labels = torch.stack([plane[1].reshape(-1)[c] for plane in (below, above) for c in corner_index])
        ordered, _ = corner_labels.sort(dim=0)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[1:] = ordered[1:] != ordered[:-1]
        distinct = new.sum(dim=0)
        cell_y, cell_x = y.lower, x.lower
        self._plain = corner_labels[0][cell_y][:, cell_x]
        self._groups: list[_BorderCells] = []
        pixel_distinct = distinct[cell_y][:, cell_x]
        flat_logits = [plane[0].reshape(-1, plane[0].shape[-1]) for plane in (below, above)]
        for count in range(2, 9):
            where_cell = (distinct == count).nonzero(as_tuple=True)
            if where_cell[0].numel() == 0:
                continue
            # the labels of a cell, each once, in ascending order
            candidates = ordered[:, where_cell[0], where_cell[1]].T[new[:, where_cell[0], where_cell[1]].T]
            candidates = candidates.reshape(-1, count)
            places = corner_index[:, where_cell[0], where_cell[1]].T
            tables = [logits[places[:, None, :], candidates[:, :, None]] for logits in flat_logits]
            number = torch.zeros_like(distinct)
            number[where_cell] = torch.arange(len(candidates), device=number.device)
            pixels = (pixel_distinct == count).nonzero(as_tuple=True)
            weight_y, weight_x = y.weight[pixels[0]], x.weight[pixels[1]]
            weights = torch.stack(
                [
                    (1 - weight_y) * (1 - weight_x),
                    (1 - weight_y) * weight_x,
                    weight_y * (1 - weight_x),
                    weight_y * weight_x,
                ],
                dim=1,
            )
            cell_of_pixel = number[cell_y[pixels[0]], cell_x[pixels[1]]]
            self._groups.append(_BorderCells(candidates, tables[0], tables[1], pixels, weights, cell_of_pixel))

    def at(self, height: float) -> torch.Tensor:
        """Channel of every source pixel at ``height`` (0: lower plane, 1: upper plane)."""
        plane = self._plain.clone()
        for group in self._groups:
            plane[group.pixels] = group.winners(height)
        return plane


@dataclass(frozen=True, slots=True)
class _BorderCells:
    """Cells with the same number of labels at their corners, and the source pixels in them."""

    candidates: torch.Tensor
    """[cell, label]: channels at the cell's corners."""
    below: torch.Tensor
    """[cell, label, corner]: logits at the four lower corners."""
    above: torch.Tensor
    pixels: tuple[torch.Tensor, ...]
    weights: torch.Tensor
    """[pixel, corner]"""
    cell_of_pixel: torch.Tensor

    def winners(self, height: float) -> torch.Tensor:
        """The channel with the highest interpolated logit at each pixel."""
        corners = torch.lerp(self.below, self.above, height)
        if corners.shape[1] == 2:  # noqa: PLR2004 - of two labels the sign of the difference decides
            difference = (corners[:, 1] - corners[:, 0])[self.cell_of_pixel]
            best = ((difference * self.weights).sum(dim=1) > 0).long()
        else:
            logits = torch.einsum("plc,pc->pl", corners[self.cell_of_pixel], self.weights)
            best = logits.argmax(dim=1)
        return self.candidates[self.cell_of_pixel, best]


def _cell_edges(size: int, axis: _Axis) -> tuple[torch.Tensor, torch.Tensor]:
    lower = torch.arange(max(size - 1, 1), device=axis.lower.device)
    return lower, (lower + 1).clamp(max=size - 1)
