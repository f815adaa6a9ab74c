"""Read single values of a header, if they are valid for their VR and attribute."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import TYPE_CHECKING

from pydicom import config
from pydicom.datadict import dictionary_description, dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import VR, validate_value

from dicom_node.errors import EncodingError
from dicom_node.standard.uids import is_well_formed_uid

if TYPE_CHECKING:
    from pydicom import Dataset


_ALLOWED = {
    "PatientSex": "[MFO]",
    "Laterality": "[RL]",
    "PatientIdentityRemoved": "YES|NO",
    "TypeOfPatientID": "TEXT|RFID|BARCODE",
    "TimezoneOffsetFromUTC": r"[+-](0[0-9]|1[0-4])[0-5][0-9]",
}
"""Values that PS3.3 allows for attributes where it is stricter than the VR."""
_SEVERAL_LINES = ("LT", "ST", "UT")


def valid_texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a text attribute if all are present and valid, and no more than it may have; otherwise none."""
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    try:
        value = header.get(keyword)
        texts = tuple(str(part).strip(" \0") for part in (value if isinstance(value, MultiValue) else (value or "",)))
        for text in texts:
            if vr != VR.UI or not is_well_formed_uid(text):  # leading zeros are quoted as they came
                validate_value(vr, text, config.RAISE)
            if vr == VR.DA:
                date.fromisoformat(text)  # a calendar day, and not a range as in a query
    except Exception:  # noqa: BLE001 - whatever the fault, the value is not valid
        return ()
    sound = all(_is_sound(text, keyword, vr) for text in texts)
    return texts if sound and (len(texts) == 1 or dictionary_VM(tag) == "1-n") else ()


def _is_sound(text: str, keyword: str, vr: str) -> bool:
    if not text or "\ufffd" in text or not re.fullmatch(_ALLOWED.get(keyword, ".*"), text, re.DOTALL):
        return False
    if vr == VR.TM:
        return "-" not in text  # pydicom accepts the ranges of a query
    return vr in _SEVERAL_LINES or text.isprintable()


def valid_text(header: Dataset, keyword: str) -> str | None:
    """The value of a single-valued attribute as text, if it is not empty and valid for its VR; otherwise None."""
    texts = valid_texts(header, keyword)
    return texts[0] if len(texts) == 1 else None


def ascii_text(header: Dataset, keyword: str) -> str:
    """The value if it is valid and ASCII, the same in every character set; otherwise empty."""
    text = valid_text(header, keyword) or ""
    return text if text.isascii() else ""


def valid_uid(header: Dataset, keyword: str) -> str:
    """The value of a required UID.

    Raises:
        EncodingError: it is missing or not valid.
    """
    value = valid_text(header, keyword)
    if value is None or not is_well_formed_uid(value):
        raise EncodingError(f"{dictionary_description(keyword)} is missing or not a valid UID")
    return value


def finite_numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """The ``count`` values of a numeric attribute.

    Raises:
        EncodingError: there are more or fewer, or one is not a finite number.
    """
    try:
        value = dataset[keyword].value
        numbers = tuple(float(part) for part in (value if isinstance(value, MultiValue) else (value,)))
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} is missing or not numeric") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise EncodingError(f"{dictionary_description(keyword)} does not have {count} finite values")
    return numbers


def positive_number(dataset: Dataset, keyword: str) -> float | None:
    """The value if it is a number above 0; otherwise None."""
    try:
        (number,) = finite_numbers(dataset, keyword, 1)
    except EncodingError:
        return None
    return number if number > 0 else None


def series_number(header: Dataset) -> int:
    """Series Number, or 0 if there is none."""
    try:
        return int(header.get("SeriesNumber") or 0)
    except Exception:  # noqa: BLE001 - pydicom converts lazily; without a valid number the series has none
        return 0
