"""Stored values to Hounsfield units, plane by plane into one array that is allocated once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.reconstruct.pixels import stored_frames
from inference.padding import HIGHEST_CT_HU
from inference.types import AIR_HU

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from dicom_node.reconstruct.pixels import PixelSource, StoredFrame
    from dicom_node.reconstruct.planes import Plane

    Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]

_INT16 = np.iinfo(np.int16)
_USUAL_HU = (-1100, 3071)
"""The 12-bit scale of CT, with some room for noise in air."""


@dataclass(frozen=True, slots=True, eq=False)
class HounsfieldVoxels:
    """HU of every plane, int16 where all are whole and fit, else float32, and what the images state as padding.

    ``lowest_padding_hu`` and ``highest_padding_hu`` have a value for each plane, NaN where none is known. ``note``
    tells of headers that the pixels contradict; empty where none does.
    """

    voxels_zyx: NDArray[np.int16] | NDArray[np.float32]
    lowest_padding_hu: NDArray[np.float64]
    highest_padding_hu: NDArray[np.float64]
    note: str = ""


@dataclass(slots=True)
class _SignConflict:
    """Frames whose codestream has another sign than Pixel Representation: values on the usual scale by either."""

    values: int = 0
    on_scale_by_header: int = 0
    on_scale_by_codestream: int = 0
    codestream_signed: bool = False

    @property
    def codestream_is_right(self) -> bool:
        return self.on_scale_by_codestream > self.on_scale_by_header

    def count(self, frame: StoredFrame, plane: Plane) -> None:
        """Take one frame into account, if it makes a difference which sign is right."""
        by_header, by_codestream = _rescaled(frame.values, plane), _rescaled(frame.values_as_codestream, plane)
        if frame.codestream_signed is None or np.array_equal(by_header, by_codestream):
            return
        self.values += by_header.size
        self.codestream_signed = frame.codestream_signed
        self.on_scale_by_header += _on_scale(by_header)
        self.on_scale_by_codestream += _on_scale(by_codestream)

    @property
    def note(self) -> str:
        """What was read, and why."""
        signs = ("unsigned", "signed")
        codestream, header = signs[self.codestream_signed], signs[not self.codestream_signed]
        taken, other = (codestream, header) if self.codestream_is_right else (header, codestream)
        shares = sorted((self.on_scale_by_codestream, self.on_scale_by_header), reverse=True)
        return (
            f"Pixel Representation says that pixels are {header}, the compressed frames say {codestream}; read as "
            f"{taken}, with which {shares[0] / self.values:.1%} of the values lie from {_USUAL_HU[0]} to "
            f"{_USUAL_HU[1]} HU ({shares[1] / self.values:.1%} if {other})"
        )


def hounsfield_voxels(
    planes: Sequence[Plane], order: Sequence[int], sources: Sequence[PixelSource], allocate: Allocate = np.empty
) -> HounsfieldVoxels:
    """HU of every plane, ``voxels_zyx[k]`` being ``planes[order[k]]``.

    Each plane is rescaled by its own slope and intercept. Padding keeps its rescaled value (a stored -2000 becomes
    -3024 HU): the voxels are what the images hold. One thread: the decoders hold the interpreter lock (two threads took
    as long as one, 11 ms per JPEG lossless and 25 ms per JPEG 2000 slice).

    Where JPEG 2000 frames have another sign than Pixel Representation, the reading that puts more values on the usual
    scale of CT is right, for the whole series: in doubt the header's.

    Raises:
        PixelDataInvalid: a frame cannot be decoded to what its header states.
    """
    conflict = _SignConflict()
    voxels = _decoded(planes, order, sources, conflict, allocate)
    if conflict.codestream_is_right:
        voxels = _decoded(planes, order, sources, None, allocate)
    common_padding = _common_padding(sources)
    stating = {_rescale(plane) for plane in planes if sources[plane.instance].description.padding is not None}
    padding_hu = np.full((len(order), 2), np.nan)
    for k, index in enumerate(order):
        plane = planes[index]
        description = sources[plane.instance].description
        states_none = description.padding is None
        if states_none:
            description = replace(description, padding=common_padding)
        padding = description.stored_padding(conflict.codestream_signed if conflict.codestream_is_right else None)
        if padding is None:
            continue
        lowest, highest = sorted(value * plane.rescale_slope + plane.rescale_intercept for value in padding)
        can_be_measured = highest >= AIR_HU and lowest <= HIGHEST_CT_HU
        if states_none and can_be_measured and _rescale(plane) not in stating:
            continue  # by another slope or intercept the stored value of air is that of water, say
        padding_hu[k] = lowest, highest
    return HounsfieldVoxels(voxels, padding_hu[:, 0], padding_hu[:, 1], conflict.note if conflict.values else "")


def _rescale(plane: Plane) -> tuple[float, float]:
    return plane.rescale_slope, plane.rescale_intercept


def _common_padding(sources: Sequence[PixelSource]) -> tuple[int, int] | None:
    """The padding of all images that state one: of a series whose writer states it in some, the others have it too.

    None where they differ, or none states any.
    """
    paddings = {source.description.padding for source in sources} - {None}
    bits = {tuple(value & 0xFFFF for value in padding) for padding in paddings if padding is not None}
    return paddings.pop() if len(bits) == 1 else None


def _decoded(
    planes: Sequence[Plane],
    order: Sequence[int],
    sources: Sequence[PixelSource],
    conflict: _SignConflict | None,
    allocate: Allocate,
) -> NDArray[np.int16] | NDArray[np.float32]:
    """Read by the header, counting in ``conflict``; without one, by the codestream."""
    place = {(planes[index].instance, planes[index].frame_index): k for k, index in enumerate(order)}
    rows, columns = planes[0].rows, planes[0].columns
    voxels: NDArray[np.int16] | NDArray[np.float32] = allocate((len(order), rows, columns), np.int16)
    plane_at = {(plane.instance, plane.frame_index): plane for plane in planes}
    for instance, source in enumerate(sources):
        for frame_index, stored in enumerate(stored_frames(source)):
            key = (instance, frame_index)
            if conflict is not None and stored.codestream_signed is not None:
                conflict.count(stored, plane_at[key])
            values = stored.values_as_codestream if conflict is None else stored.values
            target = voxels[place[key]]
            hu = _rescaled(values, plane_at[key], target if target.dtype == np.int16 else None)
            if hu is target:
                continue
            if voxels.dtype == np.int16 and not _fits_int16(hu):
                whole, voxels = voxels, allocate(voxels.shape, np.float32)
                voxels[...] = whole
            voxels[place[key]] = hu
    return voxels


def _on_scale(hu: NDArray[np.signedinteger] | NDArray[np.float64]) -> int:
    return int(np.count_nonzero((hu >= _USUAL_HU[0]) & (hu <= _USUAL_HU[1])))


def _rescaled(
    stored: NDArray[np.integer], plane: Plane, out: NDArray[np.int16] | None = None
) -> NDArray[np.signedinteger] | NDArray[np.float64]:
    """``slope x stored + intercept`` (PS3.3 C.11.1.1.2), in whole numbers where both are whole: int16 if all fit.

    int16 are written to ``out`` where it is given, and ``out`` is returned.
    """
    slope, intercept = plane.rescale_slope, plane.rescale_intercept
    if slope == 1 and intercept.is_integer():
        lowest, highest = int(stored.min()) + intercept, int(stored.max()) + intercept
        if _INT16.min <= min(lowest, intercept) and max(highest, intercept) <= _INT16.max:
            # both modulo 2^16, so the sum is right
            return np.add(stored.astype(np.int16, copy=False), np.int16(intercept), out=out)
        # at most 16 stored bits and an intercept of at most 2^24 stay inside int32
        return stored.astype(np.int32) + np.int32(intercept)
    return stored.astype(np.float64) * slope + intercept


def _fits_int16(hu: NDArray[np.signedinteger] | NDArray[np.float64]) -> bool:
    if hu.dtype == np.int16:
        return True
    if hu.min() < _INT16.min or hu.max() > _INT16.max:
        return False
    return bool(np.issubdtype(hu.dtype, np.integer) or np.array_equal(hu, np.rint(hu)))
