"""The model in the repository is the documented one and performs as documented."""

from __future__ import annotations

import json
from pathlib import Path

from inference.evaluation.phantoms import score_phantoms
from inference.evaluation.table import tabulate
from inference.models.package import read_package
from inference.structures import paper_labels

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "config" / "models" / "phantom_demo_104"


def test_shipped_model_is_marked_as_a_demonstration():
    assert "not for clinical use" in read_package(MODEL).identity.intended_use
    assert "not a clinical model" in (MODEL / "README.md").read_text()


def test_model_folder_is_small_and_names_all_structures():
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 20e6
    assert read_package(MODEL).names_by_label == paper_labels()


def test_recorded_figures_meet_the_target():
    recorded = json.loads((ROOT / "benchmarks" / "results" / "demo-model.json").read_text())
    assert recorded["cases"] == 20
    assert len(recorded["structures"]) == 104
    assert recorded["dice_mean"] >= 0.80
    assert min(entry["dice_mean"] for entry in recorded["structures"]) >= 0.40
    assert recorded["mixed_up"] == []


def test_shipped_model_finds_the_documented_structures():
    """One phantom on a coarse grid; the recorded figures are for 20 phantoms at routine resolution."""
    table = tabulate(list(score_phantoms(MODEL, [1], spacing_xyz_mm=(3.0, 3.0, 3.0))))
    assert len(table.rows) == 104
    assert table.dice_mean > 0.78
    assert table.mixed_up == ()
