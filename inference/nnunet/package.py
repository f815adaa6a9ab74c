"""A model folder of nnU-Net v2 (plans.json, dataset.json, fold_*/checkpoint_final.pth), read without trusting it.

A plans.json names Python classes and sizes, so everything in it is checked here against closed lists and bounds before
any of it is used; nothing is imported by a name that a file gives.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from inference.errors import ModelPackageError, UnknownStructureError
from inference.structures import structure
from inference.types import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_N = TypeVar("_N", int, float)

JSON_LIMIT_BYTES = 1024**2
CHECKPOINT_LIMIT_BYTES = 4 * 1024**3
HIGHEST_LABEL = 255
DEFAULT_CONFIGURATION = "3d_fullres"

_NETWORKS = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "PlainConvUNet",
    "PlainConvUNet": "PlainConvUNet",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    "ResidualEncoderUNet": "ResidualEncoderUNet",
}
_BLOCKS_KEY = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
_LAYERS: dict[str, dict[str | None, str | None]] = {
    "conv_op": dict.fromkeys(("torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"), "Conv3d"),
    "norm_op": dict.fromkeys(
        ("torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"), "InstanceNorm3d"
    ),
    "dropout_op": {None: None},
    "nonlin": {
        "torch.nn.LeakyReLU": "LeakyReLU",
        "torch.nn.modules.activation.LeakyReLU": "LeakyReLU",
        "torch.nn.ReLU": "ReLU",
        "torch.nn.modules.activation.ReLU": "ReLU",
    },
}
_FREE_KEYS = {"norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs", "conv_bias", "deep_supervision", "nonlin_first"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A U-Net, every number bounded and every layer one of ours; per-stage tuples run from full resolution down."""

    network: str
    """``PlainConvUNet`` or ``ResidualEncoderUNet``."""
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    blocks_per_stage: tuple[int, ...]
    convolutions_per_decoder_stage: tuple[int, ...]
    conv_bias: bool
    norm_eps: float
    norm_affine: bool
    nonlin: str
    negative_slope: float
    nonlin_first: bool


@dataclass(frozen=True, slots=True)
class Normalisation:
    """nnU-Net's CTNormalization: clip to two percentiles of the training HU, subtract the mean, divide by the SD."""

    lowest_hu: float
    highest_hu: float
    mean_hu: float
    sd_hu: float


@dataclass(frozen=True, slots=True)
class Part:
    """One nnU-Net model; several parts may share the work of one segmenter.

    ``axes`` is nnU-Net's transpose_forward: the network's axes are the canonical (z, y, x) taken in this order;
    ``spacing_mm`` and ``patch_size`` are in the network's order. ``names_by_channel`` names the network's output
    channels (0, the background, excluded).
    """

    folder: Path
    configuration: str
    checkpoints: tuple[Path, ...]
    architecture: Architecture
    normalisation: Normalisation
    axes: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    names_by_channel: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Everything a segmenter needs to know about a model before its weights are loaded.

    ``names_by_label`` numbers the structures of the result: as in dataset.json for a single part; for several parts by
    TotalSegmentator's numbers where every name has one, else consecutively in the order of the parts.
    """

    parts: tuple[Part, ...]
    names_by_label: Mapping[int, str]
    identity: ModelIdentity


def read_package(
    folders: Sequence[Path],
    name: str,
    version: str = "1",
    intended_use: str = "Research use only - not for clinical use",
) -> ModelPackage:
    """Read and check the model in ``folders`` (its parts, in the order in which they are merged).

    Raises:
        ModelPackageError: a file missing, too large or malformed; a class, structure or number that is not allowed.
    """
    if not folders:
        raise ModelPackageError(f"model {name!r} has no folder")
    parts = tuple(_read_part(folder) for folder in folders)
    identity = ModelIdentity(name, version, _digest(parts), "nnU-Net", intended_use)
    return ModelPackage(parts, _number(parts), identity)


def _digest(parts: Sequence[Part]) -> str:
    """SHA-256 over the SHA-256 and the name of every file that shapes the result, in order."""
    total = hashlib.sha256()
    for number, part in enumerate(parts):
        for path in (part.folder / "plans.json", part.folder / "dataset.json", *part.checkpoints):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{number} {path.relative_to(part.folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def _number(parts: Sequence[Part]) -> dict[int, str]:
    if len(parts) == 1:
        return dict(parts[0].names_by_channel)
    names = list(dict.fromkeys(name for part in parts for _, name in sorted(part.names_by_channel.items())))
    known = [structure(name).total117_index for name in names]
    numbers = [number for number in known if number is not None]
    if len(numbers) < len(names):
        numbers = list(range(1, len(names) + 1))
    if max(numbers) > HIGHEST_LABEL:
        raise ModelPackageError(f"{len(names)} structures in all parts; at most {HIGHEST_LABEL} fit into one label map")
    return dict(sorted(zip(numbers, names, strict=True)))


def _read_part(folder: Path) -> Part:
    plans = _read_json(folder / "plans.json")
    dataset = _read_json(folder / "dataset.json")
    configuration = _configuration_name(folder, plans)
    settings = _configuration(plans, configuration)
    try:
        part = Part(
            folder=folder,
            configuration=configuration,
            checkpoints=_checkpoints(folder),
            architecture=_architecture(settings),
            normalisation=_normalisation(plans, settings),
            axes=_axes(plans),
            spacing_mm=_triple([_number_in(v, "spacing", 0.1, 20.0) for v in settings["spacing"]]),
            patch_size=_triple([_whole_in(v, "patch_size", 8, 512) for v in settings["patch_size"]]),
            names_by_channel=_names_by_channel(dataset),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelPackageError(f"{folder}: plans.json or dataset.json: {what}") from error
    _check_patch(part)
    return part


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > JSON_LIMIT_BYTES:
            raise ModelPackageError(f"{path} has {size} bytes; at most {JSON_LIMIT_BYTES} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelPackageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelPackageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelPackageError(f"{path} must hold an object, not a {type(content).__name__}")
    return content


def _configuration_name(folder: Path, plans: Mapping[str, Any]) -> str:
    """The trainer's folder ends with its configuration (``Trainer__nnUNetPlans__3d_fullres``)."""
    suffix = folder.name.rsplit("__", 1)[-1]
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict):
        raise ModelPackageError(f"{folder}: plans.json has no configurations")
    return suffix if suffix in configurations else DEFAULT_CONFIGURATION


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    chain: list[dict[str, Any]] = []
    wanted: object = name
    while wanted is not None:
        found = plans["configurations"].get(wanted) if isinstance(wanted, str) else None
        if not isinstance(found, dict) or len(chain) > len(plans["configurations"]):
            raise ModelPackageError(f"plans.json has no sound configuration {wanted!r}")
        chain.insert(0, found)
        wanted = found.get("inherits_from")
    merged: dict[str, Any] = {}
    for layer in chain:
        merged.update(layer)
    if merged.get("previous_stage"):
        raise ModelPackageError(f"configuration {name!r} is a cascade; only single-stage models are run")
    return merged


def _checkpoints(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(folder.glob("fold_*/checkpoint_final.pth")))
    if not found:
        raise ModelPackageError(f"{folder} holds no fold_*/checkpoint_final.pth")
    for path in found:
        if path.stat().st_size > CHECKPOINT_LIMIT_BYTES:
            raise ModelPackageError(
                f"{path} has {path.stat().st_size} bytes; at most {CHECKPOINT_LIMIT_BYTES} are read"
            )
    return found


def _architecture(settings: Mapping[str, Any]) -> Architecture:
    described = settings.get("architecture") or _architecture_of_old_plans(settings)
    name = described["network_class_name"]
    if name not in _NETWORKS:
        raise ModelPackageError(f"network class {name!r} is not allowed; allowed: {', '.join(sorted(_NETWORKS))}")
    network = _NETWORKS[name]
    given = described["arch_kwargs"]
    expected = {"n_stages", "features_per_stage", "kernel_sizes", "strides", _BLOCKS_KEY[network]}
    expected |= {"n_conv_per_stage_decoder", *_LAYERS}
    foreign = set(given) - expected - _FREE_KEYS
    if foreign:
        raise ModelPackageError(f"arch_kwargs {sorted(foreign)} are not allowed for {network}")
    layers = {kind: _layer(kind, given.get(kind)) for kind in _LAYERS}
    stages = _whole_in(given["n_stages"], "n_stages", 2, 8)
    norm = given.get("norm_op_kwargs") or {}
    nonlin = given.get("nonlin_kwargs") or {}
    return Architecture(
        network=network,
        features_per_stage=_per_stage(given["features_per_stage"], stages, "features_per_stage", 1024),
        kernel_sizes=_triples(given["kernel_sizes"], stages, "kernel_sizes", 7),
        strides=_triples(given["strides"], stages, "strides", 4),
        blocks_per_stage=_per_stage(given[_BLOCKS_KEY[network]], stages, _BLOCKS_KEY[network], 12),
        convolutions_per_decoder_stage=_per_stage(
            given["n_conv_per_stage_decoder"], stages - 1, "n_conv_per_stage_decoder", 12
        ),
        conv_bias=bool(given.get("conv_bias", False)),
        norm_eps=_number_in(norm.get("eps", 1e-5), "norm_op_kwargs.eps", 1e-12, 1e-1),
        norm_affine=bool(norm.get("affine", False)),
        nonlin=str(layers["nonlin"]),
        negative_slope=_number_in(nonlin.get("negative_slope", 0.01), "nonlin_kwargs.negative_slope", 0.0, 1.0),
        nonlin_first=bool(given.get("nonlin_first", False)),
    )


def _architecture_of_old_plans(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plans written by nnunetv2 before 2.3, as it translates them itself (plans_handler.ConfigurationManager)."""
    stages = len(settings["n_conv_per_stage_encoder"])
    base = _whole_in(settings["UNet_base_num_features"], "UNet_base_num_features", 1, 1024)
    network = _NETWORKS.get(settings["UNet_class_name"], settings["UNet_class_name"])
    return {
        "network_class_name": network,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(base * 2**k, settings["unet_max_num_features"]) for k in range(stages)],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            _BLOCKS_KEY.get(network, "n_conv_per_stage"): settings["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
        },
    }


def _layer(kind: str, name: object) -> str | None:
    allowed = _LAYERS[kind]
    if not (name is None or isinstance(name, str)) or name not in allowed:
        raise ModelPackageError(f"{kind} {name!r} is not allowed; allowed: {sorted(map(str, allowed))}")
    return allowed[name]


def _normalisation(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> Normalisation:
    schemes = settings["normalization_schemes"]
    if schemes != ["CTNormalization"]:
        raise ModelPackageError(f"normalization_schemes {schemes!r}; only one CT channel, CTNormalization, is run")
    of_channels = plans["foreground_intensity_properties_per_channel"]
    intensities = of_channels["0"]
    low, high, mean, sd = (
        _number_in(intensities[key], key, -1e5, 1e5) for key in ("percentile_00_5", "percentile_99_5", "mean", "std")
    )
    if low >= high or sd <= 0:
        raise ModelPackageError(f"CTNormalization clips to {low}..{high} HU and divides by {sd}: not sound")
    return Normalisation(low, high, mean, sd)


def _axes(plans: Mapping[str, Any]) -> tuple[int, int, int]:
    axes = plans.get("transpose_forward", [0, 1, 2])
    if sorted(axes) != [0, 1, 2]:
        raise ModelPackageError(f"transpose_forward {axes!r} is not an order of three axes")
    return axes[0], axes[1], axes[2]


def _names_by_channel(dataset: Mapping[str, Any]) -> dict[int, str]:
    labels = dataset["labels"]
    channels = dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"}
    if len(channels) != 1:
        raise ModelPackageError(f"the model wants {len(channels)} image channels; only one, CT, is given")
    if not isinstance(labels, dict) or len(labels) > HIGHEST_LABEL + 1:
        raise ModelPackageError(f"dataset.json must name 1 to {HIGHEST_LABEL} labels and the background")
    if labels.get("background") != 0:
        raise ModelPackageError(f"label 0 must be the background, not {labels.get('background')!r}")
    named = {_whole_in(label, f"label of {name}", 0, HIGHEST_LABEL): name for name, label in labels.items()}
    if sorted(named) != list(range(len(labels))) or len(named) < 2:  # noqa: PLR2004 - background and a structure
        raise ModelPackageError(f"labels must be numbered 0..{len(labels) - 1} without gap")
    del named[0]
    for name in named.values():
        try:
            structure(name)
        except UnknownStructureError as error:
            raise ModelPackageError(f"dataset.json: {error}") from None
    return dict(sorted(named.items()))


def _check_patch(part: Part) -> None:
    for axis in range(3):
        shrink = 1
        for strides in part.architecture.strides:
            shrink *= strides[axis]
        if part.patch_size[axis] % shrink:
            raise ModelPackageError(
                f"{part.folder}: patch size {part.patch_size[axis]} is not a multiple of the network's stride {shrink}"
            )


def _whole_in(value: object, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelPackageError(f"{what} must be a whole number from {low} to {high}, not {str(value)[:80]!r}")
    return value


def _number_in(value: object, what: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ModelPackageError(f"{what} must be a number from {low} to {high}, not {str(value)[:80]!r}")
    return float(value)


def _triple(values: Sequence[_N]) -> tuple[_N, _N, _N]:
    if len(values) != 3:  # noqa: PLR2004 - z, y, x
        raise ModelPackageError(f"{list(values)!r} must be three numbers: only 3D networks are run")
    return values[0], values[1], values[2]


def _per_stage(values: object, stages: int, what: str, high: int) -> tuple[int, ...]:
    given = [values] * stages if isinstance(values, int) else values
    if not isinstance(given, list) or len(given) != stages:
        raise ModelPackageError(f"{what} must be {stages} numbers, not {str(values)[:80]!r}")
    return tuple(_whole_in(value, what, 1, high) for value in given)


def _triples(values: object, stages: int, what: str, high: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(values, list) or len(values) != stages:
        raise ModelPackageError(f"{what} must be one entry for each of {stages} stages, not {str(values)[:80]!r}")
    rows = [[value] * 3 if isinstance(value, int) else value for value in values]
    return tuple(_triple([_whole_in(v, what, 1, high) for v in row]) for row in rows)
