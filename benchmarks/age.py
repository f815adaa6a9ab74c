"""Measures the age study: time for 4,004 patients, error rates in simulated tables, effects planted in phantoms.

    python benchmarks/age.py [--patients 4004] [--replicates 1000] [--peer-columns 2] [--peer-replicates 50]
        [--tables 1000] [--phantoms FOLDER] [--json benchmarks/results/age.json]

``ours`` correlates 104 structures, volume and attenuation, for all patients and by sex, with intervals. The peer is
``scipy.stats.spearmanr``, called for each replicate of some columns, one thread each. The simulated tables have known
population correlations: a Gaussian copula with r_s = 6 / pi asin(rho / 2) (Pearson 1907), half of the columns without
any. FOLDER is a phantom cohort of ``dicom-node dataset phantom FOLDER --n 300 --planted-paper --truth-only``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))
from inference.statistics.bootstrap import draws
from inference.statistics.correlation import spearman
from inference.statistics.multiple import benjamini_hochberg, holm

STRUCTURES = 104
QUANTITIES = 2
SUBJECTS, COLUMNS, LIMIT = 200, 20, 0.05
EFFECTS = (0.1, 0.2, 0.3, 0.5, 0.64, -0.1, -0.2, -0.3, -0.5, -0.74)


def measured_table(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ages in whole years, values with a tenth missing (truncated: missing in both quantities), and who is a woman."""
    random = np.random.default_rng(4004)
    age = np.floor(random.uniform(18, 95, patients))
    values = random.normal(size=(patients, QUANTITIES * STRUCTURES)) + 0.02 * age[:, None]
    values[np.tile(random.random((patients, STRUCTURES)) < 0.1, QUANTITIES)] = np.nan
    return age, values, random.random(patients) < 0.5


def ours(age: np.ndarray, values: np.ndarray, is_woman: np.ndarray, replicates: int) -> tuple[float, float]:
    """Wall and CPU seconds, corrections included."""
    wall, cpu = time.perf_counter(), time.process_time()
    for own in (np.ones(len(age), bool), is_woman, ~is_woman):
        found = spearman(age[own], values[own], draws(int(own.sum()), replicates))
        holm(found.p_values)
        benjamini_hochberg(found.p_values)
    return time.perf_counter() - wall, time.process_time() - cpu


def against_scipy(age: np.ndarray, values: np.ndarray, columns: int, replicates: int) -> tuple[float, float]:
    """How many times faster per column and replicate, and the largest difference of the bounds."""
    drawn = draws(len(age), replicates)
    started = time.process_time()
    found = spearman(age, values[:, :columns], drawn, threads=1)
    own = time.process_time() - started
    started, worst = time.process_time(), 0.0
    for column in range(columns):
        pairs = np.flatnonzero(np.isfinite(values[:, column]))
        replicated = []
        for counts in drawn[:, pairs]:
            picked = np.repeat(pairs, counts)
            replicated.append(spearmanr(age[picked], values[picked, column]).statistic)
        bounds = np.quantile(replicated, [0.025, 0.975])
        worst = max(worst, *np.abs(bounds - (found.low[column], found.high[column])))
    return (time.process_time() - started) / own, worst


def simulated(tables: int, replicates: int) -> dict[str, float]:
    """Shares over ``tables`` of false discoveries, of any false rejection, and of intervals that hold the truth."""
    random = np.random.default_rng(20230705)
    truth = np.r_[np.zeros(COLUMNS - len(EFFECTS)), EFFECTS]
    pearson = 2 * np.sin(np.pi * truth / 6)
    drawn = draws(SUBJECTS, replicates)
    false_shares, any_false, held, formula_held = [], [], np.zeros(COLUMNS), np.zeros(COLUMNS)
    for _ in range(tables):
        hidden = random.normal(size=SUBJECTS)
        values = pearson * hidden[:, None] + np.sqrt(1 - pearson**2) * random.normal(size=(SUBJECTS, COLUMNS))
        found = spearman(20 + 70 / (1 + np.exp(-hidden)), np.exp(values), drawn)
        is_found = benjamini_hochberg(found.p_values) <= LIMIT
        false_shares.append(is_found[truth == 0].sum() / max(1, is_found.sum()))
        any_false.append((holm(found.p_values)[truth == 0] <= LIMIT).any())
        held += (found.low <= truth) & (truth <= found.high)
        formula_held += (found.formula_low <= truth) & (truth <= found.formula_high)
    return {
        "tables": tables,
        "false_discovery_rate": float(np.mean(false_shares)),
        "nominal_false_discovery_rate": LIMIT * float((truth == 0).mean()),
        "family_wise_error_rate_of_holm": float(np.mean(any_false)),
        "coverage_of_bootstrap": float(held.mean() / tables),
        "lowest_coverage_of_bootstrap": float(held.min() / tables),
        "coverage_of_formula": float(formula_held.mean() / tables),
        "lowest_coverage_of_formula": float(formula_held.min() / tables),
    }


def phantoms(folder: Path) -> dict[str, object]:
    """What was planted in the cohort, and what the study finds."""
    from dicom_node.age_study.selection import Rules, select  # noqa: PLC0415
    from dicom_node.age_study.sources import read_source  # noqa: PLC0415
    from dicom_node.age_study.study import correlate  # noqa: PLC0415

    planted = json.loads((folder / "manifest.json").read_text())["effects"]
    found = correlate(select(read_source(folder), Rules())).of("all")
    quantity = {"volume": "volume_ml", "hu": "mean_hu"}
    rows = [(each, found[each["structure"], quantity[each["quantity"]]]) for each in planted]
    return {
        f"{each['structure']} {each['quantity']}": {
            "planted": each["spearman"],
            "found": one.r_s,
            "ci": (one.ci_low, one.ci_high),
            "p_fdr": one.p_fdr,
            "patients": one.patients,
        }
        for each, one in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=4004)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--peer-columns", type=int, default=2)
    parser.add_argument("--peer-replicates", type=int, default=50)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--phantoms", type=Path, help="phantom cohort with planted effects")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args()
    content: dict[str, object] = {}
    if options.patients:
        age, values, is_woman = measured_table(options.patients)
        content["wall_s"], content["cpu_s"] = ours(age, values, is_woman, options.replicates)
        content["times_faster_than_scipy"], content["largest_difference"] = against_scipy(
            age, values, options.peer_columns, options.peer_replicates
        )
    if options.tables:
        content |= simulated(options.tables, options.replicates)
    if options.phantoms:
        content["phantoms"] = phantoms(options.phantoms)
    for name, value in content.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
