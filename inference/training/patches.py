"""Random training patches: position, truncation, variation of attenuation, and the sample of voxels to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.training.cases import Case
    from inference.training.nnunet_folder import Intensities

NARROW_FIELD_PROBABILITY = 0.35
"""Share of patches that imitate a short or narrow scan, padded as nnU-Net pads a volume smaller than its patch."""
SHORTEST_FIELD_MM = 140.0
SMALL_STRUCTURE_VOXELS = 1500
BOUNDARY_SHARE = 0.6
INTERIOR_SHARE = 0.12


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Network input, and the sample of its voxels for the loss."""

    normalised_zyx: NDArray[np.float32]
    voxels: NDArray[np.int64]
    """Flat indices of the sampled voxels."""
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    """Reciprocal of each voxel's sampling probability, so that sums over the sample estimate sums over the patch."""


def normalise(hu_zyx: NDArray[np.generic], intensities: Intensities) -> NDArray[np.float32]:
    """nnU-Net's CTNormalization: clip to the percentiles of the foreground, subtract its mean, divide by its SD."""
    clipped = np.clip(hu_zyx.astype(np.float32), intensities.percentile_00_5, intensities.percentile_99_5)
    normalised: NDArray[np.float32] = (clipped - np.float32(intensities.mean)) / np.float32(intensities.std)
    return normalised


def draw_patch(
    case: Case,
    patch_size_zyx: tuple[int, int, int],
    spacing_mm: float,
    intensities: Intensities,
    rng: np.random.Generator,
) -> Patch:
    """Cut a random patch from a case and vary it."""
    size = np.array(patch_size_zyx)
    shape = np.array(case.labels_zyx.shape)
    field = np.minimum(size, shape)
    if rng.random() < NARROW_FIELD_PROBABILITY:
        shortest = min(int(field[0]), max(2, round(SHORTEST_FIELD_MM / spacing_mm)))
        field[0] = rng.integers(shortest, field[0] + 1)
        if rng.random() < 0.7:
            field[2] = max(1, round(field[2] * rng.uniform(0.78, 1.0)))
    first = _first_voxel(case, shape, field, rng)
    window = tuple(slice(a, a + n) for a, n in zip(first, field, strict=True))
    normalised = _vary(normalise(case.hu_zyx[window], intensities), rng)
    # centred zero padding after normalisation, as nnU-Net does with a volume smaller than its patch
    margin = [((n - m) // 2, (n - m) - (n - m) // 2) for n, m in zip(size, field, strict=True)]
    inside = np.pad(np.ones(field, dtype=np.bool_), margin)
    labels = np.pad(case.labels_zyx[window], margin)
    boundary = np.pad(case.boundary_zyx[window], margin)
    voxels, weights = _sample(labels, boundary, inside, rng)
    return Patch(np.pad(normalised, margin), voxels, labels.ravel()[voxels].astype(np.int64), weights)


def _first_voxel(
    case: Case, shape: NDArray[np.int64], field: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Half of the patches are anywhere, half around a voxel of a uniformly drawn structure."""
    room = shape - field
    if rng.random() < 0.5:
        return np.array([rng.integers(0, n + 1) for n in room])
    present = np.flatnonzero(np.bincount(case.labels_zyx.ravel(), minlength=2)[1:]) + 1
    where = np.flatnonzero(case.labels_zyx.ravel() == rng.choice(present))
    centre = np.array(np.unravel_index(rng.choice(where), case.labels_zyx.shape))
    offset = np.array([rng.integers(n // 5, n - n // 5 + 1) for n in field])
    first: NDArray[np.int64] = np.clip(centre - offset, 0, room)
    return first


def _vary(normalised: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vary contrast, brightness, noise and blur within the range of scanners and resampling."""
    if rng.random() < 0.3:
        normalised = ndimage.gaussian_filter(normalised, rng.uniform(0.25, 0.65), truncate=2.0)
    varied = normalised * np.float32(rng.uniform(0.92, 1.08)) + np.float32(rng.normal(0, 0.03))
    if rng.random() < 0.3:
        varied += rng.standard_normal(varied.shape, dtype=np.float32) * np.float32(rng.uniform(0.0, 0.08))
    return varied


def _sample(
    labels: NDArray[np.uint8], boundary: NDArray[np.bool_], inside: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sample every voxel of small structures, most voxels at boundaries, and few of the easy interior."""
    flat = labels.ravel()
    counts = np.bincount(flat, minlength=256)
    share = np.where(boundary.ravel(), BOUNDARY_SHARE, INTERIOR_SHARE).astype(np.float32)
    small = counts < SMALL_STRUCTURE_VOXELS
    small[0] = False
    share[small[flat]] = 1.0
    share *= inside.ravel()
    background_interior = (flat == 0) & ~boundary.ravel()
    share[background_interior] *= 0.5
    chosen = np.flatnonzero(rng.random(len(share), dtype=np.float32) < share)
    return chosen, 1.0 / share[chosen]
