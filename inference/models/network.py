"""Builds the network of an :class:`~inference.models.architecture.Architecture` with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

if TYPE_CHECKING:
    from inference.models.architecture import Architecture


def build_network(architecture: Architecture, classes: int) -> nn.Module:
    """The network that ``architecture`` describes, with random weights and ``classes`` output channels."""
    design = architecture
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
    if design.network == "PlainConvUNet":
        kwargs |= {"n_conv_per_stage": list(design.blocks_per_stage), "nonlin_first": design.nonlin_first}
        return PlainConvUNet(input_channels=1, num_classes=classes, **kwargs)  # type: ignore[no-any-return]
    kwargs["n_blocks_per_stage"] = list(design.blocks_per_stage)
    return ResidualEncoderUNet(input_channels=1, num_classes=classes, **kwargs)  # type: ignore[no-any-return]


def _nonlinearity(design: Architecture) -> dict[str, Any]:
    if design.nonlin == "ReLU":
        return {"nonlin": nn.ReLU, "nonlin_kwargs": {"inplace": True}}
    return {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True, "negative_slope": design.negative_slope}}
