"""An installed model: a folder with ``manifest.json`` and safetensors, the only form in which the node loads weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.types import ModelIdentity

Resampling = Literal["corners", "nnunet"]
"""How HU come to the network's grid and labels back.

``corners``: as TotalSegmentator does before nnU-Net sees the volume, linear, the outermost voxel centres kept.
``nnunet``: as nnU-Net's own preprocessing does (cubic, voxel borders kept, planes apart where they are thick).
"""


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
    channels (0, the background, excluded). ``weights`` holds one safetensors file per fold; the folds are averaged.
    """

    name: str
    weights: tuple[Path, ...]
    architecture: Architecture
    normalisation: Normalisation
    axes: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    names_by_channel: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Crop:
    """The model works only inside the bounding box of structures that another package finds first, with a margin.

    ``margin_xyz_mm`` is along the patient's axes, as TotalSegmentator's ``crop_addon``.
    """

    model: str
    structures: tuple[str, ...]
    margin_xyz_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Everything a segmenter needs to know about a model before its weights are loaded.

    ``names_by_label`` numbers the structures of the result. ``window_step`` is the part of a window by which the next
    one is shifted (nnU-Net: 0.5; TotalSegmentator's ``total``: 0.8).
    """

    folder: Path
    identity: ModelIdentity
    parts: tuple[Part, ...]
    names_by_label: Mapping[int, str]
    resampling: Resampling
    window_step: float
    crop: Crop | None
    minimum_slices: int
    minimum_extent_mm: float
    licence: str
    source: str
