"""Where other tools misread our results: the rows of docs/users/other-tools.md for tools in the test environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own habit
from pydicom import dcmread

from dicom_node.encode.run import encode
from dicom_node.types import ResultKind, ResultRequest, SegmentationForm
from tests.support.analysis_results import CONTEXT, geometry, measured, reconstruction, segmentation

if TYPE_CHECKING:
    from inference.types import Geometry

NAMES = {3: "kidney_left", 7: "kidney_right", 201: "liver"}


def results(folder: Path, grid: Geometry) -> tuple[np.ndarray, dict[ResultKind, Path]]:
    """The labels, and their SEG, label map and report as files."""
    source = reconstruction(grid)
    labels = segmentation(grid, NAMES)
    files = {}
    request = {"pacs": ResultRequest(SegmentationForm.BOTH)}
    for result in encode(source, labels, measured(source, labels), CONTEXT, request):
        files[result.kind] = folder / f"{result.kind}.dcm"
        files[result.kind].write_bytes(result.content)
    numbers = np.searchsorted(sorted(NAMES), labels.labels_zyx) + 1
    return np.where(labels.labels_zyx > 0, numbers, 0), files


def test_simpleitk_reads_binary_without_geometry_and_cannot_read_label_maps(tmp_path: Path) -> None:
    numbers, files = results(tmp_path, geometry())
    frames = sum(np.any(plane == number) for plane in numbers for number in (1, 2, 3))
    image = sitk.ReadImage(str(files[ResultKind.SEGMENTATION]))
    assert image.GetSize() == (numbers.shape[2], numbers.shape[1], frames)
    assert image.GetSpacing() == (1.0, 1.0, 1.0)
    voxels = sitk.GetArrayFromImage(image)
    assert set(np.unique(voxels)) == {0, 255}
    assert np.count_nonzero(voxels) == np.count_nonzero(numbers)
    with pytest.raises(RuntimeError, match="Unable to determine ImageIO reader"):
        sitk.ReadImage(str(files[ResultKind.LABELMAP]))


@pytest.mark.parametrize(
    ("shape_zyx", "remainder", "works"),
    [((9, 12, 16), 0, True), ((9, 14, 14), 4, True), ((9, 17, 19), 3, False), ((9, 13, 19), 7, False)],
)
def test_highdicom_lazy_reading_of_binary_depends_on_the_frame_size(
    shape_zyx: tuple[int, int, int], remainder: int, *, works: bool, tmp_path: Path
) -> None:
    assert shape_zyx[1] * shape_zyx[2] % 8 == remainder
    numbers, files = results(tmp_path, geometry(shape_zyx))
    kinds = {ResultKind.LABELMAP: True, ResultKind.SEGMENTATION: works}
    for kind, is_read in kinds.items():
        assert np.array_equal(pixels(files[kind], lazy=False), numbers)
        if is_read:
            assert np.array_equal(pixels(files[kind], lazy=True), numbers)
        else:
            with pytest.raises(ValueError, match="cannot reshape array"):
                pixels(files[kind], lazy=True)


def test_highdicom_reads_a_tilted_segmentation_as_frames_but_not_as_a_volume(tmp_path: Path) -> None:
    numbers, files = results(tmp_path, geometry((5, 12, 16), shear_xy_mm=(0.0, 0.9)))
    read = highdicom.seg.segread(files[ResultKind.SEGMENTATION])
    with pytest.raises(RuntimeError, match="do not form a regularly-spaced volume"):
        read.get_volume(combine_segments=True)
    assert np.array_equal(pixels(files[ResultKind.SEGMENTATION], lazy=False), numbers)


def pixels(path: Path, *, lazy: bool) -> np.ndarray:
    """Segment numbers, plane by plane on our grid."""
    read = highdicom.seg.segread(path, lazy_frame_retrieval=lazy)
    planes = [header.SOPInstanceUID for header in reconstruction(geometry((9, 4, 4))).headers]
    known = {uid for _, _, uid in read.get_source_image_uids()}
    return read.get_pixels_by_source_instance(
        [uid for uid in planes if uid in known],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )


def test_dcmqi_loses_the_tilt_of_a_segmentation_or_writes_no_image_at_all(tmp_path: Path) -> None:
    for name, shear_mm, image_is_written in (("in", 0.9, True), ("out", -6.0, False)):
        folder = tmp_path / name
        folder.mkdir()
        grid = geometry((5, 12, 16), shear_xy_mm=(0.0, shear_mm))
        numbers, files = results(folder, grid)
        done = segimage2itkimage(files[ResultKind.SEGMENTATION], folder, "--mergeSegments")
        assert done.returncode == 0
        written = list(folder.glob("*.nrrd"))
        assert ("is outside image geometry" in done.stdout + done.stderr) is not image_is_written
        assert bool(written) is image_is_written
        if image_is_written:
            image = sitk.ReadImage(str(written[0]))
            planes = image.GetSize()[2]  # up to the last plane with a segment
            assert np.array_equal(sitk.GetArrayViewFromImage(image), numbers[:planes])
            last = [0, 0, planes - 1]
            off_mm = image.TransformIndexToPhysicalPoint(last) - (grid.affine_lps @ [*last, 1])[:3]
            assert off_mm == pytest.approx([0, -(planes - 1) * shear_mm, 0], abs=0.01)


def test_dcmqi_writes_one_file_per_binary_segment_and_one_per_label_map(tmp_path: Path) -> None:
    _, files = results(tmp_path, geometry())
    for kind, count in ((ResultKind.SEGMENTATION, 3), (ResultKind.LABELMAP, 1)):
        folder = tmp_path / f"from_{kind}"
        folder.mkdir()
        assert segimage2itkimage(files[kind], folder).returncode == 0
        assert len(list(folder.glob("*.nrrd"))) == count


def test_dsr2xml_keeps_templates_only_on_request(tmp_path: Path) -> None:
    _, files = results(tmp_path, geometry())
    report = files[ResultKind.REPORT]
    assert templates(report) == {"1500": 1, "1411": 3}
    for options, kept in (((), {}), (("+Wt",), {"1500": 1, "1411": 3})):
        xml, back = tmp_path / "report.xml", tmp_path / "back.dcm"
        run("dsr2xml", *options, str(report), str(xml))
        run("xml2dsr", str(xml), str(back))
        assert templates(back) == kept


def templates(report: Path) -> dict[str, int]:
    return Counter(element.value for element in dcmread(report).iterall() if element.keyword == "TemplateIdentifier")


def run(program: str, *arguments: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt: dcmtk)")
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60)


def segimage2itkimage(file: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcmqi is not installed in this environment")
    command = [program, "--inputDICOM", str(file), "--outputDirectory", str(folder), "--outputType", "nrrd", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
