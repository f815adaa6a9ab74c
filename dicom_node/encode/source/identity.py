"""Patient, study and character set of the source, which must be the same in all instances.

Names and IDs are copied as bytes, with the Specific Character Set that they are written in. Other attributes are copied
if they are valid, and otherwise left out (type 3) or empty (type 2), because an archive may refuse a result for a value
that it once accepted in the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset

from dicom_node.encode.source.values import valid_texts
from dicom_node.errors import EncodingError
from dicom_node.standard.raw_elements import raw, raw_element, raw_items

if TYPE_CHECKING:
    from collections.abc import Sequence


_KEPT_AS_THEY_CAME = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientNames",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""These identify the patient or the request: a changed byte would mean another one."""
_KEPT_WHERE_VALID = (
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "EthnicGroup",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "TimezoneOffsetFromUTC",
)
_SEQUENCES = (
    "IssuerOfPatientIDQualifiersSequence",
    "IssuerOfAccessionNumberSequence",
    "DeidentificationMethodCodeSequence",
)
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Patient and General Study attributes that must be present and may be empty (PS3.3 C.7.1.1, C.7.2.1)."""


def identity_of(header: Dataset) -> Dataset:
    """Patient, study and character set of ``header``, every type 2 attribute present.

    Raises:
        EncodingError: a name or an ID cannot be copied; the message names the attribute and shows no value.
    """
    identity = valid_attributes(header, _KEPT_WHERE_VALID)
    for keyword in _KEPT_AS_THEY_CAME:
        element = raw_element(header, keyword)
        if element is not None:
            identity[element.tag] = element
    for keyword in _SEQUENCES:
        items = raw_items(header, keyword)
        if items:
            setattr(identity, keyword, items)
    for keyword in TYPE_2:
        if keyword not in identity:
            identity[keyword] = raw(keyword, b"")
    return identity


def valid_attributes(header: Dataset, keywords: Sequence[str]) -> Dataset:
    """The attributes that have valid values."""
    result = Dataset()
    for keyword in keywords:
        try:
            element = raw_element(header, keyword)  # before its text is read, which would discard its bytes
        except EncodingError:
            continue
        if element is not None and valid_texts(header, keyword):
            result[element.tag] = raw(keyword, (element.value or b"").rstrip(b" \0"))
    return result
