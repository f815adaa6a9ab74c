"""The commissioning model: four tissue classes by HU thresholds, on any CT, without training or weights.

Its result shows at a glance whether a node is set up correctly: geometry, left and right, colours, volumes.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the spelling of its documentation
from scipy import ndimage

from inference.errors import SegmentationRefusedError
from inference.types import ModelIdentity, RunReport, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from inference.types import Volume

AIR, FAT, SOFT_TISSUE, BONE = 1, 2, 3, 4
NAMES_BY_LABEL = {AIR: "air_in_body", FAT: "body_fat", SOFT_TISSUE: "soft_tissue", BONE: "bone_tissue"}
VERSION = "1"


@dataclass(frozen=True, slots=True)
class TissueParameters:
    """Thresholds in HU, inclusive; body voxels between two classes (partial volume) stay unlabelled."""

    body_above_hu: float = -400
    """The body is made of large connected regions above this, with everything that they enclose in a slice."""
    opening_mm: float = 2.0
    """Half width of the opening that separates the body from table and tubes, which are thinner."""
    closing_mm: float = 6.0
    """Half width of the closing that bridges gaps in a thin chest wall, so that the lung behind it is enclosed."""
    region_fraction: float = 0.02
    """Regions smaller than this fraction of the largest one are not body (an arm is larger)."""
    air_hu: tuple[float, float] = (-10000, -400)
    fat_hu: tuple[float, float] = (-190, -30)
    soft_tissue_hu: tuple[float, float] = (-29, 150)
    bone_above_hu: float = 150
    bone_minimum_ml: float = 0.5
    """Smaller islands above the bone threshold (enhanced vessels, calcifications, noise) count as soft tissue."""


class TissueSegmenter:
    """Air inside the body, fat, soft tissue and bone; a :class:`inference.types.Segmenter`."""

    def __init__(self, name: str = "tissue", parameters: TissueParameters = TissueParameters()) -> None:
        self._parameters = parameters
        content = json.dumps({"version": VERSION, **asdict(parameters)}, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        self._identity = ModelIdentity(name, VERSION, digest, "Thresholding")

    @property
    def identity(self) -> ModelIdentity:
        """The version and the thresholds."""
        return self._identity

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """The four classes."""
        return NAMES_BY_LABEL

    def segment(self, volume: Volume, progress: Callable[[float, str], None]) -> Segmentation:
        """Label every voxel of ``volume``; a volume of air only gets no labels.

        Raises:
            SegmentationRefusedError: HU are not finite.
        """
        volume = volume.with_air_for_padding()
        voxels = volume.voxels_zyx
        if voxels.dtype == np.float32 and not np.isfinite(voxels).all():
            raise SegmentationRefusedError("the volume has HU values that are not finite")
        start = time.perf_counter()
        progress(0.0, "body")
        body = self._body(volume)
        progress(0.7, "tissue")
        labels = self._classes(voxels, body)
        progress(0.8, "bone")
        self._move_small_islands_to_soft_tissue(labels, volume.geometry.voxel_volume_ml)
        progress(1.0, "done")
        seconds = {"thresholds": time.perf_counter() - start}
        run = RunReport(f"numpy {np.__version__}", "CPU", str(voxels.dtype), stage_seconds=seconds)
        return Segmentation(labels, volume.geometry, NAMES_BY_LABEL, self._identity, run)

    def _body(self, volume: Volume) -> NDArray[np.bool_]:
        """The large regions of tissue and what they enclose in each slice; empty if all is air."""
        tissue = volume.voxels_zyx > self._parameters.body_above_hu
        if not tissue.any():
            return tissue
        cut = self._in_plane_pixels(volume, self._parameters.opening_mm)
        core = self._large_regions(_grown(_shrunk(tissue, cut), cut))
        if not core.any():  # everything is thinner than the opening's width
            core = self._large_regions(tissue)
        bridge = self._in_plane_pixels(volume, self._parameters.closing_mm)
        # the opening removes thin walls and corners: tissue this close to the core still belongs to the body
        solid = _grown(core, bridge) & tissue
        closed = _shrunk(_grown(solid, bridge), bridge) | solid
        enclosed = _filled_per_slice(closed) & ~closed
        # the closing also fills the rim of enclosed regions, and concave skin; only the former is inside the body
        return _filled_per_slice(solid) | enclosed | (_grown(enclosed, bridge) & closed)

    def _large_regions(self, tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
        regions = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(tissue.astype(np.uint8))))
        sizes = np.bincount(regions.ravel())
        sizes[0] = 0
        large = sizes >= max(1.0, sizes.max() * self._parameters.region_fraction)
        kept: NDArray[np.bool_] = large[regions]
        return kept

    @staticmethod
    def _in_plane_pixels(volume: Volume, half_width_mm: float) -> tuple[int, int]:
        column_mm, row_mm, _ = volume.geometry.spacing_xyz_mm
        # first to a millionth: a turned grid has pixels of 3.9999999999999996 mm and the answer of one with 4 mm
        return round(round(half_width_mm / row_mm, 6)), round(round(half_width_mm / column_mm, 6))

    def _classes(self, voxels: NDArray[np.int16] | NDArray[np.float32], body: NDArray[np.bool_]) -> NDArray[np.uint8]:
        labels = np.zeros(voxels.shape, np.uint8)
        parameters = self._parameters
        bounds = {
            AIR: parameters.air_hu,
            FAT: parameters.fat_hu,
            SOFT_TISSUE: parameters.soft_tissue_hu,
            BONE: (np.nextafter(np.float32(parameters.bone_above_hu), np.float32(np.inf)), np.inf),
        }
        for plane, inside, result in zip(voxels, body, labels, strict=True):
            for label, (low, high) in bounds.items():
                result[inside & (plane >= low) & (plane <= high)] = label
        return labels

    def _move_small_islands_to_soft_tissue(self, labels: NDArray[np.uint8], voxel_ml: float) -> None:
        bone = sitk.GetImageFromArray((labels == BONE).astype(np.uint8))
        smallest = max(1, round(self._parameters.bone_minimum_ml / voxel_ml))
        kept = sitk.RelabelComponent(sitk.ConnectedComponent(bone), minimumObjectSize=smallest) > 0
        labels[(labels == BONE) & ~sitk.GetArrayViewFromImage(kept).astype(bool)] = SOFT_TISSUE


def _grown(region: NDArray[np.bool_], rows_columns: tuple[int, int]) -> NDArray[np.bool_]:
    """In each slice, everything within a rectangle of the given half widths (pixels) around the region."""
    pixels: NDArray[np.uint8] = region.view(np.uint8)
    for axis, half_width in zip((1, 2), rows_columns, strict=True):
        pixels = ndimage.maximum_filter1d(pixels, 2 * half_width + 1, axis=axis, mode="nearest")
    return pixels.view(np.bool_)


def _shrunk(region: NDArray[np.bool_], rows_columns: tuple[int, int]) -> NDArray[np.bool_]:
    """The inverse: the region that remains when its surroundings grow. It continues beyond the image border."""
    return ~_grown(~region, rows_columns)


def _filled_per_slice(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Each slice with its holes filled; a gap that reaches the border (such as a truncated lung) is not a hole."""
    filled = np.empty_like(region)
    for plane, result in zip(region, filled, strict=True):
        image = sitk.BinaryFillhole(sitk.GetImageFromArray(plane.astype(np.uint8)))
        result[...] = sitk.GetArrayViewFromImage(image)
    return filled
