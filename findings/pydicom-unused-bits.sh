#!/usr/bin/env bash
# pydicom 3.0.2 (pyjpegls 1.5.1, pylibjpeg-openjpeg 2.5.0, pylibjpeg 2.1.0): unused bits above Bits Stored.
#
# By PS3.5 8.1.1, a receiver must not assume anything about bits that are allocated but not stored. The same 16-bit
# words, of which 12 bits are stored, are encoded in four transfer syntaxes. The JPEG codestreams have the precision of
# the words, 16 bits, as written by DCMTK 3.6.7's dcmcjpls by default. PS3.5 8.2.1 and 8.2.4 require a Bits Stored that
# is consistent with the codestream, and where it is not, the codestream should control the decompression: the standard
# also supports a reader that uses the precision of the codestream.
#
# Guess (not blind): `pixel_array` gives the same values in all four, because the words are the same.
# Seen: native and RLE use Bits Stored whatever the unused bits contain. JPEG-LS and JPEG 2000 use the precision of the
#        codestream: signed values without sign extension become positive (0 to 4095 for -2048 to 2047), and bits that
#        are set above unsigned values are read as values. All four are the same only if the sign is extended, or if
#        zeros are above unsigned values. "right" in the output means: by Bits Stored.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    pydicom==3.0.2 pyjpegls==1.5.1 pylibjpeg==2.1.0 pylibjpeg-openjpeg==2.5.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import jpeg_ls
import numpy as np
import openjpeg
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
ROWS = COLUMNS = 64


def image(words, syntax, signed):
    described = {"rows": ROWS, "columns": COLUMNS, "samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2"}
    described |= {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0, "number_of_frames": 1}
    data = words.astype("<u2").tobytes()
    if syntax == RLELossless:
        data = encapsulate([RLELosslessEncoder.encode(data, encoding_plugin="pydicom", **described)])
    elif syntax == JPEGLSLossless:
        data = encapsulate([bytes(jpeg_ls.encode_pixel_data(data, **described))])
    elif syntax == JPEG2000Lossless:
        data = encapsulate([bytes(openjpeg.encode_pixel_data(data, codec_format=0, **described))])
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, signed
    made.PixelData = data
    made["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
    return made


for signed in (0, 1):
    values = np.arange(4096).reshape(ROWS, COLUMNS) - 2048 * signed
    contents = {"zeros": values & 0x0FFF, "ones": (values & 0x0FFF) | 0xF000, "sign": values & 0xFFFF}
    for unused, words in contents.items():
        for syntax in SYNTAXES:
            read = image(words, syntax, signed).pixel_array
            is_right = np.array_equal(read, values)
            verdict = "right" if is_right else f"{read.min()} to {read.max()} for {values.min()} to {values.max()}"
            print(f"pydicom {pydicom.__version__}: signed {signed}, unused bits {unused}: {syntax.name}: {verdict}")
            by_precision = syntax in (JPEGLSLossless, JPEG2000Lossless)
            sound = not by_precision or unused == "sign" or (unused == "zeros" and not signed)
            assert is_right is sound, "the behaviour has changed"
PYTHON
