"""NIfTI as read by nibabel and SimpleITK: values, positions, and label maps on exactly the grid of their CT."""

from __future__ import annotations

import gzip
import tracemalloc
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.spatial.transform import Rotation

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid, SeriesRejected
from dicom_node.nifti import grid_of, open_labels, read_volume, write_labels
from inference.types import Geometry

NAMES = {1: "liver", 7: "spleen", 255: "aorta"}
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(spacing=(0.7, 1.3, 3.1), origin=(-31.7, 12.3, 845.1), turn=(0.3, -0.2, 0.4)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def hu(shape=(5, 6, 7), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


def turned(image: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    """The same image with its array stored along other axes."""
    ornt = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(axes))
    return image.as_reoriented(ornt)


def saved(path, array, affine, dtype=None, **codes) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine, dtype=dtype)
    image.set_sform(affine, codes.get("sform", 1))
    image.set_qform(affine, codes.get("qform", 1))
    nib.save(image, path)
    return nib.load(path)


def hu_at(volume, lps_mm):
    x, y, z = np.rint(np.linalg.inv(volume.geometry.affine_lps) @ [*lps_mm, 1])[:3].astype(int)
    return volume.voxels_zyx[z, y, x]


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPI", "ASL", "PIR", "SRA", "ILP"])
def test_every_voxel_has_nibabels_position_and_so_have_its_labels(tmp_path, axes):
    image = turned(nib.Nifti1Image(hu(), oblique()), axes)
    path, labels_path = tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz"
    image = saved(path, np.asanyarray(image.dataobj), image.affine)
    volume, grid = read_volume(path)

    assert volume.voxels_zyx.dtype == np.int16
    assert np.linalg.det(volume.geometry.affine_lps[:3, :3]) > 0
    array = np.asanyarray(image.dataobj)
    for index in np.ndindex(array.shape):
        ras = nib.affines.apply_affine(image.affine, index)
        assert hu_at(volume, RAS_OF_LPS[:3, :3] @ ras) == array[index]

    labels = (np.abs(volume.voxels_zyx.astype(int)) % 2 * 7).astype(np.uint8)
    write_labels(labels_path, labels, grid, NAMES, "test")
    written = nib.load(labels_path)
    assert np.array_equal(np.asanyarray(written.dataobj), np.abs(array.astype(int)) % 2 * 7)
    assert np.array_equal(written.affine, image.affine), "bit for bit"
    for field in ("dim", "pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(written.header[field], image.header[field]), field
    ct, mask = sitk.ReadImage(path), sitk.ReadImage(labels_path)
    assert (ct.GetOrigin(), ct.GetSpacing(), ct.GetDirection()) == (
        mask.GetOrigin(),
        mask.GetSpacing(),
        mask.GetDirection(),
    )
    assert mask.GetPixelIDValue() == sitk.sitkUInt8


def test_simpleitk_and_this_reader_agree_on_positions(tmp_path):
    path = tmp_path / "ct.nii"
    saved(path, hu(), oblique())
    volume, _ = read_volume(path)
    image = sitk.ReadImage(path)
    for index in [(0, 0, 0), (4, 0, 6), (2, 5, 1)]:
        assert hu_at(volume, image.TransformIndexToPhysicalPoint(index)) == image[index]


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        ("int16", 1.0, 0.0, np.int16),
        ("int16", 1.0, -1024.0, np.int16),
        ("int16", 0.5, 0.0, np.float32),
        ("uint8", 16.0, -1024.0, np.int16),
        ("uint8", 2.5, -1000.25, np.float32),
        ("uint16", 1.0, -1024.0, np.int16),
        ("int32", 1.0, 0.0, np.int16),
        ("float32", 1.0, 0.0, np.int16),
        ("float64", 1.0, 0.0, np.int16),
        (">i2", 1.0, -1024.0, np.int16),
        (">f4", 0.25, 0.0, np.float32),
    ],
)
def test_values_equal_nibabels(tmp_path, stored, slope, intercept, dtype):
    path = tmp_path / "ct.nii.gz"
    dtype_stored = np.dtype(stored)
    low = -1024 if dtype_stored.kind in "if" else 0
    array = np.random.default_rng(1).integers(low, 255, (4, 5, 6)).astype(dtype_stored)
    header = nib.Nifti1Header(endianness=dtype_stored.byteorder if dtype_stored.byteorder == ">" else "<")
    header.set_data_dtype(dtype_stored)
    header.set_data_shape(array.shape)
    header.set_sform(oblique(), 1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = slope, intercept, 352, b"n+1"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + array.tobytes(order="F")))
    volume, _ = read_volume(path)
    expected = nib.load(path).get_fdata().transpose(2, 1, 0)
    assert volume.voxels_zyx.dtype == dtype
    assert np.array_equal(volume.voxels_zyx, expected.astype(dtype))


def test_single_fraction_late_in_the_file_preserves_every_value(tmp_path):
    array = hu((4, 5, 6)).astype(np.float32)
    array[1, 2, 5] = 0.5
    saved(tmp_path / "ct.nii", array, oblique())
    volume, _ = read_volume(tmp_path / "ct.nii")
    assert np.array_equal(volume.voxels_zyx, array.transpose(2, 1, 0))
    assert volume.voxels_zyx.dtype == np.float32


def test_nan_and_infinity_are_passed_to_the_segmenter_which_refuses_them(tmp_path):
    array = hu((4, 5, 6)).astype(np.float64)
    array[0, 0, 0], array[0, 0, 5] = np.nan, 1e300
    saved(tmp_path / "ct.nii", array, oblique())
    voxels = read_volume(tmp_path / "ct.nii")[0].voxels_zyx
    assert np.isnan(voxels[0, 0, 0])
    assert np.isinf(voxels[5, 0, 0])


def test_sform_is_used_or_the_qform_without_one(tmp_path):
    other = oblique(origin=(1, 2, 3), turn=(2.9, 0.3, -0.8))
    image = nib.Nifti1Image(hu(), oblique())
    for sform in (2, 0):
        image.set_sform(oblique(), sform)
        image.set_qform(other, 1)
        nib.save(image, tmp_path / "ct.nii")
        volume, _ = read_volume(tmp_path / "ct.nii")
        affine = RAS_OF_LPS @ nib.load(tmp_path / "ct.nii").affine
        assert np.allclose(volume.geometry.affine_lps, affine, atol=1e-5)
        assert np.allclose(affine, RAS_OF_LPS @ (oblique() if sform else other), atol=1e-4)


@pytest.mark.parametrize("qfac", [-1, 0, 1])
def test_qform_alone_is_enough_with_any_handedness(tmp_path, qfac):
    """nifti1.h: a ``pixdim[0]`` of 0 means 1; nibabel corrects it in the same way."""
    header_bent(tmp_path / "ct.nii", sform_code=0, pixdim=[qfac, 0.7, 1.3, 3.1, 0, 0, 0, 0])
    image = nib.load(tmp_path / "ct.nii")
    volume, _ = read_volume(tmp_path / "ct.nii")
    for index in ((0, 0, 0), (4, 0, 6), (2, 5, 1)):
        ras = nib.affines.apply_affine(image.affine, index)
        assert hu_at(volume, RAS_OF_LPS[:3, :3] @ ras) == hu()[index]


def test_extension_of_any_declared_size_takes_no_memory(tmp_path):
    """A file of 64 kB whose header places the voxels at 64 MB."""
    path = tmp_path / "ct.nii"
    saved(path, hu(), oblique())
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["vox_offset"] = 2**26
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(2**26 - 348) + content[352:]))
    tracemalloc.start()
    try:
        volume, _ = read_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(volume.voxels_zyx, hu().transpose(2, 1, 0))
    assert peak < 2**23


def test_trailing_dimensions_of_one_are_accepted(tmp_path):
    image = saved(tmp_path / "ct.nii", hu((4, 5, 6))[..., np.newaxis], oblique())
    volume, grid = read_volume(tmp_path / "ct.nii")
    write_labels(tmp_path / "labels.nii.gz", np.ones(volume.voxels_zyx.shape, np.uint8), grid, NAMES, "")
    assert nib.load(tmp_path / "labels.nii.gz").shape == image.shape == (4, 5, 6, 1)


def test_several_gzip_members_are_read_as_one_stream(tmp_path):
    saved(tmp_path / "ct.nii", hu(), oblique())
    content = (tmp_path / "ct.nii").read_bytes()
    split = tmp_path / "split.nii.gz"
    split.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert np.array_equal(read_volume(split)[0].voxels_zyx, hu().transpose(2, 1, 0))


def header_bent(path, **fields):
    saved(path, hu(), oblique())
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"dim": [4, 5, 6, 7, 2, 1, 1, 1]}, NotEligible, r"4 dimensions \(5 x 6 x 7 x 2\)"),
        ({"dim": [2, 5, 42, 1, 1, 1, 1, 1]}, NotEligible, "2 dimensions"),
        ({"dim": [0] * 8}, PixelDataInvalid, "0 dimensions"),
        ({"dim": [3, 5, 6, -7, 1, 1, 1, 1]}, NotEligible, "5 x 6 x -7"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, NotEligible, "at most"),
        ({"dim": [3, 500, 600, 700, 1, 1, 1, 1]}, PixelDataInvalid, "states 420000000 bytes"),
        ({"datatype": 128}, NotEligible, "data type 128"),
        ({"datatype": 32}, NotEligible, "data type 32"),
        ({"sform_code": 0, "qform_code": 0}, GeometryRefused, "left and right are unknown"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}, GeometryRefused, "sheared"),
        ({"srow_x": [0, 0, 0, 0]}, GeometryRefused, "singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, GeometryRefused, "finite"),
        ({"sform_code": 0, "quatern_b": 0.9, "quatern_c": 0.9}, GeometryRefused, "is not a rotation"),
        ({"xyzt_units": 1}, NotEligible, "metres"),
        ({"intent_code": 1002}, NotEligible, "label map"),
        ({"magic": b"ni1"}, NotEligible, "pair"),
        ({"magic": b""}, NotEligible, "Analyze"),
        ({"vox_offset": 10}, PixelDataInvalid, "start at byte 10"),
        ({"scl_slope": 2, "scl_inter": np.inf}, PixelDataInvalid, "scl_inter is inf"),
    ],
)
def test_file_that_is_not_a_single_ct_volume_is_refused_by_name(tmp_path, fields, error, says):
    header_bent(tmp_path / "ct.nii", **fields)
    with pytest.raises(error, match=says):
        read_volume(tmp_path / "ct.nii")


@pytest.mark.parametrize("kept", [0, 100, 349, 400, -1])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_truncated_file_is_refused(tmp_path, name, kept):
    saved(tmp_path / name, hu(), oblique())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    with pytest.raises(PixelDataInvalid):
        read_volume(tmp_path / name)


def test_damaged_gzip_stream_is_refused(tmp_path):
    path = tmp_path / "ct.nii.gz"
    saved(path, hu((20, 20, 20)), oblique())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the checksum
    path.write_bytes(content)
    with pytest.raises(PixelDataInvalid, match="gzip"):
        read_volume(path)


def test_nifti_2_and_other_files_are_refused(tmp_path):
    nib.save(nib.Nifti2Image(hu(), oblique()), tmp_path / "two.nii")
    (tmp_path / "text.nii").write_bytes(b"no image" * 100)
    for name, says in (("two.nii", "NIfTI-2"), ("text.nii", "not a NIfTI file")):
        with pytest.raises(NotEligible, match=says):
            read_volume(tmp_path / name)


def test_random_headers_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "ct.nii"
    saved(path, hu(), oblique())
    sound = path.read_bytes()
    for _ in range(300):
        content = bytearray(sound)
        for place in rng.integers(0, 352, 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        with suppress(SeriesRejected):
            assert read_volume(path)[0].geometry.is_orthogonal


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.3, -0.2, 0.4), (np.pi, 0, 0), (0, np.pi, 0), (1.8, 1.8, 1.8)])
def test_grid_of_a_dicom_series_is_where_nibabel_and_simpleitk_expect_it(tmp_path, turn):
    affine = oblique(turn=turn)
    geometry = Geometry((7, 6, 5), affine)
    labels = hu((7, 6, 5)).astype(np.uint8)
    write_labels(tmp_path / "labels.nii.gz", labels, grid_of(geometry), NAMES, "test")
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj).transpose(2, 1, 0), labels)
    assert np.allclose(RAS_OF_LPS @ written.affine, affine, atol=1e-4)
    assert np.allclose(written.get_qform(), written.get_sform(), atol=1e-4)
    image = sitk.ReadImage(tmp_path / "labels.nii.gz")
    assert np.allclose(image.TransformIndexToPhysicalPoint((4, 5, 6)), (affine @ [4, 5, 6, 1])[:3], atol=1e-3)


def test_tilted_grid_has_only_an_sform(tmp_path):
    affine = oblique()
    affine[:3, 2] += 0.2 * affine[:3, 1]
    write_labels(tmp_path / "l.nii.gz", np.ones((3, 4, 5), np.uint8), grid_of(Geometry((3, 4, 5), affine)), NAMES, "")
    written = nib.load(tmp_path / "l.nii.gz")
    assert np.allclose(RAS_OF_LPS @ written.affine, affine, atol=1e-4)
    assert written.header["qform_code"] == 0


def test_extension_contains_names_and_only_geometry_is_copied_from_the_source(tmp_path):
    image = nib.Nifti1Image(hu(), oblique())
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = b"Doe^John", b"Doe^John", b"Doe^John"
    image.header["intent_name"] = b"Doe^John"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^John"))
    nib.save(image, tmp_path / "ct.nii.gz")
    volume, grid = read_volume(tmp_path / "ct.nii.gz")
    labels = np.zeros(volume.voxels_zyx.shape, np.uint8)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_labels(tmp_path / name, labels, grid, NAMES, "tissue 1")
    content = gzip.decompress((tmp_path / "one.nii.gz").read_bytes())
    assert b"Doe" not in content
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    written = nib.load(tmp_path / "one.nii.gz")
    (extension,) = written.header.extensions
    table = extension.get_content().decode()
    for label, name in NAMES.items():
        assert f'Key="{label}"' in table
        assert f"<![CDATA[{name}]]>" in table
    assert written.header["intent_code"] == 1002
    with pytest.raises(NotEligible, match="label map"):
        read_volume(tmp_path / "one.nii.gz")


@pytest.mark.parametrize("key", ["--1", "9" * 5000, "+1", "one"])
def test_keys_of_names_that_are_no_labels_are_left_out(tmp_path, key):
    table = f'<CaretExtension><Label Key="{key}">x</Label><Label Key="2">liver</Label></CaretExtension>'
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    nib.save(image, tmp_path / "l.nii.gz")
    with open_labels(tmp_path / "l.nii.gz") as opened:
        assert opened.names_by_label == {2: "liver"}
