"""RT Structure Set (PS3.3 A.19): structures as planar contours on the frames of the source series.

In Explicit VR Little Endian, Contour Data has at most 65534 bytes. A longer value may be encoded as UN (PS3.5 section
6.2.2), which not every reader reads as numbers (OHIF/Viewers#5611), so regions with a longer outline are cut in two.
pydicom writes the attributes; the contours, hundreds of thousands of vertices, are written as bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from scipy.ndimage import find_objects

from dicom_node.encode import tags
from dicom_node.encode.codes import concept
from dicom_node.encode.decimals import decimal, decimal_strings, longest_text
from dicom_node.encode.provenance import (
    Provenance,
    algorithm_identification,
    content_label,
    model_name,
    plain,
    series_number,
    stamp,
)
from dicom_node.encode.rtstruct.contours import outlines
from dicom_node.encode.segments import TRUNCATED
from dicom_node.standard.part10 import PREAMBLE_LENGTH, element, elements, file_of, sequence, text_element
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.planes import SourcePlane
    from dicom_node.encode.source.series import PreparedSource

_DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
"""The SOP Class that every structure set names for its study (PS3.3 C.8.8.5), itself retired."""
_LONGEST_CONTOUR_DATA = 2**16 - 2
_COORDINATES = 3
_CLOSED_PLANAR = text_element(tags.CONTOUR_GEOMETRIC_TYPE, b"CS", "CLOSED_PLANAR")
_ANATOMICAL_STRUCTURE = "123037004"


class _Outline(NamedTuple):
    plane: int
    vertices: NDArray[np.int32]


def contours_file(labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], provenance: Provenance) -> memoryview:
    """A structure set with one ROI per item of ``segments``, as a Part 10 file.

    ``labels_zyx[k]`` lies on ``provenance.source.planes[k]``. ``segments``, numbered from 1, must not be empty.

    Raises:
        EncodingError: a coordinate does not fit into a decimal string.
    """
    outlined = _outlines(labels_zyx, segments, provenance.source)
    images = [_image(plane) for plane in provenance.source.planes]
    contours = sequence(
        tags.ROI_CONTOUR,
        (_roi_contour(segment, outlined[segment.label], images, provenance) for segment in segments),
    )
    content = memoryview(file_of(_dataset(segments, provenance)))
    after = next(part.start for part in elements(content[PREAMBLE_LENGTH:]) if part.tag > tags.ROI_CONTOUR)
    after += PREAMBLE_LENGTH
    return memoryview(b"".join((content[:after], contours, content[after:])))


# ---- attributes


def _dataset(segments: tuple[Segment, ...], provenance: Provenance) -> Dataset:
    """Everything but the contours."""
    source, identity, started_at = provenance.source, provenance.identity, provenance.started_at
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = identity.uid("RTSTRUCT instance")
    dataset.StudyInstanceUID = source.study_instance_uid
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = identity.uid("RTSTRUCT series")
    dataset.SeriesNumber = series_number(provenance, ResultKind.CONTOURS)
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = source.frame_of_reference_uid
    dataset.PositionReferenceIndicator = source.position_reference_indicator
    stamp(dataset, provenance, "contours")
    # a structure set has its own attributes for the time
    del dataset.ContentDate
    del dataset.ContentTime
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = content_label(provenance.model)
    dataset.StructureSetName = model_name(provenance.model)
    dataset.StructureSetDescription = plain(" ".join(provenance.statements), 1024)
    dataset.StructureSetDate = f"{started_at:%Y%m%d}"
    dataset.StructureSetTime = f"{started_at:%H%M%S.%f}"
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    dataset.StructureSetROISequence = [_roi(segment, provenance) for segment in segments]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in segments]
    return dataset


def _frame_of_reference(source: PreparedSource) -> Dataset:
    series, study, frame_of_reference = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ContourImageSequence = [_reference(plane) for plane in source.instances]
    study.ReferencedSOPClassUID = _DETACHED_STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = source.study_instance_uid
    study.RTReferencedSeriesSequence = [series]
    frame_of_reference.FrameOfReferenceUID = source.frame_of_reference_uid
    frame_of_reference.RTReferencedStudySequence = [study]
    return frame_of_reference


def _reference(plane: SourcePlane) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = plane.sop_class_uid
    reference.ReferencedSOPInstanceUID = plane.sop_instance_uid
    return reference


def _roi(segment: Segment, provenance: Provenance) -> Dataset:
    """The item of the Structure Set ROI Sequence (PS3.3 C.8.8.5)."""
    structure, measurement = segment.structure, segment.measurement
    roi = Dataset()
    roi.ROINumber = segment.number
    roi.ReferencedFrameOfReferenceUID = provenance.source.frame_of_reference_uid
    roi.ROIName = plain(structure.name, 64)
    roi.ROIDescription = plain(f"{structure.title}. {TRUNCATED if measurement.truncated else ''}", 1024)
    roi.ROIVolume = decimal(measurement.volume_ml)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = model_name(provenance.model)
    roi.ROIDerivationAlgorithmIdentificationSequence = algorithm_identification(provenance.model)
    return roi


def _observation(segment: Segment) -> Dataset:
    """The item of the RT ROI Observations Sequence (PS3.3 C.8.8.8), with the codes of a segment in a SEG."""
    structure = segment.structure
    observation = Dataset()
    observation.ObservationNumber = segment.number
    observation.ReferencedROINumber = segment.number
    observation.SegmentedPropertyCategoryCodeSequence = [concept(structure.category)]
    identification = concept(structure.type)
    if structure.type_modifier is not None:
        identification.SegmentedPropertyTypeModifierCodeSequence = [concept(structure.type_modifier)]
    observation.RTROIIdentificationCodeSequence = [identification]
    if structure.region is not None:
        region = concept(structure.region)
        if structure.region_modifier is not None:
            region.AnatomicRegionModifierSequence = [concept(structure.region_modifier)]
        observation.AnatomicRegionSequence = [region]
    observation.RTROIInterpretedType = "ORGAN" if structure.category.value == _ANATOMICAL_STRUCTURE else ""
    observation.ROIInterpreter = ""
    return observation


# ---- contours


def _outlines(
    labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], source: PreparedSource
) -> dict[int, list[_Outline]]:
    """The outlines of each label, in plane order."""
    longest = _LONGEST_CONTOUR_DATA // (_COORDINATES * longest_text(_furthest(source)))
    found: dict[int, list[_Outline]] = {segment.label: [] for segment in segments}
    for k in sorted(frozenset[int]().union(*(segment.planes for segment in segments))):
        # one pass finds the bounding box of every label
        boxes = find_objects(labels_zyx[k], max_label=max(found))
        for segment in segments:
            if k not in segment.planes:
                continue
            rows, columns = boxes[segment.label - 1]
            region = labels_zyx[k, rows, columns] == segment.label
            corner = np.array((2 * columns.start, 2 * rows.start), dtype=np.int32)
            found[segment.label] += [_Outline(k, vertices + corner) for vertices in outlines(region, longest)]
    return found


def _furthest(source: PreparedSource) -> float:
    """An upper bound of the coordinates of vertices, in mm."""
    extent = source.rows * source.row_spacing_mm + source.columns * source.column_spacing_mm
    return extent + max(abs(value) for plane in source.planes for value in plane.position_lps_mm)


def _roi_contour(segment: Segment, outlined: list[_Outline], images: list[bytes], provenance: Provenance) -> bytes:
    """The item of the ROI Contour Sequence (PS3.3 C.8.8.6)."""
    texts = _texts(outlined, provenance.source)
    contours = [
        b"".join(
            (
                images[outline.plane],
                _CLOSED_PLANAR,
                text_element(tags.NUMBER_OF_CONTOUR_POINTS, b"IS", str(len(outline.vertices))),
                text_element(tags.CONTOUR_NUMBER, b"IS", str(number)),
                element(tags.CONTOUR_DATA, b"DS", text + b" " * (len(text) % 2)),
            )
        )
        for number, (outline, text) in enumerate(zip(outlined, texts, strict=True), start=1)
    ]
    color = "\\".join(str(value) for value in segment.structure.rgb)
    return b"".join(
        (
            text_element(tags.ROI_DISPLAY_COLOR, b"IS", color),
            sequence(tags.CONTOUR, contours),
            text_element(tags.REFERENCED_ROI_NUMBER, b"IS", str(segment.number)),
        )
    )


def _texts(outlined: list[_Outline], source: PreparedSource) -> list[bytes]:
    """The Contour Data of each outline."""
    counts = [len(outline.vertices) for outline in outlined]
    places = places_lps_mm(
        np.concatenate([outline.vertices for outline in outlined]) / 2,
        np.repeat([outline.plane for outline in outlined], counts),
        source,
    )
    characters, ends = decimal_strings(places.ravel())
    text = characters.tobytes()
    limits = ends[_COORDINATES * np.cumsum(counts) - 1].tolist()
    return [text[start : end - 1] for start, end in zip([0, *limits], limits, strict=False)]


def places_lps_mm(
    pixels_xy: NDArray[np.float64], planes: NDArray[np.int64], source: PreparedSource
) -> NDArray[np.float64]:
    """Positions of (column, row) on ``planes``, each by the Image Position of its own frame (PS3.3 C.7.6.2.1.1)."""
    origins = np.array([plane.position_lps_mm for plane in source.planes])
    along_row = np.array(source.orientation[:3]) * source.column_spacing_mm
    along_column = np.array(source.orientation[3:]) * source.row_spacing_mm
    places: NDArray[np.float64] = origins[planes] + pixels_xy @ np.array([along_row, along_column])
    return places


def _image(plane: SourcePlane) -> bytes:
    """The Contour Image Sequence of a contour on ``plane``."""
    parts = [
        text_element(tags.REFERENCED_SOP_CLASS_UID, b"UI", plane.sop_class_uid),
        text_element(tags.REFERENCED_SOP_INSTANCE_UID, b"UI", plane.sop_instance_uid),
    ]
    if plane.frame_number is not None:
        parts.append(text_element(tags.REFERENCED_FRAME_NUMBER, b"IS", str(plane.frame_number)))
    return sequence(tags.CONTOUR_IMAGE, [b"".join(parts)])
