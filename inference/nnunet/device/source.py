"""HU on the device: uploaded once, resampled as on the CPU, cropped to the box that the network sees, normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.nnunet.body import cube_shape, mask_of_means
from inference.nnunet.grid import resampled_shape, sample_positions
from inference.nnunet.prepared import box_around

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.models.package import Normalisation, Part
    from inference.nnunet.grid import Canonical
    from inference.nnunet.prepared import Grid

Box = tuple[slice, slice, slice]
_BYTES_PER_VOXEL = 40
"""Memory to interpolate one voxel: eight int16 neighbours and three float64 values."""


def uploaded(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of ``array`` on ``device``, without waiting for queued work (page-locked memory, one stream)."""
    host = torch.from_numpy(np.empty(0, array.dtype)).new_empty(array.shape, pin_memory=device.type == "cuda")
    np.copyto(host.numpy(), array)
    return host.to(device, non_blocking=True)


def resampled(
    source_zyx: torch.Tensor, canonical: Canonical, new_shape: tuple[int, int, int], working_bytes: int
) -> torch.Tensor:
    """The canonical view of ``source_zyx`` resampled to int16 as :mod:`inference.nnunet.host.resample` does.

    Products and sums are in double precision and in the same order, a few planes at a time.
    """
    view = source_zyx.permute(canonical.source_axes)
    z, y, x = (
        _Linear(count, old, backwards=backwards, device=view.device)
        for count, old, backwards in zip(new_shape, view.shape, canonical.reversed_axes, strict=True)
    )
    result = torch.empty(new_shape, dtype=torch.int16, device=view.device)
    step = max(1, working_bytes // (_BYTES_PER_VOXEL * new_shape[1] * new_shape[2] + 8 * view.shape[1] * view.shape[2]))
    bounds = torch.iinfo(torch.int16)
    for first in range(0, new_shape[0], step):
        planes = slice(first, min(first + step, new_shape[0]))
        total = torch.zeros((planes.stop - first, *new_shape[1:]), dtype=torch.float64, device=view.device)
        lines = [[view.index_select(0, k[planes]).index_select(1, row) for row in y.voxels] for k in z.voxels]
        for columns, x_weight in zip(x.voxels, x.weights, strict=True):
            for row, y_weight in enumerate(y.weights):
                for of_plane, z_weight in zip(lines, z.weights, strict=True):
                    term = of_plane[row].index_select(2, columns).to(torch.float64)
                    term *= x_weight
                    term *= y_weight[:, None]
                    term *= z_weight[planes, None, None]
                    total += term
        result[planes] = total.clamp_(bounds.min, bounds.max).to(torch.int16)  # toward zero
    return result


class _Linear:
    """The two neighbours of every sample of an axis and their weights, as in :mod:`inference.nnunet.host.resample`."""

    def __init__(self, count: int, source_count: int, *, backwards: bool, device: torch.device) -> None:
        positions = sample_positions(count, source_count)
        below = np.floor(positions)
        lower = below.astype(np.int64)
        upper = np.minimum(lower + 1, source_count - 1)
        first = 1.0 - (positions - below)
        neighbours = [source_count - 1 - k if backwards else k for k in (lower, upper)]
        self.voxels = [uploaded(k, device) for k in neighbours]
        self.weights = [uploaded(weight, device) for weight in (first, 1.0 - first)]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceGrid:
    """As :class:`inference.nnunet.prepared.Grid`, with its voxels on a device; ``body_zyx`` stays on the host."""

    voxels_zyx: torch.Tensor
    source_box: Box
    box: Box
    body_zyx: NDArray[np.bool_] | None
    normalised: bool

    @classmethod
    def of(cls, grid: Grid, device: torch.device) -> DeviceGrid:
        """A grid that was prepared on the host."""
        voxels = uploaded(grid.voxels_zyx, device)
        return cls(voxels, grid.source_box, grid.box, grid.body_zyx, grid.normalised)

    def image(self, part: Part) -> torch.Tensor:
        """What the network of ``part`` sees, in the network's axis order."""
        values = self.voxels_zyx[self.box].permute(part.axes)
        return values if self.normalised else normalised(values, part.normalisation)

    def needed(self, part: Part) -> NDArray[np.bool_] | None:
        """Where windows are worth running, in the axis order of ``part``; None: everywhere."""
        return None if self.body_zyx is None else self.body_zyx.transpose(part.axes)


def grid_on_device(
    source_zyx: torch.Tensor,
    canonical: Canonical,
    spacing_zyx_mm: Sequence[float],
    wanted_zyx_mm: Sequence[float],
    parts: Sequence[Part],
    *,
    crops_to_body: bool,
    working_bytes: int,
) -> DeviceGrid:
    """The corner-aligned grid that :func:`inference.nnunet.host.prepare.prepare` makes from the same volume.

    Args:
        source_zyx: HU on the source grid.
        canonical: the canonical view of the source grid.
        spacing_zyx_mm: of the source along the canonical axes.
        wanted_zyx_mm: of the network along the canonical axes.
        parts: all parts of the model, for the size of their windows.
        crops_to_body: leave out the air around the patient.
        working_bytes: memory to use for resampling besides source and result.
    """
    view = source_zyx.permute(canonical.source_axes)
    if np.array_equal(np.asarray(spacing_zyx_mm, np.float32), np.asarray(wanted_zyx_mm, np.float32)):
        voxels = view.flip([axis for axis in range(3) if canonical.reversed_axes[axis]])
    else:
        voxels = resampled(
            source_zyx, canonical, resampled_shape(view.shape, spacing_zyx_mm, wanted_zyx_mm), working_bytes
        )
    whole = (slice(0, view.shape[0]), slice(0, view.shape[1]), slice(0, view.shape[2]))
    box = nonzero_box(voxels)
    extents = [n * mm for n, mm in zip(view.shape, spacing_zyx_mm, strict=True)]
    body = (
        _body(voxels, [extent / n for extent, n in zip(extents, voxels.shape, strict=True)]) if crops_to_body else None
    )
    if body is not None:
        box = box_around(body, box, parts)
        body = body[box]
    return DeviceGrid(voxels, whole, box, body, normalised=False)


def _body(voxels_zyx: torch.Tensor, spacing_zyx_mm: Sequence[float]) -> NDArray[np.bool_] | None:
    """As :func:`inference.nnunet.body.body_mask`: the device computes the means, the host searches them."""
    cube = cube_shape(voxels_zyx.shape, spacing_zyx_mm)
    if cube is None:
        return None
    within = tuple(min(size, n) for size, n in zip(cube, voxels_zyx.shape, strict=True))  # torch refuses larger ones
    means = torch.nn.functional.avg_pool3d(
        voxels_zyx[None, None].float(), within, ceil_mode=True, count_include_pad=False
    )
    return mask_of_means(means[0, 0].cpu().numpy(), cube, voxels_zyx.shape, spacing_zyx_mm)


def nonzero_box(hu_zyx: torch.Tensor) -> Box:
    """The smallest box with every voxel that is not 0 HU; the whole volume if all are 0. Waits for the device."""
    filled = hu_zyx != 0
    lines = torch.cat([filled.any(dim=2).any(dim=1), filled.any(dim=2).any(dim=0), filled.any(dim=1).any(dim=0)])
    along = np.split(lines.cpu().numpy(), np.cumsum(hu_zyx.shape)[:2])
    z, y, x = (_extent(line) for line in along)
    return z, y, x


def _extent(line: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(line)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, len(line))


def normalised(hu_zyx: torch.Tensor, constants: Normalisation) -> torch.Tensor:
    """nnU-Net's CTNormalization, in float32 as in nnU-Net."""
    values = hu_zyx.to(torch.float32, copy=True).clamp_(constants.lowest_hu, constants.highest_hu)
    values -= constants.mean_hu
    # by a tensor: dividing by a Python number, CUDA multiplies by its reciprocal, which rounds differently
    values /= torch.full((), max(constants.sd_hu, 1e-8), device=values.device)
    return values
