"""Reconstruct: a series becomes one regular volume in Hounsfield units, or is refused with the numbers.

What a refusal means and in which order the checks stand:

1. Localizers are set aside. ``select``: is the rest CT, greyscale, referable, of one patient, study and Frame of
   Reference?
2. ``planes``: does every frame say where it lies and how its values become HU?
3. limits, then ``geometry``: do the planes form one regular grid? ``acquisitions``: are they of one acquisition?
4. ``pixels``: is the pixel data of every instance whole and of the stated size? Only now something is allocated.
5. ``volume``: decode and rescale; what is padding is known from here on. ``scale``: can these be Hounsfield units?
6. ``tilt``: shear the planes of a tilted gantry upright.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid, StoreUnavailable
from dicom_node.reconstruct.acquisitions import notes_on_acquisitions
from dicom_node.reconstruct.geometry import RegularGrid, regular_grid
from dicom_node.reconstruct.pixels import find_pixel_data
from dicom_node.reconstruct.planes import Plane, planes_of
from dicom_node.reconstruct.scale import implausible_rescale
from dicom_node.reconstruct.select import (
    is_multi_frame,
    refuse_ineligible,
    refuse_several_frames_of_reference,
    refuse_several_patients,
    refuse_without_frame_of_reference,
)
from dicom_node.reconstruct.tilt import back_on_source, upright
from dicom_node.reconstruct.volume import hounsfield_voxels
from dicom_node.standard.attributes import text, texts
from dicom_node.standard.localizers import without_localizers
from dicom_node.types import Reconstruction
from inference.padding import find_padding
from inference.types import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.reconstruct.volume import Allocate
    from dicom_node.types import Series

__all__ = ["ReconstructionLimits", "labels_on_source", "reconstruct"]


@dataclass(frozen=True, slots=True)
class ReconstructionLimits:
    """What a series may ask of this machine, and the least that makes a volume.

    Three planes are the least in which a missing plane shows: two are regular whatever lies between them.
    """

    maximum_voxels: int = 2**31
    maximum_planes: int = 3000
    minimum_planes: int = 3

    def __post_init__(self) -> None:
        if self.minimum_planes < 2:  # noqa: PLR2004 - one plane has no spacing
            raise ValueError(f"minimum_planes is {self.minimum_planes}, expected at least 2")


def reconstruct(
    series: Series, limits: ReconstructionLimits | None = None, *, allocate: Allocate = np.empty
) -> Reconstruction:
    """Build the volume of ``series``: planes ordered along their normal, exact HU, float64 affine in LPS mm.

    ``allocate(shape, dtype)`` gives the memory of the voxels.

    Raises:
        NotEligible: not a greyscale CT series that can be referred to, too few or too many planes, stated not HU.
        IdentityConflict: two patients, studies or Frames of Reference.
        GeometryRefused: the planes form no regular grid.
        PixelDataInvalid: pixel data truncated, contradicting the header, lossy or not decodable; rescale without sense;
            values that can't be Hounsfield units.
        StoreUnavailable: a file is missing or the disk fails.
    """
    whole, (series, set_aside) = series, _set_aside(series)
    refuse_ineligible(series)
    refuse_several_patients(whole)
    refuse_several_frames_of_reference(series)
    planes = planes_of(series)
    _refuse_unbounded(planes, limits or ReconstructionLimits())
    grid = _grid(series, planes)
    refuse_without_frame_of_reference(series)
    acquisitions = notes_on_acquisitions(series, planes, grid.order)
    frames_of_instance = [0] * len(series.instances)
    for plane in planes:
        frames_of_instance[plane.instance] += 1
    try:
        sources = [
            find_pixel_data(instance, frames)
            for instance, frames in zip(series.instances, frames_of_instance, strict=True)
        ]
        decoded = hounsfield_voxels(planes, grid.order, sources, allocate)
    except OSError as error:
        raise StoreUnavailable(f"a stored file cannot be read: {error.strerror}") from error
    padding = find_padding(decoded.voxels_zyx, decoded.lowest_padding_hu, decoded.highest_padding_hu)
    source = Volume(decoded.voxels_zyx, grid.geometry, padding)
    notes = [
        *_notes(series, grid),
        *filter(None, [decoded.note, _note_on_scale(series, [planes[k] for k in grid.order], source)]),
    ]
    tilted = grid.shear_xy_pixels_per_plane != (0.0, 0.0)
    return Reconstruction(
        volume=upright(source, grid.shear_xy_pixels_per_plane, allocate) if tilted else source,
        source=source,
        frames=tuple(planes[index].frame for index in grid.order),
        headers=tuple(
            series.instances[instance].header
            for instance in dict.fromkeys(planes[index].instance for index in grid.order)
        ),
        shear_xy_pixels_per_plane=grid.shear_xy_pixels_per_plane,
        notes=(*set_aside, *notes, *acquisitions),
    )


def labels_on_source(reconstruction: Reconstruction, labels_zyx: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels given on ``reconstruction.volume``, on the source frames: plane k of the result is ``frames[k]``.

    Raises:
        ValueError: ``labels_zyx`` has not the shape of the volume.
    """
    expected = reconstruction.volume.geometry.shape_zyx
    if labels_zyx.shape != expected:
        raise ValueError(f"labels of shape {labels_zyx.shape} are not on the volume's grid {expected}")
    if reconstruction.volume is reconstruction.source:
        return labels_zyx
    return back_on_source(
        labels_zyx, reconstruction.source.geometry.shape_zyx, reconstruction.shear_xy_pixels_per_plane
    )


def _grid(series: Series, planes: tuple[Plane, ...]) -> RegularGrid:
    try:
        return regular_grid(planes)
    except GeometryRefused as error:
        objects = len(series.instances)
        if objects > 1 and is_multi_frame(series.instances[0].header):
            raise GeometryRefused(f"{objects} multi-frame objects are not one volume: {error}") from error
        raise


def _set_aside(series: Series) -> tuple[Series, tuple[str, ...]]:
    """The images that may form a volume, and a note on the others."""
    images = without_localizers(series)
    count = len(series.instances) - len(images.instances)
    return images, (f"localizers in the series: {count}, set aside",) if count else ()


def _refuse_unbounded(planes: tuple[Plane, ...], limits: ReconstructionLimits) -> None:
    count = len(planes)
    if count < limits.minimum_planes:
        raise NotEligible(f"planes: {count}, a volume needs at least {limits.minimum_planes}")
    if count > limits.maximum_planes:
        raise NotEligible(f"planes: {count}, the limit is {limits.maximum_planes}")
    voxels = sum(plane.rows * plane.columns for plane in planes)
    if voxels > limits.maximum_voxels:
        raise NotEligible(f"voxels: {voxels} are stated, the limit is {limits.maximum_voxels}")


def _note_on_scale(series: Series, planes: Sequence[Plane], source: Volume) -> str | None:
    """Refuse what can't be Hounsfield units, or say so where a rule wants them taken for it.

    ``planes``: in the order of the volume.
    """
    unspecified = any(plane.rescale_type == "US" for plane in planes)
    rescales = [(plane.rescale_slope, plane.rescale_intercept) for plane in planes]
    implausible = implausible_rescale(source, rescales, needs_air=unspecified)
    if implausible is None:
        return (
            "Rescale Type is US (unspecified); taken as HU because the air around the patient has the HU of air"
            if unspecified
            else None
        )
    if series.unchecked_hu:
        return f"taken as Hounsfield units because a rule or option says so, though {implausible}"
    if unspecified:
        raise NotEligible(f"Rescale Type is US (unspecified), and the values are not Hounsfield units: {implausible}")
    raise PixelDataInvalid(f"the values are not Hounsfield units: {implausible}")


def _notes(series: Series, grid: RegularGrid) -> tuple[str, ...]:
    """What was accepted and yet a reader of the result should know."""
    headers = [instance.header for instance in series.instances]
    notes = [*series.notes]
    remarks = Counter(instance.remark for instance in series.instances if instance.remark)
    notes.extend(f"{remark} (files: {count})" for remark, count in remarks.items())
    if grid.shear_xy_pixels_per_plane != (0.0, 0.0):
        notes.append(f"gantry tilt of {grid.tilt_degrees:.1f} degrees, corrected by shearing before segmentation")
    if any(text(header, "LossyImageCompression") == "01" for header in headers):
        notes.append("the source images have undergone lossy compression")
    derived = {image_type for header in headers if (image_type := texts(header, "ImageType"))[:1] == ("DERIVED",)}
    if derived:
        notes.append(f"the source images are derived (Image Type {', '.join(sorted(map(' '.join, derived)))})")
    if any(not is_multi_frame(header) and not text(header, "Modality") for header in headers):
        notes.append("Modality is missing; treated as CT because of the SOP Class")
    return tuple(notes)
