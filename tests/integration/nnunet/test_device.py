"""The single-device path, here with the CPU as device, compared with the host path."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from inference.nnunet.contract import EngineOptions, Head
from inference.nnunet.device.restore import DeviceHead, DeviceRestorer
from inference.nnunet.device.run import DeviceRun, DeviceSettings
from inference.nnunet.device.source import grid_on_device, resampled, uploaded
from inference.nnunet.engine import NnunetSegmenter
from inference.nnunet.grid import Canonical
from inference.nnunet.host.prepare import prepare
from inference.nnunet.host.resample import resample
from inference.nnunet.host.restore import Restorer
from inference.nnunet.prepared import spacing_zyx_mm
from inference.types import Geometry, Volume
from tests.support.nnunet_models import plans, scale_weights, write_model, write_package

CPU = torch.device("cpu")
FLOAT32 = EngineOptions(device="cpu", backend="torch", precision="float32", threads=1)
WHOLE = replace(FLOAT32, body_crop=False)
ORGANS = ("liver", "spleen", "aorta", "stomach", "pancreas", "urinary_bladder")


def ct(shape=(20, 48, 46), spacing=(7.0, 7.0, 8.0), rotation=None, seed=0):
    """A noisy cylinder of soft tissue with bones and lungs, with enough air around it for the body search."""
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
    """Three parts: fewer features than classes, more features than classes, and transposed axes with two folds."""
    folder = tmp_path_factory.mktemp("device")
    first = write_model(folder / "a", ORGANS, plans(patch=(12, 24, 24), spacing=(8.0, 8.0, 8.0)))
    few = plans(patch=(16, 24, 16), spacing=(8.0, 8.0, 8.0))
    second = write_model(folder / "b", ("kidney_left", "kidney_right"), few, folds=(1,))
    turned = plans(patch=(24, 12, 24), spacing=(7.0, 9.0, 8.0), axes=(2, 0, 1))
    third = write_model(folder / "c", ("duodenum", "heart"), turned, folds=(2, 3))
    return write_package(folder / "library", first, second, third, window_step=0.5)


def segmenter_on(package, device=None, options=FLOAT32, settings=None, opened=None):
    """A segmenter that runs on ``device``; without one, on the host path."""
    segmenter = NnunetSegmenter(package, options)
    if device is not None:
        segmenter._device = DeviceRun(
            package,
            options,
            (lambda part: opened(segmenter.open_part(part))) if opened else segmenter.open_part,
            device=device,
            settings=settings or DeviceSettings(),
        )
    return segmenter


def labels_of(segmenter, volume, progress=lambda *_: None):
    return segmenter.segment(volume, progress).labels_zyx


def agreement(ours, theirs):
    assert len(np.unique(theirs)) > 5  # the labels are not all background
    return np.mean(ours == theirs)


TURNED = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])
OBLIQUE = Rotation.from_euler("xyz", (0.3, -0.2, 0.5)).as_matrix()


@pytest.mark.parametrize(
    ("rotation", "body_crop"),
    [(np.eye(3), True), (np.diag([-1.0, -1.0, 1.0]), False), (TURNED, True), (OBLIQUE, False), (OBLIQUE, True)],
)
def test_labels_equal_those_of_the_host(package, rotation, body_crop):
    volume = ct(rotation=rotation)
    options = replace(FLOAT32, body_crop=body_crop)
    ours = segmenter_on(package, CPU, options)
    seen = []
    result = ours.segment(volume, lambda done, _: seen.append(done))
    assert agreement(result.labels_zyx, labels_of(segmenter_on(package, options=options), volume)) >= 0.9999
    assert not result.run.notes
    assert (result.run.backend, result.run.device) == (f"torch {torch.__version__}", "CPU")
    assert set(result.run.stage_seconds) == {"prepare", "load", "inference", "download"}
    assert seen[-1] == 1
    assert max(seen[:-1]) <= 1


def test_volume_already_on_the_networks_grid_is_unchanged_for_every_part(package):
    whole = ct((20, 42, 40), spacing=(8.0, 8.0, 8.0), rotation=OBLIQUE)
    volume = Volume(whole.voxels_zyx.astype(np.float32) + np.float32(0.25), whole.geometry)
    labels = labels_of(segmenter_on(package, CPU), volume)
    assert agreement(labels, labels_of(segmenter_on(package), volume)) >= 0.9999


def test_parity_rounds_sums_to_half_precision_like_the_host(package):
    volume, options = ct(), replace(FLOAT32, parity=True)
    labels = labels_of(segmenter_on(package, CPU, options), volume)
    assert agreement(labels, labels_of(segmenter_on(package, options=options), volume)) >= 0.9999


def test_volumes_resampled_by_nnunets_own_rules_are_prepared_on_the_host(package, tmp_path):
    model = write_model(tmp_path / "m", ORGANS, plans(patch=(16, 24, 24), spacing=(8.0, 8.0, 8.0)))
    own = write_package(tmp_path / "library", model, resampling="nnunet")
    labels = labels_of(segmenter_on(own, CPU), ct(rotation=OBLIQUE))
    assert agreement(labels, labels_of(segmenter_on(own), ct(rotation=OBLIQUE))) >= 0.9999


@pytest.fixture(scope="module")
def undisturbed(package):
    return labels_of(segmenter_on(package, CPU, WHOLE), ct())


@pytest.mark.parametrize(
    "settings", [DeviceSettings(batch=1), DeviceSettings(batch=3, work_bytes=1), DeviceSettings(batch=50)]
)
def test_batches_and_chunks_do_not_change_the_labels(package, undisturbed, settings):
    assert agreement(labels_of(segmenter_on(package, CPU, WHOLE, settings), ct()), undisturbed) >= 0.9999


class Scarce:
    """A network on a device with memory for a given number of windows; 0: not even for the network itself."""

    def __init__(self, network, windows, error):
        self.network, self.windows, self.error = network, windows, error
        self.channels, self.runtime = network.channels, network.runtime

    def run_tensor(self, windows):
        if len(windows) > self.windows:
            raise self.error
        return self.network.run_tensor(windows)

    def run(self, windows):
        if self.windows < 0:
            raise self.error
        return self.network.run(windows)

    def rest(self):
        self.network.rest()


def scarce(windows, error, only="a"):
    """Open parts such that the one named by ``only`` runs out of memory."""

    def opened(one):
        networks = tuple(Scarce(network, windows, error) for network in one.networks)
        return replace(one, networks=networks) if one.part.name.startswith(only) else one

    return opened


CUDA_SAYS = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CUDNN_SAYS = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize(
    ("place", "windows", "error", "steps"),
    [
        (0, 2, CUDA_SAYS, ["2 windows"]),
        (1, 1, CUDNN_SAYS, ["2 windows", "one window"]),
        (2, 0, CUDA_SAYS, ["2 windows", "one window", "sums on the host"]),
        (1, -1, CUDA_SAYS, ["2 windows", "one window", "sums on the host", "the CPU"]),
    ],
)
def test_running_out_of_memory_changes_the_path_and_not_the_labels(package, undisturbed, place, windows, error, steps):
    name = package.parts[place].name
    segmenter = segmenter_on(package, CPU, WHOLE, opened=scarce(windows, error, only=name))
    result = segmenter.segment(ct(), lambda *_: None)
    assert agreement(result.labels_zyx, undisturbed) >= 0.9999
    notes = result.run.notes
    assert [note.text.partition("continued with ")[2].partition(" at a time")[0] for note in notes] == steps
    assert [note.changes_answer for note in notes] == ["window" not in step for step in steps]
    assert all(name in note.text for note in notes)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("only_host_sums", [False, True])
@pytest.mark.parametrize("shape", [(20, 48, 46), (8, 12, 12)])  # many windows; one window for everything
def test_overflow_in_float16_on_the_device_is_segmented_again(tmp_path, parity, only_host_sums, shape):
    first = write_model(tmp_path / "a", ("brain",), plans(patch=(12, 24, 24), spacing=(8.0, 8.0, 8.0)), folds=(7,))
    second = write_model(tmp_path / "b", ORGANS, plans(patch=(12, 24, 24), spacing=(8.0, 8.0, 8.0)))
    package = write_package(tmp_path / "library", first, scale_weights(second, "first", 3e4))
    options, volume = replace(WHOLE, precision="float16", parity=parity), ct(shape)
    opened = scarce(0, CUDA_SAYS, only="") if only_host_sums else None
    segmenter = segmenter_on(package, CPU, options, opened=opened)
    wider = replace(options, precision="bfloat16")
    segmenter._in_wider_precision = segmenter_on(package, CPU, wider, opened=opened)  # on the same device
    result = segmenter.segment(volume, lambda *_: None)
    planned = labels_of(segmenter_on(package, CPU, wider), volume)
    assert (planned > 0).mean() > 0.1
    assert agreement(result.labels_zyx, planned) >= 0.9999
    assert result.run.precision == "bfloat16"
    assert [note.changes_answer for note in result.run.notes if "overflowed in float16" in note.text] == [True]


class FullOnce(Scarce):
    """A network that runs out of memory once, after some batches."""

    def run_tensor(self, windows):
        self.windows -= 1
        if self.windows == 0:
            raise self.error
        return self.network.run_tensor(windows)


def test_part_that_failed_half_way_is_repeated(package, undisturbed):
    def opened(one):
        return replace(one, networks=tuple(FullOnce(network, 5, CUDA_SAYS) for network in one.networks))

    segmenter = segmenter_on(package, CPU, WHOLE, opened=opened)
    result = segmenter.segment(ct(), lambda *_: None)
    assert agreement(result.labels_zyx, undisturbed) >= 0.9999
    # each part once: 4, 2 and 1 windows at a time were not enough
    assert len(result.run.notes) == len(package.parts)


def test_failure_unrelated_to_memory_is_not_hidden(package):
    segmenter = segmenter_on(package, CPU, opened=scarce(0, RuntimeError("CUDA error: an illegal address"), only=""))
    with pytest.raises(RuntimeError, match="illegal address"):
        labels_of(segmenter, ct())


def test_released_model_loads_again_on_use(package, undisturbed):
    opened = []
    segmenter = segmenter_on(package, CPU, WHOLE, opened=lambda one: opened.append(one.part.name) or one)
    segmenter._device.load()
    assert sorted(opened) == sorted(part.name for part in package.parts)
    segmenter._device.release()
    np.testing.assert_array_equal(labels_of(segmenter, ct()), undisturbed)
    assert len(opened) == 2 * len(package.parts)
    assert segmenter._device.resident_bytes() > 0


def test_weights_that_do_not_fit_at_loading_are_tried_again_with_the_volume(package, undisturbed):
    opened = []

    def full_at_first(one):
        opened.append(one.part.name)
        if len(opened) == 1:
            raise CUDA_SAYS
        return one

    segmenter = segmenter_on(package, CPU, WHOLE, opened=full_at_first)
    segmenter._device.load()
    np.testing.assert_array_equal(labels_of(segmenter, ct()), undisturbed)
    assert opened.count(opened[0]) == 2


@pytest.mark.parametrize("rotation", [np.eye(3), TURNED, OBLIQUE])
@pytest.mark.parametrize("work_bytes", [1, 1 << 24])
def test_resampling_equals_the_host_bit_for_bit(rotation, work_bytes):
    volume = ct((13, 40, 37), rotation=rotation)
    canonical = Canonical.of(volume.geometry)
    view = canonical.view(volume.voxels_zyx)
    for shape in ([n + 4 for n in view.shape], [max(1, n // 2) for n in view.shape], [1, 50, 3]):
        ours = resampled(uploaded(volume.voxels_zyx, CPU), canonical, tuple(shape), work_bytes)
        np.testing.assert_array_equal(ours.numpy(), resample(view, shape))


@pytest.mark.parametrize("rotation", [np.eye(3), TURNED])
@pytest.mark.parametrize("body_crop", [True, False])
def test_device_and_host_find_the_same_box(package, rotation, body_crop):
    # rotated, the volume is too narrow for the body search
    assert_same_boxes(package, ct(rotation=rotation), body_crop, looks=body_crop and rotation is not TURNED)


def test_device_and_host_find_the_same_box_in_a_volume_thinner_than_a_search_cube(package):
    assert_same_boxes(package, ct((1, 48, 46), spacing=(7.0, 7.0, 3.0)), body_crop=True, looks=True)


def assert_same_boxes(package, volume, body_crop, looks):
    prepared = prepare(volume, package, replace(FLOAT32, body_crop=body_crop))
    spacing = prepared.canonical.spacing_mm(volume.geometry)
    assert (prepared.grids[0].body_zyx is not None) == looks
    for part, grid in zip(package.parts, prepared.grids, strict=True):
        ours = grid_on_device(
            uploaded(volume.voxels_zyx, CPU),
            prepared.canonical,
            spacing,
            spacing_zyx_mm(part),
            package.parts,
            crops_to_body=body_crop,
            working_bytes=1 << 20,
        )
        assert ours.box == grid.box
        np.testing.assert_array_equal(ours.body_zyx, grid.body_zyx)
        np.testing.assert_allclose(ours.image(part).numpy(), grid.image(part), atol=1e-6)


@pytest.mark.parametrize("alignment", ["corners", "centres"])
@pytest.mark.parametrize("interpolation", ["smooth", "nearest"])
@pytest.mark.parametrize("backwards", [(False, False, False), (True, False, True)])
def test_dense_restoring_equals_the_host(alignment, interpolation, backwards):
    generator = np.random.default_rng(1)
    network_shape, offset, shape, source = (9, 10, 8), (1, 0, 2), (7, 10, 5), (14, 13, 21)
    head = Head(generator.normal(size=(6, 3)).astype(np.float32), generator.normal(size=6).astype(np.float32))
    values = generator.normal(size=(3, *shape)).astype(np.float32)
    values[:, :, :, -1] = np.nan  # no window covered this place
    names = np.array([0, 9, 8, 7, 6, 5], np.uint8)
    host = np.full(source, 3, np.uint8)
    flips = tuple(slice(None, None, -1 if flip else 1) for flip in backwards)
    theirs = Restorer(
        host[flips], network_shape, offset, shape, names, head, interpolation=interpolation, alignment=alignment
    )
    device = torch.full(source, 3, dtype=torch.uint8)
    ours = DeviceRestorer(
        device,
        backwards,
        network_shape,
        offset,
        shape,
        names,
        DeviceHead.of(head, CPU),
        interpolation=interpolation,
        alignment=alignment,
        working_bytes=1,
    )
    first = 0
    for planes in (1, 4, 2):
        theirs.accept(first, values[:, first : first + planes])
        ours.accept(first, torch.from_numpy(values[:, first : first + planes]))
        first += planes
    assert np.mean(device.numpy() == host) > 0.9995
    assert (host != 3).any()
