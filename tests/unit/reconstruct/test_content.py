"""Which changes to an instance change its content, and which only its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.reconstruct.content import content_of
from dicom_node.standard.files import read_headers
from tests.support.codestreams import compress
from tests.support.ct_series import Stack, write


@pytest.fixture
def image(tmp_path):
    """A slice with noise, as received."""
    noise = np.random.default_rng(1).integers(0, 3000, (1, 64, 48)).astype(np.uint16)
    (instance,) = write(tmp_path, Stack(noise)).instances
    dataset = dcmread(instance.path)
    dataset.add_new("PixelPaddingValue", "US", 0)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
    dataset.AnatomicRegionSequence = [code]
    return dataset


@pytest.fixture
def digest(tmp_path):
    def of(dataset, **encoding):
        path = tmp_path / "digest.dcm"
        dataset.save_as(path, enforce_file_format=True, **encoding)
        (instance,) = read_headers([path])
        return content_of(instance)

    return of


def nested(keyword, value):
    item = Dataset()
    setattr(item, keyword, value)
    return [item]


OF_THE_ARCHIVE = {
    "private": lambda d: d.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "sent"),
    "private, of unknown VR": lambda d: d.private_block(0x0009, "ACME", create=True).add_new(1, "UN", b"sent"),
    "retrieval": lambda d: d.update({"RetrieveAETitle": "PACS", "InstanceAvailability": "ONLINE"}),
    "character set of plain text": lambda d: setattr(d, "SpecificCharacterSet", "ISO_IR 192"),
    "an empty attribute": lambda d: setattr(d, "ProtocolName", ""),
    "original attributes": lambda d: setattr(d, "OriginalAttributesSequence", nested("SourceOfPreviousValues", "X")),
    "not lossy": lambda d: setattr(d, "LossyImageCompression", "00"),
    "counts": lambda d: setattr(d, "NumberOfSeriesRelatedInstances", 62),
    "extreme value": lambda d: d.add_new("LargestImagePixelValue", "US", 3000),
    "padding behind the data set": lambda d: setattr(d, "DataSetTrailingPadding", bytes(8)),
}


@pytest.mark.parametrize("change", OF_THE_ARCHIVE.values(), ids=OF_THE_ARCHIVE)
def test_annotations_by_an_archive_are_not_content(image, digest, change):
    before = digest(image)
    change(image)
    assert digest(image) == before


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_other_lossless_syntaxes_are_the_same_content(image, digest, syntax):
    before = digest(image)
    image.compress(syntax, generate_instance_uid=False)
    assert digest(image) == before


def test_codestream_with_the_other_sign_is_other_content(image, digest):
    """The same values according to the header, but the series would be read as signed."""
    image.PixelData = np.random.default_rng(2).integers(-1024, 0, (64, 48)).astype("<i2").tobytes()
    before = digest(image)
    compress(image, JPEG2000Lossless, signed=True)
    assert digest(image) != before


def test_implicit_and_big_endian_are_the_same_content(image, digest):
    before = digest(image)
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert digest(image, implicit_vr=True, little_endian=True) == before
    big = Dataset()  # pydicom converts only what was not read
    big.update({tag: image[tag] for tag in image.keys()})  # noqa: SIM118 - a data set iterates over its elements
    big.file_meta = image.file_meta
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big.PixelData = np.frombuffer(image.PixelData, "<u2").byteswap().tobytes()
    assert digest(big, implicit_vr=False, little_endian=False) == before


def test_pixels_have_a_digest_of_their_own(image, digest):
    before = digest(image)
    image.RescaleIntercept = -1023
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    other_header = digest(image)
    assert (other_header.pixels, other_header.image != before.image) == (before.pixels, True)
    image.decompress(generate_instance_uid=False)
    flip_last_bit(image)
    assert digest(image).pixels != before.pixels


def flip_last_bit(dataset):
    dataset.PixelData = dataset.PixelData[:-2] + bytes([dataset.PixelData[-2] ^ 1, dataset.PixelData[-1]])


CHANGES = {
    "one bit of one pixel": flip_last_bit,
    "patient's name": lambda d: setattr(d, "PatientName", "Other^Name"),
    "study": lambda d: setattr(d, "StudyInstanceUID", "1.2.3.4"),
    "position": lambda d: setattr(d, "ImagePositionPatient", [0, 0, 1.25]),
    "rescale": lambda d: setattr(d, "RescaleIntercept", -1023),
    "padding value": lambda d: setattr(d, "PixelPaddingValue", 1),
    "kernel": lambda d: setattr(d, "ConvolutionKernel", "B70f"),
    "what rules may ask for": lambda d: setattr(d, "SeriesDescription", "thorax, other"),
    "a code": lambda d: setattr(d.AnatomicRegionSequence[0], "CodeValue", "T-D4000"),
    "lossy": lambda d: setattr(d, "LossyImageCompression", "01"),
    "one attribute less": lambda d: delattr(d, "AnatomicRegionSequence"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_other_change_is_content(image, digest, change):
    before = digest(image)
    change(image)
    assert digest(image) != before


def test_name_in_another_character_set_is_another_name(image, digest):
    image.SpecificCharacterSet = "ISO_IR 100"
    image.PatientName = "M\xfcller"
    before = digest(image)
    image.SpecificCharacterSet = "ISO_IR 101"
    assert digest(image) != before


def test_value_moved_to_another_attribute_is_other_content(image, digest):
    image.StudyDescription, image.SeriesDescription = "chest", "abdomen"
    before = digest(image)
    image.StudyDescription, image.SeriesDescription = "abdomen", "chest"
    assert digest(image) != before


CORRECTIONS = {
    "name": lambda d: setattr(d, "PatientName", "Other^Name"),
    "issuer": lambda d: setattr(d, "IssuerOfPatientID", "HOSPITAL"),
    "study": lambda d: setattr(d, "StudyInstanceUID", "1.2.3.4"),
    "accession": lambda d: setattr(d, "AccessionNumber", "A2"),
}


@pytest.mark.parametrize("change", CORRECTIONS.values(), ids=CORRECTIONS)
def test_patient_and_study_are_identity_and_not_image_content(image, digest, change):
    before = digest(image)
    change(image)
    after = digest(image)
    assert after.image == before.image
    assert after.identity != before.identity


@pytest.mark.parametrize("name", ["one bit of one pixel", "position", "rescale", "padding value", "kernel", "a code"])
def test_input_of_the_model_is_image_content_and_not_identity(image, digest, name):
    before = digest(image)
    CHANGES[name](image)
    after = digest(image)
    assert after.identity == before.identity
    assert after.image != before.image
