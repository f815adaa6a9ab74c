"""Overlapping windows over a volume, averaged with Gaussian weights as nnU-Net does, in bounded memory.

Windows are visited in ascending order of the first axis. As soon as no further window reaches a plane, its averaged
channels are passed on and its memory is reused, so that only one window's depth of planes is held in memory.
Sources: nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py; acvl_utils' pad_nd_image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.nnunet.failures import NotFiniteError
from inference.nnunet.windows import SLAB_PLANES, Windows, gaussian_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from inference.nnunet.contract import WindowNetwork

_CHUNK_VOXELS = 1 << 16
"""Voxels that are weighted and added at once, few enough for the cache of a core."""


def averaged(
    image_zyx: NDArray[np.float32],
    windows: Windows,
    network: WindowNetwork,
    on_window: Callable[[], None],
    threads: int = 1,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Channels of ``image_zyx``, a slab of planes at a time, in ascending order without gaps.

    Args:
        image_zyx: normalised HU on the network's grid and axes.
        windows: where to run the network.
        network: windows in, channels out.
        on_window: called after each window.
        threads: how many threads add channels.

    Yields:
        The first plane of the slab, and its channels [K, plane, y, x]; NaN where no window looked. Asking for the
        next slab may overwrite the last.

    Raises:
        NotFiniteError: a channel is infinite or NaN where a window looked.
    """
    image_zyx = _padded(image_zyx, windows)  # same name, so that only one copy is kept
    if windows.padded == windows.patch:  # the weights of a single window cancel out
        values = network.run(image_zyx[None])[0]
        _check_finite(values)
        on_window()
        yield from windows.without_padding(0, values)
        return
    weights = gaussian_weights(windows.patch).astype(np.float32)
    total = windows.total(weights)
    depth = windows.patch[0]
    sums = np.zeros((network.channels, depth, *windows.padded[1:]), np.float32)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for number, (z, row) in enumerate(windows.starts):
            for y, x in row:
                at = windows.at(z, y, x)
                values = network.run(np.ascontiguousarray(image_zyx[at])[None])[0]
                share = weights / total[at]
                target = sums[(slice(None), slice(None), *at[1:])]
                list(pool.map(lambda k, v=values, s=share, t=target: _add(v[k], s, t[k]), range(network.channels)))
                on_window()
            done = windows.finished(number)
            slab = sums[:, :done]
            _check_finite(slab)  # 0 where no window looked
            unseen = total[z : z + done] == 0
            if unseen.any():
                slab[:, unseen] = np.nan
            yield from windows.without_padding(z, slab)
            _move_up(sums, done)


def averaged_half(
    image_zyx: NDArray[np.float32], windows: Windows, networks: Sequence[WindowNetwork], on_window: Callable[[], None]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """As :func:`averaged`, in nnU-Net's arithmetic: sums, weights, quotients and the mean of folds in half precision.

    Each of ``networks``, the folds, must give logits, not features, because nnU-Net rounds logits.

    Raises:
        NotFiniteError: a network or a sum in half precision overflowed; nnU-Net stops there, too.
    """
    image_zyx = _padded(image_zyx, windows)
    half = gaussian_weights(windows.patch)
    weights = half.astype(np.float32)
    total = windows.total(half)
    of_folds = [np.zeros((network.channels, windows.patch[0], *windows.padded[1:]), np.float16) for network in networks]
    for number, (z, row) in enumerate(windows.starts):
        for y, x in row:
            at = windows.at(z, y, x)
            window = np.ascontiguousarray(image_zyx[at])[None]
            for network, sums in zip(networks, of_folds, strict=True):
                values = network.run(window)[0]
                for k in range(network.channels):
                    _add(values[k], weights, sums[(k, slice(None), *at[1:])])
            on_window()
        done = windows.finished(number)
        for first in range(0, done, SLAB_PLANES):
            planes = slice(first, min(first + SLAB_PLANES, done))
            share = total[z + planes.start : z + planes.stop]
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                mean, *others = [sums[:, planes] / share for sums in of_folds]
                for other in others:
                    mean += other
                if others:
                    mean /= np.float16(len(of_folds))
            _check_finite(mean)
            yield from windows.without_padding(z + first, mean.astype(np.float32))
        for sums in of_folds:
            _move_up(sums, done)


def _padded(image_zyx: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    if windows.padded == image_zyx.shape:
        return np.ascontiguousarray(image_zyx)
    padded = np.zeros(windows.padded, np.float32)
    padded[windows.inside] = image_zyx
    return padded


def _add(values: NDArray[np.float32], weights: NDArray[np.float32], sums: NDArray[Any]) -> None:
    """Add one weighted channel [z, y, x] of a window; the product is rounded to single precision as in torch."""
    planes = max(1, _CHUNK_VOXELS // (values.shape[1] * values.shape[2]))
    with np.errstate(over="ignore", invalid="ignore"):  # the sums are checked when they are complete
        for first in range(0, len(values), planes):
            chunk = slice(first, first + planes)
            np.add(sums[chunk], values[chunk] * weights[chunk], out=sums[chunk], casting="same_kind")


def _check_finite(values: NDArray[Any]) -> None:
    """Raises NotFiniteError for infinities and NaN, which both bounds of an array show."""
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise NotFiniteError


def _move_up(sums: NDArray[Any], count: int) -> None:
    """Drop the first ``count`` planes of every channel, move the rest to the front and set what follows to 0."""
    kept = sums.shape[1] - count
    for channel in sums:
        channel[:kept] = channel[count:]
        channel[kept:] = 0
