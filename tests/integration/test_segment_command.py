"""``dicom-node segment`` as users and scripts call it: files in, files out, and errors with reason and exit code."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
import structlog
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    JPEGExtended12Bit,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.cli import main
from dicom_node.demo.phantom_series import write_series
from dicom_node.encode.run import encode
from dicom_node.errors import EncodingError
from dicom_node.percentiles import OfModel
from dicom_node.reconstruct import reconstruct
from dicom_node.results import read_report
from dicom_node.segment import outputs
from dicom_node.segment.context import _COMPLETION_REASON, _DEVICE_UID
from dicom_node.standard.files import read_headers, read_series_folder
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE, ResultContext
from inference.measure import measure
from inference.models.package import Crop
from inference.phantom import phantom
from inference.tissue import TissueSegmenter
from tests.support.ct_series import Stack, enhanced, noise
from tests.support.ct_series import write as write_ct
from tests.support.nnunet_models import random_package, write_model, write_package
from tests.support.reference_percentiles import curve, references, written

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = {"labels.nii.gz", "labels.json", "measurements.json", "measurements.csv", "summary.json"}
DICOM_OUTPUTS = OUTPUTS | {"segmentation.dcm", "report.dcm"}


@pytest.fixture(autouse=True)
def _process_as_it_was():
    root = logging.getLogger()
    handlers, level, show = root.handlers, root.level, warnings.showwarning
    yield
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def case():
    return phantom(4, (6.0, 6.0, 8.0), "chest")


@pytest.fixture(scope="module")
def series(case, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    write_series(case, folder)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A random model of three structures, installed as ``test`` in the library of a node's configuration."""
    return random_package(tmp_path_factory.mktemp("models"))


def call(*arguments, config=None):
    """Without ``config``: like a user who never configured a node."""
    named = [] if config is None else ["--config", str(config)]
    environment = {"DICOM_NODE_CONFIG": None}
    return CliRunner().invoke(main, [*named, "segment", *map(str, arguments)], env=environment)


def nifti(path, array, affine=None) -> Path:
    affine = np.diag([4.0, 4.0, 6.0, 1.0]) if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def nifti_of(case, path, dtype=np.int16) -> Path:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.volume.geometry.affine_lps
    return nifti(path, case.volume.voxels_zyx.T.astype(dtype), affine)


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_dicom_series_gives_the_same_results_as_in_the_node(series, tmp_path):
    answered = call(series, "--model", "tissue", "--out", tmp_path)
    assert answered.exit_code == 0, answered.output
    assert names_in(tmp_path) == DICOM_OUTPUTS

    (read,) = read_series_folder(series)
    reconstruction = reconstruct(read)
    segmentation = TissueSegmenter().segment(reconstruction.volume, lambda *_: None)
    measurements = measure(reconstruction.source, segmentation)
    digests = sorted(hashlib.sha256(data_set_bytes(path)).hexdigest() for path in series.iterdir())
    summary = summary_of(tmp_path)
    context = ResultContext(
        started_at=datetime.fromisoformat(summary["started_at"]),
        revision=1,
        content_digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        station_name="dicom-node",
        device_uid=_DEVICE_UID,
        completion_reason=_COMPLETION_REASON,
    )
    expected = encode(reconstruction, segmentation, measurements, context)
    for result, name, stated in zip(expected, ("segmentation.dcm", "report.dcm"), summary["results"], strict=True):
        written = dcmread(tmp_path / name)
        assert written == result.dataset
        assert stated["sop_instance_uid"] == written.SOPInstanceUID == result.sop_instance_uid

    labels = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asanyarray(labels.dataobj).T, segmentation.labels_zyx)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ labels.affine
    assert np.allclose(affine, reconstruction.source.geometry.affine_lps, atol=1e-4)
    assert json.loads((tmp_path / "labels.json").read_text()) == {
        str(label): name for label, name in segmentation.names_by_label.items()
    }
    rows = json.loads((tmp_path / "measurements.json").read_text())["structures"]
    with (tmp_path / "measurements.csv").open() as file:
        table = list(csv.DictReader(file))
    for row, line, one in zip(rows, table, measurements.structures, strict=True):
        assert (row["name"], row["volume_ml"], row["truncated"]) == (one.name, one.volume_ml, one.truncated)
        assert (line["name"], float(line["mean_hu"])) == (one.name, one.mean_hu)


def data_set_bytes(path) -> bytes:
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_written_files_are_valid_dicom(series, tmp_path):
    call(series, "--model", "tissue", "--out", tmp_path)
    for name in ("segmentation.dcm", "report.dcm"):
        checked = subprocess.run(["dciodvfy", tmp_path / name], capture_output=True, text=True, check=False)
        assert [line for line in checked.stderr.splitlines() if line.startswith("Error")] == []


def test_same_patient_as_nifti_has_the_same_labels(case, series, tmp_path):
    file = nifti_of(case, tmp_path / "ct.nii.gz", np.float32)
    assert call(file, "--model", "tissue", "--out", tmp_path / "nifti").exit_code == 0
    assert call(series, "--model", "tissue", "--out", tmp_path / "dicom", "--no-dicom").exit_code == 0
    assert names_in(tmp_path / "nifti") == names_in(tmp_path / "dicom") == OUTPUTS
    of_nifti, of_dicom = (nib.load(tmp_path / name / "labels.nii.gz") for name in ("nifti", "dicom"))
    assert np.array_equal(np.asanyarray(of_nifti.dataobj), np.asanyarray(of_dicom.dataobj))
    assert np.array_equal(of_nifti.affine, nib.load(file).affine)


def test_installed_network_runs_by_name_and_by_folder(case, package, tmp_path):
    file = nifti_of(case, tmp_path / "ct.nii.gz")
    library = package.folder.parent
    config = library.parent / "node.yaml"
    (library.parent / "models").symlink_to(library)
    config.write_text("models_folder: models")
    answered = call(file, "--model", "test", "--out", tmp_path / "one", "--json", config=config)
    assert answered.exit_code == 0, answered.output
    (summary,) = json.loads(answered.stdout)
    assert summary["model"]["digest"] == package.identity.digest
    assert summary["backend"].startswith("OpenVINO 20")
    assert (summary["device"], summary["precision"] in ("bfloat16", "float32")) == ("CPU", True)
    assert summary["stage_seconds"].keys() >= {"read", "load", "prepare", "inference", "restore", "measure"}
    assert call(file, "--model", package.folder, "--out", tmp_path / "two").exit_code == 0
    labels = [(tmp_path / name / "labels.nii.gz").read_bytes() for name in ("one", "two")]
    assert labels[0] == labels[1]
    assert set(np.unique(np.asanyarray(nib.load(tmp_path / "one" / "labels.nii.gz").dataobj))) <= {0, 1, 2, 3}


def test_cropping_model_uses_the_first_model_from_its_own_library(case, package, tmp_path):
    library = package.folder.parent
    crop = Crop(package.identity.name, ("liver", "spleen", "aorta"), (10.0, 10.0, 10.0))
    inner = write_model(tmp_path / "inner", names=("kidney_left",))
    second = write_package(library, inner, name="inner", crop=crop)
    file = nifti_of(case, tmp_path / "ct.nii.gz")
    assert call(file, "--model", second.folder, "--out", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"1": "kidney_left"}
    alone = write_package(tmp_path / "alone", inner, name="alone", crop=crop)
    other = write_package(library, inner, name="other", crop=replace(crop, structures=("brain",)))
    for wrong, says in ((alone, "has no model named 'test'"), (other, "does not find brain")):
        answered = call(file, "--model", wrong.folder, "--out", tmp_path / "wrong")
        assert answered.exit_code == 1
        assert says in answered.stderr


def test_only_requested_structures_are_written(series, tmp_path):
    call(series, "--model", "tissue", "--out", tmp_path / "all")
    call(series, "--model", "tissue", "--out", tmp_path / "two", "--structures", "bone_tissue, body_fat")
    every, two = (np.asanyarray(nib.load(tmp_path / name / "labels.nii.gz").dataobj) for name in ("all", "two"))
    assert np.array_equal(two, np.where(np.isin(every, (2, 4)), every, 0))
    segments = dcmread(tmp_path / "two" / "segmentation.dcm").SegmentSequence
    assert [item.SegmentLabel for item in segments] == ["body_fat", "bone_tissue"]
    uids = {summary_of(tmp_path / name)["results"][0]["sop_instance_uid"] for name in ("all", "two")}
    assert len(uids) == 2, "different labels need a different instance"


def test_every_kind_of_result_can_be_requested(series, tmp_path):
    asked = "segmentation: both, contours: [tissue, bone], shape: true, capture: true, document: true"
    answered = call(series, "--model", "tissue", "--out", tmp_path, "--results", asked)
    assert answered.exit_code == 0, answered.output
    written = {path.name: dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))}
    captures = sorted(name for name in written if name.startswith("capture-"))
    assert len(captures) > 2
    assert {str(written[name].SOPClassUID) for name in captures} == {SecondaryCaptureImageStorage}
    others = {name: str(dataset.SOPClassUID) for name, dataset in written.items() if name not in captures}
    assert others == {
        "segmentation.dcm": SegmentationStorage,
        "labelmap.dcm": LABEL_MAP_SEGMENTATION_STORAGE,
        "report.dcm": Comprehensive3DSRStorage,
        "contours.dcm": RTStructureSetStorage,
        "document.dcm": EncapsulatedPDFStorage,
    }
    listed = {result["file"]: result["sop_instance_uid"] for result in summary_of(tmp_path)["results"]}
    assert listed == {name: str(dataset.SOPInstanceUID) for name, dataset in written.items()}
    with (tmp_path / "measurements.csv").open() as table:
        assert all(float(row["surface_area_mm2"]) > 0 for row in csv.DictReader(table))

    again = call(series, "--model", "tissue", "--out", tmp_path)
    assert "finished by an earlier run" not in again.output
    assert names_in(tmp_path) == DICOM_OUTPUTS
    assert "shape" not in (tmp_path / "measurements.csv").read_text()


def test_percentiles_are_stated_and_another_file_is_another_request(tmp_path, monkeypatch):
    """Of a block of soft tissue in air, in a woman of 49; without her sex there are none."""
    monkeypatch.chdir(tmp_path)
    stored_values = np.zeros((12, 40, 48), np.uint16)
    stored_values[3:9, 8:32, 8:40] = 1064
    (tmp_path / "ct").mkdir()
    write_ct(tmp_path / "ct", Stack(stored_values))
    asked = "segmentation: none, percentiles: p.json"

    def write_percentiles(first_ml: float) -> None:
        identity = TissueSegmenter().identity
        model = OfModel(name=identity.name, version=identity.version, digest=identity.digest)
        at = {"ages_years": (49, 50), "patients_near": (30, 31)}
        volume = curve("soft_tissue", "volume_ml", "F", 0, 0, **at, values=tuple((first_ml + k,) * 2 for k in range(7)))
        written(tmp_path / "p.json", references((volume,), model=model))

    def segmented() -> tuple[bool, list[float | None]]:
        answered = call("ct", "--model", "tissue", "--results", asked, "--out", "out", "--json")
        assert answered.exit_code == 0, answered.output
        (structure,) = read_report(tmp_path / "out" / "report.dcm")
        return json.loads(answered.stdout)[0]["skipped"], [value.percentile for value in structure.values]

    write_percentiles(0)
    assert segmented() == (False, [None] * 6)
    (block,) = json.loads((tmp_path / "out" / "measurements.json").read_text())["structures"]
    write_percentiles(block["volume_ml"] - 3)
    for path in (tmp_path / "ct").iterdir():
        dataset = dcmread(path)
        dataset.PatientSex = "F"
        dataset.save_as(path)
    assert segmented() == (False, [50, *[None] * 5])
    first = summary_of(tmp_path / "out")["results"][0]["sop_instance_uid"]
    assert segmented() == (True, [50, *[None] * 5])
    write_percentiles(block["volume_ml"] - 2)
    assert segmented() == (False, [25, *[None] * 5])
    assert summary_of(tmp_path / "out")["results"][0]["sop_instance_uid"] != first


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ("percentiles: gone.json", "gone.json can't be read: No such file or directory"),
        ("segmentation: auto", "require a destination"),
        ("notice: true", "require a destination"),
        ("to: pacs", "to"),
        ("colour: red", "colour"),
        ("contours: [spline]", "spline"),
        ("segmentation: [", "results: not YAML"),
        ("}, {", "results: not YAML: unexpected content after the end"),
    ],
)
def test_unavailable_results_are_refused_by_name(results, says, series, tmp_path):
    answered = call(series, "--model", "tissue", "--out", tmp_path / "out", "--results", results)
    assert (answered.exit_code, says in answered.output) == (2, True), answered.output
    assert not (tmp_path / "out").exists()


def test_other_options_of_one_model_give_other_instances(series, package, tmp_path):
    ways = {"best": (), "parity": ("--parity",), "air": ("--no-body-crop",), "float32": ("--precision", "float32")}
    summaries = {}
    for name, options in ways.items():
        done = call(series, "--model", package.folder, "--out", tmp_path / name, *options)
        assert done.exit_code == 0, done.output
        summaries[name] = summary_of(tmp_path / name)
    uids = {result["sop_instance_uid"] for summary in summaries.values() for result in summary["results"]}
    assert len(uids) == 2 * len(ways)
    assert {name: one["model"]["version"] for name, one in summaries.items()} == {
        "best": "1",
        "parity": "1 parity",
        "air": "1 no body crop",
        "float32": "1 float32",
    }
    report = dcmread(tmp_path / "parity" / "report.dcm")
    assert "test 1 parity" in report.SoftwareVersions
    # results that do not depend on an option are not changed by it
    call(series, "--model", "tissue", "--out", tmp_path / "tissue")
    call(series, "--model", "tissue", "--out", tmp_path / "other", "--parity")
    assert len({summary_of(tmp_path / name)["results"][0]["sop_instance_uid"] for name in ("tissue", "other")}) == 1


def test_labels_of_a_tilted_gantry_are_on_the_source_planes(tmp_path):
    (tmp_path / "ct").mkdir()
    write_ct(tmp_path / "ct", Stack(noise((8, 16, 16)), step_mm=(0.0, 0.6, 2.5)))
    assert call(tmp_path / "ct", "--model", "tissue", "--out", tmp_path / "out").exit_code == 0
    (read,) = read_series_folder(tmp_path / "ct")
    source = reconstruct(read).source
    labels = nib.load(tmp_path / "out" / "labels.nii.gz")
    assert labels.shape == source.voxels_zyx.shape[::-1]
    assert np.allclose(np.diag([-1.0, -1.0, 1.0, 1.0]) @ labels.affine, source.geometry.affine_lps, atol=1e-4)
    (note,) = summary_of(tmp_path / "out")["notes"]
    assert "gantry tilt" in note


# ---- refusals


def constant(path):
    return nifti(path, np.full((40, 40, 40), 30, np.int16))


def with_nan(path):
    array = np.random.default_rng(0).normal(0, 300, (40, 40, 40)).astype(np.float32)
    array[3, 4, 5] = np.nan
    return nifti(path, array)


def too_small(path):
    return nifti(path, np.random.default_rng(0).integers(-1000, 1000, (40, 40, 3)).astype(np.int16))


def four_dimensional(path):
    return nifti(path, np.zeros((4, 4, 4, 2), np.int16))


def no_image(path):
    path.write_text("Doe^John")
    return path


def one_slice(path):
    folder = path.parent / "slice"
    folder.mkdir()
    write_ct(folder, Stack(noise((1, 8, 8))))
    return folder


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (constant, "every voxel of the volume is 30 HU"),
        (with_nan, "not finite"),
        (too_small, "3 slices; the model needs at least 16"),
        (four_dimensional, "an image with 4 dimensions"),
        (no_image, "8 bytes, expected a NIfTI-1 header of 348"),
        (one_slice, "planes: 1, a volume needs at least 3"),
    ],
)
def test_input_that_cannot_be_segmented_is_refused_with_the_reason(write, says, strict_package, tmp_path):
    out = tmp_path / "out"
    answered = call(write(tmp_path / "ct.nii.gz"), "--model", strict_package.folder, "--out", out, "--json")
    assert answered.exit_code == 3, answered.output
    (summary,) = json.loads(answered.stdout)
    assert (summary["status"], summary["folder"]) == ("refused", str(out))
    assert says in summary["reason"]
    assert names_in(out) == {"summary.json"}
    assert "Doe" not in answered.output
    for_people = call(tmp_path / "ct.nii.gz", "--model", strict_package.folder, "--out", out)
    assert (for_people.exit_code, for_people.stdout) == (3, "") if write is not one_slice else (2, "")


@pytest.fixture(scope="module")
def strict_package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strict")
    return write_package(folder, write_model(folder / "nnunet"), minimum_slices=16, minimum_extent_mm=30.0)


def test_file_that_is_not_an_image_is_refused_by_name(tmp_path):
    (tmp_path / "note.txt").write_text("Doe^John")
    answered = call(tmp_path / "note.txt", "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 3
    assert "note.txt is neither a DICOM instance nor a NIfTI file" in answered.stderr


def test_invalid_calls_and_invalid_models_have_different_exit_codes(series, package, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(package.folder, damaged)
    weights = next(damaged.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "out")
    for arguments, code, says in (
        ((series, "--model", "liverwurst", *out), 1, "no model or folder of a model is named 'liverwurst'"),
        ((series, "--model", damaged, *out), 1, "SHA-256"),
        ((series, "--model", tmp_path / "empty", *out), 1, "manifest.json"),
        ((series, "--model", "tissue", "--out", tmp_path / "file" / "out"), 1, "can't be written"),
        (
            (series, "--model", "tissue", *out, "--series-uid", "1.2.3"),
            1,
            "series 1.2.3 was not found; series found: 1",
        ),
        ((series, "--model", "tissue", "--out", series), 1, "is an input"),
        ((tmp_path / "empty", "--model", "tissue", *out), 1, "no DICOM series and no NIfTI file"),
        ((series, "--model", "tissue", *out, "--structures", "livr"), 2, "finds no livr; it finds air_in_body"),
        ((tmp_path / "nowhere", "--model", "tissue", *out), 2, "does not exist"),
        ((series, *out), 2, "--model"),
        ((series, "--model", "tissue", *out, "--threads", "-1"), 2, "--threads"),
    ):
        answered = call(*arguments)
        assert (answered.exit_code, answered.stdout) == (code, ""), answered.output
        assert says in answered.stderr
    assert not (tmp_path / "out").exists()


def test_earlier_results_are_kept_if_the_model_cannot_be_loaded(case, package, tmp_path):
    file = nifti_of(case, tmp_path / "ct.nii.gz")
    call(file, "--model", package.folder, "--out", tmp_path / "out")
    answered = call(file, "--model", package.folder, "--out", tmp_path / "out", "--device", "cuda", "--again")
    assert answered.exit_code == 1
    assert names_in(tmp_path / "out") == OUTPUTS


# ---- what is left out, and what is already done


@pytest.fixture
def ct(series, tmp_path) -> Path:
    """A copy of the series that a test may modify."""
    return shutil.copytree(series, tmp_path / "ct")


def ascending(folder):
    return sorted(folder.iterdir(), key=lambda path: float(dcmread(path).ImagePositionPatient[2]))


def rewritten(path, change):
    changed = dcmread(path)
    change(changed)
    changed.save_as(path)


def empty(files):
    files[-1].write_bytes(b"")


def cut_in_the_header(files):
    files[-1].write_bytes(files[-1].read_bytes()[:900])


def of_the_one_before(files):
    uid = dcmread(files[-2]).SOPInstanceUID
    rewritten(files[-1], lambda changed: setattr(changed, "SOPInstanceUID", uid))


def without_uid(files):
    rewritten(files[0], lambda changed: setattr(changed, "SOPInstanceUID", ""))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (empty, "empty file"),
        (cut_in_the_header, "damaged, or not readable as DICOM"),
        (of_the_one_before, "another image of the series has its SOP Instance UID"),
        (without_uid, "SOP Instance UID or Series Instance UID is missing"),
    ],
)
def test_image_left_out_at_an_end_is_reported_everywhere(ct, tmp_path, damage, reason):
    files = ascending(ct)
    (ct / "readme.txt").write_text("Doe^John")
    damage(files)
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 3, answered.output
    assert f": {reason}" in answered.stderr
    summary = summary_of(tmp_path / "out")
    assert summary["status"] == "segmented"
    assert (summary["input"]["files"], summary["input"]["passed_over"]) == (
        len(files) - 1,
        {reason: 1, "no DICOM file": 1},
    )
    assert summary["notes"] == [f"files left out: 1 ({reason})"]
    report = dcmread(tmp_path / "out" / "report.dcm")
    assert report.CompletionFlag == "PARTIAL"
    assert "INCOMPLETE" in report.SeriesDescription
    content = (tmp_path / "out" / "report.dcm").read_bytes()
    assert f"Files left out: 1 ({reason})".encode() in content
    assert b"Doe" not in json.dumps(summary).encode() + content


def test_left_out_images_lead_to_other_instances(ct, tmp_path):
    call(ct, "--model", "tissue", "--out", tmp_path / "whole")
    empty_file = ct / ascending(ct)[0].name.replace("0", "9")
    empty_file.touch()
    call(ct, "--model", "tissue", "--out", tmp_path / "part")
    uids = {dcmread(tmp_path / out / "report.dcm").SOPInstanceUID for out in ("whole", "part")}
    assert len(uids) == 2


def test_copies_and_non_images_are_counted_and_not_reported_as_missing(ct, tmp_path):
    shutil.copy(ascending(ct)[3], ct / "copy of one.dcm")
    (ct / ".hidden").touch()
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 0, answered.output
    assert summary_of(tmp_path / "out")["input"]["passed_over"] == {
        "copy of an instance that was read": 1,
        "empty file": 1,
    }
    assert dcmread(tmp_path / "out" / "report.dcm").CompletionFlag == "COMPLETE"


def in_rle(image):
    image.compress(RLELossless, generate_instance_uid=False)


def in_rle_with_other_pixels(image):
    image.PixelData = image.PixelData[:-2] + bytes([image.PixelData[-2] ^ 1, image.PixelData[-1]])
    in_rle(image)


def in_jpeg_that_loses(image):
    image.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    image.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].VR = "OB"


@pytest.mark.parametrize(
    ("recode", "reason", "exit_code"),
    [
        (in_rle, "copy of an instance that was read", 0),
        (in_rle_with_other_pixels, "another image of the series has its SOP Instance UID", 3),
        (
            in_jpeg_that_loses,
            "has the SOP Instance UID of an instance that was read, and their pixels can't be compared",
            3,
        ),
    ],
)
def test_copies_in_several_transfer_syntaxes_are_decoded_and_compared(ct, tmp_path, recode, reason, exit_code):
    image = dcmread(ascending(ct)[3])
    recode(image)
    image.save_as(ct / "recoded.dcm")
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == exit_code, answered.output
    assert f"recoded.dcm: {reason}" in answered.stderr
    assert summary_of(tmp_path / "out")["input"]["passed_over"] == {reason: 1}
    assert dcmread(tmp_path / "out" / "report.dcm").CompletionFlag == ("PARTIAL" if exit_code else "COMPLETE")


def test_folder_with_only_unreadable_dicom_files_names_them(ct, tmp_path):
    for path in ct.iterdir():
        path.write_bytes(path.read_bytes()[:900])
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 3
    assert "no DICOM file can be read" in answered.stderr
    assert "no DICOM series" not in answered.stderr
    assert f"and {len(list(ct.iterdir())) - 1} more files" in summary_of(tmp_path / "out")["reason"]


def corrected_patient_id(changed):
    changed.PatientID = changed.PatientID[:-1] + "9"


def other_pixels(changed):
    changed.PixelData = changed.PixelData[::-1]


@pytest.mark.parametrize("correction", [corrected_patient_id, other_pixels])
def test_corrected_series_is_segmented_again_even_with_unchanged_file_sizes(ct, tmp_path, correction):
    arguments = (ct, "--model", "tissue", "--out", tmp_path / "out", "--json")
    assert [call(*arguments).exit_code for _ in range(2)] == [0, 0]
    assert json.loads(call(*arguments).stdout)[0]["skipped"]
    sizes = [path.stat().st_size for path in ascending(ct)]
    for path in ct.iterdir():
        rewritten(path, correction)
    assert [path.stat().st_size for path in ascending(ct)] == sizes
    (answered,) = json.loads(call(*arguments).stdout)
    assert not answered["skipped"]
    if correction is corrected_patient_id:
        assert dcmread(tmp_path / "out" / "report.dcm").PatientID.endswith("9")


# ---- series that hold more than one stack of images


def test_every_frame_refers_to_its_source_multi_frame_object(series, tmp_path):
    (tmp_path / "parts").mkdir()
    (whole,) = read_series_folder(series)
    count = len(whole.instances)
    ordered = replace(whole, instances=read_headers(ascending(series)))
    parts = enhanced(ordered, tmp_path / "parts", [range(count // 2, count), range(count // 2)])
    answered = call(tmp_path / "parts", "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 0, answered.output
    places = {
        (str(part.header.SOPInstanceUID), number): list(frame.PlanePositionSequence[0].ImagePositionPatient)
        for part in parts.instances
        for number, frame in enumerate(part.header.PerFrameFunctionalGroupsSequence, start=1)
    }
    segmentation = dcmread(tmp_path / "out" / "segmentation.dcm")
    seen = set()
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        reference = (str(source.ReferencedSOPInstanceUID), int(source.ReferencedFrameNumber))
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == pytest.approx(places[reference], abs=1e-6)
        seen.add(reference)
    assert seen == places.keys()
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        uid for uid, _ in places
    }
    assert measured_volumes(tmp_path / "out") == pytest.approx(measured_volumes_of(series, tmp_path))


def measured_volumes(folder):
    structures = json.loads((folder / "measurements.json").read_text())["structures"]
    return {structure["name"]: structure["volume_ml"] for structure in structures}


def measured_volumes_of(series, tmp_path):
    call(series, "--model", "tissue", "--out", tmp_path / "classic", "--no-dicom")
    return measured_volumes(tmp_path / "classic")


def leading_zeros(files):
    for number, path in enumerate(files):
        rewritten(path, lambda changed, uid=f"1.2.826.00.{number:05}.1": setattr(changed, "SOPInstanceUID", uid))


def rounded_positions(files):
    for number, path in enumerate(files):
        changed = dcmread(path)
        changed.ImagePositionPatient[2] = round(-100 + 0.625 * number, 1)
        changed.save_as(path)


def with_scout(files):
    scout = dcmread(files[0])
    scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    scout.save_as(files[0].parent / "scout.dcm")


@pytest.mark.parametrize("change", [leading_zeros, rounded_positions, with_scout])
def test_usable_series_are_used_and_their_attributes_copied_unchanged(ct, tmp_path, change):
    files = ascending(ct)
    change(files)
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 0, answered.output
    images = {str(dcmread(path).SOPInstanceUID) for path in files}
    segmentation = dcmread(tmp_path / "out" / "segmentation.dcm")
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} == images
    assert segmentation.SOPInstanceUID.is_valid
    assert summary_of(tmp_path / "out")["notes"] == (
        ["localizers in the series: 1, set aside"] if change is with_scout else []
    )


ODD = {
    "SpecificCharacterSet": ("CS", b"ISO-IR 100"),
    "PatientName": ("PN", "Müster^Jörg ".encode("latin1")),
    "PatientSex": ("CS", b"U-"),
    "PatientAge": ("AS", b"042 Y "),
    "PatientBirthDate": ("DA", b"1978.01.01"),
    "StudyID": ("SH", b"12345678901234567890"),
}


@pytest.mark.filterwarnings("always::UserWarning")
def test_odd_headers_give_results_and_no_line_of_a_library(ct, tmp_path):
    def make_odd(changed):
        for keyword, (vr, value) in ODD.items():
            changed[keyword] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)

    files = ascending(ct)
    for path in files:
        rewritten(path, make_odd)
    leading_zeros(files)
    answered = call(ct, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 0, answered.output
    assert names_in(tmp_path / "out") == DICOM_OUTPUTS
    assert answered.stderr == ""


# ---- several


@pytest.fixture
def archive(case, series, tmp_path) -> Path:
    """A series, another in two folders, one with a missing slice, a NIfTI file, and unrelated files."""
    folder = tmp_path / "archive"
    shutil.copytree(series, folder / "Doe^John" / "ct")
    for name, parts in (("split", 2), ("gap", 1)):
        (folder / name).mkdir(parents=True)
        stack = Stack(noise((8, 16, 16)))
        written = write_ct(folder / name, stack)
        if name == "gap":
            written.instances[3].path.unlink()
        for instance in written.instances[: 4 if parts == 2 else 0]:
            (folder / name / "first").mkdir(exist_ok=True)
            instance.path.rename(folder / name / "first" / instance.path.name)
    nifti_of(case, folder / "more" / "study.nii.gz")
    (folder / "DICOMDIR").write_bytes(b"no DICOM")
    return folder


def test_archive_gets_one_folder_per_ct_and_is_resumed_where_it_stopped(archive, series, tmp_path):
    arguments = (archive, "--recursive", "--model", "tissue", "--out", archive / "results", "--json")
    first = call(*arguments)
    assert first.exit_code == 3, first.output
    by_status: dict[str, list] = {}
    for summary in json.loads(first.stdout):
        by_status.setdefault(summary["status"], []).append(summary)
    assert [summary["input"]["files"] for summary in by_status["refused"]] == [7]
    assert "missing" in by_status["refused"][0]["reason"]
    assert sorted(summary["input"]["files"] for summary in by_status["segmented"]) == [
        1,
        8,
        len(list(series.iterdir())),
    ]
    assert (archive / "results" / "more" / "study" / "labels.nii.gz").is_file()

    killed_at = next(path for path in (archive / "results").iterdir() if path.name.startswith("2.25."))
    (killed_at / "summary.json").unlink()
    changed = archive / "more" / "study.nii.gz"
    changed.write_bytes(changed.read_bytes() + b"\0")
    second = {summary["folder"]: summary for summary in json.loads(call(*arguments).stdout)}
    ran = {folder for folder, summary in second.items() if summary["status"] == "segmented" and not summary["skipped"]}
    assert ran == {str(killed_at), str(archive / "results" / "more" / "study")}
    assert len(second) == 4
    third = json.loads(call(*arguments, "--structures", "bone_tissue").stdout)
    assert not any(summary["skipped"] for summary in third), "other results are requested"
    again = json.loads(call(*arguments, "--structures", "bone_tissue", "--again").stdout)
    assert not any(summary["skipped"] for summary in again)
    assert "Doe" not in "".join(path.read_text() for path in (archive / "results").rglob("*.json"))


def test_without_recursive_only_the_folder_itself_is_read(archive, tmp_path):
    answered = call(archive, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 1
    assert "--recursive looks into the folders below" in answered.stderr


def test_two_series_in_one_folder_get_a_folder_each_unless_one_is_chosen(series, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(series, both)
    other = write_ct(both, Stack(noise((8, 16, 16))))
    answered = call(both, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 0
    (first,) = read_series_folder(series)
    assert names_in(tmp_path / "out") == {first.series_instance_uid, other.series_instance_uid}
    call(both, "--model", "tissue", "--out", tmp_path / "one", "--series-uid", other.series_instance_uid)
    assert names_in(tmp_path / "one") == DICOM_OUTPUTS
    assert dcmread(tmp_path / "one" / "report.dcm").StudyInstanceUID == other.study_instance_uid


def test_two_files_with_one_name_do_not_overwrite_each_other(case, tmp_path):
    files = [nifti_of(case, tmp_path / name / "ct.nii.gz") for name in ("a", "b")]
    answered = call(*files, "--model", "tissue", "--out", tmp_path / "out")
    assert answered.exit_code == 1
    assert "one folder: ct" in answered.stderr


def test_no_file_name_leads_out_of_the_results_folder(tmp_path):
    names = ("...nii", "..nii.gz", "below/...nii.gz", "below/.nii")
    for name in names:
        nifti(tmp_path / "in" / "ct.nii", np.arange(8**3, dtype=np.int16).reshape(8, 8, 8))
        (tmp_path / "in" / "below").mkdir(exist_ok=True)
        suffix = ".nii.gz" if name.endswith(".gz") else ".nii"
        nib.save(nib.load(tmp_path / "in" / "ct.nii"), tmp_path / f"made{suffix}")
        (tmp_path / f"made{suffix}").rename(tmp_path / "in" / name)
        (tmp_path / "in" / "ct.nii").unlink()
        out = tmp_path / "results" / "of" / name.replace("/", "-")
        assert call(tmp_path / "in", "--model", "tissue", "--out", out, "--recursive").exit_code == 0
        written = [path for path in tmp_path.rglob("labels.nii.gz") if out in path.parents]
        assert [path.parent.name for path in written] == ["nifti"]
        (tmp_path / "in" / name).unlink()
    assert sorted(path.name for path in (tmp_path / "results" / "of").iterdir()) == sorted(
        name.replace("/", "-") for name in names
    )


def test_series_that_cannot_be_encoded_leaves_only_its_reason(series, tmp_path, monkeypatch):
    failed = threading.Event()

    def after_the_failure(folder, *given, write=outputs.write_label_map):
        assert failed.wait(60)
        write(folder, *given)

    def fail(*_):
        failed.set()
        raise EncodingError("the SEG did not read back equal")

    monkeypatch.setattr(outputs, "write_label_map", after_the_failure)
    monkeypatch.setattr(outputs, "write_results", fail)
    assert call(series, "--model", "tissue", "--out", tmp_path).exit_code == 3
    assert names_in(tmp_path) == {"summary.json"}


def test_torch_is_not_loaded_for_networks_that_openvino_runs(case, package, tmp_path):
    file = nifti_of(case, tmp_path / "ct.nii.gz")
    program = (
        "import sys; from dicom_node.cli import main\n"
        f"main(['segment', {str(file)!r}, '--model', {str(package.folder)!r}, '--device', 'cpu', '--json',"
        f" '--out', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'nnunetv2', 'highdicom', 'sqlalchemy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["status"] == "segmented"
    assert done.stderr.splitlines()[-1] == "[]"


def test_terminal_shows_a_progress_bar_and_stdout_contains_only_the_answer(tmp_path):
    (tmp_path / "ct").mkdir()
    write_ct(tmp_path / "ct", Stack(noise((8, 16, 16))))
    command = [sys.executable, "-m", "dicom_node.cli", "segment", tmp_path / "ct", "--model", "tissue"]
    ours, terminal = pty.openpty()
    done = subprocess.run([*command, "--out", tmp_path / "out"], stdout=subprocess.PIPE, stderr=terminal, check=True)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # the end of a pseudo-terminal
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert b"100% segmented" in shown
    (line,) = done.stdout.decode().splitlines()
    assert line.endswith(f"in {tmp_path / 'out'}")
