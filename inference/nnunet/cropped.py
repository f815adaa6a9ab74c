"""A model that runs only around structures that another model finds first."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import ModelPackageError
from inference.nnunet.body import bounding_box
from inference.types import Geometry, RunReport, Segmentation, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from inference.models.package import Crop
    from inference.nnunet.engine import NnunetSegmenter
    from inference.types import ModelIdentity, TwoStepSegmenter

    Progress = Callable[[float, str], None]

_FIRST_SHARE = 0.3
"""Share of the first model in the progress display."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCrop:
    """A volume that both models accept, prepared for the first one."""

    volume: Volume
    for_first: Any


class CroppedSegmenter:
    """Runs ``second`` in the bounding box, plus a margin, of what ``first`` finds (:class:`inference.types.Segmenter`).

    If ``first`` finds none of the structures, the result is empty; this is not an error.

    Args:
        first: finds the structures of ``crop`` in the whole volume.
        second: the model that gives the labels and the identity.
        crop: which structures, and the margin in mm along columns, rows and planes. As in TotalSegmentator, the
            margin is truncated to whole voxels.

    Raises:
        ModelPackageError: ``first`` does not know a structure of ``crop``.
    """

    def __init__(self, first: TwoStepSegmenter, second: NnunetSegmenter, crop: Crop) -> None:
        missing = sorted(set(crop.structures) - set(first.names_by_label.values()))
        if missing:
            raise ModelPackageError(f"{first.identity.name} does not find {', '.join(missing)}")
        self._first = first
        self._second = second
        self._crop = crop

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the second model."""
        return self._second.identity

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """Labels of the second model."""
        return self._second.names_by_label

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Label every voxel of ``volume``.

        Raises:
            SegmentationRefusedError: one of the two models refuses the volume.
        """
        return self.infer(self.prepare(volume, progress), progress)

    def check(self, volume: Volume) -> None:
        """Raise SegmentationRefusedError for a volume that the second model can't segment."""
        self._second.check(volume)

    def prepare(self, volume: Volume, progress: Progress) -> PreparedCrop:
        """Check ``volume`` and prepare it for the first model; another volume may be inferred meanwhile.

        Raises:
            SegmentationRefusedError: one of the two models refuses the volume.
        """
        self._second.check(volume)
        return PreparedCrop(volume, self._first.prepare(volume, _of_the_first(progress)))

    def infer(self, prepared: PreparedCrop, progress: Progress) -> Segmentation:
        """Label every voxel of a prepared volume.

        The report names what ran both models. Its stages are those of the second model, plus ``crop``, the whole time
        of the first.

        Raises:
            MemoryError: more was needed than there is now; another time it may pass.
        """
        volume, start = prepared.volume, time.perf_counter()
        found = self._first.infer(prepared.for_first, _of_the_first(progress))
        runs = [replace(found.run, stage_seconds={"crop": time.perf_counter() - start})] if found.run else []
        labels = np.zeros(volume.geometry.shape_zyx, np.uint8)
        box = self._box(found)
        if box is not None:

            def of_the_rest(done: float, stage: str) -> None:
                progress(_FIRST_SHARE + (1 - _FIRST_SHARE) * done, stage)

            part = self._second.prepare(cropped(volume, box), of_the_rest, checked=True)
            rest = self._second.infer(part, of_the_rest)
            labels[box] = rest.labels_zyx
            runs += [rest.run] if rest.run else []
        progress(1.0, "done")
        return Segmentation(labels, volume.geometry, self.names_by_label, self.identity, RunReport.of_several(runs))

    def _box(self, found: Segmentation) -> tuple[slice, slice, slice] | None:
        wanted = np.zeros(256, bool)
        wanted[[label for label, name in found.names_by_label.items() if name in self._crop.structures]] = True
        seen: NDArray[np.bool_] = wanted[found.labels_zyx]
        if not seen.any():
            return None
        spacing = np.array(found.geometry.spacing_xyz_mm, np.float32)  # as in a NIfTI header
        margins = (np.array(self._crop.margin_xyz_mm) / spacing).astype(int)[::-1]
        z, y, x = (
            slice(max(0, at.start - int(margin)), min(n, at.stop + int(margin)))
            for at, margin, n in zip(bounding_box(seen), margins, seen.shape, strict=True)
        )
        return z, y, x


def _of_the_first(progress: Progress) -> Progress:
    return lambda done, stage: progress(_FIRST_SHARE * done, stage)


def cropped(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """The part of a volume that lies in ``box``, at its true position in the patient."""
    voxels = volume.voxels_zyx[box]
    affine = volume.geometry.affine_lps.copy()
    z, y, x = (at.start for at in box)
    affine[:, 3] = affine @ np.array([x, y, z, 1.0])
    padding = None if volume.padding is None else volume.padding.cropped(box)
    return Volume(voxels, Geometry(voxels.shape, affine), padding)
