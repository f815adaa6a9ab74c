"""The source series as the result objects need it: whose it is, what its frames are, where they lie.

Identity never passes through a library that could decode, check or repair it: names and IDs are copied as the bytes
that came (``RawDataElement``), beside the Specific Character Set that they were written in, so that a name in any
character set, sound or not, comes back exactly; what cannot be copied so is refused by the name of its attribute.
Everything else is copied where it is valid and left out where it is not (type 3) or left empty (type 2), because an
archive may refuse a result for a value that it once let pass.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, config
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID
from pydicom.valuerep import STR_VR, VR, validate_value

from dicom_node.errors import EncodingError, IdentityConflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.types import Reconstruction

_WHOSE = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "SeriesInstanceUID",
)
_SAME_IN_ALL = (*_WHOSE, "FrameOfReferenceUID")
_KEPT_AS_THEY_CAME = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientNames",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Identify the patient or the request: a changed byte would make another patient or request of them."""
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
"""Patient and General Study attributes that must be there and may be empty (PS3.3 C.7.1.1, C.7.2.1)."""
_ACQUISITION_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "StationName",
    "InstitutionName",
    "InstitutionalDepartmentName",
)
_ALLOWED = {
    "PatientSex": "[MFO]",
    "Laterality": "[RL]",
    "PatientIdentityRemoved": "YES|NO",
    "TypeOfPatientID": "TEXT|RFID|BARCODE",
    "TimezoneOffsetFromUTC": r"[+-](0[0-9]|1[0-4])[0-5][0-9]",
}
"""Values that PS3.3 allows, where it is stricter than the VR."""
_SEVERAL_LINES = ("LT", "ST", "UT")
_ESCAPE = b"\x1b"
_UNPAIRED = frozenset(
    (
        *("ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS"),
        *("CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE"),
        *("GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "JAW", "JEJUNUM", "LARYNX", "LIVER", "LSPINE"),
        *("LSSPINE", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE"),
        *("PANCREAS", "PELVIS", "PHARYNX", "PROSTATE", "RECTUM", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM"),
        *("STOMACH", "THYMUS", "THYROID", "TLSPINE", "TONGUE", "TRACHEA", "TSPINE", "UTERUS", "VAGINA", "WHOLEBODY"),
    )
)
"""Terms for Body Part Examined (PS3.16 annex L) that a CT may state and that have no side."""
_PLACE_TOLERANCE = 0.25
"""A plane further than this (in its smallest spacing) from where the grid says it is belongs to another plane."""
_LONGEST_VALUE = 0xFFFE
"""Bytes of a value with a 16-bit length."""


@dataclass(frozen=True, slots=True, eq=False)
class SourcePlane:
    """One frame of the source series; ``position_lps_mm`` is its own Image Position (Patient)."""

    sop_instance_uid: str
    sop_class_uid: str
    frame_number: int | None
    position_lps_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSource:
    """A source series, checked, with everything that its results repeat.

    ``identity`` holds patient, study and character set as raw elements, every type 2 attribute present.
    ``planes[k]`` is plane k of the label map. ``orientation`` are the six cosines of Image Orientation (Patient),
    ``row_spacing_mm`` the distance between rows, ``plane_spacing_mm`` the distance between planes along their normal.
    ``laterality`` is that of the body part for objects that state it (PS3.3 C.7.3.1): ``"R"``, ``"L"``, empty where the
    source does not say, None where the body part has no side.
    """

    identity: Dataset
    acquisition_equipment: Dataset
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    position_reference_indicator: str
    planes: tuple[SourcePlane, ...]
    rows: int
    columns: int
    orientation: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    plane_spacing_mm: float
    slice_thickness_mm: float
    series_number: int
    body_part_examined: str
    laterality: str | None
    lossy_compression: Dataset
    timezone_offset: str

    @property
    def is_multi_frame(self) -> bool:
        """Whether all planes are frames of one instance."""
        return self.planes[0].frame_number is not None

    @property
    def instances(self) -> tuple[SourcePlane, ...]:
        """One plane of each source instance, in plane order."""
        return tuple({plane.sop_instance_uid: plane for plane in reversed(self.planes)}.values())[::-1]


def prepare(reconstruction: Reconstruction) -> PreparedSource:
    """Check the headers of ``reconstruction`` against each other and its grid, and take from them what results repeat.

    Raises:
        IdentityConflict: patient, study, series or Frame of Reference differ between instances.
        EncodingError: an attribute that a result cannot do without is missing or contradicts the reconstruction; the
            message names it.
    """
    headers = reconstruction.headers
    refuse_mixed_identity(headers)
    first = headers[0]
    _, rows, columns = reconstruction.source.geometry.shape_zyx
    measures = _plane_attributes(first, reconstruction.frames[0].frame_number)
    x_axis, y_axis, step = reconstruction.source.geometry.affine_lps[:3, :3].T
    plane_spacing = abs(float(step @ _unit(np.cross(x_axis, y_axis))))
    row_spacing, column_spacing = _numbers(measures, "PixelSpacing", 2)
    thickness = _positive_number(measures, "SliceThickness")
    source = PreparedSource(
        identity=_identity(first),
        acquisition_equipment=_valid(first, _ACQUISITION_EQUIPMENT),
        study_instance_uid=_uid(first, "StudyInstanceUID"),
        series_instance_uid=_uid(first, "SeriesInstanceUID"),
        frame_of_reference_uid=_uid(first, "FrameOfReferenceUID"),
        position_reference_indicator=_ascii(first, "PositionReferenceIndicator"),
        planes=_planes(reconstruction),
        rows=rows,
        columns=columns,
        orientation=_numbers(measures, "ImageOrientationPatient", 6),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        plane_spacing_mm=plane_spacing,
        slice_thickness_mm=plane_spacing if thickness is None else thickness,
        series_number=_series_number(first),
        body_part_examined=_valid_text(first, "BodyPartExamined") or "",
        laterality=_laterality(first),
        lossy_compression=_lossy_compression(headers),
        timezone_offset=_valid_text(first, "TimezoneOffsetFromUTC") or "",
    )
    _refuse_other_places(source, reconstruction)
    return source


@dataclass(frozen=True, slots=True, eq=False)
class NamedSeries:
    """As much of a source series as can be said of one that is no volume: whose it is, and its instances.

    ``instances`` are SOP Class and Instance UIDs of those that have valid ones.
    """

    identity: Dataset
    acquisition_equipment: Dataset
    study_instance_uid: str
    series_instance_uid: str
    series_number: int
    timezone_offset: str
    instances: tuple[tuple[str, str], ...]


def name_series(headers: Sequence[Dataset]) -> NamedSeries:
    """Whose series this is, from headers that need not fit each other in anything else.

    Raises:
        IdentityConflict: patient, study or series differ between instances: whose it is cannot be said.
        EncodingError: there is no valid Study or Series Instance UID, or no instance with valid UIDs.
    """
    refuse_mixed_identity(headers, _WHOSE)
    instances = dict.fromkeys(
        (_valid_text(header, "SOPClassUID"), _valid_text(header, "SOPInstanceUID")) for header in headers
    )
    sound = tuple((sop_class, uid) for sop_class, uid in instances if sop_class and uid and UID(uid).is_valid)
    if not sound:
        raise EncodingError(f"none of {len(headers)} instances has a valid SOP Class and Instance UID")
    first = headers[0]
    return NamedSeries(
        identity=_identity(first),
        acquisition_equipment=_valid(first, _ACQUISITION_EQUIPMENT),
        study_instance_uid=_uid(first, "StudyInstanceUID"),
        series_instance_uid=_uid(first, "SeriesInstanceUID"),
        series_number=_series_number(first),
        timezone_offset=_valid_text(first, "TimezoneOffsetFromUTC") or "",
        instances=sound,
    )


def refuse_mixed_identity(headers: Sequence[Dataset], keywords: Sequence[str] = _SAME_IN_ALL) -> None:
    """Every header must state the same patient, study, series and Frame of Reference.

    highdicom takes them from the first image and does not look at the others; here is where two patients stop. The
    message counts values and never shows them.

    Raises:
        IdentityConflict: something differs.
    """
    for keyword in keywords:
        values = {_comparable(header, keyword) for header in headers}
        if len(values) > 1:
            raise IdentityConflict(
                f"{dictionary_description(keyword)} differs: {len(values)} values in {len(headers)} instances"
            )


def _comparable(header: Dataset, keyword: str) -> tuple[bytes, bytes]:
    """The bytes of the value without padding and without trailing empty name components, and what they are written in.

    The same bytes are another name in another character set; all character sets have the letters of ASCII in common.
    """
    element = raw_element(header, keyword)
    value = b"" if element is None else (element.value or b"").rstrip(b" \0^")
    if value.isascii() and _ESCAPE not in value:
        return value, b""
    character_set = raw_element(header, "SpecificCharacterSet")
    return value, b"" if character_set is None else (character_set.value or b"").rstrip(b" \0")


# ---- copying elements as bytes


def raw_element(header: Dataset, keyword: str) -> RawDataElement | None:
    """The element as the bytes that came, whatever VR they came with; None where it is absent.

    pydicom 3 forgets the bytes of an element that somebody has read, names included; such a one is written back in its
    character set, which gives the same bytes where they were sound.

    Raises:
        EncodingError: it has no VR of the standard, is a sequence, or too long; or it was read, and its bytes were not
            sound.
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
    """``value``, without its padding, as an element in Explicit VR Little Endian.

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
        raise EncodingError(f"{dictionary_description(keyword)} has bytes that its character set does not know")
    return buffer.getvalue()[8:]


def keep_bytes(dataset: Dataset) -> None:
    """Tell pydicom that raw elements already are in the encoding and character set that ``dataset`` is written in."""
    # an item of a sequence has no character set of its own: pydicom holds its default against that of this call
    own = dataset.get("SpecificCharacterSet")
    dataset.set_original_encoding(
        is_implicit_vr=False, is_little_endian=True, character_encoding=convert_encodings(own) if own else "iso8859"
    )


def _identity(header: Dataset) -> Dataset:
    identity = _valid(header, _KEPT_WHERE_VALID)
    for keyword in _KEPT_AS_THEY_CAME:
        element = raw_element(header, keyword)
        if element is not None:
            identity[element.tag] = element
    for keyword in _SEQUENCES:
        items = _raw_items(header, keyword)
        if items:
            setattr(identity, keyword, items)
    for keyword in TYPE_2:
        if keyword not in identity:
            identity[keyword] = raw(keyword, b"")
    return identity


def _valid(header: Dataset, keywords: Sequence[str]) -> Dataset:
    """Those of the attributes that have valid values."""
    result = Dataset()
    for keyword in keywords:
        try:
            element = raw_element(header, keyword)  # before the look at its text, which would forget its bytes
        except EncodingError:
            continue
        if element is not None and _valid_texts(header, keyword):
            result[element.tag] = raw(keyword, (element.value or b"").rstrip(b" \0"))
    return result


def _raw_items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, their standard attributes of text and sequences of such as the bytes that came.

    Raises:
        EncodingError: it is no sequence.
    """
    if keyword not in header:
        return []
    try:
        return [_raw_item(item) for item in header[keyword].value or ()]
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} is no sequence that can be read") from error


def _raw_item(item: Dataset) -> Dataset:
    result = Dataset()
    for tag in item.keys():  # noqa: SIM118 - iterating over the data set itself would decode its elements
        if not dictionary_has_tag(tag):
            continue
        keyword = keyword_for_tag(tag)
        vr = dictionary_VR(tag)
        if vr == VR.SQ:
            setattr(result, keyword, _raw_items(item, keyword))
        elif vr in STR_VR:
            result[tag] = _raw_element(item, keyword)
    keep_bytes(result)
    return result


# ---- reading single values


def _valid_texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a text attribute, where all are there and valid, and not more than it may have; else none."""
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    try:
        value = header.get(keyword)
        texts = tuple(str(part).strip(" \0") for part in (value if isinstance(value, MultiValue) else (value or "",)))
        for text in texts:
            validate_value(vr, text, config.RAISE)
            if vr == VR.DA:
                date.fromisoformat(text)  # a day of the calendar, and no range of them as in a query
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not valid
        return ()
    sound = all(_is_sound(text, keyword, vr) for text in texts)
    return texts if sound and (len(texts) == 1 or dictionary_VM(tag) == "1-n") else ()


def _is_sound(text: str, keyword: str, vr: str) -> bool:
    if not text or "\ufffd" in text or not re.fullmatch(_ALLOWED.get(keyword, ".*"), text, re.DOTALL):
        return False
    if vr == VR.TM:
        return "-" not in text  # pydicom lets the ranges of a query pass
    return vr in _SEVERAL_LINES or text.isprintable()


def _valid_text(header: Dataset, keyword: str) -> str | None:
    """The value of a single-valued attribute as text where it is there, not empty, and valid for its VR; else None."""
    texts = _valid_texts(header, keyword)
    return texts[0] if len(texts) == 1 else None


def _ascii(header: Dataset, keyword: str) -> str:
    """The value where it is valid and the same in every character set; else empty."""
    text = _valid_text(header, keyword) or ""
    return text if text.isascii() else ""


def _uid(header: Dataset, keyword: str) -> str:
    value = _valid_text(header, keyword)
    if value is None or not UID(value).is_valid:
        raise EncodingError(f"{dictionary_description(keyword)} is missing or no valid UID")
    return value


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    try:
        value = dataset[keyword].value
        numbers = tuple(float(part) for part in (value if isinstance(value, MultiValue) else (value,)))
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} is missing or not numeric") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise EncodingError(f"{dictionary_description(keyword)} has not {count} finite values")
    return numbers


def _positive_number(dataset: Dataset, keyword: str) -> float | None:
    try:
        (number,) = _numbers(dataset, keyword, 1)
    except EncodingError:
        return None
    return number if number > 0 else None


def _series_number(header: Dataset) -> int:
    try:
        return int(header.get("SeriesNumber") or 0)
    except Exception:  # noqa: BLE001 - pydicom converts lazily; without a sound number the series has none
        return 0


def _laterality(header: Dataset) -> str | None:
    """Type 2C: required of a paired body part, and of one that may be."""
    if _valid_text(header, "BodyPartExamined") in _UNPAIRED:
        return None
    return _valid_text(header, "Laterality") or ""


def _lossy_compression(headers: Sequence[Dataset]) -> Dataset:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5): what is derived from such images says so too."""
    result = Dataset()
    result.LossyImageCompression = "00"
    for header in headers:
        if _valid_text(header, "LossyImageCompression") == "01":
            result.LossyImageCompression = "01"
            result.update(_valid(header, ("LossyImageCompressionRatio", "LossyImageCompressionMethod")))
            break
    return result


# ---- the planes


def _planes(reconstruction: Reconstruction) -> tuple[SourcePlane, ...]:
    headers = {_valid_text(header, "SOPInstanceUID"): header for header in reconstruction.headers}
    planes = []
    for k, frame in enumerate(reconstruction.frames):
        header = headers.get(frame.sop_instance_uid)
        if header is None:
            raise EncodingError(f"plane {k} refers to instance {frame.sop_instance_uid}, which has no header")
        x, y, z = _numbers(_plane_attributes(header, frame.frame_number), "ImagePositionPatient", 3)
        planes.append(SourcePlane(frame.sop_instance_uid, frame.sop_class_uid, frame.frame_number, (x, y, z)))
    return tuple(planes)


def _plane_attributes(header: Dataset, frame_number: int | None) -> Dataset:
    """Position, orientation and pixel measures of one frame in one data set, classic (None) or multi-frame.

    Raises:
        EncodingError: the functional groups are not what reconstruct read them to be.
    """
    if frame_number is None:
        return header
    result = Dataset()
    try:
        per_frame = header.PerFrameFunctionalGroupsSequence[frame_number - 1]
        for group in (*(header.get("SharedFunctionalGroupsSequence") or ()), per_frame):
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
                for item in group.get(keyword) or ():
                    result.update(item)
    except Exception as error:
        raise EncodingError(f"frame {frame_number} has no functional groups that can be read") from error
    return result


def _refuse_other_places(source: PreparedSource, reconstruction: Reconstruction) -> None:
    """The frames must lie where the grid of the labels says: this stops a map that is reversed or of other frames."""
    geometry = reconstruction.source.geometry
    if len(source.planes) != geometry.shape_zyx[0]:
        raise EncodingError(f"{len(source.planes)} source frames for {geometry.shape_zyx[0]} planes")
    first = reconstruction.headers[0]
    (rows,), (columns,) = _numbers(first, "Rows", 1), _numbers(first, "Columns", 1)
    if (rows, columns) != (source.rows, source.columns):
        raise EncodingError(
            f"source images of {rows:g} rows and {columns:g} columns for planes of {source.rows} and {source.columns}"
        )
    affine = geometry.affine_lps
    expected = affine[:3, 3] + np.arange(len(source.planes))[:, np.newaxis] * affine[:3, 2]
    stated_positions = np.array([plane.position_lps_mm for plane in source.planes])
    distance = np.linalg.norm(stated_positions - expected, axis=1)
    limit = _PLACE_TOLERANCE * min(*geometry.spacing_xyz_mm)
    if distance.max() > limit:
        worst = int(distance.argmax())
        raise EncodingError(
            f"plane {worst} of the grid lies {distance[worst]:.3f} mm from the position of its source frame, "
            f"expected at most {limit:.3f} mm"
        )
    cosines = np.concatenate([_unit(affine[:3, 0]), _unit(affine[:3, 1])])
    deviation = float(np.abs(cosines - np.array(source.orientation)).max())
    if deviation > _PLACE_TOLERANCE / max(source.rows, source.columns, 25):
        raise EncodingError(f"rows and columns of the grid deviate from the source images (cosines by {deviation:.4f})")


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return result
