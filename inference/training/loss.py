"""Cross entropy plus soft Dice, like nnU-Net's compound loss, on a weighted sample of voxels.

A patch has 10^8 class scores; the loss over all of them would cost more than the network. A sample (about one voxel in
eight, drawn with known probability) gives unbiased estimates of both terms at a fraction of the cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

SMOOTHING_VOXELS = 20.0
SMALL_STRUCTURE_VOXELS = 600.0
LARGEST_EMPHASIS = 4.0
"""A structure of n voxels counts sqrt(SMALL_STRUCTURE_VOXELS / n) times in the cross entropy, 1 to this many times:
otherwise an adrenal gland of 40 voxels would be outweighed by the adjacent liver."""


def sampled_loss(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy plus soft Dice of the patch, estimated from the sample.

    Args:
        scores: (voxels, classes) before softmax.
        labels: (voxels,) int64.
        weights: (voxels,) how many voxels each one represents.

    Without voxels, as of a patch outside the image, it is 0.
    """
    if not len(labels):
        return scores.sum()
    logarithms = functional.log_softmax(scores.float(), dim=1)
    own = logarithms.gather(1, labels[:, None])[:, 0]
    # the square root keeps the many easy voxels, each of which represents eight, from dominating the few hard ones
    truth = scores.new_zeros(scores.shape[1], dtype=torch.float32).index_add(0, labels, weights)
    rarity = (SMALL_STRUCTURE_VOXELS / truth.clamp(min=1.0)).sqrt().clamp(1.0, LARGEST_EMPHASIS)
    emphasis = weights.sqrt() * rarity[labels]
    cross_entropy = -(own * emphasis).sum() / emphasis.sum()
    predicted = (logarithms.exp() * weights[:, None]).sum(dim=0)
    overlap = torch.zeros_like(truth).index_add(0, labels, own.exp() * weights)
    present = truth > 0
    present[0] = False
    dice = (2 * overlap + SMOOTHING_VOXELS) / (predicted + truth + SMOOTHING_VOXELS)
    soft_dice = 1 - dice[present].mean() if bool(present.any()) else truth.new_zeros(())
    return cross_entropy + soft_dice
