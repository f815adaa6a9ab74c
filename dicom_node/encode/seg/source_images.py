"""Headers of source images for highdicom.

They are built from the prepared source, in plane order, with only the attributes that highdicom reads: received headers
never reach it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset

from dicom_node.encode.decimals import decimal, decimals
from dicom_node.encode.source.identity import TYPE_2

if TYPE_CHECKING:
    from dicom_node.encode.source.planes import SourcePlane
    from dicom_node.encode.source.series import PreparedSource


def source_images(source: PreparedSource, planes: tuple[SourcePlane, ...], rows: int, columns: int) -> list[Dataset]:
    """Headers as highdicom expects them: one per plane, or one whose frame k + 1 is plane k."""
    common = _common_header(source, rows, columns)
    if not source.is_multi_frame:
        common.update(_orientation(source))
        common.update(_measures(source))
        images = []
        for plane in planes:
            image = _source_image(common, plane)
            image.ImagePositionPatient = decimals(plane.position_lps_mm)
            images.append(image)
        return images
    image = _source_image(common, planes[0])
    image.NumberOfFrames = len(planes)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_orientation(source)]
    shared.PixelMeasuresSequence = [_measures(source)]
    image.SharedFunctionalGroupsSequence = [shared]
    per_frame = []
    for plane in planes:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = decimals(plane.position_lps_mm)
        group.PlanePositionSequence = [position]
        per_frame.append(group)
    image.PerFrameFunctionalGroupsSequence = per_frame
    return [image]


def _source_image(common: Dataset, plane: SourcePlane) -> Dataset:
    image = Dataset()
    image.update(common)
    image.SOPClassUID = plane.sop_class_uid
    image.SOPInstanceUID = plane.sop_instance_uid
    return image


def _common_header(source: PreparedSource, rows: int, columns: int) -> Dataset:
    common = Dataset()
    common.StudyInstanceUID = source.study_instance_uid
    common.SeriesInstanceUID = source.series_instance_uid
    common.FrameOfReferenceUID = source.frame_of_reference_uid
    common.PositionReferenceIndicator = source.position_reference_indicator
    common.Modality = "CT"
    common.Rows, common.Columns = rows, columns
    for keyword in TYPE_2:
        setattr(common, keyword, "")
    return common


def _orientation(source: PreparedSource) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = decimals(source.orientation)
    return item


def _measures(source: PreparedSource) -> Dataset:
    item = Dataset()
    item.PixelSpacing = decimals((source.row_spacing_mm, source.column_spacing_mm))
    item.SliceThickness = decimal(source.slice_thickness_mm)
    item.SpacingBetweenSlices = decimal(source.plane_spacing_mm)
    return item
