"""Stored values become exact HU; truncated, contradictory or hostile data never become a volume."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.errors import PixelDataInvalid, StoreUnavailable
from dicom_node.reconstruct import reconstruct
from dicom_node.types import SourceInstance
from tests.support.ct_series import Stack, bent, noise, write

SHAPE = (3, 40, 34)


@pytest.fixture
def series(tmp_path):
    return write(tmp_path, Stack(noise(SHAPE)))


def assign(**values):
    def change(header):
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


def rewritten(series, change):
    """Every file of the series after applying ``change`` to its whole data set."""
    instances = []
    for instance in series.instances:
        ds = dcmread(instance.path)
        change(ds)
        dcmwrite(instance.path, ds, enforce_file_format=True)
        instances.append(SourceInstance(instance.path, dcmread(instance.path, stop_before_pixels=True)))
    return replace(series, instances=tuple(instances))


def to_syntax(syntax):
    def change(ds):
        if syntax.is_compressed:
            ds.compress(syntax, generate_instance_uid=False)
            return
        list(ds.iterall())  # converts every element, so that none is written as the bytes it was read from
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    return change


@pytest.mark.parametrize("low", [0, -2048], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_lossless_syntaxes_give_the_same_values(tmp_path, syntax, low):
    stored = noise(SHAPE, low=low, high=low + 4096)
    series = rewritten(write(tmp_path, Stack(stored)), to_syntax(syntax))
    np.testing.assert_array_equal(reconstruct(series).source.voxels_zyx, stored.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_native_syntaxes_give_the_same_values(tmp_path, syntax):
    stored = noise(SHAPE)
    series = rewritten(write(tmp_path, Stack(stored)), to_syntax(syntax))
    np.testing.assert_array_equal(reconstruct(series).source.voxels_zyx, stored.astype(int) - 1024)


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, DeflatedExplicitVRLittleEndian, ""], ids=["lossy", "deflated", "none"]
)
def test_other_syntaxes_are_refused(series, syntax):
    def change(header):
        header.file_meta.TransferSyntaxUID = syntax

    with pytest.raises(PixelDataInvalid, match="is not an accepted lossless one"):
        reconstruct(bent(series, change, 1))


def test_unused_high_bits_are_ignored_and_the_sign_is_extended(tmp_path):
    values = np.resize(np.array([-2048, -1, 0, 1, 2047, -1000], dtype=np.int16), SHAPE[1:])
    garbage = np.where(np.arange(values.size).reshape(values.shape) % 2, 0x5000, 0xA000)
    stored = ((values & 0x0FFF) | garbage).astype(np.uint16).view(np.int16)
    series = write(tmp_path, Stack(np.stack([stored] * 3), bits_stored=12))
    np.testing.assert_array_equal(reconstruct(series).source.voxels_zyx[1], values - 1024)


def test_integer_hu_are_int16_for_any_rescale(series):
    result = reconstruct(bent(series, assign(RescaleSlope="2", RescaleIntercept="-8192.0")))
    assert result.source.voxels_zyx.dtype == np.int16
    np.testing.assert_array_equal(result.source.voxels_zyx, noise(SHAPE).astype(int) * 2 - 8192)


def test_every_plane_has_its_own_rescale(tmp_path):
    shown = noise(SHAPE).astype(np.int32)  # HU + 1024
    stored = np.stack([shown[0], np.rint(shown[1] / 1.5), shown[2] - 1024]).astype(np.int16)
    series = write(tmp_path, Stack(stored))
    result = reconstruct(bent(bent(series, assign(RescaleSlope="1.5"), 1), assign(RescaleIntercept="0.01"), 2))
    values = stored.astype(np.float64)
    expected = np.stack([values[0] - 1024, values[1] * 1.5 - 1024, values[2] + 0.01])
    assert result.source.voxels_zyx.dtype == np.float32
    np.testing.assert_array_equal(result.source.voxels_zyx, expected.astype(np.float32))


def test_hu_beyond_int16_are_kept_if_a_rule_requests_it(tmp_path):
    series = write(tmp_path, Stack(noise(SHAPE, low=60000, high=65536)))
    with pytest.raises(PixelDataInvalid, match=r"values from 5\d+ to 64511 HU, no CT goes beyond -32,768 to 32,767"):
        reconstruct(series)
    result = reconstruct(replace(series, unchecked_hu=True))
    assert result.source.voxels_zyx.dtype == np.float32
    assert "no CT goes beyond" in result.notes[0]
    np.testing.assert_array_equal(result.source.voxels_zyx, noise(SHAPE, low=60000, high=65536).astype(int) - 1024)


def test_padding_keeps_its_rescaled_value(tmp_path):
    stored = np.full(SHAPE, -2000, dtype=np.int16)
    series = bent(write(tmp_path, Stack(stored)), lambda header: header.add_new("PixelPaddingValue", "SS", -2000))
    assert (reconstruct(series).source.voxels_zyx == -3024).all()


REFUSED = {
    "slope zero": (assign(RescaleSlope="0"), "gives no sound HU"),
    "slope negative": (assign(RescaleSlope="-1"), "gives no sound HU"),
    "slope huge": (assign(RescaleSlope="1e308"), "gives no sound HU"),
    "slope not a number": (assign(RescaleSlope="nan"), "Rescale Slope is not finite"),
    "intercept huge": (assign(RescaleIntercept="-1e20"), "gives no sound HU"),
    "intercept infinite": (assign(RescaleIntercept="inf"), "Rescale Intercept is not finite"),
    "no bits": (assign(BitsStored=0, HighBit=-1), "Bits Stored 0 of Bits Allocated 16"),
    "too many bits": (assign(BitsStored=17), "Bits Stored 17 of Bits Allocated 16"),
    "32 bits allocated": (assign(BitsAllocated=32), "Bits Stored 16 of Bits Allocated 32"),
    "wrong high bit": (assign(HighBit=11), "High Bit is not Bits Stored - 1 = 15"),
    "third pixel representation": (assign(PixelRepresentation=2), "Pixel Representation is 2"),
    "half a row": (assign(Rows=0), "Rows is 0, expected at least 1"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_implausible_values_are_refused(series, change, said):
    with pytest.raises(PixelDataInvalid) as refusal:
        reconstruct(bent(series, change))
    assert said in str(refusal.value)


@pytest.mark.parametrize(("rows", "columns"), [(40, 35), (20, 34), (20000, 20000)])
def test_false_dimensions_are_refused_before_memory_is_allocated(series, rows, columns):
    tracemalloc.start()
    try:
        with pytest.raises(PixelDataInvalid, match="bytes, Pixel Data states 2720"):
            reconstruct(bent(series, assign(Rows=rows, Columns=columns)))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def lengthened(tail):
    def change(ds):
        ds.PixelData += tail

    return change


@pytest.mark.parametrize("length", [2, 512, 2720])
def test_zeros_after_the_last_pixel_are_accepted_as_padding(series, length):
    result = reconstruct(rewritten(series, lengthened(bytes(length))))
    np.testing.assert_array_equal(result.source.voxels_zyx, noise(SHAPE).astype(int) - 1024)


@pytest.mark.parametrize("tail", [b"\0\1", bytes(500) + b"\7\0", bytes(2722)], ids=["values", "late", "a frame more"])
def test_more_pixels_than_the_header_states_are_refused(series, tail):
    with pytest.raises(PixelDataInvalid, match=f"need 2720 bytes, Pixel Data states {2720 + len(tail)}"):
        reconstruct(rewritten(series, lengthened(tail)))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless], ids=["native", "RLE", "JPEG 2000"])
def test_file_truncated_anywhere_gives_no_volume(series, syntax):
    whole = rewritten(series, to_syntax(syntax)) if syntax else series
    path = whole.instances[1].path
    content = path.read_bytes()
    for length in [*range(200, len(content), len(content) // 16), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(PixelDataInvalid):
            reconstruct(whole)


def test_fragment_with_a_false_length_is_refused(series):
    compressed = rewritten(series, to_syntax(JPEG2000Lossless))
    path = compressed.instances[0].path
    content = bytearray(path.read_bytes())
    second_item = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 16)
    struct.pack_into("<L", content, second_item + 4, 0xFFFFFFF0)
    path.write_bytes(content)
    with pytest.raises(PixelDataInvalid, match="truncated in a fragment"):
        reconstruct(compressed)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_codestream_of_another_size_never_reaches_the_decoder(series, syntax):
    compressed = rewritten(series, to_syntax(syntax))

    def enlarge(ds):
        frame = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
        if syntax == JPEG2000Lossless:
            struct.pack_into(">2L", frame, frame.index(b"\xff\x51") + 6, 60000, 60000)
        else:
            struct.pack_into(">2H", frame, frame.index(b"\xff\xf7") + 5, 60000, 60000)
        ds.PixelData = encapsulate([bytes(frame)])

    with pytest.raises(PixelDataInvalid, match=r"states \(rows, columns, components\) \(60000, 60000, 1\)"):
        reconstruct(rewritten(compressed, enlarge))


def test_run_length_bomb_is_refused(series):
    def bomb(ds):
        header = struct.pack("<16L", 2, 64, 64 + 500_000, *[0] * 13)
        ds.PixelData = encapsulate([header + b"\x81\x00" * 500_000])

    compressed = rewritten(series, to_syntax(RLELossless))
    with pytest.raises(PixelDataInvalid, match="1000064 bytes of RLE for 2720 of pixels"):
        reconstruct(rewritten(compressed, bomb))


def test_random_bytes_for_a_frame_are_refused(series):
    def scramble(ds):
        frame = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
        middle = len(frame) // 3
        frame[middle : 2 * middle] = np.random.default_rng(1).bytes(middle)
        frame[:2] = b"\x00\x00"
        ds.PixelData = encapsulate([bytes(frame)])

    compressed = rewritten(series, to_syntax(JPEG2000Lossless))
    with pytest.raises(PixelDataInvalid):
        reconstruct(rewritten(compressed, scramble))


def test_missing_file_is_an_error_of_the_store(series):
    series.instances[1].path.unlink()
    with pytest.raises(StoreUnavailable, match="No such file"):
        reconstruct(series)


def test_missing_pixel_data_is_refused(series):
    with pytest.raises(PixelDataInvalid, match="no Pixel Data"):
        reconstruct(rewritten(series, lambda ds: ds.pop("PixelData")))
