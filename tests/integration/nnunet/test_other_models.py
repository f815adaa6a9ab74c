"""Models of every kind that nnU-Net trains: the engine's parity mode against nnU-Net itself, end to end with files."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from inference.errors import ModelPackageError
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.device.run import DeviceRun
from inference.nnunet.engine import NnunetSegmenter
from inference.opening import identity_of
from inference.types import Geometry, Volume
from tests.support.nnunet_models import plans, random_network, write_model, write_package
from tests.support.nnunet_reference import nnunet

NAMES = ("liver", "spleen", "aorta")
PARITY = EngineOptions(device="cpu", threads=2, parity=True)
SUPINE = np.eye(3)
PRONE = np.diag([-1.0, -1, 1])
FEET_FIRST = np.diag([-1.0, 1, -1])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def ct(axes=SUPINE, shape_zyx=(24, 40, 44), spacing=(2.0, 2.5, 5.0)):
    """Structured noise in the HU range of a CT; ``axes`` are the directions (LPS) of columns, rows and planes."""
    generator = np.random.default_rng(4)
    hu = ndimage.gaussian_filter(generator.normal(size=shape_zyx), 3)
    hu = np.rint(hu / np.abs(hu).max() * 1000).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = (-40, 30, -700)
    return Volume(hu, Geometry(shape_zyx, affine))


THICK = ct(shape_zyx=(14, 40, 44), spacing=(2.0, 2.5, 9.0))


def anisotropic():
    """Kernels and strides that at first do not act across thick planes, as chosen by the planner."""
    described = plans(patch=(16, 32, 32), spacing=(7.0, 2.0, 2.0), features=(4, 8, 8))
    kwargs = described["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs |= {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    return described


def low_resolution():
    described = plans(patch=(16, 16, 16), spacing=(8.0, 5.0, 5.0))
    described["configurations"]["3d_lowres"] = deepcopy(described["configurations"]["3d_fullres"])
    described["configurations"]["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
    described["configurations"]["3d_fullres"] |= {"spacing": [1.0, 1.0, 1.0], "patch_size": [64, 64, 64]}
    return described


PLAIN = plans(patch=(24, 16, 16))
KINDS = {
    "plain": (PLAIN, ct(), {}),
    "the network's own spacing": (PLAIN, ct(shape_zyx=(24, 24, 28), spacing=(4.0, 4.0, 4.0)), {}),
    "residual encoder": (plans(patch=(24, 16, 16), network="ResidualEncoderUNet"), ct(), {}),
    "anisotropic kernels": (anisotropic(), ct(), {}),
    "thick slices": (PLAIN, THICK, {}),
    "thick slices, turned axes": (plans(patch=(16, 24, 24), axes=(2, 0, 1)), THICK, {}),
    "two folds": (PLAIN, ct(), {"folds": (0, 1)}),
    "3d_lowres": (low_resolution(), ct(), {"configuration": "3d_lowres"}),
    "mirroring": (PLAIN, ct(), {"mirroring_axes": (0, 1, 2)}),
    "mirroring along two turned axes, two folds": (
        plans(patch=(16, 24, 24), axes=(2, 0, 1)),
        ct(),
        {"mirroring_axes": (0, 2), "folds": (0, 1)},
    ),
    "a label to ignore": (PLAIN, ct(), {"ignore": True}),
}


def install(folder, described, *, folds=(0,), configuration="3d_fullres", mirroring_axes=None, ignore=False, **facts):
    """The folder of a model and the package made from it."""
    checkpoint = {
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": mirroring_axes,
    }
    labels = {"ignore": len(NAMES) + 1} if ignore else {}
    model = write_model(
        folder / f"nnUNetTrainer__nnUNetPlans__{configuration}",
        NAMES,
        described,
        folds=folds,
        checkpoint=checkpoint,
        more_labels=labels,
    )
    return model, write_package(folder / "library", model, resampling="nnunet", **facts)


def on_device(package, options):
    """A segmenter that does everything on one torch device, here the CPU."""
    segmenter = NnunetSegmenter(package, options)
    segmenter._device = DeviceRun(package, options, segmenter.open_part, device=torch.device("cpu"))
    return segmenter


def assert_equal_but_for_ties(segmenter, volume, expected):
    assert np.sort(np.bincount(expected.ravel()) / expected.size)[-2] > 0.1, (
        "the network found too few labels to prove anything"
    )
    labels = segmenter.segment(volume, lambda *_: None).labels_zyx
    assert (labels == expected).mean() >= 0.9999


@pytest.mark.parametrize(("described", "volume", "kind"), KINDS.values(), ids=KINDS.keys())
def test_labels_equal_those_of_nnunet(tmp_path, described, volume, kind):
    model, package = install(tmp_path, described, **kind)
    networks = [random_network(described, len(NAMES) + 1, seed) for seed in kind.get("folds", (0,))]
    given = {key: kind[key] for key in ("configuration", "mirroring_axes") if key in kind}
    expected = nnunet(volume, model, networks, tmp_path, **given)
    options = replace(PARITY, mirroring="mirroring_axes" in kind)
    assert_equal_but_for_ties(NnunetSegmenter(package, options), volume, expected)
    assert_equal_but_for_ties(on_device(package, options), volume, expected)


def test_mirroring_is_run_on_request_and_its_absence_shows_in_the_model_version(tmp_path):
    volume = ct()
    _, package = install(tmp_path, PLAIN, mirroring_axes=(0, 1, 2))
    _, without = install(tmp_path / "b", PLAIN)
    assert (package.parts[0].mirroring_axes, without.parts[0].mirroring_axes) == ((0, 1, 2), ())
    plain, mirrored = (EngineOptions(device="cpu", threads=2, mirroring=asked) for asked in (False, True))
    versions = [identity_of([one], options).version for one in (package, without) for options in (plain, mirrored)]
    assert versions == ["1 no mirroring", "1", "1", "1"]
    labels = [
        NnunetSegmenter(one, options).segment(volume, lambda *_: None).labels_zyx
        for one, options in ((package, plain), (without, plain), (package, mirrored))
    ]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).mean() > 0.01


@pytest.mark.parametrize(
    ("reader", "axes", "orientation"),
    [
        ("SimpleITKIO", SUPINE, "LPS"),  # an axial series as ITK converts it
        ("SimpleITKIO", PRONE, "LAS"),
        ("SimpleITKIO", CORONAL, "RAS"),
        ("NibabelIO", FEET_FIRST, "LPS"),
        ("NibabelIO", SUPINE, "SPL"),
        ("NibabelIO", CORONAL, "AIR"),
    ],
)
def test_model_gets_the_patient_in_the_orientation_of_its_training_files(tmp_path, reader, axes, orientation):
    described = plans(patch=(16, 16, 24), axes=(1, 0, 2)) | {"image_reader_writer": reader}
    model, package = install(tmp_path, described, orientation=orientation)
    expected = nnunet(ct(axes), model, [random_network(described, 4)], tmp_path, orientation=orientation)
    assert_equal_but_for_ties(NnunetSegmenter(package, PARITY), ct(axes), expected)
    assert_equal_but_for_ties(on_device(package, PARITY), ct(axes), expected)


def test_resampling_on_the_device_keeps_the_orientation(tmp_path):
    stored = PLAIN | {"image_reader_writer": "SimpleITKIO"}
    model = write_model(tmp_path / "m", NAMES, stored)
    answers = []
    for orientation in ("LPI", "RAS"):
        package = write_package(tmp_path / orientation, model, orientation=orientation)
        expected = NnunetSegmenter(package, PARITY).segment(ct(PRONE), lambda *_: None).labels_zyx
        assert_equal_but_for_ties(on_device(package, PARITY), ct(PRONE), expected)
        answers.append(expected)
    assert (answers[0] != answers[1]).mean() > 0.01


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_reorienting_reader_needs_no_stated_orientation(tmp_path, reader):
    described = PLAIN | {"image_reader_writer": reader}
    model, package = install(tmp_path, described)
    assert package.orientation == "RAS"
    for axes, orientation in ((SUPINE, "LPS"), (CORONAL, "PIR")):
        expected = nnunet(ct(axes), model, [random_network(described, 4)], tmp_path, orientation=orientation)
        assert_equal_but_for_ties(NnunetSegmenter(package, PARITY), ct(axes), expected)


@pytest.mark.parametrize("body_crop", [True, False])
def test_wide_field_of_view_is_cropped_the_same_way_in_every_orientation(tmp_path, body_crop):
    """The search for air around the patient uses the patient's axes, however the model's files were stored."""
    shape = (20, 90, 84)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    noise = ct(shape_zyx=shape).voxels_zyx
    hu = np.where((y / 0.5) ** 2 + (x / 0.6) ** 2 + 0.1 * z < 1, noise // 4, -1000).astype(np.int16)
    volume = Volume(hu, Geometry(shape, np.diag([5.0, 5, 5, 1])))
    options = EngineOptions(device="cpu", threads=2, precision="float32", body_crop=body_crop)
    answers = []
    for orientation in ("RAS", "SAR"):  # the same array with another order of axes, which transpose_forward undoes
        described = plans(patch=(16, 32, 32), axes=(0, 1, 2) if orientation == "RAS" else (2, 1, 0))
        described["image_reader_writer"] = "SimpleITKIO"
        _, package = install(tmp_path / orientation, described, orientation=orientation)
        answers.append(NnunetSegmenter(package, options).segment(volume, lambda *_: None).labels_zyx)
    np.testing.assert_array_equal(*answers)
    assert len(np.unique(answers[0])) > 1


def test_packages_without_a_stated_orientation_are_ras_and_keep_their_digest(tmp_path):
    _, package = install(tmp_path, PLAIN)
    content = (package.folder / "manifest.json").read_text()
    assert "orientation" not in content
    assert "mirroring" not in content
    assert read_package(package.folder).orientation == "RAS"


@pytest.mark.parametrize(
    ("reader", "stated", "reason"),
    [
        (
            "SimpleITKIO",
            None,
            "names SimpleITKIO, which reads files in the orientation in which they are stored.*--orient",
        ),
        ("NibabelIO", None, "names NibabelIO, .*--orientation"),
        ("Tiff3DIO", None, "names 'Tiff3DIO', a reader whose orientation is not known"),
        (None, None, "names no image_reader_writer"),
        ("NibabelIOWithReorient", "LPS", "reads every file as RAS, not as LPS"),
        ("SimpleITKIO", "LPA", "'LPA' must be three letters"),
        ("SimpleITKIO", "../x", "must be three letters"),
    ],
)
def test_model_of_unknown_orientation_is_not_installed(tmp_path, reader, stated, reason):
    described = {key: value for key, value in PLAIN.items() if key != "image_reader_writer"}
    if reader is not None:
        described["image_reader_writer"] = reader
    with pytest.raises(ModelPackageError, match=reason):
        install(tmp_path, described, orientation=stated)
    assert not (tmp_path / "library" / "test").exists()


def test_parts_must_share_one_orientation(tmp_path):
    stored = PLAIN | {"image_reader_writer": "SimpleITKIO"}
    models = [write_model(tmp_path / "a", NAMES, PLAIN), write_model(tmp_path / "b", ("brain",), stored)]
    with pytest.raises(ModelPackageError, match="reads every file as RAS, not as LPS"):
        write_package(tmp_path / "library", *models, orientation="LPS")
    with pytest.raises(ModelPackageError, match="names SimpleITKIO"):
        write_package(tmp_path / "library", *models)
    assert write_package(tmp_path / "library", *models, orientation="RAS").orientation == "RAS"
