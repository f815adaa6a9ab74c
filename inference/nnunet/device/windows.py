"""Overlapping windows in batches on one device, averaged with Gaussian weights, without waiting on the host.

Windows, weights, sums and their order are those of :mod:`inference.nnunet.host.averaging`; here the sums are kept on
the device, and several windows with the same first plane go through the network together.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from inference.nnunet.device.source import uploaded
from inference.nnunet.failures import NotFiniteError
from inference.nnunet.windows import gaussian_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inference.nnunet.contract import TensorNetwork
    from inference.nnunet.windows import Windows

_BATCHES_AHEAD = 4
"""How far the host runs ahead: far enough to keep the queue filled, and progress still counts finished windows."""


class Queued:
    """Windows queued on a device: reports the finished ones and limits how far the host runs ahead.

    ``on_windows`` is called with the number of finished windows and of all windows of all ``parts``, as far as known.
    """

    def __init__(self, device: torch.device, parts: int, on_windows: Callable[[int, int], None]) -> None:
        self._on_windows = on_windows
        self._is_cuda = device.type == "cuda"
        self._parts = parts
        self._done_by_part: dict[int, int] = {}
        self._count_by_part: dict[int, int] = {}
        self._waiting: deque[tuple[torch.cuda.Event, int, int]] = deque()
        self._part = 0

    def start(self, part: int, windows: int | None = None) -> None:
        """Part number ``part`` of the model starts, or starts again; ``windows`` is its number of windows, if known."""
        if part in self._done_by_part:
            self._waiting.clear()
        self._part = part
        self._done_by_part[part] = 0
        if windows is not None:
            self._count_by_part[part] = windows

    def add(self, windows: int) -> None:
        """Count ``windows`` more as queued."""
        if not self._is_cuda:
            self._report(self._part, windows)
            return
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._waiting.append((event, self._part, windows))
        while len(self._waiting) > _BATCHES_AHEAD:
            first, part, count = self._waiting.popleft()
            first.synchronize()
            self._report(part, count)

    def _report(self, part: int, windows: int) -> None:
        self._done_by_part[part] += windows
        done = sum(self._done_by_part.values())
        counts = self._count_by_part.values()
        # assume that later parts are as large as those so far
        expected = round(sum(counts) / len(counts) * self._parts) if counts else done * self._parts
        self._on_windows(done, max(done, expected))


def averaged_slabs(
    image_zyx: torch.Tensor, windows: Windows, network: TensorNetwork, batch: int, queued: Queued
) -> Iterator[tuple[int, torch.Tensor]]:
    """As :func:`inference.nnunet.host.averaging.averaged`, on the device of ``image_zyx`` and ``network``.

    ``batch`` is the most windows that go through the network at a time; each batch is added to ``queued``.

    Raises:
        NotFiniteError: after the last slab, if a channel was infinite or NaN where a window looked.
    """
    finite = _Finite(image_zyx.device)
    image = _padded(image_zyx, windows)
    if windows.padded == windows.patch:  # the weights of a single window cancel out
        values = network.run_tensor(image[None, None])[0].float()
        queued.add(1)
        finite.look_at(values)
        yield from _without_padding(windows, 0, values)
        finite.check()
        return
    weights = uploaded(gaussian_weights(windows.patch), image.device).float()
    for first, (sums,), total in _summed(image, windows, (network,), weights, batch, queued):
        finite.look_at(sums)  # 0 where no window looked
        yield from _without_padding(windows, first, sums.div_(total))  # and there 0 / 0 is NaN
    finite.check()


def averaged_half_slabs(
    image_zyx: torch.Tensor, windows: Windows, networks: Sequence[TensorNetwork], batch: int, queued: Queued
) -> Iterator[tuple[int, torch.Tensor]]:
    """As :func:`inference.nnunet.host.averaging.averaged_half`: sums, weights, quotients and mean in half precision.

    Raises:
        NotFiniteError: after the last slab, if a network or a sum overflowed.
    """
    finite = _Finite(image_zyx.device)
    image = _padded(image_zyx, windows)
    weights = uploaded(gaussian_weights(windows.patch), image.device)
    for first, of_folds, total in _summed(image, windows, networks, weights, batch, queued):
        mean, *others = [sums.div_(total) for sums in of_folds]
        for other in others:
            mean += other
        if others:
            mean /= len(of_folds)
        finite.look_at(mean)
        yield from _without_padding(windows, first, mean)
    finite.check()


class _Finite:
    """Whether all values were finite: noted on the device, and waited for once, at the end of a part."""

    def __init__(self, device: torch.device) -> None:
        self._so_far = torch.ones((), dtype=torch.bool, device=device)

    def look_at(self, values: torch.Tensor) -> None:
        """Infinities and NaN both show in the bounds of ``values``."""
        if values.numel():
            low, high = torch.aminmax(values)
            self._so_far &= low.isfinite() & high.isfinite()

    def check(self) -> None:
        """Raises NotFiniteError unless everything was finite."""
        if not bool(self._so_far):
            raise NotFiniteError


def _summed(
    image: torch.Tensor,
    windows: Windows,
    networks: Sequence[TensorNetwork],
    weights: torch.Tensor,
    batch: int,
    queued: Queued,
) -> Iterator[tuple[int, list[torch.Tensor], torch.Tensor]]:
    """Weighted sums [K, plane, y, x] of each network and the sums of weights, in the precision of ``weights``."""
    shape = (windows.patch[0], *windows.padded[1:])
    of_networks = [weights.new_zeros((network.channels, *shape)) for network in networks]
    total = weights.new_zeros(shape)
    for number, (z, row) in enumerate(windows.starts):
        for some in _batches(row, batch):
            chosen = [windows.at(z, y, x) for y, x in some]
            stacked = torch.stack([image[at] for at in chosen])[:, None]
            for network, sums in zip(networks, of_networks, strict=True):
                for at, values in zip(chosen, network.run_tensor(stacked), strict=True):
                    # half values go into half sums as in nnU-Net, but never into single-precision sums
                    values = values if weights.dtype == torch.float16 else values.float()  # noqa: PLW2901
                    sums[(slice(None), slice(None), *at[1:])] += values * weights
            for at in chosen:
                total[(slice(None), *at[1:])] += weights
            queued.add(len(some))
        done = windows.finished(number)
        yield z, [sums[:, :done] for sums in of_networks], total[:done]
        for sums in of_networks:
            _move_up(sums, done)
        _move_up(total[None], done)


def _padded(image_zyx: torch.Tensor, windows: Windows) -> torch.Tensor:
    padded = image_zyx.new_zeros(windows.padded)
    padded[windows.inside] = image_zyx
    return padded


def _without_padding(windows: Windows, first: int, planes: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    low = max(windows.before[0] - first, 0)
    high = min(windows.before[0] + windows.shape[0] - first, planes.shape[1])
    if low < high:
        yield first + low - windows.before[0], planes[(slice(None), slice(low, high), *windows.inside[1:])]


def _batches(row: Sequence[tuple[int, int]], batch: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Consecutive pieces of at most ``batch``, of nearly equal size, so that the network sees few shapes."""
    pieces = -(-len(row) // batch)
    size = -(-len(row) // max(pieces, 1))
    for first in range(0, len(row), max(size, 1)):
        yield row[first : first + size]


def _move_up(sums: torch.Tensor, count: int) -> None:
    """Drop the first ``count`` planes of every channel, move the rest to the front and set what follows to 0."""
    depth = sums.shape[1]
    if count == 0:  # steps below one voxel: two windows begin at the same plane
        return
    for first in range(0, depth - count, count):  # in pieces that do not overlap their source
        last = min(first + count, depth - count)
        sums[:, first:last] = sums[:, first + count : last + count]
    sums[:, depth - count :] = 0
