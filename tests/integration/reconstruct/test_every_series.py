"""Every real series is accepted or refused as expected; accepted ones have the geometry and HU that other readers get.

``DECISIONS`` has one entry per folder of the shared fixtures. Where the manifest leaves a choice, a comment says
which was made and why. Expected positions (from the headers) and HU come from the fixtures' ``expected.json``.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
import SimpleITK
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid, SeriesRejected
from dicom_node.reconstruct import labels_on_source, reconstruct
from dicom_node.reconstruct.geometry import regular_grid
from dicom_node.reconstruct.planes import planes_of
from dicom_node.reconstruct.scale import implausible_rescale
from dicom_node.standard.files import read_series_folder
from dicom_node.types import Series, SourceInstance

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Refused:
    error: type[SeriesRejected]
    said: str


ACCEPTED = "accepted"

DECISIONS = {
    # the class UID was garbled by anonymisation
    "DIAGNijmegen+rse-panimg/dicom_intercept": Refused(NotEligible, "SOP class"),
    "DIAGNijmegen+rse-panimg/dicom_slope": Refused(NotEligible, "SOP class"),
    "ImagingDataCommons+highdicom/SEG_and_SR_objects": Refused(NotEligible, ""),  # SEG, SR and one single CT slice
    # choice: without Modality it would be accepted by its SOP class, but has only two planes
    "JoHof+lungmask/no_modality": Refused(NotEligible, "planes: 2, a volume needs at least 3"),
    # choice: the header itself states that the values (0 and 1) are not HU
    "QIICR+dcmqi/24x38x3_image": Refused(NotEligible, "not Hounsfield units"),
    "QIICR+dcmqi/24x38x3_legacy-enhanced-CT": Refused(NotEligible, "not Hounsfield units"),
    # choice: three planes are a volume; a model's own minimum is checked later (MinimumExtent)
    "QIICR+dcmqi/ct-3slice": ACCEPTED,
    "QIICR+dcmqi/sr-example_SEG-and-TID1500-SR": Refused(NotEligible, "SOP class"),
    "ShahinSHH+COVID-CT-MD/cap001_subset": ACCEPTED,
    "ShahinSHH+COVID-CT-MD/normal002_invalid-uids": Refused(NotEligible, "SOP Instance UID is missing"),
    "cornerstonejs+cornerstone3D/CTImage_all_transfer_syntaxes": Refused(GeometryRefused, "15 of 16 planes"),
    "derived/legacy_enhanced_CT_STS_008": ACCEPTED,
    "derived/totalsegmentator_example_sendable": ACCEPTED,
    "derived/truncated": Refused(
        SeriesRejected, ""
    ),  # each truncated file on its own: test_truncated_files_are_refused
    # choice: RLE in several fragments is decoded; one slice is not a volume
    "fo-dicom+fo-dicom/D_CLUNIE_CT1_RLE_FRAGS": Refused(NotEligible, "planes: 1"),
    "fo-dicom+fo-dicom/FreezePattern_CT-SC-RGB": Refused(NotEligible, "Secondary Capture"),
    "fo-dicom+fo-dicom/GH1308_single_tilted_slice": Refused(NotEligible, "planes: 1"),
    "fo-dicom+fo-dicom/GH177_bigendian": Refused(NotEligible, "SOP class is missing"),  # the header cannot be parsed
    "fo-dicom+fo-dicom/IM-0001_single_slice": Refused(NotEligible, "planes: 1"),
    # choice: the tilt would be accepted (test_tilt_is_found_without_its_tag), but not the missing type 1 UID
    "icometrix+dicom2nifti/failing_gantrytilting_001": Refused(NotEligible, "Frame of Reference UID is missing"),
    "icometrix+dicom2nifti/failing_sliceincrement_001": Refused(GeometryRefused, "gap of 10 mm"),
    "neurolabusc+dcm_qa_ct/Philips_S21570_S1000_localizer": Refused(NotEligible, "is a localizer"),
    # choice: accepted with its true geometry, resampled upright for the model, results on the tilted frames
    "neurolabusc+dcm_qa_ct/Philips_S21610_S2010_tilt-18.5": ACCEPTED,
    "orthanc-mirrors+orthanc-tests/ELSCINT1-Raw": Refused(NotEligible, "planes: 1"),
    "orthanc-mirrors+orthanc-tests/SignedCT": Refused(NotEligible, "planes: 1"),
    "orthanc-mirrors+orthanc-tests/XSSInjection": Refused(NotEligible, "MR Image Storage"),
    "orthanc-mirrors+orthanc-tests/oob-46341": Refused(NotEligible, "Secondary Capture"),
    "pydicom+pydicom-data/eCT_Supplemental_enhancedCT": Refused(NotEligible, "not Hounsfield units"),  # ml/100ml/s
    "pydicom+pydicom-data/explicit_VR-UN": Refused(NotEligible, "planes: 1"),  # choice: read despite VR UN
    "pydicom+pydicom/CT_small": Refused(NotEligible, "planes: 1"),
    "pydicom+pydicom/charsets": Refused(NotEligible, "SOP class"),
    "pydicom+pydicom/dicomdir_77654033_CT2_gap": Refused(GeometryRefused, "gap of 202.5 mm"),
    "pydicom+pydicom/dicomdir_98892001_CT2N_scouts": Refused(NotEligible, "is a localizer"),
    "pydicom+pydicom/dicomdir_98892001_CT5N": ACCEPTED,  # choice: regular, but too small for a model with a minimum
    "pydicom+pydicom/non-CT_and_broken": Refused(NotEligible, "SOP class"),
    "pyvista+vtk-data/prostate_no-meta-header": Refused(NotEligible, "planes: 1"),
    "qurit+rt-utils/mock_data_CT": Refused(
        NotEligible, "planes: 2"
    ),  # choice: a gap could not be detected with two planes
    "theibsi+data_sets/STS_008_CT": ACCEPTED,
    "theibsi+data_sets/STS_008_PET": Refused(NotEligible, "Positron Emission"),
    "theibsi+data_sets/ibsi2_orientation": ACCEPTED,
    "wasserth+TotalSegmentator/example_ct_dicom": Refused(NotEligible, "SOP class is missing"),
}
CLASSIC = [
    name
    for name, decision in DECISIONS.items()
    if decision == ACCEPTED and name != "derived/legacy_enhanced_CT_STS_008"
]


def instance(path):
    try:
        return SourceInstance(path, dcmread(path, stop_before_pixels=True))
    except Exception:  # noqa: BLE001 - what a reader makes of a file that it cannot parse: no header
        return SourceInstance(path, Dataset())


def series_of(folder):
    """Include the files that the store's reader leaves out: without UIDs or without a readable header."""
    groups = defaultdict(list)
    for path in sorted(folder.iterdir()):
        source = instance(path)
        groups[str(source.header.get("SeriesInstanceUID", ""))].append(source)
    return [Series(uid, "", tuple(instances)) for uid, instances in groups.items()]


def only_series(folder):
    (series,) = read_series_folder(folder)
    return series


@pytest.fixture(scope="module")
def expected(shared_data):
    return json.loads((shared_data / "expected.json").read_text())


def test_every_fixture_has_a_decision(expected):
    assert set(DECISIONS) == set(expected)


@pytest.mark.parametrize("name", DECISIONS)
def test_every_series_is_accepted_or_refused_as_decided(shared_data, expected, name):
    decision = DECISIONS[name]
    if isinstance(decision, Refused):
        for series in series_of(shared_data / name):
            with pytest.raises(decision.error) as refusal:
                reconstruct(series)
            assert decision.said in str(refusal.value)
        return
    source = reconstruct(only_series(shared_data / name)).source
    seen = expected[name]["readers"]["C"]
    voxels = source.voxels_zyx
    assert (voxels.min(), voxels.max()) == (seen["hu_min"], seen["hu_max"])
    assert voxels.mean(dtype=np.float64) == pytest.approx(seen["hu_mean"], abs=5e-4)  # the file states three decimals
    assert source.geometry.is_orthogonal == ("tilt" not in name)


@pytest.mark.parametrize("name", CLASSIC)
def test_every_plane_is_where_its_header_says(shared_data, expected, name):
    result = reconstruct(only_series(shared_data / name))
    files = expected[name]["files_in_order_along_normal"]
    assert [frame.sop_instance_uid for frame in result.frames] == [file["SOPInstanceUID"] for file in files]
    affine = result.source.geometry.affine_lps
    for k, file in enumerate(files):
        np.testing.assert_allclose((affine @ [0, 0, k, 1])[:3], file["ImagePositionPatient"], atol=1e-3)
        row, column = np.array(file["ImageOrientationPatient"]).reshape(2, 3)
        height, width = result.source.voxels_zyx.shape[1:]
        far = np.array(file["ImagePositionPatient"])
        far = far + row * file["PixelSpacing"][1] * (width - 1) + column * file["PixelSpacing"][0] * (height - 1)
        np.testing.assert_allclose((affine @ [width - 1, height - 1, k, 1])[:3], far, atol=1e-3)
        if "hu" in file:
            lowest, highest, mean = file["hu"]
            plane = result.source.voxels_zyx[k]
            assert (plane.min(), plane.max()) == (lowest, highest)
            assert plane.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("name", CLASSIC)
def test_simpleitk_reads_the_same_values_at_the_same_positions(shared_data, name):
    series = only_series(shared_data / name)
    result = reconstruct(series)
    path_of = {str(source.header.SOPInstanceUID): source.path for source in series.instances}
    affine = result.source.geometry.affine_lps
    for k, frame in enumerate(result.frames):
        image = SimpleITK.ReadImage(str(path_of[frame.sop_instance_uid]))
        np.testing.assert_array_equal(result.source.voxels_zyx[k], SimpleITK.GetArrayViewFromImage(image)[0])
        height, width = result.source.voxels_zyx.shape[1:]
        for x, y in ((0, 0), (width - 1, 0), (0, height - 1)):
            place = image.TransformIndexToPhysicalPoint((x, y, 0))
            np.testing.assert_allclose((affine @ [x, y, k, 1])[:3], place, atol=1e-3)


@pytest.mark.parametrize("other", [(2.0, -1048.0), (0.5, -1024.0), (4.0, -4096.0), (1.0, 0.0)])
@pytest.mark.parametrize("name", CLASSIC)
def test_right_slopes_that_alternate_are_accepted(shared_data, name, other):
    source = reconstruct(only_series(shared_data / name)).source
    for pairs in ([(1.0, -1024.0), other], [other, (1.0, -1024.0)]):
        rescales = [pairs[k % 2] for k in range(len(source.voxels_zyx))]
        assert "tissue in planes" not in str(implausible_rescale(source, rescales))


@pytest.mark.parametrize(("name", "plane"), [("STS_008_CT", 17), ("cap001_subset", 0)])
@pytest.mark.parametrize("factor", [0.8, 1.25, 2.0])
def test_a_wrong_slope_in_one_plane_is_refused(shared_data, name, plane, factor):
    (folder,) = (each for each in CLASSIC if each.endswith(name))
    source = reconstruct(only_series(shared_data / folder)).source
    hu = source.voxels_zyx.astype(np.float32)
    hu[plane] = (hu[plane] + 1000) * factor - 1000
    rescales = [(1.0, -1024.0)] * len(hu)
    rescales[plane] = (factor, -24 * factor - 1000)
    assert "tissue in planes" in str(implausible_rescale(replace(source, voxels_zyx=hu), rescales))


@pytest.mark.parametrize("planes", [slice(1), slice(20, 23), slice(25), slice(25, None)])
def test_a_slope_doubled_about_0_hu_is_refused(shared_data, planes):
    """HU stored as they are, in a thigh: fat and muscle move apart by 100 HU, and the mean of all tissue stays."""
    source = reconstruct(only_series(shared_data / "theibsi+data_sets/STS_008_CT")).source
    hu, pairs = source.voxels_zyx.astype(np.float32), np.ones(len(source.voxels_zyx))
    hu[planes], pairs[planes] = hu[planes] * 2, 2
    refusal = implausible_rescale(replace(source, voxels_zyx=hu), [(slope, 0.0) for slope in pairs])
    assert "tissue in planes" in str(refusal)


def test_no_axis_is_flipped(shared_data):
    """The IBSI 2 orientation phantom: each value is column + row + (63 - plane), planes ascending."""
    voxels = reconstruct(only_series(shared_data / "theibsi+data_sets/ibsi2_orientation")).volume.voxels_zyx
    k, j, i = np.meshgrid(*(range(n) for n in voxels.shape), indexing="ij")
    np.testing.assert_array_equal(voxels, i + j + (63 - k))


def test_multi_frame_has_the_voxels_of_its_classic_series(shared_data):
    classic = reconstruct(only_series(shared_data / "theibsi+data_sets/STS_008_CT"))
    multi_frame = reconstruct(only_series(shared_data / "derived/legacy_enhanced_CT_STS_008"))
    assert multi_frame.source.geometry.same_grid(classic.source.geometry, 1e-6)
    np.testing.assert_array_equal(multi_frame.source.voxels_zyx, classic.source.voxels_zyx)
    # this object stores its frames in head-to-feet order
    assert [frame.frame_number for frame in multi_frame.frames] == list(range(51, 0, -1))
    assert len(multi_frame.headers) == 1


def test_frames_in_any_order_and_compressed_are_read(shared_data, tmp_path):
    folder = shared_data / "theibsi+data_sets/STS_008_CT"
    classic = reconstruct(only_series(folder))
    files = [dcmread(path) for path in sorted(folder.iterdir())]
    np.random.default_rng(3).shuffle(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = LegacyConvertedEnhancedCTImage(
            files, generate_uid(), 1, generate_uid(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
        )
    # highdicom sorts the frames; shuffle them again, both pixels and functional groups
    order = np.random.default_rng(4).permutation(51)
    frames = np.frombuffer(converted.PixelData, np.uint8)[: 51 * 137 * 141 * 2].reshape(51, -1)
    converted.PixelData = frames[order].tobytes()
    groups = list(converted.PerFrameFunctionalGroupsSequence)
    converted.PerFrameFunctionalGroupsSequence = [groups[i] for i in order]
    converted.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
    converted.save_as(tmp_path / "mf.dcm")
    result = reconstruct(only_series(tmp_path))
    assert result.source.geometry.same_grid(classic.source.geometry, 1e-6)
    np.testing.assert_array_equal(result.source.voxels_zyx, classic.source.voxels_zyx)

    lying = instance(tmp_path / "mf.dcm")
    lying.header.NumberOfFrames = 52
    with pytest.raises(PixelDataInvalid, match="Number of Frames is 52, but there are 51 per-frame items"):
        reconstruct(Series("", "", (lying,)))


def test_tilted_head_has_its_true_geometry(shared_data):
    """Philips, 18.5 degrees: table step 2.5 mm along z, 2.371 mm along the normal (the tag states -18.5)."""
    result = reconstruct(only_series(shared_data / "neurolabusc+dcm_qa_ct/Philips_S21610_S2010_tilt-18.5"))
    assert result.volume.geometry.spacing_xyz_mm[2] == pytest.approx(2.5 * np.cos(np.radians(18.5)), abs=1e-4)
    assert result.source.geometry.spacing_xyz_mm[2] == pytest.approx(2.5, abs=1e-9)
    np.testing.assert_allclose(result.shear_xy_pixels_per_plane, (0, -2.5 * 0.3173047 / 0.482421875), atol=1e-5)
    assert result.notes == ("gantry tilt of 18.5 degrees, corrected by shearing before segmentation",)
    # bone thresholded on the upright volume and mapped back is bone on the source, pixel by pixel
    bone_upright = (result.volume.voxels_zyx > 300).astype(np.uint8)
    returned = labels_on_source(result, bone_upright).astype(bool)
    bone = result.source.voxels_zyx > 300
    np.testing.assert_array_equal(returned, bone)

    # and has the same position in the patient: the centres of mass agree
    def centre(mask, geometry):
        z, y, x = (axis.mean() for axis in np.nonzero(mask))
        return (geometry.affine_lps @ [x, y, z, 1])[:3]

    here = centre(bone, result.source.geometry)
    np.testing.assert_allclose(centre(bone_upright, result.volume.geometry), here, atol=0.2)


def test_tilt_is_found_without_its_tag(shared_data):
    """Siemens head scan without Gantry/Detector Tilt: only the positions show 14 degrees."""
    series = only_series(shared_data / "icometrix+dicom2nifti/failing_gantrytilting_001")
    grid = regular_grid(planes_of(series))
    assert grid.tilt_degrees == pytest.approx(14.0, abs=0.01)
    for source in series.instances:
        source.header.FrameOfReferenceUID = "1.2.3"
    assert reconstruct(series).volume.geometry.is_orthogonal


SYNTAX_FOLDER = "cornerstonejs+cornerstone3D/CTImage_all_transfer_syntaxes"
LOSSLESS = ["1.2", "1.2.1", "1.2.2", "1.2.5", "1.2.4.57", "1.2.4.70", "1.2.4.80", "1.2.4.90"]
REFUSED = ["1.2.1.99", "1.2.4.50", "1.2.4.51", "1.2.4.53", "1.2.4.55", "1.2.4.81", "1.2.4.91"]


def three_planes(path):
    """The single slice in ``path`` as three planes 6.5 mm apart: pixels from the file, positions in changed headers."""
    planes = []
    for k in range(3):
        header = copy.deepcopy(dcmread(path, stop_before_pixels=True))
        header.ImagePositionPatient = [0, 0, 6.5 * k]
        planes.append(SourceInstance(path, header))
    return Series("", "", tuple(planes))


@pytest.mark.parametrize("syntax", LOSSLESS + REFUSED)
def test_lossless_syntaxes_are_decoded_and_others_refused(shared_data, syntax):
    """Choice: lossless syntaxes are decoded to exact HU; lossy, near-lossless and deflated ones are refused."""
    uid = f"1.2.840.10008.{syntax}"
    paths = (shared_data / SYNTAX_FOLDER).iterdir()
    of_syntax = [path for path in paths if dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == uid]
    assert of_syntax
    for path in of_syntax:
        if syntax in REFUSED:
            with pytest.raises(PixelDataInvalid, match="is not an accepted lossless one"):
                reconstruct(three_planes(path))
            continue
        voxels = reconstruct(three_planes(path)).source.voxels_zyx
        assert (voxels.min(), voxels.max()) == (-3024, 1378)
        assert voxels.mean(dtype=np.float64) == pytest.approx(-949.076, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "mean"),
    [
        ("fo-dicom+fo-dicom/D_CLUNIE_CT1_RLE_FRAGS", -3024, 1254, -871.304),  # one frame in four fragments
        ("orthanc-mirrors+orthanc-tests/ELSCINT1-Raw", -1024, 1265, -334.866),
        ("orthanc-mirrors+orthanc-tests/SignedCT", -3024, 3018, -906.418),
        ("fo-dicom+fo-dicom/GH1308_single_tilted_slice", -3024, 1376, -606.709),
        ("fo-dicom+fo-dicom/IM-0001_single_slice", -1024, 1456, -22.528),
        ("pydicom+pydicom-data/explicit_VR-UN", -1024, 1186, -670.957),
        ("pydicom+pydicom/CT_small", -896, 1167, -119.074),
    ],
)
def test_odd_single_slices_decode_exactly(shared_data, name, lowest, highest, mean):
    (path,) = (shared_data / name).iterdir()
    series = three_planes(path)
    for source in series.instances:
        source.header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        source.header.FrameOfReferenceUID = "1.2.3"
    voxels = reconstruct(series).source.voxels_zyx
    assert (voxels.min(), voxels.max()) == (lowest, highest)
    assert voxels.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize(
    "name", ["implicit_cut_in_header.dcm", "implicit_cut_in_pixeldata.dcm", "jpegll_cut_in_pixeldata.dcm"]
)
def test_truncated_files_are_refused(shared_data, name):
    series = three_planes(shared_data / "derived/truncated" / name)
    with pytest.raises(SeriesRejected) as refusal:
        reconstruct(series)
    if "pixeldata" in name:
        assert isinstance(refusal.value, PixelDataInvalid)
        assert "truncated" in str(refusal.value)
