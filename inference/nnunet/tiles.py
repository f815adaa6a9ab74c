"""Overlapping windows over a volume, averaged with Gaussian weights as nnU-Net does, in bounded memory.

Windows are visited by ascending first axis; as soon as no further window reaches a plane, its averaged logits are
handed on and its memory is used again. So the logits of one window's depth are held, never those of the whole volume.
Source: nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py (step 0.5, sigma 1/8).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STEP = 0.5
"""Windows advance by at most this fraction of their size."""
_SIGMA = 1 / 8
_TOP_WEIGHT = 10.0


def window_starts(size: int, window: int) -> list[int]:
    """First voxels of the windows along one axis, evenly spread from edge to edge; ``size`` is at least ``window``."""
    count = int(np.ceil((size - window) / (window * STEP))) + 1
    distance = (size - window) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * k)) for k in range(count)]


def window_count(shape: Sequence[int], window: Sequence[int]) -> int:
    """How many windows a volume of ``shape`` takes."""
    return int(np.prod([len(window_starts(max(n, w), w)) for n, w in zip(shape, window, strict=True)]))


def gaussian_weights(window: Sequence[int]) -> torch.Tensor:
    """Importance of each voxel of a window: highest in its middle, nowhere 0."""
    impulse = np.zeros(tuple(window))
    impulse[tuple(n // 2 for n in window)] = 1
    weights = gaussian_filter(impulse, [n * _SIGMA for n in window], 0, mode="constant", cval=0)
    weights *= _TOP_WEIGHT / weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights.astype(np.float32))


@torch.inference_mode()
def averaged_logits(
    image: torch.Tensor,
    window: Sequence[int],
    predict: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    on_window: Callable[[], None],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits of ``image``, a slab of planes at a time, in ascending order and without gap.

    Args:
        image: normalised HU, [z, y, x], on any device.
        window: size of the network's input.
        predict: [1, 1, *window] -> [1, classes, *window].
        classes: output channels of the network.
        on_window: called after each window.

    Yields:
        The first plane of the slab, and its logits [plane, y, x, class] in float32. A slab is overwritten when the next
        one is asked for.
    """
    padding = [
        (max(w - n, 0) // 2, max(w - n, 0) - max(w - n, 0) // 2) for n, w in zip(image.shape, window, strict=True)
    ]
    padded = torch.nn.functional.pad(image, [p for pair in reversed(padding) for p in pair])
    starts = [window_starts(n, w) for n, w in zip(padded.shape, window, strict=True)]
    weights = gaussian_weights(window).to(image.device)
    depth = window[0]
    sums = torch.zeros((depth, *padded.shape[1:], classes), device=image.device)
    total = torch.zeros((depth, *padded.shape[1:]), device=image.device)
    for number, z in enumerate(starts[0]):
        for y, x in product(starts[1], starts[2]):
            here = (slice(None), slice(y, y + window[1]), slice(x, x + window[2]))
            logits = predict(padded[z : z + depth][here][None, None])[0].permute(1, 2, 3, 0)
            for plane in range(depth):  # one at a time: no second copy of the window in float32
                sums[plane][here[1:]].addcmul_(logits[plane].float(), weights[plane, ..., None])
            total[here] += weights
            on_window()
        done = (starts[0][number + 1] if number + 1 < len(starts[0]) else padded.shape[0]) - z
        yield from _without_padding(z, sums[:done].div_(total[:done, ..., None]), image.shape, padding)
        _move_up(sums, done)
        _move_up(total, done)


def _without_padding(
    first: int, logits: torch.Tensor, shape: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, torch.Tensor]]:
    low = max(padding[0][0] - first, 0)
    high = min(padding[0][0] + shape[0] - first, logits.shape[0])
    if low < high:
        (_, (y, _), (x, _)) = padding
        yield first + low - padding[0][0], logits[low:high, y : y + shape[1], x : x + shape[2]]


def _move_up(planes: torch.Tensor, count: int) -> None:
    """Drop the first ``count`` planes; the rest move to the front and what follows them is 0."""
    kept = planes.shape[0] - count
    for first in range(0, kept, count):  # pieces that do not overlap their source
        last = min(first + count, kept)
        planes[first:last] = planes[first + count : last + count]
    planes[kept:] = 0
