"""Decides which volumes a model accepts, and estimates the memory that segmentation needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import SegmentationRefusedError
from inference.nnunet.axes import ROWS_BYTES
from inference.nnunet.grid import Canonical, resampled_shape
from inference.nnunet.machine import available_memory_bytes, effective_precision, usable_cores
from inference.nnunet.networks.open_networks import channel_count
from inference.nnunet.prepared import grid_key, spacing_zyx_mm
from inference.nnunet.windows import SLAB_PLANES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.contract import EngineOptions
    from inference.types import Geometry, Volume


def check(volume: Volume, package: ModelPackage, options: EngineOptions) -> None:
    """Raise SegmentationRefusedError, with the numbers, for a volume that ``package`` can't segment."""
    geometry, voxels = volume.geometry, volume.voxels_zyx
    if not geometry.is_orthogonal:
        raise SegmentationRefusedError("the axes of the volume are not perpendicular")
    too_small = package.minimum.refusal(geometry)
    if too_small is not None:
        raise SegmentationRefusedError(too_small)
    _check_memory(geometry, package, options)
    lowest, highest = voxels.min(), voxels.max()
    if not np.isfinite([lowest, highest]).all():
        raise SegmentationRefusedError("the volume has HU values that are not finite")
    if lowest == highest:
        raise SegmentationRefusedError(f"every voxel of the volume is {lowest} HU")


def _check_memory(geometry: Geometry, package: ModelPackage, options: EngineOptions) -> None:
    limit = options.memory_bytes or available_memory_bytes() * 4 // 5
    need = memory_estimate_bytes(geometry, package, options)
    if need > limit:
        raise SegmentationRefusedError(
            f"segmenting {geometry.shape_zyx} voxels needs about {need / 1e9:.1f} GB of memory; "
            f"at most {limit / 1e9:.1f} GB may be used"
        )


def memory_estimate_bytes(geometry: Geometry, package: ModelPackage, options: EngineOptions) -> int:
    """Upper bound of the memory to segment a volume on ``geometry``, not counting the volume and the weights.

    Counts the label map, the resampled voxels of every grid, and for the part that needs most: its normalised copy, the
    sums of one window's depth, the slabs being restored, and the network running on one window.
    """
    canonical = Canonical.of(geometry)
    source_shape = tuple(geometry.shape_zyx[axis] for axis in canonical.source_axes)
    spacing = canonical.spacing_mm(geometry)
    shape_by_grid = {
        grid_key(part, package): resampled_shape(source_shape, spacing, spacing_zyx_mm(part)) for part in package.parts
    }
    voxels = [math.prod(shape) for shape in shape_by_grid.values()]
    kept = sum(voxels) * (5 if package.resampling == "nnunet" else 4)  # values, their mask, a temporary copy
    # cubic resampling works in double precision, one grid at a time
    passing = 3 * 8 * (math.prod(source_shape) + max(voxels)) if package.resampling == "nnunet" else 0
    of_part = max(
        _part_bytes(part, [shape_by_grid[grid_key(part, package)][axis] for axis in part.axes], options)
        for part in package.parts
    )
    if package.resampling == "nnunet" and options.parity:
        of_part += (options.threads or usable_cores()) * 4 * ROWS_BYTES
    return math.prod(geometry.shape_zyx) + kept + max(passing, of_part)


def _part_bytes(part: Part, shape: Sequence[int], options: EngineOptions) -> int:
    padded = [max(n, w) for n, w in zip(shape, part.patch_size, strict=True)]
    window = math.prod(part.patch_size)
    folds, classes = len(part.weights), len(part.names_by_channel) + 1
    features = part.architecture.features_per_stage[0]
    channels = classes if options.parity else channel_count(part)
    plane = padded[1] * padded[2]
    sums = 0
    if padded != list(part.patch_size) or options.parity:
        sums = (2 * folds if options.parity else 4) * channels * part.patch_size[0] * plane
    # a slab, copied or (in parity) as quotients and their mean, plus the logits of two planes and the next one
    slab = (8 + 2 * folds if options.parity else 4) * channels * min(SLAB_PLANES, padded[0]) * plane
    restored = slab + 3 * 4 * classes * plane
    number = 4 if effective_precision(options) == "float32" else 2
    # a U-Net at its widest: the skip, the upsampled features, the two concatenated, and the output
    network = window * (6 * features * number + 8 * channels)
    if options.mirroring and part.mirroring_axes:
        network += window * 4 * channels  # the sum of the mirrored results
    return 8 * math.prod(padded) + sums + restored + network
