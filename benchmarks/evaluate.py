"""Measures how long the scores of an evaluation take to compute, compared with surface-distance 0.1 on the same masks.

    python benchmarks/evaluate.py [--subjects 20] [--peer-subjects 2] [--processes 2]
        [--json benchmarks/results/evaluate-benchmark.json]

A subject is a phantom with all 104 structures in 250 x 250 x 250 voxels treated as 1.5 mm, and a segmentation of it:
the truth warped by a few millimetres, with distant specks and one structure missing. ``ours`` scores all subjects
(Dice, surface Dice, HD95, volumes) in several processes. The peer is called for each structure with its two masks, as
its users do; it takes minutes per subject, so it gets only some of them. The times are compared subject by subject,
each in one thread, and the figures of both must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))
from inference.evaluation.scores import TOLERANCE_MM, CaseScore, score_case
from inference.phantom import Patient, grid, render
from inference.structures import paper_labels
from inference.types import Geometry, ModelIdentity, Segmentation

VOXELS = 250
SPACING_MM = 1.5
WARP_MM = 2.5
MODEL = ModelIdentity("benchmark", "1", "0" * 64, "Synthetic")
AGREEMENT = 1e-6


def write_subject(arguments: tuple[int, Path]) -> None:
    """Write truth and segmentation of one phantom."""
    seed, folder = arguments
    patient = Patient.from_seed(seed)
    around = grid(patient, (4.0, 4.0, 4.0))
    extent = np.array(around.shape_zyx) * 4.0
    affine = around.affine_lps.copy()
    affine[:3, :3] = np.diag(extent[::-1] / VOXELS)
    names = paper_labels()
    shape = (VOXELS,) * 3
    _, truth = render(patient, Geometry(shape, affine), {name: label for label, name in names.items()})
    random = np.random.default_rng(seed)
    field = random.normal(size=(3, 16, 16, 16))
    places = [
        axis + ndimage.zoom(push, VOXELS / 16, order=1) * WARP_MM / SPACING_MM
        for axis, push in zip(np.meshgrid(*(np.arange(VOXELS),) * 3, indexing="ij", sparse=True), field, strict=True)
    ]
    found = ndimage.map_coordinates(truth, places, order=0)
    found[found == random.integers(1, 105)] = 0
    for z, y, x in random.integers(5, VOXELS - 5, (20, 3)):
        found[z : z + 3, y : y + 3, x : x + 3] = random.integers(1, 105)
    np.save(folder / f"{seed}-truth.npy", truth)
    np.save(folder / f"{seed}-found.npy", found)


def read_subject(seed: int, folder: Path) -> tuple[Segmentation, Segmentation]:
    geometry = Geometry((VOXELS,) * 3, np.diag([SPACING_MM] * 3 + [1.0]))
    truth, found = (
        Segmentation(np.load(folder / f"{seed}-{name}.npy"), geometry, paper_labels(), MODEL)
        for name in ("truth", "found")
    )
    return truth, found


def warm_up() -> None:
    """Load the libraries; starting a process is not part of the measured work."""
    labels = np.ones((2, 2, 2), np.uint8)
    cube = Segmentation(labels, Geometry(labels.shape, np.eye(4)), paper_labels(), MODEL)
    score_case(cube, cube)


def ours(arguments: tuple[int, Path]) -> tuple[CaseScore, float, int]:
    """Scores, CPU seconds and the peak memory of this process in bytes."""
    started = time.process_time()
    score = score_case(*read_subject(*arguments))
    return score, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peer(arguments: tuple[int, Path]) -> tuple[dict[str, tuple[float, float, float]], float]:
    """Dice, surface Dice and HD95 by structure, and CPU seconds."""
    warnings.simplefilter("ignore")
    np.Inf = np.inf  # noqa: NPY201 # surface-distance 0.1 is older than numpy 2
    import surface_distance as peers  # noqa: PLC0415

    started = time.process_time()
    truth, found = read_subject(*arguments)
    scores = {}
    for label, name in truth.names_by_label.items():
        masks = truth.labels_zyx == label, found.labels_zyx == label
        distances = peers.compute_surface_distances(*masks, (SPACING_MM,) * 3)
        scores[name] = (
            float(peers.compute_dice_coefficient(*masks)),
            float(peers.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
            float(peers.compute_robust_hausdorff(distances, 95)),
        )
    return scores, time.process_time() - started


def largest_difference(score: CaseScore, expected: dict[str, tuple[float, float, float]]) -> float:
    """The largest difference over all structures and measures; equal infinities do not differ."""
    differences = [0.0]
    for each in score.counted("nnunet"):
        for own, other in zip((each.dice, each.surface_dice, each.hd95_mm), expected[each.name], strict=True):
            differences.append(0.0 if own == other else abs(own - other))
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--peer-subjects", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        work = [(seed, Path(scratch)) for seed in range(1, options.subjects + 1)]
        with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
            list(pool.map(write_subject, work))
        with ProcessPoolExecutor(options.processes, mp_context=context, initializer=warm_up) as pool:
            list(pool.map(time.sleep, [0.5] * options.processes))  # until all have started
            started = time.perf_counter()
            results = list(pool.map(ours, work))
            wall_s = time.perf_counter() - started
        with ProcessPoolExecutor(1, mp_context=context, initializer=warm_up) as pool:
            expected = list(pool.map(peer, work[: options.peer_subjects]))
    dice = [each.dice for score, _, _ in results for each in score.structures]
    ratios = [theirs / own for (_, own, _), (_, theirs) in zip(results, expected, strict=False)]
    content = {
        "subjects": options.subjects,
        "structures": statistics.mean(len(score.structures) for score, _, _ in results),
        "processes": options.processes,
        "mean_dice": statistics.mean(dice),
        "ours_wall_s": wall_s,
        "ours_cpu_s_per_subject": statistics.mean(seconds for _, seconds, _ in results),
        "ours_peak_mb": options.processes * max(peak for _, _, peak in results) / 1e6,
        "peer_subjects": len(expected),
        "peer_cpu_s_per_subject": statistics.mean(seconds for _, seconds in expected) if expected else None,
        "times_faster": min(ratios, default=None),
        "largest_difference": max(
            (largest_difference(score, one) for (score, _, _), (one, _) in zip(results, expected, strict=False)),
            default=None,
        ),
    }
    for name, value in content.items():
        print(f"{name:>24}: {value}")
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if expected and content["largest_difference"] > AGREEMENT:
        raise SystemExit(f"the figures differ by {content['largest_difference']:.3g}")


if __name__ == "__main__":
    main()
