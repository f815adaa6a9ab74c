"""Files as found in hospitals: read by their actual content, or skipped with a reason."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from dicom_node.errors import PixelDataInvalid
from dicom_node.reconstruct import reconstruct
from dicom_node.standard import opening
from dicom_node.standard.files import (
    COPY,
    DAMAGED,
    DIRECTORY,
    NO_DICOM,
    RECODED,
    UID_MISSING,
    UID_REUSED,
    PassedOver,
    read_file,
    read_headers,
    read_repeated,
    read_series_folder,
)
from dicom_node.standard.opening import EMPTY, open_part10
from dicom_node.standard.part10 import FileMeta
from tests.support.ct_series import Stack, noise, write


def encoded(path, syntax):
    """The data set re-encoded in another uncompressed syntax."""
    read = dcmread(path)
    dataset = Dataset({tag: read[tag] for tag in read.keys()})  # noqa: SIM118 - the elements, decoded
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def bare(path, syntax):
    path.write_bytes(encoded(path, syntax))


def implicit_without_preamble(path):
    bare(path, ImplicitVRLittleEndian)


def explicit_without_preamble(path):
    bare(path, ExplicitVRLittleEndian)


def meta_without_preamble(path):
    path.write_bytes(path.read_bytes()[132:])


def deflated(path):
    written = dcmread(path)
    written.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    written.save_as(path)


def labelled(path, syntax, stated):
    path.write_bytes(FileMeta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", stated).encoded() + encoded(path, syntax))


def big_endian(path):
    labelled(path, ExplicitVRBigEndian, ExplicitVRBigEndian)


def implicit_called_explicit(path):
    labelled(path, ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def explicit_called_implicit(path):
    labelled(path, ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def filled_up(path):
    path.write_bytes(path.read_bytes() + bytes(512))


def filled_up_by_one(path):
    path.write_bytes(path.read_bytes() + bytes(1))


def run_length_encoded_and_filled_up(path):
    compressed = dcmread(path)
    compressed.compress(RLELossless, generate_instance_uid=False)
    compressed.save_as(path)
    filled_up(path)


def bare_and_filled_up(path):
    implicit_without_preamble(path)
    filled_up(path)


READ = [
    *(implicit_without_preamble, explicit_without_preamble, meta_without_preamble, deflated, big_endian),
    *(filled_up, filled_up_by_one, run_length_encoded_and_filled_up, bare_and_filled_up),
]
REMARKED = [implicit_called_explicit, explicit_called_implicit]


@pytest.fixture
def written(tmp_path):
    stored = noise((6, 9, 7))
    return write(tmp_path, Stack(stored)), stored


@pytest.mark.parametrize("tail", [bytes(40) + b"x", b"junk", b"\0\0\x10\0"], ids=["late", "text", "tag"])
def test_trailing_data_other_than_zeros_is_damage(written, tail):
    series, _ = written
    path = series.instances[2].path
    path.write_bytes(path.read_bytes() + tail)
    assert read_file(path).reason == DAMAGED


@pytest.mark.parametrize("kept", [600, 900])
def test_zeros_in_place_of_the_rest_of_a_header_are_damage_too(written, kept):
    """As left by an interrupted copy that had reserved its disk space."""
    series, _ = written
    path = series.instances[2].path
    content = path.read_bytes()
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    assert read_file(path).reason == DAMAGED


@pytest.mark.parametrize("change", READ + REMARKED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("changed", [(0,), (4, 5), range(6)], ids=["first", "last two", "all"])
@pytest.mark.filterwarnings("ignore:.*implicit VR:UserWarning", "ignore:.*explicit VR:UserWarning")
def test_file_in_another_form_gives_the_same_volume(written, change, changed, tmp_path):
    series, stored = written
    for index in changed:
        change(series.instances[index].path)
    (read,) = read_series_folder(tmp_path)
    reconstruction = reconstruct(read)
    assert np.array_equal(reconstruction.volume.voxels_zyx, stored.astype(np.int32) - 1024)
    remarks = [note for note in reconstruction.notes if "transfer syntax" in note]
    assert len(remarks) == (change in REMARKED)
    assert all(f"files: {len(changed)}" in remark for remark in remarks)


# ---- what is skipped, and why


def nothing(path):
    path.write_bytes(b"")


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:900])


def cut_before_pixels(path):
    content = path.read_bytes()
    path.write_bytes(content[: content.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"))])


def cut_deflated(path):
    deflated(path)
    path.write_bytes(path.read_bytes()[:-40])


def damaged_deflated(path):
    deflated(path)
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes(200) + content[-200:])


def without_uid(path):
    changed = dcmread(path)
    changed.SOPInstanceUID = ""
    changed.save_as(path)


def with_vr(path, vr):
    content = path.read_bytes()
    at = content.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))
    private = (
        struct.pack("<HH2sH", 0x09, 0x10, b"LO", 4) + b"ACME" + struct.pack("<HH2sH", 0x09, 0x1001, vr, 4) + b"abcd"
    )
    path.write_bytes(content[:at] + private + content[at:])


def question_marks_for_a_vr(path):
    with_vr(path, b"??")


def blanks_for_a_vr(path):
    with_vr(path, b"  ")


def compressed_without_vrs(path):
    labelled(path, ImplicitVRLittleEndian, RLELossless)


def text(path):
    path.write_text("Doe^John, no image")


PASSED_OVER = {
    nothing: (EMPTY, ""),
    cut_in_the_header: (DAMAGED, "byte "),
    cut_before_pixels: (DAMAGED, "no Pixel Data"),
    cut_deflated: (DAMAGED, "cut"),
    damaged_deflated: (DAMAGED, ""),
    without_uid: (UID_MISSING, ""),
    question_marks_for_a_vr: (DAMAGED, "no VR where Explicit VR Little Endian requires one"),
    blanks_for_a_vr: (DAMAGED, "no VR where Explicit VR Little Endian requires one"),
    compressed_without_vrs: (DAMAGED, "Implicit VR Little Endian"),
    text: (NO_DICOM, ""),
}


@pytest.mark.parametrize("change", PASSED_OVER, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:.*implicit VR:UserWarning")
def test_every_skipped_file_has_a_reason(written, change):
    path = written[0].instances[-1].path
    change(path)
    passed_over = read_file(path)
    reason, detail = PASSED_OVER[change]
    assert isinstance(passed_over, PassedOver)
    assert (passed_over.path, passed_over.reason) == (path, reason)
    assert detail in passed_over.detail
    assert passed_over.is_dicom == (reason not in (NO_DICOM, EMPTY))
    assert "Doe" not in passed_over.detail


def test_dicomdir_does_not_count_as_a_missing_image(tmp_path):
    directory = Dataset()
    directory.FileSetID, directory.DirectoryRecordSequence = "DISC", []
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, directory)
    path = tmp_path / "DICOMDIR"
    path.write_bytes(
        FileMeta(MediaStorageDirectoryStorage, "1.2.3", ExplicitVRLittleEndian).encoded() + buffer.getvalue()
    )
    passed_over = read_file(path)
    assert (passed_over.reason, passed_over.is_dicom) == (DIRECTORY, False)


def test_decompression_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_LARGEST_INFLATED_BYTES", 1 << 20)
    deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = deflating.compress(bytes(8 << 20)) + deflating.flush()
    path = tmp_path / "bomb.dcm"
    path.write_bytes(FileMeta("1.2", "1.2.3", DeflatedExplicitVRLittleEndian).encoded() + content)
    passed_over = read_file(path)
    assert passed_over.reason == DAMAGED
    assert "inflates to more than 1048576 bytes" in passed_over.detail
    with pytest.raises(PixelDataInvalid, match="inflates"):
        read_headers([path])


def test_valid_file_is_opened_unchanged(written):
    path = written[0].instances[0].path
    with open_part10(path).stream as stream:
        assert stream.name == str(path)


# ---- one SOP Instance UID


def with_uid_of(path, other, change):
    taken = dcmread(other)
    changed = dcmread(path)
    change(changed, taken)
    changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = taken.SOPInstanceUID
    changed.save_as(path)


def at_the_same_place(changed, taken):
    changed.ImagePositionPatient = taken.ImagePositionPatient


def of_the_same_pixels(changed, taken):
    changed.ImagePositionPatient, changed.PixelData = taken.ImagePositionPatient, taken.PixelData


def elsewhere(_changed, _taken):
    pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [(elsewhere, UID_REUSED), (at_the_same_place, UID_REUSED), (of_the_same_pixels, COPY)],
    ids=["elsewhere", "other pixels", "other header"],
)
def test_second_file_with_the_same_uid_is_a_copy_or_another_image(written, change, reason):
    first, second, *_ = (instance.path for instance in written[0].instances)
    with_uid_of(second, first, change)
    repeated = read_repeated(*read_headers([first, second]))
    assert (repeated.path, repeated.reason, repeated.is_dicom) == (second, reason, reason == UID_REUSED)


def test_copy_in_another_syntax_is_not_known_to_be_one(written, tmp_path):
    first = written[0].instances[0].path
    other = tmp_path / "deflated.dcm"
    other.write_bytes(first.read_bytes())
    deflated(other)
    assert read_repeated(*read_headers([first, other])).reason == COPY
    compressed = dcmread(first)
    compressed.compress(RLELossless, generate_instance_uid=False)
    compressed.save_as(other)
    repeated = read_repeated(*read_headers([first, other]))
    assert (repeated.reason, repeated.is_dicom) == (RECODED, False)
