"""Multi-frame objects whose writer put an attribute elsewhere than the functional groups, or in one place only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node.errors import NotEligible, PixelDataInvalid
from dicom_node.reconstruct import reconstruct
from dicom_node.standard.localizers import is_localizer
from tests.support.ct_series import Stack, bent, enhanced, noise, write

PLANES = 6


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """One object, and the classic series that it was made from."""
    folder = tmp_path_factory.mktemp("series")
    (folder / "classic").mkdir()
    series = write(folder / "classic", Stack(noise((PLANES, 5, 7))))
    return enhanced(series, folder, [range(PLANES)]), series


def groups(header):
    return [*header.SharedFunctionalGroupsSequence, *header.PerFrameFunctionalGroupsSequence]


def rescale_in_the_header(header, slope=1, intercept=-1024, rescale_type="HU"):
    for group in groups(header):
        group.pop("PixelValueTransformationSequence", None)
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = slope, intercept, rescale_type


@pytest.mark.parametrize("intercept", [-1024, -1000])
def test_rescale_in_the_header_alone_is_read(converted, intercept):
    objects, classic = converted
    read = reconstruct(bent(objects, lambda header: rescale_in_the_header(header, intercept=intercept)))
    expected = reconstruct(classic).volume.voxels_zyx.astype(int) + 1024 + intercept
    np.testing.assert_array_equal(read.volume.voxels_zyx, expected)


def test_rescale_type_in_the_header_alone_is_respected(converted):
    with pytest.raises(NotEligible, match=r"Rescale Type \(MGML\)"):
        reconstruct(bent(converted[0], lambda header: rescale_in_the_header(header, rescale_type="MGML")))


def test_rescale_of_the_functional_groups_goes_before_that_of_the_header(converted):
    objects, classic = converted

    def change(header):
        header.RescaleSlope, header.RescaleIntercept = 2, 5

    np.testing.assert_array_equal(
        reconstruct(bent(objects, change)).volume.voxels_zyx, reconstruct(classic).volume.voxels_zyx
    )


def test_rescale_nowhere_is_named(converted):
    def change(header):
        rescale_in_the_header(header)
        del header.RescaleSlope

    with pytest.raises(PixelDataInvalid, match="frame 1: Rescale Slope is missing"):
        reconstruct(bent(converted[0], change))


def with_frame_types(header, flavors, image_type=("ORIGINAL", "PRIMARY", "VOLUME", "NONE")):
    """``flavors``: value 3 of each frame's Frame Type; None: not stated. One for all frames where it is text."""
    header.ImageType = list(image_type)
    for group in groups(header):
        group.pop("CTImageFrameTypeSequence", None)
    if isinstance(flavors, str):
        header.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence = [frame_type(flavors)]
        return
    for group, flavor in zip(header.PerFrameFunctionalGroupsSequence, flavors, strict=True):
        if flavor is not None:
            group.CTImageFrameTypeSequence = [frame_type(flavor)]


def frame_type(flavor):
    item = Dataset()
    item.FrameType = ["ORIGINAL", "PRIMARY", flavor, "NONE"]
    return item


SCOUT, VOLUME = "LOCALIZER", "VOLUME"


@pytest.mark.parametrize(
    ("flavors", "image_type", "expected"),
    [
        (SCOUT, ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"), True),
        ([SCOUT] * PLANES, ("ORIGINAL", "PRIMARY", "MIXED", "NONE"), True),
        ([SCOUT] * PLANES, ("ORIGINAL", "PRIMARY"), True),
        ([SCOUT, *[VOLUME] * (PLANES - 1)], ("ORIGINAL", "PRIMARY", "MIXED", "NONE"), False),
        ([SCOUT, *[None] * (PLANES - 1)], ("ORIGINAL", "PRIMARY", "MIXED", "NONE"), False),
        ([None] * PLANES, ("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"), True),
        (VOLUME, ("ORIGINAL", "PRIMARY", "VOLUME", "LOCALIZER"), True),
        ("localizer", ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"), True),
        (VOLUME, ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"), False),
    ],
    ids=[
        "shared",
        "each frame",
        "no third value",
        "one frame",
        "one frame alone",
        "Image Type",
        "fourth value",
        "lower case",
        "none",
    ],
)
def test_an_object_whose_frames_are_localizers_is_one(converted, flavors, image_type, expected):
    (instance,) = bent(converted[0], lambda header: with_frame_types(header, flavors, image_type)).instances
    assert is_localizer(instance.header) is expected


@pytest.mark.parametrize("flavors", [SCOUT, [SCOUT] * PLANES], ids=["shared", "each frame"])
def test_localizer_by_frame_type_is_set_aside_with_a_note(converted, tmp_path, flavors):
    objects, classic = converted
    scout = bent(enhanced(classic, tmp_path, [range(PLANES)]), lambda header: with_frame_types(header, flavors))
    read = reconstruct(replace(objects, instances=(*objects.instances, *of_the_series(scout, objects))))
    np.testing.assert_array_equal(read.volume.voxels_zyx, reconstruct(classic).volume.voxels_zyx)
    assert "localizers in the series: 1, set aside" in read.notes
    with pytest.raises(NotEligible, match=r"has localizers among its frames, or only these \(Frame Type value 3\)"):
        reconstruct(scout)


def of_the_series(others, series):
    uid = series.instances[0].header.SeriesInstanceUID
    return bent(others, lambda header: setattr(header, "SeriesInstanceUID", uid)).instances


def test_localizer_among_the_frames_is_refused(converted):
    flavors = [*[VOLUME] * (PLANES - 1), SCOUT]
    with pytest.raises(NotEligible, match="has localizers among its frames"):
        reconstruct(bent(converted[0], lambda header: with_frame_types(header, flavors, ("ORIGINAL",))))


def lut():
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [4, 0, 16], [0, 1, 2, 3], "HU"
    return item


def lut_in_the_header(header):
    header.ModalityLUTSequence = [lut()]


def lut_without_rescale(header):
    lut_in_the_header(header)
    header.pop("RescaleSlope")
    header.pop("RescaleIntercept")


def lut_that_is_unreadable(header):
    tag = Tag("ModalityLUTSequence")
    header[tag] = RawDataElement(tag, "SQ", 3, b"cut", 0, is_implicit_VR=False, is_little_endian=True)


@pytest.mark.parametrize("change", [lut_in_the_header, lut_without_rescale, lut_that_is_unreadable])
def test_modality_lut_is_refused_by_name(converted, change):
    _, classic = converted
    with pytest.raises(PixelDataInvalid, match="a Modality LUT Sequence is stated, which excludes Rescale Slope"):
        reconstruct(bent(classic, change, 3))


@pytest.mark.parametrize("where", ["header", "macro", "converted of all frames", "converted of one frame"])
def test_modality_lut_of_a_multi_frame_object_is_refused_wherever_it_stands(converted, where):
    def change(header):
        if where == "header":
            lut_in_the_header(header)
        elif where == "macro":
            holder = next(group for group in groups(header) if "PixelValueTransformationSequence" in group)
            lut_in_the_header(holder.PixelValueTransformationSequence[0])
        else:
            item = Dataset()
            lut_in_the_header(item)
            if where.endswith("all frames"):
                header.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = [item]
            else:
                header.PerFrameFunctionalGroupsSequence[3].UnassignedPerFrameConvertedAttributesSequence = [item]

    with pytest.raises(PixelDataInvalid, match="a Modality LUT Sequence is stated"):
        reconstruct(bent(converted[0], change))


def test_empty_modality_lut_says_nothing(converted):
    _, classic = converted
    read = reconstruct(bent(classic, lambda header: setattr(header, "ModalityLUTSequence", [])))
    np.testing.assert_array_equal(read.volume.voxels_zyx, reconstruct(classic).volume.voxels_zyx)
