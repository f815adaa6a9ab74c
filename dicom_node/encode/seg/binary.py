"""DICOM Segmentation (PS3.3 A.51) on the frames of the source series: what all forms share, and the BINARY one.

highdicom makes the object from source headers that we build ourselves (:func:`_source_images`): they hold what it reads
and nothing that it could trip over, one per plane or one multi-frame header, *in plane order*, so that plane k of the
label map meets frame k and its own Image Position. No volume is built, so the plane orders of libraries don't matter:
of slices at z = 0, 2 and 4 mm SimpleITK makes planes 0, 2, 4 and highdicom 0.28.2 (``get_volume_from_series``) 4, 2, 0,
and labels of one on the affine of the other mirror the patient.

A whole SEG takes highdicom 1 ms a frame and several copies of the pixels. It is therefore given one pixel of one plane,
and makes every attribute of the object and the functional groups of one frame. Those of all frames and the packed
pixels are written from these as bytes (:func:`segmentation_file`), equal to those highdicom makes of the whole map.
"""

from __future__ import annotations

import mmap
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from highdicom.spatial import get_volume_positions
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
from dicom_node.encode.references import references
from dicom_node.encode.source.series import TYPE_2
from dicom_node.encode.tags import PER_FRAME_FUNCTIONAL_GROUPS, PIXEL_DATA
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import (
    LONGEST_VALUE,
    PREAMBLE_LENGTH,
    element,
    element_header,
    encoded_elements,
    file_of,
    item,
    item_of,
    only_item,
    rewritten,
    text_element,
    with_changes,
    within,
)
from dicom_node.types import ResultKind
from inference.structures import structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.series import PreparedSource, SourcePlane
    from inference.structures import Structure
    from inference.types import ModelIdentity

_IMAGE_POSITION = 0x00200032
_REFERENCED_SOP_INSTANCE_UID = 0x00081155
_REFERENCED_FRAME_NUMBER = 0x00081160
_SOURCE_IMAGE = 0x00082112
_REFERENCED_SERIES = 0x00081115
_REFERENCED_INSTANCE = 0x0008114A
_DERIVATION_IMAGE = 0x00089124
_FRAME_CONTENT = 0x00209111
_PLANE_POSITION = 0x00209113
_INDEX_VALUES = 0x00209157
_SEGMENTS = 0x00620002
_SEGMENT_NUMBER = 0x00620004
_TRACKING_UID = 0x00620021
_DIMENSION_INDEX_VALUES = element_header(_INDEX_VALUES, b"UL", 8)
_REFERENCED_SEGMENT_NUMBER = element_header(0x0062000B, b"US", 2)
_TYPES = {
    ResultKind.SEGMENTATION: SegmentationTypeValues.BINARY,
    ResultKind.LABELMAP: SegmentationTypeValues.LABELMAP,
}
_TITLES = {ResultKind.SEGMENTATION: "segmentation", ResultKind.LABELMAP: "label map"}


class _Frame(NamedTuple):
    segment: Segment
    plane: int


def segmentation_file(
    labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], provenance: Provenance, index: int = 0
) -> memoryview:
    """A BINARY SEG with one segment per item of ``segments``, empty frames omitted, as a Part 10 file.

    ``labels_zyx[k]`` lies on ``provenance.source.planes[k]``. ``segments``, numbered from 1, must not be empty: a SEG
    needs a segment. ``index`` counts the SEG series of one run for one destination.

    Raises:
        EncodingError: the pixels are more than Pixel Data may hold; nothing was allocated for them yet.
    """
    source = provenance.source
    planes = sorted(frozenset[int]().union(*(segment.planes for segment in segments)))
    # with a second segment the number of the segment goes from the shared groups to those of each frame
    dataset = one_plane(ResultKind.SEGMENTATION, segments[:2], provenance, planes[0], index)
    groups_by_plane = functional_groups(dataset.PerFrameFunctionalGroupsSequence[0], planes, source, (1,))
    frames = [_Frame(segment, k) for segment in segments for k in groups_by_plane if k in segment.planes]
    is_volume = len(segments) == 1 and is_regular(planes, source)
    groups = b"".join(_functional_groups(frames, groups_by_plane))
    length = (len(frames) * source.rows * source.columns + 7) // 8
    length += length % 2
    if length > LONGEST_VALUE:
        raise EncodingError(
            f"{len(frames)} frames of {source.rows} x {source.columns} pixels are {length} bytes, a BINARY SEG "
            f"holds at most {LONGEST_VALUE}: ask for a label map, fewer structures or a split by group"
        )
    head = b"".join(
        (
            attributes(dataset, len(frames), segments, provenance, is_volume=is_volume),
            element_header(PER_FRAME_FUNCTIONAL_GROUPS, b"SQ", len(groups)),
            groups,
            element_header(PIXEL_DATA, b"OB", length),
        )
    )
    # fresh pages are zero and take no memory before something is written to them: most of the frames is zero
    pages = mmap.mmap(-1, len(head) + length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = np.frombuffer(pages, dtype=np.uint8)
    content[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    _pack(labels_zyx, frames, content[len(head) :])
    return content.data.toreadonly()


def one_plane(
    kind: ResultKind, segments: tuple[Segment, ...], provenance: Provenance, plane: int, index: int
) -> Dataset:
    """What highdicom makes of one pixel of the first of ``segments`` on one plane."""
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
    """The file of :func:`one_plane` up to its functional groups, for ``frames`` whole frames of ``segments``."""
    source, model = provenance.source, provenance.model
    del dataset.PerFrameFunctionalGroupsSequence
    del dataset.PixelData
    del dataset.SegmentSequence
    dataset.Rows, dataset.Columns = source.rows, source.columns
    dataset.NumberOfFrames = frames
    if is_volume:
        dataset.DimensionOrganizationType = "3D"
    file = memoryview(file_of(dataset))
    instances = references(_REFERENCED_INSTANCE, source)
    descriptions = b"".join(item(_encoded_description(segment, model)) for segment in segments) + background
    changes = {
        _SOURCE_IMAGE: references(_SOURCE_IMAGE, source),
        _REFERENCED_SERIES: within(
            encoded_elements(file[PREAMBLE_LENGTH:]), _REFERENCED_SERIES, {_REFERENCED_INSTANCE: instances}
        ),
        _SEGMENTS: element(_SEGMENTS, b"SQ", descriptions),
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
    """What highdicom makes of a map of segment numbers, and what we put right in it.

    ``numbers_zyx[k]``, of any number of rows and columns, lies on ``planes[k]``. BINARY has no frames that are empty; a
    label map has all of them.
    """
    source, identity, model = provenance.source, provenance.identity, provenance.model
    dataset = SegmentationObject(
        source_images=_source_images(source, planes, *numbers_zyx.shape[1:]),
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
        # without Laterality: of a SEG that is the segments' to state (dciodvfy: an error at this place)
        dataset.BodyPartExamined = source.body_part_examined
    dataset.update(source.lossy_compression)
    if kind is ResultKind.LABELMAP:
        dataset.add_new("PixelPaddingValue", "US", 0)  # pydicom does not draw the VR from Pixel Representation here
    return dataset


def functional_groups(
    template: Dataset, planes: Sequence[int], source: PreparedSource, leading: tuple[int, ...] = ()
) -> dict[int, bytes]:
    """The functional groups of a frame on each of ``planes``, encoded, in highdicom's order, which is descending.

    The Dimension Index Values of a frame are ``leading`` and the number of its plane.
    """
    group = encoded_elements(memoryview(item_of(template)))
    derivation = only_item(group, _DERIVATION_IMAGE)
    image = only_item(derivation, _SOURCE_IMAGE)
    content, place = only_item(group, _FRAME_CONTENT), only_item(group, _PLANE_POSITION)
    groups = {}
    for index, k in enumerate(reversed(planes), start=1):
        plane = source.planes[k]
        reference = {
            _REFERENCED_SOP_INSTANCE_UID: text_element(_REFERENCED_SOP_INSTANCE_UID, b"UI", plane.sop_instance_uid)
        }
        if plane.frame_number is not None:
            reference[_REFERENCED_FRAME_NUMBER] = text_element(_REFERENCED_FRAME_NUMBER, b"IS", str(plane.frame_number))
        index_values = struct.pack(f"<{len(leading) + 1}I", *leading, index)
        position = "\\".join(str(value) for value in _decimals(plane.position_lps_mm))
        source_image = {_SOURCE_IMAGE: with_changes(_SOURCE_IMAGE, image, reference)}
        numbered = {_INDEX_VALUES: element(_INDEX_VALUES, b"UL", index_values)}
        placed = {_IMAGE_POSITION: text_element(_IMAGE_POSITION, b"DS", position)}
        changes = {
            _DERIVATION_IMAGE: with_changes(_DERIVATION_IMAGE, derivation, source_image),
            _FRAME_CONTENT: with_changes(_FRAME_CONTENT, content, numbered),
            _PLANE_POSITION: with_changes(_PLANE_POSITION, place, placed),
        }
        groups[k] = item(b"".join((group | changes).values()))
    return groups


def is_regular(planes: Sequence[int], source: PreparedSource) -> bool:
    """Whether highdicom calls frames on these planes a volume (PS3.3 C.7.6.17, Dimension Organization Type 3D)."""
    if len(planes) == 1:
        return False
    spacing, _ = get_volume_positions(
        image_positions=[_decimals(source.planes[k].position_lps_mm) for k in planes],
        image_orientation=_decimals(source.orientation),
        sort=False,
    )
    return spacing is not None and spacing > 0


def _functional_groups(frames: list[_Frame], groups_by_plane: dict[int, bytes]) -> list[bytes]:
    """Items of the Per-frame Functional Groups Sequence: those of their planes with the number of their segment."""
    templates = {k: bytearray(group) for k, group in groups_by_plane.items()}
    indices = {k: _value_offset(group, _DIMENSION_INDEX_VALUES) for k, group in groups_by_plane.items()}
    several = len(frames) > 0 and _REFERENCED_SEGMENT_NUMBER in groups_by_plane[frames[0].plane]
    numbers = {k: _value_offset(group, _REFERENCED_SEGMENT_NUMBER) for k, group in groups_by_plane.items() if several}
    groups = []
    for segment, k in frames:
        group = templates[k]
        struct.pack_into("<I", group, indices[k], segment.number)
        if several:
            struct.pack_into("<H", group, numbers[k], segment.number)
        groups.append(bytes(group))
    return groups


def _value_offset(group: bytes, header: bytes) -> int:
    if group.count(header) != 1:
        raise EncodingError(f"a functional group has {group.count(header)} elements {header.hex()}, expected 1")
    return group.index(header) + len(header)


def _pack(labels_zyx: NDArray[np.uint8], frames: list[_Frame], pixels: NDArray[np.uint8]) -> None:
    """Write what is not zero to ``pixels``, which are: frames follow each other bit by bit, lowest bit first (PS3.5
    8.1.1, 8.2), none is empty.
    """
    size = labels_zyx[0].size
    extents = {k: _extents(labels_zyx[k].reshape(-1)) for k in {frame.plane for frame in frames}}
    bits = np.empty(size + 7, dtype=np.bool_)
    for index, (segment, k) in enumerate(frames):
        low, high = (int(end[segment.label]) for end in extents[k])
        byte, before = divmod(index * size + low, 8)
        count = before + high - low
        bits[:before] = False
        np.equal(labels_zyx[k].reshape(-1)[low:high], segment.label, out=bits[before:count])
        packed = np.packbits(bits[:count], bitorder="little")
        # the first byte may hold the end of the frame before
        pixels[byte : byte + len(packed)] |= packed


def _extents(labels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the pixels of each label 0..255 begin and end among ``labels``; meaningless for a label without pixels."""
    starts = np.concatenate(([0], np.flatnonzero(labels[1:] != labels[:-1]) + 1))
    of_run = labels[starts]
    first, last = np.zeros((2, 256), dtype=np.intp)
    # of several values for one label the last stays
    first[of_run[::-1]] = starts[::-1]
    last[of_run] = np.append(starts[1:], labels.size)
    return first, last


def _encoded_description(segment: Segment, model: ModelIdentity) -> bytes:
    """The bytes of :func:`segment_description`, most of which are kept from run to run."""
    own = {
        _SEGMENT_NUMBER: element(_SEGMENT_NUMBER, b"US", struct.pack("<H", segment.number)),
        _TRACKING_UID: text_element(_TRACKING_UID, b"UI", segment.tracking_uid),
    }
    return b"".join((_description_elements(segment.structure.name, model) | own).values())


@lru_cache(maxsize=2048)
def _description_elements(structure_name: str, model: ModelIdentity) -> dict[int, bytes]:
    description = _description(structure(structure_name), model, number=1, tracking_uid="1.2")
    return encoded_elements(memoryview(item_of(description)))


def segment_description(segment: Segment, model: ModelIdentity) -> SegmentDescription:
    """The item of the Segment Sequence (PS3.3 C.8.20.2) for ``segment``."""
    return _description(segment.structure, model, segment.number, segment.tracking_uid)


def _description(structure: Structure, model: ModelIdentity, number: int, tracking_uid: str) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=plain(structure.name, 64),
        segmented_property_category=concept(structure.category),
        segmented_property_type=concept(structure.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(model),
        tracking_uid=tracking_uid,
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


def _source_images(source: PreparedSource, planes: tuple[SourcePlane, ...], rows: int, columns: int) -> list[Dataset]:
    """Headers as highdicom wants to see them: one per plane, or one whose frame k + 1 is plane k."""
    common = _common_header(source, rows, columns)
    if not source.is_multi_frame:
        common.update(_orientation(source))
        common.update(_measures(source))
        images = []
        for plane in planes:
            image = _source_image(common, plane)
            image.ImagePositionPatient = _decimals(plane.position_lps_mm)
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
        position.ImagePositionPatient = _decimals(plane.position_lps_mm)
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


def _finish_geometry(
    dataset: Dataset, provenance: Provenance, planes: tuple[SourcePlane, ...], organization: str
) -> None:
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
            item.ReferencedFrameNumber = planes[int(item.ReferencedFrameNumber) - 1].frame_number
    for item in [*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization
