"""The engine against TotalSegmentator's pipeline, built from nibabel, scipy and nnU-Net's own predictor."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from scipy import ndimage

from inference.errors import ModelPackageError, SegmentationRefusedError
from inference.models.package import Crop
from inference.nnunet.contract import EngineOptions
from inference.nnunet.cropped import CroppedSegmenter, cropped
from inference.nnunet.engine import NnunetSegmenter
from inference.nnunet.limits import memory_estimate_bytes
from inference.types import Geometry, ModelIdentity, Padding, RunNote, RunReport, Segmentation, Segmenter, Volume
from tests.support.nnunet_models import (
    plans,
    random_network,
    random_package,
    scale_weights,
    write_model,
    write_package,
)
from tests.support.nnunet_reference import totalsegmentator

PATCH = (32, 24, 40)
PARITY = EngineOptions(device="cpu", threads=1, parity=True)
BEST = EngineOptions(device="cpu", threads=1, precision="float32")
LPS_AXES = {
    "supine": np.eye(3),
    "prone, feet first": np.diag([1.0, -1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1, 0.15], [0.1, -0.15, 1]]))[0],
}


def ct(axes=LPS_AXES["supine"], shape_zyx=(40, 70, 64), spacing=(2.0, 2.5, 5.0), seed=0):
    """Structured noise with large and small features in the HU range of a CT."""
    rng = np.random.default_rng(seed)
    hu = ndimage.gaussian_filter(rng.normal(size=shape_zyx), 3)
    hu = np.rint(hu / np.abs(hu).max() * 1000).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = axes * np.sign(np.linalg.det(axes)) * spacing
    return Volume(hu, Geometry(shape_zyx, affine))


def labels_of(package, volume, options=PARITY):
    return NnunetSegmenter(package, options).segment(volume, lambda *_: None).labels_zyx


def assert_equal_but_for_ties(ours, expected):
    assert np.sort(np.bincount(expected.ravel()) / expected.size)[-2] > 0.1, (
        "the network found too few labels to prove anything"
    )
    assert (ours == expected).mean() >= 0.9999


@pytest.mark.parametrize("axes", LPS_AXES.values(), ids=LPS_AXES.keys())
@pytest.mark.parametrize("step", [0.5, 0.8])
def test_parity_equals_totalsegmentator(tmp_path, axes, step):
    described = plans(patch=PATCH)
    package = write_package(tmp_path, write_model(tmp_path / "m", described=described), window_step=step)
    volume, steps = ct(axes), []
    engine = NnunetSegmenter(package, PARITY)
    assert isinstance(engine, Segmenter)
    result = engine.segment(volume, lambda fraction, stage: steps.append((fraction, stage)))
    assert_equal_but_for_ties(
        result.labels_zyx, totalsegmentator(volume, [(described, [random_network(described, 4)])], step)
    )
    assert result.geometry is volume.geometry
    assert steps == sorted(steps, key=lambda one: one[0])
    assert steps[-1] == (1.0, "done")
    assert set(result.run.stage_seconds) == {"prepare", "inference", "restore"}
    assert (result.run.backend, result.run.device) == (f"torch {torch.__version__}", "CPU")
    assert (result.run.precision, result.run.notes) == ("float32", ())


def test_parity_with_transposed_axes_folds_and_parts_that_overwrite_each_other(tmp_path):
    first, second = plans(patch=PATCH, axes=(1, 0, 2)), plans(patch=(16, 32, 32), axes=(2, 1, 0))
    models = [
        write_model(tmp_path / "a", names=("liver", "spleen"), described=first, folds=(0, 1)),
        write_model(tmp_path / "b", names=("aorta", "brain"), described=second, folds=(3,)),
    ]
    labels = {1: "liver", 2: "spleen", 101: "aorta", 102: "brain"}
    volume = ct(LPS_AXES["prone, feet first"])
    expected = totalsegmentator(
        volume,
        [(first, [random_network(first, 3, seed) for seed in (0, 1)]), (second, [random_network(second, 3, 3)])],
        0.5,
    )
    assert set(np.unique(expected)) >= {0, 1, 2, 101}, "every part, and background where another part had a label"
    assert_equal_but_for_ties(labels_of(write_package(tmp_path, *models, labels=labels), volume), expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 4.0, 4.0)])
def test_parity_for_a_volume_smaller_than_a_window_and_for_the_networks_own_spacing(tmp_path, spacing):
    described = plans(patch=PATCH)
    volume = ct(shape_zyx=(20, 60, 50), spacing=spacing)
    expected = totalsegmentator(volume, [(described, [random_network(described, 4)])], 0.5)
    ours = labels_of(random_package(tmp_path, described=described), volume)
    assert (ours == expected).mean() >= 0.9999


def test_parity_crops_borders_of_0_hu_like_nnunet(tmp_path):
    described = plans(patch=(16, 16, 16))
    hu = np.zeros((20, 40, 40), np.int16)
    hu[4:16, 10:30, 8:33] = ct(shape_zyx=(12, 20, 25)).voxels_zyx
    volume = Volume(hu, Geometry(hu.shape, np.diag([4.0, 4, 4, 1])))
    ours = labels_of(random_package(tmp_path, described=described), volume)
    expected = totalsegmentator(volume, [(described, [random_network(described, 4)])], 0.5)
    np.testing.assert_array_equal(ours, expected)
    assert ours.any()
    assert not ours[:4].any()


def test_smooth_labels_differ_from_parity_only_at_borders(tmp_path):
    package, volume = random_package(tmp_path, described=plans(patch=PATCH)), ct()
    parity, smooth = labels_of(package, volume), labels_of(package, volume, BEST)
    size = (3, 5, 5)  # in source voxels, at least two network voxels
    inner = ndimage.maximum_filter(parity, size) == ndimage.minimum_filter(parity, size)
    assert inner.mean() > 0.1
    assert (smooth[inner] == parity[inner]).mean() > 0.999
    assert (labels_of(package, volume, replace(BEST, precision="bfloat16")) == smooth).mean() > 0.95


def patient_in_air(shape_zyx=(24, 90, 90)):
    """A cylinder of 120 mm in a field of view of 360 mm, with a thin table below it."""
    _, y, x = np.indices(shape_zyx)
    inside = (y - 45) ** 2 + (x - 45) ** 2 < 15**2
    hu = np.full(shape_zyx, -1000, np.int16)
    hu[inside] = ct(shape_zyx=shape_zyx).voxels_zyx[inside] // 10
    hu[:, 80] = -300
    return Volume(hu, Geometry(shape_zyx, np.diag([4.0, 4, 4, 1]))), inside


def test_air_around_the_patient_is_skipped(tmp_path):
    package = random_package(tmp_path, described=plans(patch=(16, 16, 16)))
    volume, inside = patient_in_air()
    counts = {}
    for crops in (True, False):
        seen = []
        engine = NnunetSegmenter(package, replace(BEST, body_crop=crops))
        labels = engine.segment(volume, lambda fraction, stage, seen=seen: seen.append(fraction)).labels_zyx
        assert labels[inside].any()
        counts[crops] = (len(seen), np.count_nonzero(labels[:, 70:]))
    assert counts[True][0] < counts[False][0] / 3
    assert counts[True][1] == 0
    parity, whole = (labels_of(package, volume, replace(PARITY, body_crop=crops)) for crops in (True, False))
    np.testing.assert_array_equal(parity, whole)  # which searches everywhere, whatever the setting


def test_nnunets_own_resampling_keeps_borders_and_labels_stay_in_place(tmp_path):
    package = write_package(
        tmp_path, write_model(tmp_path / "m", described=plans(patch=(16, 16, 16))), resampling="nnunet"
    )
    volume, _ = patient_in_air()
    fine = Volume(
        volume.voxels_zyx.repeat(2, 0).repeat(2, 1).repeat(2, 2), Geometry((48, 180, 180), np.diag([2.0, 2, 2, 1]))
    )
    whole = replace(BEST, body_crop=False)
    on_network_s_grid = labels_of(package, volume, whole)
    inner = ndimage.maximum_filter(on_network_s_grid, 3) == ndimage.minimum_filter(on_network_s_grid, 3)
    assert inner.mean() > 0.1
    back = labels_of(package, fine, whole)[::2, ::2, ::2]
    assert (back[inner] == on_network_s_grid[inner]).mean() > 0.9


class FailingNetwork:
    """OpenVINO that fails at the second window."""

    def __init__(self, network, reason):
        self.network, self.channels, self.runtime = network, network.channels, network.runtime
        self.reason, self.runs = reason, 0

    def run(self, windows):
        self.runs += 1
        if self.runs == 2:
            raise RuntimeError(self.reason)
        return self.network.run(windows)


def break_down(engine, reason):
    one = engine._parts[0]
    engine._parts[0] = replace(one, networks=(FailingNetwork(one.networks[0], reason),))


def test_torch_takes_over_once_openvino_fails(tmp_path):
    package, volume = random_package(tmp_path, described=plans(patch=PATCH)), ct()
    engine = NnunetSegmenter(package, BEST)
    planned = engine.segment(volume, lambda *_: None)
    assert planned.run.backend.startswith("OpenVINO ")
    assert planned.run.notes == ()
    break_down(engine, "Exception from src/inference: bad plugin\nand more")
    for _ in range(2):
        result = engine.segment(volume, lambda *_: None)
        assert (result.labels_zyx == planned.labels_zyx).mean() > 0.999
        (note,) = result.run.notes
        assert "bad plugin" in note.text
        assert note.changes_answer
        assert result.run.backend == f"torch {torch.__version__}"  # no label comes from OpenVINO


@pytest.mark.parametrize("reason", ["std::bad_alloc", "DefaultCPUAllocator: can't allocate memory: you tried ..."])
def test_lack_of_memory_is_temporary_and_not_a_fault_of_the_backend(tmp_path, reason):
    engine = NnunetSegmenter(random_package(tmp_path, described=plans(patch=PATCH)), BEST)
    break_down(engine, reason)
    with pytest.raises(MemoryError):
        engine.segment(ct(), lambda *_: None)
    engine._parts[0] = engine.open_part(engine._parts[0].part)
    result = engine.segment(ct(), lambda *_: None)
    assert result.run.backend.startswith("OpenVINO ")
    assert result.run.notes == ()


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """Two parts; the first convolution of the second overflows in float16, and in no wider precision."""
    folder = tmp_path_factory.mktemp("overflowing")
    first = write_model(folder / "a", names=("brain",), described=plans(patch=PATCH), folds=(7,))
    second = scale_weights(write_model(folder / "b", described=plans(patch=PATCH)), "first", 3e4)
    return write_package(folder / "library", first, second)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("shape_zyx", [(40, 70, 64), (8, 8, 8)])  # many windows; one window for everything
def test_overflow_in_float16_is_segmented_again_in_bfloat16_with_a_note(overflowing, parity, shape_zyx):
    options, volume = replace(BEST, parity=parity, precision="bfloat16"), ct(shape_zyx=shape_zyx)
    planned = NnunetSegmenter(overflowing, options).segment(volume, lambda *_: None)
    assert (planned.labels_zyx > 0).mean() > 0.1
    engine = NnunetSegmenter(overflowing, replace(options, precision="float16"))
    for _ in range(2):  # the second volume gets the same labels and the same note
        result = engine.segment(volume, lambda *_: None)
        np.testing.assert_array_equal(result.labels_zyx, planned.labels_zyx)
        assert result.run.precision == planned.run.precision
        # a processor without bfloat16 adds, in both runs, that it computed in float32
        (note,) = (note for note in result.run.notes if note not in planned.run.notes)
        assert note.text == "the network overflowed in float16; the volume was segmented again in bfloat16"
        assert note.changes_answer


def test_overflow_in_float32_too_is_refused(tmp_path):
    model = scale_weights(write_model(tmp_path / "m", described=plans(patch=PATCH)), "first", 1e38)
    engine = NnunetSegmenter(write_package(tmp_path / "library", model), replace(BEST, precision="float16"))
    with pytest.raises(SegmentationRefusedError, match="infinities or NaN even in float32"):
        engine.segment(ct(), lambda *_: None)


def test_overflow_of_half_precision_sums_is_refused_in_parity_like_in_nnunet(tmp_path):
    model = scale_weights(write_model(tmp_path / "m", described=plans(patch=PATCH)), "last", 1e5)
    package, volume = write_package(tmp_path / "library", model), ct()
    with pytest.raises(SegmentationRefusedError, match="summed in half precision, as in parity"):
        labels_of(package, volume, PARITY)
    assert (labels_of(package, volume, BEST) > 0).mean() > 0.1


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    package = write_package(folder, write_model(folder / "m"), minimum_slices=16, minimum_extent_mm=30.0)
    return NnunetSegmenter(package, BEST)


@pytest.mark.parametrize(
    ("hu", "spacing", "reason"),
    [
        (np.zeros((3, 64, 64), np.int16), (1, 1, 5), "3 slices"),
        (np.zeros((20, 64, 64), np.int16), (1, 1, 1), "20.0 mm"),
        (np.full((20, 64, 64), -1000, np.int16), (1, 1, 5), "every voxel .* -1000 HU"),
        (np.full((20, 64, 64), np.nan, np.float32), (1, 1, 5), "not finite"),
        (np.full((20, 64, 64), np.inf, np.float32), (1, 1, 5), "not finite"),
        (np.arange(20 * 64 * 64, dtype=np.float32).reshape(20, 64, 64), (900, 900, 900), "GB"),
    ],
)
def test_unsuitable_volumes_are_refused_with_the_reason(small_engine, hu, spacing, reason):
    geometry = Geometry(hu.shape, np.diag([*spacing, 1.0]))
    with pytest.raises(SegmentationRefusedError, match=reason):
        small_engine.segment(Volume(hu, geometry), lambda *_: None)


def test_tilted_volume_is_refused(small_engine):
    affine = np.diag([1.0, 1, 5, 1])
    affine[1, 2] = 1
    with pytest.raises(SegmentationRefusedError, match="perpendicular"):
        small_engine.segment(
            Volume(ct(shape_zyx=(20, 64, 64)).voxels_zyx, Geometry((20, 64, 64), affine)), lambda *_: None
        )


def test_auxiliary_structures_are_found_and_left_out(tmp_path):
    model = write_model(tmp_path / "model", names=("liver", "spleen", "aorta"))
    every = NnunetSegmenter(write_package(tmp_path / "library", model), BEST).segment(ct(), lambda *_: None)
    assert (every.labels_zyx == 3).any()
    for left_out, label_of in (("aorta", [0, 1, 2, 0]), ("spleen", [0, 1, 0, 2])):
        named = [name for name in every.names_by_label.values() if name != left_out]
        facts = {"labels": dict(enumerate(named, start=1)), "auxiliary": (left_out,)}
        package = write_package(tmp_path / "library", model, name=f"no_{left_out}", **facts)
        some = NnunetSegmenter(package, BEST).segment(ct(), lambda *_: None)
        assert list(some.names_by_label.values()) == named
        np.testing.assert_array_equal(some.labels_zyx, np.array(label_of, np.uint8)[every.labels_zyx])


class Finder:
    """A first model that finds a box as liver."""

    identity = ModelIdentity("finder", "1", "0", "Thresholding")
    names_by_label = MappingProxyType({7: "liver", 8: "spleen"})

    def __init__(self, box):
        self.box = box

    def prepare(self, volume, progress):
        progress(0.0, "resample")
        return volume

    def infer(self, volume, progress):
        progress(1.0, "done")
        labels = np.zeros(volume.geometry.shape_zyx, np.uint8)
        labels[0, 0, 0] = 8
        if self.box is not None:
            labels[self.box] = 7
        note = RunNote("found in haste", changes_answer=True)
        run = RunReport("numpy 2", "CPU", "int16", (note,), {"inference": 100.0})
        return Segmentation(labels, volume.geometry, self.names_by_label, self.identity, run)


def test_crop_is_segmented_as_if_it_were_the_whole_volume(small_engine):
    volume = ct(shape_zyx=(40, 70, 64))
    crop = Crop("finder", ("liver",), (5.0, 5.0, 12.0))  # spacing 2 x 2.5 x 5 mm: 2, 2 and 2 voxels
    box = (slice(10, 18), slice(20, 50), slice(30, 62))
    steps = []
    whole = CroppedSegmenter(Finder(box), small_engine, crop)
    result = whole.segment(volume, lambda fraction, stage: steps.append((fraction, stage)))
    inner = (slice(8, 20), slice(18, 52), slice(28, 64))
    affine = volume.geometry.affine_lps.copy()
    affine[:3, 3] = [28 * 2.0, 18 * 2.5, 8 * 5.0]
    part = Volume(volume.voxels_zyx[inner], Geometry((12, 34, 36), affine))
    expected = np.zeros(volume.voxels_zyx.shape, np.uint8)
    prepared = small_engine.prepare(part, lambda *_: None, checked=True)
    expected[inner] = small_engine.infer(prepared, lambda *_: None).labels_zyx
    np.testing.assert_array_equal(result.labels_zyx, expected)
    assert expected.any()
    assert result.model == small_engine.identity
    inner_run = small_engine.infer(prepared, lambda *_: None).run
    assert result.run.backend == f"numpy 2, {inner_run.backend}"
    assert (result.run.device, result.run.precision) == ("CPU", "int16, float32")
    assert result.run.notes == (RunNote("found in haste", changes_answer=True),)
    assert set(result.run.stage_seconds) == {"crop", "prepare", "inference", "restore"}
    assert result.run.stage_seconds["inference"] < 100
    assert steps == sorted(steps, key=lambda one: one[0])
    assert steps[-1] == (1.0, "done")


def test_crop_without_target_gives_an_empty_segmentation(small_engine):
    crop = Crop("finder", ("liver",), (5.0, 5.0, 5.0))
    result = CroppedSegmenter(Finder(None), small_engine, crop).segment(ct(), lambda *_: None)
    assert not result.labels_zyx.any()
    assert (result.run.backend, set(result.run.stage_seconds)) == ("numpy 2", {"crop"})
    with pytest.raises(ModelPackageError, match="brain"):
        CroppedSegmenter(Finder(None), small_engine, replace(crop, structures=("brain",)))


MEASURED = """
import sys
from pathlib import Path
from types import MappingProxyType
import numpy as np
from inference.models.package import read_package
from inference.nnunet.contract import EngineOptions
from inference.nnunet.engine import NnunetSegmenter
from inference.types import Geometry, Volume

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

hu = (np.random.default_rng(0).normal(size=(64, 130, 130)) * 300).astype(np.int16)
engine = NnunetSegmenter(read_package(Path(sys.argv[1])), EngineOptions(device="cpu", precision="float32"))
before = status("VmRSS")
engine.segment(Volume(hu, Geometry(hu.shape, np.diag([1.5, 1.5, 1.5, 1]))), lambda *_: None)
print(status("VmHWM") - before, "torch" in sys.modules)
"""


def test_memory_estimate_holds_and_openvino_needs_no_torch(tmp_path):
    described = plans(patch=(64, 96, 96), spacing=(1.5, 1.5, 1.5), features=(16, 32))
    package = random_package(tmp_path, described=described)
    run = [sys.executable, "-c", MEASURED, str(package.folder)]
    output = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout
    taken, uses_torch = output.split()
    geometry = Geometry((64, 130, 130), np.diag([1.5, 1.5, 1.5, 1]))
    estimate = memory_estimate_bytes(geometry, package, BEST)
    assert estimate / 2 <= int(taken) <= estimate
    assert uses_torch == "False"


@pytest.mark.parametrize("options", [PARITY, BEST], ids=["parity", "default"])
def test_padding_is_air_by_default_and_as_stored_in_parity(tmp_path, options):
    volume = ct()
    hu = volume.voxels_zyx.copy()
    hu[:, :12] = 300
    bounds = np.full(len(hu), 300.0)
    outside = np.zeros((1, *hu.shape[1:]), bool)
    outside[:, :12] = True
    stored = Volume(hu, volume.geometry)
    padded = Volume(hu, volume.geometry, Padding(bounds, bounds, outside))
    package = random_package(tmp_path)
    of_padded, of_stored = labels_of(package, padded, options), labels_of(package, stored, options)
    of_air = labels_of(package, padded.with_air_for_padding(), options)
    assert (of_air != of_stored).any()
    np.testing.assert_array_equal(of_padded, of_stored if options.parity else of_air)


def test_crop_keeps_the_padding_inside_it():
    hu = np.random.default_rng(0).integers(-1000, 1000, (6, 8, 9)).astype(np.int16)
    region = np.random.default_rng(1).random((6, 8, 9)) < 0.5
    bounds = np.array([0.0, 100, np.nan, 0, 50, 100])
    volume = Volume(hu, Geometry(hu.shape, np.eye(4)), Padding(bounds, bounds + 300, region))
    box = (slice(1, 5), slice(2, 7), slice(3, 9))
    part = cropped(volume, box)
    np.testing.assert_array_equal(
        part.padding.found_in(part.voxels_zyx), volume.padding.found_in(volume.voxels_zyx)[box]
    )
