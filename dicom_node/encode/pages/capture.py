"""Secondary captures for viewers that show nothing else: the report pages, and CT images with an overlay burned in.

They are single-frame Secondary Capture Image Storage (PS3.3 A.8.1), 8-bit RGB, Explicit VR Little Endian, the colour
image that every PACS accepts and shows; many refuse multi-frame secondary captures. There are three series: the pages,
every n-th source image from head to feet, and coronal images from front to back.

Images with an overlay state their position (Frame of Reference, Image Position and Orientation), so that a viewer
scrolls them with the CT. The modules of these attributes are now part of the IOD (PS3.3 table A.8-1); dciodvfy of 2022
does not know this and warns.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from highdicom.sc import SCImage
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.encode import tags
from dicom_node.encode.decimals import decimal, decimals
from dicom_node.encode.pages.overlay import Burner, Legend, Palette, enlarged, enlargement, isotropic, marks, toward
from dicom_node.encode.pages.page import Page, pages_as_images
from dicom_node.encode.pages.planes import Upright, upright
from dicom_node.encode.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    Provenance,
    intended_use,
    model_name,
    model_version,
    plain,
    series_number,
    software_versions,
    stamp,
)
from dicom_node.standard.part10 import (
    PREAMBLE,
    PREAMBLE_LENGTH,
    element,
    element_header,
    encoded_elements,
    file_of,
    item_of,
    sequence,
    text_element,
)
from dicom_node.types import ResultKind, whole_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.planes import SourcePlane
    from dicom_node.types import Reconstruction

_PAGES, _AXIAL, _CORONAL = 0, 1, 2
"""The series, in the order of their numbers."""
_LABELS = 256
_SOURCE_IMAGES, _CORONAL_IMAGES = 40, 24
"""The most images in each overlay series: each is 0.8 MB and a delivery of its own."""
_FILE_META_GROUP, _GROUP_LENGTH_SIZE = 0x0002, 12
_FIRST_TO_LAST = {0: 1, 1: 1, 2: -1}
"""Images are viewed from right to left, from front to back, and from head to feet (LPS axes)."""


def capture_files(page: Page, reconstruction: Reconstruction, labels_zyx: NDArray[np.uint8]) -> list[memoryview]:
    """The report pages and the overlay images as Part 10 files. ``labels_zyx[k]`` lies on ``reconstruction.frames[k]``.

    Structures of the label map that are not among the segments of ``page`` are not painted. If it has none, there are
    no overlay images, and the page says so.
    """
    segments, provenance = page.segments, page.provenance
    files = list(_pages(page))
    if segments:
        palette = Palette(segments)
        files.extend(_source_images(reconstruction, labels_zyx, segments, palette, provenance))
        files.extend(_coronal_images(page.upright, segments, palette, provenance))
    return files


def on_patient_axes(reconstruction: Reconstruction, labels_zyx: NDArray[np.uint8]) -> Upright:
    """Image and labels along the patient's axes; on the upright grid if the gantry is tilted."""
    volume, source = reconstruction.volume, reconstruction.source
    if volume is source:
        return upright(volume, labels_zyx)
    index_of = np.linalg.inv(volume.geometry.affine_lps) @ source.geometry.affine_lps
    moved = np.zeros(volume.geometry.shape_zyx, dtype=np.uint8)
    for k, plane in enumerate(labels_zyx):
        x, y, _ = map(whole_pixels, (index_of @ (0, 0, k, 1))[:3])
        place = moved[k, max(y, 0) :, max(x, 0) :]
        part = plane[max(-y, 0) :, max(-x, 0) :][: place.shape[0], : place.shape[1]]
        place[: part.shape[0], : part.shape[1]] = part
    return upright(volume, moved)


def _pages(page: Page) -> Iterator[memoryview]:
    provenance = page.provenance
    template = _template(provenance, _PAGES, "page", "report")
    # PS3.3 C.7.6.1.1.4: the page names patient and study
    template.BurnedInAnnotation = "YES"
    template.PatientOrientation = None
    images = pages_as_images(page)
    series = _Series(template, images[0].shape)
    for number, image in enumerate(images, start=1):
        yield series.file(provenance.identity.uid(f"{ResultKind.CAPTURE} page instance {number}"), image)


def _source_images(
    reconstruction: Reconstruction,
    labels_zyx: NDArray[np.uint8],
    segments: tuple[Segment, ...],
    palette: Palette,
    provenance: Provenance,
) -> Iterator[memoryview]:
    """Source images with the structures painted over them."""
    source = provenance.source
    right, down = np.array(source.orientation[:3]), np.array(source.orientation[3:])
    template = _overlay_template(provenance, _AXIAL, "source", (right, down))
    template.SliceThickness = decimal(source.slice_thickness_mm)
    template.DerivationDescription = "CT image with segmentation overlay"
    paint = _Painter((source.rows, source.columns), (right, down), segments, palette, provenance)
    template.PixelSpacing = decimals((source.row_spacing_mm / paint.factor, source.column_spacing_mm / paint.factor))
    corner = paint.corner_mm(right * source.column_spacing_mm, down * source.row_spacing_mm)
    planes = _chosen(sorted(frozenset[int]().union(*(segment.planes for segment in segments))), _SOURCE_IMAGES)
    normal = np.cross(right, down)
    axis = int(np.abs(normal).argmax())
    if normal[axis] * _FIRST_TO_LAST[axis] < 0:
        planes.reverse()
    series = _Series(template, paint.shape)
    for k in planes:
        plane = source.planes[k]
        image = paint(reconstruction.source.voxels_zyx[k], labels_zyx[k])
        changes = {
            tags.IMAGE_POSITION_PATIENT: _position(np.array(plane.position_lps_mm) + corner),
            tags.SOURCE_IMAGE: sequence(tags.SOURCE_IMAGE, [item_of(_source_image(plane))]),
        }
        yield series.file(provenance.identity.uid(f"{ResultKind.CAPTURE} source instance {k}"), image, changes)


def _coronal_images(
    patient: Upright, segments: tuple[Segment, ...], palette: Palette, provenance: Provenance
) -> Iterator[memoryview]:
    dz, _, dx = patient.spacing_zyx_mm
    right, down = patient.affine_lps[:3, 0] / dx, -patient.affine_lps[:3, 2] / dz
    down = down - (down @ right) * right  # a grid is orthogonal within a tolerance, Image Orientation exactly
    down /= np.linalg.norm(down)
    is_shown = np.zeros(_LABELS, dtype=np.bool_)
    is_shown[[segment.label for segment in segments]] = True
    # on every second voxel: thinner structures need no image of their own
    sampled = is_shown[patient.labels_zyx[::2, :, ::2]]
    shown = np.flatnonzero(sampled.any(axis=(0, 2))).tolist()
    like, _, (row_mm, column_mm) = isotropic(patient.hu_zyx[::-1, 0], patient.labels_zyx[::-1, 0], dz, dx)
    paint = _Painter(like.shape, (right, down), segments, palette, provenance)
    template = _overlay_template(provenance, _CORONAL, "coronal", (right, down))
    template.PixelSpacing = decimals((row_mm / paint.factor, column_mm / paint.factor))
    template.DerivationDescription = "Coronal reformation with segmentation overlay"
    # the corner of the image stays where it is when its pixels change their size
    corner = (row_mm - dz) / 2 * down + (column_mm - dx) / 2 * right
    corner += paint.corner_mm(right * column_mm, down * row_mm)
    series = _Series(template, paint.shape)
    for j in _chosen(shown, _CORONAL_IMAGES):
        hu, labels_of_plane, _ = isotropic(patient.hu_zyx[::-1, j], patient.labels_zyx[::-1, j], dz, dx)
        first = patient.affine_lps @ (0, j, len(patient.hu_zyx) - 1, 1)
        yield series.file(
            provenance.identity.uid(f"{ResultKind.CAPTURE} coronal instance {j}"),
            paint(hu, labels_of_plane),
            {tags.IMAGE_POSITION_PATIENT: _position(first[:3] + corner)},
        )


def _chosen(planes: list[int], limit: int) -> list[int]:
    """At most ``limit`` of ``planes``, evenly spaced."""
    every = -(-len(planes) // limit)
    return planes[(len(planes) - 1) % every // 2 :: every] if planes else []


class _Painter:
    """Makes the images of one overlay series, all of ``shape``.

    Structures are painted over the CT, directions and intended use are burned in, and the legend is beside the image.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        directions: tuple[NDArray[np.float64], NDArray[np.float64]],
        segments: Sequence[Segment],
        palette: Palette,
        provenance: Provenance,
    ) -> None:
        right, down = directions
        rows, columns = shape[:2]
        self.factor = enlargement(shape)
        size = rows * self.factor, columns * self.factor
        model = provenance.model
        left, right_, top, bottom = (toward(way)[:2] for way in (-right, right, -down, down))
        words = (intended_use(model), f"{model_name(model, 40)} {model_version(model)[:20]}")
        self._palette, self._legend = palette, Legend(segments, size[0])
        self._burn = Burner(marks(size, (left, right_, top, bottom), words))
        self.shape = size[0], size[1] + self._legend.width

    def corner_mm(self, right_mm: NDArray[np.float64], down_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The offset (LPS) from the centre of the first pixel before enlargement to that of the first one after it."""
        return (1 / self.factor - 1) / 2 * (right_mm + down_mm)

    def __call__(self, hu: NDArray[np.int16] | NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = self._burn(enlarged(self._palette.paint(hu, labels), self.factor))
        return self._legend.beside(image, labels)


# ---- the object


def _template(provenance: Provenance, index: int, name: str, what: str) -> Dataset:
    """The attributes that the images of a series share."""
    source, identity = provenance.source, provenance.identity
    dataset = SCImage(
        pixel_array=np.zeros((1, 1, 3), dtype=np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=source.study_instance_uid,
        series_instance_uid=identity.uid(f"{ResultKind.CAPTURE} {name} series"),
        series_number=series_number(provenance, ResultKind.CAPTURE, index),
        sop_instance_uid=identity.uid(f"{ResultKind.CAPTURE} {name} instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    del dataset.PixelData
    stamp(dataset, provenance, what)
    dataset.ConversionType = "WSD"
    dataset.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    dataset.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    dataset.SecondaryCaptureDeviceSoftwareVersions = software_versions(provenance.model)
    # the time of day would give the same run different bytes
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = dataset.ContentDate, dataset.ContentTime
    dataset.ImageComments = plain(" ".join(provenance.statements), 10240)
    if source.body_part_examined:
        dataset.BodyPartExamined = source.body_part_examined
    if source.laterality is not None:
        dataset.Laterality = source.laterality
    dataset.update(source.lossy_compression)
    return dataset


def _overlay_template(
    provenance: Provenance,
    index: int,
    name: str,
    directions: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Dataset:
    dataset = _template(provenance, index, name, f"{name} overlay")
    dataset.BurnedInAnnotation = "NO"  # directions and intended use, nothing about the patient
    dataset.FrameOfReferenceUID = provenance.source.frame_of_reference_uid
    dataset.PositionReferenceIndicator = provenance.source.position_reference_indicator
    dataset.ImageOrientationPatient = decimals(np.concatenate(directions))
    dataset.PatientOrientation = [toward(direction) for direction in directions]
    return dataset


def _source_image(plane: SourcePlane) -> Dataset:
    item, purpose = Dataset(), Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code.value, "DCM", code.meaning
    item.ReferencedSOPClassUID = plane.sop_class_uid
    item.ReferencedSOPInstanceUID = plane.sop_instance_uid
    if plane.frame_number is not None:
        item.ReferencedFrameNumber = plane.frame_number
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


class _Series:
    """Images of one series: pydicom writes what they share once, the rest is written as bytes."""

    def __init__(self, template: Dataset, shape: tuple[int, ...]) -> None:
        template.Rows, template.Columns = shape[:2]
        self._elements = encoded_elements(memoryview(file_of(template))[PREAMBLE_LENGTH:])
        self._images = 0

    def file(
        self, sop_instance_uid: str, image: NDArray[np.uint8], changes: Mapping[int, bytes] | None = None
    ) -> memoryview:
        """The next image, with ``changes`` to the elements of the template."""
        self._images += 1
        parts = {
            **self._elements,
            tags.MEDIA_STORAGE_SOP_INSTANCE_UID: text_element(
                tags.MEDIA_STORAGE_SOP_INSTANCE_UID, b"UI", sop_instance_uid
            ),
            tags.SOP_INSTANCE_UID: text_element(tags.SOP_INSTANCE_UID, b"UI", sop_instance_uid),
            tags.INSTANCE_NUMBER: text_element(tags.INSTANCE_NUMBER, b"IS", str(self._images)),
            **(changes or {}),
        }
        meta = sum(len(part) for tag, part in parts.items() if tag >> 16 == _FILE_META_GROUP) - _GROUP_LENGTH_SIZE
        parts[tags.FILE_META_GROUP_LENGTH] = element(tags.FILE_META_GROUP_LENGTH, b"UL", struct.pack("<I", meta))
        pixels = np.ascontiguousarray(image)
        padding = bytes(pixels.size % 2)
        return memoryview(
            b"".join(
                (
                    PREAMBLE,
                    *(parts[tag] for tag in sorted(parts)),
                    element_header(tags.PIXEL_DATA, b"OB", pixels.size + len(padding)),
                    pixels.data.cast("B"),
                    padding,
                )
            )
        )


def _position(position_lps_mm: Sequence[float] | NDArray[np.float64]) -> bytes:
    return text_element(
        tags.IMAGE_POSITION_PATIENT, b"DS", "\\".join(str(value) for value in decimals(position_lps_mm))
    )
