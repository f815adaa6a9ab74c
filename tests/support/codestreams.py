"""CT images in compressed transfer syntaxes with exactly the bits that a test needs, valid or not.

pydicom's ``compress`` would hide what is tested here: it writes codestreams of Bits Stored bits and checks no value.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import jpeg_ls
import numpy as np
import openjpeg
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
"""Besides Explicit VR Little Endian; JPEG Lossless is made by DCMTK, see :func:`dcmtk_compressed`."""


def compress(ds: Dataset, syntax: UID, *, precision: int = 16, signed: bool = False) -> None:
    """Encode the 16-bit pixels of ``ds``, which is in Explicit VR Little Endian, unchanged.

    ``precision`` and ``signed`` are stated in the JPEG-LS or JPEG 2000 codestream, whatever the header says.
    """
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
    if not syntax.is_compressed:
        list(ds.iterall())  # converts every element, so that none is written as the bytes it was read from
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = pixels.astype(">u2").tobytes()
    else:
        ds.PixelData = encapsulate([_frame(pixels, syntax, precision, signed)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax


def _frame(pixels: np.ndarray, syntax: UID, precision: int, signed: bool) -> bytes:
    described = {
        "rows": pixels.shape[0],
        "columns": pixels.shape[1],
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 16,
        "bits_stored": precision,
        "pixel_representation": int(signed),
        "number_of_frames": 1,
    }
    if syntax == RLELossless:
        return RLELosslessEncoder.encode(pixels.tobytes(), encoding_plugin="pydicom", **described)
    low = (pixels & ((1 << precision) - 1)).astype(np.uint8 if precision <= 8 else np.uint16)
    described["bits_allocated"] = 8 * low.itemsize
    if syntax == JPEGLSLossless:
        return bytes(jpeg_ls.encode_pixel_data(low.tobytes(), **described))
    values = _as_signed(low, precision) if signed else low
    return bytes(openjpeg.encode_pixel_data(values.tobytes(), codec_format=0, **described))


def _as_signed(low: np.ndarray, precision: int) -> np.ndarray:
    unused = 8 * low.itemsize - precision
    return (low << unused).view(f"i{low.itemsize}") >> unused


def dcmtk_compressed(command: str, path: Path, *options: str) -> None:
    """Compress the file in place with one of DCMTK's tools."""
    target = path.with_suffix(".compressed")
    subprocess.run([command, *options, "+un", str(path), str(target)], check=True, capture_output=True)
    target.replace(path)
