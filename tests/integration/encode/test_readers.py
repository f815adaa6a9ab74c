"""Our SEG and SR as other programs read them: dciodvfy and DCMTK, dcmqi (used by 3D Slicer), highdicom."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own habit
from pydicom import dcmread

from dicom_node.encode.run import encode
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from dicom_node.standard.files import read_series_folder
from dicom_node.types import Reconstruction, ResultKind, ResultRequest, SegmentationForm
from inference.structures import structure
from inference.types import Geometry, Measurements, ModelIdentity, Segmentation
from tests.support.analysis_results import CONTEXT, GRIDS, MODEL, measured, reconstruction, segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat", 201: "liver"}
TISSUES = {11: "air_in_body", 22: "body_fat", 33: "soft_tissue", 44: "bone_tissue", 201: "liver"}
TISSUE_MODEL = ModelIdentity("tissue", "1", "cd" * 32, "Thresholding")
REAL_SERIES = (
    "derived/totalsegmentator_example_sendable",
    "derived/legacy_enhanced_CT_STS_008",
    "theibsi+data_sets/STS_008_CT",
    "theibsi+data_sets/ibsi2_orientation",
    "ShahinSHH+COVID-CT-MD/cap001_subset",
    "neurolabusc+dcm_qa_ct/Philips_S21610_S2010_tilt-18.5",
)


class Run:
    """One run of encode, with its results as files."""

    def __init__(
        self,
        source: Reconstruction,
        labels: Segmentation,
        folder: Path,
        form: SegmentationForm = SegmentationForm.BINARY,
    ) -> None:
        self.source, self.labels = source, labels
        self.measurements: Measurements = measured(source, labels)
        self.files: dict[ResultKind, Path] = {}
        for result in encode(source, labels, self.measurements, CONTEXT, {"pacs": ResultRequest(form)}):
            self.files[result.kind] = folder / f"{result.kind}.dcm"
            self.files[result.kind].write_bytes(result.content)

    @property
    def grid(self) -> Geometry:
        return self.source.source.geometry

    @property
    def label_by_number(self) -> np.ndarray:
        return np.array([0, *(structure.label for structure in self.measurements.structures)], dtype=np.uint8)


def labels_of(grid: Geometry, names: dict[int, str]) -> np.ndarray:
    """Labels that every flip, shift or transposition changes."""
    z, y, x = np.indices(grid.shape_zyx)
    places = (z / max(grid.shape_zyx[0], 2), y / grid.shape_zyx[1], x / grid.shape_zyx[2])
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    for index, label in enumerate(sorted(names)[:4]):
        low, width = 0.05 + 0.17 * index, (0.8, 0.4, 0.2)
        inside = [(place >= low) & (place < low + extent) for place, extent in zip(places, width, strict=True)]
        labels[np.logical_and.reduce(inside)] = label
        labels[-1, -1 - index, -1 - 2 * index] = label
    return labels


@pytest.fixture(params=list(GRIDS), scope="module")
def synthetic_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    grid, multi_frame = GRIDS[request.param]
    source = reconstruction(grid, multi_frame=multi_frame)
    if grid.shape_zyx == (1, 1, 1):
        labels = segmentation(grid, {3: "kidney_left"}, np.full((1, 1, 1), 3))
    else:
        labels = segmentation(grid, NAMES, labels_of(grid, NAMES))
    return Run(source, labels, tmp_path_factory.mktemp("results"))


@pytest.fixture(
    params=[
        "axial",
        "prone",
        "feet first",
        "oblique",
        "multi-frame",
        "sizes divisible by eight",
        "one plane",
        "one voxel",
    ]
)
def labelmap_run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    grid, multi_frame = GRIDS[request.param]
    names = {3: "kidney_left"} if grid.shape_zyx == (1, 1, 1) else NAMES
    labels = np.full((1, 1, 1), 3) if grid.shape_zyx == (1, 1, 1) else labels_of(grid, NAMES)
    source = reconstruction(grid, multi_frame=multi_frame)
    return Run(source, segmentation(grid, names, labels), tmp_path, SegmentationForm.LABELMAP)


@pytest.fixture(params=REAL_SERIES, scope="module")
def real_run(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_on_real_series(shared_data / request.param, tmp_path_factory.mktemp("r"), SegmentationForm.BINARY)


def run_on_real_series(series_folder: Path, folder: Path, form: SegmentationForm) -> Run:
    (series,) = read_series_folder(series_folder)
    source = reconstruct(series, ReconstructionLimits(minimum_planes=2))
    hu = source.source.voxels_zyx
    labels = np.select([hu < -500, hu < -20, hu < 150, hu >= 150], [11, 22, 33, 44], default=0).astype(np.uint8)
    labels[:, : labels.shape[1] // 4, : labels.shape[2] // 3] = 0
    return Run(source, segmentation(source.source.geometry, TISSUES, labels, TISSUE_MODEL), folder, form)


def test_dciodvfy_finds_no_error_in_results_on_any_grid(synthetic_run: Run) -> None:
    for report in reports_without_error(synthetic_run):
        # dciodvfy of 2022 does not know Device UID, which IHE AIR requires in Contributing Equipment
        warnings = [line for line in report.splitlines() if "Warning" in line and "Device UID" not in line]
        assert all("Standard Extended SOP Class" in line for line in warnings), report


def test_dciodvfy_finds_no_error_in_results_of_real_series(real_run: Run) -> None:
    reports_without_error(real_run)


def test_dciodvfy_finds_no_error_when_nothing_was_found(tmp_path: Path) -> None:
    source = reconstruction()
    empty = segmentation(source.source.geometry, NAMES, np.zeros(source.source.geometry.shape_zyx))
    run = Run(source, empty, tmp_path)
    assert list(run.files) == [ResultKind.REPORT]
    reports_without_error(run)
    assert "without findings" in output(program("dsrdump"), "+Pl", str(run.files[ResultKind.REPORT]))


def reports_without_error(run: Run) -> list[str]:
    reports = [output(program("dciodvfy"), str(file)) for file in run.files.values()]
    for report in reports:
        assert "Error" not in report, report
    return reports


def test_dcmqi_restores_every_voxel_at_its_position(synthetic_run: Run, tmp_path: Path) -> None:
    assert_dcmqi_reads_the_labels(synthetic_run, tmp_path)


def test_dcmqi_restores_every_voxel_of_real_series(real_run: Run, tmp_path: Path) -> None:
    assert_dcmqi_reads_the_labels(real_run, tmp_path)


def test_dcmqi_restores_every_voxel_of_a_label_map(labelmap_run: Run, tmp_path: Path) -> None:
    assert_dcmqi_reads_the_labels(labelmap_run, tmp_path, ResultKind.LABELMAP)


@pytest.mark.parametrize("name", REAL_SERIES[:2])
def test_dcmqi_restores_every_voxel_of_a_label_map_of_real_series(name: str, shared_data: Path, tmp_path: Path) -> None:
    run = run_on_real_series(shared_data / name, tmp_path, SegmentationForm.LABELMAP)
    assert_dcmqi_reads_the_labels(run, tmp_path, ResultKind.LABELMAP)


def test_dciodvfy_finds_only_the_unknown_sop_class_in_a_report_on_a_label_map(labelmap_run: Run) -> None:
    report = output(program("dciodvfy"), str(labelmap_run.files[ResultKind.REPORT]))
    errors = [line for line in report.splitlines() if "Error" in line]
    assert set(errors) == {
        (
            "Error - Shall not be present for Referenced SOP Class that is not segmentation - attribute "
            "<ReferencedSegmentNumber>"
        )
    }
    assert len(errors) == len(labelmap_run.measurements.structures)


def assert_dcmqi_reads_the_labels(run: Run, folder: Path, kind: ResultKind = ResultKind.SEGMENTATION) -> None:
    if not run.grid.is_orthogonal:
        pytest.skip("an ITK image has no shear: dcmqi cannot hold the frames of a tilted gantry, whoever wrote them")
    output(
        dcmqi("segimage2itkimage"),
        *("--inputDICOM", str(run.files[kind])),
        *("--outputDirectory", str(folder), "--outputType", "nrrd", "--mergeSegments"),
    )
    (file,) = folder.glob("*.nrrd")
    image = sitk.ReadImage(str(file))
    numbers = sitk.GetArrayFromImage(image)
    found = np.zeros(run.grid.shape_zyx, dtype=np.uint8)
    k, j, i = np.nonzero(numbers)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    index = np.linalg.inv(run.grid.affine_lps) @ affine @ np.vstack([i, j, k, np.ones(len(i))])
    assert np.abs(index - np.rint(index)).max() < 0.02
    x, y, z, _ = np.rint(index).astype(int)
    found[z, y, x] = run.label_by_number[numbers[k, j, i]]
    assert np.array_equal(found, run.labels.labels_zyx)
    assert_dcmqi_names_the_segments(run, json.loads((folder / "meta.json").read_text()))


def assert_dcmqi_names_the_segments(run: Run, metadata: dict) -> None:
    """Check what 3D Slicer shows next to the voxels: label, codes with laterality, colour, algorithm, tracking."""
    described = {each["labelID"]: each for segments in metadata["segmentAttributes"] for each in segments}
    present = dict(enumerate(run.measurements.structures, start=1))
    assert set(described) - {0} == set(present)
    for number, measurement in present.items():
        segment, expected = described[number], structure(measurement.name)
        assert segment["SegmentLabel"] == segment["TrackingIdentifier"] == measurement.name
        assert segment["SegmentDescription"] == expected.title
        assert (segment["SegmentAlgorithmName"], segment["SegmentAlgorithmType"]) == (
            run.labels.model.name,
            "AUTOMATIC",
        )
        codes = {
            "SegmentedPropertyCategoryCodeSequence": expected.category,
            "SegmentedPropertyTypeCodeSequence": expected.type,
            "SegmentedPropertyTypeModifierCodeSequence": expected.type_modifier,
            "AnatomicRegionSequence": expected.region,
            "AnatomicRegionModifierSequence": expected.region_modifier,
        }
        assert {name: code_of(segment[name]) for name in codes if name in segment} == {
            name: (code.value, code.scheme, code.meaning) for name, code in codes.items() if code is not None
        }
        assert np.abs(np.array(segment["recommendedDisplayRGBValue"]) - expected.rgb).max() <= 1


def code_of(item: dict[str, str]) -> tuple[str, str, str]:
    return item["CodeValue"], item["CodingSchemeDesignator"], item["CodeMeaning"]


def test_dcmqi_reads_every_measurement_group(synthetic_run: Run, tmp_path: Path) -> None:
    metadata = tmp_path / "sr.json"
    output(
        dcmqi("tid1500reader"),
        *("--inputDICOM", str(synthetic_run.files[ResultKind.REPORT]), "--outputMetadata", str(metadata)),
    )
    read = json.loads(metadata.read_text())["Measurements"]
    seg = highdicom.seg.segread(synthetic_run.files[ResultKind.SEGMENTATION])
    assert [group["TrackingUniqueIdentifier"] for group in read] == [s.TrackingUID for s in seg.SegmentSequence]
    for number, (group, expected) in enumerate(zip(read, synthetic_run.measurements.structures, strict=True), start=1):
        assert group["segmentationSOPInstanceUID"] == seg.SOPInstanceUID
        assert (group["ReferencedSegment"], group["TrackingIdentifier"]) == (number, expected.name)
        assert group["SourceSeriesForImageSegmentation"] == synthetic_run.source.headers[0].SeriesInstanceUID
        coded = structure(expected.name)
        assert code_of(group["Finding"]) == (coded.type.value, coded.type.scheme, coded.type.meaning)
        side = coded.laterality
        assert group.get("Laterality", {}).get("CodeMeaning") == (None if side is None else side.capitalize())
        assert measurements_of(group) == {
            ("Volume", None, "ml"): pytest.approx(expected.volume_ml),
            ("Attenuation Coefficient", "Mean", "[hnsf'U]"): pytest.approx(expected.mean_hu),
            ("Attenuation Coefficient", "Standard Deviation", "[hnsf'U]"): pytest.approx(expected.sd_hu),
            ("Attenuation Coefficient", "Minimum", "[hnsf'U]"): expected.min_hu,
            ("Attenuation Coefficient", "Maximum", "[hnsf'U]"): expected.max_hu,
            ("Attenuation Coefficient", "Median", "[hnsf'U]"): expected.median_hu,
        }


def measurements_of(group: dict) -> dict[tuple[str, str | None, str], float]:
    return {
        (
            item["quantity"]["CodeMeaning"],
            item.get("derivationModifier", {}).get("CodeMeaning"),
            item["units"]["CodeValue"],
        ): float(item["value"])
        for item in group["measurementItems"]
    }


def test_highdicom_restores_every_voxel_of_real_series(real_run: Run) -> None:
    read = highdicom.seg.segread(real_run.files[ResultKind.SEGMENTATION])
    frames = real_run.source.frames
    arguments = {"combine_segments": True, "assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    if frames[0].frame_number is None:
        numbers = read.get_pixels_by_source_instance([f.sop_instance_uid for f in frames], **arguments)
    else:
        numbers = read.get_pixels_by_source_frame(
            frames[0].sop_instance_uid, [f.frame_number for f in frames], **arguments
        )
    assert np.array_equal(real_run.label_by_number[numbers], real_run.labels.labels_zyx)


def test_names_and_ids_of_real_series_are_copied_byte_for_byte(real_run: Run) -> None:
    """Through reconstruct, which must not parse what it only compares: pydicom drops the bytes of parsed elements."""
    header = real_run.source.headers[0]
    for file in real_run.files.values():
        result = dcmread(file, stop_before_pixels=True)
        for keyword in ("PatientName", "PatientID", "ReferringPhysicianName", "AccessionNumber"):
            came = header.get_item(keyword).value if keyword in header else None
            assert (result.get_item(keyword).value or b"") == (came or b""), keyword


def test_dcmtk_prints_the_report(real_run: Run) -> None:
    printed = output(program("dsrdump"), "+Pl", str(real_run.files[ResultKind.REPORT]))
    assert printed.count('"Measurement Group"') == len(real_run.measurements.structures)
    expected = [
        value
        for each in real_run.measurements.structures
        for value in (each.volume_ml, each.mean_hu, each.sd_hu, each.min_hu, each.max_hu, each.median_hu)
    ]
    values = [float(value) for value in re.findall(r'contains NUM:\([^)]*\)="([^"]*)"', printed)]
    assert values == pytest.approx(expected)
    for part in ("Research use only", "UNVERIFIED", "PRELIMINARY", "Attenuation Coefficient", TISSUE_MODEL.digest):
        assert part in printed
    assert MODEL.name not in printed


def test_dcmtk_prints_a_report_on_a_label_map_despite_the_unknown_sop_class(labelmap_run: Run) -> None:
    path = str(labelmap_run.files[ResultKind.REPORT])
    refused = subprocess.run([program("dsrdump"), path], capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert "unknown image SOP class referenced" in refused.stderr
    printed = output(program("dsrdump"), "-Ei", "+Pl", path)
    assert printed.count('"Measurement Group"') == len(labelmap_run.measurements.structures)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt: dcmtk, dicom3tools)")
    return found


def dcmqi(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("dcmqi is not installed in this environment")
    return found


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    text = (done.stdout + done.stderr).decode("utf-8", errors="replace")
    assert done.returncode == 0 or "dciodvfy" in command[0], text
    return text
