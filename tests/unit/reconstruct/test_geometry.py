"""Order, orientation and regularity, from positions alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import GeometryRefused, NotEligible
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from tests.support.ct_series import AXIAL, Stack, bent, noise, write

PLANES = 6


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write(tmp_path_factory.mktemp("series"), Stack(noise((PLANES, 5, 7))))


@given(st.permutations(range(PLANES)))
def test_any_shuffle_of_the_instances_gives_the_same_volume(series, shuffle):
    shuffled = reconstruct(replace(series, instances=tuple(series.instances[i] for i in shuffle)))
    straight = reconstruct(series)
    np.testing.assert_array_equal(shuffled.volume.voxels_zyx, straight.volume.voxels_zyx)
    np.testing.assert_array_equal(shuffled.volume.geometry.affine_lps, straight.volume.geometry.affine_lps)
    assert shuffled.frames == straight.frames
    assert [h.SOPInstanceUID for h in shuffled.headers] == [f.sop_instance_uid for f in shuffled.frames]


@st.composite
def directions(draw):
    """Row and column directions of any orientation, from a random quaternion."""
    q = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)))
    w, x, y, z = q / np.linalg.norm(q)
    row = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
    column = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
    return (*row, *column)


NAMED = {
    "head first supine": AXIAL,
    "prone": (-1, 0, 0, 0, -1, 0),
    "reversed rows": (1, 0, 0, 0, -1, 0),
    "reversed columns": (-1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
}


def assert_every_voxel_is_in_its_place(orientation, z_sign, spacing):
    """Write a linear function of the patient position; read it back through voxels and affine."""
    dy, dx, dz = spacing
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    planes, rows, columns = 4, 5, 3
    origin = np.array([-10.5, 20.25, 5.0])
    step = normal * dz * z_sign
    gradient = np.array([3.0, 7.0, 31.0])

    def function(places):
        return places @ gradient + 2000

    k, j, i = np.meshgrid(range(planes), range(rows), range(columns), indexing="ij")
    places = origin + i[..., None] * row * dx + j[..., None] * column * dy + k[..., None] * step
    stored = np.rint(function(places)).astype(np.uint16)
    with TemporaryDirectory() as folder:
        stack = Stack(stored, tuple(orientation), tuple(origin), tuple(step), dy, dx)
        result = reconstruct(write(Path(folder), stack))

    geometry = result.volume.geometry
    indices = np.stack([i, j, k, np.ones_like(i)], axis=-1).reshape(-1, 4).T
    in_patient = (geometry.affine_lps @ indices)[:3].T
    expected = function(in_patient).reshape(stored.shape) - 1024
    # 0.5 from rounding the stored value, the rest from the decimal strings of the header
    assert np.abs(result.volume.voxels_zyx - expected).max() <= 0.51
    np.testing.assert_allclose(np.linalg.inv(geometry.affine_lps) @ geometry.affine_lps @ indices, indices, atol=1e-9)
    np.testing.assert_allclose(geometry.spacing_xyz_mm, (dx, dy, dz), atol=1e-6)
    assert np.linalg.det(geometry.affine_lps[:3, :3]) > 0
    for k_, header in enumerate(result.headers):
        stated = [float(v) for v in header.ImagePositionPatient]
        np.testing.assert_allclose((geometry.affine_lps @ [0, 0, k_, 1])[:3], stated, atol=1e-6)


@pytest.mark.parametrize("z_sign", [1, -1])
@pytest.mark.parametrize("orientation", NAMED.values(), ids=NAMED.keys())
def test_named_orientations_keep_every_voxel_in_place(orientation, z_sign):
    assert_every_voxel_is_in_its_place(orientation, z_sign, (0.75, 0.5, 2.5))


@settings(max_examples=25, deadline=None)
@given(directions(), st.sampled_from([1, -1]), st.tuples(*[st.floats(0.3, 5).map(lambda v: round(v, 4))] * 3))
def test_any_orientation_keeps_every_voxel_in_place(orientation, z_sign, spacing):
    assert_every_voxel_is_in_its_place(orientation, z_sign, spacing)


def move(*millimetres):
    def change(header):
        header.ImagePositionPatient = [a + b for a, b in zip(header.ImagePositionPatient, millimetres, strict=True)]

    return change


def assign(**values):
    def change(header):
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


def remove(keyword):
    return lambda header: header.pop(keyword)


REFUSED = {
    "duplicate position": (move(0, 0, -2.5), (2,), "1 of 6 planes lie at the position of another"),
    "unequal spacing": (move(0, 0, 0.2), (2,), "unequal spacing (2 of 5 gaps"),
    "one plane shifted sideways": (move(0.2, 0, 0), (3,), "plane 4 of 6 is shifted by 0.1"),
    "other size": (assign(Rows=6), (1,), "2 image sizes (columns x rows): 7 x 5, 7 x 6"),
    "other pixel spacing": (assign(PixelSpacing=[0.75, 0.6]), (1,), "2 pixel spacings in one series, from 0.5 to 0.75"),
    "other orientation": (assign(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), (1,), "several orientations: 1 of 6"),
    "zero pixel spacing": (assign(PixelSpacing=[0, 0]), (), "Pixel Spacing of 0 to 0 mm"),
    "negative pixel spacing": (assign(PixelSpacing=[-0.5, 0.5]), (), "Pixel Spacing of -0.5"),
    "tiny pixel spacing": (assign(PixelSpacing=["1e-9", "1e-9"]), (), "Pixel Spacing of 1e-09"),
    "infinite pixel spacing": (assign(PixelSpacing=["1e400", "1"]), (), "Pixel Spacing is not finite"),
    "one pixel spacing": (assign(PixelSpacing="0.5"), (), "Pixel Spacing has 1 values, expected 2"),
    "orientation not unit": (assign(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), (), "length 2.0000 and 1.0000"),
    "orientation zero": (assign(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), (), "length 0.0000 and 0.0000"),
    "orientation skew": (assign(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), (), "not perpendicular (cosine 0.6"),
    "orientation short": (assign(ImageOrientationPatient=[1, 0, 0, 0, 1]), (), "has 5 values, expected 6"),
    "position missing": (remove("ImagePositionPatient"), (4,), "Image Position (Patient) is missing"),
    "position short": (assign(ImagePositionPatient=[1, 2]), (4,), "Image Position (Patient) has 2 values"),
}


@pytest.mark.parametrize(("change", "indices", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_irregular_geometry_is_refused_with_the_numbers(series, change, indices, said):
    with pytest.raises(GeometryRefused) as refusal:
        reconstruct(bent(series, change, *indices))
    assert said in str(refusal.value)


@pytest.mark.parametrize("missing", range(1, PLANES - 1))
def test_any_missing_plane_is_refused(series, missing):
    rest = tuple(instance for i, instance in enumerate(series.instances) if i != missing)
    with pytest.raises(GeometryRefused, match=r"gap of 5 mm after plane .* expected 2.5 mm: missing plane"):
        reconstruct(replace(series, instances=rest))


def test_accumulated_small_errors_are_refused(tmp_path):
    # every gap is within 1 % of the spacing, yet half-way the planes are more than a tenth of it off
    gaps = [2.5 * 1.009] * 40 + [2.5 * 0.992] * 40
    series = write(tmp_path, Stack(noise((81, 2, 2))))
    for instance, z in zip(series.instances, np.cumsum([0, *gaps]), strict=True):
        instance.header.ImagePositionPatient = [0, 0, round(float(z), 6)]
    with pytest.raises(GeometryRefused, match="spacing drifts"):
        reconstruct(series)


@pytest.mark.parametrize("decimals", [1, 2, 3])
@pytest.mark.parametrize("spacing_mm", [0.4, 0.625, 0.7, 1.25, 3.0])
@pytest.mark.parametrize("way", [(0.0, 0.0, 1.0), (0.0, -0.25, 1.0)], ids=["upright", "tilted"])
def test_rounded_positions_are_regular(tmp_path, decimals, spacing_mm, way):
    """As written by exporters: 0.625 mm becomes gaps of 0.6 and 0.7 mm."""
    series = write(tmp_path, Stack(noise((41, 12, 12))))
    for k, instance in enumerate(series.instances):
        place = np.array([-100.03, 20.04, 30.05]) + k * spacing_mm * np.array(way)
        instance.header.ImagePositionPatient = [round(float(value), decimals) for value in place]
    geometry = reconstruct(series).source.geometry
    step, start = geometry.affine_lps[:3, 2], geometry.affine_lps[:3, 3]
    np.testing.assert_allclose(step, spacing_mm * np.array(way), atol=0.005)
    np.testing.assert_allclose(start, [-100.03, 20.04, 30.05], atol=0.06)


@pytest.mark.parametrize("missing", [1, 7, 20, 38, 39])
@pytest.mark.parametrize("spacing_mm", [0.3, 0.4, 0.625, 5.0])
def test_missing_plane_is_detected_among_rounded_positions(tmp_path, missing, spacing_mm):
    series = write(tmp_path, Stack(noise((41, 4, 4))))
    for k, instance in enumerate(series.instances):
        instance.header.ImagePositionPatient = [0, 0, round(k * spacing_mm, 1)]
    rest = tuple(instance for k, instance in enumerate(series.instances) if k != missing)
    with pytest.raises(GeometryRefused, match=r"missing plane or unequal spacing|position of another plane"):
        reconstruct(replace(series, instances=rest))


@pytest.mark.parametrize("moved", [0, 1, 10, 19, 20])
@pytest.mark.parametrize("spacing_mm", [0.625, 1.25, 5.0])
@pytest.mark.parametrize("way", [(0, 0, 1), (1, 0, 0), (0, -1, 0)], ids=["along z", "along x", "along y"])
@pytest.mark.parametrize("decimals", [1, 6], ids=["rounded", "exact"])
def test_plane_moved_by_0_2_mm_is_refused_anywhere_in_the_stack(tmp_path, moved, spacing_mm, way, decimals):
    """A fitted grid half-way between this plane and the others would hide half of the shift."""
    series = write(tmp_path, Stack(noise((21, 4, 4))))
    for k, instance in enumerate(series.instances):
        place = np.array([0, 0, k * spacing_mm]) + 0.2 * np.array(way) * (k == moved)
        instance.header.ImagePositionPatient = [round(float(value), decimals) for value in place]
    with pytest.raises(GeometryRefused, match=r"gap of|is shifted by|spacing drifts|one of them was moved"):
        reconstruct(series)


@pytest.mark.parametrize("moved", [0, 10, 20])
def test_plane_may_deviate_by_the_rounding_error(tmp_path, moved):
    series = write(tmp_path, Stack(noise((21, 4, 4))))
    reconstruct(bent(series, move(0.09, -0.09, 0.09), moved))


def rotated(angle, k):
    turned = angle * (k % 2)
    return [math.cos(turned), math.sin(turned), 0, -math.sin(turned), math.cos(turned), 0]


@pytest.mark.parametrize(
    ("angle", "size", "is_refused"),
    [(1e-4, 512, False), (3e-4, 400, False), (6e-4, 512, True), (1e-3, 8, False), (3e-3, 8, True)],
)
def test_cosines_may_vary_if_no_corner_moves_by_a_tenth_of_a_millimetre(tmp_path, angle, size, is_refused):
    series = write(tmp_path, Stack(noise((9, 4, 4)), row_spacing_mm=size / 4, column_spacing_mm=size / 4))
    for k, instance in enumerate(series.instances):
        instance.header.ImageOrientationPatient = rotated(angle, k)
    if is_refused:
        with pytest.raises(GeometryRefused, match="several orientations: 4 of 9"):
            reconstruct(series)
        return
    x_axis = reconstruct(series).source.geometry.affine_lps[:3, 0]
    assert x_axis[1] / x_axis[0] == pytest.approx(angle * 4 / 9 if angle > 1e-4 else 0, abs=1e-6)


def test_single_plane_with_another_orientation_is_refused(series):
    with pytest.raises(GeometryRefused, match="several orientations: 1 of 6"):
        reconstruct(bent(series, assign(ImageOrientationPatient=rotated(0.002, 1)), 3))


def test_tags_known_to_be_wrong_for_some_vendors_are_ignored(series):
    lies = assign(SliceThickness=99, SpacingBetweenSlices=-7, SliceLocation=5, InstanceNumber=1, GantryDetectorTilt=20)
    bent_series = reconstruct(bent(series, lies))
    np.testing.assert_array_equal(
        bent_series.volume.geometry.affine_lps, reconstruct(series).volume.geometry.affine_lps
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (ReconstructionLimits(maximum_planes=5), "planes: 6, the limit is 5"),
        (ReconstructionLimits(maximum_voxels=6 * 35 - 1), "voxels: 210 are stated, the limit is 209"),
        (ReconstructionLimits(minimum_planes=7), "planes: 6, a volume needs at least 7"),
    ],
)
def test_limits_are_applied(series, limits, said):
    with pytest.raises(NotEligible) as refusal:
        reconstruct(series, limits)
    assert str(refusal.value).startswith(said)


def test_two_planes_are_not_a_volume(series):
    with pytest.raises(NotEligible, match="planes: 2, a volume needs at least 3"):
        reconstruct(replace(series, instances=series.instances[:2]))
