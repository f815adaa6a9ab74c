"""Builds the network of a part from its description and compiles it with OpenVINO for the CPU; needs no torch.

Every fold is a branch of one graph. The graph follows the classes PlainConvUNet and ResidualEncoderUNet of
``dynamic_network_architectures`` layer by layer (tests compare the two), with one exception: a convolution whose output
goes straight into an instance norm has no bias, because the norm would subtract it again.

Two choices are due to OpenVINO's CPU plugin. Internally it keeps channels last, and it transposes 16-bit results much
faster than 32-bit ones. Networks that run in bfloat16 therefore output their features as bfloat16; this loses nothing,
since the next layer would round them anyway. The logits are a matrix product in float32, because a last convolution in
bfloat16 would round the logits themselves.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from inference.models.weights import head_name, projection_name, read_weights
from inference.nnunet.contract import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from openvino import Node

    from inference.models.architecture import Architecture
    from inference.models.package import Part

_ELEMENT_TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "float16": ov.Type.f16}
_NAMES = {element_type: name for name, element_type in _ELEMENT_TYPES.items()}
_POINT = (1, 1, 1)


class OpenVinoNetwork:
    """All folds of a part, compiled for one window of the part's patch size."""

    def __init__(
        self, part: Part, *, features: bool, precision: str, threads: int = 0, cache_folder: Path | None = None
    ) -> None:
        """Read the weights of ``part`` and compile; ``features``: without the last layer, folds concatenated.

        Raises:
            ModelPackageError: the weights do not fit the network of the part.
            RuntimeError: OpenVINO can't compile the network on this machine.
        """
        narrow = features and precision == "bfloat16"
        self._compiled = _compile(_graph(part, features=features, narrow=narrow), precision, threads, cache_folder)
        if narrow and _precision(self._compiled) != precision:  # features of float32 would only lose their last digits
            narrow = False
            self._compiled = _compile(_graph(part, features=features, narrow=narrow), precision, threads, cache_folder)
        self._narrow = narrow
        self._running: _Running | None = None
        self._channels = int(self._compiled.output(0).shape[1])
        self._runtime = Runtime(f"OpenVINO {ov.__version__.split('-')[0]}", "CPU", _precision(self._compiled))

    @property
    def channels(self) -> int:
        """The number of features of all folds, or of classes."""
        return self._channels

    @property
    def runtime(self) -> Runtime:
        """Backend, device and precision."""
        return self._runtime

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x]; for a single window, a buffer that the next call overwrites."""
        if len(windows) == 1:
            return self._run(windows)
        return np.concatenate([self._run(window[np.newaxis]).copy() for window in windows])

    def _run(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._running is None:
            self._running = _Running(self._compiled, narrow=self._narrow)
        return self._running.run(window)

    def rest(self) -> None:
        """Free the memory of activations and results, a gigabyte for a large window; the weights stay."""
        self._running = None
        self._compiled.release_memory()


class _Running:
    """What a network holds only while it runs windows."""

    def __init__(self, compiled: ov.CompiledModel, *, narrow: bool) -> None:
        self._request = compiled.create_infer_request()
        self._widened = _Widened(tuple(compiled.output(0).shape)) if narrow else None
        if self._widened is not None:
            self._request.set_output_tensor(0, self._widened.tensor)

    def run(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """[1, z, y, x] -> [1, K, z, y, x], a buffer that the next call overwrites."""
        looked_at = np.ascontiguousarray(window[:, np.newaxis])  # shared, so it must live as long as the run
        self._request.set_input_tensor(ov.Tensor(looked_at, shared_memory=True))
        self._request.infer()
        if self._widened is not None:
            return self._widened.values()
        values: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return values


class _Widened:
    """A bfloat16 result as float32: its 16 bits become the upper half of the 32; the lower half stays 0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._bits = np.empty(shape, np.uint16)
        self._values = np.zeros(shape, np.float32)
        self._upper = self._values.view(np.uint16).reshape(*shape, 2)[..., int(sys.byteorder == "little")]
        self.tensor = ov.Tensor(self._bits, shape, ov.Type.bf16)

    def values(self) -> NDArray[np.float32]:
        """What the tensor holds; overwritten by the next call."""
        self._upper[...] = self._bits
        return self._values


def _compile(model: ov.Model, precision: str, threads: int, cache_folder: Path | None) -> ov.CompiledModel:
    core = ov.Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if cache_folder is not None and _writable(cache_folder):
        with suppress(RuntimeError):  # a cache that can't be read or written costs only time
            return core.compile_model(model, "CPU", {**settings, "CACHE_DIR": str(cache_folder)})
    return core.compile_model(model, "CPU", settings)


def _precision(compiled: ov.CompiledModel) -> str:
    """In which the convolutions run: float32 where the processor can't run what was asked for."""
    return _NAMES[compiled.get_property("INFERENCE_PRECISION_HINT")]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _graph(part: Part, *, features: bool, narrow: bool) -> ov.Model:
    design, classes = part.architecture, len(part.names_by_channel) + 1
    window = ops.parameter([1, 1, *part.patch_size], np.float32, name="window")
    folds = []
    for path in part.weights:
        layers = _Layers(design, read_weights(path, design, classes))
        values = layers.decoder(layers.encoder(window))
        folds.append(values if features else layers.head(values, part.patch_size, share=1 / len(part.weights)))
    joined = _joined(folds, features=features)
    return ov.Model([ops.convert(joined, "bf16") if narrow else joined], [window], part.name)


def _joined(folds: Sequence[Node], *, features: bool) -> Node:
    if features and len(folds) > 1:
        return ops.concat(list(folds), axis=1)
    total = folds[0]
    for fold in folds[1:]:
        total = ops.add(total, fold)
    return total


@dataclass(frozen=True)
class _Layers:
    """The layers of one fold."""

    design: Architecture
    weights: Mapping[str, NDArray[np.float32]]

    def encoder(self, values: Node) -> list[Node]:
        """The output of every stage, starting at full resolution."""
        if self.design.network == "PlainConvUNet":
            return self._plain_encoder(values)
        return self._residual_encoder(values)

    def decoder(self, skips: Sequence[Node]) -> Node:
        """The features at full resolution."""
        strides, kernels = self.design.strides, self.design.kernel_sizes
        values = skips[-1]
        for step, convolutions in enumerate(self.design.convolutions_per_decoder_stage):
            stage = len(skips) - 2 - step
            values = self._upsampled(values, f"decoder.transpconvs.{step}", strides[stage + 1])
            values = ops.concat([values, skips[stage]], axis=1)
            for number in range(convolutions):
                values = self._block(values, f"decoder.stages.{step}.convs.{number}", kernels[stage])
        return values

    def head(self, values: Node, patch_size: Sequence[int], *, share: float) -> Node:
        """The logits times ``share``, in float32 whatever the precision of the network."""
        weights, bias = (self.weights[f"{head_name(self.design)}.{kind}"] for kind in ("weight", "bias"))
        classes, features = weights.shape[:2]
        channels_last = ops.transpose(values, np.array([0, 2, 3, 4, 1]))
        rows = ops.reshape(channels_last, np.array([-1, features]), special_zero=False)
        factors = ops.constant(weights.reshape(classes, features) * np.float32(share))
        product = ops.matmul(factors, rows, transpose_a=False, transpose_b=True)
        logits = ops.add(product, ops.constant((bias * np.float32(share)).reshape(-1, 1)))
        return ops.reshape(logits, np.array([1, classes, *patch_size]), special_zero=False)

    def _plain_encoder(self, values: Node) -> list[Node]:
        skips = []
        for stage, (kernel, stride) in enumerate(zip(self.design.kernel_sizes, self.design.strides, strict=True)):
            for number in range(self.design.blocks_per_stage[stage]):
                name = f"encoder.stages.{stage}.0.convs.{number}"
                values = self._block(values, name, kernel, stride if number == 0 else _POINT)
            skips.append(values)
        return skips

    def _residual_encoder(self, values: Node) -> list[Node]:
        values = self._block(values, "encoder.stem.convs.0", self.design.kernel_sizes[0])
        skips = []
        for stage, (kernel, stride) in enumerate(zip(self.design.kernel_sizes, self.design.strides, strict=True)):
            for number in range(self.design.blocks_per_stage[stage]):
                name = f"encoder.stages.{stage}.blocks.{number}"
                values = self._residual_block(values, name, kernel, stride if number == 0 else _POINT)
            skips.append(values)
        return skips

    def _residual_block(self, values: Node, name: str, kernel: Sequence[int], stride: Sequence[int]) -> Node:
        pooled = any(step != 1 for step in stride)
        beside = values
        if pooled:
            beside = ops.avg_pool(values, list(stride), [0, 0, 0], [0, 0, 0], list(stride), exclude_pad=True)
        projection = projection_name(name, pooled=pooled)
        if f"{projection}.conv.weight" in self.weights:
            beside = self._normed(self._convolution(beside, f"{projection}.conv.weight", _POINT, _POINT), projection)
        values = self._block(values, f"{name}.conv1", kernel, stride)
        values = self._normed(self._convolution(values, f"{name}.conv2.conv.weight", kernel, _POINT), f"{name}.conv2")
        return self._nonlinear(ops.add(values, beside))

    def _block(self, values: Node, name: str, kernel: Sequence[int], stride: Sequence[int] = _POINT) -> Node:
        values = self._convolution(values, f"{name}.conv.weight", kernel, stride)
        if not (self.design.nonlin_first and self.design.network == "PlainConvUNet"):
            return self._nonlinear(self._normed(values, name))
        if self.design.conv_bias:
            values = ops.add(values, self._per_channel(f"{name}.conv.bias"))
        return self._normed(self._nonlinear(values), name)

    def _convolution(self, values: Node, name: str, kernel: Sequence[int], stride: Sequence[int]) -> Node:
        padding = [(size - 1) // 2 for size in kernel]
        weights = ops.constant(self.weights[name], shared_memory=True)
        return ops.convolution(values, weights, list(stride), padding, padding, [1, 1, 1])

    def _upsampled(self, values: Node, name: str, stride: Sequence[int]) -> Node:
        weights = ops.constant(self.weights[f"{name}.weight"], shared_memory=True)
        values = ops.convolution_backprop_data(values, weights, list(stride), pads_begin=[0, 0, 0], pads_end=[0, 0, 0])
        return ops.add(values, self._per_channel(f"{name}.bias")) if self.design.conv_bias else values

    def _normed(self, values: Node, name: str) -> Node:
        values = ops.mvn(
            values,
            np.array([2, 3, 4], np.int64),
            normalize_variance=True,
            eps=self.design.norm_eps,
            eps_mode="inside_sqrt",
        )
        if not self.design.norm_affine:
            return values
        scaled = ops.multiply(values, self._per_channel(f"{name}.norm.weight"))
        return ops.add(scaled, self._per_channel(f"{name}.norm.bias"))

    def _nonlinear(self, values: Node) -> Node:
        if self.design.nonlin == "ReLU":
            return ops.relu(values)
        return ops.prelu(values, np.array([self.design.negative_slope], np.float32))

    def _per_channel(self, name: str) -> Node:
        return ops.constant(self.weights[name].reshape(1, -1, 1, 1, 1))
