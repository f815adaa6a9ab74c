"""Builds the network of a part with torch: the only backend on CUDA, the fallback on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from inference.errors import ModelPackageError
from inference.models.network import build_network
from inference.models.weights import read_weights
from inference.nnunet.contract import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from inference.models.architecture import Architecture
    from inference.models.package import Part

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchNetwork:
    """All folds of a part, ready for inference on one device."""

    def __init__(self, part: Part, *, features: bool, precision: str, device: str, threads: int = 0) -> None:
        """Load the weights of ``part`` onto ``device``; ``features``: without the last layer, folds concatenated.

        Raises:
            ModelPackageError: the weights do not fit the network of the part.
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self._dtype = _DTYPES[precision]
        self._features = features
        classes = len(part.names_by_channel) + 1
        self._folds = [self._ready(_network(path, part.architecture, classes)) for path in part.weights]
        self._channels = part.architecture.features_per_stage[0] * len(self._folds) if features else classes
        self._runtime = Runtime(f"torch {torch.__version__}", _device_name(self.device), precision)

    def _ready(self, network: nn.Module) -> nn.Module:
        if self._features:
            _heads(network)[-1] = nn.Identity()
        network = network.eval().requires_grad_(requires_grad=False)
        return network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]

    @property
    def channels(self) -> int:
        """The number of features of all folds, or of classes."""
        return self._channels

    @property
    def runtime(self) -> Runtime:
        """Backend, device and precision."""
        return self._runtime

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x]."""
        values = self.run_tensor(torch.from_numpy(windows).unsqueeze(1).to(self.device))
        values_nkzyx: NDArray[np.float32] = values.float().contiguous().cpu().numpy()
        return values_nkzyx

    def rest(self) -> None:
        """Nothing to do: torch frees activations after every window."""

    @torch.inference_mode()
    def run_tensor(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] on the device -> [n, K, z, y, x] on the device, in the precision of the network."""
        windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._dtype != torch.float32):
            if self._features:
                return torch.cat([fold(windows) for fold in self._folds], 1)
            logits: torch.Tensor = self._folds[0](windows)
            for fold in self._folds[1:]:
                logits = logits.float() + fold(windows)
        return logits / len(self._folds) if len(self._folds) > 1 else logits

    @property
    def _autocast_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._dtype == torch.float32 else self._dtype


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type.upper()
    number = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{number} {torch.cuda.get_device_name(number)}"


def _network(path: Path, architecture: Architecture, classes: int) -> nn.Module:
    weights = {name: torch.from_numpy(values) for name, values in read_weights(path, architecture, classes).items()}
    with torch.device("meta"):
        network = build_network(architecture, classes)
    heads = _heads(network)
    for number in range(len(heads) - 1):  # heads for deep supervision, used only in training
        heads[number] = nn.Identity()
    # both names of a layer refer to the same module, so one of them is enough
    _, foreign = network.load_state_dict(weights, strict=False, assign=True)
    empty = [name for name, value in network.named_parameters() if value.is_meta]
    if foreign or empty:
        raise ModelPackageError(f"{path} does not fit the network of the manifest: unknown {foreign}, missing {empty}")
    return network


def _heads(network: nn.Module) -> nn.ModuleList:
    heads: nn.ModuleList = network.get_submodule("decoder.seg_layers")  # type: ignore[assignment]
    return heads
