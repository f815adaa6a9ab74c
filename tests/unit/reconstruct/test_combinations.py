"""Several kinds of odd pixels, scales and places in one series: each right by itself, they must be right together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_node.reconstruct import reconstruct
from dicom_node.types import SourceInstance
from tests.support.chest import SHAPE, chest_hu, outside_circle
from tests.support.codestreams import compress
from tests.support.ct_series import Stack, enhanced, tilted_axes, write

if TYPE_CHECKING:
    from pathlib import Path

HU = chest_hu().clip(-1024, 1000).astype(int)
CIRCLE = outside_circle()
PADDED = np.where(CIRCLE, -2000, HU)
ABOVE = np.where(CIRCLE, 4095 - 1024, HU)
TILTED = tilted_axes(20)
SYNTAXES = (ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)


def signed_12(hu):
    """Without sign extension."""
    return (hu & 0x0FFF).astype(np.uint16)


def unsigned(hu):
    return (hu + 1024).astype(np.uint16)


def with_overlay(pixels):
    pixels = pixels.copy()
    pixels[:, 5:20, 5:20] |= 0x1000
    pixels[:, 40:45] |= 0x8000
    return pixels


def written(folder: Path, pixels, change, **stack):
    """The series of ``pixels``, each image changed by ``change(image, k)``."""
    folder.mkdir()
    series = write(folder, Stack(pixels, **stack))
    instances = []
    for k, instance in enumerate(series.instances):
        image = dcmread(instance.path)
        change(image, k)
        dcmwrite(instance.path, _of_own_byte_order(image), enforce_file_format=True)
        instances.append(SourceInstance(instance.path, dcmread(instance.path, stop_before_pixels=True)))
    return type(series)(series.series_instance_uid, series.study_instance_uid, tuple(instances))


def _of_own_byte_order(image):
    """pydicom refuses to write a data set in another byte order than it was read in."""
    if image.file_meta.TransferSyntaxUID != ExplicitVRBigEndian:
        return image
    new = Dataset()
    new.file_meta = image.file_meta
    for element in image:
        new.add_new(element.tag, element.VR, element.value)
    return new


def in_syntax(syntax, *, signed=False, padding=None, **codestream):
    def change(image, k):
        if signed:
            image.PixelRepresentation, image.RescaleIntercept = 1, 0
        if padding is not None:
            image.add_new("PixelPaddingValue", *padding)
        compress(image, syntax[k % len(syntax)] if isinstance(syntax, tuple) else syntax, **codestream)

    return change


def rounded(image, _):
    image.ImagePositionPatient = [f"{value:.1f}" for value in image.ImagePositionPatient]


def of_varying_bits(image, k):
    if k % 2:
        image.BitsStored, image.HighBit = 12, 11
        image.PixelData = (unsigned(HU[k]) | 0xF000).tobytes()


def of_varying_sign(image, k):
    if k % 2:
        image.PixelRepresentation, image.RescaleIntercept = 1, 0
        image.PixelData = HU[k].astype(np.int16).tobytes()


def of_varying_digits(image, k):
    image.PixelSpacing = [["0.75", "0.5"], ["0.750001", "0.5000001"], ["0.7500000", "0.50"]][k % 3]
    image.SpacingBetweenSlices = "-2.5"


TOGETHER = {
    "overlay, JPEG-LS, padding above": (
        with_overlay(unsigned(ABOVE)),
        in_syntax(JPEGLSLossless, padding=("US", 4095)),
        {"bits_stored": 12},
        ABOVE,
    ),
    "unextended sign, JPEG-LS, tilt": (
        signed_12(HU),
        in_syntax(JPEGLSLossless, signed=True),
        {"bits_stored": 12, "orientation": TILTED},
        HU,
    ),
    "unextended sign, JPEG 2000, padding": (
        signed_12(PADDED),
        in_syntax(JPEG2000Lossless, signed=True, padding=("SS", -2000)),
        {"bits_stored": 12},
        PADDED,
    ),
    "codestream of 12 bits, padding as 12 unsigned bits": (
        signed_12(PADDED),
        in_syntax(JPEG2000Lossless, signed=True, padding=("US", -2000 & 0x0FFF), precision=12),
        {"bits_stored": 12},
        PADDED,
    ),
    "overlay, RLE, padding, tilt": (
        with_overlay(unsigned(ABOVE)),
        in_syntax(RLELossless, padding=("US", 4095)),
        {"bits_stored": 12, "orientation": TILTED},
        ABOVE,
    ),
    "overlay, unextended sign, big endian": (
        signed_12(HU) | 0x8000,
        in_syntax(ExplicitVRBigEndian, signed=True),
        {"bits_stored": 12},
        HU,
    ),
    "padding of the other VR, big endian": (
        PADDED.astype(np.int16),
        in_syntax(ExplicitVRBigEndian, signed=True, padding=("US", -2000 & 0xFFFF)),
        {},
        PADDED,
    ),
    "every syntax, unextended sign": (
        signed_12(HU),
        in_syntax(SYNTAXES, signed=True),
        {"bits_stored": 12},
        HU,
    ),
    "rounded positions, tilt": (
        unsigned(HU),
        rounded,
        {"orientation": tilted_axes(17.3), "step_mm": (0.0, 0.03, 0.625)},
        HU,
    ),
    "Bits Stored that vary": (unsigned(HU), of_varying_bits, {}, HU),
    "signs that vary": (unsigned(HU), of_varying_sign, {}, HU),
    "digits that vary, from head to feet": (unsigned(HU), of_varying_digits, {"step_mm": (0.0, 0.0, -2.5)}, HU[::-1]),
}


@pytest.mark.parametrize(("pixels", "change", "stack", "hu"), TOGETHER.values(), ids=TOGETHER.keys())
def test_kinds_that_are_right_alone_are_right_together(tmp_path, pixels, change, stack, hu):
    source = reconstruct(written(tmp_path / "ct", pixels, change, **stack)).source
    np.testing.assert_array_equal(source.voxels_zyx, hu)
    if hu is PADDED or hu is ABOVE:
        found = source.padding.found_in(source.voxels_zyx)
        np.testing.assert_array_equal(found, np.broadcast_to(CIRCLE, SHAPE))
    else:
        assert source.padding is None


def test_frames_out_of_order_with_a_rescale_of_their_own(tmp_path):
    pixels = unsigned(HU)
    pixels[::2] += 200

    def change(image, k):
        image.RescaleIntercept = -1024 if k % 2 else -1224

    classic = written(tmp_path / "ct", pixels, change)
    order = [5, 1, 0, 2, 11, 3, 10, 4, 6, 9, 7, 8]
    source = reconstruct(enhanced(classic, tmp_path, [order])).source
    np.testing.assert_array_equal(source.voxels_zyx, HU)
    parts = reconstruct(enhanced(classic, tmp_path, [order[:5], order[5:]])).source
    np.testing.assert_array_equal(parts.voxels_zyx, HU)
