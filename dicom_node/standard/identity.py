"""The identity of a series: patient, study, series and Frame of Reference, which must agree in all its instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_description

from dicom_node.errors import IdentityConflict
from dicom_node.standard.raw_elements import raw_element

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

PATIENT_STUDY_SERIES = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "SeriesInstanceUID",
)
FRAME_OF_REFERENCE = "FrameOfReferenceUID"
_ESCAPE = b"\x1b"


def refuse_mixed_identity(headers: Sequence[Dataset], keywords: Sequence[str]) -> None:
    """Check that all headers have exactly the same values of ``keywords``.

    An attribute that some instances have and others lack counts as different: it may not be the same patient. The
    message counts the values and never shows them.

    Raises:
        IdentityConflict: the values differ.
        EncodingError: an attribute can't be read as the bytes received.
    """
    for keyword in keywords:
        values = {_comparable(header, keyword) for header in headers}
        if len(values) > 1:
            raise IdentityConflict(
                f"{dictionary_description(keyword)} differs: {len(values)} values in {len(headers)} instances"
            )


def states(header: Dataset, keyword: str) -> bool:
    """Whether the attribute is present and not empty.

    Raises:
        EncodingError: it can't be read as the bytes received.
    """
    return bool(_value(header, keyword))


def _comparable(header: Dataset, keyword: str) -> tuple[bytes, bytes]:
    """The bytes of the value, without padding and trailing empty name components, and their character set.

    The same bytes are a different name in another character set, unless they are ASCII, which is common to all.
    """
    value = _value(header, keyword).rstrip(b"^ \0")
    if value.isascii() and _ESCAPE not in value:
        return value, b""
    return value, _value(header, "SpecificCharacterSet")


def _value(header: Dataset, keyword: str) -> bytes:
    """The bytes received, without padding; empty if the attribute is absent."""
    element = raw_element(header, keyword)
    return b"" if element is None else (element.value or b"").rstrip(b" \0")
