"""Planes of several acquisitions under one Series Instance UID."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.errors import GeometryRefused, NotEligible
from dicom_node.reconstruct import reconstruct
from tests.support.ct_series import Stack, bent, enhanced, noise, write

PLANES = 12


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write(tmp_path_factory.mktemp("series"), Stack(noise((PLANES, 5, 7))))


def with_values(series, keyword, values):
    """``values[k]`` in plane k; None omits the attribute."""
    for k, value in enumerate(values):

        def change(header, value=value):
            header.pop(keyword, None)
            if value is not None:
                setattr(header, keyword, value)

        series = bent(series, change, k)
    return series


TWO = {
    "Acquisition Number": ("AcquisitionNumber", 1, 2),
    "KVP": ("KVP", 80, 140),
    "Convolution Kernel": ("ConvolutionKernel", "Br40f", ["H70h", "2"]),
    "Contrast/Bolus Agent": ("ContrastBolusAgent", None, "IODINE"),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize(
    "pattern",
    ["ab" * 6, "aabb" * 3, "aaaaaaaabaaa", "abbbbbbbbbba"],
    ids=["in turn", "in pairs", "one among others", "both ends"],
)
def test_values_alternating_along_the_stack_are_refused_by_name(series, name, pattern):
    keyword, a, b = TWO[name]
    with pytest.raises(NotEligible, match=f"2 values of {re.escape(name)} alternate along the 12 planes"):
        reconstruct(with_values(series, keyword, [a if each == "a" else b for each in pattern]))


def test_alternating_values_are_named_and_counted_unless_free_text(series):
    with pytest.raises(NotEligible, match=r"planes: 1 \(6\), 2 \(6\)"):
        reconstruct(with_values(series, "AcquisitionNumber", [1, 2] * 6))
    with pytest.raises(NotEligible) as refused:
        reconstruct(with_values(series, "ContrastBolusAgent", ["Doe", "John"] * 6))
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize("name", TWO)
def test_adjoining_ranges_are_accepted_with_a_note(series, name):
    keyword, a, b = TWO[name]
    read = reconstruct(with_values(series, keyword, [a] * 5 + [b] * 7))
    assert [note for note in read.notes if note.startswith(f"{name} differs between 2 ranges of planes")]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_different_value_for_each_plane_is_not_a_range(series, order):
    read = reconstruct(with_values(series, "AcquisitionNumber", list(range(PLANES))[order]))
    assert read.notes == ()


@pytest.mark.parametrize(
    ("times", "is_refused"),
    [
        (["080000", "080100"] * 6, True),
        (["080000", "080030", "080100"] * 4, True),
        (["080000"] * 6 + ["080100"] * 6, False),
        ([f"0800{k:02}" for k in range(PLANES)], False),
        ([f"0800{k // 2:02}.5" if k % 2 else f"0800{k // 2:02}" for k in range(PLANES)], False),
        (["080000", "080000", "080001", "080000", "080001", *["080001"] * 7], False),
        ([f"080{k % 2}{k:02}.25" for k in range(PLANES)], True),
        ([f"080{2 - k % 3}{k:02}" for k in range(PLANES)], True),
        (["080000.1", "080000.2", "080100.1", "080100.2"] * 3, True),
        ([f"{'235959' if k < 4 else '000000'}.{k:02}" for k in range(PLANES)], False),
        ([f"08000{k // 4}.{k % 4 * 20:02}" for k in range(PLANES)], False),
        ([f"0800{11 - k:02}" for k in range(PLANES)], False),
        (["080000", None] * 6, False),
        (["8 o'clock", "9 o'clock"] * 6, False),
    ],
    ids=[
        "two passes",
        "three passes",
        "abutting",
        "sequential",
        "sequential pairs",
        "rounding at an edge",
        "two passes, a time for each plane",
        "three passes, a time for each plane",
        "two passes in pairs",
        "over midnight",
        "four rows of detectors",
        "downwards",
        "no time in every second plane",
        "no times",
    ],
)
def test_acquisition_times_distinguish_passes_from_one_acquisition(series, times, is_refused):
    timed = with_values(series, "AcquisitionTime", times)
    if is_refused:
        with pytest.raises(NotEligible, match="Acquisition Time alternates along the 12 planes"):
            reconstruct(timed)
    else:
        reconstruct(timed)


# ---- multi-frame objects


def rewritten(series, change):
    """The series with ``change`` applied to the files, given the number of the plane and its header."""
    for k, instance in enumerate(series.instances):
        header = dcmread(instance.path)
        change(header, k)
        header.save_as(instance.path)
    return series


ALTERNATING = {
    "Acquisition Number": lambda header, k: setattr(header, "AcquisitionNumber", 1 + k % 2),
    "KVP": lambda header, k: setattr(header, "KVP", (80, 140)[k % 2]),
    "Convolution Kernel": lambda header, k: setattr(header, "ConvolutionKernel", ("Br40f", "Hr60f")[k % 2]),
    "Acquisition Time": lambda header, k: header.update(
        {"AcquisitionDate": "20200101", "AcquisitionTime": f"080{k % 2}{k:02}"}
    ),
}


@pytest.mark.parametrize("parts", [[range(12)], [range(0, 12, 2), range(1, 12, 2)]], ids=["one object", "two objects"])
@pytest.mark.parametrize("name", ALTERNATING)
def test_values_alternating_along_the_frames_are_refused_by_name(tmp_path, name, parts):
    """As in a Legacy Converted object, where no macro contains the tube voltage and the kernel."""
    for folder in ("classic", "converted"):
        (tmp_path / folder).mkdir()
    classic = rewritten(write(tmp_path / "classic", Stack(noise((PLANES, 5, 7)))), ALTERNATING[name])
    with pytest.raises(NotEligible, match=f"{name} alternates? along the 12 planes"):
        reconstruct(enhanced(classic, tmp_path / "converted", parts))


@pytest.mark.parametrize("parts", [(range(5), range(5, 12)), (range(8, 12), range(4), range(4, 8))])
def test_adjoining_multi_frame_objects_are_one_volume(series, tmp_path, parts):
    read = reconstruct(enhanced(series, tmp_path, parts))
    assert np.array_equal(read.volume.voxels_zyx, reconstruct(series).volume.voxels_zyx)
    assert len(read.headers) == len({frame.sop_instance_uid for frame in read.frames}) == len(parts)


def test_phases_in_multi_frame_objects_are_refused_as_phases(series, tmp_path):
    phases = enhanced(series, tmp_path, [range(12)] * 4)
    with pytest.raises(
        GeometryRefused, match="4 multi-frame objects are not one volume: 36 of 48 planes lie at the pos"
    ):
        reconstruct(phases)


def test_gap_between_multi_frame_objects_is_a_missing_plane(series, tmp_path):
    with pytest.raises(GeometryRefused, match="2 multi-frame objects are not one volume: gap of 5 mm"):
        reconstruct(enhanced(series, tmp_path, (range(5), range(6, 12))))
