"""nnU-Net's and TotalSegmentator's pipelines, built from the libraries they use: nibabel, scipy and nnU-Net itself."""

import json
import sys
from copy import deepcopy
from functools import cache
from types import ModuleType, SimpleNamespace

import nibabel
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from scipy import ndimage


@cache
def predictor_class():
    """nnU-Net's predictor, without torchvision, which its module imports through an unused preprocessor."""
    if "torchvision" not in sys.modules:
        sys.modules["torchvision"] = ModuleType("torchvision")
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415 - see above

    return nnUNetPredictor


def half_logits(image_zyx, networks, classes, patch, step):
    """nnU-Net's sliding window for each fold and the mean of the folds, in half precision."""
    predictor = predictor_class()(
        tile_step_size=step, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.configuration_manager = SimpleNamespace(patch_size=list(patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    predictor.network = deepcopy(networks[0])  # its weights are overwritten with those of each fold
    predictor.list_of_parameters = [network.state_dict() for network in networks]
    return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image_zyx)[None])


def nnunet(volume, model, networks, folder, *, configuration="3d_fullres", orientation="LPS", mirroring_axes=None):
    """Labels [z, y, x] on the grid of ``volume``, by nnU-Net's reader, preprocessing, predictor, export and writer.

    ``model`` is the folder with plans.json and dataset.json, ``networks`` are its folds. The CT is written to
    ``folder`` as a NIfTI file in that ``orientation``, like the model's training files.
    """
    affine = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine_lps
    image = nibabel.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0), affine)
    nibabel.save(_in_orientation(image, nibabel.orientations.axcodes2ornt(orientation)), folder / "ct.nii.gz")
    predictor = predictor_class()(
        use_mirroring=mirroring_axes is not None,
        device=torch.device("cpu"),
        allow_tqdm=False,
        perform_everything_on_device=False,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: PLC0415 - imports torchvision, too

    manager = PlansManager(str(model / "plans.json"))
    predictor.manual_initialization(
        deepcopy(networks[0]),
        manager,
        manager.get_configuration(configuration),
        [deepcopy(network.state_dict()) for network in networks],
        json.loads((model / "dataset.json").read_text()),
        "nnUNetTrainer",
        mirroring_axes,
    )
    reader = manager.image_reader_writer_class()
    hu, properties = reader.read_images([str(folder / "ct.nii.gz")])
    reader.write_seg(predictor.predict_single_npy_array(hu, properties), str(folder / "labels.nii.gz"), properties)
    back = _in_orientation(nibabel.load(folder / "labels.nii.gz"), nibabel.io_orientation(affine))
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    return np.asarray(back.dataobj, np.uint8).transpose(2, 1, 0)


def _in_orientation(image, wanted):
    return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))


def change_spacing(hu_zyx, zoom_zyx):
    """TotalSegmentator's change_spacing: [x, y, z] in double precision, linear, then int32."""
    xyz = ndimage.zoom(hu_zyx.transpose(2, 1, 0).astype(np.float64), zoom_zyx[::-1], order=1, mode="nearest")
    return xyz.transpose(2, 1, 0).astype(np.int32)


def totalsegmentator(volume, parts, step):
    """Labels [z, y, x] on the grid of ``volume``.

    ``parts``: the plans and networks (folds) of each; channel c of part p is label 100 p + c. All parts share one
    isotropic spacing.
    """
    affine = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine_lps
    image = nibabel.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0), affine)
    canonical = nibabel.as_closest_canonical(image)
    spacing = parts[0][0]["configurations"]["3d_fullres"]["spacing"]
    zoom = np.array(canonical.header.get_zooms()) / np.array(spacing)
    hu = change_spacing(np.asarray(canonical.dataobj).transpose(2, 1, 0), zoom[::-1])
    merged = np.zeros(hu.shape, np.uint8)
    for number, (described, networks) in enumerate(parts):
        found = _nnunet(hu, described, networks, step)
        np.copyto(merged, (found + 100 * number).astype(np.uint8), where=found != 0)
    xyz = merged.transpose(2, 1, 0)
    back = [n / m for n, m in zip(canonical.shape, xyz.shape, strict=True)]
    nearest = ndimage.zoom(xyz.astype(float), back, order=0, mode="nearest").astype(np.uint8)
    undo = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.io_orientation(affine)
    )
    return nibabel.apply_orientation(nearest, undo).transpose(2, 1, 0)


def _nnunet(hu_zyx, described, networks, step):
    order = described["transpose_forward"]
    settings = described["configurations"]["3d_fullres"]
    data, _, box = crop_to_nonzero(hu_zyx.astype(np.float32).transpose(order)[None])
    scheme = CTNormalization(False, described["foreground_intensity_properties_per_channel"]["0"])
    image = scheme.run(data[0])
    classes = networks[0].decoder.seg_layers[-1].out_channels
    logits = half_logits(np.ascontiguousarray(image), networks, classes, settings["patch_size"], step)
    labels = np.zeros(hu_zyx.transpose(order).shape, np.uint8)
    labels[bounding_box_to_slice(box)] = logits.argmax(0).numpy()
    return labels.transpose(np.argsort(order))
