"""The network of a package, and its weights: nothing of a checkpoint is ever executed.

``torch.load(weights_only=True)`` with the few numpy types that nnU-Net's bookkeeping needs, from a zip file of
uncompressed members only, and then a strict match of names and shapes with the network that the checked plans describe.
"""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from inference.errors import ModelPackageError
from inference.nnunet.package import CHECKPOINT_LIMIT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from inference.nnunet.package import Architecture, Part

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before the names of weights."""
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
"""What the pickle of a numpy number calls; its private module has two names, of numpy 2 and of numpy 1."""
_BOOKKEEPING_TYPES: list[Any] = [
    np.dtype,
    np.float64,
    np.float32,
    np.ndarray,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
]


def load_networks(part: Part) -> list[nn.Module]:
    """One network per fold of ``part``, in float32 on the CPU, ready for inference; their logits are to be averaged.

    Raises:
        ModelPackageError: a checkpoint that is poisoned, of another configuration, or does not fit the plans.
    """
    return [_with_weights(build_network(part), _read_checkpoint(path, part), path) for path in part.checkpoints]


def build_network(part: Part) -> nn.Module:
    """The network that the plans of ``part`` describe, with random weights."""
    design = part.architecture
    kwargs: dict[str, Any] = {
        "n_stages": len(design.features_per_stage),
        "features_per_stage": list(design.features_per_stage),
        "conv_op": nn.Conv3d,
        "kernel_sizes": [list(size) for size in design.kernel_sizes],
        "strides": [list(stride) for stride in design.strides],
        "n_conv_per_stage_decoder": list(design.convolutions_per_decoder_stage),
        "conv_bias": design.conv_bias,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": design.norm_eps, "affine": design.norm_affine},
        "dropout_op": None,
        "deep_supervision": False,
        **_nonlinearity(design),
    }
    classes = len(part.names_by_channel) + 1
    if design.network == "PlainConvUNet":
        kwargs |= {"n_conv_per_stage": list(design.blocks_per_stage), "nonlin_first": design.nonlin_first}
        return PlainConvUNet(input_channels=1, num_classes=classes, **kwargs)  # type: ignore[no-any-return]
    kwargs["n_blocks_per_stage"] = list(design.blocks_per_stage)
    return ResidualEncoderUNet(input_channels=1, num_classes=classes, **kwargs)  # type: ignore[no-any-return]


def _nonlinearity(design: Architecture) -> dict[str, Any]:
    if design.nonlin == "ReLU":
        return {"nonlin": nn.ReLU, "nonlin_kwargs": {"inplace": True}}
    return {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True, "negative_slope": design.negative_slope}}


def _read_checkpoint(path: Path, part: Part) -> dict[str, torch.Tensor]:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_BOOKKEEPING_TYPES):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # the first line names the refused type; the rest is advice to switch the check off
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "not allowed")
        raise ModelPackageError(f"{path} holds more than weights and is not loaded: {reason.strip()[:200]}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelPackageError(f"{path} is not a checkpoint: {str(error)[:200]}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ModelPackageError(f"{path} holds no network_weights")
    trained = (checkpoint.get("init_args") or {}).get("configuration", part.configuration)
    if trained != part.configuration:
        raise ModelPackageError(f"{path} was trained as {trained!r}; its folder says {part.configuration!r}")
    return {_bare(name): value for name, value in checkpoint["network_weights"].items()}


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelPackageError(f"{path} is not a torch checkpoint in zip format: {error}") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ModelPackageError(f"{path} holds compressed members; a torch checkpoint does not")
    if sum(member.file_size for member in members) > CHECKPOINT_LIMIT_BYTES:
        raise ModelPackageError(f"{path} unpacks to more than {CHECKPOINT_LIMIT_BYTES} bytes")


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _with_weights(network: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> nn.Module:
    try:
        network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except (RuntimeError, AttributeError) as error:
        raise ModelPackageError(f"{path} does not fit the network in plans.json: {str(error)[:300]}") from error
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ModelPackageError(f"{path}: {name} holds NaN or infinity")
    return network.eval().requires_grad_(requires_grad=False)
