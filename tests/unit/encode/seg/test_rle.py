"""RLE Lossless frames: read back by another library, and by our own final check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.pixels.decoders.rle import _rle_decode_frame

from dicom_node.encode.seg.rle import decoded_runs, encoded_frames
from dicom_node.errors import EncodingError

AS_IT_IS = np.arange(256, dtype=np.uint8)


@st.composite
def frames(draw: st.DrawFn) -> np.ndarray:
    """Noise, flat areas and stripes, in rows near the lengths at which runs are split."""
    shape = draw(
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.sampled_from([1, 2, 3, 7, 127, 128, 129, 257, 300]))
    )
    noise = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]), fill=st.just(0)))
    return np.repeat(noise, draw(st.integers(1, 5)), axis=2)


@settings(max_examples=60, deadline=None)
@given(frames())
def test_any_frames_are_restored(frames_zyx: np.ndarray) -> None:
    encoded = list(encoded_frames(frames_zyx, AS_IT_IS))
    assert len(encoded) == len(frames_zyx)
    for frame, expected in zip(encoded, frames_zyx, strict=True):
        assert len(frame) % 2 == 0
        assert bytes(_rle_decode_frame(frame, *expected.shape, 1, 8, "<")) == expected.tobytes()
        values, repeats = decoded_runs(memoryview(frame))
        assert np.array_equal(np.repeat(values, repeats), expected.reshape(-1))


@pytest.mark.parametrize("columns", [5, 128, 300])
def test_no_run_crosses_the_end_of_a_row(columns: int) -> None:
    (frame,) = encoded_frames(np.full((1, 3, columns), 9, dtype=np.uint8), AS_IT_IS)
    _, repeats = decoded_runs(memoryview(frame))
    ends = np.cumsum(repeats)
    assert {columns, 2 * columns, 3 * columns} <= set(ends.tolist())


def test_pixels_are_written_as_the_values_of_a_table() -> None:
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[[7, 200]] = [2, 1]
    (frame,) = encoded_frames(np.array([[[7, 7, 0, 200], [9, 200, 7, 7]]], dtype=np.uint8), numbers)
    values, repeats = decoded_runs(memoryview(frame))
    assert np.repeat(values, repeats).tolist() == [2, 2, 0, 1, 0, 1, 2, 2]


def test_flat_area_takes_two_bytes_per_128_pixels() -> None:
    (frame,) = encoded_frames(np.zeros((1, 512, 512), dtype=np.uint8), AS_IT_IS)
    assert len(frame) == 64 + 512 * 4 * 2


def test_frame_of_several_segments_is_refused() -> None:
    (frame,) = encoded_frames(np.zeros((1, 4, 4), dtype=np.uint8), AS_IT_IS)
    with pytest.raises(EncodingError, match="exactly one segment"):
        decoded_runs(memoryview(b"\x03" + frame[1:]))
