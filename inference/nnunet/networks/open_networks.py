"""Chooses the backend of a part: OpenVINO on a CPU if it works there, torch on CUDA and as the fallback.

Importing torch takes seconds and hundreds of MB, so it is imported only when it runs the network.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

import numpy as np

from inference.errors import InferenceError
from inference.models.weights import read_head
from inference.nnunet.contract import Head
from inference.nnunet.failures import reason_of
from inference.nnunet.machine import effective_device, effective_precision
from inference.types import RunNote

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.models.package import Part
    from inference.nnunet.contract import EngineOptions, WindowNetwork


_FEATURES_PER_CLASS = 1.5
"""Up to this many features per class, features cost less: the last layer runs once per voxel, not in each window."""


def open_networks(
    part: Part,
    options: EngineOptions,
    *,
    output: Literal["auto", "logits"] = "auto",
    note: Callable[[RunNote], None] = lambda _: None,
) -> tuple[WindowNetwork, Head]:
    """Open the network of ``part`` with all its folds, and the last layer that its values still need.

    ``auto``: the features before the last layer if there are fewer of them than classes, or hardly more; else logits.
    ``note`` receives why OpenVINO does not run a network as planned, or not in the chosen precision.

    Raises:
        ModelPackageError: the weights do not fit the network of the part.
        InferenceError: the requested device or backend is not available.
    """
    features = output == "auto" and _gives_features(part)
    network = _network(part, options, note, features=features)
    return network, _head(part) if features else Head(None, None)


def channel_count(part: Part) -> int:
    """K of the network that ``open_networks`` opens by default, without opening it."""
    return _feature_count(part) if _gives_features(part) else len(part.names_by_channel) + 1


def _gives_features(part: Part) -> bool:
    return _feature_count(part) <= _FEATURES_PER_CLASS * (len(part.names_by_channel) + 1)


def _feature_count(part: Part) -> int:
    return part.architecture.features_per_stage[0] * len(part.weights)


def _head(part: Part) -> Head:
    """The last layers of all folds, concatenated; dividing by their number makes the logits a mean."""
    classes = len(part.names_by_channel) + 1
    folds = [read_head(path, part.architecture, classes) for path in part.weights]
    share = np.array(1 / len(folds), np.float32)
    weights = np.concatenate([weights for weights, _ in folds], axis=1) * share
    bias = np.sum([bias for _, bias in folds], axis=0) * share
    return Head(weights.astype(np.float32), bias.astype(np.float32))


def _network(part: Part, options: EngineOptions, note: Callable[[RunNote], None], *, features: bool) -> WindowNetwork:
    device, precision = effective_device(options), effective_precision(options)
    if options.backend == "openvino" and (device, precision) not in _OPENVINO_RUNS:
        raise InferenceError(f"backend openvino runs float32 and bfloat16 on a CPU, not {precision} on {device}")
    if not _torch_is_wanted(options, precision) and (device, precision) in _OPENVINO_RUNS and _has_openvino():
        try:
            from inference.nnunet.networks.openvino_network import OpenVinoNetwork  # noqa: PLC0415 - only where it is used

            network = OpenVinoNetwork(
                part,
                features=features,
                precision=precision,
                threads=options.threads,
                cache_folder=options.cache_folder,
            )
        except (ImportError, RuntimeError) as error:  # torch may still run what OpenVINO can't compile here
            reason = reason_of(error)
        else:
            if (used := network.runtime.precision) != precision:
                text = f"OpenVINO runs {part.name} in {used}: this processor can't run it in {precision}"
                note(RunNote(text, changes_answer=True))
            return network
        if options.backend == "openvino":
            raise InferenceError(f"backend openvino was requested, but can't compile {part.name}: {reason}")
        note(RunNote(f"OpenVINO can't run {part.name}, continued with torch: {reason}", changes_answer=True))
    if options.backend == "openvino":
        raise InferenceError("backend openvino was requested, but it is not installed")
    from inference.nnunet.networks.torch_network import TorchNetwork  # noqa: PLC0415 - see above

    return TorchNetwork(part, features=features, precision=precision, device=device, threads=options.threads)


_OPENVINO_RUNS = {("cpu", "float32"), ("cpu", "bfloat16")}


def _torch_is_wanted(options: EngineOptions, precision: str) -> bool:
    """Parity in float32 runs on torch, like nnU-Net, unless OpenVINO is requested by name.

    OpenVINO sums in another order. If logits are close to each other, as with random weights, the half-precision sums
    of parity turn differences of 1e-5 into other labels: in 0.25 % of the voxels, against 0.0015 % with torch.
    """
    return options.backend == "torch" or (options.backend == "auto" and options.parity and precision == "float32")


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
