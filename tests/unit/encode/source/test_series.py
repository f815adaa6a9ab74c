from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from dicom_node.encode.run import encode
from dicom_node.encode.source.identity import TYPE_2
from dicom_node.encode.source.series import prepare
from dicom_node.errors import EncodingError, IdentityConflict
from dicom_node.reconstruct import reconstruct
from dicom_node.standard.raw_elements import raw_element
from dicom_node.types import Reconstruction, ResultKind
from inference.types import Geometry, Volume
from tests.support.analysis_results import CONTEXT, geometry, measured, reconstruction, segmentation, with_headers
from tests.support.ct_series import Stack, noise, write

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {1: "liver"}


def as_received(source: Reconstruction, *, implicit_vr: bool = False) -> Reconstruction:
    """Headers written and read again, so that their elements are raw bytes, as after reception."""
    return replace(source, headers=tuple(written_and_read(header, implicit_vr) for header in source.headers))


def written_and_read(header: Dataset, implicit_vr: bool) -> Dataset:
    buffer = BytesIO()
    dcmwrite(buffer, header, implicit_vr=implicit_vr, little_endian=True)
    return dcmread(BytesIO(buffer.getvalue()), force=True)


def results(source: Reconstruction) -> dict[ResultKind, Dataset]:
    labels = segmentation(source.source.geometry, NAMES)
    encoded = encode(source, labels, measured(source, labels), CONTEXT)
    return {result.kind: result.dataset for result in encoded}


def set_bytes(source: Reconstruction, **values: bytes | None) -> Reconstruction:
    """Headers as after reception, with elements of exactly these bytes; None deletes an element."""
    return replace(source, headers=tuple(header_with_bytes(header, values) for header in source.headers))


def header_with_bytes(header: Dataset, values: dict[str, bytes | None]) -> Dataset:
    """Elements are replaced in the written stream, so that no library parses the new bytes before our code does."""
    kept = Dataset()
    kept.update({element.tag: element for element in header if element.keyword not in values})
    elements = {element.tag: one_element(element, kept) for element in kept}
    for keyword, value in values.items():
        if value is not None:
            tag = Tag(keyword)
            head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
            even = value + b" " * (len(value) % 2)
            elements[tag] = head + dictionary_VR(tag).encode() + len(even).to_bytes(2, "little") + even
    stream = BytesIO(b"".join(elements[tag] for tag in sorted(elements)))
    return dcmread(stream, force=True)


def one_element(element, header: Dataset) -> bytes:
    alone = Dataset()
    alone.add(element)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, alone, header.get("SpecificCharacterSet", "ISO_IR 100"))
    return buffer.getvalue()


@pytest.mark.parametrize("implicit_vr", [False, True])
def test_patient_and_study_are_copied(implicit_vr: bool) -> None:
    source = as_received(reconstruction(), implicit_vr=implicit_vr)
    for dataset in results(source).values():
        for keyword in (*TYPE_2, "PatientAge", "StudyDescription", "StudyInstanceUID", "SpecificCharacterSet"):
            assert dataset[keyword].value == source.headers[0][keyword].value, keyword


@pytest.mark.parametrize("keyword", TYPE_2)
def test_missing_type_2_attribute_is_empty_in_the_results(keyword: str) -> None:
    for dataset in results(set_bytes(reconstruction(), **{keyword: None})).values():
        assert keyword in dataset
        assert not dataset[keyword].value


def test_results_are_made_from_a_minimal_header() -> None:
    names = (*TYPE_2, "SpecificCharacterSet", "SliceThickness", "SeriesNumber", "Manufacturer", "PatientAge")
    names = (
        *names,
        "StudyDescription",
        "BodyPartExamined",
        "Modality",
        "PositionReferenceIndicator",
        "InstitutionName",
    )
    found = results(set_bytes(reconstruction(), **dict.fromkeys(names)))
    measures = found[ResultKind.SEGMENTATION].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyID", b"a study id of more than 16 characters "),
        ("PatientBirthDate", b"2023.01.01"),
        ("StudyDate", b"tomorrow"),
        ("StudyTime", b"99:99 "),
        ("PatientSex", b"Z "),
    ],
)
def test_invalid_type_2_value_is_left_empty(keyword: str, value: bytes) -> None:
    for dataset in results(set_bytes(reconstruction(), **{keyword: value})).values():
        assert not dataset[keyword].value


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", b"seventy "),
        ("PatientWeight", b"heavy "),
        ("StudyDescription", b"x" * 66),
        ("PatientSize", b"NaN "),
    ],
)
def test_invalid_optional_value_is_omitted(keyword: str, value: bytes) -> None:
    for dataset in results(set_bytes(reconstruction(), **{keyword: value})).values():
        assert keyword not in dataset


SOUND_NAMES = [
    (b"ISO_IR 100", "Ängström^Ü".encode("latin-1")),
    (b"ISO_IR 144", "Юлия^Ж".encode("iso8859-5")),
    (b"ISO_IR 192", "Λώπης^中村".encode()),
    (b"GB18030 ", "王^小东".encode("gb18030")),
    (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    (b"ISO_IR 100", b"`id`;$(id)^<script>"),
]
UNSOUND_NAMES = [
    (b"ISO_IR 999", b"M\xfcller^J"),  # a character set that does not exist
    (None, b"M\xfcller^J"),  # and none at all
    (b"ISO_IR 192", b"M\xfcller^J"),  # bytes invalid in the character set
    (b"\\ISO 2022 IR 87", b"Yamada\x1b$B"),  # an escape that never ends
    (b"ISO_IR 100", b"A" * 300 + b"^B"),
]


@pytest.mark.parametrize(("character_set", "name"), [*SOUND_NAMES, *UNSOUND_NAMES])
def test_names_are_copied_byte_for_byte(character_set: bytes | None, name: bytes) -> None:
    source = named(character_set, name)
    expected = name + b" " * (len(name) % 2)
    for dataset in results(source).values():
        assert raw(dataset, "PatientName") == expected
        assert raw(dataset, "ReferringPhysicianName") == expected
        if character_set is None:
            assert "SpecificCharacterSet" not in dataset
        else:
            assert raw(dataset, "SpecificCharacterSet").strip() == character_set.strip()


@pytest.mark.parametrize(("character_set", "name"), SOUND_NAMES)
def test_valid_names_are_copied_even_after_being_parsed(character_set: bytes, name: bytes) -> None:
    source = named(character_set, name)
    assert all(str(header.PatientName) for header in source.headers)
    for dataset in results(source).values():
        assert raw(dataset, "PatientName") == name + b" " * (len(name) % 2)


def test_name_whose_bytes_were_lost_in_parsing_is_refused_without_showing_it() -> None:
    source = named(b"ISO_IR 192", b"M\xfcller^J")
    assert all(str(header.PatientName) for header in source.headers)
    with pytest.raises(EncodingError, match="Patient's Name has bytes") as refused:
        results(source)
    assert "ller" not in str(refused.value)


def named(character_set: bytes | None, name: bytes) -> Reconstruction:
    return set_bytes(
        reconstruction(), SpecificCharacterSet=character_set, PatientName=name, ReferringPhysicianName=name
    )


def raw(dataset: Dataset, keyword: str) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    element = raw_element(dcmread(BytesIO(buffer.getvalue())), keyword)
    assert element is not None
    return element.value or b""


def test_names_of_real_files_are_copied_in_every_character_set(shared_data: Path) -> None:
    files = sorted((shared_data / "pydicom+pydicom" / "charsets").glob("*.dcm"))
    assert len(files) >= 15
    for file in files:
        donor = dcmread(file, stop_before_pixels=True)
        character_set, name = raw_element(donor, "SpecificCharacterSet"), raw_element(donor, "PatientName")
        source = set_bytes(
            reconstruction(),
            SpecificCharacterSet=None if character_set is None else character_set.value,
            PatientName=b"" if name is None else name.value,
        )
        for dataset in results(source).values():
            assert raw(dataset, "PatientName") == (b"" if name is None else name.value), file.name


def test_scanner_is_named_in_its_own_character_set() -> None:
    for dataset in results(as_received(reconstruction())).values():
        scanner = dataset.ContributingEquipmentSequence[0]
        assert scanner.ManufacturerModelName == "Röhre 3000"
        assert scanner.InstitutionName == "Universitätsklinikum"
        assert list(scanner.SoftwareVersions) == ["1.0", "2.0"]


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "FrameOfReferenceUID", "StudyInstanceUID"])
def test_two_patients_in_one_series_are_refused_and_not_named(keyword: str) -> None:
    source = reconstruction()
    source.headers[3][keyword].value = "1.2.777"
    with pytest.raises(IdentityConflict) as refused:
        prepare(source)
    assert "differs: 2 values in 5 instances" in str(refused.value)
    assert "777" not in str(refused.value)
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("value", [None, b"", b"1..2", b"1.2.x "])
def test_missing_type_1_uid_is_refused_by_name(keyword: str, value: bytes | None) -> None:
    with pytest.raises(EncodingError, match="missing or not a valid UID"):
        prepare(set_bytes(reconstruction(), **{keyword: value}))


def test_frames_at_other_positions_are_refused() -> None:
    """The same frames in reverse order would mirror the patient."""
    source = reconstruction()
    reversed_source = replace(source, frames=source.frames[::-1], headers=source.headers[::-1])
    with pytest.raises(EncodingError, match="from the position of its source frame"):
        prepare(reversed_source)


@pytest.mark.parametrize("pixel_mm", [0.1, 0.15, 0.7])
@pytest.mark.parametrize("spacing_mm", [0.4, 0.625, 1.25])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_accepted(tmp_path, pixel_mm, spacing_mm) -> None:
    """Input accepted by reconstruct must not fail after inference: rounding is more than a quarter of a small pixel."""
    pixels = noise((21, 8, 8))
    series = write(tmp_path, Stack(pixels, row_spacing_mm=pixel_mm, column_spacing_mm=pixel_mm))
    for k, instance in enumerate(series.instances):
        instance.header.ImagePositionPatient = [-10.0, -20.0, round(30 + k * spacing_mm, 1)]
    assert len(prepare(reconstruct(series)).planes) == len(pixels)


def test_grid_shifted_by_one_pixel_is_refused() -> None:
    source = reconstruction(geometry((5, 12, 12), spacing_xyz_mm=(0.7, 0.7, 2.0)))
    moved = np.array(source.source.geometry.affine_lps)
    moved[:3, 3] += moved[:3, 0]
    volume = Volume(source.source.voxels_zyx, Geometry(source.source.geometry.shape_zyx, moved))
    with pytest.raises(EncodingError, match=r"lies 0\.700 mm from the position of its source frame"):
        prepare(replace(source, volume=volume, source=volume))


def test_grid_rotated_in_plane_is_refused() -> None:
    source = reconstruction(geometry((5, 12, 12), spacing_xyz_mm=(1.0, 1.0, 2.0)))
    grid = source.source.geometry
    turned = np.array(grid.affine_lps)
    turned[:3, 0], turned[:3, 1] = grid.affine_lps[:3, 1], -grid.affine_lps[:3, 0]
    volume = Volume(source.source.voxels_zyx, Geometry(grid.shape_zyx, turned))
    with pytest.raises(EncodingError, match="rows and columns of the grid deviate"):
        prepare(replace(source, volume=volume, source=volume))


def test_frame_without_header_is_refused() -> None:
    source = reconstruction()
    with pytest.raises(EncodingError, match="has no header"):
        prepare(replace(source, headers=source.headers[:-1]))


@pytest.mark.parametrize(
    ("body_part", "side", "stated"),
    [
        ("CHEST", None, None),
        ("CHEST", "L", None),
        ("KNEE", "L", "L"),
        ("KNEE", None, ""),
        ("", None, ""),
        ("", "B", ""),
    ],
)
def test_laterality_is_stated_only_for_paired_body_parts(body_part: str, side: str | None, stated: str | None) -> None:
    def change(header: Dataset) -> None:
        header.BodyPartExamined = body_part
        if side is not None:
            header.Laterality = side

    assert prepare(with_headers(reconstruction(), change)).laterality == stated


def test_lossy_compression_of_one_image_is_stated_in_the_result() -> None:
    source = reconstruction()
    source.headers[2].LossyImageCompression = "01"
    source.headers[2].LossyImageCompressionRatio = "12.5"
    source.headers[2].LossyImageCompressionMethod = "ISO_15444_1"
    seg = results(source)[ResultKind.SEGMENTATION]
    assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 12.5)
    assert results(reconstruction())[ResultKind.SEGMENTATION].LossyImageCompression == "00"
