"""The Label Map Segmentation IOD as a table (PS3.3 2024d, A.51 and its modules), and an object's violations of it.

No published checker knows this SOP Class; dciodvfy of 2022 does not. The table lists every attribute of type 1 and 2
that a CT label map may have to contain, and those of type 1C and 2C with their conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom import Dataset


class Requirement(NamedTuple):
    """One attribute: its path (keywords of the enclosing sequences), its type, and its permitted values.

    ``condition``, for types 1C and 2C, is evaluated for the whole object and the item that contains the attribute; if
    it does not hold, the attribute must be absent.
    """

    section: str
    where: tuple[str, ...]
    keyword: str
    type: str
    allowed: tuple[object, ...] = ()
    condition: Callable[[Dataset, Dataset], bool] = lambda _whole, _item: True


def _never(_whole: Dataset, _item: Dataset) -> bool:
    return False


def _is_lossy(whole: Dataset, _item: Dataset) -> bool:
    """The attributes are required if the source has them, which is the case for the lossy sources in these tests."""
    return whole.get("LossyImageCompression") == "01"


def _is_multi_frame(_whole: Dataset, item: Dataset) -> bool:
    return str(item.ReferencedSOPClassUID) != CT_IMAGE_STORAGE


def _is_no_background(_whole: Dataset, item: Dataset) -> bool:
    return bool(item.SegmentNumber)


CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_SHARED, _FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_SEGMENT = ("SegmentSequence",)
_SOURCE = (_FRAMES, "DerivationImageSequence", "SourceImageSequence")
_CODES = (
    (*_SEGMENT, "SegmentedPropertyCategoryCodeSequence"),
    (*_SEGMENT, "SegmentedPropertyTypeCodeSequence"),
    (*_SEGMENT, "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
    (*_SEGMENT, "AnatomicRegionSequence"),
    (*_SEGMENT, "AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
    (*_SEGMENT, "SegmentationAlgorithmIdentificationSequence", "AlgorithmFamilyCodeSequence"),
    (_FRAMES, "DerivationImageSequence", "DerivationCodeSequence"),
    (*_SOURCE, "PurposeOfReferenceCodeSequence"),
    ("ContributingEquipmentSequence", "PurposeOfReferenceCodeSequence"),
)
_ALGORITHM = (*_SEGMENT, "SegmentationAlgorithmIdentificationSequence")
_REFERENCES = (
    ("ReferencedSeriesSequence", "ReferencedInstanceSequence"),
    ("SourceImageSequence",),
    _SOURCE,
)

TABLE: tuple[Requirement, ...] = (
    # C.7.1.1 Patient
    Requirement("C.7.1.1", (), "PatientName", "2"),
    Requirement("C.7.1.1", (), "PatientID", "2"),
    Requirement("C.7.1.1", (), "PatientBirthDate", "2"),
    Requirement("C.7.1.1", (), "PatientSex", "2", ("M", "F", "O")),
    # C.7.2.1 General Study
    Requirement("C.7.2.1", (), "StudyInstanceUID", "1"),
    Requirement("C.7.2.1", (), "StudyDate", "2"),
    Requirement("C.7.2.1", (), "StudyTime", "2"),
    Requirement("C.7.2.1", (), "ReferringPhysicianName", "2"),
    Requirement("C.7.2.1", (), "StudyID", "2"),
    Requirement("C.7.2.1", (), "AccessionNumber", "2"),
    # C.7.3.1 General Series, C.8.20.1 Segmentation Series
    Requirement("C.7.3.1", (), "SeriesInstanceUID", "1"),
    Requirement("C.7.3.1", (), "PatientPosition", "2C", condition=_never),
    Requirement("C.8.20.1", (), "Modality", "1", ("SEG",)),
    Requirement("C.8.20.1", (), "SeriesNumber", "1"),
    Requirement("C.8.20.1", (), "ReferencedPerformedProcedureStepSequence", "1C", condition=_never),
    # C.7.4.1 Frame of Reference, C.7.5.1 General Equipment, C.7.5.2 Enhanced General Equipment
    Requirement("C.7.4.1", (), "FrameOfReferenceUID", "1"),
    Requirement("C.7.4.1", (), "PositionReferenceIndicator", "2"),
    # A.51.4: the value of pixels outside of all segments
    Requirement("C.7.5.1", (), "PixelPaddingValue", "1", (0,)),
    Requirement("C.7.5.2", (), "Manufacturer", "1"),
    Requirement("C.7.5.2", (), "ManufacturerModelName", "1"),
    Requirement("C.7.5.2", (), "DeviceSerialNumber", "1"),
    Requirement("C.7.5.2", (), "SoftwareVersions", "1"),
    # C.7.6.1 General Image
    Requirement("C.7.6.1", (), "PatientOrientation", "2C", condition=_never),
    # C.7.6.3 Image Pixel
    Requirement("C.7.6.3", (), "Rows", "1"),
    Requirement("C.7.6.3", (), "Columns", "1"),
    Requirement("C.7.6.3", (), "PlanarConfiguration", "1C", condition=_never),
    Requirement("C.7.6.3", (), "PixelAspectRatio", "1C", condition=_never),
    Requirement("C.7.6.3", (), "PixelData", "1"),
    Requirement("C.7.9", (), "RedPaletteColorLookupTableDescriptor", "1C", condition=_never),
    Requirement("C.11.15", (), "ICCProfile", "1C", condition=_never),
    # C.7.6.16 Multi-frame Functional Groups
    Requirement("C.7.6.16", (), "InstanceNumber", "1"),
    Requirement("C.7.6.16", (), "ContentDate", "1"),
    Requirement("C.7.6.16", (), "ContentTime", "1"),
    Requirement("C.7.6.16", (), "NumberOfFrames", "1"),
    Requirement("C.7.6.16", (), _SHARED, "1"),
    Requirement("C.7.6.16", (), _FRAMES, "1"),
    # table A.51-2: the Segmentation macro is required unless Segmentation Type is LABELMAP
    Requirement("C.8.20.3.1", (_SHARED,), "SegmentIdentificationSequence", "1C", condition=_never),
    Requirement("C.8.20.3.1", (_FRAMES,), "SegmentIdentificationSequence", "1C", condition=_never),
    Requirement("C.7.6.16.2.1", (_SHARED,), "PixelMeasuresSequence", "1"),
    Requirement("C.7.6.16.2.1", (_SHARED, "PixelMeasuresSequence"), "PixelSpacing", "1"),
    Requirement("C.7.6.16.2.1", (_SHARED, "PixelMeasuresSequence"), "SliceThickness", "1"),
    Requirement("C.7.6.16.2.4", (_SHARED,), "PlaneOrientationSequence", "1"),
    Requirement("C.7.6.16.2.4", (_SHARED, "PlaneOrientationSequence"), "ImageOrientationPatient", "1"),
    Requirement("C.7.6.16.2.3", (_FRAMES,), "PlanePositionSequence", "1"),
    Requirement("C.7.6.16.2.3", (_FRAMES, "PlanePositionSequence"), "ImagePositionPatient", "1"),
    Requirement("C.7.6.16.2.2", (_FRAMES,), "FrameContentSequence", "1"),
    Requirement("C.7.6.16.2.2", (_FRAMES, "FrameContentSequence"), "DimensionIndexValues", "1"),
    Requirement("C.7.6.16.2.6", (_FRAMES,), "DerivationImageSequence", "1"),
    Requirement("C.7.6.16.2.6", (_FRAMES, "DerivationImageSequence"), "DerivationCodeSequence", "1"),
    Requirement("C.7.6.16.2.6", (_FRAMES, "DerivationImageSequence"), "SourceImageSequence", "2"),
    Requirement("C.7.6.16.2.6", _SOURCE, "PurposeOfReferenceCodeSequence", "1"),
    Requirement("C.7.6.16.2.6", _SOURCE, "SpatialLocationsPreserved", "3", ("YES",)),
    Requirement("10-3", _SOURCE, "ReferencedFrameNumber", "1C", condition=_is_multi_frame),
    # C.7.6.17 Multi-frame Dimension
    Requirement("C.7.6.17", (), "DimensionOrganizationSequence", "1"),
    Requirement("C.7.6.17", ("DimensionOrganizationSequence",), "DimensionOrganizationUID", "1"),
    Requirement("C.7.6.17", (), "DimensionOrganizationType", "3", ("3D",)),
    Requirement("C.7.6.17", (), "DimensionIndexSequence", "1"),
    Requirement("C.7.6.17", ("DimensionIndexSequence",), "DimensionIndexPointer", "1"),
    Requirement("C.7.6.17", ("DimensionIndexSequence",), "FunctionalGroupPointer", "1"),
    Requirement("C.7.6.17", ("DimensionIndexSequence",), "DimensionOrganizationUID", "1"),
    # C.8.20.2 Segmentation Image, table 10-12 Content Identification
    Requirement("C.8.20.2", (), "ImageType", "1", (["DERIVED", "PRIMARY"],)),
    Requirement("10-12", (), "ContentLabel", "1"),
    Requirement("10-12", (), "ContentDescription", "2"),
    Requirement("10-12", (), "ContentCreatorName", "2"),
    Requirement("C.8.20.2", (), "SamplesPerPixel", "1", (1,)),
    Requirement("C.8.20.2", (), "PhotometricInterpretation", "1", ("MONOCHROME2",)),
    Requirement("C.8.20.2", (), "PixelRepresentation", "1", (0,)),
    Requirement("C.8.20.2", (), "BitsAllocated", "1", (8,)),
    Requirement("C.8.20.2", (), "BitsStored", "1", (8,)),
    Requirement("C.8.20.2", (), "HighBit", "1", (7,)),
    Requirement("C.8.20.2", (), "LossyImageCompression", "1", ("00", "01")),
    Requirement("C.8.20.2", (), "LossyImageCompressionRatio", "1C", condition=_is_lossy),
    Requirement("C.8.20.2", (), "LossyImageCompressionMethod", "1C", condition=_is_lossy),
    Requirement("C.8.20.2", (), "SegmentationType", "1", ("LABELMAP",)),
    Requirement("C.8.20.2", (), "SegmentationFractionalType", "1C", condition=_never),
    Requirement("C.8.20.2", (), "MaximumFractionalValue", "1C", condition=_never),
    Requirement("C.8.20.2", (), "SegmentsOverlap", "3", ("NO",)),
    Requirement("C.8.20.2", (), "SegmentSequence", "1"),
    Requirement("C.8.20.4", _SEGMENT, "SegmentNumber", "1"),
    Requirement("C.8.20.4", _SEGMENT, "SegmentLabel", "1"),
    Requirement("C.8.20.4", _SEGMENT, "SegmentedPropertyCategoryCodeSequence", "1"),
    Requirement("C.8.20.4", _SEGMENT, "SegmentedPropertyTypeCodeSequence", "1"),
    Requirement("C.8.20.4", _SEGMENT, "TrackingID", "1C", condition=_is_no_background),
    Requirement("C.8.20.4", _SEGMENT, "TrackingUID", "1C", condition=_is_no_background),
    Requirement("C.8.20.2", _SEGMENT, "SegmentAlgorithmType", "1", ("AUTOMATIC", "SEMIAUTOMATIC")),
    Requirement("C.8.20.2", _SEGMENT, "SegmentAlgorithmName", "1"),
    Requirement("10-19", _ALGORITHM, "AlgorithmFamilyCodeSequence", "1"),
    Requirement("10-19", _ALGORITHM, "AlgorithmName", "1"),
    Requirement("10-19", _ALGORITHM, "AlgorithmVersion", "1"),
    *(
        Requirement("8.8", where, keyword, "1")
        for where in _CODES
        for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
    ),
    # C.12.2 Common Instance Reference: required, because there are derivation images
    Requirement("C.12.2", (), "ReferencedSeriesSequence", "1"),
    Requirement("C.12.2", ("ReferencedSeriesSequence",), "SeriesInstanceUID", "1"),
    Requirement("C.12.2", ("ReferencedSeriesSequence",), "ReferencedInstanceSequence", "1"),
    Requirement("C.12.2", (), "StudiesContainingOtherReferencedInstancesSequence", "1C", condition=_never),
    *(
        Requirement("10-11", where, keyword, "1")
        for where in _REFERENCES
        for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
    ),
    # C.12.1 SOP Common
    Requirement("C.12.1", (), "SOPClassUID", "1", (LABEL_MAP_SEGMENTATION_STORAGE,)),
    Requirement("C.12.1", (), "SOPInstanceUID", "1"),
    Requirement("C.12.1", ("ContributingEquipmentSequence",), "PurposeOfReferenceCodeSequence", "1"),
    Requirement("C.12.1", ("ContributingEquipmentSequence",), "Manufacturer", "1"),
)


def violations(whole: Dataset) -> Iterator[str]:
    """The entries of :data:`TABLE` that a label map violates."""
    for requirement in TABLE:
        for item in _items(whole, requirement.where):
            said = _violation(requirement, whole, item)
            if said is not None:
                yield f"{'/'.join((*requirement.where, requirement.keyword))} ({requirement.section}): {said}"


def _items(item: Dataset, where: tuple[str, ...]) -> Iterator[Dataset]:
    if not where:
        yield item
        return
    for child in item.get(where[0]) or ():
        yield from _items(child, where[1:])


def _violation(requirement: Requirement, whole: Dataset, item: Dataset) -> str | None:
    is_there = requirement.keyword in item
    if requirement.type.endswith("C") and not requirement.condition(whole, item):
        return "is there, though its condition does not hold" if is_there else None
    if not is_there:
        return None if requirement.type == "3" else f"type {requirement.type} is missing"
    value = item[requirement.keyword].value
    if value in (None, "", b"", []):
        return f"type {requirement.type} is empty" if requirement.type.startswith("1") else None
    if requirement.allowed and value not in requirement.allowed:
        return f"is {value}, expected one of {requirement.allowed}"
    return None
