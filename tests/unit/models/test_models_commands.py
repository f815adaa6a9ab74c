"""`dicom-node models` as users and programs call it."""

import json

import pytest
import yaml
from click.testing import CliRunner

from dicom_node.cli import main
from tests.support.nnunet_models import plans, write_model


@pytest.fixture
def call(tmp_path):
    config = tmp_path / "etc" / "node.yaml"
    config.parent.mkdir()
    config.write_text(yaml.safe_dump({"models_folder": "library"}))

    def run(*arguments):
        return CliRunner().invoke(main, ["--config", str(config), "models", *map(str, arguments)])

    return run


def test_model_is_installed_listed_verified_and_removed(call, tmp_path):
    folder = write_model(tmp_path / "m", folds=(0, 1))
    done = call("install", folder, "--name", "mine", "--folds", "1", "--intended-use", "Study 7", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["folder"] == str(tmp_path / "etc" / "library" / "mine")
    assert (facts["structures"], facts["parts"], facts["intended_use"]) == (3, 1, "Study 7")
    assert json.loads(call("list", "--json").stdout) == [facts]
    assert "mine" in call("list").stdout
    assert json.loads(call("verify", "--json").stdout) == [{"name": "mine", "ok": True, "detail": facts["digest"]}]
    weights = tmp_path / "etc" / "library" / "mine" / "part1_fold_1.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    wrong = call("verify", "mine", "--json")
    assert wrong.exit_code == 3
    assert "part1_fold_1.safetensors has the SHA-256" in json.loads(wrong.stdout)[0]["detail"]
    assert json.loads(call("list", "--json").stdout) == [facts]  # weights are not read
    weights.unlink()
    assert call("install", folder, "--name", "sound").exit_code == 0
    listed = call("list", "--json")
    assert (listed.exit_code, [row["name"] for row in json.loads(listed.stdout)]) == (3, ["sound"])
    assert "mine: cannot read" in listed.stderr
    assert call("remove", "sound").exit_code == 0
    assert call("remove", "mine").stdout == "removed mine\n"
    assert json.loads(call("list", "--json").stdout) == []


def test_model_for_the_default_reader_needs_a_stated_orientation(call, tmp_path):
    folder = write_model(tmp_path / "m", described=plans() | {"image_reader_writer": "SimpleITKIO"})
    asked = call("install", folder, "--name", "mine")
    assert asked.exit_code == 1
    assert "state the orientation of the training files with --orientation" in asked.stderr
    told = call("install", folder, "--name", "mine", "--orientation", "SPL", "--json")
    assert json.loads(told.stdout)["orientation"] == "LPS"


def test_oddities_of_a_model_are_warnings_on_stderr(call, tmp_path):
    folder = write_model(tmp_path / "m")
    dataset = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(dataset | {"channel_names": {"0": "T1"}}))
    done = call("install", folder, "--name", "mine", "--json")
    assert json.loads(done.stdout)["name"] == "mine"
    assert done.stderr.splitlines()[-1].startswith("Warning: m: dataset.json calls the image channel 'T1'")


def test_refusals_are_one_line_on_stderr(call, tmp_path):
    folder = write_model(tmp_path / "m", names=("liver", "flux_capacitor"))
    for arguments, reason in (
        (("install", folder, "--name", "mine"), "flux_capacitor"),
        (("install", "no_such_task"), "unknown task 'no_such_task'"),
        (("install", "total_v1"), "no nnU-Net v2 weights have been released"),
        (("install", "http://example.com/m.zip"), "not an https URL"),
        (("install", tmp_path, "--task", "total"), "Dataset291_TotalSegmentator_part1_organs_1559subj"),
        (("remove", "nothing"), "no model named 'nothing'"),
        (("verify", "nothing"), ""),
    ):
        done = call(*arguments)
        assert done.exit_code in (1, 3), arguments
        assert reason in done.output
        assert "Traceback" not in done.output


def test_unwritable_library_is_one_line_on_stderr(call, tmp_path):
    (tmp_path / "etc" / "library").write_text("a file is in its place")
    done = call("install", write_model(tmp_path / "m"), "--name", "mine")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tmp_path / 'etc' / 'library'}: File exists\n"


def test_known_tasks_are_listed_with_the_obstacles_to_installing_them(call):
    rows = {row["name"]: row for row in json.loads(call("known", "--json").stdout)}
    assert rows["total"]["not_in_the_catalogue"] == rows["liver_segments"]["not_in_the_catalogue"] == []
    assert rows["hip_implant"]["not_in_the_catalogue"] == ["hip_implant"]
    assert (rows["total"]["downloadable"], rows["face"]["downloadable"]) == (True, False)
    assert "total_6mm" in call("known").stdout
