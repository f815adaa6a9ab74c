"""A volume that is ready for the network: its voxels on the network's grid, and the box to segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.nnunet.body import bounding_box
from inference.nnunet.grid import thick_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Normalisation, Part
    from inference.nnunet.grid import Canonical
    from inference.types import Volume

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A volume in a network's spacing, with canonical axes (z, y, x) that ascend as the model's orientation says.

    ``voxels_zyx`` are whole HU (int16), or already ``normalised`` values (float32). ``source_box`` is the part of the
    canonical source that they span, ``box`` the part of them that the network sees; ``body_zyx`` masks the patient in
    the box.
    """

    voxels_zyx: NDArray[np.int16] | NDArray[np.float32]
    source_box: Box
    box: Box
    body_zyx: NDArray[np.bool_] | None
    normalised: bool

    def image(self, part: Part) -> NDArray[np.float32]:
        """What the network of ``part`` sees, in the network's axis order."""
        values = self.voxels_zyx[self.box].transpose(part.axes)
        return np.ascontiguousarray(values if self.normalised else normalise(values, part.normalisation), np.float32)

    def needed(self, part: Part) -> NDArray[np.bool_] | None:
        """Where windows are worth running, in the axis order of ``part``; None: everywhere."""
        return None if self.body_zyx is None else self.body_zyx.transpose(part.axes)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A checked volume, and one grid for each part of the model (shared by parts with the same spacing).

    ``grids`` is empty if a CUDA device does the rest. ``seconds`` is how long preparation took.
    """

    volume: Volume
    canonical: Canonical
    grids: tuple[Grid, ...]
    seconds: float = 0.0

    def thick_axis(self, part: Part) -> int | None:
        """Of the axes of ``part``, the one along which nnU-Net takes logits from the nearest plane."""
        source = self.canonical.spacing_mm(self.volume.geometry)
        return thick_axis(part.spacing_mm, [source[axis] for axis in part.axes])


def spacing_zyx_mm(part: Part) -> tuple[float, float, float]:
    """Spacing of the network's grid along the canonical axes."""
    z, y, x = (part.spacing_mm[part.axes.index(axis)] for axis in range(3))
    return z, y, x


def box_around(body_zyx: NDArray[np.bool_], box: Box, parts: Sequence[Part]) -> Box:
    """The part of ``box`` that holds the patient, but at least as large as every network's window if the box is."""
    least = [max(part.patch_size[part.axes.index(axis)] for part in parts) for axis in range(3)]
    within = bounding_box(body_zyx[box], least)
    z, y, x = (slice(b.start + w.start, b.start + w.stop) for b, w in zip(box, within, strict=True))
    return z, y, x


def normalise(hu: NDArray[Any], constants: Normalisation) -> NDArray[np.float32]:
    """nnU-Net's CTNormalization, in float32 as in nnU-Net."""
    values: NDArray[np.float32] = hu.astype(np.float32)
    np.clip(values, np.float32(constants.lowest_hu), np.float32(constants.highest_hu), out=values)
    values -= np.float32(constants.mean_hu)
    values /= np.float32(max(constants.sd_hu, 1e-8))
    return values


def grid_key(part: Part, package: ModelPackage) -> object:
    """Parts with equal keys share a grid; includes the normalisation where nnU-Net resamples normalised values."""
    return spacing_zyx_mm(part), part.normalisation if package.resampling == "nnunet" else None
