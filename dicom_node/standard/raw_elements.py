"""Copies elements of a header as the bytes received.

No library decodes, validates or repairs them, so that a name in any character set, valid or not, is preserved exactly.
An element that can't be copied this way is refused, naming the attribute.
"""

from __future__ import annotations

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag
from pydicom.valuerep import STR_VR, VR

from dicom_node.errors import EncodingError

_LONGEST_VALUE = 0xFFFE
"""In bytes, for a VR with a 16-bit length."""


def raw_element(header: Dataset, keyword: str) -> RawDataElement | None:
    """The element as the bytes received, regardless of their VR; None if it is absent.

    pydicom 3 discards the bytes of an element whose value has been read, including names. Such an element is written
    again in its character set, which gives the same bytes if they were valid.

    Raises:
        EncodingError: its VR is not a standard one, it is a sequence or too long, or it was read and is not valid.
    """
    return _raw_element(header, keyword) if keyword in header else None


def _raw_element(header: Dataset, keyword: str) -> RawDataElement:
    try:
        element = header.get_item(keyword)
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} cannot be read") from error
    if element.VR == VR.SQ:
        raise EncodingError(f"{dictionary_description(keyword)} is a sequence, expected {dictionary_VR(keyword)}")
    return raw(keyword, element.value or b"" if isinstance(element, RawDataElement) else _written(header, keyword))


def raw(keyword: str, value: bytes) -> RawDataElement:
    """An element in Explicit VR Little Endian with the unpadded ``value``.

    Raises:
        EncodingError: it is too long.
    """
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    if len(value) > _LONGEST_VALUE:
        raise EncodingError(
            f"{dictionary_description(keyword)} has {len(value)} bytes, expected at most {_LONGEST_VALUE}"
        )
    if len(value) % 2:
        value += b"\0" if vr == VR.UI else b" "
    return RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _written(header: Dataset, keyword: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    try:
        element = header[keyword]
        is_sound = "\ufffd" not in str(element.value)
        write_data_element(buffer, element, header.get("SpecificCharacterSet") or "iso8859")
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} cannot be written in its character set") from error
    if not is_sound:
        raise EncodingError(f"{dictionary_description(keyword)} has bytes that are not valid in its character set")
    return buffer.getvalue()[8:]


def keep_bytes(dataset: Dataset) -> None:
    """Tell pydicom that the raw elements are already in the encoding and character set of ``dataset``."""
    # an item of a sequence has no character set of its own: pydicom compares its default with that of this call
    own = dataset.get("SpecificCharacterSet")
    dataset.set_original_encoding(
        is_implicit_vr=False, is_little_endian=True, character_encoding=convert_encodings(own) if own else "iso8859"
    )


def raw_items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, with their standard text attributes (including nested ones) as the bytes received.

    Raises:
        EncodingError: it is not a sequence.
    """
    if keyword not in header:
        return []
    try:
        return [_raw_item(item) for item in header[keyword].value or ()]
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} is not a readable sequence") from error


def _raw_item(item: Dataset) -> Dataset:
    result = Dataset()
    for tag in item.keys():  # noqa: SIM118 - iterating over the data set itself would decode its elements
        if not dictionary_has_tag(tag):
            continue
        keyword = keyword_for_tag(tag)
        vr = dictionary_VR(tag)
        if vr == VR.SQ:
            setattr(result, keyword, raw_items(item, keyword))
        elif vr in STR_VR:
            result[tag] = _raw_element(item, keyword)
    keep_bytes(result)
    return result
