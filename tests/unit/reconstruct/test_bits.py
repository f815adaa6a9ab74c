"""A pixel's value is in its low Bits Stored bits, whatever a sender leaves in the other bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from dicom_node.errors import PixelDataInvalid
from dicom_node.reconstruct import reconstruct
from dicom_node.types import SourceInstance
from tests.support.chest import SHAPE as CHEST
from tests.support.chest import chest_hu
from tests.support.codestreams import SYNTAXES, compress, dcmtk_compressed
from tests.support.ct_series import Stack, write

SHAPE = (3, 33, 35)  # OpenJPEG writes nothing smaller
WITH_PRECISION = (JPEGLSLossless, JPEG2000Lossless)
LOWEST, HIGHEST = -1024, 3071


def as_bits(values, bits, unused):
    """16-bit pixels with ``values`` in their low ``bits`` and ``unused`` in the others."""
    low = np.asarray(values).astype(np.int64) & ((1 << bits) - 1)
    return (low | (np.asarray(unused, np.int64) << bits) & 0xFFFF).astype(np.uint16)


def series_of(folder, pixels, bits, *, signed, intercept, change=lambda _: None):
    """One file per plane with exactly ``pixels``, then ``change`` applied to each data set."""
    series = write(folder, Stack(pixels.view(np.int16) if signed else pixels, bits_stored=bits))
    instances = []
    for instance in series.instances:
        ds = dcmread(instance.path)
        ds.RescaleIntercept = intercept
        change(ds)
        dcmwrite(instance.path, ds, enforce_file_format=True)
        instances.append(SourceInstance(instance.path, dcmread(instance.path, stop_before_pixels=True)))
    return replace(series, instances=tuple(instances))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), bits=st.integers(8, 16), signed=st.booleans(), seed=st.integers(0, 2**32))
def test_unused_bits_are_ignored_for_every_syntax_sign_and_width(data, bits, signed, seed):
    """Intercept 0 for signed pixels, -1024 for unsigned ones, and HU that such pixels can represent."""
    intercept = 0 if signed else -1024
    lowest = max(LOWEST, -(2 ** (bits - 1))) if signed else LOWEST
    highest = min(HIGHEST, 2 ** (bits - 1) - 1 if signed else 2**bits - 1 + intercept)
    hu = np.random.default_rng(seed).integers(lowest, highest + 1, SHAPE)
    hu[0, 0, :2] = lowest, highest
    unused = np.random.default_rng(seed + 1).integers(0, 2 ** (16 - bits), SHAPE)
    unused *= data.draw(st.integers(0, 1))
    syntax = data.draw(st.sampled_from(SYNTAXES))
    precision = data.draw(st.integers(bits, 16)) if syntax in WITH_PRECISION else 16
    pixels = as_bits(hu - intercept, bits, unused)
    with TemporaryDirectory() as folder:
        series = series_of(
            Path(folder),
            pixels,
            bits,
            signed=signed,
            intercept=intercept,
            change=lambda ds: compress(
                ds, syntax, precision=precision, signed=signed and syntax == JPEG2000Lossless and precision == bits
            ),
        )
        result = reconstruct(series)
    np.testing.assert_array_equal(result.source.voxels_zyx, hu)
    assert result.notes == ()


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(
    ("command", "options"),
    [("dcmcjpeg", ("+e1",)), ("dcmcjpeg", ("+el",)), ("dcmcjpls", ()), ("dcmcrle", ())],
)
def test_unused_bits_in_frames_compressed_by_dcmtk_are_ignored(tmp_path, command, options, bits, signed):
    """By default dcmcjpls writes all 16 bits unchanged, including overlay bits and without sign extension."""
    hu = np.clip(chest_hu(), -1024, 1023)
    intercept = 0 if signed else -1024
    unused = np.random.default_rng(3).integers(0, 2 ** (16 - bits), CHEST)
    pixels = as_bits(hu.astype(int) - intercept, bits, unused)
    series = series_of(tmp_path, pixels, bits, signed=signed, intercept=intercept)
    for instance in series.instances:
        dcmtk_compressed(command, instance.path, *options)
    series = replace(
        series,
        instances=tuple(SourceInstance(i.path, dcmread(i.path, stop_before_pixels=True)) for i in series.instances),
    )
    assert series.instances[0].header.file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(reconstruct(series).source.voxels_zyx, hu)


@pytest.mark.parametrize("bits", [12, 13, 16])
def test_signed_frames_under_an_unsigned_header_are_read_as_signed(tmp_path, bits):
    hu = chest_hu()
    series = series_of(
        tmp_path,
        as_bits(hu, bits, 0),
        bits,
        signed=False,
        intercept=0,
        change=lambda ds: compress(ds, JPEG2000Lossless, precision=bits, signed=True),
    )
    result = reconstruct(series)
    np.testing.assert_array_equal(result.source.voxels_zyx, hu)
    (note,) = result.notes
    assert (
        "Pixel Representation says that pixels are unsigned, the compressed frames say signed; read as signed" in note
    )
    assert "100.0% of the values lie from -1100 to 3071 HU" in note


@pytest.mark.parametrize("bits", [12, 16])
def test_unsigned_frames_under_a_signed_header_are_read_as_the_header_says(tmp_path, bits):
    hu = chest_hu()
    series = series_of(
        tmp_path,
        as_bits(hu, bits, 0),
        bits,
        signed=True,
        intercept=0,
        change=lambda ds: compress(ds, JPEG2000Lossless, precision=bits),
    )
    result = reconstruct(series)
    np.testing.assert_array_equal(result.source.voxels_zyx, hu)
    assert "read as signed" in result.notes[0]


@pytest.mark.parametrize("syntax", WITH_PRECISION, ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [13, 14, 16])
def test_codestream_with_fewer_bits_than_stored_has_its_sign_in_the_highest(tmp_path, syntax, bits):
    """As written by encoders that inspect the values: HU in 12 bits under a header that states more."""
    hu = chest_hu()

    def change(ds):
        compress(ds, syntax, precision=12, signed=syntax == JPEG2000Lossless)

    series = series_of(tmp_path, as_bits(hu, bits, 0), bits, signed=True, intercept=0, change=change)
    result = reconstruct(series)
    np.testing.assert_array_equal(result.source.voxels_zyx, hu)
    assert result.notes == ()


def test_single_frame_with_the_other_sign_is_detected(tmp_path):
    """All planes have an unsigned header and unsigned pixels, except the fifth, which contains signed HU."""
    hu = np.maximum(chest_hu(), -1024)
    pixels = (hu + 1024).astype(np.uint16)
    pixels[4] = hu[4].view(np.uint16)
    series = series_of(tmp_path, pixels, 16, signed=False, intercept=-1024)
    ds = dcmread(series.instances[4].path)
    ds.RescaleIntercept = 0
    compress(ds, JPEG2000Lossless, precision=16, signed=True)
    dcmwrite(series.instances[4].path, ds, enforce_file_format=True)
    instances = list(series.instances)
    instances[4] = SourceInstance(instances[4].path, dcmread(instances[4].path, stop_before_pixels=True))
    np.testing.assert_array_equal(reconstruct(replace(series, instances=tuple(instances))).source.voxels_zyx, hu)


def test_series_without_a_plausible_sign_is_refused_with_the_figures(tmp_path):
    """40,000 to 60,000 in 16 bits with intercept 0: beyond every scale, or far below air."""
    pixels = np.random.default_rng(0).integers(40_000, 60_000, CHEST).astype(np.uint16)
    series = series_of(
        tmp_path,
        pixels,
        16,
        signed=False,
        intercept=0,
        change=lambda ds: compress(ds, JPEG2000Lossless, precision=16, signed=True),
    )
    with pytest.raises(PixelDataInvalid, match=r"not Hounsfield units: values from 40\d+ to 59\d+ HU"):
        reconstruct(series)


def test_codestream_with_more_bits_than_allocated_is_refused(tmp_path):
    def change(ds):
        compress(ds, JPEGLSLossless, precision=16)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7

    series = series_of(tmp_path, np.zeros(SHAPE, np.uint16), 16, signed=False, intercept=0, change=change)
    with pytest.raises(PixelDataInvalid, match="the compressed frame has 16 bits per pixel, Bits Allocated is 8"):
        reconstruct(series)
