"""Where the data set of a Part 10 file begins, and its File Meta Information as read by others."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME
from dicom_node.standard.part10 import HEAD_LENGTH, FileMeta, data_set_start, seek_data_set

CONTENT = b"\x08\x00\x60\x00CS\x02\x00CT"


@pytest.mark.parametrize("source_ae", ["", "SCANNER", "EVEN"])
def test_pydicom_reads_the_file_meta_information(source_ae):
    meta = FileMeta(str(CTImageStorage), "1.2.3.4", str(ExplicitVRLittleEndian), source_ae)
    file = meta.encoded() + CONTENT
    read = dcmread(BytesIO(file))
    assert read.Modality == "CT"
    assert read.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert read.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert read.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert read.file_meta.ImplementationVersionName == VERSION_NAME
    assert read.file_meta.get("SourceApplicationEntityTitle", "") == source_ae
    assert file[data_set_start(file[:HEAD_LENGTH]) :] == CONTENT


@given(st.binary(max_size=300))
def test_other_files_have_no_part_10_data_set(content):
    with pytest.raises(ValueError, match="group length"):
        data_set_start(content)


@pytest.mark.parametrize("pixels", [b"", bytes(range(256))])
def test_implicit_form_has_the_same_elements(pixels):
    dataset = Dataset()
    dataset.PatientName = "Phantom^Part10"
    dataset.ReferencedImageSequence = [Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    if pixels:
        dataset.BitsAllocated = 8
        dataset.PixelData = pixels
    stream = BytesIO()
    dataset.save_as(stream, implicit_vr=False, little_endian=True)
    file = FileMeta(str(CTImageStorage), "1.2.3.4", str(ExplicitVRLittleEndian)).encoded() + stream.getvalue()
    opened = BytesIO(file)
    implicit = seek_data_set(opened, as_implicit=True) + opened.read()
    read = read_dataset(BytesIO(implicit), is_implicit_VR=True, is_little_endian=True)
    assert {element.tag: element.value for element in read} == {element.tag: element.value for element in dataset}
    opened = BytesIO(file)
    assert seek_data_set(opened, as_implicit=False) + opened.read() == stream.getvalue()
