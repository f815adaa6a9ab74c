"""The borders at which exceptions of other packages become errors of our tree: exactly those named in errors.py, and
real faults below each of them are raised as the error named there.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import sqlalchemy
import yaml
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, SegmentationStorage

import inference.errors
from dicom_node import analysis, errors, nifti
from dicom_node.age_study.sources import read_source
from dicom_node.app.listening import run_listener
from dicom_node.app.places import DEMO_MODEL, shipped_model, write_configuration
from dicom_node.app.stores import open_store
from dicom_node.cohort import definition
from dicom_node.cohort.dicomweb import WebArchive, _credentials
from dicom_node.cohort.intake import Intake
from dicom_node.cohort.pseudonym import Pseudonyms, read_key, write_new_key
from dicom_node.cohort.run import _alone
from dicom_node.cohort.sources import read_list
from dicom_node.cohort.subject import Dates
from dicom_node.cohort.table import CohortTable, Origin, read_rows
from dicom_node.compare.scores import read_scored
from dicom_node.constancy.baseline import read_baseline, record_check
from dicom_node.constancy.subject import model_of_library
from dicom_node.dataset.conversion import remove
from dicom_node.dataset.files import make_folder, write_text
from dicom_node.dataset.processes import in_processes
from dicom_node.encode.codes import algorithm_family
from dicom_node.encode.run import encode
from dicom_node.encode.source.planes import plane_attributes
from dicom_node.encode.source.values import finite_numbers
from dicom_node.encode.sr.notice import notice_file
from dicom_node.evaluate.cases import Truth
from dicom_node.evaluate.predicting import segmented
from dicom_node.evaluate.tables import write_parquet
from dicom_node.labelmaps import ContourObject, LabelFile, NiftiImage, SegmentationObject
from dicom_node.labelmaps.finding import read_meta
from dicom_node.labelmaps.nifti_files import read_label_file, read_names
from dicom_node.network import requestor
from dicom_node.network.pdu import AssociationAcceptance, AssociationRequest, Rejection
from dicom_node.network.requestor import Association, OutgoingFile, Peer
from dicom_node.network.transport import Transport
from dicom_node.percentiles import read_percentiles
from dicom_node.reading.reader import ImageReader
from dicom_node.reconstruct import reconstruct
from dicom_node.results import read_report, read_segmentation
from dicom_node.segment import inputs, outputs
from dicom_node.segment.case import Wanted
from dicom_node.segment.model import find_model
from dicom_node.segment.run import SegmentRun
from dicom_node.settings import NnunetModelSettings, OperateSettings, TissueModelSettings, WorkSettings, load_settings
from dicom_node.standard import files
from dicom_node.standard.files import read_headers
from dicom_node.standard.opening import open_part10
from dicom_node.standard.part10 import FileMeta, elements, file_of
from dicom_node.standard.raw_elements import raw_element, raw_items
from dicom_node.store import workers
from dicom_node.store.database import Database
from dicom_node.store.disk import DiskWatermark
from dicom_node.store.spool import Spool
from dicom_node.store.workers import WorkerName
from dicom_node.types import ResultRequest, SegmentationForm
from dicom_node.work.local import LocalWorker
from dicom_node.work.models import describe_model
from inference.nnunet.contract import EngineOptions
from inference.tissue import TissueSegmenter
from inference.types import Geometry, Segmentation, Volume
from tests.support import ct_series
from tests.support.analysis_results import CONTEXT, MODEL, geometry, measured, reconstruction, segmentation
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.received_series import write_instance

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")

PROGRAMS = {"cli", "demo"}
"""The topmost modules: an error in them ends the command."""
FOR_PYDANTIC = {"settings.models", "route.rules_file"}
TREES = (errors, inference.errors)


def classes(tree) -> set[str]:
    return {name for name, each in vars(tree).items() if isinstance(each, type) and issubclass(each, Exception)}


def borders(tree=errors) -> dict[str, set[str]]:
    """The table in the docstring: the errors of the tree by module."""
    _, _, table, *_ = re.split(r"^=+  =+  =+\n", tree.__doc__, flags=re.MULTILINE)
    rule = re.search(r"^=+  =+  =+$", tree.__doc__, flags=re.MULTILINE)[0]
    found: dict[str, set[str]] = {}
    module = ""
    for line in table.splitlines():
        module = line.split("  ", 1)[0].strip() or module
        found.setdefault(module, set()).update(word.strip(",") for word in line[rule.rindex(" ") :].split())
    return found


def raised_in_handlers(source: str, tree=errors) -> set[str]:
    """Names of what is raised in handlers of exceptions from outside the tree ('refusal' for a function)."""
    found = set()
    for handler in ast.walk(ast.parse(source)):
        if not isinstance(handler, ast.ExceptHandler):
            continue
        caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
        if caught and caught <= classes(tree):
            continue
        for node in ast.walk(handler):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                found.add(node.exc.func.id)
    return found


def modules(tree=errors) -> dict[str, Path]:
    room = Path(tree.__file__).parent
    named = {".".join(path.relative_to(room).with_suffix("").parts): path for path in room.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items() if name.split(".")[0] not in PROGRAMS}


def test_table_of_borders_is_parsed():
    assert borders()["store.database"] == {"StoreUnavailable", "ConfigurationError"}
    assert borders()["nifti"] == {"StoreUnavailable", "PixelDataInvalid", "GeometryRefused"}
    assert all(set().union(*borders(tree).values()) <= classes(tree) for tree in TREES)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_only_the_named_modules_translate_exceptions(tree):
    translating = {name for name, path in modules(tree).items() if raised_in_handlers(path.read_text("utf-8"), tree)}
    assert translating - FOR_PYDANTIC == set(borders(tree))


@pytest.mark.parametrize(
    ("tree", "module"), [(tree, module) for tree in TREES for module in sorted(borders(tree))], ids=str
)
def test_each_border_raises_the_errors_named_in_the_table(tree, module):
    raised = raised_in_handlers(modules(tree)[module].read_text("utf-8"), tree)
    assert raised & classes(tree) <= borders(tree)[module]
    assert raised - classes(tree) <= {"refusal", "_cut_short"}, "an exception from outside the tree"


@pytest.mark.parametrize(("tree", "root"), [(errors, "DicomNodeError"), (inference.errors, "InferenceError")])
def test_each_error_class_is_in_the_diagram(tree, root):
    assert {root, *re.findall(r"[├└]── (\w+)", tree.__doc__)} == classes(tree)


# ---- real faults, border by border

FAULTS: list[tuple[str, type[Exception], object]] = []
NIFTI_GZ = "ct.nii.gz"
KEY = bytes(range(32))


def fault(border: str, expected: type[Exception]):
    """Register a function that provokes a fault below ``border``; its argument is an empty folder."""

    def register(provoke):
        FAULTS.append((border, expected, provoke))
        return provoke

    return register


def in_file(folder: Path, content: bytes | str, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def limited(limit: int, most: int):
    """Limit a resource of this process until the block ends."""
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


@fault("settings.loader", errors.ConfigurationError)
def no_file(folder):
    load_settings(folder / "node.yaml")


@fault("settings.loader", errors.ConfigurationError)
def not_utf_8(folder):
    load_settings(in_file(folder, b"node: {ae_title: \xff}"))


@fault("settings.loader", errors.ConfigurationError)
def a_control_character(folder):
    load_settings(in_file(folder, "node: \x01"))


@fault("settings.loader", errors.ConfigurationError)
def an_open_bracket(folder):
    load_settings(in_file(folder, "node: ["))


@fault("settings.validation", errors.ConfigurationError)
def an_invalid_port(folder):
    load_settings(in_file(folder, yaml.safe_dump({"node": {"port": "eleven"}})))


@fault("app.stores", errors.ConfigurationError)
def a_data_folder_below_a_file(folder):
    in_file(folder, "", "data")
    open_store(load_settings(in_file(folder, yaml.safe_dump({"node": {"data_folder": "data/below"}}))))


@fault("app.listening", errors.ConfigurationError)
def a_port_that_is_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        node = {"data_folder": "data", "port": other.getsockname()[1]}
        run_listener(load_settings(in_file(folder, yaml.safe_dump({"node": node}))))


@fault("app.places", errors.ConfigurationError)
def a_configuration_folder_below_a_file(folder):
    write_configuration(in_file(folder, "") / "below")


@fault("analysis", errors.SegmentationImpossible)
def labels_of_another_grid(_):
    with analysis._translated("model"):
        Segmentation(np.zeros((2, 2, 2), np.uint8), geometry((3, 3, 3)), {1: "liver"}, MODEL)


@fault("analysis", errors.SegmentationImpossible)
def hu_that_are_not_finite(_):
    with analysis._translated("tissue"):
        TissueSegmenter().segment(Volume(np.full((3, 3, 3), np.nan, np.float32), geometry((3, 3, 3))), lambda *_: None)


# ---- files of the command `segment`


def nifti_file(folder: Path, **header: object) -> Path:
    """A valid compressed CT of 20 planes, except for the given fields of its ``header``."""
    grid = nifti.grid_of(geometry((20, 24, 24), spacing_xyz_mm=(2.0, 2.0, 2.0))).header
    grid.set_data_dtype(np.int16)
    grid["vox_offset"], grid["scl_slope"] = 352, 1
    for name, value in header.items():
        grid[name] = value
    voxels = np.random.default_rng(1).integers(-1000, 1000, (20, 24, 24)).astype("<i2")
    return in_file(folder, gzip.compress(grid.binaryblock + bytes(4) + voxels.tobytes()), NIFTI_GZ)


@fault("segment.inputs", errors.StoreUnavailable)
def a_missing_input(folder):
    inputs.NiftiFile(folder / "gone.nii", "gone").content_digest()


@fault("segment.model", errors.ConfigurationError)
def a_manifest_that_is_not_json(folder):
    shutil.copytree(shipped_model(DEMO_MODEL), folder / "model")
    next((folder / "model").glob("*.json")).write_text("{")
    find_model(str(folder / "model"), folder, EngineOptions())


@fault("segment.case", errors.ConfigurationError)
def weights_damaged_after_the_check(folder):
    shutil.copytree(shipped_model(DEMO_MODEL), folder / "model")
    model = find_model(str(folder / "model"), folder, EngineOptions())
    weights = next((folder / "model").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with SegmentRun(model, EngineOptions(device="cpu"), Wanted((), None)) as run:
        run.segment(inputs.NiftiFile(nifti_file(folder), "ct"), folder / "out", lambda *_: None)


@fault("evaluate.predicting", errors.ConfigurationError)
def weights_damaged_before_loading(folder):
    shutil.copytree(shipped_model(DEMO_MODEL), folder / "model")
    model = find_model(str(folder / "model"), folder, EngineOptions())
    weights = next((folder / "model").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    truth = Truth("s1", LabelFile(folder / "labels.nii.gz"), NiftiImage(nifti_file(folder)))
    segmented([truth], model, EngineOptions(device="cpu"), folder / "out", lambda *_: None)


@fault("evaluate.tables", errors.ConfigurationError)
def parquet_without_pyarrow(folder):
    with patch.dict(sys.modules, {"pyarrow": None}):
        write_parquet(folder / "scores.parquet", [])


@fault("compare.scores", errors.ConfigurationError)
def scores_of_an_evaluation_that_are_no_parquet(folder):
    summary = {"provenance": {}, "not_evaluated": []}
    (folder / "evaluation.json").write_text(json.dumps(summary))
    (folder / "scores.parquet").write_bytes(b"PAR1 and no more")
    read_scored("A", folder)


@fault("compare.scores", errors.ConfigurationError)
def the_summary_of_something_else(folder):
    (folder / "evaluation.json").write_text("{}")
    read_scored("A", folder)


@fault("segment.outputs", errors.ConfigurationError)
def results_below_a_file(folder):
    outputs.make_folder(in_file(folder, "") / "below")


@fault("nifti", errors.StoreUnavailable)
def a_folder_instead_of_a_file(folder):
    nifti.read_volume(folder)


@fault("nifti", errors.PixelDataInvalid)
def a_cut_gzip_stream(folder):
    path = nifti_file(folder)
    path.write_bytes(path.read_bytes()[:-2000])
    nifti.read_volume(path)


@fault("nifti", errors.PixelDataInvalid)
def a_changed_byte_in_a_gzip_stream(folder):
    path = nifti_file(folder)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the checksum
    path.write_bytes(content)
    nifti.read_volume(path)


@fault("nifti", errors.PixelDataInvalid)
def bytes_after_the_magic_of_gzip(folder):
    nifti.read_volume(in_file(folder, b"\x1f\x8b" + bytes(range(200)) * 9))


@fault("nifti", errors.GeometryRefused)
def a_quaternion_longer_than_one(folder):
    nifti.read_volume(nifti_file(folder, sform_code=0, quatern_b=1.0, quatern_c=1.0))


@fault("nifti", errors.GeometryRefused)
def an_sform_of_zero_extent(folder):
    nifti.read_volume(nifti_file(folder, srow_z=[0, 0, 0, 0]))


@fault("nifti", errors.PixelDataInvalid)
def a_table_of_names_that_is_not_xml(folder):
    path = folder / "labels.nii"
    nifti.write_labels(path, np.zeros((5, 12, 16), np.uint8), nifti.grid_of(geometry()), {1: "<]]>&"}, "")
    with nifti.open_labels(path):
        pass


# ---- a cohort


@fault("age_study.sources", errors.ConfigurationError)
def a_table_that_is_no_parquet(folder):
    read_source(in_file(folder, "no rows", "rows.parquet"))


@fault("age_study.sources", errors.ConfigurationError)
def a_truth_with_a_volume_that_is_no_number(folder):
    in_file(folder, "image_id;age;gender\ns1;40;f\n", "meta.csv")
    in_file(folder, "image_id,structure,volume_ml,mean_hu,truncated\ns1,liver,much,40,False\n", "truth.csv")
    read_source(folder)


@fault("percentiles", errors.ConfigurationError)
def reference_percentiles_that_do_not_exist(folder):
    read_percentiles(folder / "gone.json")


@fault("percentiles", errors.ConfigurationError)
def reference_percentiles_that_are_a_list(folder):
    read_percentiles(in_file(folder, "[1, 2]", "percentiles.json"))


@fault("cohort.definition", errors.ConfigurationError)
def a_missing_list_of_series(folder):
    definition._content(folder / "gone.txt")


@fault("cohort.sources", errors.ConfigurationError)
def a_list_of_series_that_is_not_text(folder):
    list(read_list(in_file(folder, b"1.2.3\xff")))


@contextmanager
def web_answering(status: int, content: bytes):
    """Start a web server that always gives the same response; returns its address."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask(url: str) -> None:
    archive = WebArchive(None, SimpleNamespace(url=url, timeout_s=5), None)
    try:
        archive._find("STUDY", {"StudyDate": "20260101"})
    finally:
        archive.close()


@fault("cohort.dicomweb", errors.ConnectionLost)
def an_unreachable_web_archive(_):
    ask(f"http://127.0.0.1:{free_port()}")


@fault("cohort.dicomweb", errors.ConnectionLost)
def a_web_archive_with_a_fault(_):
    with web_answering(503, b"") as url:
        ask(url)


@fault("cohort.dicomweb", errors.NetworkError)
def a_web_archive_without_qido(_):
    with web_answering(404, b"") as url:
        ask(url)


@fault("cohort.dicomweb", errors.NetworkError)
def a_web_page_instead_of_an_archive(_):
    with web_answering(200, b"<html>") as url:
        ask(url)


@fault("cohort.dicomweb", errors.ConfigurationError)
def a_netrc_file_of_another_kind(folder):
    _credentials(in_file(folder, "reader:secret"))


@fault("cohort.intake", errors.FileUnreadable)
def a_text_among_the_images(folder):
    Intake.take_file(None, in_file(folder, "not an image"))


@fault("cohort.pseudonym", errors.ConfigurationError)
def a_missing_key(folder):
    read_key(folder / "gone.key")


@fault("constancy.baseline", errors.ConfigurationError)
def a_baseline_that_is_a_folder(folder):
    (folder / "baseline.json").mkdir()
    read_baseline(folder)


@fault("constancy.baseline", errors.ConfigurationError)
def a_baseline_that_is_no_json(folder):
    in_file(folder, "{", "baseline.json")
    read_baseline(folder)


@fault("constancy.baseline", errors.ConfigurationError)
def a_line_about_a_check_below_a_file(folder):
    record_check(in_file(folder, ""), {})


@fault("constancy.subject", errors.ConfigurationError)
def a_model_whose_weights_are_gone_before_they_load(folder):
    package = shutil.copytree(shipped_model(DEMO_MODEL), folder / "mine")
    subject = model_of_library(str(package), folder, EngineOptions(device="cpu"))
    for path in package.glob("*.safetensors"):
        path.unlink()
    subject.segment(Volume(np.zeros((4, 4, 4), np.int16), Geometry((4, 4, 4), np.eye(4))))


@fault("cohort.pseudonym", errors.ConfigurationError)
def a_key_that_would_replace_another(folder):
    write_new_key(in_file(folder, "a key"))


@fault("cohort.run", errors.ConfigurationError)
def two_runs_on_one_data_set(folder):
    with _alone(folder), _alone(folder):
        pass


@fault("cohort.table", errors.ConfigurationError)
def a_cohort_below_a_file(folder):
    CohortTable(in_file(folder, "") / "below").open_for(Pseudonyms.of_key(KEY), Dates.SHIFTED)


@fault("cohort.table", errors.ConfigurationError)
def rows_that_are_not_parquet(folder):
    (folder / "measurements").mkdir()
    in_file(folder / "measurements", "no rows", "a.parquet")
    read_rows(folder)


@fault("cohort.table", errors.StoreUnavailable)
def rows_of_a_removed_data_set(folder):
    CohortTable(folder / "gone").write_reason("ab" * 16, "a", "b", Origin.COMPUTED, "refused", "too few slices")


# ---- reading results back


def a_seg(folder: Path, names: dict[int, str] | None = None, requests: dict[str, ResultRequest] | None = None) -> Path:
    source = reconstruction()
    labels = segmentation(source.source.geometry, names or {1: "liver"})
    results = encode(source, labels, measured(source, labels), CONTEXT, requests)
    content = next(bytes(each.content) for each in results if each.kind in ("SEG", "RTSTRUCT"))
    return in_file(folder, content, "seg.dcm")


@fault("results", errors.ResultUnreadable)
def a_missing_result(folder):
    read_report(folder / "gone.dcm")


@fault("results", errors.ResultUnreadable)
def a_result_that_is_not_dicom(folder):
    read_report(in_file(folder, "no DICOM at all"))


@fault("results", errors.ResultUnreadable)
def a_truncated_result(folder):
    path = a_seg(folder)
    path.write_bytes(path.read_bytes()[:-200])
    read_segmentation(path)


@fault("results", errors.ResultUnreadable)
def a_result_without_frame_positions(folder):
    path = a_seg(folder)
    dataset = dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(path)
    read_segmentation(path)


def with_equal_names(path: Path, sequence: str, name: str) -> Path:
    dataset = dcmread(path)
    for item in dataset[sequence].value:
        setattr(item, name, "the same")
    dataset.save_as(path)
    return path


@fault("dataset.conversion", errors.ConfigurationError)
def a_folder_where_a_record_should_be(folder):
    (folder / "Dataset301_a" / "subjects" / "s1.json").mkdir(parents=True)
    remove(folder, "Dataset301_a", "s1")


@fault("dataset.files", errors.ConfigurationError)
def a_folder_below_a_file(folder):
    make_folder(in_file(folder, "") / "below")


@fault("dataset.files", errors.ConfigurationError)
def a_data_set_below_a_file(folder):
    write_text(in_file(folder, "") / "below" / "meta.csv", "")


@fault("dataset.processes", errors.WorkerLost)
def a_process_that_ends_before_its_work_is_done(_):
    list(in_processes(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], 2))


@fault("labelmaps.sources", errors.ResultUnreadable)
def two_segments_with_one_name(folder):
    SegmentationObject(
        with_equal_names(a_seg(folder, {1: "liver", 2: "spleen"}), "SegmentSequence", "SegmentLabel")
    ).read()


@fault("labelmaps.contours", errors.ResultUnreadable)
def two_regions_with_one_name(folder):
    request = {"planning": ResultRequest(report=False, segmentation=SegmentationForm.NONE, contours=("organ",))}
    path = a_seg(folder, {1: "liver", 2: "spleen"}, request)
    ContourObject(with_equal_names(path, "StructureSetROISequence", "ROIName")).read(geometry())


@fault("labelmaps.finding", errors.ConfigurationError)
def a_missing_table_of_subjects(folder):
    read_meta(folder / "meta.csv")


@fault("labelmaps.nifti_files", errors.ResultUnreadable)
def a_missing_table_of_names(folder):
    read_names(folder / "labels.json")


@fault("labelmaps.nifti_files", errors.ResultUnreadable)
def labels_of_regions(folder):
    read_names(in_file(folder, '{"labels": {"whole": [1, 2]}}', "dataset.json"))


@fault("labelmaps.nifti_files", errors.ResultUnreadable)
def a_label_without_a_name(folder):
    path = folder / "labels.nii.gz"
    nifti.write_labels(path, np.ones((5, 12, 16), np.uint8), nifti.grid_of(geometry()), {1: "liver"}, "")
    read_label_file(path, {2: "spleen"})


# ---- encode


@fault("encode.codes", errors.EncodingError)
def an_algorithm_family_without_a_code(_):
    algorithm_family("Astrology")


@fault("encode.run", errors.EncodingError)
def a_run_without_a_start(_):
    source = reconstruction()
    labels = segmentation(source.source.geometry, {1: "liver"})
    encode(source, labels, measured(source, labels), replace(CONTEXT, started_at=None))


@fault("encode.segments", errors.EncodingError)
def a_structure_without_codes(_):
    source = reconstruction()
    labels = segmentation(source.source.geometry, {1: "left_wing"})
    encode(source, labels, measured(source, labels), CONTEXT)


def with_raw(keyword: str, vr: str, value: bytes) -> Dataset:
    """A data set with one raw element, which pydicom has not parsed yet."""
    dataset = Dataset()
    tag = Tag(keyword)
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    return dataset


@fault("standard.raw_elements", errors.EncodingError)
def a_number_that_its_vr_cannot_hold(_):
    header = Dataset()
    header.add_new("Rows", "US", 2**16)
    raw_element(header, "Rows")


@fault("standard.raw_elements", errors.EncodingError)
def an_invalid_sequence(_):
    header = Dataset()
    header.add_new("Rows", "US", 5)
    raw_items(header, "Rows")


@fault("encode.source.planes", errors.EncodingError)
def a_frame_without_description(_):
    header = Dataset()
    header.PerFrameFunctionalGroupsSequence = [Dataset()]
    plane_attributes(header, 2)


@fault("encode.source.values", errors.EncodingError)
def an_invalid_number(_):
    finite_numbers(with_raw("PixelSpacing", "DS", b"wide\\0.5"), "PixelSpacing", 2)


@fault("encode.sr.notice", errors.EncodingError)
def a_start_without_a_time(_):
    notice_file(reconstruction().headers, "model", "too few slices", replace(CONTEXT, started_at=None))


# ---- reconstruct


def a_series(folder: Path):
    return ct_series.write(folder, ct_series.Stack(ct_series.noise((20, 16, 16))))


@fault("reconstruct", errors.StoreUnavailable)
def a_missing_slice_file(folder):
    series = a_series(folder)
    series.instances[3].path.unlink()
    reconstruct(series)


@fault("standard.attributes", errors.GeometryRefused)
def a_position_that_is_not_a_number(folder):
    def change(header):
        header._dict.update(with_raw("ImagePositionPatient", "DS", b"here\\there\\0")._dict)

    reconstruct(ct_series.bent(a_series(folder), change, 3))


@fault("reconstruct.pixels", errors.PixelDataInvalid)
def an_overwritten_slice(folder):
    series = a_series(folder)
    in_file(folder, b"\0" * 500, series.instances[3].path.name)
    reconstruct(series)


# ---- work


@fault("work.local", errors.WorkerLost)
def no_descriptor_left_for_a_child(_):
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    worker = LocalWorker("tissue", TissueModelSettings(kind="tissue"), WorkSettings())
    volume = Volume(np.zeros((4, 4, 4), np.int16), Geometry((4, 4, 4), np.eye(4)))
    try:
        with limited(resource.RLIMIT_NOFILE, open_now):
            worker.segment(volume, lambda *_: None)
    finally:
        worker.close()


@fault("reading.reader", errors.ReaderLost)
def no_descriptor_left_for_a_reader(_):
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    with ImageReader() as reader, limited(resource.RLIMIT_NOFILE, open_now):
        reader.read([Path("any")])


@fault("work.models", errors.ConfigurationError)
def a_package_without_a_manifest(folder):
    describe_model("demo", NnunetModelSettings(kind="nnunet", package=folder), WorkSettings())


# ---- store


@fault("store.database", errors.ConfigurationError)
def an_invalid_url(_):
    Database("no url")


@fault("store.database", errors.ConfigurationError)
def an_unknown_kind_of_database(_):
    Database("oracel://host/name")


@fault("store.database", errors.ConfigurationError)
def a_port_that_is_not_a_number(_):
    Database("postgresql+psycopg://node:secret@host:port/name")


@fault("store.database", errors.StoreUnavailable)
def an_unreachable_database_server(_):
    Database(f"postgresql+psycopg://node@127.0.0.1:{free_port()}/postgres").upgrade()


@fault("store.database", errors.StoreUnavailable)
def a_ledger_that_is_not_a_database(folder):
    Database(f"sqlite:///{in_file(folder, b'x' * 5000)}").upgrade()


@fault("store.database", errors.StoreUnavailable)
def a_ledger_in_a_missing_folder(folder):
    Database(f"sqlite:///{folder / 'gone' / 'ledger'}").upgrade()


@fault("store.database", errors.StoreUnavailable)
def a_ledger_on_a_full_disk(folder):
    database = Database(f"sqlite:///{folder / 'ledger'}")
    with limited(resource.RLIMIT_FSIZE, 0):
        database.upgrade()


@fault("store.database", errors.StoreUnavailable)
def a_ledger_with_a_missing_table(folder):
    database = Database(f"sqlite:///{folder / 'ledger'}")
    database.upgrade()
    with sqlite3.connect(folder / "ledger") as other:
        other.execute("DROP TABLE delivery")
    with database.read() as db:
        db.exec_driver_sql("SELECT * FROM delivery")


@fault("store.database", errors.StoreUnavailable)
def every_connection_in_use(folder):
    database = Database(f"sqlite:///{folder / 'ledger'}")
    database._engine = sqlalchemy.create_engine(database._url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with database.read(), database.read():
        pass


@fault("store.disk", errors.StoreUnavailable)
def a_missing_disk(folder):
    DiskWatermark(folder / "gone", OperateSettings()).look()


@fault("store.spool", errors.StoreUnavailable)
def a_spool_below_a_file(folder):
    Spool(in_file(folder, "") / "spool")


@fault("store.spool", errors.StoreUnavailable)
def an_instance_beyond_a_quota(folder):
    spool = Spool(folder / "spool")
    with limited(resource.RLIMIT_FSIZE, 1000):
        write_instance(spool, FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), bytes(2000))


@fault("store.spool", errors.StoreFull)
def an_instance_on_a_full_disk(folder):
    meta, write = FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), os.write
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", lambda _, data: write(full.fileno(), data))
        write_instance(Spool(folder / "spool"), meta, bytes(2000))


@fault("store.workers", errors.ConfigurationError)
def a_machine_without_proc(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "_PROC", folder)
        WorkerName.own()


# ---- network


@fault("network.pdu", errors.ProtocolFault)
def a_truncated_rejection(_):
    Rejection.decode(memoryview(b"\0\1"))


@fault("network.pdu", errors.ProtocolFault)
def a_request_of_noise(_):
    AssociationRequest.decode(memoryview(os.urandom(400)))


@fault("network.pdu", errors.ProtocolFault)
def an_acceptance_of_noise(_):
    AssociationAcceptance.decode(memoryview(os.urandom(400)))


OFFERS = [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]


@fault("network.requestor", errors.ConnectionLost)
def a_port_without_listener(_):
    Association(Peer("PEER", "127.0.0.1", free_port(), 5.0, 5.0, 16384), "NODE", OFFERS)


@fault("network.requestor", errors.NotSendable)
def a_result_that_is_not_a_part_10_file(folder):
    store_at_a_peer(in_file(folder, "no DICOM"))


@fault("network.requestor", errors.NotSendable)
def a_deleted_result(folder):
    store_at_a_peer(folder / "gone.dcm")


def store_at_a_peer(path: Path) -> None:
    """C-STORE to a PACS that accepts SEGs; refused before anything is sent, only because of the file."""
    syntax = "1.2.840.10008.1.2.1"
    with scripted_pacs() as (port, stored):
        peer = Peer("PACS", "127.0.0.1", port, 5.0, 5.0, 16384)
        with Association(peer, "NODE", [(SegmentationStorage, syntax)]) as association:
            assert association.accepts(SegmentationStorage, syntax)
            association.store(OutgoingFile(path, SegmentationStorage, "1.2.3", syntax))
    assert not stored


@fault("network.requestor", errors.ProtocolFault)
def an_identifier_that_is_not_a_data_set(_):
    sequence_without_an_end = struct.pack("<HHIH", 0x0008, 0x1140, 0xFFFFFFFF, 1)
    requestor._decoded(sequence_without_an_end, is_implicit=True)


@fault("network.transport", errors.ConnectionLost)
def a_connection_that_was_reset(_):
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport = Transport(near, 16384)
    far.close()
    try:
        transport.read_pdu(5.0)
    finally:
        transport.close()


# ---- standard


@fault("standard.files", errors.StoreUnavailable)
def a_missing_file(folder):
    read_headers([folder / "gone.dcm"])


@fault("standard.files", errors.PixelDataInvalid)
def a_file_that_is_not_dicom(folder):
    read_headers([in_file(folder, b"no DICOM at all" * 50)])


@fault("standard.files", errors.FileUnreadable)
def a_truncated_sequence(folder):
    series = ct_series.write(folder, ct_series.Stack(ct_series.noise((3, 4, 4))))
    path = series.instances[0].path
    content = path.read_bytes()
    at = content.index(struct.pack("<HH2s", 0x08, 0x16, b"UI"))
    character_set = struct.pack("<HH2sHL", 0x08, 0x05, b"SQ", 0, 1) + b"\0"
    path.write_bytes(content[:at] + character_set + content[at:])
    files._read(path)


@fault("standard.opening", errors.FileUnreadable)
def an_invalid_deflated_data_set(folder):
    deflated = FileMeta("1.2", "1.2.3", DeflatedExplicitVRLittleEndian).encoded()
    open_part10(in_file(folder, deflated + b"not deflated at all"))


@fault("standard.part10", errors.EncodingError)
def an_object_with_a_value_that_its_vr_cannot_hold(_):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2", "1.2.3", "SEG"
    dataset.add_new("Rows", "US", -1)
    file_of(dataset)


@fault("standard.part10", errors.EncodingError)
def truncated_elements(_):
    list(elements(memoryview(bytes(3))))


@pytest.mark.parametrize(
    ("expected", "provoke"),
    [
        pytest.param(expected, provoke, id=f"{border}-{provoke.__name__.strip('_')}")
        for border, expected, provoke in FAULTS
    ],
)
def test_fault_below_a_border_is_raised_as_the_named_error(tmp_path, expected, provoke):
    with pytest.raises(errors.DicomNodeError) as raised:
        provoke(tmp_path)
    assert type(raised.value) is expected
    assert "None" not in str(raised.value)


def test_every_error_of_every_border_has_a_fault():
    provoked = [(border, expected) for border, expected, _ in FAULTS]
    missing = {
        (border, name)
        for border, names in borders().items()
        for name in names
        if not any(border == at and issubclass(expected, getattr(errors, name)) for at, expected in provoked)
    }
    assert missing == set()
    assert {border for border, _ in provoked} <= set(borders())
