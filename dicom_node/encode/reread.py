"""Read results back from their bytes before they count; they must belong to the patient of the source."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_description

from dicom_node.encode import tags
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, elements, values
from dicom_node.standard.raw_elements import raw_element

if TYPE_CHECKING:
    from dicom_node.encode.source.series import PreparedSource

_IDENTITY = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def reread(content: memoryview) -> Dataset:
    """The data set of a Part 10 file, without the functional groups and pixels of a SEG: those are read as bytes.

    Raises:
        EncodingError: the bytes are not a Part 10 file.
    """
    starts = (
        part.start for part in elements(content[PREAMBLE_LENGTH:]) if part.tag >= tags.PER_FRAME_FUNCTIONAL_GROUPS
    )
    end = next(starts, len(content) - PREAMBLE_LENGTH)
    return dcmread(BytesIO(content[: PREAMBLE_LENGTH + end]))


def refuse_other_identity(dataset: Dataset, source: PreparedSource) -> None:
    """Require names and IDs to equal those of the source byte for byte.

    Raises:
        EncodingError: one does not; the message names the attribute and shows no value.
    """
    refuse_other_names(dataset, source.identity, source.study_instance_uid)
    _refuse_other_uid(dataset, "FrameOfReferenceUID", source.frame_of_reference_uid)


def refuse_other_names(dataset: Dataset, identity: Dataset, study_instance_uid: str) -> None:
    """As :func:`refuse_other_identity`, for a series without a known Frame of Reference."""
    for keyword in _IDENTITY:
        written, came = raw_element(dataset, keyword), raw_element(identity, keyword)
        if (written.value if written else None) != (came.value if came else None):
            raise EncodingError(f"{dictionary_description(keyword)} was not written as it was received")
    _refuse_other_uid(dataset, "StudyInstanceUID", study_instance_uid)


def _refuse_other_uid(dataset: Dataset, keyword: str, expected: str) -> None:
    if keyword in dataset and str(dataset[keyword].value) != expected:
        raise EncodingError(f"{dictionary_description(keyword)} differs from that of the source series")


def text_of(value: memoryview) -> str:
    """An ASCII value without its padding."""
    return bytes(value).rstrip(b" \0").decode("ascii")


class SourceFrames:
    """The frames of ``source``, found by the references in a result."""

    def __init__(self, source: PreparedSource) -> None:
        self._planes = {(plane.sop_instance_uid, plane.frame_number): k for k, plane in enumerate(source.planes)}

    def plane(self, reference: memoryview, what: str) -> int:
        """The plane that the item ``reference`` of ``what`` refers to (PS3.3 table 10-3).

        Raises:
            EncodingError: it refers to no frame of the source series.
        """
        parts = values(reference)
        number = parts.get(tags.REFERENCED_FRAME_NUMBER)
        uid, frame = text_of(parts[tags.REFERENCED_SOP_INSTANCE_UID]), None if number is None else int(text_of(number))
        k = self._planes.get((uid, frame))
        if k is None:
            raise EncodingError(f"{what} refers to instance {uid} frame {frame}, not of the source series")
        return k
