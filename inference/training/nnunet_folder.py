"""Writes a model folder in the format of nnU-Net v2 (plans.json, dataset.json, checkpoint_final.pth)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIGURATION = "3d_fullres"


@dataclass(frozen=True, slots=True)
class Intensities:
    """Foreground attenuation of the training cases, the constants of nnU-Net's CTNormalization."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float

    def as_plans(self) -> dict[str, float]:
        """The values under nnU-Net's names."""
        return {
            "max": self.max,
            "mean": self.mean,
            "median": self.median,
            "min": self.min,
            "percentile_00_5": self.percentile_00_5,
            "percentile_99_5": self.percentile_99_5,
            "std": self.std,
        }


@dataclass(frozen=True, slots=True)
class Design:
    """The design of a network; all lists start at full resolution, all triples are z, y, x."""

    spacing_mm: float
    patch_size_zyx: tuple[int, int, int]
    features_per_stage: tuple[int, ...]
    convolutions_per_stage: tuple[int, ...]

    def architecture(self) -> dict[str, Any]:
        """The ``architecture`` entry of plans.json."""
        stages = len(self.features_per_stage)
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(self.features_per_stage),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_conv_per_stage": list(self.convolutions_per_stage),
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }


def plans(
    name: str, design: Design, intensities: Intensities, median_shape_zyx: tuple[int, int, int]
) -> dict[str, Any]:
    """The contents of plans.json; resampling entries are nnU-Net's defaults."""
    resampling = "resample_data_or_seg_to_shape"
    spacing = [design.spacing_mm] * 3
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": list(median_shape_zyx),
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 1,
                "patch_size": list(design.patch_size_zyx),
                "median_image_size_in_voxels": [float(n) for n in median_shape_zyx],
                "spacing": spacing,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": resampling,
                "resampling_fn_seg": resampling,
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                "resampling_fn_probabilities": resampling,
                "resampling_fn_probabilities_kwargs": {
                    "is_seg": False,
                    "order": 1,
                    "order_z": 0,
                    "force_separate_z": None,
                },
                "architecture": design.architecture(),
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities.as_plans()},
    }


def dataset(name: str, names_by_label: Mapping[int, str], case_count: int, description: str) -> dict[str, Any]:
    """The contents of dataset.json."""
    return {
        "name": name,
        "description": description,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{structure: label for label, structure in sorted(names_by_label.items())}},
        "numTraining": case_count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }


def write_folder(
    folder: Path,
    plans_json: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    trainer_name: str,
    steps: int,
) -> None:
    """Write a model folder; weights are stored as 16-bit floats, which halves the file and costs no accuracy."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans_json, indent=2) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset_json, indent=2) + "\n")
    torch.save(
        {
            "network_weights": _half_precision(weights),
            "trainer_name": trainer_name,
            "init_args": {"configuration": CONFIGURATION},
            "inference_allowed_mirroring_axes": None,
            "current_epoch": steps,
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )


def _half_precision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """16-bit copies; a tensor with several names (nnU-Net's modules name most of them twice) is stored once."""
    kept: dict[tuple[torch.Size, bytes], torch.Tensor] = {}
    halves = {}
    for key, value in weights.items():
        half = value.detach().cpu().half().contiguous()
        halves[key] = kept.setdefault((half.shape, half.numpy().tobytes()), half)
    return halves
