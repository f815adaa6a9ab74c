"""The engine's labels for a phantom with the demo model, against nnU-Net's own code and the phantom's truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from safetensors.torch import load_file
from scipy import ndimage

from inference.models.network import build_network
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.engine import NnunetSegmenter
from inference.phantom import phantom

MODEL = Path(__file__).parents[3] / "config" / "models" / "phantom_demo_104"
SPACING_XYZ_MM = (2.5, 2.5, 4.0)
LEAST_VOXELS = 50


@pytest.fixture(scope="module")
def case():
    return phantom(3, SPACING_XYZ_MM, "abdomen")


@pytest.fixture(scope="module")
def package():
    """The model with TotalSegmentator's step size, and windows of which the volume needs two."""
    demo = read_package(MODEL)
    return replace(demo, window_step=0.8, parts=(replace(demo.parts[0], patch_size=(64, 64, 96)),))


@pytest.fixture(scope="module")
def answer(case, package):
    """The engine's labels by option, each computed once."""
    known = {}

    def of(**options):
        key = tuple(sorted(options.items()))
        if key not in known:
            known[key] = NnunetSegmenter(package, EngineOptions(device="cpu", **options)).segment(
                case.volume, lambda _fraction, _stage: None
            )
        return known[key]

    return of


def totalsegmentator_s(volume, package):
    """Labels as TotalSegmentator 2.18 computes them with nnU-Net's predictor, step by step and without our code."""
    (part,) = package.parts
    affine_ras = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine_lps
    image = nibabel.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0).astype(np.float64), affine_ras)
    canonical = nibabel.as_closest_canonical(image)
    zoom = canonical.header.get_zooms() / np.array(part.spacing_mm[::-1])
    resampled = ndimage.zoom(canonical.get_fdata(), zoom, order=1, mode="nearest").astype(np.int32)
    hu = resampled.transpose(2, 1, 0).astype(np.float32)
    assert (hu[[0, -1]] != 0).any(), "nnU-Net would crop, which is not reproduced here"
    limits = part.normalisation
    normalised = (np.clip(hu, limits.lowest_hu, limits.highest_hu) - limits.mean_hu) / limits.sd_hu
    labels = predicted(torch.from_numpy(normalised.astype(np.float32))[None], package).transpose(2, 1, 0)
    back = np.array(canonical.shape) / labels.shape
    on_canonical = ndimage.zoom(labels.astype(np.float64), back, order=0, mode="nearest").astype(np.uint8)
    from_canonical = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.io_orientation(affine_ras)
    )
    return nibabel.apply_orientation(on_canonical, from_canonical).transpose(2, 1, 0)


def predicted(image, package):
    (part,) = package.parts
    classes = len(part.names_by_channel) + 1
    predictor = nnUNetPredictor(
        tile_step_size=package.window_step, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.network = build_network(part.architecture, classes)
    left_out = predictor.network.load_state_dict(load_file(part.weights[0]), strict=False)
    assert not left_out.unexpected_keys
    predictor.configuration_manager = SimpleNamespace(patch_size=part.patch_size)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    predictor.allowed_mirroring_axes = None
    return predictor.predict_sliding_window_return_logits(image).numpy().argmax(0)


@pytest.fixture(scope="module")
def expected(case, package):
    return totalsegmentator_s(case.volume, package)


def mean_dice(truth, found):
    """Mean over the structures that have more than a few voxels in the truth."""
    assert truth.names_by_label == found.names_by_label
    joint = np.bincount(truth.labels_zyx.ravel() * np.int64(256) + found.labels_zyx.ravel(), minlength=256 * 256)
    joint = joint.reshape(256, 256)
    in_truth, in_found = joint.sum(axis=1), joint.sum(axis=0)
    labels = [label for label in truth.names_by_label if in_truth[label] >= LEAST_VOXELS]
    return float(np.mean([2 * joint[label, label] / (in_truth[label] + in_found[label]) for label in labels]))


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_parity_equals_totalsegmentator(answer, expected, backend):
    found = answer(parity=True, backend=backend)
    assert len(np.unique(expected)) > 30, "the network found too few structures to prove anything"
    assert (found.labels_zyx == expected).mean() >= 0.9999


def test_reduced_precision_gives_the_same_labels(answer):
    assert mean_dice(answer(precision="float32"), answer(precision="bfloat16")) >= 0.995


def test_default_labels_are_nearer_to_the_truth_than_parity(case, answer):
    parity, best = (mean_dice(case.truth, found) for found in (answer(parity=True, backend="auto"), answer()))
    assert best > parity + 0.005


def test_body_crop_costs_no_dice(case, answer):
    cropped, whole = (mean_dice(case.truth, answer(**options)) for options in ({}, {"body_crop": False}))
    assert cropped > whole - 0.002
