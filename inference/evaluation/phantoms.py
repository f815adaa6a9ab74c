"""Scores an installed model on unseen phantoms and writes the results as a table.

    python -m inference.evaluation.phantoms --model config/models/phantom_demo_104 --report docs/users/demo-model.md \
        --json benchmarks/results/demo-model.json

Seeds 1 to 20 are never used for training, which starts at seed 100000.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from inference.evaluation.scores import score_case
from inference.evaluation.table import tabulate
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.engine import NnunetSegmenter
from inference.phantom import FieldOfView, phantom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference.evaluation.scores import CaseScore
    from inference.evaluation.table import Table
    from inference.models.package import ModelPackage
    from inference.types import Segmenter

ROUTINE_SPACING_XYZ_MM = (0.8, 0.8, 2.0)


def score_phantom(
    segmenter: Segmenter, seed: int, spacing_xyz_mm: tuple[float, float, float], field_of_view: FieldOfView
) -> CaseScore:
    """Scan one synthetic patient, segment the scan and compare with the truth."""
    case = phantom(seed, spacing_xyz_mm, field_of_view)
    return score_case(case.truth, segmenter.segment(case.volume, _silent))


def score_phantoms(
    model: Path,
    seeds: Sequence[int],
    *,
    spacing_xyz_mm: tuple[float, float, float] = ROUTINE_SPACING_XYZ_MM,
    field_of_view: FieldOfView = "whole",
    processes: int = 1,
) -> Iterator[CaseScore]:
    """Score the package in the folder ``model`` on several phantoms, in order of their seeds."""
    threads = 0 if processes == 1 else 1
    work = partial(
        _score_in_process, model=model, threads=threads, spacing_xyz_mm=spacing_xyz_mm, field_of_view=field_of_view
    )
    if processes == 1:
        yield from map(work, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(work, seeds)


def _score_in_process(
    seed: int, model: Path, threads: int, spacing_xyz_mm: tuple[float, float, float], field_of_view: FieldOfView
) -> CaseScore:
    segmenter = NnunetSegmenter(read_package(model), EngineOptions(threads=threads))
    return score_phantom(segmenter, seed, spacing_xyz_mm, field_of_view)


def _silent(fraction: float, stage: str) -> None:
    del fraction, stage


def report(
    table: Table, package: ModelPackage, seeds: Sequence[int], spacing: Sequence[float], field_of_view: str
) -> str:
    """The Markdown document about the model."""
    model = package.folder
    size = sum(path.stat().st_size for part in package.parts for path in part.weights) / 1e6
    x, y, z = spacing
    return (
        f"# The demo model, `{model.name}`\n\n"
        f"**{package.identity.intended_use}.**\n\n"
        "The demo and the tests need a freely available model. This one is a small nnU-Net v2 (PlainConvUNet, 5 mm,\n"
        f"{size:.1f} MB, 16-bit weights) for the 104 structures of arXiv 2208.05868, trained on synthetic patients\n"
        f"(seeds from 100000) by `{package.source}` ([how](training.md#the-demo-model)).\n"
        f"Version {package.identity.version}, digest `{package.identity.digest[:12]}`.\n\n"
        "## Accuracy\n\n"
        f"{len(seeds)} unseen phantoms (seeds {min(seeds)} to {max(seeds)}), field of view `{field_of_view}`, at\n"
        f"{x:g} x {y:g} x {z:g} mm, segmented by the node's engine and compared voxel by voxel on that grid:\n\n"
        f"```\npython -m inference.evaluation.phantoms --model {model} "
        f"--first-seed {min(seeds)} --count {len(seeds)} --field-of-view {field_of_view}\n```\n\n"
        "A structure that is not in the truth is not counted; one that is in the truth but was not found counts as 0.\n"
        "NSD: normalised surface Dice at 3 mm, by area.\n\n" + table.as_markdown()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        "python -m inference.evaluation.phantoms", description="Score an installed model on unseen phantoms."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the package")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--spacing", type=float, nargs=3, default=ROUTINE_SPACING_XYZ_MM, metavar=("X", "Y", "Z"))
    parser.add_argument("--field-of-view", choices=get_args(FieldOfView), default="whole")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.count)
    x, y, z = options.spacing
    started = time.monotonic()
    scores = []
    for seed, score in zip(
        seeds,
        score_phantoms(
            options.model,
            seeds,
            spacing_xyz_mm=(x, y, z),
            field_of_view=options.field_of_view,
            processes=options.processes,
        ),
        strict=True,
    ):
        scores.append(score)
        so_far = tabulate(scores)
        print(
            f"seed {seed}: {len(score.structures)} structures, mean Dice so far {so_far.dice_mean:.3f}, "
            f"lowest {so_far.worst.dice_mean:.3f} {so_far.worst.name}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    table = tabulate(scores)
    print(table.as_markdown())
    if options.report:
        package = read_package(options.model)
        options.report.write_text(report(table, package, seeds, (x, y, z), options.field_of_view))
    if options.json:
        options.json.write_text(json.dumps({"seeds": list(seeds), **table.as_json()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
