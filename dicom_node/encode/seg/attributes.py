"""The attributes that both forms of a SEG (PS3.3 A.51) share, as highdicom makes them for one pixel of one plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highdicom.seg import Segmentation as SegmentationObject
from highdicom.seg import SegmentationTypeValues
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.encode import tags
from dicom_node.encode.decimals import decimal
from dicom_node.encode.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    Provenance,
    content_creator_name,
    content_description,
    content_label,
    plain,
    series_number,
    software_versions,
    stamp,
)
from dicom_node.encode.references import references
from dicom_node.encode.seg.descriptions import encoded_description, segment_description
from dicom_node.encode.seg.source_images import source_images
from dicom_node.standard.part10 import PREAMBLE_LENGTH, element, encoded_elements, file_of, item, rewritten, within
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from highdicom.seg import SegmentDescription
    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.planes import SourcePlane


_TYPES = {
    ResultKind.SEGMENTATION: SegmentationTypeValues.BINARY,
    ResultKind.LABELMAP: SegmentationTypeValues.LABELMAP,
}
_TITLES = {ResultKind.SEGMENTATION: "segmentation", ResultKind.LABELMAP: "label map"}


def one_plane(
    kind: ResultKind, segments: tuple[Segment, ...], provenance: Provenance, plane: int, index: int
) -> Dataset:
    """The SEG that highdicom makes of one pixel of the first of ``segments`` on one plane."""
    descriptions = [segment_description(segment, provenance.model) for segment in segments]
    planes = provenance.source.planes[plane : plane + 1]
    return highdicom_segmentation(kind, np.ones((1, 1, 1), dtype=np.uint8), descriptions, provenance, planes, index)


def attributes(
    dataset: Dataset,
    frames: int,
    segments: tuple[Segment, ...],
    provenance: Provenance,
    *,
    is_volume: bool,
    background: bytes = b"",
) -> bytes:
    """The file of :func:`one_plane` up to its functional groups, for ``frames`` full frames of ``segments``."""
    source, model = provenance.source, provenance.model
    del dataset.PerFrameFunctionalGroupsSequence
    del dataset.PixelData
    del dataset.SegmentSequence
    dataset.Rows, dataset.Columns = source.rows, source.columns
    dataset.NumberOfFrames = frames
    if is_volume:
        dataset.DimensionOrganizationType = "3D"
    file = memoryview(file_of(dataset))
    instances = references(tags.REFERENCED_INSTANCE, source)
    descriptions = b"".join(item(encoded_description(segment, model)) for segment in segments) + background
    changes = {
        tags.SOURCE_IMAGE: references(tags.SOURCE_IMAGE, source),
        tags.REFERENCED_SERIES: within(
            encoded_elements(file[PREAMBLE_LENGTH:]),
            tags.REFERENCED_SERIES,
            {tags.REFERENCED_INSTANCE: instances},
        ),
        tags.SEGMENT: element(tags.SEGMENT, b"SQ", descriptions),
    }
    return rewritten(file, changes)


def highdicom_segmentation(
    kind: ResultKind,
    numbers_zyx: NDArray[np.uint8],
    descriptions: Sequence[SegmentDescription],
    provenance: Provenance,
    planes: tuple[SourcePlane, ...],
    index: int = 0,
) -> Dataset:
    """The SEG that highdicom makes of a map of segment numbers, with the attributes that we correct.

    ``numbers_zyx[k]``, of any number of rows and columns, lies on ``planes[k]``. BINARY omits empty frames; a label map
    contains all frames.
    """
    source, identity, model = provenance.source, provenance.identity, provenance.model
    dataset = SegmentationObject(
        source_images=source_images(source, planes, *numbers_zyx.shape[1:]),
        pixel_array=numbers_zyx,
        segmentation_type=_TYPES[kind],
        segment_descriptions=descriptions,
        series_instance_uid=identity.uid(f"{kind} series"),
        series_number=series_number(provenance, kind, index),
        sop_instance_uid=identity.uid(f"{kind} instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(model)[0],
        device_serial_number=provenance.context.device_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_description=content_description(provenance),
        content_creator_name=content_creator_name(model),
        content_label=content_label(model),
        omit_empty_frames=kind is ResultKind.SEGMENTATION,
    )
    _finish_geometry(dataset, provenance, planes, identity.uid(f"{kind} dimension organization"))
    stamp(dataset, provenance, _TITLES[kind])
    dataset.ImageComments = plain(" ".join(provenance.statements), 10240)
    if source.body_part_examined:
        # without Laterality, which the segments state (here dciodvfy calls it an error)
        dataset.BodyPartExamined = source.body_part_examined
    dataset.update(source.lossy_compression)
    if kind is ResultKind.LABELMAP:
        dataset.add_new("PixelPaddingValue", "US", 0)  # pydicom does not derive the VR from Pixel Representation here
    return dataset


def _finish_geometry(
    dataset: Dataset, provenance: Provenance, planes: tuple[SourcePlane, ...], organization: str
) -> None:
    """Set frame numbers of a multi-frame source, spacing along the normal, and UIDs that highdicom draws at random."""
    source = provenance.source
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = decimal(source.plane_spacing_mm)
    if source.is_multi_frame:
        # all segments of a plane share one source item: collect them first, so that none is mapped twice
        references = {
            id(item): item
            for group in dataset.PerFrameFunctionalGroupsSequence
            for item in group.DerivationImageSequence[0].SourceImageSequence
        }
        for item in references.values():
            plane = planes[int(item.ReferencedFrameNumber) - 1]
            item.ReferencedFrameNumber = plane.frame_number
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = plane.sop_class_uid, plane.sop_instance_uid
    for item in [*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization
