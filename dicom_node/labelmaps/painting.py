"""Paints one structure after the other into a label map and counts where they overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicom_node.labelmaps.label_map import Overlap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Canvas:
    """``labels_zyx``, uint8, and for each pair of labels how many voxels the second took from the first."""

    def __init__(self, shape_zyx: tuple[int, int, int]) -> None:
        self.labels_zyx = np.zeros(shape_zyx, np.uint8)
        self._taken = np.zeros((256, 256), np.int64)

    def paint(self, plane: int, inside: NDArray[np.bool_], label: int) -> None:
        """Give the voxels ``inside`` (row, column) of ``plane`` to ``label``."""
        labels_yx = self.labels_zyx[plane]
        earlier = labels_yx[inside]
        if earlier.any():
            self._taken[:, label] += np.bincount(earlier, minlength=256)
        labels_yx[inside] = label

    def overlaps(self, names_by_label: Mapping[int, str]) -> tuple[Overlap, ...]:
        """Every pair of structures that overlap."""
        return tuple(
            Overlap(names_by_label[below], names_by_label[above], int(self._taken[below, above]))
            for below, above in np.argwhere(self._taken).tolist()
            if below
        )
