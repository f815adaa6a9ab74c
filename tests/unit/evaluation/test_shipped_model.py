"""The model in the repository is the one that the documents speak of, and does what they say."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from inference.evaluation.phantoms import score_phantoms
from inference.evaluation.table import tabulate
from inference.structures import paper_labels

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "config" / "models" / "phantom_demo_104"


def test_nobody_takes_it_for_a_clinical_model():
    dataset = json.loads((MODEL / "dataset.json").read_text())
    assert "NotForClinicalUse" in dataset["name"]
    assert "Demonstration only" in dataset["description"]
    assert "not a clinical model" in (MODEL / "README.md").read_text()


def test_folder_is_small_and_names_all_structures():
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 20e6
    labels = json.loads((MODEL / "dataset.json").read_text())["labels"]
    assert labels.pop("background") == 0
    assert {label: name for name, label in labels.items()} == paper_labels()
    checkpoint = torch.load(MODEL / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["inference_allowed_mirroring_axes"] is None


def test_recorded_figures_meet_the_aim():
    recorded = json.loads((ROOT / "docs" / "demo-model.json").read_text())
    assert recorded["cases"] == 20
    assert len(recorded["structures"]) == 104
    assert recorded["dice_mean"] >= 0.80
    assert min(entry["dice_mean"] for entry in recorded["structures"]) >= 0.40
    assert recorded["mixed_up"] == []


def test_it_finds_what_the_documents_say():
    """One phantom at a coarse grid; the recorded figures are of 20 at routine resolution."""
    table = tabulate(list(score_phantoms(MODEL, [1], spacing_xyz_mm=(3.0, 3.0, 3.0))))
    assert len(table.rows) == 104
    assert table.dice_mean > 0.78
    assert table.mixed_up == ()
