"""The source series, checked, with everything that its results repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from dicom_node.encode.source.identity import identity_of, valid_attributes
from dicom_node.encode.source.planes import SourcePlane, plane_attributes, planes_of, refuse_other_places, unit_vector
from dicom_node.encode.source.values import (
    ascii_text,
    finite_numbers,
    positive_number,
    series_number,
    valid_text,
    valid_uid,
)
from dicom_node.errors import EncodingError
from dicom_node.standard.identity import FRAME_OF_REFERENCE, PATIENT_STUDY_SERIES, refuse_mixed_identity
from dicom_node.standard.uids import is_well_formed_uid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.types import Reconstruction


ACQUISITION_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "StationName",
    "InstitutionName",
    "InstitutionalDepartmentName",
)
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
"""Values of Body Part Examined (PS3.16 annex L) for CT that have no laterality."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSource:
    """A source series, checked, with everything that its results repeat.

    ``identity`` holds patient, study and character set as raw elements, every type 2 attribute present.
    ``planes[k]`` is plane k of the label map. ``orientation`` are the six cosines of Image Orientation (Patient),
    ``row_spacing_mm`` the distance between rows, ``plane_spacing_mm`` the distance between planes along their normal.
    ``laterality`` of the body part (PS3.3 C.7.3.1) is ``"R"``, ``"L"``, empty if the source does not state it, and None
    if the body part has none.
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
        """Whether the planes are frames of multi-frame instances."""
        return self.planes[0].frame_number is not None

    @property
    def instances(self) -> tuple[SourcePlane, ...]:
        """One plane of each source instance, in plane order."""
        return tuple({plane.sop_instance_uid: plane for plane in reversed(self.planes)}.values())[::-1]


def prepare(reconstruction: Reconstruction) -> PreparedSource:
    """Check the headers of ``reconstruction`` against each other and the grid, and extract what results repeat.

    Raises:
        IdentityConflict: patient, study, series or Frame of Reference differ between instances.
        EncodingError: a required attribute is missing or contradicts the reconstruction; the message names it.
    """
    headers = reconstruction.headers
    refuse_mixed_identity(headers, (*PATIENT_STUDY_SERIES, FRAME_OF_REFERENCE))
    first = headers[0]
    _, rows, columns = reconstruction.source.geometry.shape_zyx
    measures = plane_attributes(first, reconstruction.frames[0].frame_number)
    x_axis, y_axis, step = reconstruction.source.geometry.affine_lps[:3, :3].T
    plane_spacing = abs(float(step @ unit_vector(np.cross(x_axis, y_axis))))
    row_spacing, column_spacing = finite_numbers(measures, "PixelSpacing", 2)
    thickness = positive_number(measures, "SliceThickness")
    source = PreparedSource(
        identity=identity_of(first),
        acquisition_equipment=valid_attributes(first, ACQUISITION_EQUIPMENT),
        study_instance_uid=valid_uid(first, "StudyInstanceUID"),
        series_instance_uid=valid_uid(first, "SeriesInstanceUID"),
        frame_of_reference_uid=valid_uid(first, "FrameOfReferenceUID"),
        position_reference_indicator=ascii_text(first, "PositionReferenceIndicator"),
        planes=planes_of(reconstruction),
        rows=rows,
        columns=columns,
        orientation=finite_numbers(measures, "ImageOrientationPatient", 6),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        plane_spacing_mm=plane_spacing,
        slice_thickness_mm=plane_spacing if thickness is None else thickness,
        series_number=series_number(first),
        body_part_examined=valid_text(first, "BodyPartExamined") or "",
        laterality=_laterality(first),
        lossy_compression=_lossy_compression(headers),
        timezone_offset=valid_text(first, "TimezoneOffsetFromUTC") or "",
    )
    refuse_other_places(source.planes, source.orientation, reconstruction)
    return source


@dataclass(frozen=True, slots=True, eq=False)
class NamedSeries:
    """What is known of a source series that need not be a volume: patient, study and instances.

    ``instances`` are the SOP Class and Instance UIDs of those that have valid ones.
    """

    identity: Dataset
    acquisition_equipment: Dataset
    study_instance_uid: str
    series_instance_uid: str
    series_number: int
    timezone_offset: str
    instances: tuple[tuple[str, str], ...]


def name_series(headers: Sequence[Dataset]) -> NamedSeries:
    """Patient, study and instances of ``headers``, which need not agree in anything else.

    Raises:
        IdentityConflict: patient, study or series differ between instances.
        EncodingError: there is no valid Study or Series Instance UID, or no instance with valid UIDs.
    """
    refuse_mixed_identity(headers, PATIENT_STUDY_SERIES)
    instances = dict.fromkeys(
        (valid_text(header, "SOPClassUID"), valid_text(header, "SOPInstanceUID")) for header in headers
    )
    sound = tuple((sop_class, uid) for sop_class, uid in instances if sop_class and uid and is_well_formed_uid(uid))
    if not sound:
        raise EncodingError(f"none of {len(headers)} instances has a valid SOP Class and Instance UID")
    first = headers[0]
    return NamedSeries(
        identity=identity_of(first),
        acquisition_equipment=valid_attributes(first, ACQUISITION_EQUIPMENT),
        study_instance_uid=valid_uid(first, "StudyInstanceUID"),
        series_instance_uid=valid_uid(first, "SeriesInstanceUID"),
        series_number=series_number(first),
        timezone_offset=valid_text(first, "TimezoneOffsetFromUTC") or "",
        instances=sound,
    )


def _laterality(header: Dataset) -> str | None:
    """Type 2C: required if the body part is paired or may be."""
    if valid_text(header, "BodyPartExamined") in _UNPAIRED:
        return None
    return valid_text(header, "Laterality") or ""


def _lossy_compression(headers: Sequence[Dataset]) -> Dataset:
    """Lossy compression stays stated in what is derived from such images (PS3.3 C.7.6.1.1.5)."""
    result = Dataset()
    result.LossyImageCompression = "00"
    for header in headers:
        if valid_text(header, "LossyImageCompression") == "01":
            result.LossyImageCompression = "01"
            result.update(valid_attributes(header, ("LossyImageCompressionRatio", "LossyImageCompressionMethod")))
            break
    return result
