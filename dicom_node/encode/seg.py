"""DICOM Segmentation (PS3.3 A.51), BINARY, on the frames of the source series.

highdicom makes the object from source headers that we build ourselves (:func:`_source_images`): they hold what it reads
and nothing that it could trip over, one per plane or one multi-frame header, *in plane order*, so that plane k of the
label map meets frame k and its own Image Position. That rules out the mirror of FACTS ("highdicom stacks z the other
way"): no volume is built, every frame goes by its own position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from dicom_node.encode.codes import concept
from dicom_node.encode.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    Provenance,
    algorithm_identification,
    content_creator_name,
    content_description,
    content_label,
    plain,
    series_number,
    software_versions,
    stamp,
)
from dicom_node.encode.segments import Segment, segment_numbers
from dicom_node.encode.source import TYPE_2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dicom_node.encode.source import PreparedSource

_SERIES_NUMBER_OFFSET = 1


def segmentation_object(
    labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], provenance: Provenance
) -> Dataset:
    """A BINARY SEG with one segment per item of ``segments``, empty frames omitted.

    ``labels_zyx[k]`` lies on ``provenance.source.planes[k]``. ``segments`` must not be empty: a SEG needs a segment.
    """
    source, identity, model = provenance.source, provenance.identity, provenance.model
    dataset = SegmentationObject(
        source_images=_source_images(source),
        pixel_array=segment_numbers(labels_zyx, segments),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(segment, provenance) for segment in segments],
        series_instance_uid=identity.uid("SEG series"),
        series_number=series_number(source, _SERIES_NUMBER_OFFSET),
        sop_instance_uid=identity.uid("SEG instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(model)[0],
        device_serial_number=provenance.context.device_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_description=content_description(provenance),
        content_creator_name=content_creator_name(model),
        content_label=content_label(model),
        omit_empty_frames=True,
    )
    _finish_geometry(dataset, provenance)
    stamp(dataset, provenance, "segmentation")
    dataset.ImageComments = plain(" ".join(provenance.statements), 10240)
    if source.body_part_examined:
        # without Laterality: of a SEG that is the segments' to state (dciodvfy: an error at this place)
        dataset.BodyPartExamined = source.body_part_examined
    dataset.update(source.lossy_compression)
    _pad_with_zero(dataset)
    return dataset


def _description(segment: Segment, provenance: Provenance) -> SegmentDescription:
    structure = segment.structure
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=plain(structure.name, 64),
        segmented_property_category=concept(structure.category),
        segmented_property_type=concept(structure.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(provenance.model),
        tracking_uid=segment.tracking_uid,
        tracking_id=plain(structure.name, 64),
        anatomic_regions=None if structure.region is None else [concept(structure.region)],
        display_color=CIELabColor.from_rgb(*structure.rgb),
    )
    description.SegmentDescription = plain(structure.title, 1024)
    if structure.type_modifier is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(structure.type_modifier)
        ]
    if structure.region_modifier is not None and structure.region is not None:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [concept(structure.region_modifier)]
    return description


def _source_images(source: PreparedSource) -> list[Dataset]:
    """Headers as highdicom wants to see them: one per plane, or one whose frame k + 1 is plane k."""
    if not source.is_multi_frame:
        images = []
        for plane in source.planes:
            image = _source_image(source, plane.sop_class_uid, plane.sop_instance_uid)
            image.ImagePositionPatient = _decimals(plane.position_lps_mm)
            image.update(_orientation(source))
            image.update(_measures(source))
            images.append(image)
        return images
    first = source.planes[0]
    image = _source_image(source, first.sop_class_uid, first.sop_instance_uid)
    image.NumberOfFrames = len(source.planes)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_orientation(source)]
    shared.PixelMeasuresSequence = [_measures(source)]
    image.SharedFunctionalGroupsSequence = [shared]
    per_frame = []
    for plane in source.planes:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _decimals(plane.position_lps_mm)
        group.PlanePositionSequence = [position]
        per_frame.append(group)
    image.PerFrameFunctionalGroupsSequence = per_frame
    return [image]


def _source_image(source: PreparedSource, sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    image = Dataset()
    image.SOPClassUID = sop_class_uid
    image.SOPInstanceUID = sop_instance_uid
    image.StudyInstanceUID = source.study_instance_uid
    image.SeriesInstanceUID = source.series_instance_uid
    image.FrameOfReferenceUID = source.frame_of_reference_uid
    image.PositionReferenceIndicator = source.position_reference_indicator
    image.Modality = "CT"
    image.Rows, image.Columns = source.rows, source.columns
    for keyword in TYPE_2:
        setattr(image, keyword, "")
    return image


def _orientation(source: PreparedSource) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = _decimals(source.orientation)
    return item


def _measures(source: PreparedSource) -> Dataset:
    item = Dataset()
    item.PixelSpacing = _decimals((source.row_spacing_mm, source.column_spacing_mm))
    item.SliceThickness = _decimal(source.slice_thickness_mm)
    item.SpacingBetweenSlices = _decimal(source.plane_spacing_mm)
    return item


def _decimals(values: tuple[float, ...]) -> list[DSfloat]:
    return [_decimal(value) for value in values]


def _decimal(value: float) -> DSfloat:
    return DSfloat(value, auto_format=True)


def _finish_geometry(dataset: Dataset, provenance: Provenance) -> None:
    """Frame numbers of a multi-frame source, spacing along the normal, and UIDs that highdicom draws by chance."""
    source = provenance.source
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = _decimal(source.plane_spacing_mm)
    if source.is_multi_frame:
        # each source item is shared by all segments of a plane: collect first, so that none is mapped twice
        references = {
            id(item): item
            for group in dataset.PerFrameFunctionalGroupsSequence
            for item in group.DerivationImageSequence[0].SourceImageSequence
        }
        for item in references.values():
            item.ReferencedFrameNumber = source.planes[int(item.ReferencedFrameNumber) - 1].frame_number
    organization = provenance.identity.uid("SEG dimension organization")
    for item in [*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization


def _pad_with_zero(dataset: Dataset) -> None:
    """PS3.5 section 8.1.1: the padding byte of Pixel Data is 00H; highdicom pads with the character ``0``."""
    bits = dataset.Rows * dataset.Columns * int(dataset.NumberOfFrames)
    length = (bits + 7) // 8
    pixels = dataset.PixelData
    if len(pixels) > length:
        pixels = pixels[:length] + b"\0"
    dataset.add_new("PixelData", "OB", pixels)
