"""Our structure sets as dciodvfy, DCMTK and plastimatch read them, on every grid and for real series."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from dicom_node.demo.phantom_series import write_series
from dicom_node.encode.run import encode
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from dicom_node.standard.files import read_series_folder
from dicom_node.types import Reconstruction, ResultKind, ResultRequest, SegmentationForm
from inference.phantom import phantom
from inference.tissue import TissueSegmenter
from inference.types import ModelIdentity, Segmentation
from tests.support.analysis_results import CONTEXT, GRIDS, measured, reconstruction, segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat"}
TISSUES = {33: "soft_tissue", 44: "bone_tissue"}
TISSUE_MODEL = ModelIdentity("tissue", "1", "cd" * 32, "Thresholding")
REAL_SERIES = (
    "derived/legacy_enhanced_CT_STS_008",
    "theibsi+data_sets/ibsi2_orientation",
    "neurolabusc+dcm_qa_ct/Philips_S21610_S2010_tilt-18.5",
)


def structure_set(source: Reconstruction, labels: Segmentation, folder: Path, *names: str) -> Path:
    """A structure set, which encode has already read back voxel for voxel."""
    request = ResultRequest(segmentation=SegmentationForm.NONE, report=False, contours=names)
    (result,) = encode(source, labels, measured(source, labels), CONTEXT, {"planning": request})
    assert result.kind is ResultKind.CONTOURS
    path = folder / "contours.dcm"
    path.write_bytes(result.content)
    return path


def labels_on(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """Rings, single pixels, and pixels that touch only at corners."""
    z, y, x = np.indices(shape_zyx)
    labels = np.where((y + x + z) % 5 == 0, 3, 0).astype(np.uint8)
    labels[:, 1::4, 2:8] = 7
    labels[:, 3:10, 3:10] = 9
    labels[:, 5:7, 4:8] = 0
    labels[-1, -1, -1] = 200
    return labels


@pytest.mark.parametrize("name", GRIDS)
def test_dciodvfy_finds_no_error_on_any_grid(name: str, tmp_path: Path) -> None:
    grid, multi_frame = GRIDS[name]
    labels = segmentation(grid, NAMES, labels_on(grid.shape_zyx))
    path = structure_set(reconstruction(grid, multi_frame=multi_frame), labels, tmp_path, "organ", "tissue")
    report = output("dciodvfy", str(path))
    assert "Error" not in report, report
    # dciodvfy of 2022 does not know Device UID, which IHE AIR requires in Contributing Equipment
    warnings = [line for line in report.splitlines() if "Warning" in line and "Device UID" not in line]
    assert all("Standard Extended SOP Class" in line for line in warnings), report


@pytest.mark.parametrize("name", REAL_SERIES)
def test_dciodvfy_and_dcmtk_read_contours_of_real_series(name: str, shared_data: Path, tmp_path: Path) -> None:
    (series,) = read_series_folder(shared_data / name)
    source = reconstruct(series, ReconstructionLimits(minimum_planes=2))
    hu = source.source.voxels_zyx
    labels = np.select([hu > 200, hu > 20], [44, 33], default=0).astype(np.uint8)
    labels[:, : labels.shape[1] // 4, : labels.shape[2] // 3] = 0
    on_grid = segmentation(source.source.geometry, TISSUES, labels, TISSUE_MODEL)
    path = structure_set(source, on_grid, tmp_path, "tissue")
    report = output("dciodvfy", str(path))
    assert "Error" not in report, report
    assert "(3006,0026) LO [soft_tissue]" in output("dcmdump", "+P", "ROIName", str(path))


def test_plastimatch_restores_the_structures_of_a_phantom_patient(tmp_path: Path) -> None:
    case = phantom(7, (3.0, 3.0, 10.0), "chest_abdomen")
    write_series(case, tmp_path / "ct")
    truth = replace(case.truth, model=TISSUE_MODEL)  # encode has no code for structures that only the phantom has
    scores = plastimatch_dice(truth, tmp_path / "ct", ("organ", "bone", "muscle", "vessel"), tmp_path)
    assert len(scores) > 80
    assert min(scores.values()) >= 0.98, scores


def test_plastimatch_restores_the_tissues_of_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "theibsi+data_sets/STS_008_CT"
    (series,) = read_series_folder(folder)
    volume = reconstruct(series, ReconstructionLimits(minimum_planes=2)).volume
    tissues = TissueSegmenter().segment(volume, lambda *_: None)
    scores = plastimatch_dice(tissues, folder, ("tissue",), tmp_path)
    assert set(scores) >= {"body_fat", "soft_tissue", "bone_tissue"}
    assert min(scores.values()) >= 0.98, scores


def plastimatch_dice(labels: Segmentation, ct: Path, chosen: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Dice of every structure after plastimatch, a planning system's converter, has filled its contours on the grid of
    ``ct`` by its default rule for contours of one plane: their union.
    """
    (series,) = read_series_folder(ct)
    source = reconstruct(series, ReconstructionLimits(minimum_planes=2))
    path = structure_set(source, labels, folder, *chosen)
    arguments = ("--referenced-ct", str(ct), "--output-prefix", str(folder / "masks"), "--prefix-format", "nrrd")
    said = output("plastimatch", "convert", "--input", str(path), *arguments)
    first_mm = source.source.geometry.affine_lps[:3, 3]
    scores = {}
    for label in np.unique(labels.labels_zyx)[1:].tolist():
        mask = folder / "masks" / f"{labels.names_by_label[label]}.nrrd"
        assert mask.is_file(), said
        image = sitk.ReadImage(str(mask))
        assert image.GetOrigin() == pytest.approx(first_mm, abs=0.01)
        found, truth = sitk.GetArrayFromImage(image) > 0, labels.labels_zyx == label
        common = np.count_nonzero(found & truth)
        scores[mask.stem] = 2 * common / (np.count_nonzero(found) + np.count_nonzero(truth))
    return scores


def output(program: str, *arguments: str) -> str:
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{program} is not installed")
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=120)
    return result.stdout + result.stderr
