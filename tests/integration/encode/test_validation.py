"""Every kind of result checked by dciodvfy: no error, and every warning explained in docs/operators/validation.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node.encode.run import encode, encode_notice
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from dicom_node.standard.files import read_series_folder
from dicom_node.types import EarlierResult, EncodedResult, Reconstruction, ResultKind, ResultRequest, SegmentationForm
from inference.measure import measure
from inference.types import ModelIdentity
from tests.support.analysis_results import CONTEXT, GRIDS, measured, reconstruction, segmentation, with_headers
from tests.support.reference_percentiles import curve, references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom import Dataset

    from inference.types import Measurements, Segmentation

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "operators" / "validation.md"
NAMES = {1: "kidney_left", 2: "kidney_right", 3: "vertebrae_L1", 4: "soft_tissue", 5: "bone_tissue"}
MODEL = ModelIdentity("phantom-demo", "3", "ab" * 32, "nnU-Net")
REQUESTS = {
    "all": ResultRequest(SegmentationForm.BOTH, contours=("organ", "tissue"), capture=True, document=True),
    "label maps": ResultRequest(
        SegmentationForm.LABELMAP, background=False, ibsi_codes=True, shape=True, percentiles="of all"
    ),
    "report alone": ResultRequest(SegmentationForm.NONE, capture=True, percentiles="of volumes"),
}
PERCENTILES = {
    "of all": references(
        tuple(
            curve(name, quantity, "F", first, last)
            for name in NAMES.values()
            for quantity, first, last in (("volume_ml", 0.0, 1000.0), ("mean_hu", -1000.0, 1000.0))
        )
    ),
    "of volumes": references(tuple(curve(name, "volume_ml", "F", -1.0, 0.0) for name in NAMES.values())),
}
"""A report with numbers, and one in which every volume is above the outermost percentile."""
REAL_SERIES = ("derived/legacy_enhanced_CT_STS_008", "theibsi+data_sets/ibsi2_orientation")


def knee(header: Dataset) -> None:
    header.BodyPartExamined, header.Laterality = "KNEE", "L"


def knee_of_unknown_side(header: Dataset) -> None:
    header.BodyPartExamined, header.Laterality = "KNEE", "B"


def sparse(header: Dataset) -> None:
    for keyword in ("BodyPartExamined", "StudyID", "StudyDate", "Manufacturer", "PositionReferenceIndicator"):
        delattr(header, keyword)
    header.PatientName = "Anonymous"


def lossy(header: Dataset) -> None:
    header.LossyImageCompression = "01"
    header.LossyImageCompressionRatio = ["10", "3.5"]
    header.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]


def own_body_part(header: Dataset) -> None:
    header.BodyPartExamined = "TORSO_1"


SERIES: dict[str, tuple[str, Callable[[Dataset], None] | None]] = {
    "typical": ("axial", None),
    "prone, odd sizes": ("prone", None),
    "oblique, almost no attributes": ("oblique", sparse),
    "tilted, of a knee": ("tilted", knee),
    "multi-frame, tilted, lossy": ("multi-frame, tilted", lossy),
    "one plane, side unknown": ("one plane", knee_of_unknown_side),
    "feet first, a body part of its own": ("feet first", own_body_part),
}


def results(source: Reconstruction) -> Iterator[EncodedResult]:
    """All kinds of all variants; of the captures only the last of each series, and the page."""
    shape = source.source.geometry.shape_zyx
    found = np.zeros(shape, dtype=np.uint8)
    for label in NAMES:
        found[(label * shape[0]) // 6 :, shape[1] // 6 * label :, label::2] = label
    labels = segmentation(source.source.geometry, NAMES, found, MODEL)
    measurements = measure(source.source, labels, with_shape=True)
    made = encode(source, labels, measurements, CONTEXT, REQUESTS, PERCENTILES)
    captures = {result.series_instance_uid: result for result in made if result.kind is ResultKind.CAPTURE}
    yield from (result for result in made if result.kind is not ResultKind.CAPTURE)
    yield from captures.values()
    nothing = segmentation(source.source.geometry, NAMES, np.zeros_like(found), MODEL)
    yield from encode(source, nothing, measured(source, nothing), CONTEXT)
    yield from encode_notice(source.headers, MODEL.name, "gantry tilt of 12 degrees", CONTEXT, ("all",))
    yield from replacements(made, source, labels, measurements)


def replacements(
    made: tuple[EncodedResult, ...], source: Reconstruction, labels: Segmentation, measurements: Measurements
) -> Iterator[EncodedResult]:
    """What the next revision makes to replace SEG, label map and report, and a notice that is its only result."""
    held = tuple(
        EarlierResult(each.kind, each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid, "2.25.9", 1)
        for each in made
        if "all" in each.destinations and each.kind is not ResultKind.CAPTURE
    )
    revised = replace(CONTEXT, revision=2, missing_instances=3, earlier={"all": held})
    yield from encode(source, labels, measurements, revised, {"all": ResultRequest(SegmentationForm.BOTH)})
    yield from encode_notice(source.headers, MODEL.name, "gantry tilt of 12 degrees", revised, ("all",))


def complaints(result: EncodedResult, folder: Path) -> set[str]:
    program = shutil.which("dciodvfy")
    assert program, "dciodvfy is not installed (apt: dicom3tools)"
    path = folder / "result.dcm"
    path.write_bytes(result.content)
    done = subprocess.run([program, str(path)], capture_output=True, check=False, timeout=60)
    printed = (done.stdout + done.stderr).decode("utf-8", errors="replace")
    # it also names the IOD
    return {" ".join(line.split()) for line in printed.splitlines() if line.startswith(("Error", "Warning"))}


class Explained:
    """The messages in the tables of docs/operators/validation.md, and the kinds of result to which they apply."""

    def __init__(self) -> None:
        rows = re.findall(r"^\| `((?:Error|Warning) - .*?)` \| (.*?) \|", DOCUMENT.read_text(), flags=re.MULTILINE)
        self.rows = {(message, kind) for message, kinds in rows for kind in kinds.split(", ")}
        self.used: set[tuple[str, str]] = set()

    def explains(self, message: str, kind: ResultKind) -> bool:
        found = {
            (pattern, of)
            for pattern, of in self.rows
            if of in ("all", str(kind)) and re.fullmatch(re.escape(pattern).replace("…", ".*"), message)
        }
        self.used |= found
        return bool(found)


@pytest.fixture(scope="module")
def explained() -> Explained:
    return Explained()


@pytest.mark.parametrize("name", SERIES)
def test_every_message_about_any_kind_of_result_is_explained(name: str, explained: Explained, tmp_path: Path) -> None:
    grid_name, change = SERIES[name]
    grid, multi_frame = GRIDS[grid_name]
    source = reconstruction(grid, multi_frame=multi_frame)
    if change is not None:
        with_headers(source, change)
    assert_explained(source, explained, tmp_path)


def assert_explained(source: Reconstruction, explained: Explained, folder: Path) -> None:
    kinds = set()
    for result in results(source):
        kinds.add(result.kind)
        unexplained = {said for said in complaints(result, folder) if not explained.explains(said, result.kind)}
        assert (result.kind, unexplained) == (result.kind, set())
    assert kinds == set(ResultKind)


@pytest.mark.parametrize("name", REAL_SERIES)
def test_every_message_about_results_of_real_series_is_explained(
    name: str, explained: Explained, shared_data: Path, tmp_path: Path
) -> None:
    (series,) = read_series_folder(shared_data / name)
    assert_explained(reconstruct(series, ReconstructionLimits(minimum_planes=2)), explained, tmp_path)


def test_no_explanation_is_out_of_date(explained: Explained, request: pytest.FixtureRequest) -> None:
    """Runs after the other tests in this file."""
    ran = {item.name for item in request.session.items if item.path == request.path}
    if len([name for name in ran if name.startswith("test_every_message_about_any")]) < len(SERIES):
        pytest.skip("not all series were checked")
    assert explained.rows - explained.used == set()


def test_errors_are_explained_only_for_label_maps_and_reports_on_them(explained: Explained) -> None:
    """Reports on label maps are of the same kind as other reports, for which no other test allows an error."""
    errors = {(message, kind) for message, kind in explained.rows if message.startswith("Error")}
    assert {kind for _, kind in errors} == {"LABELMAP", "SR"}
    (of_reports,) = (message for message, kind in errors if kind == "SR")
    assert "for Referenced SOP Class that is not segmentation" in of_reports
