"""The source series as the result objects need it: whose it is, what its frames are, where they lie.

Identity never passes through a library that could decode, check or repair it: names and IDs are copied as the bytes
that came (``RawDataElement``), beside the Specific Character Set that they were written in, so that a name in any
character set, sound or not, comes back exactly. Everything else is copied where it is valid and left out where it is
not (type 3) or left empty (type 2), because an archive may refuse a result for a value that it once let pass.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, config
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from dicom_node.errors import EncodingError, IdentityConflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.types import Reconstruction

_WHOSE = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID")
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
_ENUMERATED = {"PatientSex": ("M", "F", "O"), "Laterality": ("R", "L"), "PatientIdentityRemoved": ("YES", "NO")}
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
_RAW_VALUE_LIMIT = 0xFFFF - 1


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
    measures = _plane_attributes(first, reconstruction.frames[0].frame_number or 1)
    x_axis, y_axis, step = reconstruction.source.geometry.affine_lps[:3, :3].T
    plane_spacing = abs(float(step @ _unit(np.cross(x_axis, y_axis))))
    row_spacing, column_spacing = _numbers(measures, "PixelSpacing", 2)
    thickness = _positive_number(measures, "SliceThickness")
    source = PreparedSource(
        identity=_identity(first),
        acquisition_equipment=_copied(first, _ACQUISITION_EQUIPMENT),
        study_instance_uid=_uid(first, "StudyInstanceUID"),
        series_instance_uid=_uid(first, "SeriesInstanceUID"),
        frame_of_reference_uid=_uid(first, "FrameOfReferenceUID"),
        position_reference_indicator=_valid_text(first, "PositionReferenceIndicator") or "",
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
        acquisition_equipment=_copied(first, _ACQUISITION_EQUIPMENT),
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


def _comparable(header: Dataset, keyword: str) -> bytes:
    """The bytes of the value without padding and without trailing empty name components."""
    element = raw_element(header, keyword)
    return b"" if element is None else (element.value or b"").rstrip(b" \0^")


# ---- copying elements as bytes


def raw_element(header: Dataset, keyword: str) -> RawDataElement | None:
    """The element as the bytes that came; None where it is absent.

    pydicom 3 forgets the bytes of an element that somebody has read, names included; such a one is written back in its
    character set, which gives the same bytes where they were sound.

    Raises:
        EncodingError: it was read, and its bytes were not sound.
    """
    tag = Tag(keyword)
    if tag not in header:
        return None
    element, vr = header.get_item(tag), dictionary_VR(tag)
    value = element.value or b"" if isinstance(element, RawDataElement) else _written(header, keyword)
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _written(header: Dataset, keyword: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    element = header[keyword]
    if "\ufffd" in str(element.value):
        raise EncodingError(f"{dictionary_description(keyword)} has bytes that its character set does not know")
    try:
        write_data_element(buffer, element, header.get("SpecificCharacterSet") or "iso8859")
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} cannot be written in its character set") from error
    return buffer.getvalue()[8:]


def _identity(header: Dataset) -> Dataset:
    identity = _copied(header, _KEPT_AS_THEY_CAME)
    for keyword in _KEPT_WHERE_VALID:
        element = raw_element(header, keyword)  # before the look at its text, which would forget its bytes
        if _valid_text(header, keyword) is not None:
            _put(identity, element)
    for keyword in _SEQUENCES:
        if header.get(keyword):
            setattr(identity, keyword, copy.deepcopy(header[keyword].value))
    for keyword in TYPE_2:
        if keyword not in identity:
            tag = Tag(keyword)
            _put(identity, RawDataElement(tag, dictionary_VR(tag), 0, b"", 0, False, True))
    return identity


def _copied(header: Dataset, keywords: Sequence[str]) -> Dataset:
    result = Dataset()
    for keyword in keywords:
        _put(result, raw_element(header, keyword))
    return result


def _put(dataset: Dataset, element: RawDataElement | None) -> None:
    if element is not None and len(element.value or b"") <= _RAW_VALUE_LIMIT:
        dataset[element.tag] = element


# ---- reading single values


def _valid_text(header: Dataset, keyword: str) -> str | None:
    """The value of a single-valued attribute as text where it is there, not empty, and valid for its VR; else None."""
    try:
        value = header.get(keyword)
        text = "" if value is None else str(value).strip(" \0")
        validate_value(dictionary_VR(tag_for_keyword(keyword) or 0), text, config.RAISE)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not valid
        return None
    allowed = _ENUMERATED.get(keyword)
    return text if text and "\ufffd" not in text and (allowed is None or text in allowed) else None


def _uid(header: Dataset, keyword: str) -> str:
    value = _valid_text(header, keyword)
    if value is None or not UID(value).is_valid:
        raise EncodingError(f"{dictionary_description(keyword)} is missing or no valid UID")
    return value


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in dataset[keyword].value)
    except Exception as error:
        raise EncodingError(f"{dictionary_description(keyword)} is missing or not numeric") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise EncodingError(f"{dictionary_description(keyword)} has not {count} finite values")
    return numbers


def _positive_number(dataset: Dataset, keyword: str) -> float | None:
    try:
        number = float(dataset[keyword].value)
    except Exception:  # noqa: BLE001 - absent, empty, several values, not a number: all the same here
        return None
    return number if math.isfinite(number) and number > 0 else None


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
            for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
                if header.get(keyword):
                    setattr(result, keyword, header.get(keyword))
            break
    return result


# ---- the planes


def _planes(reconstruction: Reconstruction) -> tuple[SourcePlane, ...]:
    headers = {str(header.get("SOPInstanceUID")): header for header in reconstruction.headers}
    planes = []
    for k, frame in enumerate(reconstruction.frames):
        header = headers.get(frame.sop_instance_uid)
        if header is None:
            raise EncodingError(f"plane {k} refers to instance {frame.sop_instance_uid}, which has no header")
        x, y, z = _numbers(_plane_attributes(header, frame.frame_number or 1), "ImagePositionPatient", 3)
        planes.append(SourcePlane(frame.sop_instance_uid, frame.sop_class_uid, frame.frame_number, (x, y, z)))
    return tuple(planes)


def _plane_attributes(header: Dataset, frame_number: int) -> Dataset:
    """Position, orientation and pixel measures of one frame in one data set, classic or multi-frame."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    if not per_frame:
        return header
    groups = [*(header.get("SharedFunctionalGroupsSequence") or ()), per_frame[frame_number - 1]]
    result = Dataset()
    for group in groups:
        for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            for item in group.get(keyword) or ():
                result.update(item)
    return result


def _refuse_other_places(source: PreparedSource, reconstruction: Reconstruction) -> None:
    """The frames must lie where the grid of the labels says: this stops a map that is reversed or of other frames."""
    geometry = reconstruction.source.geometry
    if len(source.planes) != geometry.shape_zyx[0]:
        raise EncodingError(f"{len(source.planes)} source frames for {geometry.shape_zyx[0]} planes")
    first = reconstruction.headers[0]
    stated = (first.get("Rows"), first.get("Columns"))
    if stated != (source.rows, source.columns):
        raise EncodingError(f"source images of {stated} rows and columns for planes of {(source.rows, source.columns)}")
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
