"""Measures what each option of the engine costs or gains, on phantoms with known truth.

    python benchmarks/accuracy.py [--seeds N] [--report docs/developers/engine-accuracy.md]
        [--json benchmarks/results/engine-accuracy.json]

Segments N unseen phantoms with the demo model and every option of the engine: parity with TotalSegmentator, with and
without the body crop, in float32 and bfloat16. Every result is compared with the truth (Dice, surface Dice at 3 mm) and
with the most exact result: float32, no crop.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from inference.evaluation.scores import score_case
from inference.evaluation.table import tabulate
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.engine import NnunetSegmenter
from inference.phantom import phantom

if TYPE_CHECKING:
    from inference.evaluation.scores import CaseScore
    from inference.types import Segmentation

MODEL = Path(__file__).parents[1] / "config" / "models" / "phantom_demo_104"
EXACT = "smooth, float32, whole volume"
DEFAULT = "**default: smooth, bfloat16, body crop**"
CPU = EngineOptions(device="cpu", backend="openvino")
ANSWERS = {
    "parity: nearest, float32": replace(CPU, precision="float32", parity=True),
    EXACT: replace(CPU, precision="float32", body_crop=False),
    "smooth, float32, body crop": replace(CPU, precision="float32"),
    "smooth, bfloat16, whole volume": replace(CPU, precision="bfloat16", body_crop=False),
    DEFAULT: replace(CPU, precision="bfloat16"),
}
LEAST_VOXELS = 100


def mean_dice(first: Segmentation, second: Segmentation) -> float:
    """Mean over the structures that have at least 100 voxels in the first."""
    joint = np.zeros(256 * 256, np.int64)
    for one, other in zip(first.labels_zyx, second.labels_zyx, strict=True):
        joint += np.bincount(one.ravel() * np.int64(256) + other.ravel(), minlength=joint.size)
    table = joint.reshape(256, 256)
    labels = [label for label in first.names_by_label if table[label].sum() >= LEAST_VOXELS]
    return float(np.mean([2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in labels]))


def measure(seed: int, segmenters: dict[str, NnunetSegmenter], spacing: tuple[float, float, float]) -> dict[str, Any]:
    case = phantom(seed, spacing, "whole")
    entries: dict[str, Any] = {}
    found: dict[str, Segmentation] = {}
    for name, segmenter in segmenters.items():
        start = time.perf_counter()
        found[name] = segmenter.segment(case.volume, lambda _fraction, _stage: None)
        entries[name] = {"seconds": time.perf_counter() - start, "score": score_case(case.truth, found[name])}
    for name, entry in entries.items():
        entry["like_exact"] = mean_dice(found[EXACT], found[name])
    return entries


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    result = {}
    for name in ANSWERS:
        scores: list[CaseScore] = [case[name]["score"] for case in cases]
        table = tabulate(scores)
        per_case = [[entry.dice for entry in score.structures] for score in scores]
        result[name] = {
            "dice": table.dice_mean,
            "surface_dice": table.surface_dice_mean,
            "lowest_case": min(float(np.mean(dice)) for dice in per_case),
            "like_exact": float(np.mean([case[name]["like_exact"] for case in cases])),
            "like_exact_lowest": min(case[name]["like_exact"] for case in cases),
            "seconds": float(np.median([case[name]["seconds"] for case in cases])),
        }
    return result


def markdown(rows: dict[str, dict[str, float]], seeds: int, spacing: tuple[float, float, float]) -> str:
    x, y, z = spacing
    lines = [
        "# What each option of the engine costs or gains",
        "",
        f"`python benchmarks/accuracy.py --seeds {seeds}`: {seeds} unseen phantoms at {x:g} x {y:g} x {z:g} mm, the",
        "demo model (5 mm, 104 structures), OpenVINO on the CPU. Dice and surface Dice (3 mm) are against the truth;",
        f'"like float32" is the mean Dice against the labels of "{EXACT}", with the lowest phantom in brackets.',
        "Seconds are medians over the phantoms; only their ratios are comparable.",
        "",
        "| options | Dice | surface Dice | lowest case | like float32 | s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['dice']:.4f} | {row['surface_dice']:.4f} | {row['lowest_case']:.4f} "
        f"| {row['like_exact']:.4f} ({row['like_exact_lowest']:.4f}) | {row['seconds']:.1f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="phantoms 1 to N; training starts at 100000")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 2.0), metavar=("X", "Y", "Z"))
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    x, y, z = arguments.spacing
    package = read_package(MODEL)
    segmenters = {name: NnunetSegmenter(package, options) for name, options in ANSWERS.items()}
    cases: list[dict[str, Any]] = []
    text = ""
    for seed in range(1, arguments.seeds + 1):
        cases.append(measure(seed, segmenters, (x, y, z)))
        rows = summary(cases)
        text = markdown(rows, seed, (x, y, z))
        print(f"seed {seed}: " + ", ".join(f"{row['dice']:.4f}" for row in rows.values()), file=sys.stderr, flush=True)
        if arguments.json:
            content = {"seeds": seed, "spacing_xyz_mm": [x, y, z], "answers": rows}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")
        if arguments.report:
            arguments.report.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
