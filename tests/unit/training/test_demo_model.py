"""Training on a few coarse phantoms with a tiny network: it learns, can be resumed, and writes a loadable folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors.torch import load_file

from inference.phantom import Patient, whole_body_grid
from inference.structures import paper_labels
from inference.training.cases import FIRST_TRAINING_SEED, load_case, make_cases
from inference.training.demo_model import Schedule, Training, install_demo_model, measure_intensities, train
from inference.training.loss import sampled_loss
from inference.training.nnunet_folder import Design
from inference.training.patches import draw_patch, normalise

TINY = Design(
    spacing_mm=12.0, patch_size_zyx=(64, 16, 32), features_per_stage=(8, 16, 24), convolutions_per_stage=(1, 1, 1)
)


@pytest.fixture(scope="module")
def case_files(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("cases"), count=2, spacing_mm=12.0, processes=1)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_cases_are_in_the_orientation_of_nnunet(case_files):
    """RAS: x increases to the patient's right, y to anterior, z to superior."""
    labels = {name: label for label, name in paper_labels().items()}
    case = load_case(case_files[0])

    def centre(name):
        return np.argwhere(case.labels_zyx == labels[name]).mean(axis=0)

    assert centre("liver")[2] > centre("spleen")[2]
    assert centre("face")[1] > centre("brain")[1]
    assert centre("brain")[0] > centre("urinary_bladder")[0]


def test_cases_are_generated_once(case_files):
    before = [file.stat().st_mtime_ns for file in case_files]
    again = make_cases(case_files[0].parent, count=2, spacing_mm=12.0, processes=1)
    assert [file.stat().st_mtime_ns for file in again] == before


def test_case_covers_the_whole_patient(case_files):
    patient = Patient.from_seed(FIRST_TRAINING_SEED)
    assert load_case(case_files[0]).labels_zyx.shape == whole_body_grid(patient, (12.0, 12.0, 12.0)).shape_zyx


def test_sampled_loss_estimates_the_loss_on_all_voxels():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(60_000, 6, generator=generator) * 2
    labels = torch.randint(0, 6, (60_000,), generator=generator)
    everything, *_ = sampled_loss(scores, labels, torch.ones(60_000))
    chosen = torch.rand(60_000, generator=generator) < 0.3
    sample, *_ = sampled_loss(scores[chosen], labels[chosen], torch.full((int(chosen.sum()),), 1 / 0.3))
    assert float(sample) == pytest.approx(float(everything), rel=0.02)


def test_loss_of_a_perfect_prediction_is_zero():
    labels = torch.tensor([0, 1, 2, 2, 1, 0] * 50)
    scores = torch.nn.functional.one_hot(labels, 3).float() * 40
    loss, *_ = sampled_loss(scores, labels, torch.ones(300))
    assert float(loss) == pytest.approx(0.0, abs=1e-4)


def test_padding_is_never_used_for_training(case_files):
    """A patch larger than the case: sampled voxels are inside the case and have its labels."""
    case = load_case(case_files[0])
    size = (128, 64, 64)
    intensities = measure_intensities([case])
    patch = draw_patch(case, size, 12.0, intensities, np.random.default_rng(1))
    assert patch.normalised_zyx.shape == size
    assert (patch.normalised_zyx.ravel()[patch.voxels] != 0).all()
    assert patch.weights.min() >= 1.0
    assert len(np.unique(patch.voxels)) == len(patch.voxels)


def test_normalisation_equals_nnunets(case_files):
    case = load_case(case_files[0])
    intensities = measure_intensities([case])
    air = normalise(np.array([[[-1024]]]), intensities)
    expected = (intensities.percentile_00_5 - intensities.mean) / intensities.std
    assert air.item() == pytest.approx(expected, rel=1e-5)


def test_training_learns_and_can_be_resumed(case_files, tmp_path):
    cases = [load_case(file) for file in case_files]
    reports = []
    output, state_file = tmp_path / "model", tmp_path / "state.pt"
    schedule = Schedule(minutes=60, steps=40, peak_learning_rate=5e-3)
    train(cases, output=output, state_file=state_file, design=TINY, schedule=schedule, report=reports.append)
    assert reports[-1]["step"] == 40
    assert reports[-1]["loss"] < reports[0]["loss"]

    longer = Schedule(minutes=60, steps=60, peak_learning_rate=5e-3)
    train(cases, output=output, state_file=state_file, design=TINY, schedule=longer, report=reports.append)
    assert reports[-1]["step"] == 60  # resumed from 40, not restarted
    assert len(reports) == 3

    plans = json.loads((output / "plans.json").read_text())
    labels = json.loads((output / "dataset.json").read_text())["labels"]
    assert len(labels) == 105
    assert labels["spleen"] == 1
    assert labels["urinary_bladder"] == 104
    file_size = (output / "fold_0" / "checkpoint_final.pth").stat().st_size
    checkpoint = torch.load(output / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        105,
        deep_supervision=False,
    )
    network.load_state_dict(checkpoint["network_weights"])
    assert (
        file_size < 2.5 * sum(value.numel() for value in network.parameters()) + 200_000
    )  # 16 bits, nothing stored twice
    with torch.no_grad():
        scores = network(torch.zeros(1, 1, *TINY.patch_size_zyx))
    assert scores.shape == (1, 105, *TINY.patch_size_zyx)
    assert torch.isfinite(scores).all()

    package = install_demo_model(output, tmp_path / "library", "demo")
    assert package.names_by_label == paper_labels()
    assert package.identity.intended_use.startswith("Demonstration only")
    assert load_file(package.parts[0].weights[0])["decoder.seg_layers.1.weight"].dtype == torch.float16


def test_saved_state_is_complete(tmp_path):
    first = Training(TINY, 105, Schedule(minutes=1), 0)
    first.step, first.elapsed_s = 7, 3.5
    first.save(tmp_path / "state.pt")
    second = Training(TINY, 105, Schedule(minutes=1), 1)
    second.resume(tmp_path / "state.pt")
    assert (second.step, second.elapsed_s) == (7, 3.5)
    for key, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key])
