"""Both backends run the same network, and accept exactly the weights of its architecture."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from inference.errors import InferenceError, ModelPackageError
from inference.models.architecture import Architecture
from inference.models.network import build_network
from inference.models.package import Normalisation, Part
from inference.models.weights import shape_by_name
from inference.nnunet.contract import EngineOptions, Runtime
from inference.nnunet.machine import effective_device, effective_precision
from inference.nnunet.networks.open_networks import channel_count, open_networks

CUBE, SLICE, POINT = (3, 3, 3), (1, 3, 3), (1, 1, 1)
HALVED = (2, 2, 2)
PLAIN = Architecture(
    network="PlainConvUNet",
    features_per_stage=(4, 6, 8),
    kernel_sizes=(CUBE, CUBE, CUBE),
    strides=(POINT, HALVED, HALVED),
    blocks_per_stage=(2, 2, 2),
    convolutions_per_decoder_stage=(2, 2),
    conv_bias=True,
    norm_eps=1e-5,
    norm_affine=True,
    nonlin="LeakyReLU",
    negative_slope=0.01,
    nonlin_first=False,
)
RESIDUAL = replace(PLAIN, network="ResidualEncoderUNet", blocks_per_stage=(1, 3, 2))
ARCHITECTURES = {
    "plain": PLAIN,
    "no bias": replace(PLAIN, conv_bias=False),
    "no affine": replace(PLAIN, norm_affine=False),
    "another eps and slope": replace(PLAIN, norm_eps=1e-2, negative_slope=0.2),
    "ReLU": replace(PLAIN, nonlin="ReLU"),
    "nonlinearity first": replace(PLAIN, nonlin_first=True),
    "nonlinearity first, no bias": replace(PLAIN, nonlin_first=True, conv_bias=False),
    "thick planes": replace(PLAIN, kernel_sizes=(SLICE, CUBE, (3, 1, 5)), strides=(POINT, (1, 2, 2), (2, 1, 2))),
    "two stages": replace(
        PLAIN,
        features_per_stage=(4, 8),
        kernel_sizes=(CUBE, CUBE),
        strides=(POINT, HALVED),
        blocks_per_stage=(1, 3),
        convolutions_per_decoder_stage=(1,),
    ),
    "six stages": replace(
        PLAIN,
        features_per_stage=(4, 4, 5, 6, 7, 8),
        kernel_sizes=(CUBE,) * 6,
        strides=(POINT, HALVED, HALVED, HALVED, (1, 1, 2), (1, 1, 1)),
        blocks_per_stage=(2, 1, 2, 1, 2, 1),
        convolutions_per_decoder_stage=(1, 2, 1, 2, 1),
    ),
    "residual": RESIDUAL,
    "residual, no bias": replace(RESIDUAL, conv_bias=False),
    "residual, nonlinearity first is ignored": replace(RESIDUAL, nonlin_first=True),
    "residual, skips without projection or pooling": replace(
        RESIDUAL, features_per_stage=(4, 4, 8), strides=(POINT, HALVED, POINT), nonlin="ReLU"
    ),
}
FLOAT32 = EngineOptions(device="cpu", backend="openvino", precision="float32")
TORCH = replace(FLOAT32, backend="torch")


def _random_network(architecture, classes, seed):
    torch.manual_seed(seed)
    network = build_network(architecture, classes)
    for parameter in network.parameters():
        # biases and norms too: with their initial 0 and 1 a missing layer could go unnoticed
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return network.eval()


def _part(folder, architecture=PLAIN, classes=3, folds=1, patch=(16, 16, 32)):
    paths = []
    for fold in range(folds):
        weights = _random_network(architecture, classes, fold).state_dict()
        paths.append(folder / f"fold_{fold}.safetensors")
        names = shape_by_name(architecture, classes)
        save_file({name: weights[name].numpy() for name in names}, paths[-1])
    names_by_channel = {channel: f"structure {channel}" for channel in range(1, classes)}
    normalisation = Normalisation(-1000.0, 1000.0, 0.0, 300.0)
    return Part("part", tuple(paths), architecture, normalisation, (0, 1, 2), (3.0, 3.0, 3.0), patch, names_by_channel)


def _windows(part, count=1):
    return np.random.default_rng(5).normal(size=(count, *part.patch_size)).astype(np.float32)


def _logits(part, options, windows, output="auto"):
    network, head = open_networks(part, options, output=output)
    values = network.run(windows)
    assert values.dtype == np.float32
    assert values.shape == (len(windows), network.channels, *part.patch_size)
    return np.stack(
        [head.logits(window.reshape(network.channels, -1)).T.reshape(-1, *part.patch_size) for window in values]
    )


def _assert_close(values, expected, relative=1e-4):
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_openvino_computes_the_same_as_nnunets_own_classes(tmp_path, architecture):
    part = _part(tmp_path, architecture)
    windows = _windows(part)
    with torch.inference_mode():
        expected = _random_network(architecture, 3, seed=0)(torch.from_numpy(windows[:, None])).numpy()
    assert expected.std() > 0
    _assert_close(_logits(part, FLOAT32, windows), expected)
    _assert_close(_logits(part, TORCH, windows), expected)


@pytest.mark.parametrize("options", [FLOAT32, TORCH], ids=["openvino", "torch"])
@pytest.mark.parametrize(("classes", "channels"), [(3, 3), (5, 5), (6, 8)])
def test_folds_are_averaged_and_features_are_returned_where_they_are_fewer(tmp_path, options, classes, channels):
    part = _part(tmp_path, classes=classes, folds=2)
    windows = _windows(part, count=2)
    with torch.inference_mode():
        each = [_random_network(PLAIN, classes, fold)(torch.from_numpy(windows[:, None])).numpy() for fold in (0, 1)]
    network, head = open_networks(part, options)
    assert network.channels == channel_count(part) == channels
    assert (head.weights is None) == (classes < 6)
    _assert_close(_logits(part, options, windows), np.mean(each, axis=0))
    _assert_close(_logits(part, options, windows, output="logits"), np.mean(each, axis=0))
    assert open_networks(part, options, output="logits")[0].channels == classes


def test_weights_of_16_bits_are_widened(tmp_path):
    part = _part(tmp_path)
    weights = {name: value.astype(np.float16) for name, value in load_file(part.weights[0]).items()}
    save_file(weights, part.weights[0])
    windows = _windows(part)
    _assert_close(_logits(part, FLOAT32, windows), _logits(part, TORCH, windows))


def test_bfloat16_stays_near_float32(tmp_path):
    part = _part(tmp_path)
    windows = _windows(part)
    exact = _logits(part, FLOAT32, windows)
    for backend in ("openvino", "torch"):
        reduced = replace(FLOAT32, backend=backend, precision="bfloat16")
        _assert_close(_logits(part, reduced, windows), exact, relative=0.05)


WITHOUT_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}
"""Both limit the instructions that OpenVINO uses: as on a processor that has no others."""


@pytest.mark.parametrize("processor", [{}, WITHOUT_BFLOAT16], ids=["this one", "without bfloat16"])
def test_reported_precision_is_what_convolutions_run_in_and_what_features_show(tmp_path, processor):
    _part(tmp_path)
    program = f"""
import numpy as np
from pathlib import Path
from inference.models.package import Architecture, Normalisation, Part
from inference.nnunet.networks.openvino_network import OpenVinoNetwork
part = Part("part", (Path({str(tmp_path / "fold_0.safetensors")!r}),), {PLAIN!r}, Normalisation(-1.0, 1.0, 0.0, 1.0),
            (0, 1, 2), (3.0, 3.0, 3.0), (16, 16, 32), {{1: "liver", 2: "spleen"}})
window = np.random.default_rng(5).normal(size=(1, 16, 16, 32)).astype(np.float32)
def run(precision):
    network = OpenVinoNetwork(part, features=True, precision=precision)
    layers = [each.get_rt_info() for each in network._compiled.get_runtime_model().get_ordered_ops()]
    layers = [(each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in layers]
    kinds = {{precision for layer, precision in layers if layer == "Convolution"}}
    return network.runtime.precision, kinds, network.run(window).copy()
reported, kinds, values = run("bfloat16")
_, exact, expected = run("float32")
print(reported, *kinds, *exact, np.array_equal(values, expected))
"""
    environment = {**os.environ, **processor}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() in (["bfloat16", "bf16", "f32", "False"], ["float32", "f32", "f32", "True"])
    if processor:
        assert run.stdout.startswith("float32")


def test_network_names_backend_version_device_and_precision(tmp_path):
    part = _part(tmp_path)
    by_openvino, by_torch = (open_networks(part, options)[0].runtime for options in (FLOAT32, TORCH))
    assert by_openvino.backend.startswith("OpenVINO 20")
    assert (by_openvino.device, by_openvino.precision) == ("CPU", "float32")
    assert by_torch == Runtime(f"torch {torch.__version__}", "CPU", "float32")


def test_openvino_runs_without_torch(tmp_path):
    _part(tmp_path)
    program = f"""
import sys
sys.modules["torch"] = None  # from here on importing it is an error
import numpy as np
from pathlib import Path
from inference.models.package import Architecture, Normalisation, Part
from inference.nnunet.contract import EngineOptions
from inference.nnunet.networks.open_networks import open_networks
part = Part("part", (Path({str(tmp_path / "fold_0.safetensors")!r}),), {PLAIN!r}, Normalisation(-1.0, 1.0, 0.0, 1.0),
            (0, 1, 2), (3.0, 3.0, 3.0), (16, 16, 32), {{1: "liver", 2: "spleen"}})
network, head = open_networks(part, EngineOptions())
print(network.runtime.backend, network.run(np.zeros((1, 16, 16, 32), np.float32)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("OpenVINO ")
    assert done.stdout.endswith("(1, 4, 16, 16, 32)\n")


def test_torch_is_used_where_openvino_is_missing(tmp_path, monkeypatch):
    part = _part(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "inference.nnunet.networks.openvino_network", raising=False)
    network, _ = open_networks(part, replace(FLOAT32, backend="auto"))
    assert network.runtime.backend.startswith("torch ")
    with pytest.raises(InferenceError, match="openvino"):
        open_networks(part, FLOAT32)


def test_torch_is_used_where_openvino_cannot_compile(tmp_path):
    part = replace(
        _part(tmp_path), patch_size=(16, 16, 34)
    )  # 34 is not a multiple of 4: decoder and skip connection differ in size
    with pytest.raises(InferenceError, match="openvino"):
        open_networks(part, FLOAT32)
    notes = []
    network, _ = open_networks(part, replace(FLOAT32, backend="auto"), note=notes.append)
    assert network.runtime.backend.startswith("torch ")
    (note,) = notes
    assert part.name in note.text
    assert note.changes_answer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_idle_network_frees_its_memory_and_runs_again(tmp_path, precision):
    part = _part(tmp_path, replace(PLAIN, features_per_stage=(16, 16, 16)), classes=40, patch=(96, 96, 96))
    network, _ = open_networks(part, EngineOptions(precision=precision))
    windows = _windows(part)
    before = network.run(windows).copy()
    busy = _resident_bytes()
    network.rest()
    assert busy - _resident_bytes() > 16 * 96**3 * 2  # at least the activations of one layer
    np.testing.assert_array_equal(network.run(windows), before)


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cache_is_filled_and_does_not_change_the_result(tmp_path, precision):
    part, cache = _part(tmp_path), tmp_path / "made" / "cache"
    windows = _windows(part)
    plain = replace(FLOAT32, precision=precision)
    cached = replace(plain, cache_folder=cache)
    expected = _logits(part, plain, windows)
    np.testing.assert_array_equal(_logits(part, cached, windows), expected)
    assert any(cache.iterdir())
    np.testing.assert_array_equal(_logits(part, cached, windows), expected)


def test_cache_of_other_weights_is_not_used(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = _part(tmp_path), _part(tmp_path / "other", folds=2)
    second = replace(second, weights=second.weights[1:])
    windows = _windows(first)
    cached = replace(FLOAT32, cache_folder=tmp_path / "cache")
    _logits(first, cached, windows)
    np.testing.assert_array_equal(_logits(second, cached, windows), _logits(second, FLOAT32, windows))


def test_unusable_or_damaged_cache_is_ignored(tmp_path):
    part = _part(tmp_path)
    windows = _windows(part)
    expected = _logits(part, FLOAT32, windows)
    (tmp_path / "file").write_text("not a folder")
    np.testing.assert_array_equal(_logits(part, replace(FLOAT32, cache_folder=tmp_path / "file"), windows), expected)
    spoilt = replace(FLOAT32, cache_folder=tmp_path / "cache")
    _logits(part, spoilt, windows)
    for blob in spoilt.cache_folder.iterdir():
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    np.testing.assert_array_equal(_logits(part, spoilt, windows), expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_cache_is_ignored(tmp_path):
    part = _part(tmp_path)
    (tmp_path / "cache").mkdir(mode=0o555)
    _logits(part, replace(FLOAT32, cache_folder=tmp_path / "cache"), _windows(part))


@pytest.mark.parametrize(
    "options", [FLOAT32, TORCH, replace(FLOAT32, backend="auto")], ids=["openvino", "torch", "auto"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("decoder.transpconvs.1.bias"),
            r"1 weights are missing .*decoder.transpconvs.1.bias",
        ),
        (lambda weights: weights.update(extra=np.zeros(3, np.float32)), r"1 are unknown \['extra'\]"),
        (
            lambda weights: weights.update(
                {"encoder.stages.0.0.convs.0.conv.weight": np.zeros((4, 1, 3, 3, 1), np.float32)}
            ),
            r"convs.0.conv.weight is \(4, 1, 3, 3, 1\), not \(4, 1, 3, 3, 3\)",
        ),
        (lambda weights: weights["decoder.seg_layers.1.bias"].fill(np.nan), r"seg_layers.1.bias holds NaN"),
        (
            lambda weights: weights.update({"decoder.seg_layers.1.bias": np.zeros(3, np.int64)}),
            r"seg_layers.1.bias holds int64",
        ),
    ],
    ids=["missing", "foreign", "shape", "NaN", "integers"],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, options, change, message):
    part = _part(tmp_path)
    weights = load_file(part.weights[0])
    change(weights)
    save_file(weights, part.weights[0])
    with pytest.raises(ModelPackageError, match=message):
        open_networks(part, options)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64])
def test_file_that_is_not_safetensors_is_refused(tmp_path, content):
    part = _part(tmp_path)
    part.weights[0].write_bytes(content)
    with pytest.raises(ModelPackageError, match="is not a safetensors file"):
        open_networks(part, FLOAT32)


def test_missing_file_is_refused(tmp_path):
    part = _part(tmp_path)
    part.weights[0].unlink()
    with pytest.raises(ModelPackageError, match="fold_0"):
        open_networks(part, FLOAT32)


def test_precision_is_the_requested_one_or_the_best_of_the_device():
    assert effective_precision(replace(FLOAT32, precision="bfloat16", parity=True)) == "bfloat16"
    assert effective_precision(EngineOptions(device="cpu", parity=True)) == "float32"
    assert effective_precision(EngineOptions(device="cpu")) in ("float32", "bfloat16")
    assert effective_device(EngineOptions(device="cpu")) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_cuda_is_refused_where_it_is_not_available():
    assert effective_device(EngineOptions()) == "cpu"
    with pytest.raises(InferenceError, match="cuda"):
        effective_device(EngineOptions(device="cuda"))
