"""Small nnU-Net v2 model folders with random weights, and packages installed from them.

The folders are not written by the writer in :mod:`inference.training`, so that the reader is not tested against
mistakes shared by both.
"""

import json

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from inference.models.install import Facts, install_folders

_LAYERS = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
}
CUBIC, LINEAR, LABELS = (
    {"is_seg": labels, "order": order, "order_z": 0, "force_separate_z": None}
    for order, labels in ((3, False), (1, False), (1, True))
)


def plans(patch=(32, 32, 32), spacing=(4.0, 4.0, 4.0), features=(4, 8), network="PlainConvUNet", axes=(0, 1, 2)):
    """A complete plans.json, as read by nnU-Net's own PlansManager."""
    stages = len(features)
    blocks = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "label_manager": "LabelManager",
        "dataset_name": "Dataset900_test",
        "transpose_forward": list(axes),
        "transpose_backward": [axes.index(axis) for axis in range(3)],
        "configurations": {
            "3d_fullres": {
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": list(patch),
                "spacing": list(spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": CUBIC,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": LABELS,
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": LINEAR,
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        blocks: [1] * stages,
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        **_LAYERS,
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 20.0, "std": 300.0, "percentile_00_5": -900.0, "percentile_99_5": 1100.0}
        },
    }


def random_network(described, classes, seed=0):
    kwargs = dict(described["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"])
    kwargs |= {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU, "deep_supervision": False}
    kind = PlainConvUNet if "n_conv_per_stage" in kwargs else ResidualEncoderUNet
    torch.manual_seed(seed)
    network = kind(input_channels=1, num_classes=classes, **kwargs)
    for module in network.modules():  # wide enough for a random network to give every label somewhere
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=(2.0 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    return network.eval()


def write_model(
    folder,
    names=("liver", "spleen", "aorta"),
    described=None,
    folds=(0,),
    checkpoint=None,
    prefix="",
    more_labels=None,
):
    """Write a model folder of random weights; returns it.

    ``checkpoint`` adds or replaces entries. ``more_labels`` are in dataset.json, but not in the network's output.
    """
    described = described or plans()
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(described))
    labels = {"background": 0, **{name: k + 1 for k, name in enumerate(names)}}
    every = {**labels, **(more_labels or {})}
    dataset = {"channel_names": {"0": "CT"}, "labels": every, "file_ending": ".nii.gz", "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in folds:
        network = random_network(described, len(labels), seed=fold if isinstance(fold, int) else 0)
        content = {
            "network_weights": {prefix + key: value for key, value in network.state_dict().items()},
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": None,
            **(checkpoint or {}),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def scale_weights(model, layer, factor):
    """Multiply the weights of a layer by ``factor`` in the checkpoint of a model folder, under all of its names.

    ``layer`` is ``first`` or ``last``; an instance norm after the first one removes any factor that the
    arithmetic can represent.
    """
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    names = {
        "first": ("encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight"),
        "last": ("decoder.seg_layers.0.weight",),
    }[layer]
    for key, value in content["network_weights"].items():
        if key.removeprefix("decoder.") in names or key in names:
            content["network_weights"][key] = value * factor
    torch.save(content, path)
    return model


def write_package(library, *models, name="test", **facts):
    """Install model folders written by :func:`write_model` into the folder ``library``; returns the package.

    Resampling is TotalSegmentator's unless ``resampling`` says otherwise, and any volume is large enough.
    """
    facts = {"resampling": "corners", "minimum_slices": 1, "minimum_extent_mm": 0.0, **facts}
    return install_folders(models, library, Facts(name=name, source="tests", **facts))


def random_package(folder, name="test", **model):
    """A package of one random model, see :func:`write_model` for the options."""
    return write_package(folder / "library", write_model(folder / "nnunet", **model), name=name)
