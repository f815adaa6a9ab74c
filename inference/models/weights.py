"""The weights of one fold: the names and shapes that an architecture has, and the file that holds exactly these.

The names are those in the state_dict of the classes in ``dynamic_network_architectures``, each weight once: duplicates
(``all_modules``, ``decoder.encoder``) and the heads of deep supervision are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open

from inference.errors import ModelPackageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.models.architecture import Architecture

_POINT = (1, 1, 1)
_NAMED_IN_MESSAGES = 3


def head_name(architecture: Architecture) -> str:
    """The layer that computes the logits at full resolution."""
    return f"decoder.seg_layers.{len(architecture.strides) - 2}"


def shape_by_name(architecture: Architecture, classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that inference needs."""
    encoder = _plain_encoder if architecture.network == "PlainConvUNet" else _residual_encoder
    return dict([*encoder(architecture), *_decoder(architecture, classes)])


def read_weights(path: Path, architecture: Architecture, classes: int) -> dict[str, NDArray[np.float32]]:
    """The weights in the safetensors file ``path``, in float32.

    Raises:
        ModelPackageError: not a safetensors file, or not exactly the weights of this network.
    """
    shapes = shape_by_name(architecture, classes)
    return _read(path, shapes, shapes)


def read_head(path: Path, architecture: Architecture, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read only the last layer from the same file: its weights [C, features] and bias [C].

    Raises:
        ModelPackageError: as ``read_weights``.
    """
    name = head_name(architecture)
    weights, bias = f"{name}.weight", f"{name}.bias"
    head = _read(path, shape_by_name(architecture, classes), (weights, bias))
    return head[weights].reshape(classes, -1), head[bias]


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]], wanted: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    try:
        with safe_open(path, framework="numpy") as file:
            _check_names(path, file.keys(), shapes)
            return {name: _checked(path, name, file.get_tensor(name), shapes[name]) for name in wanted}
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a number type that numpy does not have
        raise ModelPackageError(f"{path} is not a safetensors file of floating-point weights: {error}") from error


def _check_names(path: Path, names: Sequence[str], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, foreign = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    if missing or foreign:
        raise ModelPackageError(
            f"{path} does not fit the network of the manifest: "
            f"{len(missing)} weights are missing {missing[:_NAMED_IN_MESSAGES]}, "
            f"{len(foreign)} are unknown {[name[:80] for name in foreign[:_NAMED_IN_MESSAGES]]}"
        )


def _checked(path: Path, name: str, values: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if values.shape != shape:
        raise ModelPackageError(
            f"{path} does not fit the network of the manifest: {name} is {values.shape}, not {shape}"
        )
    if values.dtype not in (np.float32, np.float16):
        raise ModelPackageError(f"{path}: {name} holds {values.dtype}, not 32- or 16-bit floating-point numbers")
    if not np.isfinite(values).all():
        raise ModelPackageError(f"{path}: {name} holds NaN or infinity")
    return values.astype(np.float32, copy=False)


def _plain_encoder(design: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    inputs = 1
    for stage, features in enumerate(design.features_per_stage):
        for number in range(design.blocks_per_stage[stage]):
            name = f"encoder.stages.{stage}.0.convs.{number}"
            yield from _block(design, name, inputs, features, design.kernel_sizes[stage])
            inputs = features


def _residual_encoder(design: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    inputs = design.features_per_stage[0]
    yield from _block(design, "encoder.stem.convs.0", 1, inputs, design.kernel_sizes[0])
    for stage, features in enumerate(design.features_per_stage):
        kernel = design.kernel_sizes[stage]
        for number in range(design.blocks_per_stage[stage]):
            name = f"encoder.stages.{stage}.blocks.{number}"
            yield from _block(design, f"{name}.conv1", inputs, features, kernel)
            yield from _block(design, f"{name}.conv2", features, features, kernel)
            if inputs != features:
                skip = projection_name(name, pooled=number == 0 and any(s != 1 for s in design.strides[stage]))
                yield from _block(design, skip, inputs, features, _POINT, bias=False)
            inputs = features


def projection_name(block: str, *, pooled: bool) -> str:
    """The 1 x 1 x 1 convolution in the skip path of a residual block, which follows the pooling if there is one."""
    return f"{block}.skip.{int(pooled)}"


def _decoder(design: Architecture, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    features = design.features_per_stage
    for step in range(len(features) - 1):
        stage = len(features) - 2 - step
        name = f"decoder.transpconvs.{step}"
        yield f"{name}.weight", (features[stage + 1], features[stage], *design.strides[stage + 1])
        if design.conv_bias:
            yield f"{name}.bias", (features[stage],)
        inputs = 2 * features[stage]
        for number in range(design.convolutions_per_decoder_stage[step]):
            name = f"decoder.stages.{step}.convs.{number}"
            yield from _block(design, name, inputs, features[stage], design.kernel_sizes[stage])
            inputs = features[stage]
    yield f"{head_name(design)}.weight", (classes, features[0], *_POINT)
    yield f"{head_name(design)}.bias", (classes,)


def _block(
    design: Architecture, name: str, inputs: int, outputs: int, kernel: Sequence[int], *, bias: bool = True
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.conv.weight", (outputs, inputs, *kernel)
    if bias and design.conv_bias:
        yield f"{name}.conv.bias", (outputs,)
    if design.norm_affine:
        yield f"{name}.norm.weight", (outputs,)
        yield f"{name}.norm.bias", (outputs,)
