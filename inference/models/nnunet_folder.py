"""Reads an untrusted model folder of nnU-Net v2 (plans.json, dataset.json, fold_*/checkpoint_final.pth).

A plans.json names Python classes and sizes, so everything in it is checked against closed lists and bounds before use.
Nothing is ever imported by a name from a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.errors import ModelPackageError
from inference.models import checks
from inference.models.architecture import read_architecture
from inference.models.orientation import READERS
from inference.models.package import PATCH_BOUNDS, SPACING_BOUNDS_MM, read_normalisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from inference.models.architecture import Architecture
    from inference.models.package import Normalisation

DEFAULT_CONFIGURATION = "3d_fullres"
_RESAMPLING = "resample_data_or_seg_to_shape"
CHECKPOINT_NAME = "checkpoint_final.pth"

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
_DEFAULT_CLASSES = {"preprocessor_name": "DefaultPreprocessor", "label_manager": "LabelManager"}
_IGNORE = "ignore"
"""nnU-Net's name for voxels without annotation; it is the highest number, and no output of the network."""
_FREE_KEYS = {"norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs", "conv_bias", "deep_supervision", "nonlin_first"}


@dataclass(frozen=True, slots=True)
class NnunetFolder:
    """One trained nnU-Net model in its folder, checked except for the contents of its checkpoints.

    For ``axes``, ``spacing_mm``, ``patch_size`` and ``names_by_channel`` see :class:`inference.models.package.Part`.
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
    resampled_by_default: bool
    """Whether the plans ask for nnU-Net's default resampling, the only one that ``nnunet`` resampling supports."""
    reader: str | None
    """What read the training files; tells their orientation, see :mod:`inference.models.orientation`."""
    warnings: tuple[str, ...]
    """What is odd about the model, in sentences for the person who installs it."""


def read_nnunet_folder(folder: Path, folds: Sequence[str] | None = None) -> NnunetFolder:
    """Read and check the model in ``folder``, with the given folds (``0``, ``all``, …) or all folds in the folder.

    Raises:
        ModelPackageError: a file is missing, too large or malformed; a class, structure or number is not allowed.
    """
    plans = checks.read_json(folder / "plans.json")
    dataset = checks.read_json(folder / "dataset.json")
    configuration = _configuration_name(folder, plans)
    settings = _configuration(plans, configuration)
    try:
        found = NnunetFolder(
            folder=folder,
            configuration=configuration,
            checkpoints=_checkpoints(folder, folds),
            architecture=_architecture(settings),
            normalisation=_normalisation(plans, settings),
            axes=checks.axis_order(plans.get("transpose_forward", [0, 1, 2])),
            spacing_mm=checks.numbers(settings["spacing"], "spacing", *SPACING_BOUNDS_MM),
            patch_size=checks.whole_numbers(settings["patch_size"], "patch_size", *PATCH_BOUNDS),
            names_by_channel=read_labels(dataset),
            resampled_by_default=_resampled_by_default(settings),
            reader=_reader(plans, dataset),
            warnings=tuple(_warnings(folder, dataset)),
        )
        _check_classes(plans, settings)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = (
            f"{error.args[0]!r} is missing"
            if isinstance(error, KeyError)
            else f"an entry is not of the expected form ({error})"
        )
        raise ModelPackageError(f"{folder}: plans.json or dataset.json: {what}") from error
    checks.patch_of_network(found.patch_size, found.architecture.strides, str(folder))
    return found


def check_plans(plans: Mapping[str, Any], configuration: str) -> None:
    """Check that plans.json names only nnU-Net's own classes, before nnU-Net imports them by these names.

    Raises:
        ModelPackageError: a class or number is not allowed.
    """
    settings = _configuration(plans, configuration)
    try:
        _architecture(settings)
        _normalisation(plans, settings)
        _check_classes(plans, settings)
        if _reader(plans, {}) not in READERS:
            raise ModelPackageError(f"image_reader_writer {str(_reader(plans, {}))[:80]!r} is not one of nnU-Net's")
        if not _resampled_by_default(settings):
            raise ModelPackageError("plans.json requires a resampling other than nnU-Net's default")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelPackageError(f"an entry is missing or not of the expected form ({error})") from error


def _configuration_name(folder: Path, plans: Mapping[str, Any]) -> str:
    """The name of the trainer's folder ends with the configuration (``Trainer__nnUNetPlans__3d_fullres``)."""
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
            raise ModelPackageError(f"plans.json has no valid configuration {wanted!r}")
        chain.insert(0, found)
        wanted = found.get("inherits_from")
    merged: dict[str, Any] = {}
    for layer in chain:
        merged.update(layer)
    if merged.get("previous_stage"):
        raise ModelPackageError(f"configuration {name!r} is a cascade; only single-stage models are supported")
    return merged


def _checkpoints(folder: Path, folds: Sequence[str] | None) -> tuple[Path, ...]:
    if folds is None:
        found = tuple(sorted(folder.glob(f"fold_*/{CHECKPOINT_NAME}")))
    else:
        found = tuple(folder / f"fold_{checks.name(fold, 'fold')}" / CHECKPOINT_NAME for fold in folds)
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        wanted = ", ".join(str(path.relative_to(folder)) for path in missing) or f"fold_*/{CHECKPOINT_NAME}"
        raise ModelPackageError(f"{folder} has no {wanted}")
    for path in found:
        size = path.stat().st_size
        if size > checks.WEIGHTS_LIMIT_BYTES:
            raise ModelPackageError(f"{path} has {size} bytes; at most {checks.WEIGHTS_LIMIT_BYTES} are allowed")
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
    stages = checks.whole_in(given["n_stages"], "n_stages", 2, 8)
    norm, nonlin = given.get("norm_op_kwargs") or {}, given.get("nonlin_kwargs") or {}
    return read_architecture(
        {
            "network": network,
            "features_per_stage": list(
                checks.per_stage(given["features_per_stage"], stages, "features_per_stage", 1024)
            ),
            "kernel_sizes": given["kernel_sizes"],
            "strides": given["strides"],
            "blocks_per_stage": given[_BLOCKS_KEY[network]],
            "convolutions_per_decoder_stage": given["n_conv_per_stage_decoder"],
            "conv_bias": bool(given.get("conv_bias", False)),
            "norm_eps": norm.get("eps", 1e-5),
            "norm_affine": bool(norm.get("affine", False)),
            "nonlin": layers["nonlin"],
            "negative_slope": nonlin.get("negative_slope", 0.01),
            "nonlin_first": bool(given.get("nonlin_first", False)),
        }
    )


def _architecture_of_old_plans(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate plans written by nnunetv2 before 2.3, as nnunetv2 does (plans_handler.ConfigurationManager)."""
    stages = checks.whole_in(len(settings["n_conv_per_stage_encoder"]), "number of stages", 2, 8)
    base = checks.whole_in(settings["UNet_base_num_features"], "UNet_base_num_features", 1, 1024)
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
    if kind == "dropout_op" and isinstance(name, str):
        raise ModelPackageError(f"dropout_op {name[:80]!r}: networks with dropout layers are not supported")
    if not (name is None or isinstance(name, str)) or name not in allowed:
        raise ModelPackageError(f"{kind} {name!r} is not allowed; allowed: {sorted(map(str, allowed))}")
    return allowed[name]


def _check_classes(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """What nnU-Net does around the network is done here again, so it must be what nnU-Net does by default."""
    for key, seen in (
        ("preprocessor_name", settings.get("preprocessor_name")),
        ("label_manager", plans.get("label_manager")),
    ):
        expected = _DEFAULT_CLASSES[key]
        if seen not in (None, expected):
            raise ModelPackageError(f"{key} {str(seen)[:80]!r} is not supported, expected {expected}")


def _reader(plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> str | None:
    """The class that plans.json names; where it does not, the one that dataset.json asks for (``"None"``: none)."""
    reader = plans.get("image_reader_writer") or dataset.get("overwrite_image_reader_writer")
    return None if reader in (None, "None") else checks.text(reader, "image_reader_writer")


def _channels(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    return dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"}


def _warnings(folder: Path, dataset: Mapping[str, Any]) -> Iterator[str]:
    (channel,) = _channels(dataset).values()
    if str(channel).upper() != "CT":
        yield (
            f"{folder.name}: dataset.json calls the image channel {str(channel)[:80]!r}, but plans.json normalises it "
            "as CT (CTNormalization). The node hands the model Hounsfield units"
        )


def _normalisation(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> Normalisation:
    schemes = settings["normalization_schemes"]
    if schemes != ["CTNormalization"]:
        raise ModelPackageError(f"normalization_schemes {schemes!r}: only one CTNormalization channel is supported")
    of_channels = plans["foreground_intensity_properties_per_channel"]
    intensities = of_channels["0"]
    keys = ("percentile_00_5", "percentile_99_5", "mean", "std")
    names = ("lowest_hu", "highest_hu", "mean_hu", "sd_hu")
    return read_normalisation({name: intensities[key] for name, key in zip(names, keys, strict=True)})


def _resampled_by_default(settings: Mapping[str, Any]) -> bool:
    """Cubic for the image, linear for the logits, nearest neighbour across planes if the spacing calls for it."""
    for what, order in (("data", 3), ("probabilities", 1)):
        default = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        given = settings.get(f"resampling_fn_{what}_kwargs", default)
        if settings.get(f"resampling_fn_{what}", _RESAMPLING) != _RESAMPLING or given != default:
            return False
    return True


def read_labels(dataset: Mapping[str, Any]) -> dict[int, str]:
    """The structures in the labels of dataset.json, without the background.

    Raises:
        ModelPackageError: more than one image channel, unknown structures, or labels that overlap or have gaps.
    """
    labels, channels = dataset["labels"], _channels(dataset)
    if len(channels) != 1:
        raise ModelPackageError(f"the model needs {len(channels)} image channels; only one (CT) is supported")
    if not isinstance(labels, dict) or len(labels) > checks.HIGHEST_LABEL + 1:
        raise ModelPackageError(f"dataset.json must name 1 to {checks.HIGHEST_LABEL} labels and the background")
    regions = [f"{region} ({members})" for region, members in labels.items() if isinstance(members, list)]
    if regions or dataset.get("regions_class_order"):
        said = ", ".join(regions)[:200] or "regions_class_order"
        raise ModelPackageError(
            f"dataset.json describes regions that overlap: {said}; only mutually exclusive labels are supported"
        )
    if _IGNORE in labels:
        labels = _without_ignore(labels)
    if labels.get("background") != 0:
        raise ModelPackageError(f"label 0 must be the background, not {labels.get('background')!r}")
    named = {
        checks.whole_in(label, f"label of {name}", 0, checks.HIGHEST_LABEL): name for name, label in labels.items()
    }
    if sorted(named) != list(range(len(labels))) or len(named) < 2:  # noqa: PLR2004 - background and a structure
        raise ModelPackageError(f"labels must be numbered 0..{len(labels) - 1} without gaps")
    del named[0]
    checks.known_structures(named.values(), "dataset.json")
    return dict(sorted(named.items()))


def _without_ignore(labels: Mapping[str, Any]) -> dict[str, Any]:
    """The labels that the network gives; nnU-Net demands that ``ignore`` has the number after them."""
    given = {name: label for name, label in labels.items() if name != _IGNORE}
    if labels[_IGNORE] != len(given):
        raise ModelPackageError(
            f"the label to ignore is {str(labels[_IGNORE])[:80]!r}; it must be the highest, {len(given)}, as in nnU-Net"
        )
    return given
