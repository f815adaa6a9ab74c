import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import dcmread

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.reconstruct import reconstruct
from dicom_node.types import Series, SourceInstance
from inference.types import Geometry, Volume

PATIENT = SyntheticPatient(seed=7, age_years=63, sex="F", contrast=True)


@pytest.fixture
def volume():
    affine = np.diag([0.8, 0.9, 2.5, 1.0])
    affine[:3, 3] = [-123.456789, -80.25, -912.7]
    voxels = np.random.default_rng(7).integers(-1024, 3072, (5, 20, 24)).astype(np.int16)
    return Volume(voxels, Geometry((5, 20, 24), affine))


def test_simpleitk_reads_the_same_voxels_at_the_same_positions(volume, tmp_path):
    series_uid = write_ct_series(volume, tmp_path, PATIENT)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path), series_uid))
    image = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.voxels_zyx)
    assert np.allclose(image.GetOrigin(), volume.geometry.affine_lps[:3, 3], atol=1e-5)
    assert np.allclose(image.GetSpacing(), volume.geometry.spacing_xyz_mm, atol=1e-6)
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())


def test_node_reconstructs_the_written_volume(volume, tmp_path):
    series_uid = write_ct_series(volume, tmp_path, PATIENT)
    headers = {path: dcmread(path, stop_before_pixels=True) for path in sorted(tmp_path.iterdir(), reverse=True)}
    instances = tuple(SourceInstance(path, header) for path, header in headers.items())
    back = reconstruct(Series(series_uid, str(instances[0].header.StudyInstanceUID), instances)).source
    assert np.array_equal(back.voxels_zyx, volume.voxels_zyx)
    assert back.geometry.same_grid(volume.geometry)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("patient", [PATIENT, SyntheticPatient(seed=0, age_years=20, sex="M")])
def test_dciodvfy_reports_nothing(volume, tmp_path, patient):
    write_ct_series(volume, tmp_path, patient)
    done = subprocess.run(["dciodvfy", str(tmp_path / "ct_0000.dcm")], capture_output=True, text=True, check=False)
    findings = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    assert findings == []


def test_equal_phantoms_give_identical_files_and_others_other_uids(volume, tmp_path):
    first = write_ct_series(volume, tmp_path / "a", PATIENT)
    again = write_ct_series(volume, tmp_path / "b", PATIENT)
    other = write_ct_series(volume, tmp_path / "c", SyntheticPatient(seed=8, age_years=63, sex="F", contrast=True))
    assert first == again != other
    for name in ("ct_0000.dcm", "ct_0004.dcm"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    uids = {str(dcmread(path).SOPInstanceUID) for path in tmp_path.rglob("*.dcm")}
    assert len(uids) == 10


def test_headers_state_that_the_patient_is_synthetic(volume, tmp_path):
    write_ct_series(volume, tmp_path, PATIENT)
    header = dcmread(tmp_path / "ct_0000.dcm")
    assert str(header.PatientName) == "Phantom^Seed 7"
    assert "Synthetic" in header.PatientComments
    assert header.PatientAge == "063Y"


def test_oblique_grid_is_refused(volume, tmp_path):
    turned = volume.geometry.affine_lps[:, [1, 0, 2, 3]] * np.array([1, -1, 1, 1])
    oblique = Volume(volume.voxels_zyx, Geometry((5, 20, 24), turned))
    with pytest.raises(ValueError, match="axial grid"):
        write_ct_series(oblique, tmp_path, PATIENT)
