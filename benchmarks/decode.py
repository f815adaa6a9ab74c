"""Checks whether this checkout decodes as fast as an earlier one, and the cost of decoding in the node's child process.

``python benchmarks/decode.py OLD NEW [--child] [--syntax ...] [--slices 300] [--pairs 5]``. OLD and NEW are checkouts
with their own ``.venv``; they may be the same. Both read the headers of a series of 512 x 512 slices and reconstruct
its volume, alternately, each time in a new process, and are compared pair by pair: CPU seconds and wall seconds of the
second series that the process reads. OLD decodes in that process; so does NEW unless ``--child`` is given: then it
decodes like the node, in a child with limits, whose CPU time is included. Series in JPEG Lossless are made by DCMTK's
dcmcjpeg; HTJ2K is omitted because there is no encoder. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg": JPEGLossless,
    "jpeg-sv1": JPEGLosslessSV1,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
DCMCJPEG = {JPEGLossless: "+el", JPEGLosslessSV1: "+e1"}
ROWS = 512
DISTINCT_SLICES = 10
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def slice_hu(seed: int) -> np.ndarray:
    """A round body with noise in noisy air."""
    y, x = (np.indices((ROWS, ROWS)) - ROWS / 2) / ROWS
    hu = np.where(x**2 / 0.16 + y**2 / 0.09 < 1, 40.0, -1000.0) + 200 * (x**2 + (y - 0.2) ** 2 < 0.002)
    noisy = hu + np.random.default_rng(seed).normal(0, 15, hu.shape)
    return noisy.clip(-1024, 3071).astype("<i2")


def write_series(folder: Path, slices: int, syntax: str) -> None:
    """Write a CT series; each of a few different slices is compressed only once."""
    from receive import write_series as write_native  # noqa: PLC0415 - beside this file; the measured process lacks it

    write_native(folder, slices)
    paths = sorted(folder.iterdir())
    for first, path in enumerate(paths[:DISTINCT_SLICES]):
        dataset = dcmread(path)
        hu = slice_hu(first)
        dataset.PixelData = hu.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(folder)])
        if syntax in DCMCJPEG:
            dataset.save_as(path)
            subprocess.run(["dcmcjpeg", DCMCJPEG[syntax], "+un", str(path), str(path)], check=True)
            dataset = dcmread(path)
        elif syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
            dataset.compress(syntax, hu, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        for number in range(first, slices, DISTINCT_SLICES):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.InstanceNumber = number + 1
            dataset.ImagePositionPatient = [-200, -200, float(number)]
            is_little = syntax != ExplicitVRBigEndian
            paths[number].unlink()
            implicit = syntax == ImplicitVRLittleEndian
            dcmwrite(paths[number], dataset, implicit_vr=implicit, little_endian=is_little, force_encoding=True)


def cpu_s() -> float:
    """CPU seconds of this process and its children, each of which runs until the end."""
    total = sum(os.times()[:2])
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended a moment ago
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return total


def measure(folder: Path, *, child: bool) -> None:
    """Print the seconds of the second of two rounds; runs with the packages of the measured tree."""
    from dicom_node.reconstruct import reconstruct  # noqa: PLC0415
    from dicom_node.standard.files import read_headers  # noqa: PLC0415
    from dicom_node.types import Series  # noqa: PLC0415

    paths = sorted(folder.iterdir())
    if child:
        from dicom_node.reading.reader import ImageReader  # noqa: PLC0415 - an older tree has none

        reader = ImageReader()
    for _ in range(2):
        cpu, wall = cpu_s(), time.monotonic()
        instances = reader.read(paths, keep=True) if child else read_headers(paths)
        series = Series("2.25.1", "2.25.2", instances)
        made = reader.reconstruct(series) if child else reconstruct(series)
        seconds = {"cpu": cpu_s() - cpu, "wall": time.monotonic() - wall}
        digest = int(made.source.voxels_zyx.astype(np.int64).sum())
    print(json.dumps({**seconds, "sum_hu": digest}))


def measured(tree: Path, folder: Path, *, child: bool) -> dict[str, float]:
    """The seconds of one process of ``tree``."""
    command = [tree / ".venv" / "bin" / "python", __file__, "--measure", folder, *(["--child"] if child else [])]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        list(map(str, command)), cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree}: exit {done.returncode}: {done.stderr[-800:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(old: Path, new: Path, folder: Path, pairs: int, *, child: bool) -> dict[str, float]:
    """Medians of both, and of the ratios new / old of the pairs; the order alternates from pair to pair."""
    figures: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for number in range(pairs):
        for which in ("old", "new") if number % 2 else ("new", "old"):
            tree = old if which == "old" else new
            figures[which].append(measured(tree, folder, child=child and which == "new"))
    if len({answer["sum_hu"] for answers in figures.values() for answer in answers}) > 1:
        raise SystemExit(f"{folder.name}: the trees decode different values")
    found = {}
    for unit in ("cpu", "wall"):
        ratios = [after[unit] / before[unit] for before, after in zip(figures["old"], figures["new"], strict=True)]
        found |= {f"{which}_{unit}_s": statistics.median(each[unit] for each in figures[which]) for which in figures}
        found |= {f"{unit}_ratio": statistics.median(ratios), f"highest_{unit}_ratio": max(ratios)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="*", metavar="OLD NEW")
    parser.add_argument("--child", action="store_true", help="NEW decodes in a child, like the node")
    parser.add_argument("--syntax", nargs="+", choices=SYNTAXES, default=list(SYNTAXES))
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, child=options.child)
        return
    if len(options.trees) != 2:
        parser.error("OLD and NEW are needed")
    old, new = (tree.resolve() for tree in options.trees)
    results = {}
    print(f"{'':12}{'old CPU s':>10}{'new CPU s':>10}{'ratio':>8}{'old s':>10}{'new s':>10}{'ratio':>8}")
    for name in options.syntax:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, name)
            write_series(folder, options.slices, SYNTAXES[name])
            found = results[name] = compare(old, new, folder, options.pairs, child=options.child)
        columns = [
            f"{found[f'old_{unit}_s']:10.3f}{found[f'new_{unit}_s']:10.3f}{found[f'{unit}_ratio']:8.3f}"
            for unit in ("cpu", "wall")
        ]
        print(f"{name:12}{''.join(columns)}", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"pairs": options.pairs, "child": options.child, "syntaxes": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
