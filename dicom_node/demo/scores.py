"""Scores the results of the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dicom_node.results import StoredSegmentation


class UnexpectedResult(Exception):
    """An object from the PACS is not what the node should have sent."""


def dice_by_name(
    received: StoredSegmentation, truth_zyx: NDArray[np.uint8], truth_names: Mapping[int, str]
) -> dict[str, float]:
    """Dice of every structure in truth or result, by its name in the truth; from one joint histogram."""
    joint = np.bincount(
        truth_zyx.ravel().astype(np.int32) * 256 + received.labels_zyx.ravel(), minlength=1 << 16
    ).reshape(256, 256)
    label_of = {segment.name: segment.label for segment in received.segments}
    dice = {}
    for truth_label, name in truth_names.items():
        label = label_of.get(name)
        in_truth = int(joint[truth_label].sum())
        in_result = int(joint[:, label].sum()) if label is not None else 0
        common = int(joint[truth_label, label]) if label is not None else 0
        if in_truth + in_result:
            dice[name] = 2 * common / (in_truth + in_result)
    return dice
