"""Reads the weights of an nnU-Net checkpoint without executing anything in the file.

Uses ``torch.load(weights_only=True)`` with the few numpy types that nnU-Net's bookkeeping needs, accepts only zip files
with uncompressed members, and then matches names and shapes strictly with the network of the checked plans.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.errors import ModelPackageError
from inference.models.archive import ZIP_ERRORS, opened_zip
from inference.models.checks import WEIGHTS_LIMIT_BYTES
from inference.models.network import build_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.models.nnunet_folder import NnunetFolder

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to the names of weights."""
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
"""What the pickle of a numpy number calls; its private module is named differently in numpy 2 and numpy 1."""
BOOKKEEPING_TYPES: list[Any] = [
    np.dtype,
    np.float64,
    np.float32,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
]


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LAST_AXIS = 2
PARAMETER_LIMIT = 10**9
"""Most parameters of a network; TotalSegmentator's networks have 3 * 10**7."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What of a checkpoint is used.

    ``mirroring_axes``: the network's axes along which it was trained on mirrored images too
    (``inference_allowed_mirroring_axes``), ascending.
    """

    weights: dict[str, torch.Tensor]
    mirroring_axes: tuple[int, ...]


def read_checkpoint(path: Path, found: NnunetFolder) -> Checkpoint:
    """The weights that inference needs, each once, under the names of the bare network, as 32- or 16-bit floats.

    Weights used only in training (the heads of deep supervision) and nnU-Net's second names are left out.

    Raises:
        ModelPackageError: the checkpoint holds code, is of another configuration, or does not fit the plans.
    """
    _check_archive(path)
    content = _content(path, found)
    weights = {_bare(name): value for name, value in content["network_weights"].items()}
    with torch.device("meta"):  # names and shapes without memory
        network = build_network(found.architecture, len(found.names_by_channel) + 1)
    expected: dict[str, torch.Tensor] = network.state_dict()
    if sum(value.numel() for value in network.parameters()) > PARAMETER_LIMIT:
        raise ModelPackageError(f"{found.folder}: the network has more than {PARAMETER_LIMIT} parameters")
    _check_fit(weights, expected, path)
    _check_duplicates(weights, network, path)
    heads = [name for name in expected if name.startswith("decoder.seg_layers.")]
    last = heads[-1].rsplit(".", 1)[0] + "."
    kept = {name: weights[name] for name, _ in network.named_parameters() if name not in heads or name.startswith(last)}
    floats = {name: _as_float(name, value, path) for name, value in kept.items()}
    return Checkpoint(floats, _mirroring_axes(content, path))


def _mirroring_axes(content: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    given = content.get("inference_allowed_mirroring_axes")
    axes = () if given is None else given
    sound = isinstance(axes, list | tuple) and all(isinstance(axis, int) and 0 <= axis <= _LAST_AXIS for axis in axes)
    if not sound or len(set(axes)) < len(axes):
        raise ModelPackageError(f"{path}: inference_allowed_mirroring_axes {str(given)[:80]!r} are no axes of an image")
    return tuple(sorted(axes))


def _check_fit(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    foreign, missing = sorted(set(weights) - set(expected)), sorted(set(expected) - set(weights))
    if foreign or missing:
        raise ModelPackageError(
            f"{path} does not fit the network in plans.json: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(foreign)} are unknown {[name[:80] for name in foreign[:3]]}"
        )
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or value.shape != expected[name].shape:
            seen = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelPackageError(
                f"{path} does not fit the network in plans.json: {name} is {seen}, not {tuple(expected[name].shape)}"
            )
        _check_kind(name, value, path)


def _check_kind(name: str, value: torch.Tensor, path: Path) -> None:
    """Accept only plain numbers that are in the file: no sparse, meta, quantised or expanded tensor."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.dtype not in _FLOATS:
        raise ModelPackageError(
            f"{path}: {name} holds {value.dtype} on {value.device.type}, not floating-point numbers"
        )
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise ModelPackageError(f"{path}: {name} holds fewer numbers than its shape {tuple(value.shape)} requires")


def _check_duplicates(weights: Mapping[str, torch.Tensor], network: torch.nn.Module, path: Path) -> None:
    """A parameter of the network with several names must have one value."""
    first: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        kept = weights[first.setdefault(id(parameter), name)]
        if weights[name].data_ptr() != kept.data_ptr() and not torch.equal(weights[name], kept):
            raise ModelPackageError(f"{path}: {name} and {first[id(parameter)]} are one weight with different values")


def _as_float(name: str, value: torch.Tensor, path: Path) -> torch.Tensor:
    if not bool(torch.isfinite(value).all()):
        raise ModelPackageError(f"{path}: {name} holds NaN or infinity")
    return (value if value.dtype == torch.float16 else value.float()).contiguous()


def _content(path: Path, found: NnunetFolder) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(BOOKKEEPING_TYPES):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # the first line names the refused type; the rest advises switching the check off
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "not allowed")
        raise ModelPackageError(f"{path} contains more than weights, not loaded: {reason.strip()[:200]}") from error
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise ModelPackageError(f"{path} is not a checkpoint: {str(error)[:200]}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ModelPackageError(f"{path} has no network_weights")
    weights, arguments = checkpoint["network_weights"], checkpoint.get("init_args")
    if not all(isinstance(name, str) for name in weights):
        raise ModelPackageError(f"{path}: network_weights has names that are not text")
    named = arguments if isinstance(arguments, dict) else {}
    trained = named.get("configuration", found.configuration)
    if trained != found.configuration:
        raise ModelPackageError(f"{path} was trained as {trained!r}, but its folder says {found.configuration!r}")
    return checkpoint


def _check_archive(path: Path) -> None:
    try:
        with opened_zip(path) as archive:
            members = archive.infolist()
    except ZIP_ERRORS as error:
        raise ModelPackageError(f"{path} is not a torch checkpoint in zip format: {error}") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ModelPackageError(f"{path} has compressed members; a torch checkpoint has none")
    if sum(member.file_size for member in members) > WEIGHTS_LIMIT_BYTES:
        raise ModelPackageError(f"{path} unpacks to more than {WEIGHTS_LIMIT_BYTES} bytes")


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
