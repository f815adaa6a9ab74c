"""The inputs of both programs of ``benchmarks/engine.py``: a routine CT, a phantom, and nnU-Net model folders.

The weights of the large models are random, because the time does not depend on what was learned and no licensed weights
are needed then. Patch sizes, spacings and feature counts are those of TotalSegmentator's published models.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import pad

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.demo.phantom_series import write_phantom
from inference.models.install import Stated, install
from inference.models.network import build_network
from inference.models.package import read_package
from inference.models.weights import head_name
from inference.types import Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROUTINE_SHAPE_ZYX = (280, 512, 512)
DEMO_MODEL = Path(__file__).parents[1] / "config" / "models" / "phantom_demo_104"
CONFIGURATION = "3d_fullres"
INTENSITIES = {
    "max": 3071.0,
    "mean": -50.0,
    "median": -50.0,
    "min": -1024.0,
    "percentile_00_5": -1004.0,
    "percentile_99_5": 1588.0,
    "std": 500.0,
}
"""Of the HU of a whole body, for normalisation; under the names of nnU-Net's plans."""
MEDIAN_SHAPE_ZYX = (300, 250, 250)
NEVER = -100.0
"""A logit below all others."""
PARTS = {
    291: ("part1_organs_1559subj", "class_map_part_organs"),
    292: ("part2_vertebrae_1532subj", "class_map_part_vertebrae"),
    293: ("part3_cardiac_1559subj", "class_map_part_cardiac"),
    294: ("part4_muscles_1559subj", "class_map_part_muscles"),
    295: ("part5_ribs_1559subj", "class_map_part_ribs"),
}
FAST = "Dataset297_TotalSegmentator_total_3mm_1559subj"
TRAINER_OF_PARTS, TRAINER_OF_FAST = "nnUNetTrainerNoMirroring", "nnUNetTrainer_4000epochs_NoMirroring"


def routine_ct(source: Path, shape_zyx: tuple[int, int, int]) -> sitk.Image:
    """``source`` as from a scanner: square pixels over its widest side, thin planes, some noise."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(source), sitk.sitkFloat32), "LPS")
    spacing, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    extent = spacing * size
    planes, rows, columns = shape_zyx
    new_size = np.array([columns, rows, planes])
    new_extent = np.array([extent[:2].max(), extent[:2].max(), extent[2]])
    new_spacing = new_extent / new_size
    axes = np.array(image.GetDirection()).reshape(3, 3)
    centre = np.array(image.GetOrigin()) + axes @ (spacing * (size - 1) / 2)
    resampled = sitk.Resample(
        image,
        new_size.tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        (centre - axes @ (new_spacing * (new_size - 1) / 2)).tolist(),
        new_spacing.tolist(),
        image.GetDirection(),
        -1000.0,
        sitk.sitkFloat32,
    )
    hu = sitk.GetArrayFromImage(resampled)
    hu += np.random.default_rng(0).normal(0.0, 12.0, hu.shape).astype(np.float32) * (hu > -990)
    result = sitk.GetImageFromArray(np.clip(np.rint(hu), -1024, 3071).astype(np.int16))
    result.CopyInformation(resampled)
    return result


def write_ct(source: Path, folder: Path, shape_zyx: tuple[int, int, int]) -> None:
    """Write ``ct.nii.gz``, and the same voxels as a DICOM series in ``dicom/``."""
    image = routine_ct(source, shape_zyx)
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine_lps[:3, 3] = image.GetOrigin()
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    volume = Volume(sitk.GetArrayFromImage(image), Geometry(shape_zyx, affine_lps))
    write_ct_series(volume, folder / "dicom", SyntheticPatient(seed=0, age_years=60, sex="O"))


def plans(spacing_mm: float, patch: tuple[int, int, int], features: Sequence[int]) -> dict[str, Any]:
    """nnU-Net's plans.json of a PlainConvUNet on isotropic CT, with two convolutions in every stage."""
    stages = len(features)
    resampling = "resample_data_or_seg_to_shape"

    def orders(is_seg: bool, order: int) -> dict[str, Any]:
        return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}

    return {
        "dataset_name": "",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [spacing_mm] * 3,
        "original_median_shape_after_transp": list(MEDIAN_SHAPE_ZYX),
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 1,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [float(n) for n in MEDIAN_SHAPE_ZYX],
                "spacing": [spacing_mm] * 3,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": resampling,
                "resampling_fn_seg": resampling,
                "resampling_fn_data_kwargs": orders(is_seg=False, order=3),
                "resampling_fn_seg_kwargs": orders(is_seg=True, order=1),
                "resampling_fn_probabilities": resampling,
                "resampling_fn_probabilities_kwargs": orders(is_seg=False, order=1),
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        "n_conv_per_stage": [2] * stages,
                        "n_conv_per_stage_decoder": [2] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict(INTENSITIES)},
    }


def write_random_model(
    results: Path, dataset: str, trainer: str, names: Sequence[str], described: dict[str, Any]
) -> None:
    """Write an nnU-Net model folder with weights as initialised for a training."""
    kwargs = dict(described["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"])
    kwargs |= {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    torch.manual_seed(0)
    network = PlainConvUNet(input_channels=1, num_classes=len(names) + 1, deep_supervision=False, **kwargs)
    network.apply(network.initialize)
    write_model(results, dataset, trainer, names, {**described, "dataset_name": dataset}, network.state_dict())


def write_demo_model(results: Path, names: Sequence[str]) -> None:
    """Write the shipped demo model to the place of TotalSegmentator's 3 mm model, with that model's spacing and names.

    The network is the trained one; at 3 mm and under other names its labels are meaningless, which does not matter
    here. Names without a class get one to which no voxel is assigned.
    """
    (part,) = read_package(DEMO_MODEL).parts
    weights = load_file(part.weights[0])
    head = head_name(part.architecture)
    missing = len(names) - len(part.names_by_channel)
    weights[f"{head}.weight"] = pad(weights[f"{head}.weight"], (0, 0) * 4 + (0, missing))
    weights[f"{head}.bias"] = pad(weights[f"{head}.bias"], (0, missing), value=NEVER)
    network = build_network(part.architecture, len(names) + 1)
    network.load_state_dict(weights, strict=False)  # some parts have two names; keep one
    described = plans(3.0, part.patch_size, part.architecture.features_per_stage)
    limits = part.normalisation
    described["foreground_intensity_properties_per_channel"]["0"] = {
        "mean": limits.mean_hu,
        "std": limits.sd_hu,
        "percentile_00_5": limits.lowest_hu,
        "percentile_99_5": limits.highest_hu,
    }
    convolutions = {
        "n_conv_per_stage": list(part.architecture.blocks_per_stage),
        "n_conv_per_stage_decoder": list(part.architecture.convolutions_per_decoder_stage),
    }
    described["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"] |= convolutions
    write_model(results, FAST, TRAINER_OF_FAST, names, {**described, "dataset_name": FAST}, network.state_dict())


def write_model(
    results: Path,
    dataset: str,
    trainer: str,
    names: Sequence[str],
    described: dict[str, Any],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Write plans.json, dataset.json and fold 0 in nnU-Net's layout; a finished folder is left unchanged."""
    folder = results / dataset / f"{trainer}__nnUNetPlans__{CONFIGURATION}"
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    if checkpoint.exists():
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(described, indent=1))
    description = {
        "name": dataset,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: index + 1 for index, name in enumerate(names)}},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    content = {
        "network_weights": {name: value.float() for name, value in weights.items()},
        "trainer_name": trainer,
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": None,
        "current_epoch": 1,
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    partial.rename(checkpoint)


def write_models(home: Path, labels: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Write models to TotalSegmentator's home folder: ``3mm``, ``1.5mm`` (five parts) or ``demo``."""
    results = home / "nnunet" / "results"
    total = list(labels["total"])
    five_stages, six_stages = (32, 64, 128, 256, 320), (32, 64, 128, 256, 320, 320)
    if "3mm" in kinds:
        write_random_model(results, FAST, TRAINER_OF_FAST, total, plans(3.0, (112, 112, 128), five_stages))
    if "1.5mm" in kinds:
        for number, (name, part) in PARTS.items():
            dataset = f"Dataset{number}_TotalSegmentator_{name}"
            described = plans(1.5, (128, 128, 128), six_stages)
            write_random_model(results, dataset, TRAINER_OF_PARTS, labels["parts"][part], described)
    if "demo" in kinds:
        write_demo_model(results, total)
    config = {"totalseg_id": "benchmark", "send_usage_stats": False, "prediction_counter": 0}
    (home / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    ct = steps.add_parser("ct")
    ct.add_argument("--source", type=Path, required=True)
    ct.add_argument("--out", type=Path, required=True)
    ct.add_argument("--shape", type=int, nargs=3, default=ROUTINE_SHAPE_ZYX, metavar=("Z", "Y", "X"))
    body = steps.add_parser("phantom")
    body.add_argument("--out", type=Path, required=True)
    models = steps.add_parser("models")
    models.add_argument("--home", type=Path, required=True)
    models.add_argument("--labels", type=Path, required=True)
    models.add_argument("kinds", nargs="+", choices=["3mm", "1.5mm", "demo"])
    package = steps.add_parser("package")
    package.add_argument("--home", type=Path, required=True)
    package.add_argument("--task", required=True)
    package.add_argument("--name", required=True)
    package.add_argument("--library", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.step == "ct":
        write_ct(arguments.source, arguments.out, tuple(arguments.shape))
    elif arguments.step == "phantom":
        write_phantom(1, arguments.out, (1.5, 1.5, 3.0), "trunk", "dicom")
    elif arguments.step == "package":
        stated = Stated(name=arguments.name, task=arguments.task)
        results = str(arguments.home / "nnunet" / "results")
        install([results], arguments.library, stated, lambda _stage, _done, _all: None)
    else:
        write_models(arguments.home, json.loads(arguments.labels.read_text()), arguments.kinds)


if __name__ == "__main__":
    main()
