"""The public Python API: its examples run, and its results equal those of the commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import dcmread

from dicom_node import api
from dicom_node.cli import main
from dicom_node.demo.phantom_series import write_series
from inference.phantom import phantom

PAGE = Path(__file__).parents[2] / "docs" / "developers" / "api.md"
DEMO_MODEL = "phantom_demo_104"


@pytest.fixture(scope="module")
def case():
    return phantom(4, (4.0, 4.0, 6.0), "chest_abdomen")


@pytest.fixture(scope="module")
def series(case, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ct") / "ct-folder"
    write_series(case, folder)
    return folder


@pytest.fixture(scope="module")
def model():
    return api.open_model(DEMO_MODEL, device="cpu")


def test_examples_on_the_page_run(series, tmp_path, monkeypatch):
    (tmp_path / "ct-folder").symlink_to(series)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert len(examples) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"ct-folder", "labels.nii.gz", "LABELMAP.dcm", "SR.dcm"}


def test_every_name_on_the_page_is_exported():
    page = PAGE.read_text(encoding="utf-8")
    of_errors = re.findall(r"^\| `(\w+Error|\w+Rejected|\w+Unreadable)` \|", page, re.MULTILINE)
    assert len(of_errors) == 8
    assert {*re.findall(r"\bapi\.([A-Za-z]\w+)", page), *of_errors} - {"md"} <= set(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


def test_results_equal_those_of_the_command(series, model, tmp_path):
    """Labels, measurements and DICOM objects, UIDs included."""
    command = ["segment", str(series), "--model", DEMO_MODEL, "--device", "cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, command, env={"DICOM_NODE_CONFIG": None})
    assert done.exit_code == 0, done.output
    result = api.segment(series, model, results=api.ResultRequest())
    result.write_labels(tmp_path / "ours.nii.gz")
    of_command, ours = (nib.load(tmp_path / name) for name in ("labels.nii.gz", "ours.nii.gz"))
    assert np.array_equal(np.asanyarray(of_command.dataobj), np.asanyarray(ours.dataobj))
    assert np.array_equal(of_command.affine, ours.affine)
    files = {str(dcmread(path).SOPInstanceUID) for path in tmp_path.glob("*.dcm")}
    assert files == {made.sop_instance_uid for made in result.objects}
    assert result.run is not None
    assert (result.run.device, result.run.stage_seconds.keys() > {"prepare", "inference"}) == ("CPU", True)


def test_results_read_back_equal_those_found(series, model, tmp_path):
    result = api.segment(series, model, structures=("liver", "spleen"), results=api.ResultRequest())
    for made in result.objects:
        (tmp_path / f"{made.kind}.dcm").write_bytes(made.content)
    stored = api.read_segmentation(tmp_path / "SEG.dcm", result.geometry)
    for name in ("liver", "spleen"):
        (label,) = (label for label, of_segment in stored.names_by_label.items() if of_segment == name)
        assert np.array_equal(stored.labels_zyx == label, result.voxels_of(name))
    measured = {structure.name: structure.volume_ml for structure in result.structures}
    read = {structure.name: structure.volume_ml for structure in api.read_report(tmp_path / "SR.dcm")}
    assert read == pytest.approx(measured)


def test_a_wrong_file_of_percentiles_is_found_before_the_run(series, tmp_path):
    (tmp_path / "p.json").write_text("[]")
    for name, says in (("gone.json", "can't be read: No such file"), ("p.json", "is no file of reference percentiles")):
        asked = api.ResultRequest(percentiles=str(tmp_path / name))
        with pytest.raises(api.ConfigurationError, match=says):
            api.segment(series, "tissue", results=asked, progress=lambda *_: pytest.fail("it ran"))


def test_volume_and_its_images_give_the_same_labels(case, series, model):
    of_series = api.segment(series, model)
    of_volume = api.segment(api.volume(case.volume.voxels_zyx, case.volume.geometry.affine_lps), model)
    assert of_volume.geometry.same_grid(of_series.geometry)
    assert np.array_equal(of_volume.labels_zyx, of_series.labels_zyx)


def test_integers_stay_integers_and_results_are_immutable(model):
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    assert api.volume(np.zeros((3, 4, 5), np.int64), affine).voxels_zyx.dtype == np.int16
    assert api.volume(np.full((3, 4, 5), 70000), affine).voxels_zyx.dtype == np.float32
    result = api.segment(api.volume(np.full((20, 40, 40), 40, np.int16), affine), "tissue")
    with pytest.raises(ValueError, match="read-only"):
        result.labels_zyx[0] = 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("nowhere", "tissue"), api.ConfigurationError, "nowhere"),
        (("ct-folder", "liverwurst"), api.ConfigurationError, "no model or folder of a model is named 'liverwurst'"),
        (("two", "tissue"), api.ConfigurationError, "contains 2 CTs, expected one"),
    ],
)
def test_invalid_calls_are_refused_with_the_reason(series, tmp_path, monkeypatch, arguments, error, says):
    (tmp_path / "ct-folder").symlink_to(series)
    (tmp_path / "two").mkdir()
    for name in ("a.nii", "b.nii"):
        (tmp_path / "two" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        api.segment(*arguments)


def test_contradictory_arguments_are_refused(series, model):
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    ct = api.volume(np.zeros((20, 20, 20), np.int16), affine)
    with pytest.raises(api.ConfigurationError, match="require a DICOM series"):
        api.segment(ct, "tissue", results=api.ResultRequest())
    with pytest.raises(api.ConfigurationError, match="a volume has no Series Instance UID"):
        api.segment(ct, "tissue", series_instance_uid="1.2.3")
    with pytest.raises(api.SegmentationError, match=r"^model 'tissue': .* not finite$"):
        api.segment(api.volume(np.full((20, 20, 20), np.nan), affine), "tissue")
    with pytest.raises(api.InferenceError, match="finds no livr"):
        api.segment(series, model, structures=["livr"])
    with pytest.raises(api.InvalidValueError, match="three dimensions, not 2"):
        api.volume(np.zeros((20, 20)), affine)
    with pytest.raises(api.InvalidValueError, match="left-handed"):
        api.volume(np.zeros((20, 20, 20)), np.diag([1.0, 1.0, -1.0, 1.0]))
    with pytest.raises(KeyError, match="unicorn"):
        api.segment(ct, "tissue").voxels_of("unicorn")


def test_importing_the_api_loads_no_engine_and_no_encoder():
    program = (
        "import sys, dicom_node.api; print(sorted({'torch', 'openvino', 'highdicom', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
