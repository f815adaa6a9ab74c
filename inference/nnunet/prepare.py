"""From a volume to what a network looks at: checks, canonical axes, its spacing, and the box that is worth a look.

Parts of a model that share a spacing share the resampled voxels; each takes its own normalised copy of the box when its
turn comes. Nothing here needs torch, and nothing needs the weights: the next volume can be prepared beside the present.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import SegmentationRefusedError
from inference.nnunet.body import body_mask, bounding_box
from inference.nnunet.grid import Canonical, resample, resample_within_borders, resampled_shape, shape_within_borders
from inference.nnunet.open_networks import channel_count, effective_precision
from inference.nnunet.tiles import SLAB_PLANES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Normalisation, Part
    from inference.nnunet.contract import EngineOptions
    from inference.types import Geometry, Volume

_Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A volume on a network's spacing, axes canonical (z, y, x ascending to Superior, Anterior, Right).

    ``voxels_zyx`` are whole HU (int16), or what is ``normalised`` already (float32). ``source_box`` is what of the
    canonical source they span, ``box`` what of them the network sees; ``body_zyx`` masks the patient in the box.
    """

    voxels_zyx: NDArray[np.int16] | NDArray[np.float32]
    source_box: _Box
    box: _Box
    body_zyx: NDArray[np.bool_] | None
    normalised: bool

    def image(self, part: Part) -> NDArray[np.float32]:
        """What the network of ``part`` sees, in its own order of axes."""
        values = self.voxels_zyx[self.box].transpose(part.axes)
        return np.ascontiguousarray(values if self.normalised else normalise(values, part.normalisation), np.float32)

    def needed(self, part: Part) -> NDArray[np.bool_] | None:
        """Where windows are worth running, in the order of axes of ``part``; None: everywhere."""
        return None if self.body_zyx is None else self.body_zyx.transpose(part.axes)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A volume that was checked, and one grid for each part of the model (shared where spacings are the same).

    ``grids`` is empty where a CUDA device does the rest. ``seconds`` is how long preparing took.
    """

    volume: Volume
    canonical: Canonical
    grids: tuple[Grid, ...]
    seconds: float = 0.0


def prepare(volume: Volume, package: ModelPackage, options: EngineOptions, *, resampled: bool = True) -> Prepared:
    """Bring a ``volume`` that was checked to the grids of the parts of ``package``.

    Args:
        volume: one that :func:`check` lets pass, or a part of it.
        package: the model.
        options: ``parity`` and ``body_crop`` decide what of the volume the network sees.
        resampled: False leaves everything to who comes next.
    """
    canonical = Canonical.of(volume.geometry)
    if not resampled:
        return Prepared(volume, canonical, ())
    source = canonical.view(volume.voxels_zyx)
    spacing = canonical.spacing_mm(volume.geometry)
    threads = options.threads or usable_cores()
    crops_to_body = options.body_crop and not options.parity
    grids: dict[object, Grid] = {}
    of_parts = []
    for part in package.parts:
        wanted, key = spacing_zyx_mm(part), _grid_key(part, package)
        if key not in grids:
            if package.resampling == "nnunet":
                grid = _grid_within_borders(source, spacing, part)
            else:
                grid = _grid_of_corners(source, spacing, wanted, threads)
            grids[key] = _cropped_to_body(grid, source, spacing, package.parts) if crops_to_body else grid
        of_parts.append(grids[key])
    return Prepared(volume, canonical, tuple(of_parts))


def _grid_key(part: Part, package: ModelPackage) -> object:
    """Parts with the same share a grid; nnU-Net resamples normalised values, so there they must normalise alike."""
    return spacing_zyx_mm(part), part.normalisation if package.resampling == "nnunet" else None


def spacing_zyx_mm(part: Part) -> tuple[float, float, float]:
    """Spacing of the network's grid along the canonical axes."""
    z, y, x = (part.spacing_mm[part.axes.index(axis)] for axis in range(3))
    return z, y, x


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _grid_of_corners(source: NDArray[Any], spacing: Sequence[float], wanted: Sequence[float], threads: int) -> Grid:
    """As TotalSegmentator resamples, and then nnU-Net's crop to what is not 0 HU."""
    if np.array_equal(np.array(spacing, np.float32), np.array(wanted, np.float32)):
        voxels = source  # which TotalSegmentator then does not even truncate
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
    """The grid with the box around the patient, at least as large as every network's window where there is so much."""
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


def box_around(body_zyx: NDArray[np.bool_], box: _Box, parts: Sequence[Part]) -> _Box:
    """What of ``box`` holds the patient, at least as large as every network's window where there is so much."""
    least = [max(part.patch_size[part.axes.index(axis)] for part in parts) for axis in range(3)]
    within = bounding_box(body_zyx[box], least)
    z, y, x = (slice(b.start + w.start, b.start + w.stop) for b, w in zip(box, within, strict=True))
    return z, y, x


def _whole(shape: Sequence[int]) -> _Box:
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


def nonzero_box(voxels_zyx: NDArray[Any]) -> _Box:
    """The smallest box that holds every voxel that is not 0 HU (nnU-Net's crop_to_nonzero); everything, if all are."""
    return bounding_box(voxels_zyx != 0)


def normalise(hu: NDArray[Any], constants: Normalisation) -> NDArray[np.float32]:
    """nnU-Net's CTNormalization, in float32 as it computes."""
    values: NDArray[np.float32] = hu.astype(np.float32)
    np.clip(values, np.float32(constants.lowest_hu), np.float32(constants.highest_hu), out=values)
    values -= np.float32(constants.mean_hu)
    values /= np.float32(max(constants.sd_hu, 1e-8))
    return values


def check(volume: Volume, package: ModelPackage, options: EngineOptions) -> None:
    """Raises SegmentationRefusedError, with the numbers, for a volume that ``package`` can't segment."""
    geometry, voxels = volume.geometry, volume.voxels_zyx
    if not geometry.is_orthogonal:
        raise SegmentationRefusedError("the axes of the volume are not perpendicular")
    too_small = package.minimum.refusal(geometry)
    if too_small is not None:
        raise SegmentationRefusedError(too_small)
    _check_memory(geometry, package, options)
    lowest, highest = voxels.min(), voxels.max()
    if not np.isfinite([lowest, highest]).all():
        raise SegmentationRefusedError("the volume holds HU that are not finite numbers")
    if lowest == highest:
        raise SegmentationRefusedError(f"every voxel of the volume is {lowest} HU")


def _check_memory(geometry: Geometry, package: ModelPackage, options: EngineOptions) -> None:
    limit = options.memory_bytes or available_memory_bytes() * 4 // 5
    need = memory_estimate_bytes(geometry, package, options)
    if need > limit:
        raise SegmentationRefusedError(
            f"segmenting {geometry.shape_zyx} voxels would take about {need / 1e9:.1f} GB; "
            f"at most {limit / 1e9:.1f} GB may be used"
        )


def memory_estimate_bytes(geometry: Geometry, package: ModelPackage, options: EngineOptions) -> int:
    """Memory that segmenting a volume on ``geometry`` takes beside the volume and the weights: an upper bound.

    The label map, the resampled voxels of every grid, and of the part that needs most: its normalised copy, the sums of
    one window's depth, slabs of them on their way to labels, and the network at work on one window.
    """
    canonical = Canonical.of(geometry)
    source_shape = tuple(geometry.shape_zyx[axis] for axis in canonical.source_axes)
    spacing = canonical.spacing_mm(geometry)
    shape_by_grid = {
        _grid_key(part, package): resampled_shape(source_shape, spacing, spacing_zyx_mm(part)) for part in package.parts
    }
    voxels = [math.prod(shape) for shape in shape_by_grid.values()]
    kept = sum(voxels) * (5 if package.resampling == "nnunet" else 4)  # values, a mask of them, another that passes
    # cubic resampling works in double precision, one grid at a time
    passing = 3 * 8 * (math.prod(source_shape) + max(voxels)) if package.resampling == "nnunet" else 0
    of_part = max(
        _part_bytes(part, [shape_by_grid[_grid_key(part, package)][axis] for axis in part.axes], options)
        for part in package.parts
    )
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
    # a slab, copied or (in parity) as quotients and their mean, and the logits of two planes and the next one
    slab = (8 + 2 * folds if options.parity else 4) * channels * min(SLAB_PLANES, padded[0]) * plane
    restored = slab + 3 * 4 * classes * plane
    number = 4 if effective_precision(options) == "float32" else 2
    # the widest place of a U-Net: the skip, what is upsampled beside it, the two joined, and what comes out
    network = window * (6 * features * number + 8 * channels)
    return 8 * math.prod(padded) + sums + restored + network


_CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """What this process can still take: of the machine, or of its control group where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = _lines(Path("/proc/meminfo"))
    found.extend(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    limit, used, kinds = (_lines(_CONTROL_GROUP / f"memory.{name}") for name in ("max", "current", "stat"))
    if limit and used and limit[0].isdigit():
        # pages of files count as used, though the kernel gives those that are not in use to whoever asks
        cached = sum(int(line.split()[1]) for line in kinds if line.startswith("inactive_file "))
        found.append(int(limit[0]) - int(used[0]) + cached)
    return max(0, min(found))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
