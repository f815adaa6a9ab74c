"""`dicom-node train` with nnU-Net's own classes: a training killed and resumed ends like an uninterrupted one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.models.network import build_network
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.opening import open_segmenter
from tests.support.nnunet_reference import nnunet
from tests.support.raw_data_set import phantom, write_raw_data_set

TOY = Path(__file__).parents[3] / "config" / "training" / "toy.yaml"
RESULTS = "results/Dataset901_toy/NodeTrainer__nnUNetPlans__3d_fullres/fold_all"
MODEL = "models/Dataset901_toy/nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"


def arguments(folder, name, *more, configuration=TOY):
    return [
        *(sys.executable, "-m", "dicom_node.cli", "train", str(folder / "Dataset901_toy")),
        *("--configuration", str(configuration), "--work", str(folder / "work"), "--library", str(folder / "library")),
        *("--name", name, "--device", "cpu", "--threads", "1", "--save-every", "0", *more),
    ]


def run(folder, name, *more, configuration=TOY):
    command = arguments(folder, name, *more, configuration=configuration)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work folder of a training killed after its first epoch and resumed, and the printed JSON."""
    folder = tmp_path_factory.mktemp("training")
    write_raw_data_set(folder / "Dataset901_toy", 12.0, 3)
    latest = folder / "work" / RESULTS / "checkpoint_latest.pth"
    with (
        (folder / "first.log").open("w") as log,
        subprocess.Popen(arguments(folder, "toy"), stderr=log, start_new_session=True) as first,
    ):
        deadline = time.monotonic() + 240
        while not latest.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    assert latest.exists()
    assert not latest.with_name("checkpoint_final.pth").exists()
    done = run(folder, "toy", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def final(model):
    return torch.load(model / "fold_all" / "checkpoint_final.pth", weights_only=True)


def test_killed_training_was_resumed_and_not_restarted(trained):
    folder, _, said = trained
    assert "epoch=1 " not in said
    assert "preprocess, 0 of 3 cases" in (folder / "first.log").read_text()
    assert "preprocess" not in said
    assert "epoch=2 iterations=4 " in said
    with (folder / "work" / RESULTS / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iterations"] for row in rows] == ["2", "4"]
    assert (folder / "work" / RESULTS / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_weights_equal_those_of_an_uninterrupted_training(trained, tmp_path):
    folder, _, _ = trained
    (tmp_path / "Dataset901_toy").symlink_to(folder / "Dataset901_toy")
    whole = tmp_path / "work"
    whole.mkdir()
    (whole / "preprocessed").symlink_to(folder / "work" / "preprocessed")  # only to save its seconds
    done = run(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    assert "epoch=1 " in done.stderr
    one, other = final(folder / "work" / MODEL), final(whole / MODEL)
    assert one["current_epoch"] == other["current_epoch"] == 2
    for name, value in one["network_weights"].items():
        torch.testing.assert_close(value, other["network_weights"][name], rtol=1e-4, atol=1e-5)


def test_manifest_states_what_was_trained_on_which_data(trained):
    folder, printed, _ = trained
    package = read_package(folder / "library" / "toy")
    assert package.identity.digest == printed["digest"]
    (part,) = package.training["parts"]
    assert part["data_set"] == "Dataset901_toy"
    assert part["reference"] == "phantoms of the tests"
    assert part["split"] == {"fold": "all", "training": ["s0", "s1", "s2"], "validation": ["s0", "s1", "s2"]}
    assert len(part["sha256"]) == 64
    assert 0 <= part["metrics"]["patch_dice"] <= 1
    assert part["metrics"]["epochs"] == 2
    assert package.training["configuration"]["iterations_per_epoch"] == 2
    assert package.training["software"]["nnunetv2"] == "2.8.1"


def test_finished_training_is_installed_again_under_another_name_and_version(trained):
    folder, _, _ = trained
    done = run(folder, "again", "--model-version", "2.1")
    assert done.returncode == 0, done.stderr
    assert "epoch=" not in done.stderr
    first, again = (read_package(folder / "library" / name) for name in ("toy", "again"))
    assert (first.identity.version, again.identity.version) == ("1", "2.1")
    assert first.training == again.training
    assert first.parts[0].weights[0].read_bytes() == again.parts[0].weights[0].read_bytes()


def assert_package_gives_the_labels_of_nnunet(package, model, folder):
    volume, _ = phantom(3, 12.0)
    part = package.parts[0]
    network = build_network(part.architecture, len(part.names_by_channel) + 1)
    network.load_state_dict(final(model)["network_weights"], strict=False)
    expected = nnunet(volume, model, [network.eval()], folder)
    segmenter = open_segmenter(package, EngineOptions(device="cpu", parity=True))
    found = segmenter.segment(volume, lambda *_: None).labels_zyx
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) >= 0.9999


def test_package_gives_the_labels_of_nnunet(trained, tmp_path):
    folder, _, _ = trained
    package = read_package(folder / "library" / "toy")
    assert_package_gives_the_labels_of_nnunet(package, folder / "work" / MODEL, tmp_path)


def test_sampled_trainer_learns_and_its_package_gives_the_labels_of_nnunet(trained, tmp_path):
    (tmp_path / "Dataset901_toy").symlink_to(trained[0] / "Dataset901_toy")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "preprocessed").symlink_to(trained[0] / "work" / "preprocessed")  # only to save its seconds
    (tmp_path / "sampled.yaml").write_text(TOY.read_text() + "trainer: sampled\nlearning_rate: 0.005\n")
    longer = ("--epochs", "3", "--iterations-per-epoch", "15")
    done = run(tmp_path, "sampled", *longer, configuration=tmp_path / "sampled.yaml")
    assert done.returncode == 0, done.stderr
    (curves,) = tmp_path.glob("work/results/*/SampledTrainer__*/fold_all/curves.csv")
    with curves.open() as file:
        losses = [float(row["training_loss"]) for row in csv.DictReader(file)]
    assert losses[2] < losses[0]
    (model,) = (path.parents[1] for path in tmp_path.glob("work/models/*/*/fold_all/checkpoint_final.pth"))
    assert_package_gives_the_labels_of_nnunet(read_package(tmp_path / "library" / "sampled"), model, tmp_path)


def test_changed_data_set_or_settings_are_refused(trained):
    folder, _, _ = trained
    file = folder / "Dataset901_toy" / "dataset.json"
    before = file.read_text()
    try:
        file.write_text(before + "\n")
        done = run(folder, "another")
    finally:
        file.write_text(before)
    assert done.returncode == 1
    assert "contains a training with other data_sets" in done.stderr
    other_seed = run(folder, "another", "--seed", "7")
    assert other_seed.returncode == 1
    assert "contains a training with other configuration" in other_seed.stderr
