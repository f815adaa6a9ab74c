"""What an instance says, whatever bytes say it: an archive may send an image again with attributes of its own or in
another lossless transfer syntax, and it is the same image.

Two instances have the same content if their decoded pixels are equal and all their attributes are, except for those in
which archives note how they store and send (``_OF_THE_ARCHIVE``), private ones, and empty ones. Whatever is not known
to be without meaning counts: an image that is taken for another is segmented once more, one that is taken for the same
would keep a wrong result. Names in another character set count as different, since results repeat them as bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.valuerep import STR_VR, VR

from dicom_node.errors import PixelDataInvalid
from dicom_node.reconstruct.pixels import find_pixel_data, stored_frames
from dicom_node.standard.attributes import text, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset
    from pydicom.tag import BaseTag

    from dicom_node.reconstruct.pixels import StoredFrame
    from dicom_node.types import SourceInstance

_OF_THE_ARCHIVE = frozenset(
    Tag(keyword)
    for keyword in (
        "SpecificCharacterSet",  # compared with each value that is not ASCII
        "InstanceCoercionDateTime",
        "RetrieveAETitle",
        "InstanceAvailability",
        "RetrieveURL",
        "RetrieveLocationUID",
        "ContributingEquipmentSequence",
        "NumberOfPatientRelatedStudies",
        "NumberOfPatientRelatedSeries",
        "NumberOfPatientRelatedInstances",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfSeriesRelatedInstances",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "StorageMediaFileSetID",
        "StorageMediaFileSetUID",
        "IconImageSequence",
        "OriginalAttributesSequence",
        "MACParametersSequence",
        "DigitalSignaturesSequence",
        "DataSetTrailingPadding",
    )
)
_PATIENT, _CLINICAL_TRIAL = 0x0010, 0x0012
_OF_THE_STUDY = frozenset(
    Tag(keyword)
    for keyword in (
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "ReferringPhysicianName",
    )
)
_ESCAPE = b"\x1b"
_NUMBER_BYTES = {VR.US: 2, VR.SS: 2, VR.AT: 2, VR.US_SS: 2, VR.UL: 4, VR.SL: 4, VR.FL: 4, VR.FD: 8, VR.UV: 8, VR.SV: 8}
"""Size of what the byte order of the transfer syntax changes (PS3.5 section 7.3)."""


@dataclass(frozen=True, slots=True)
class InstanceContent:
    """Three SHA-256: ``identity`` of patient and study, ``image`` of all other attributes and the decoded pixels, and
    ``pixels`` of these alone.

    What a model makes of an image depends on ``image`` only.
    """

    identity: str
    image: str
    pixels: str


def content_of(instance: SourceInstance, *, with_pixels: bool = True) -> InstanceContent:
    """The content of ``instance``; without its pixels, for a comparison with one that is known to have the same.

    The elements of the header are decoded where they are sequences; hand over a header that nothing else needs raw.

    Raises:
        PixelDataInvalid: the pixel data can't be decoded.
        Exception: whatever pydicom stumbles over in a header that is not sound.
    """
    elements = list(_elements(instance.header, b""))
    identity = [element for element in elements if _is_identity(Tag(element[0]))]
    pixels = hashlib.sha256()
    for frame in _frames(instance) if with_pixels else ():
        pixels.update(frame.values.astype(frame.values.dtype.newbyteorder("<")).tobytes())
        if frame.codestream_signed is not None:  # then the series may be read by it instead
            pixels.update(f"{frame.bits} bits, signed: {frame.codestream_signed}".encode())
    others = [element for element in elements if element not in identity]
    return InstanceContent(_sha256(identity), _sha256([others, pixels.hexdigest()]), pixels.hexdigest())


def _sha256(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _frames(instance: SourceInstance) -> Iterator[StoredFrame]:
    count = 1
    if text(instance.header, "NumberOfFrames"):
        count = whole_number(instance.header, "NumberOfFrames", PixelDataInvalid, "instance")
    return stored_frames(find_pixel_data(instance, count))


def _is_identity(tag: BaseTag) -> bool:
    return tag.group in (_PATIENT, _CLINICAL_TRIAL) or tag in _OF_THE_STUDY


def _elements(dataset: Dataset, character_set: bytes) -> Iterator[tuple[int, Any]]:
    """Tag and comparable value of all that has one, in the order of the tags."""
    own = dataset.get_item("SpecificCharacterSet") if "SpecificCharacterSet" in dataset else None
    if own is not None:
        character_set = own.value if isinstance(own, RawDataElement) else repr(own.value).encode()
    for tag in sorted(dataset.keys()):
        if tag.is_private or tag.element == 0 or tag in _OF_THE_ARCHIVE:
            continue
        value = _value(dataset, tag, character_set or b"")
        if value and (tag, value) != _NOT_LOSSY:
            yield int(tag), value


_NOT_LOSSY = (Tag("LossyImageCompression"), (b"00", b""))
"""Says no more than its absence."""


def _value(dataset: Dataset, tag: BaseTag, character_set: bytes) -> Any:
    """Nothing, where the element is empty."""
    element: Any = dataset.get_item(tag)
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else element.VR
    if vr == VR.SQ:
        return [list(_elements(item, character_set)) for item in dataset[tag].value or ()]
    if not isinstance(element, RawDataElement):  # decoded already, such as an empty one in Implicit VR
        return None if element.is_empty else repr(element.value)
    value = element.value or b""
    if vr in STR_VR:
        value = value.strip(b" \0")
        is_plain = value.isascii() and _ESCAPE not in value
        return (value, b"" if is_plain else character_set.strip(b" \0")) if value else None
    size = _NUMBER_BYTES.get(VR(vr)) if vr in set(VR) else None
    if size is not None and not element.is_little_endian and len(value) % size == 0:
        return np.frombuffer(value, f">u{size}").byteswap().tobytes()
    return value
