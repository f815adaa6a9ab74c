"""Padding is the value stated in the images or a constant outside the reconstruction circle, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from dicom_node.analysis import measured, on_source_grid, reconstructed
from dicom_node.reconstruct import reconstruct
from dicom_node.types import SourceInstance
from inference.padding import find_padding
from inference.tissue import TissueSegmenter
from tests.support.chest import SHAPE, chest_hu, outside_circle
from tests.support.codestreams import compress
from tests.support.ct_series import Stack, bent, tilted_axes, write

CIRCLE = outside_circle()
OFF_CENTRE = outside_circle(centre_yx=(38, 24), radii_yx=(46, 46))
"""As with a field of view off the gantry's centre: two corners are cut off."""
SKIN = outside_circle(radii_yx=(17, 17))
"""This circle cuts the body."""


def quiet(ds):
    """Change nothing."""


def series_of(folder, pixels, change=quiet, *, intercept=-1024, bits=16):
    series = write(folder, Stack(pixels, bits_stored=bits))
    instances = []
    for instance in series.instances:
        ds = dcmread(instance.path)
        ds.RescaleIntercept = intercept
        change(ds)
        dcmwrite(instance.path, ds, enforce_file_format=True)
        instances.append(SourceInstance(instance.path, dcmread(instance.path, stop_before_pixels=True)))
    return type(series)(series.series_instance_uid, series.study_instance_uid, tuple(instances))


def stated(value, vr, limit=None):
    def change(ds):
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)

    return change


def found(volume):
    """Where the padding of ``volume`` is, or None."""
    return None if volume.padding is None else volume.padding.found_in(volume.voxels_zyx)


def unsigned_pixels(hu):
    return (np.maximum(hu, -1024) + 1024).astype(np.uint16)


def all_planes(outside):
    return np.broadcast_to(outside, SHAPE)


STATED = {
    "signed, below the scale": (np.int16, -2000, stated(-2000, "SS")),
    "unsigned, above the scale": (np.uint16, 63536, stated(63536, "US")),
    "unsigned, VR of the other sign": (np.uint16, 63536, stated(-2000, "SS")),
    "signed, VR of the other sign": (np.int16, -2000, stated(63536, "US")),
    "the lowest value, as air": (np.uint16, 0, stated(0, "US")),
}


@pytest.mark.parametrize(("dtype", "value", "change"), STATED.values(), ids=STATED.keys())
@pytest.mark.parametrize("outside", [CIRCLE, OFF_CENTRE, SKIN], ids=["circle", "off centre", "through the body"])
def test_stated_value_outside_the_circle_is_padding(tmp_path, dtype, value, change, outside):
    pixels = unsigned_pixels(chest_hu()).astype(dtype)
    pixels[:, outside] = value
    volume = reconstruct(series_of(tmp_path, pixels, change)).volume
    np.testing.assert_array_equal(found(volume), all_planes(outside))
    assert (volume.voxels_zyx[:, outside] == value - 1024).all()  # as stored in the images
    seen = volume.with_air_for_padding()
    assert seen.padding is None
    assert (seen.voxels_zyx[:, outside] == -1024).all()
    np.testing.assert_array_equal(seen.voxels_zyx[:, ~outside], volume.voxels_zyx[:, ~outside])


@pytest.mark.parametrize(("dtype", "value", "change"), STATED.values(), ids=STATED.keys())
@pytest.mark.parametrize("stating", [(0,), (5, 6), tuple(range(11))], ids=["the first", "two", "all but one"])
def test_padding_stated_in_some_planes_is_that_of_all(tmp_path, dtype, value, change, stating):
    pixels = unsigned_pixels(chest_hu()).astype(dtype)
    pixels[:, CIRCLE] = value
    volume = reconstruct(bent(series_of(tmp_path, pixels), change, *stating)).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


def test_padding_stated_in_some_planes_follows_the_rescale_and_sign_of_the_others(tmp_path):
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[5] = (chest_hu()[5] + 1024) // 2
    pixels[:, CIRCLE] = -2000
    series = bent(series_of(tmp_path, pixels), stated(63536, "US"), 0, 1)
    volume = reconstruct(bent(series, lambda header: setattr(header, "RescaleSlope", 2), 5)).volume
    assert set(np.unique(volume.voxels_zyx[:, CIRCLE])) == {-3024, -5024}
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


def test_padding_stated_in_some_planes_is_no_water_in_others(tmp_path):
    """Stored 0 is -1024 HU in the planes that state it; those of another intercept have water there, up to a corner."""
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[:, CIRCLE] = 0
    pixels[6:] -= 1024
    pixels[6:, :12, :12] = 0
    series = bent(series_of(tmp_path, pixels), lambda header: setattr(header, "RescaleIntercept", 0), *range(6, 12))
    volume = reconstruct(replace(bent(series, stated(0, "SS"), *range(6)), unchecked_hu=True)).volume
    assert volume.padding is None


def test_planes_without_a_value_get_none_where_the_others_differ(tmp_path):
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[:, CIRCLE] = np.where(np.arange(12) < 4, -2000, -1900)[:, None]
    series = series_of(tmp_path, pixels)
    for number, value in ((0, -2000), (1, -2000), (2, -2000), (3, -2000), (4, -1900), (5, -1900)):
        series = bent(series, stated(value, "SS"), number)
    padding = found(reconstruct(replace(series, unchecked_hu=True)).volume)
    np.testing.assert_array_equal(padding.any(axis=(1, 2)), np.arange(12) < 6)


@pytest.mark.parametrize(("value", "limit"), [(-2000, -1990), (-1990, -2000)])
def test_stated_range_is_padding(tmp_path, value, limit):
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[:, CIRCLE] = np.random.default_rng(0).integers(-2000, -1989, (SHAPE[0], int(CIRCLE.sum())))
    volume = reconstruct(series_of(tmp_path, pixels, stated(value, "SS", limit))).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_stated_value_is_padding_in_compressed_frames(tmp_path, syntax):
    pixels = unsigned_pixels(chest_hu())
    pixels[:, CIRCLE] = 63536

    def change(ds):
        stated(63536, "US")(ds)
        compress(ds, syntax)

    np.testing.assert_array_equal(found(reconstruct(series_of(tmp_path, pixels, change)).volume), all_planes(CIRCLE))


def test_stated_value_is_padding_despite_a_wrong_sign_in_the_header(tmp_path):
    hu = chest_hu()
    hu[:, CIRCLE] = -2000

    def change(ds):
        stated(63536, "US")(ds)
        compress(ds, JPEG2000Lossless, signed=True)

    volume = reconstruct(series_of(tmp_path, hu.view(np.uint16), change, intercept=0)).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


def test_every_plane_has_padding_by_its_own_rescale(tmp_path):
    """Slope 2 in one plane: -2000 is -3024 HU in the others and -5024 HU there."""
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[5] = (chest_hu()[5] + 1024) // 2
    pixels[:, CIRCLE] = -2000
    series = series_of(tmp_path, pixels, stated(-2000, "SS"))
    volume = reconstruct(bent(series, lambda header: setattr(header, "RescaleSlope", 2), 5)).volume
    assert set(np.unique(volume.voxels_zyx[:, CIRCLE])) == {-3024, -5024}
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


def test_padding_value_that_also_occurs_in_tissue_is_padding_only_from_the_corners(tmp_path):
    """0 HU is stated: water in the body that happens to have 0 HU is not padding."""
    hu = chest_hu()
    hu[:, 28:32, 31:33] = 0
    hu[:, CIRCLE] = 0
    volume = reconstruct(series_of(tmp_path, hu, stated(0, "SS"), intercept=0)).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))
    assert (volume.with_air_for_padding().voxels_zyx[:, 28:32, 31:33] == 0).all()


def test_stated_value_at_the_edge_but_in_no_corner_is_tissue(tmp_path):
    """0 HU is stated, but the images are padded with -3024 HU, and a body pixel of 0 HU touches the edge."""
    hu = chest_hu()
    hu[:, CIRCLE] = -3024
    hu[:, 0, 30:34] = 0
    volume = reconstruct(series_of(tmp_path, hu, stated(0, "SS"), intercept=0)).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


def test_stated_range_covering_the_whole_image_is_ignored(tmp_path):
    assert reconstruct(series_of(tmp_path, unsigned_pixels(chest_hu()), stated(0, "US", 65535))).volume.padding is None


def test_stated_value_without_pixels_means_no_padding(tmp_path):
    volume = reconstruct(series_of(tmp_path, unsigned_pixels(chest_hu()).astype(np.int16), stated(-2000, "SS"))).volume
    assert volume.padding is None
    assert volume.with_air_for_padding() is volume


def test_two_bytes_of_unknown_vr_are_read_as_a_value(tmp_path):
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    pixels[:, CIRCLE] = -2000
    volume = reconstruct(bent(series_of(tmp_path, pixels), stated(b"\x30\xf8", "UN"))).volume
    np.testing.assert_array_equal(found(volume), all_planes(CIRCLE))


@pytest.mark.parametrize("change", [stated(b"", "UN"), stated(None, "US"), stated(b"\x01", "UN"), stated([1, 2], "US")])
def test_unreadable_padding_value_is_ignored(tmp_path, change):
    assert reconstruct(bent(series_of(tmp_path, unsigned_pixels(chest_hu())), change)).volume.padding is None


@pytest.mark.parametrize("value", [-1024, -2000, -3024, 0, 3071])
@pytest.mark.parametrize("outside", [CIRCLE, OFF_CENTRE, SKIN], ids=["circle", "off centre", "through the body"])
def test_constant_outside_the_circle_is_padding_even_if_not_stated(value, outside):
    hu = chest_hu()
    hu[:, outside] = value
    padding = find_padding(hu)
    assert padding is not None
    np.testing.assert_array_equal(padding.found_in(hu), all_planes(outside))


def clipped_air():
    """Half of the air is -1024, as with a sharp kernel clipped at the end of the scale."""
    hu = chest_hu().astype(int)
    hu[hu < -900] += np.random.default_rng(1).normal(-24, 60, SHAPE).astype(int)[hu < -900]
    return np.maximum(hu, -1024).astype(np.int16)


def round_body():
    return np.where(outside_circle(radii_yx=(17, 17)), -1000, chest_hu()).astype(np.int16)


NO_PADDING = {
    "noise in the corners": chest_hu,
    "clipped air": clipped_air,
    "all air clipped": lambda: np.where(chest_hu() < -900, -1024, chest_hu()).astype(np.int16),
    "a round body in air without noise": round_body,
    "nothing but air": lambda: np.full(SHAPE, -1000, np.int16),
    "nothing but tissue": lambda: np.full(SHAPE, 40, np.int16),
    "a square of a constant": lambda: np.pad(np.full((12, 40, 44), 40, np.int16), ((0, 0), (10, 10), (10, 10))),
}


@pytest.mark.parametrize("make", NO_PADDING.values(), ids=NO_PADDING.keys())
def test_images_without_padding(make):
    assert find_padding(make()) is None


def test_air_stated_as_padding_is_air_without_a_visible_circle(tmp_path):
    """Pixel Padding Value 0 in an image whose air is clipped to 0: the border of the padding is unknown."""
    pixels = unsigned_pixels(np.where(chest_hu() < -900, -1024, chest_hu()))
    assert reconstruct(series_of(tmp_path, pixels, stated(0, "US"))).volume.padding is None


def analysed(series):
    """The measurements of the tissue model by name."""
    ct = reconstructed(series)
    labels = on_source_grid(ct, TissueSegmenter().segment(ct.volume, lambda *_: None))
    findings = measured(ct, labels, with_shape=True)
    return ct, findings, {structure.name: structure for structure in findings.measurements.structures}


@pytest.mark.parametrize(
    ("value", "intercept", "change"),
    [(-2000, -1024, stated(-2000, "SS")), (1024, -1024, stated(1024, "SS")), (0, -1024, stated(0, "SS"))],
    ids=["-3024 HU", "0 HU", "-1024 HU"],
)
def test_padding_counts_in_no_structure_and_truncates_what_it_touches(tmp_path, value, intercept, change):
    pixels = unsigned_pixels(chest_hu()).astype(np.int16)
    (tmp_path / "plain").mkdir()
    (tmp_path / "padded").mkdir()
    _, plain, _ = analysed(series_of(tmp_path / "plain", pixels, intercept=intercept))
    pixels[:, CIRCLE] = value
    ct, padded, by_name = analysed(series_of(tmp_path / "padded", pixels, change, intercept=intercept))
    np.testing.assert_array_equal(
        padded.segmentation.labels_zyx, np.where(found(ct.source), 0, plain.segmentation.labels_zyx)
    )
    inside = padded.segmentation.labels_zyx == 3
    assert by_name["soft_tissue"].voxel_count == np.count_nonzero(inside)
    assert by_name["soft_tissue"].mean_hu == pytest.approx(ct.source.voxels_zyx[inside].mean())


@pytest.mark.parametrize(("outside", "truncated"), [(CIRCLE, False), (SKIN, True)], ids=["in air", "through the body"])
@pytest.mark.parametrize("is_stated", [True, False], ids=["stated", "not stated"])
def test_structure_cut_by_a_siemens_circle_is_truncated(tmp_path, outside, truncated, is_stated):
    """-1024 HU outside the circle; the first and last planes are air, so that nothing else cuts the body."""
    hu = chest_hu()
    hu[[0, 1, -2, -1]] = np.random.default_rng(2).normal(-1000, 8, (4, *SHAPE[1:]))
    hu[:, outside] = -1024
    series = series_of(tmp_path, unsigned_pixels(hu), stated(0, "US") if is_stated else quiet)
    _, _, by_name = analysed(series)
    assert by_name["soft_tissue"].truncated is truncated


@pytest.mark.parametrize(("half_width", "truncated"), [(40, True), (24, False)], ids=["cut", "whole"])
@pytest.mark.parametrize("is_stated", [True, False], ids=["stated", "not stated"])
def test_body_cut_by_the_circle_in_noise_free_air_is_truncated(tmp_path, half_width, truncated, is_stated):
    """Denoised air is -1024 HU inside the circle, too: only the cut body reveals the circle."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    hu = np.full(SHAPE, -1024, np.int16)
    hu[2:-2, ((y - 29.5) / 18) ** 2 + ((x - 31.5) / half_width) ** 2 <= 1] = 40
    hu[:, CIRCLE] = -1024
    hu[:, :, [0, 1, -2, -1]] = -1024  # so that no edge of the image cuts it
    series = series_of(tmp_path, unsigned_pixels(hu), stated(0, "US") if is_stated else quiet)
    ct, _, by_name = analysed(series)
    assert by_name["soft_tissue"].truncated is truncated
    assert (ct.volume.padding is not None) is truncated


def test_padding_of_a_tilted_series_is_sheared_with_its_planes_and_leaves_no_rim(tmp_path):
    """A block of exactly 40 HU, cut by the circle, in air: every upright voxel has one of the three values."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:10, 20:45, 20:60] = 40
    hu[:, CIRCLE] = -3024
    stack = Stack(hu + 1024, orientation=tilted_axes(20), row_spacing_mm=0.75)
    series = write(tmp_path, stack)
    result = reconstruct(bent(series, stated(-2000, "SS")))
    assert set(np.unique(result.volume.voxels_zyx)) == {-3024, -1024, -1000, 40}
    assert (result.volume.voxels_zyx[found(result.volume)] == -3024).all()
    assert np.count_nonzero(result.volume.voxels_zyx == -3024) == np.count_nonzero(found(result.volume))
    np.testing.assert_array_equal(found(result.source), all_planes(CIRCLE))
    ct, findings, by_name = analysed(series=bent(series, stated(-2000, "SS")))
    assert set(by_name) <= {"soft_tissue", "air_in_body"}
    np.testing.assert_array_equal(findings.segmentation.labels_zyx == 3, ct.source.voxels_zyx == 40)
