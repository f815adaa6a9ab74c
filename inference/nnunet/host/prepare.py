"""Turns a volume into what a network sees: checks, canonical axes, resampling, and the box to segment.

Parts of a model with the same spacing share the resampled voxels; each makes its own normalised copy of the box when
its turn comes. Nothing here needs torch or the weights, so the next volume can be prepared while one is inferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.nnunet.body import body_mask, bounding_box
from inference.nnunet.grid import Canonical, resampled_shape, shape_within_borders
from inference.nnunet.host.resample import resample, resample_within_borders
from inference.nnunet.machine import usable_cores
from inference.nnunet.prepared import Box, Grid, Prepared, box_around, grid_key, normalise, spacing_zyx_mm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.contract import EngineOptions
    from inference.types import Volume


def prepare(volume: Volume, package: ModelPackage, options: EngineOptions, *, resampled: bool = True) -> Prepared:
    """Resample a checked ``volume`` to the grids of the parts of ``package``.

    Args:
        volume: a volume that :func:`check` accepts, or a part of one.
        package: the model.
        options: ``parity`` and ``body_crop`` decide which part of the volume the network sees.
        resampled: False leaves resampling to the device.
    """
    canonical = Canonical.of(volume.geometry, orientation=package.orientation)
    if not resampled:
        return Prepared(volume, canonical, ())
    source = canonical.view(volume.voxels_zyx)
    spacing = canonical.spacing_mm(volume.geometry)
    threads = options.threads or usable_cores()
    crops_to_body = options.body_crop and not options.parity
    grids: dict[object, Grid] = {}
    of_parts = []
    for part in package.parts:
        wanted, key = spacing_zyx_mm(part), grid_key(part, package)
        if key not in grids:
            if package.resampling == "nnunet":
                grid = _grid_within_borders(source, spacing, part)
            else:
                grid = _grid_of_corners(source, spacing, wanted, threads)
            grids[key] = _cropped_to_body(grid, source, spacing, package.parts) if crops_to_body else grid
        of_parts.append(grids[key])
    return Prepared(volume, canonical, tuple(of_parts))


def _grid_of_corners(source: NDArray[Any], spacing: Sequence[float], wanted: Sequence[float], threads: int) -> Grid:
    """Resample as TotalSegmentator does, then crop to what is not 0 HU as nnU-Net does."""
    if np.array_equal(np.array(spacing, np.float32), np.array(wanted, np.float32)):
        voxels = source  # TotalSegmentator does not even truncate these to whole HU
    else:
        voxels = resample(source, resampled_shape(source.shape, spacing, wanted), threads)
    return Grid(voxels, _whole(source.shape), nonzero_box(voxels), None, normalised=False)


def _grid_within_borders(source: NDArray[Any], spacing: Sequence[float], part: Part) -> Grid:
    """As nnU-Net's DefaultPreprocessor: crop to what is not 0 HU, normalise, resample."""
    box = nonzero_box(source)
    wanted = spacing_zyx_mm(part)
    cropped = source[box]
    shape = shape_within_borders(cropped.shape, spacing, wanted)
    voxels = resample_within_borders(normalise(cropped, part.normalisation), shape, spacing, wanted)
    return Grid(voxels, box, _whole(shape), None, normalised=True)


def _cropped_to_body(grid: Grid, source: NDArray[Any], spacing: Sequence[float], parts: Sequence[Part]) -> Grid:
    """The grid cropped to the patient, but at least as large as every network's window if the volume is."""
    looked_at = source[grid.source_box] if grid.normalised else grid.voxels_zyx
    extents = [n * mm for n, mm in zip(source[grid.source_box].shape, spacing, strict=True)]
    body = body_mask(looked_at, [extent / n for extent, n in zip(extents, looked_at.shape, strict=True)])
    if body is None:
        return grid
    shape = grid.voxels_zyx.shape
    if body.shape != shape:
        body = body[np.ix_(*(np.arange(n) * m // n for n, m in zip(shape, body.shape, strict=True)))]
    box = box_around(body, grid.box, parts)
    return Grid(grid.voxels_zyx, grid.source_box, box, body[box], grid.normalised)


def _whole(shape: Sequence[int]) -> Box:
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


def nonzero_box(voxels_zyx: NDArray[Any]) -> Box:
    """The smallest box with every voxel that is not 0 HU (nnU-Net's crop_to_nonzero); the whole volume if all are 0."""
    return bounding_box(voxels_zyx != 0)
