"""Mutated files of a phantom through the child that reads: what becomes of them, and how long the longest takes.

    python -m tests.support.mutated_headers --count 10000 --seed 1 [--series FOLDER ...]

The series are phantoms in each transfer syntax and, from each FOLDER, its first four DICOM files. One file of a series
is mutated at a time: bytes, tags, VRs and lengths overwritten, elements repeated or taken out, the file cut; in
compressed images also the codestream. Each series ends with a volume or with a reason. The command prints how many of
each kind, and fails if the child froze, or met a fault of ours.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread, dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.errors import DicomNodeError, SeriesRejected
from dicom_node.reading.limits import Budget
from dicom_node.reading.reader import ImageReader
from dicom_node.standard.files import PassedOver, read_file
from dicom_node.types import Series
from inference.phantom import phantom
from inference.types import Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
_NASTY_LENGTHS = (0, 1, 7, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_VRS = (b"SQ", b"UN", b"OB", b"OW", b"DS", b"US", b"PN", b"UI", b"UT", b"??", b"\0\0")
_NASTY_TAGS = (0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010, 0x00080005, 0x52009230, 0x00280010, 0x00090010)


@dataclass(frozen=True)
class Outcome:
    """What came of one series: ``error`` is the name of a class, empty for a volume."""

    error: str
    reason: str
    seconds: float
    is_sound: bool


def phantom_series(folder: Path) -> list[list[Path]]:
    """Four planes of a phantom in each transfer syntax; the files of each series."""
    whole = phantom(1, (8.0, 8.0, 40.0)).volume
    middle = len(whole.voxels_zyx) // 2
    geometry = Geometry((4, *whole.geometry.shape_zyx[1:]), whole.geometry.affine_lps)
    few = Volume(whole.voxels_zyx[middle : middle + 4], geometry)
    series = []
    for syntax in SYNTAXES:
        own = folder / syntax
        write_ct_series(few, own, SyntheticPatient(1, 50, "O"))
        series.append(sorted(own.iterdir()))
        for path in series[-1]:
            dataset = dcmread(path)
            if syntax.is_compressed and not syntax.is_deflated:
                dataset.compress(syntax)
            elif syntax == ExplicitVRBigEndian:
                dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            dcmwrite(
                path,
                dataset,
                implicit_vr=syntax.is_implicit_VR,
                little_endian=syntax.is_little_endian,
                force_encoding=True,
            )
    return series


def real_series(folders: list[Path], scratch: Path) -> list[list[Path]]:
    """Copies of the first four DICOM files of each folder."""
    series = []
    for number, folder in enumerate(folders):
        own = scratch / str(number)
        own.mkdir()
        found = [
            path for path in sorted(folder.iterdir()) if path.is_file() and not isinstance(read_file(path), PassedOver)
        ]
        series.append([Path(shutil.copy(path, own)) for path in found[:4]])
    return [paths for paths in series if paths]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """``content`` with one to four mutations between its prefix and the first kilobyte of its pixel data."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        end = min(len(changed), max(400, changed.rfind(b"\xe0\x7f\x10\x00", 0, 8192)) + 1024)
        at = draw.randrange(132, max(133, end - 12))
        match draw.randrange(8):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                changed[at : at + 4] = struct.pack("<I", draw.choice(_NASTY_LENGTHS))
            case 2:
                changed[at : at + 2] = draw.choice(_VRS)
            case 3:
                tag = draw.choice(_NASTY_TAGS)
                changed[at : at + 4] = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
            case 4:
                del changed[at : at + draw.randint(1, 64)]
            case 5:
                changed[at:at] = changed[at : at + draw.randint(1, 256)] * draw.randint(1, 50)
            case 6:
                changed[at:at] = draw.randbytes(draw.randint(1, 64))
            case _:
                del changed[draw.randrange(at, len(changed)) :]
    return bytes(changed)


def outcomes(folder: Path, count: int, seed: int, real: list[Path] | None = None) -> Iterator[Outcome]:
    """``count`` mutations, each in its series, and at the end of each kind the sound series again."""
    draw = random.Random(seed)
    all_series = phantom_series(folder) + real_series(real or [], folder)
    with ImageReader(Budget(headers_s=20, decoding_s=20)) as reader:
        for number in range(count):
            paths = all_series[number % len(all_series)]
            victim = draw.choice(paths)
            sound = victim.read_bytes()
            victim.write_bytes(mutated(sound, draw))
            yield _outcome(reader, paths, is_sound=False)
            victim.write_bytes(sound)
            if count - len(all_series) <= number and number % len(all_series) < len(SYNTAXES):
                yield _outcome(reader, paths, is_sound=True)


def _outcome(reader: ImageReader, paths: list[Path], *, is_sound: bool) -> Outcome:
    start = time.monotonic()
    try:
        instances = reader.read(paths, keep=True)
        reader.reconstruct(Series("1.2.3", "1.2.3.4", instances))
    except DicomNodeError as error:
        return Outcome(type(error).__name__, str(error), time.monotonic() - start, is_sound)
    return Outcome("", "", time.monotonic() - start, is_sound)


def main() -> int:
    """Print the table; 1 where something was neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--series", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    found: Counter[tuple[str, str]] = Counter()
    unsound, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for outcome in outcomes(Path(folder), asked.count, asked.seed, asked.series):
            kind = re.sub(r"[\d.]+", "N", outcome.reason)[:100]
            found[outcome.error or "volume", kind] += 1
            slowest = max(slowest, outcome.seconds)
            refused = outcome.error in {each.__name__ for each in [SeriesRejected, *SeriesRejected.__subclasses__()]}
            if not (refused or not outcome.error) or (
                outcome.is_sound and outcome.error not in ("", "PixelDataInvalid")
            ):
                unsound.append(outcome)
    lines = [f"{times:6d}  {error}  {kind}" for (error, kind), times in found.most_common()]
    lines += [f"slowest: {slowest:.2f} s; neither read nor refused: {len(unsound)}", *map(str, unsound[:20])]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if unsound else 0


if __name__ == "__main__":
    sys.exit(main())
