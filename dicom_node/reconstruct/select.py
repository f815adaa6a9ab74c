"""Whether a series is greyscale CT of one patient that a result can refer to; no geometry, no pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_description
from pydicom.uid import UID

from dicom_node.errors import EncodingError, NotEligible
from dicom_node.standard.attributes import items, text, texts
from dicom_node.standard.identity import FRAME_OF_REFERENCE, PATIENT_STUDY_SERIES, refuse_mixed_identity, states
from dicom_node.standard.localizers import frame_types, localizer_value
from dicom_node.standard.uids import (
    CT_FOR_PROCESSING_SOP_CLASSES,
    CT_SOP_CLASSES,
    MULTI_FRAME_CT_SOP_CLASSES,
    is_well_formed_uid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.types import Series

_REQUIRED_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def refuse_ineligible(series: Series) -> None:
    """Let pass only monochrome CT images that a result could refer to.

    A missing Modality is forgiven because the SOP class says CT.

    Raises:
        NotEligible: another SOP class or modality, localizer, colour, multi-frame objects among classic images, a type
            1 UID that is empty or no UID.
    """
    if not series.instances:
        raise NotEligible("the series has no instances")
    headers = [instance.header for instance in series.instances]
    for header in headers:
        _refuse_other_kinds(header)
    for header in headers:
        for keyword in _REQUIRED_UIDS:
            _refuse_unusable_uid(header, keyword)
    for header in headers:
        _refuse_unsuitable_image(header)
    multi_frame = sum(is_multi_frame(header) for header in headers)
    if 0 < multi_frame < len(headers):
        raise NotEligible(f"{multi_frame} multi-frame objects among {len(headers)} instances, expected all or none")


def refuse_without_frame_of_reference(series: Series) -> None:
    """A SEG states the Frame of Reference of its source (PS3.3 C.7.4.1, type 1); an invented one ties it to nothing.

    Asked after the geometry, so that a series with a missing slice is told so first.

    Raises:
        NotEligible: the Frame of Reference UID is empty or invalid.
    """
    for instance in series.instances:
        _refuse_unusable_uid(instance.header, "FrameOfReferenceUID")


def is_multi_frame(header: Dataset) -> bool:
    """Whether the header belongs to an Enhanced or Legacy Converted Enhanced CT object."""
    return text(header, "SOPClassUID") in MULTI_FRAME_CT_SOP_CLASSES


def functional_groups(header: Dataset) -> tuple[Dataset, ...]:
    """The functional groups of all frames, and those of single frames; none of a classic image."""
    shared, per_frame = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    return (*items(header, shared), *items(header, per_frame))


def converted_attributes(group: Dataset) -> tuple[Dataset, ...]:
    """Where a Legacy Converted object keeps what its classic images state and no macro holds (PS3.3 A.70)."""
    per_frame, shared = (f"Unassigned{kind}ConvertedAttributesSequence" for kind in ("PerFrame", "Shared"))
    return (*items(group, per_frame), *items(group, shared))


def refuse_several_patients(series: Series) -> None:
    """Every instance, a localizer too, must state the same patient, study and series.

    Raises:
        IdentityConflict: something differs.
        NotEligible: something cannot be read, so that nobody can tell.
    """
    _refuse_mixed([instance.header for instance in series.instances], PATIENT_STUDY_SERIES)


def refuse_several_frames_of_reference(series: Series) -> None:
    """Every image must state the same Frame of Reference; a missing one is refused by its own name later.

    Raises:
        IdentityConflict: it differs.
        NotEligible: it cannot be read.
    """
    headers = [instance.header for instance in series.instances]
    try:
        stated = [header for header in headers if states(header, FRAME_OF_REFERENCE)]
    except EncodingError as error:
        raise NotEligible(str(error)) from error
    _refuse_mixed(stated, (FRAME_OF_REFERENCE,))


def _refuse_mixed(headers: Sequence[Dataset], keywords: Sequence[str]) -> None:
    try:
        refuse_mixed_identity(headers, keywords)
    except EncodingError as error:
        raise NotEligible(str(error)) from error


def _refuse_other_kinds(header: Dataset) -> None:
    sop_class = text(header, "SOPClassUID")
    for_processing = CT_FOR_PROCESSING_SOP_CLASSES.get(sop_class)
    if for_processing is not None:
        raise NotEligible(f"SOP class is {for_processing}, expected images for presentation")
    if sop_class not in CT_SOP_CLASSES:
        raise NotEligible(f"SOP class is {_sop_class_name(sop_class)}, expected a CT image")
    modality = text(header, "Modality")
    if modality not in ("", "CT"):
        raise NotEligible("Modality is not CT")


def _sop_class_name(sop_class: str) -> str:
    if not sop_class:
        return "missing"
    return str(UID(sop_class).name) if is_well_formed_uid(sop_class) else "not a UID"


def _refuse_unusable_uid(header: Dataset, keyword: str) -> None:
    value = text(header, keyword)
    if not is_well_formed_uid(value):
        state = "is no valid UID" if value else "is missing"
        raise NotEligible(f"{dictionary_description(keyword)} {state}: a result could not refer to this series")


def _refuse_unsuitable_image(header: Dataset) -> None:
    where = f"instance {text(header, 'SOPInstanceUID')}"
    value = localizer_value(texts(header, "ImageType"))
    if value:
        raise NotEligible(f"{where} is a localizer (Image Type value {value})")
    value = max(map(localizer_value, frame_types(header)), default=0)
    if value:
        raise NotEligible(f"{where} has localizers among its frames, or only these (Frame Type value {value})")
    samples, photometric = text(header, "SamplesPerPixel"), text(header, "PhotometricInterpretation")
    if samples not in ("", "1") or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise NotEligible(f"{where} is not a greyscale image (Samples per Pixel {samples!r})")
    if not is_multi_frame(header) and text(header, "NumberOfFrames").lstrip("+0") not in ("", "1"):
        raise NotEligible(f"{where} is a classic CT image that states several frames")
    if text(header, "VolumetricProperties") == "DISTORTED":
        raise NotEligible(f"{where} states distorted geometry (Volumetric Properties)")
