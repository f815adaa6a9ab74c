"""The device path on a real GPU: same labels as the host, bounded memory, fall-backs, CUDA graphs, compilation."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inference.nnunet.contract import EngineOptions  # noqa: E402 - torch may be missing
from inference.nnunet.device.network import can_compile  # noqa: E402
from inference.nnunet.device.run import DeviceRun, DeviceSettings  # noqa: E402
from inference.nnunet.device.source import resampled, uploaded  # noqa: E402
from inference.nnunet.engine import NnunetSegmenter  # noqa: E402
from inference.nnunet.grid import Canonical  # noqa: E402
from inference.nnunet.host.resample import resample  # noqa: E402
from inference.types import Geometry, Volume  # noqa: E402
from tests.support.nnunet_models import plans, write_model, write_package  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device found by torch"),
]
FLOAT32 = EngineOptions(device="cuda", precision="float32")
HOST = EngineOptions(device="cpu", backend="torch", precision="float32")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    small = plans(patch=(32, 48, 48), spacing=(4.0, 4.0, 4.0), features=(8, 16, 32))
    turned = plans(patch=(48, 32, 48), spacing=(4.0, 5.0, 4.0), features=(8, 16), axes=(2, 0, 1))
    names = ("liver", "spleen", "aorta", "stomach", "pancreas", "urinary_bladder", "heart", "duodenum", "trachea")
    first = write_model(folder / "a", names, small)
    second = write_model(folder / "b", ("kidney_left", "kidney_right"), turned, folds=(1, 2))
    return write_package(folder / "library", first, second, window_step=0.5)


@pytest.fixture(scope="module")
def volume():
    shape = (60, 150, 140)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.where((y / 0.5) ** 2 + (x / 0.6) ** 2 + 0.1 * z < 1, 40.0, -1000.0)
    hu += np.random.default_rng(0).normal(0, 40, shape)
    return Volume(np.round(hu).astype(np.int16), Geometry(shape, np.diag([2.5, 2.5, 3.0, 1.0])))


@pytest.fixture(scope="module")
def of_host(package, volume):
    return labels_of(NnunetSegmenter(package, HOST), volume)


def labels_of(segmenter, volume):
    return segmenter.segment(volume, lambda *_: None).labels_zyx


def with_settings(package, options, settings, opened=None):
    segmenter = NnunetSegmenter(package, options)
    segmenter._device.release()
    segmenter._device = DeviceRun(
        package,
        options,
        opened(segmenter) if opened else segmenter.open_part,
        device=torch.device("cuda"),
        settings=settings,
    )
    return segmenter


def test_resampling_equals_the_host_bit_for_bit(volume):
    canonical = Canonical.of(volume.geometry)
    source = uploaded(volume.voxels_zyx, torch.device("cuda"))
    ours = resampled(source, canonical, (47, 101, 90), 1 << 24).cpu().numpy()
    np.testing.assert_array_equal(ours, resample(canonical.view(volume.voxels_zyx), (47, 101, 90)))


def test_float32_labels_equal_the_host(package, volume, of_host):
    result = NnunetSegmenter(package, FLOAT32).segment(volume, lambda *_: None)
    assert np.mean(result.labels_zyx == of_host) >= 0.9999
    assert not result.run.notes
    assert result.run.device == f"cuda:0 {torch.cuda.get_device_name(0)}"


def test_parity_labels_equal_the_host(package, volume):
    theirs = labels_of(NnunetSegmenter(package, replace(HOST, parity=True)), volume)
    assert np.mean(labels_of(NnunetSegmenter(package, replace(FLOAT32, parity=True)), volume) == theirs) >= 0.9999


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_reduced_precision_hardly_changes_the_labels(package, volume, of_host, precision):
    labels = labels_of(NnunetSegmenter(package, replace(FLOAT32, precision=precision)), volume)
    assert np.mean(labels == of_host) >= 0.98  # random networks decide by noise


@pytest.mark.parametrize("settings", [DeviceSettings(captured=True), DeviceSettings(compiled=True)])
def test_captured_and_compiled_networks_give_the_same_labels(package, volume, of_host, settings):
    if settings.compiled and not can_compile(torch.device("cuda")):
        pytest.skip("torch.compile needs triton")
    segmenter = with_settings(package, FLOAT32, settings)
    for _ in range(2):  # the graph captured for one volume is reused for the next
        assert np.mean(labels_of(segmenter, volume) == of_host) >= 0.9999


def test_memory_stays_within_the_weights_and_a_few_windows(package, volume):
    segmenter = with_settings(package, FLOAT32, DeviceSettings(batch=2, work_bytes=64 << 20))
    segmenter._device.load()
    torch.cuda.reset_peak_memory_stats()
    labels_of(segmenter, volume)
    window = 4 * 8 * 32 * 48 * 48
    in_flight = 2 * 16 * window + 8 * volume.voxels_zyx.nbytes + (256 << 20)
    assert torch.cuda.max_memory_allocated() <= segmenter._device.resident_bytes() + in_flight


def test_released_model_frees_its_gpu_memory(package, volume):
    segmenter = NnunetSegmenter(package, FLOAT32)
    labels_of(segmenter, volume)
    held = torch.cuda.memory_allocated()
    segmenter._device.release()
    assert torch.cuda.memory_allocated() <= held - segmenter._device.resident_bytes() // 2


class Greedy:
    """A network that allocates GPU memory until none is left, for batches above a given size."""

    def __init__(self, network, windows):
        self.network, self.windows = network, windows
        self.channels, self.runtime = network.channels, network.runtime

    def run_tensor(self, windows):
        if len(windows) > self.windows:
            held = []
            while True:
                held.append(torch.empty(8 << 30, dtype=torch.uint8, device="cuda"))
        return self.network.run_tensor(windows)

    def run(self, windows):
        return self.network.run(windows)

    def rest(self):
        self.network.rest()


@pytest.mark.parametrize(("windows", "last"), [(1, "one window at a time"), (0, "sums on the host")])
def test_labels_are_correct_when_the_gpu_runs_out_of_memory(package, volume, of_host, windows, last):
    def opened(segmenter):
        def scarce(part):
            one = segmenter.open_part(part)
            return replace(one, networks=tuple(Greedy(network, windows) for network in one.networks))

        return scarce

    segmenter = with_settings(package, FLOAT32, DeviceSettings(batch=4), opened)
    result = segmenter.segment(volume, lambda *_: None)
    assert np.mean(result.labels_zyx == of_host) >= 0.9999
    assert result.run.notes[-1].text.endswith(last)
