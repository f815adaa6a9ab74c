"""Values that cannot be Hounsfield units are refused with the figures; everything plausible for a CT is accepted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dicom_node.errors import NotEligible, PixelDataInvalid
from dicom_node.reconstruct import reconstruct
from dicom_node.reconstruct.scale import implausible_rescale
from inference.types import Geometry, Volume
from tests.support.chest import AIR, chest_hu, outside_circle
from tests.support.ct_series import Stack, bent, write


def rescaled(slope, intercept, **values):
    def change(header):
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


def pixels_of(hu, dtype=np.uint16):
    return (np.maximum(hu, -1024) + 1024).astype(dtype)


def series_of(folder, pixels, change, **stack):
    return bent(write(folder, Stack(pixels, **stack)), change)


def as_12_bits(hu):
    return (hu.astype(int) & 0x0FFF).astype(np.uint16)


def inside_the_body():
    """A small field of view without any air around the patient."""
    return chest_hu()[:, 14:46, 30:34]


def padded(hu):
    hu = hu.copy()
    hu[:, outside_circle()] = -3024
    return hu


def petrous_bone():
    """A field of view within the head: brain at the edge, dense bone with air cells in the middle."""
    rng = np.random.default_rng(0)
    hu = rng.normal(35, 30, (12, 60, 64))
    hu[:, 15:45, 15:50] = rng.normal(1050, 150, (12, 30, 35))
    hu[:, 25:29, 20:32] = -700
    return pixels_of(np.rint(hu))


HU = chest_hu()
NOISY = chest_hu(noise=90.0)
IMPLAUSIBLE = {
    "signed values under an unsigned header": (HU.view(np.uint16), rescaled(1, 0), "values from 4 to 65464 HU"),
    "signed 12 bits read as unsigned": (as_12_bits(HU), rescaled(1, 0), "their median is 3096 HU"),
    "intercept lost": (pixels_of(HU), rescaled(1, 0), "where tissue is when the intercept is lost"),
    "intercept lost, noise in air": ((NOISY.astype(int) + 1024).astype(np.int16), rescaled(1, 0), "intercept is lost"),
    "intercept applied twice": (pixels_of(HU), rescaled(1, -2048), "their median is -2024 HU"),
    "slope doubled": (pixels_of(HU), rescaled(2, -500), "their median is -452 HU"),
}


@pytest.mark.parametrize(("pixels", "change", "said"), IMPLAUSIBLE.values(), ids=IMPLAUSIBLE.keys())
def test_implausible_hounsfield_units_are_refused(tmp_path, pixels, change, said):
    series = series_of(tmp_path, pixels, change)
    with pytest.raises(PixelDataInvalid, match="the values are not Hounsfield units") as refusal:
        reconstruct(series)
    assert said in str(refusal.value)


@pytest.mark.parametrize(("pixels", "change", "said"), IMPLAUSIBLE.values(), ids=IMPLAUSIBLE.keys())
def test_rule_may_accept_them_anyway_and_the_result_says_so(tmp_path, pixels, change, said):
    series = replace(series_of(tmp_path, pixels, change), unchecked_hu=True)
    (note,) = reconstruct(series).notes
    assert note.startswith("taken as Hounsfield units because a rule or option says so, though ")
    assert said in note


def test_missing_intercept_is_detected_despite_padding(tmp_path):
    pixels = padded(HU).astype(int) + 1024
    series = series_of(tmp_path, pixels.astype(np.int16), rescaled(1, 0))
    with pytest.raises(PixelDataInvalid, match="where tissue is when the intercept is lost"):
        reconstruct(series)


def with_metal(highest):
    hu = HU.astype(int)
    hu[4:8, 30:34, 30:34] = highest
    return hu


PLAUSIBLE = {
    "chest": (pixels_of(HU), rescaled(1, -1024)),
    "extended scale": ((with_metal(20_000) + 10_240) // 10, rescaled(10, -10_240)),
    "all of the extended scale": ((with_metal(30_710) + 10_240) // 10, rescaled(10, -10_240)),
    "metal at the end of 16 bits": (with_metal(31_743).astype(np.int16), rescaled(1, 0)),
    "padding around it": (padded(HU), rescaled(1, 0)),
    "nothing but air": (np.full(HU.shape, 24), rescaled(1, -1024)),
    "inside of the body": (pixels_of(np.tile(inside_the_body(), (1, 1, 8))), rescaled(1, -1024)),
    "petrous bone": (petrous_bone(), rescaled(1, -1024)),
    "lung alone": (pixels_of(np.random.default_rng(0).normal(-850, 60, HU.shape)), rescaled(1, -1024)),
    "brain alone, the rest 0": (pixels_of(np.where(HU > 0, HU, 0)), rescaled(1, -1024)),
    "metal at the edge": (pixels_of(np.where(np.arange(64) < 6, 3071, HU)), rescaled(1, -1024)),
    "within one bone": (
        np.random.default_rng(0).integers(1900, 1950, HU.shape),
        rescaled(1, -1024, PixelSpacing=[0.1, 0.1]),
    ),
}


@pytest.mark.parametrize(("pixels", "change"), PLAUSIBLE.values(), ids=PLAUSIBLE.keys())
def test_plausible_hounsfield_units_are_accepted(tmp_path, pixels, change):
    dtype = np.int16 if pixels.min() < 0 else np.uint16
    assert reconstruct(series_of(tmp_path, pixels.astype(dtype), change)).notes == ()


@pytest.mark.parametrize("absent", ["US", "us ", ""])
def test_unspecified_rescale_type_with_air_around_the_patient_is_accepted(tmp_path, absent):
    result = reconstruct(series_of(tmp_path, pixels_of(HU), rescaled(1, -1024, RescaleType=absent)))
    np.testing.assert_array_equal(result.volume.voxels_zyx, np.maximum(HU, -1024))
    assert result.notes == (
        ()
        if not absent
        else ("Rescale Type is US (unspecified); taken as HU because the air around the patient has the HU of air",)
    )


UNSPECIFIED = {
    "no air": (pixels_of(HU), rescaled(1, 0, RescaleType="US"), "Rescale Type is US (unspecified), and the values are"),
    "inside of the body": (
        pixels_of(np.tile(inside_the_body(), (1, 1, 8))),
        rescaled(1, -1024, RescaleType="US"),
        "where air is; their median is",
    ),
    "derived": (
        pixels_of(HU),
        rescaled(1, -1024, RescaleType="US", ImageType=["DERIVED", "PRIMARY", "AXIAL"]),
        "Rescale Type is US (unspecified) and Image Type not ORIGINAL",
    ),
    "electron density": (pixels_of(HU), rescaled(1, -1024, RescaleType="ED"), "Rescale Type (ED) states"),
    "any text": (
        pixels_of(HU),
        rescaled(1, -1024, RescaleType="Meier"),
        "Rescale Type (none of the standard's) states",
    ),
}


@pytest.mark.parametrize(("pixels", "change", "said"), UNSPECIFIED.values(), ids=UNSPECIFIED.keys())
def test_other_rescale_type_is_named_in_the_refusal(tmp_path, pixels, change, said):
    with pytest.raises(NotEligible) as refusal:
        reconstruct(series_of(tmp_path, pixels, change))
    assert said in str(refusal.value)
    assert "Meier" not in str(refusal.value)


LOWER = tuple(range(6))


def magnified(pixels):
    """As large as an image whose edge tells what surrounds the patient."""
    return pixels.repeat(3, axis=1).repeat(3, axis=2)


def half_scaled():
    """In the lower planes for a slope of 2 and an intercept of -1200."""
    pixels = pixels_of(HU)
    pixels[:6] = np.rint((np.maximum(HU[:6], -1024) + 1200) / 2)
    return pixels


def series_with(folder, pixels, *changes):
    """Intercept -1024, and ``changes`` with the planes of each."""
    series = series_of(folder, magnified(pixels), rescaled(1, -1024))
    for change, planes in changes:
        series = bent(series, change, *planes)
    return series


SOME_PLANES = {
    "intercept lost in one": (pixels_of(HU), [(rescaled(1, 0), (7,))]),
    "intercept lost in half": (pixels_of(HU), [(rescaled(1, 0), LOWER)]),
    "intercept applied twice at both ends": (pixels_of(HU), [(rescaled(1, -2048), (0, 11))]),
    "pair of the lower planes lost": (half_scaled(), [(rescaled(2, -1200), LOWER), (rescaled(1, 0), (3, 4))]),
    "intercept lost beside padding": (pixels_of(padded(HU)), [(rescaled(1, 0), (2, 9))]),
}


@pytest.mark.parametrize(("pixels", "changes"), SOME_PLANES.values(), ids=SOME_PLANES.keys())
def test_a_wrong_rescale_in_some_planes_is_refused_with_their_number(tmp_path, pixels, changes):
    wrong = len(changes[-1][1])
    with pytest.raises(PixelDataInvalid, match=f"in {wrong} of 12 planes, with Rescale Slope 1 and Intercept"):
        reconstruct(series_with(tmp_path, pixels, *changes))


AIR_KEPT = {
    "slope doubled in one": ((2, -1048), (7,)),
    "slope doubled at one end": ((2, -1048), (0,)),
    "slope doubled in half": ((2, -1048), LOWER),
    "slope halved in three": ((0.5, -1012), (3, 4, 9)),
    "slope a quarter too large": ((1.25, -1030), (5,)),
    "intercept 100 too low": ((1, -1124), (11,)),
}


@pytest.mark.parametrize(("pair", "planes"), AIR_KEPT.values(), ids=AIR_KEPT.keys())
@pytest.mark.parametrize("pixels", [pixels_of(HU), pixels_of(padded(HU))], ids=["air", "padding"])
def test_a_wrong_rescale_that_leaves_air_where_it_is_shows_in_tissue(tmp_path, pixels, pair, planes):
    series = series_with(tmp_path, pixels, (rescaled(*pair), planes))
    with pytest.raises(PixelDataInvalid, match=r"tissue in planes \d+ and \d+ of 12 differs by \d+ HU"):
        reconstruct(series)
    (note,) = [n for n in reconstruct(replace(series, unchecked_hu=True)).notes if "tissue in planes" in n]
    assert note.startswith("taken as Hounsfield units because a rule or option says so")


PAIRS = st.tuples(st.floats(0.3, 5), st.floats(-3000, 500))
GEOMETRY = Geometry((12, 60, 64), np.diag([1.0, 1.0, 2.5, 1.0]))


MOVING = np.stack([np.roll(plane, (k, 2 * k), (0, 1)) for k, plane in enumerate(chest_hu(noise=40.0))])
"""No two planes alike: the body moves from one end to the other."""


def nothing_but_liver():
    """A small field of view in which all that neighbouring planes have in common is their values."""
    return np.random.default_rng(0).normal(60, 25, (12, 60, 64))


@pytest.mark.parametrize("factor", [0.8, 1.2, 1.4])
@pytest.mark.parametrize("hu", ["liver", "moving"])
def test_a_wrong_slope_shows_in_planes_that_do_not_correlate(hu, factor):
    hu = {"liver": nothing_but_liver(), "moving": MOVING}[hu].astype(np.float32)
    assert np.corrcoef(hu[5].ravel(), hu[6].ravel())[0, 1] < 0.9
    pairs = [(1.0, -1024.0)] * len(hu)
    assert implausible_rescale(Volume(hu, GEOMETRY), pairs) is None
    hu[6] = (hu[6] - AIR) * factor + AIR
    pairs[6] = (factor, (-1024.0 - AIR) * factor + AIR)
    assert "tissue in planes 6 and 7" in str(implausible_rescale(Volume(hu, GEOMETRY), pairs))


def thigh():
    """Air, fat and muscle, whose mean is near 0 HU."""
    y, x = np.ogrid[:60, :64]
    distance = np.hypot(y - 30, x - 32)
    plane = np.select([distance < 18, distance < 24], [60.0, -90.0], -1000.0)
    return plane + np.random.default_rng(0).normal(0, 10, (12, 60, 64))


@pytest.mark.parametrize("factor", [0.5, 1.6, 2.0])
@pytest.mark.parametrize("planes", [slice(1), slice(5, 8), slice(6, None)])
def test_a_wrong_slope_about_0_hu_shows_though_the_mean_of_tissue_stays(factor, planes):
    hu, slopes = thigh().astype(np.float32), np.ones(12)
    hu[planes], slopes[planes] = hu[planes] * factor, factor
    assert implausible_rescale(Volume(hu, GEOMETRY), [(slope, 0.0) for slope in slopes]) is not None


def end_of_a_limb():
    """Fat and muscle that become less from plane to plane; the last of it has values between those of fat and air."""
    y, x = np.ogrid[:60, :64]
    distance = np.hypot(y - 30, x - 32)[np.newaxis]
    radius = np.linspace(20, 1, 12)[:, np.newaxis, np.newaxis]
    inside = np.clip((radius - distance) / 6 + 0.5, 0, 1)
    hu = AIR + inside * np.where(distance < radius - 8, 1050, 900)
    return hu + np.random.default_rng(0).normal(0, 10, hu.shape)


@pytest.mark.parametrize("other", [(2.0, -1048.0), (0.5, -1024.0), (4.0, -4096.0), (1.0, 0.0), (3.5, -735.0)])
@pytest.mark.parametrize("first", [0, 1])
def test_right_pairs_that_alternate_pass_where_a_limb_ends(other, first):
    """Its last plane would be nearer to the one before by the pair of that one, and yet not the same."""
    pairs = [(1.0, -1024.0) if k % 2 == first else other for k in range(12)]
    assert implausible_rescale(Volume(end_of_a_limb().astype(np.float32), GEOMETRY), pairs) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(PAIRS, min_size=12, max_size=12))
def test_right_rescales_pass_whatever_they_are(pairs):
    """The pairs of a series may all differ: its Hounsfield units are what counts."""
    assert implausible_rescale(Volume(MOVING, GEOMETRY), pairs) is None


@settings(max_examples=50, deadline=None)
@given(st.floats(0.3, 3), st.integers(0, 11), PAIRS)
def test_wrong_slope_that_keeps_air_is_detected_in_any_plane(factor, plane, pair):
    assume(abs(factor - 1) > 0.15)
    hu = HU.astype(np.float32)
    hu[plane] = (hu[plane] - AIR) * factor + AIR
    slope, intercept = pair
    pairs = [(slope, intercept)] * 12
    pairs[plane] = (slope * factor, (intercept - AIR) * factor + AIR)
    assert implausible_rescale(Volume(hu, GEOMETRY), pairs) is not None


def test_planes_may_differ_in_their_rescale(tmp_path):
    result = reconstruct(series_with(tmp_path, half_scaled(), (rescaled(2, -1200), LOWER)))
    np.testing.assert_allclose(result.volume.voxels_zyx, magnified(np.maximum(HU, -1024)), atol=1)
    assert result.notes == ()


def pair_of_values(plane):
    """As of writers that fit slope and intercept to the values of each image."""
    lowest, highest = float(plane.min()), float(plane.max())
    return (highest - lowest) / 65_535, lowest


@pytest.mark.parametrize(
    "pairs_of", [lambda k, plane: pair_of_values(plane), lambda k, plane: (1, -1024 if k < 2 else 0)]
)
def test_planes_of_air_beside_the_body_may_have_a_pair_of_their_own(pairs_of):
    """Above a head, say: by the pair of its neighbour, air would lie where the tissue of that neighbour does."""
    hu = chest_hu(noise=20.0).astype(np.float32)
    hu[:2] = np.random.default_rng(0).normal(-1000, 12, (2, *hu.shape[1:]))
    pairs = [pairs_of(k, plane) for k, plane in enumerate(hu)]
    assert implausible_rescale(Volume(hu, GEOMETRY), pairs) is None
    hu[7] = (hu[7] + 1000) * 2 - 1000
    pairs[7] = (pairs[7][0] * 2, (pairs[7][1] + 1000) * 2 - 1000)
    assert "tissue in planes 7 and 8" in str(implausible_rescale(Volume(hu, GEOMETRY), pairs))


def test_a_plane_full_of_streaks_may_have_a_pair_of_its_own():
    hu = chest_hu(noise=20.0).astype(np.float32)
    hu[5] += np.random.default_rng(0).normal(0, 400, hu[5].shape)
    assert implausible_rescale(Volume(hu, GEOMETRY), [pair_of_values(plane) for plane in hu]) is None
