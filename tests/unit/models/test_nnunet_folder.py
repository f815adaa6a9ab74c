"""Untrusted model folders: refused by name, with nothing executed and nothing installed."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inference.errors import ModelPackageError
from inference.models.network import build_network
from inference.models.nnunet_folder import read_nnunet_folder
from inference.structures import paper_labels
from tests.support.nnunet_models import plans, write_model, write_package


def edit(folder, file, change):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def configuration(content):
    return content["configurations"]["3d_fullres"]


def kwargs(content):
    return configuration(content)["architecture"]["arch_kwargs"]


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_weights_are_installed_unchanged(tmp_path, network):
    folder = write_model(tmp_path / "m", described=plans(network=network), prefix="module._orig_mod.")
    part = write_package(tmp_path / "library", folder).parts[0]
    written = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    installed = load_file(part.weights[0])
    rebuilt = build_network(part.architecture, 4)
    assert not rebuilt.load_state_dict(installed, strict=False).unexpected_keys
    for name, value in rebuilt.state_dict().items():
        torch.testing.assert_close(value, written[f"module._orig_mod.{name}"], rtol=0, atol=0)
    kept = {parameter.data_ptr() for parameter in rebuilt.parameters()}
    assert len(installed) == len(kept)  # each weight once


def test_bookkeeping_of_a_real_training_is_ignored(tmp_path):
    bookkeeping = {
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.9),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        "grad_scaler_state": {"scale": 65536.0},
    }
    folder = write_model(tmp_path / "m", checkpoint=bookkeeping)
    assert len(write_package(tmp_path / "library", folder).parts[0].weights) == 1


def test_plans_of_old_nnunet_give_the_same_network(tmp_path):
    folder = write_model(tmp_path / "m")
    new = read_nnunet_folder(folder).architecture

    def to_old_format(content):
        settings = configuration(content)
        settings["UNet_class_name"] = "PlainConvUNet"
        settings["UNet_base_num_features"], settings["unet_max_num_features"] = 4, 320
        settings["n_conv_per_stage_encoder"], settings["n_conv_per_stage_decoder"] = [1, 1], [1]
        settings["conv_kernel_sizes"] = kwargs(content)["kernel_sizes"]
        settings["pool_op_kernel_sizes"] = kwargs(content)["strides"]
        del settings["architecture"]

    edit(folder, "plans.json", to_old_format)
    assert read_nnunet_folder(folder).architecture == new


def test_configuration_may_inherit_from_another(tmp_path):
    folder = write_model(tmp_path / "Trainer__nnUNetPlans__3d_small")

    def inherit(content):
        content["configurations"]["3d_small"] = {"inherits_from": "3d_fullres", "patch_size": [16, 16, 16]}

    edit(folder, "plans.json", inherit)
    part = read_nnunet_folder(folder)
    assert (part.configuration, part.patch_size) == ("3d_small", (16, 16, 16))
    with pytest.raises(ModelPackageError, match="trained as '3d_fullres'"):
        write_package(tmp_path / "library", folder)


class Poison:
    """Unpickling this runs a shell command."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return os.system, (f"touch {self.evidence}",)


def test_malicious_checkpoint_is_refused_by_name_and_not_executed(tmp_path):
    evidence = tmp_path / "executed"
    folder = write_model(tmp_path / "m", checkpoint={"logging": Poison(evidence)})
    with pytest.raises(ModelPackageError, match=r"checkpoint_final\.pth contains more than weights.*system"):
        write_package(tmp_path / "library", folder)
    assert not evidence.exists()
    assert [path.name for path in (tmp_path / "library").iterdir()] == [".lock"]
    torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert evidence.exists(), "the payload must work without the protection, otherwise the test proves nothing"


@pytest.mark.parametrize(
    ("place", "change", "reason"),
    [
        ("plans.json", lambda c: configuration(c)["architecture"].update(network_class_name="os.system"), "os.system"),
        ("plans.json", lambda c: kwargs(c).update(conv_op="subprocess.Popen"), "conv_op 'subprocess.Popen'"),
        ("plans.json", lambda c: kwargs(c).update(nonlin="builtins.exec"), "nonlin 'builtins.exec'"),
        ("plans.json", lambda c: kwargs(c).update(norm_op=["x"]), "norm_op"),
        ("plans.json", lambda c: kwargs(c).update(block="os.system"), "block"),
        ("plans.json", lambda c: kwargs(c).update(n_stages=10**6), "n_stages"),
        ("plans.json", lambda c: kwargs(c).update(kernel_sizes=[[2, 3, 3]] * 2), "must be odd"),
        ("plans.json", lambda c: configuration(c)["architecture"].update(arch_kwargs=["conv_op"]), "plans.json"),
        ("plans.json", lambda c: kwargs(c).update(norm_op_kwargs=["eps"]), "plans.json"),
        ("plans.json", lambda c: configuration(c).update(architecture="PlainConvUNet"), "plans.json"),
        ("plans.json", lambda c: kwargs(c).update(features_per_stage=[10**9, 1]), "features_per_stage"),
        ("plans.json", lambda c: kwargs(c).update(kernel_sizes=[[99, 3, 3]] * 2), "kernel_sizes"),
        ("plans.json", lambda c: configuration(c).update(patch_size=[10**6] * 3), "patch_size"),
        ("plans.json", lambda c: configuration(c).update(patch_size=[32, 32]), "three numbers"),
        ("plans.json", lambda c: configuration(c).update(patch_size=[33, 32, 32]), "multiple"),
        ("plans.json", lambda c: configuration(c).update(spacing=[0, 1, 1]), "spacing"),
        ("plans.json", lambda c: configuration(c).update(spacing=[float("nan"), 1, 1]), "spacing"),
        ("plans.json", lambda c: configuration(c).update(normalization_schemes=["ZScoreNormalization"]), "CTNorm"),
        ("plans.json", lambda c: configuration(c).update(inherits_from="3d_fullres"), "configuration"),
        ("plans.json", lambda c: configuration(c).pop("patch_size"), "patch_size"),
        ("plans.json", lambda c: c.pop("configurations"), "configurations"),
        (
            "plans.json",
            lambda c: configuration(c).update(preprocessor_name="os.system"),
            "preprocessor_name 'os.system'",
        ),
        ("plans.json", lambda c: configuration(c).update(preprocessor_name=["x"]), "preprocessor_name .* is not sup"),
        (
            "plans.json",
            lambda c: c.update(label_manager="MyLabels"),
            "label_manager 'MyLabels' is not supported, expected LabelM",
        ),
        ("plans.json", lambda c: c.update(image_reader_writer=["x"]), "image_reader_writer must be printable text"),
        (
            "plans.json",
            lambda c: kwargs(c).update(dropout_op="torch.nn.Dropout3d"),
            "networks with dropout layers are not",
        ),
        (
            "plans.json",
            lambda c: c.update(foreground_intensity_properties_per_channel=None),
            "not of the expected form",
        ),
        ("plans.json", lambda c: c.update(transpose_forward=[0, 0, 1]), "transpose_forward"),
        ("plans.json", lambda c: c.update(padding="x" * 1024**2), "bytes"),
        ("dataset.json", lambda c: c["labels"].update(flux_capacitor=4), "flux_capacitor"),
        ("dataset.json", lambda c: c["labels"].update(brain=9), "without gap"),
        ("dataset.json", lambda c: c["labels"].update(brain=[1, 2]), r"regions that overlap: brain \(\[1, 2\]\)"),
        ("dataset.json", lambda c: c.update(regions_class_order=[1, 2, 3]), "regions that overlap"),
        (
            "dataset.json",
            lambda c: c["labels"].update(ignore=255),
            "label to ignore is '255'; it must be the highest, 4",
        ),
        ("dataset.json", lambda c: c.update(channel_names={}, modality="C"), "not of the expected form"),
        ("dataset.json", lambda c: c["labels"].update({str(n): n for n in range(4, 10**4)}), "255"),
        ("dataset.json", lambda c: c["labels"].update(background=1), "background"),
        ("dataset.json", lambda c: c.update(channel_names={"0": "CT", "1": "PET"}), "channels"),
        ("dataset.json", lambda c: c.pop("labels"), "labels"),
    ],
)
def test_foreign_names_and_sizes_are_refused(tmp_path, place, change, reason):
    folder = write_model(tmp_path / "m")
    edit(folder, place, change)
    with pytest.raises(ModelPackageError, match=reason):
        read_nnunet_folder(folder)


@pytest.mark.parametrize("axes", ["x", [3], [0, 0], [0.5], [[0]], 1, {"0": 0}])
def test_invalid_mirroring_axes_are_refused(tmp_path, axes):
    folder = write_model(tmp_path / "m", checkpoint={"inference_allowed_mirroring_axes": axes})
    with pytest.raises(ModelPackageError, match=r"inference_allowed_mirroring_axes .* are no axes"):
        write_package(tmp_path / "library", folder)


def test_non_ct_channel_with_ct_normalisation_is_a_warning(tmp_path):
    folder = write_model(tmp_path / "m")
    assert read_nnunet_folder(folder).warnings == ()
    edit(folder, "dataset.json", lambda c: c.update(channel_names={"0": "MRI"}))
    (warning,) = read_nnunet_folder(folder).warnings
    assert "calls the image channel 'MRI', but plans.json normalises it as CT" in warning


def test_reader_is_taken_from_the_plans_or_else_from_the_data_set(tmp_path):
    folder = write_model(tmp_path / "m")
    edit(folder, "dataset.json", lambda c: c.update(overwrite_image_reader_writer="SimpleITKIO"))
    assert read_nnunet_folder(folder).reader == "NibabelIOWithReorient"
    edit(folder, "plans.json", lambda c: c.pop("image_reader_writer"))
    assert read_nnunet_folder(folder).reader == "SimpleITKIO"
    edit(folder, "dataset.json", lambda c: c.update(overwrite_image_reader_writer="None"))
    assert read_nnunet_folder(folder).reader is None


def test_missing_and_invalid_json_files_are_named(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "plans.json").write_text("[" * 10**5)
    with pytest.raises(ModelPackageError, match=r"plans\.json is not JSON"):
        read_nnunet_folder(folder)
    (folder / "plans.json").unlink()
    with pytest.raises(ModelPackageError, match=r"plans\.json: No such file"):
        read_nnunet_folder(folder)
    other = write_model(tmp_path / "n", folds=())
    with pytest.raises(ModelPackageError, match="no fold_"):
        read_nnunet_folder(other)


def compress(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def shrink(path):
    content = torch.load(path, weights_only=True)
    name = next(iter(content["network_weights"]))
    content["network_weights"][name] = content["network_weights"][name][:1]
    torch.save(content, path)


def lose_one(path):
    content = torch.load(path, weights_only=True)
    content["network_weights"].popitem()
    torch.save(content, path)


def put_nan(path):
    content = torch.load(path, weights_only=True)
    next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (compress, "compressed"),
        (shrink, "does not fit"),
        (lose_one, "does not fit"),
        (put_nan, "NaN"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "not a torch checkpoint"),
        (lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR."), "not a torch checkpoint"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, damage, reason):
    folder = write_model(tmp_path / "m")
    damage(folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ModelPackageError, match=reason):
        write_package(tmp_path / "library", folder)


def put_another_value_under_the_second_name(path):
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    weights["decoder.encoder.stages.0.0.convs.0.conv.weight"] = weights["encoder.stages.0.0.convs.0.conv.weight"] + 1
    torch.save(content, path)


def put_whole_numbers(path):
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {name: value.to(torch.int32) for name, value in weights.items()}
    torch.save(content, path)


def spread_one_number(path):
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {name: torch.zeros(1).expand(value.shape) for name, value in weights.items()}
    torch.save(content, path)


def make_sparse(path):
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {name: value.to_sparse() for name, value in weights.items()}
    torch.save(content, path)


def leave_no_numbers(path):
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {name: value.to("meta") for name, value in weights.items()}
    torch.save(content, path)


def name_by_numbers(path):
    content = torch.load(path, weights_only=True)
    content["network_weights"] = dict(enumerate(content["network_weights"].values()))
    torch.save(content, path)


def list_arguments(path):
    torch.save(torch.load(path, weights_only=True) | {"init_args": ["3d_fullres"], "network_weights": {}}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (put_another_value_under_the_second_name, "one weight with different values"),
        (put_whole_numbers, "int32"),
        (spread_one_number, "fewer numbers than its shape"),
        (make_sparse, "not floating-point numbers|fewer numbers"),
        (leave_no_numbers, "on meta"),
        (name_by_numbers, "not text"),
        (list_arguments, "weights are missing"),
    ],
)
def test_contradictory_weights_are_refused(tmp_path, damage, reason):
    folder = write_model(tmp_path / "m")
    damage(folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ModelPackageError, match=reason):
        write_package(tmp_path / "library", folder)


def test_all_unknown_structures_are_named(tmp_path):
    folder = write_model(tmp_path / "m", names=("liver", "flux_capacitor", "spleen", "warp_core"))
    with pytest.raises(ModelPackageError, match=r"flux_capacitor, warp_core$"):
        read_nnunet_folder(folder)


def test_labels_are_numbered_as_documented(tmp_path):
    paper = list(paper_labels().values())
    single = write_model(tmp_path / "paper", names=paper)
    library = tmp_path / "library"
    assert write_package(library, single, name="paper").names_by_label == paper_labels()
    a = write_model(tmp_path / "a", names=("urinary_bladder", "liver"))
    b = write_model(tmp_path / "b", names=("sacrum", "liver"))
    assert write_package(library, a, b, name="ab").names_by_label == {5: "liver", 21: "urinary_bladder", 25: "sacrum"}
    c = write_model(tmp_path / "c", names=("face", "liver"))  # not among the 117
    assert write_package(library, a, c, name="ac").names_by_label == {1: "urinary_bladder", 2: "liver", 3: "face"}


def test_all_or_the_requested_folds_are_installed(tmp_path):
    folder = write_model(tmp_path / "m", folds=(0, 1, "all"))
    part = write_package(tmp_path / "library", folder).parts[0]
    assert [path.name for path in part.weights] == [f"part1_fold_{fold}.safetensors" for fold in (0, 1, "all")]
    first, second, _ = (load_file(path) for path in part.weights)
    assert not torch.equal(first["decoder.seg_layers.0.weight"], second["decoder.seg_layers.0.weight"])
    assert len(write_package(tmp_path / "library", folder, name="one", folds=("1",)).parts[0].weights) == 1
    with pytest.raises(ModelPackageError, match="has no fold_3"):
        write_package(tmp_path / "library", folder, name="none", folds=("1", "3"))
    with pytest.raises(ModelPackageError, match="fold"):
        write_package(tmp_path / "library", folder, name="none", folds=("../../m/fold_0",))


def test_other_resampling_is_not_installed_as_nnunets_default(tmp_path):
    folder = write_model(tmp_path / "m")
    edit(folder, "plans.json", lambda c: configuration(c).update(resampling_fn_data="resample_torch_fornnunet"))
    with pytest.raises(ModelPackageError, match="a resampling other than"):
        write_package(tmp_path / "library", folder, resampling="nnunet")
    write_package(tmp_path / "library", folder, resampling="corners")
