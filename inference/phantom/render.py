"""Renders a patient on any grid: exact labels, and attenuation with point spread, texture and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from inference.phantom.body import body_parts
from inference.phantom.shapes import Block, rotation
from inference.phantom.tissues import Palette
from inference.types import Geometry, InvalidValueError, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from inference.phantom.patient import Patient
    from inference.phantom.plan import Part
    from inference.phantom.shapes import Bounds

VOXELS_PER_BLOCK = 1 << 20
"""Voxels per block of work, few enough for the temporary arrays to stay in the cache."""

SLICE_SENSITIVITY_SD = 0.35
"""Standard deviation of the slice profile as a fraction of the slice spacing."""
TEXTURE_WAVES = 24
SMALLEST_BLUR_VOXELS = 0.25


@dataclass(frozen=True, slots=True)
class Kernel:
    """A reconstruction kernel: the Gaussian point spread in the plane, and the noise relative to the patient's own.

    Kernels that enhance edges, with HU beyond those of both tissues, are not simulated.
    """

    point_spread_sd_mm: float
    noise_factor: float


STANDARD_KERNEL = Kernel(0.65, 1.0)
KERNELS = {"soft": Kernel(1.0, 0.6), "standard": STANDARD_KERNEL, "sharp": Kernel(0.4, 2.0)}
"""By name; chosen to span what is used on soft tissue and bone, not measured on a scanner."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A grid and the affine from its voxel index to the patient's body frame."""

    geometry: Geometry
    body_from_index: NDArray[np.float64]

    @classmethod
    def for_patient(cls, patient: Patient, geometry: Geometry) -> Canvas:
        """The canvas that maps ``geometry`` to the body frame of ``patient``."""
        return cls(geometry, np.linalg.inv(lps_from_body(patient)) @ geometry.affine_lps)

    def blocks(self, bounds: Bounds) -> Iterator[Block]:
        """Blocks of voxels that cover the part of the box ``bounds`` (mm, body frame) on the grid."""
        shape_xyz = np.array(self.geometry.shape_zyx[::-1])
        low, high = (np.clip(corner, -1e5, 1e5) for corner in bounds)
        corners = np.array(
            [[x, y, z, 1.0] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        )
        index = (np.linalg.inv(self.body_from_index) @ corners.T)[:3]
        first = np.clip(np.floor(index.min(axis=1)), 0, shape_xyz).astype(int)
        last = np.clip(np.ceil(index.max(axis=1)) + 1, 0, shape_xyz).astype(int)
        if (last <= first).any():
            return
        plane = int(np.prod((last - first)[:2]))
        step = max(1, VOXELS_PER_BLOCK // plane)
        for z in range(first[2], last[2], step):
            stop = min(z + step, int(last[2]))
            yield Block((int(first[0]), int(first[1]), z), (int(last[0]), int(last[1]), stop), self.body_from_index)


def lps_from_body(patient: Patient) -> NDArray[np.float64]:
    """4 x 4 affine from the body frame of the reference adult to LPS mm."""
    matrix = np.eye(4)
    scale = np.diag([patient.width_factor, patient.depth_factor, patient.height_factor])
    matrix[:3, :3] = rotation(yaw_deg=patient.yaw_deg) @ scale
    matrix[:3, 3] = patient.offset_lps_mm
    return matrix


def render(
    patient: Patient, geometry: Geometry, label_by_name: dict[str, int], kernel: Kernel = STANDARD_KERNEL
) -> tuple[Volume, NDArray[np.uint8]]:
    """Render a patient on any grid.

    Args:
        patient: the patient to render.
        geometry: any spacing, orientation and field of view; voxels outside the patient are air.
        label_by_name: label of each structure.
        kernel: sharpness and noise of the CT; the labels don't depend on it.

    Returns:
        The CT (int16 HU) and the labels, uint8 [z, y, x]; a label names the structure at the voxel's *centre*.
    """
    parts = body_parts(patient)
    palette = _palette(parts)
    codes = _paint(parts, palette, Canvas.for_patient(patient, geometry))
    volume = Volume(_attenuation(patient, geometry, codes, palette, kernel), geometry)
    table = palette.labels(label_by_name)
    for plane in codes:  # in place: a routine whole body has 10^8 voxels
        plane[...] = table[plane]
    return volume, codes


def thicker_slices(volume: Volume, planes: int) -> Volume:
    """The scan with slices of ``planes`` neighbouring ones each, as their mean; planes left over are dropped.

    As on a scanner that reconstructs the same data twice, the anatomy and the noise are the same, and the noise of a
    thick slice is smaller.

    Raises:
        InvalidValueError: the volume has fewer planes than one slice needs.
    """
    if planes == 1:
        return volume
    fine = volume.geometry
    count, rows, columns = fine.shape_zyx[0] // planes, *fine.shape_zyx[1:]
    if not count:
        raise InvalidValueError(f"a slice of {planes} planes from a volume of {fine.shape_zyx[0]}")
    affine_lps = fine.affine_lps.copy()
    affine_lps[:3, 3] += fine.affine_lps[:3, 2] * (planes - 1) / 2
    affine_lps[:3, 2] *= planes
    voxels_zyx = np.empty((count, rows, columns), np.int16)
    for k in range(count):
        mean = volume.voxels_zyx[k * planes : (k + 1) * planes].mean(axis=0, dtype=np.float32)
        voxels_zyx[k] = np.rint(mean)
    return Volume(voxels_zyx, Geometry(voxels_zyx.shape, affine_lps))


def render_truth(
    patient: Patient, geometry: Geometry, label_by_name: dict[str, int]
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """The labels that :func:`render` gives, without a CT, in a tenth of the time.

    Returns:
        The labels, uint8 [z, y, x], and the mean attenuation (HU) of each structure as it is painted: before point
        spread, texture and noise.
    """
    parts = body_parts(patient)
    palette = _palette(parts)
    codes = _paint(parts, palette, Canvas.for_patient(patient, geometry))
    counts = np.bincount(codes.ravel(), minlength=256)
    hu = palette.hu(patient).astype(np.float64)
    codes_of: dict[str, list[int]] = {}
    for (structure, _), code in palette.codes.items():
        if structure is not None and counts[code]:
            codes_of.setdefault(structure, []).append(code)
    means = {name: float(np.average(hu[own], weights=counts[own])) for name, own in codes_of.items()}
    return palette.labels(label_by_name)[codes], means


def _palette(parts: list[Part]) -> Palette:
    pairs = [(part.structure, part.tissue) for part in parts if part.tissue is not None]
    bare = [tissue for structure, tissue in pairs if structure is None]
    relabelled = [(part.structure, tissue) for part in parts if part.tissue is None for tissue in dict.fromkeys(bare)]
    return Palette([*pairs, *relabelled])


def _paint(parts: list[Part], palette: Palette, canvas: Canvas) -> NDArray[np.uint8]:
    codes = np.zeros(canvas.geometry.shape_zyx, dtype=np.uint8)
    for part in parts:
        allowed = None if part.over is None else palette.codes_of_tissues(part.over)
        relabel = None if part.tissue is not None or part.structure is None else palette.relabelled(part.structure)
        for piece in part.solid.pieces():
            for block in canvas.blocks(piece.bounds()):
                view = codes[block.slices_zyx]
                mask = piece.contains(block)
                for solid in part.inside:
                    mask = mask & solid.contains(block)
                for solid in part.outside:
                    mask = mask & ~solid.contains(block)
                if not mask.any():
                    continue
                if allowed is not None:
                    mask = mask & allowed[view]
                if relabel is not None:
                    np.copyto(view, relabel[view], where=mask)
                elif part.tissue is not None:
                    np.copyto(view, np.uint8(palette.codes[part.structure, part.tissue]), where=mask)
    return codes


def _attenuation(
    patient: Patient, geometry: Geometry, codes: NDArray[np.uint8], palette: Palette, kernel: Kernel
) -> NDArray[np.int16]:
    """HU of the painted tissues: texture, then the scanner's blur, then its noise, slab by slab."""
    spacing_x, spacing_y, _ = geometry.spacing_xyz_mm
    blur = (SLICE_SENSITIVITY_SD, kernel.point_spread_sd_mm / spacing_y, kernel.point_spread_sd_mm / spacing_x)
    hu_table, texture_table = palette.hu(patient), palette.texture_sd_hu()
    in_plane, along = _texture_waves(patient, geometry)
    noise = np.random.default_rng([patient.seed, 7])
    noise_sd_hu = np.float32(patient.noise_sd_hu * kernel.noise_factor)
    planes, rows, columns = geometry.shape_zyx
    result = np.empty(geometry.shape_zyx, dtype=np.int16)
    step, halo = max(1, 4 * VOXELS_PER_BLOCK // (rows * columns)), 2
    for first in range(0, planes, step):
        last = min(first + step, planes)
        low, high = max(first - halo, 0), min(last + halo, planes)
        slab = codes[low:high]
        hu = hu_table[slab]
        hu += texture_table[slab] * (along[low:high] @ in_plane).reshape(slab.shape)
        for axis, sd in enumerate(blur):
            # a grid much coarser than the scanner's blur samples points, as if resampled from a fine series
            if sd >= SMALLEST_BLUR_VOXELS and not (axis == 0 and geometry.spacing_xyz_mm[2] > 3.5):
                hu = ndimage.gaussian_filter1d(hu, sd, axis=axis, mode="nearest", radius=2)
        hu = hu[first - low : last - low]
        hu += noise.standard_normal(hu.shape, dtype=np.float32) * noise_sd_hu
        np.rint(np.clip(hu, -1024, 3071, out=hu), out=hu)
        result[first:last] = hu
    return result


def _texture_waves(patient: Patient, geometry: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors of the texture, sum over m of along[z, m] * in_plane[m, y * x], with a standard deviation of about one.

    The texture consists of plane waves of 15 to 60 mm along the grid axes, because a product of two small matrices is
    far cheaper than a three-dimensional interpolation.
    """
    rng = patient.random("texture")
    planes, rows, columns = geometry.shape_zyx
    spacing_x, spacing_y, spacing_z = geometry.spacing_xyz_mm
    kx, ky, kz = 2 * np.pi / rng.uniform(15, 60, (3, TEXTURE_WAVES)) * rng.choice([-1, 1], (3, TEXTURE_WAVES))
    phase, height_phase = rng.uniform(0, 2 * np.pi, (2, TEXTURE_WAVES))
    x = np.arange(columns) * spacing_x
    y = np.arange(rows) * spacing_y
    z = np.arange(planes) * spacing_z
    in_plane = np.sin(kx[:, None, None] * x + ky[:, None, None] * y[:, None] + phase[:, None, None])
    along = np.sin(z[:, None] * kz + height_phase) * (2.0 / np.sqrt(TEXTURE_WAVES))
    return in_plane.reshape(TEXTURE_WAVES, -1).astype(np.float32), along.astype(np.float32)
