"""The design of a U-Net as data: bounded numbers and known layer names, never a class or a path."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from inference.errors import ModelPackageError
from inference.models import checks


@dataclass(frozen=True, slots=True)
class Architecture:
    """A U-Net with bounded numbers and known layers only; per-stage tuples start at full resolution."""

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


def architecture_entry(architecture: Architecture) -> dict[str, Any]:
    """The manifest entry of an architecture."""
    return cast("dict[str, Any]", json.loads(json.dumps(asdict(architecture))))


def read_architecture(content: object) -> Architecture:
    """Read an architecture from its manifest entry.

    Raises:
        ModelPackageError: an unknown layer, or a number out of bounds.
    """
    given = checks.closed(content, "architecture", [field.name for field in fields(Architecture)])
    stages = len(checks.listed(given["features_per_stage"], "features_per_stage", 8))
    checks.whole_in(stages, "number of stages", 2, 8)
    kernel_sizes = checks.triples(given["kernel_sizes"], stages, "kernel_sizes", 7)
    strides = checks.triples(given["strides"], stages, "strides", 4)
    if any(size % 2 == 0 for kernel in kernel_sizes for size in kernel):
        raise ModelPackageError(f"kernel_sizes {list(map(list, kernel_sizes))} must be odd: even ones shift the image")
    if max(strides[0]) > 1:
        raise ModelPackageError(f"strides begin with {list(strides[0])}: the first stage must keep the resolution")
    return Architecture(
        network=checks.one_of(given["network"], "network", ("PlainConvUNet", "ResidualEncoderUNet")),
        features_per_stage=checks.per_stage(given["features_per_stage"], stages, "features_per_stage", 1024),
        kernel_sizes=kernel_sizes,
        strides=strides,
        blocks_per_stage=checks.per_stage(given["blocks_per_stage"], stages, "blocks_per_stage", 12),
        convolutions_per_decoder_stage=checks.per_stage(
            given["convolutions_per_decoder_stage"], stages - 1, "convolutions_per_decoder_stage", 12
        ),
        conv_bias=checks.truth(given["conv_bias"], "conv_bias"),
        norm_eps=checks.number_in(given["norm_eps"], "norm_eps", 1e-12, 1e-1),
        norm_affine=checks.truth(given["norm_affine"], "norm_affine"),
        nonlin=checks.one_of(given["nonlin"], "nonlin", ("LeakyReLU", "ReLU")),
        negative_slope=checks.number_in(given["negative_slope"], "negative_slope", 0.0, 1.0),
        nonlin_first=checks.truth(given["nonlin_first"], "nonlin_first"),
    )
