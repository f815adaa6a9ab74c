"""The path that runs on one device, here with the CPU as that device, against the path of the host."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from inference.nnunet.contract import EngineOptions
from inference.nnunet.device.restore import DeviceHead, DeviceRestorer
from inference.nnunet.device.run import DeviceRun, DeviceSettings
from inference.nnunet.device.source import grid_on_device, resampled, uploaded
from inference.nnunet.engine import NnunetSegmenter
from inference.nnunet.grid import Canonical, resample
from inference.nnunet.prepare import prepare, spacing_zyx_mm
from inference.nnunet.restore import Restorer
from inference.types import Geometry, Volume
from tests.nnunet_models import plans, write_model, write_package

CPU = torch.device("cpu")
FLOAT32 = EngineOptions(device="cpu", backend="torch", precision="float32", threads=1)
ORGANS = ("liver", "spleen", "aorta", "stomach", "pancreas", "urinary_bladder")


def ct(shape=(30, 75, 70), spacing=(5.0, 5.0, 4.5), rotation=None, seed=0):
    """A noisy cylinder of soft tissue with bones and lungs in much air, wide enough to look for the body."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(y / 0.5) ** 2 + (x / 0.6) ** 2 < 1] = 40
    hu[(y / 0.3) ** 2 + ((np.abs(x) - 0.3) / 0.2) ** 2 + z**2 < 1] = -800
    hu[(y - 0.35) ** 2 + x**2 < 0.01] = 600
    hu += generator.normal(0, 40, shape)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) * spacing
    return Volume(np.round(hu).astype(np.int16), Geometry(shape, affine))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Three parts: features fewer than classes, the other way round, and turned axes with two folds."""
    folder = tmp_path_factory.mktemp("device")
    first = write_model(folder / "a", ORGANS)
    second = write_model(folder / "b", ("kidney_left", "kidney_right"), plans(patch=(16, 32, 24)), folds=(1,))
    turned = plans(patch=(24, 16, 32), spacing=(5.0, 4.0, 6.0), axes=(2, 0, 1))
    third = write_model(folder / "c", ("duodenum", "heart"), turned, folds=(2, 3))
    return write_package(folder / "library", first, second, third, window_step=0.5)


def segmenter_on(package, device=None, options=FLOAT32, settings=DeviceSettings(), opened=None):
    segmenter = NnunetSegmenter(package, options)
    if device is not None:
        segmenter._device = DeviceRun(
            package, options, opened or segmenter.open_part, segmenter._on_host, device=device, settings=settings
        )
    return segmenter


def labels_of(segmenter, volume):
    return segmenter.segment(volume, lambda *_: None).labels_zyx


def agreement(ours, theirs):
    assert len(np.unique(theirs)) > 5  # there is something to agree on
    return np.mean(ours == theirs)


QUARTER_TURNS = [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])]


@pytest.mark.parametrize("rotation", [*QUARTER_TURNS, Rotation.from_euler("xyz", (0.3, -0.2, 0.5)).as_matrix()])
@pytest.mark.parametrize("body_crop", [True, False])
def test_labels_are_those_of_the_host_path(package, rotation, body_crop):
    volume = ct(rotation=rotation)
    options = replace(FLOAT32, body_crop=body_crop)
    ours = segmenter_on(package, CPU, options)
    theirs = labels_of(segmenter_on(package, options=options), volume)
    assert agreement(labels_of(ours, volume), theirs) >= 0.9999
    assert not ours.notes
