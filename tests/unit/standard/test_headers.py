"""Headers read within limits: as pydicom reads them, or refused before they cost time or memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.errors import LimitExceeded
from dicom_node.standard import headers
from dicom_node.standard.files import PassedOver, read_file, read_headers
from dicom_node.standard.headers import LONGEST_VALUE, Allowance

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MIB = 2**20
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def read_header(path, series=None):
    with path.open("rb") as stream:
        return headers.read_header(stream, series)


def image(syntax=ExplicitVRLittleEndian, frames=0, *, undefined_length=False) -> Dataset:
    """A CT image with a name, a private value and, with ``frames``, functional groups."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = (
        EnhancedCTImageStorage if frames else CTImageStorage
    )
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Größe^Ä"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.private_block(0x0011, "ours", create=True).add_new(1, "LO", "private")
    dataset.PerFrameFunctionalGroupsSequence = [frame(number) for number in range(frames)]
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined_length
    dataset.Rows, dataset.Columns = 4, 4
    dataset.PixelData = bytes(32)
    dataset["PixelData"].VR = "OW"
    return dataset


def frame(number: int) -> Dataset:
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, number]
    group.PlanePositionSequence = [position]
    return group


def written(folder, dataset):
    path = folder / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def with_inserted(folder, element: bytes):
    """An image with an encoded ``element`` before its pixel data; zeros are stored as a hole in the file."""
    path = written(folder, image())
    content = path.read_bytes()
    start = content.index(struct.pack("<HH", 0x0028, 0x0010))
    path.write_bytes(content[:start] + element + content[start:])
    return path


def private(size_bytes: int) -> bytes:
    return struct.pack("<HH2sHI", 0x0019, 0x1001, b"OB", 0, size_bytes)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("frames", [0, 3, 1600])
@pytest.mark.parametrize("undefined_length", [False, True])
def test_header_equals_the_one_read_by_pydicom(tmp_path, syntax, frames, undefined_length):
    path = written(tmp_path, image(syntax, frames, undefined_length=undefined_length))
    header, expected = read_header(path), dcmread(path)
    del expected.PixelData
    assert header == expected
    assert header.file_meta == expected.file_meta
    assert header.PatientName == "Größe^Ä"
    assert len(header.PerFrameFunctionalGroupsSequence) == frames


@pytest.mark.parametrize("size", [LONGEST_VALUE, LONGEST_VALUE + 2, 100 * 1024, 200 * MIB])
def test_long_value_is_skipped_by_its_declared_length(tmp_path, size):
    path = written(tmp_path, image())
    content = path.read_bytes()
    start = content.index(struct.pack("<HH", 0x0028, 0x0010))
    with path.open("wb") as file:
        file.write(content[:start] + private(size))
        file.seek(size, 1)
        file.write(content[start:])
    tracemalloc.start()
    header = read_header(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (0x0019, 0x1001) in header if size <= LONGEST_VALUE else (0x0019, 0x1001) not in header
    assert header.Rows == 4
    assert peak_bytes < MIB


def sequence(items: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HH2sHI", 0x0019, 0x1001, b"SQ", 0, len(items) if length is None else length) + items


ITEM, UNDEFINED, END = struct.pack("<HHI", 0xFFFE, 0xE000, 0), 0xFFFFFFFF, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize(
    ("element", "what"),
    [
        pytest.param(lambda: sequence(ITEM * 2_000_000), "items", id="2 million items"),
        pytest.param(lambda: sequence(ITEM * 2_000_000 + END, UNDEFINED), "items", id="as many, undefined length"),
        pytest.param(
            lambda: b"".join(struct.pack("<HH2sH", 0x0019, n & 0xFFFF, b"LO", 0) for n in range(1_100_000)),
            "elements",
            id="a million elements",
        ),
        pytest.param(lambda: sequence(bytes(80 * MIB)), "bytes", id="a sequence of 80 MiB"),
    ],
)
def test_more_than_ct_needs_is_refused(tmp_path, element, what):
    path = with_inserted(tmp_path, element())
    with pytest.raises(LimitExceeded, match=rf"more {'sequence ' if what == 'items' else ''}{what} .* limit of"):
        read_header(path)
    assert isinstance(read_file(path), PassedOver)


@pytest.mark.parametrize("items", [struct.pack("<HHI", 0xFFFE, 0xE000, MIB) + bytes(MIB), ITEM * 2_000_000])
def test_long_value_of_undefined_length_is_omitted(tmp_path, items):
    header = read_header(with_inserted(tmp_path, private(UNDEFINED) + items + END))
    assert (0x0019, 0x1001) not in header
    assert header.Rows == 4


def test_limits_apply_to_all_headers_of_a_series_together(tmp_path):
    path = written(tmp_path, image(frames=2000))
    with pytest.raises(LimitExceeded, match=r"300,000 in a series"):
        read_headers([path] * 76)  # 4000 items each
    series = Allowance.of_series()
    read_header(path, series)
    assert 0 < series.items_left <= 300_000 - 4000
    assert 0 < series.bytes_left < 256 * MIB


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SYNTAXES), st.booleans(), st.data())
def test_mutated_header_is_read_like_pydicom_does(tmp_path, syntax, undefined_length, data):
    path = written(tmp_path, image(syntax, 2, undefined_length=undefined_length))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(132, len(content)))])
    try:
        expected = dcmread(path, stop_before_pixels=True)
    except Exception as error:  # noqa: BLE001 - whatever it is
        with pytest.raises(type(error)):
            read_header(path)
    else:
        header = read_header(path)
        assert header._dict.keys() == expected._dict.keys()
        assert header.file_meta.keys() == expected.file_meta.keys()
