"""Runs our engine in its own process several times on one CT: first with cold caches, then warm.

``python benchmarks/engine_ours.py --package FOLDER --input CT --labels FILE [--runs N] [--parity] ...`` writes the last
labels as an array [z, y, x] and prints JSON: seconds of every stage of every run, and the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.analysis import on_source_grid, reconstructed
from dicom_node.segment.inputs import find_inputs
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.engine import NnunetSegmenter
from inference.nnunet.host.prepare import prepare
from inference.nnunet.windows import Windows

if TYPE_CHECKING:
    from inference.models.package import ModelPackage
    from inference.types import Volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--no-body-crop", action="store_true")
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    options = EngineOptions(
        device=arguments.device,
        backend=arguments.backend,
        precision=arguments.precision,
        parity=arguments.parity,
        body_crop=not arguments.no_body_crop,
        cache_folder=arguments.cache,
    )
    start = time.perf_counter()
    package = read_package(arguments.package)
    segmenter = NnunetSegmenter(package, options)
    load_s = time.perf_counter() - start
    (one,) = find_inputs([arguments.input], recursive=False, series_instance_uid=None, without=arguments.labels)
    ct = reconstructed(one.read().images)
    runs = []
    for _ in range(arguments.runs):
        start, cpu = time.perf_counter(), cpu_seconds()
        result = segmenter.segment(ct.volume, lambda fraction, stage: None)  # noqa: ARG005
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        runs.append({"wall_s": wall, "cpu_s": cpu, "stages_s": dict(result.run.stage_seconds)})
    np.save(arguments.labels, on_source_grid(ct, result).labels_zyx)
    answer = {
        "load_s": load_s,
        "runs": runs,
        "peak_bytes": peak_bytes(),
        "windows": window_counts(ct.volume, package, options),
        "notes": [note.text for note in result.run.notes],
        "names": {str(label): name for label, name in result.names_by_label.items()},
    }
    print(json.dumps(answer))


def window_counts(volume: Volume, package: ModelPackage, options: EngineOptions) -> dict[str, int]:
    """The number of windows of each part."""
    grids = prepare(volume, package, options).grids
    counts = {}
    for part, grid in zip(package.parts, grids, strict=True):
        shape = [grid.box[axis].stop - grid.box[axis].start for axis in part.axes]
        counts[part.name] = Windows.of(shape, part.patch_size, package.window_step, grid.needed(part)).count
    return counts


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
