"""NIfTI-1: reads the volume of a CT and label maps, and writes label maps on exactly the same grid.

nibabel handles the header (``Nifti1Header``: fields, byte orders, quaternions, extensions), but not the voxels: nibabel
5.4.2 read 512 x 512 x 300 voxels from ``.nii.gz`` in 0.62 s and 300 MB, and of float64 in 3.6 s and 1.4 GB. Reading
plane by plane through one buffer takes 0.46 s and 155 MB, and 1.8 s and 161 MB (medians of three). nibabel also reads
extensions of any size that a header declares, which are not needed here, and repairs headers that are refused here.

SimpleITK is not an alternative, because a label map must overlay its CT in every program: if sform and qform disagree,
SimpleITK takes the qform (nibabel, and with it TotalSegmentator, takes the sform), and the affine that it writes
differs in the last bits. Here a label map has the geometry of the CT, bit for bit.

Source: nifti1.h (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h). NIfTI's space is RAS (+x to the patient's
Right, +y Anterior), so the first two rows of an affine change sign in the conversion to LPS.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO
from xml.parsers import expat

import numpy as np
from nibabel.nifti1 import Nifti1Extension, Nifti1Header, data_type_codes
from nibabel.quaternions import fillpositive, quat2mat

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid, StoreUnavailable
from inference.structures import catalogue
from inference.types import ORTHOGONALITY_TOLERANCE, Geometry, InvalidValueError, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_HEADER_BYTES, _NIFTI_2_HEADER_BYTES = 348, 540
_FIRST_VOXEL = 352
"""In a file without extensions: the header, and the four bytes that announce extensions."""
_MILLIMETRES, _SCANNER, _LABELS = 2, 1, 1002
"""Codes: NIFTI_UNITS_MM, NIFTI_XFORM_SCANNER_ANAT, NIFTI_INTENT_LABEL."""
_GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_LONGEST_NUMBER_BYTES = 8
_QUATERNION_ROUNDING = -1e-5
"""Lower limit of the square of the quaternion's first part, which the file omits: 0 up to rounding in float32."""
_SPATIAL_UNITS = {1: "metres", 3: "micrometres"}
_UNKNOWN_EXTENSION = 0
"""NIFTI_ECODE_IGNORE: TotalSegmentator looks for Caret's table of names under this code, whose content nibabel
returns; for NIFTI_ECODE_CARET (30), where it belongs, nibabel (5.4) raises NotImplementedError.
"""

_LONGEST_EXTENSIONS = 1 << 20
"""Bytes; 255 names with colours take 25 kB."""
_CARET = b"<CaretExtension"
_LABEL = re.compile(r"-?[0-9]{1,9}")

_MAXIMUM_VOXELS = 2**31
_HIGHEST_LABEL = 255
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 1e-3, 1e3
_DEFLATE_RATIO = 1032
"""Highest possible compression ratio of gzip."""
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC, _GZIP_WINDOW = b"\x1f\x8b", 31
_FASTEST = 1
_INT16 = np.iinfo(np.int16)
_LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class FileGrid:
    """How a volume is stored in its file: the header, and whether the planes are in reverse order.

    A left-handed grid (LAS, as many programs write) becomes right-handed if the planes are reversed.
    """

    header: Nifti1Header
    reversed_planes: bool = False


def read_volume(path: Path) -> tuple[Volume, FileGrid]:
    """Read the CT at ``path`` (``.nii`` or ``.nii.gz``, by content), HU as int16 if all are whole numbers that fit.

    Uses the sform, or the qform if there is none, as nibabel does. A file with neither is refused, because left and
    right can't be told apart.

    Raises:
        NotEligible: not NIfTI-1, not a single volume of real numbers, a label map, too large, or not in mm.
        GeometryRefused: the grid has no orientation, or is sheared or singular.
        PixelDataInvalid: truncated or damaged.
        StoreUnavailable: the file can't be read.
    """
    with _translated(), path.open("rb") as file:
        stream = _inflated(file) if file.peek(2)[:2] == _GZIP_MAGIC else file
        header = _read_header(stream)
        if int(header["intent_code"]) == _LABELS:
            raise NotEligible(f"a label map (intent code {_LABELS}), not a CT")
        shape_zyx = _shape_zyx(header)
        dtype = _stored_dtype(header)
        affine, reversed_planes = _right_handed(_affine_lps(header), shape_zyx)
        geometry = _geometry(shape_zyx, affine)
        _refuse_sheared(geometry)
        _refuse_impossible_size(path, shape_zyx, dtype, compressed=stream is not file)
        _skip(stream, int(header["vox_offset"]) - _HEADER_BYTES)
        voxels = _hounsfield(stream, shape_zyx, dtype, _scaling(header))
        stream.read(1)  # a gzip stream verifies its checksum when read to the end
    return Volume(voxels[::-1] if reversed_planes else voxels, geometry), FileGrid(header, reversed_planes)


@dataclass(frozen=True, slots=True, eq=False)
class OpenLabels:
    """An open label map: its grid, and the names in its header extension (none if it has none).

    ``planes`` yields the index of each plane on ``geometry`` with its labels, uint8 [row, column], in the order of the
    file. The array is reused for the next plane. It raises as :func:`open_labels` does.
    """

    geometry: Geometry
    grid: FileGrid
    names_by_label: Mapping[int, str]
    planes: Iterator[tuple[int, NDArray[np.uint8]]] = field(repr=False)


@contextmanager
def open_labels(path: Path) -> Iterator[OpenLabels]:
    """Open the label map or mask at ``path`` (``.nii`` or ``.nii.gz``, by content) and read it plane by plane.

    The grid is read as by :func:`read_volume`, but may be sheared: labels of a tilted gantry lie on its frames.

    Raises:
        NotEligible: not NIfTI-1, not a single volume of real numbers, too large, or not in mm.
        GeometryRefused: the grid has no orientation, or is singular.
        PixelDataInvalid: truncated or damaged, or a value is not a whole number from 0 to 255.
        StoreUnavailable: the file can't be read.
    """
    with _translated(), path.open("rb") as file:
        stream = _inflated(file) if file.peek(2)[:2] == _GZIP_MAGIC else file
        header = _read_header(stream)
        shape_zyx, dtype = _shape_zyx(header), _stored_dtype(header)
        affine, reversed_planes = _right_handed(_affine_lps(header), shape_zyx)
        geometry = _geometry(shape_zyx, affine)
        _refuse_impossible_size(path, shape_zyx, dtype, compressed=stream is not file)
        names = _names_in_extensions(stream, int(header["vox_offset"]) - _HEADER_BYTES)
        planes = _label_planes(stream, shape_zyx, dtype, _scaling(header), reversed_planes=reversed_planes)
        yield OpenLabels(geometry, FileGrid(header, reversed_planes), names, planes)


def grid_of(geometry: Geometry) -> FileGrid:
    """A file grid for a volume not from NIfTI, with an sform, since a qform can't hold the shear of a tilted gantry."""
    header = Nifti1Header(endianness="<")
    header.set_data_shape(geometry.shape_zyx[::-1])
    header.set_xyzt_units("mm")
    affine = _LPS_OF_RAS @ geometry.affine_lps
    header["pixdim"][1:4] = geometry.spacing_xyz_mm
    header.set_sform(affine, _SCANNER)
    if geometry.is_orthogonal:
        header.set_qform(affine, _SCANNER)
    return FileGrid(header)


def write_labels(
    path: Path, labels_zyx: NDArray[np.uint8], grid: FileGrid, names: Mapping[int, str], description: str
) -> None:
    """Write a label map (gzip) on ``grid``, with the label names in the header extension.

    Only the geometry of the source is written to the file. The same arguments give the same bytes.

    Raises:
        OSError: the file can't be written.
    """
    header = _new_header(grid, np.dtype(np.uint8), description)
    header["intent_code"] = _LABELS
    header.extensions.append(Nifti1Extension(_UNKNOWN_EXTENSION, _label_table(names)))
    _write(path, header, labels_zyx, grid)


def write_volume(path: Path, voxels_zyx: NDArray[np.int16], grid: FileGrid, description: str) -> None:
    """Write whole HU (int16, gzip) on ``grid``; the same arguments give the same bytes.

    Raises:
        OSError: the file can't be written.
    """
    _write(path, _new_header(grid, np.dtype("<i2"), description), voxels_zyx, grid)


def _new_header(grid: FileGrid, dtype: np.dtype[np.generic], description: str) -> Nifti1Header:
    header = Nifti1Header(endianness="<")
    for name in _GEOMETRY:
        header[name] = grid.header[name]
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = description.encode("ascii", "replace")[:79]
    return header


def _write(path: Path, header: Nifti1Header, voxels_zyx: NDArray[np.generic], grid: FileGrid) -> None:
    dtype = header.get_data_dtype()
    # without name and time, so that the same voxels give the same bytes
    with path.open("wb") as file, gzip.GzipFile("", "wb", _FASTEST, file, mtime=0) as stream:
        header.write_to(stream)
        for plane in voxels_zyx[::-1] if grid.reversed_planes else voxels_zyx:
            stream.write(np.ascontiguousarray(plane, dtype).data)


# ---- header


def _read_header(stream: BinaryIO) -> Nifti1Header:
    """Read the header; its byte order is also that of the voxels."""
    content = stream.read(_HEADER_BYTES)
    if len(content) < _HEADER_BYTES:
        raise PixelDataInvalid(f"{len(content)} bytes, expected a NIfTI-1 header of {_HEADER_BYTES}")
    sizes = {order: struct.unpack_from(f"{order}i", content)[0] for order in ("<", ">")}
    if _NIFTI_2_HEADER_BYTES in sizes.values():
        raise NotEligible("a NIfTI-2 file, expected NIfTI-1")
    orders = [order for order, size in sizes.items() if size == _HEADER_BYTES]
    if not orders:
        raise NotEligible("not a NIfTI file: the first four bytes are not 348")
    # nibabel would guess the byte order from the number of dimensions, and its checks repair what we refuse
    header = Nifti1Header(content, orders[0], check=False)
    if header["magic"] == b"ni1":
        raise NotEligible("the header of an .hdr/.img pair, expected a single .nii file")
    if header["magic"] != b"n+1":
        raise NotEligible("an Analyze header, not NIfTI: it has no orientation")
    units = int(header["xyzt_units"]) & 7
    if units in _SPATIAL_UNITS:
        raise NotEligible(f"the grid is in {_SPATIAL_UNITS[units]}, expected millimetres")
    offset = float(header["vox_offset"])
    if not (_FIRST_VOXEL <= offset < _MAXIMUM_VOXELS and offset.is_integer()):
        raise PixelDataInvalid(f"the voxels start at byte {offset:g} by the header, expected {_FIRST_VOXEL} or later")
    return header


def _shape_zyx(header: Nifti1Header) -> tuple[int, int, int]:
    count, *sizes = (int(n) for n in header["dim"])
    if not 1 <= count <= len(sizes):
        raise PixelDataInvalid(f"the header states {count} dimensions, expected 1 to {len(sizes)}")
    sizes = sizes[:count]
    while len(sizes) > 3 and sizes[-1] == 1:  # noqa: PLR2004 - columns, rows, planes
        sizes.pop()
    listed = " x ".join(str(n) for n in sizes)
    if len(sizes) != 3:  # noqa: PLR2004
        raise NotEligible(f"an image with {len(sizes)} dimensions ({listed}), expected a single volume with 3")
    if min(sizes) < 1 or np.prod(sizes, dtype=np.float64) > _MAXIMUM_VOXELS:
        raise NotEligible(f"a volume of {listed} voxels, expected at most {_MAXIMUM_VOXELS}")
    x, y, z = sizes
    return z, y, x


def _stored_dtype(header: Nifti1Header) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    dtype: np.dtype[np.generic] | None = data_type_codes.dtype.get(code)
    if dtype is None or dtype.kind not in "iuf" or dtype.itemsize > _LONGEST_NUMBER_BYTES:
        raise NotEligible(f"voxels of NIfTI data type {code}, expected integers or real numbers of at most 64 bits")
    return dtype.newbyteorder(header.endianness)


def _scaling(header: Nifti1Header) -> tuple[float, float] | None:
    """Slope and intercept; None if the stored values are used unscaled (nifti1.h: slope 0)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return None
    if not np.isfinite(intercept):
        raise PixelDataInvalid(f"scl_inter is {intercept:g}, expected a finite number")
    return slope, intercept


def _affine_lps(header: Nifti1Header) -> NDArray[np.float64]:
    """From voxel index (x, y, z, 1) in the file to LPS mm, in float64 from the file's float32."""
    if header["sform_code"] > 0:
        affine = header.get_sform()
    elif header["qform_code"] > 0:
        affine = _qform(header)
    else:
        raise GeometryRefused("neither sform nor qform is set: left and right are unknown")
    if not np.isfinite(affine).all():
        raise GeometryRefused("the affine is not finite")
    affine_lps: NDArray[np.float64] = _LPS_OF_RAS @ affine
    return affine_lps


def _right_handed(affine_lps: NDArray[np.float64], shape_zyx: tuple[int, int, int]) -> tuple[NDArray[np.float64], bool]:
    """The affine of the same voxels with planes that ascend along row x column, and whether they had to be reversed."""
    if np.linalg.det(affine_lps[:3, :3]) >= 0:
        return affine_lps, False
    affine = affine_lps.copy()
    affine[:, 3] += (shape_zyx[0] - 1) * affine[:, 2]
    affine[:, 2] *= -1
    return affine, True


def _qform(header: Nifti1Header) -> NDArray[np.float64]:
    """Unlike nibabel's, accepts a ``pixdim[0]`` of 0, which nifti1.h defines as 1, and rounded quaternions."""
    affine = np.eye(4)
    spacing = header["pixdim"][1:4].astype(np.float64)
    if header["pixdim"][0] < 0:
        spacing[2] *= -1
    stored = np.array([header[f"quatern_{part}"] for part in "bcd"], dtype=np.float64)
    try:
        quaternion = fillpositive(stored, _QUATERNION_ROUNDING)
    except ValueError as error:
        raise GeometryRefused("the qform is not a rotation") from error
    affine[:3, :3] = quat2mat(quaternion) * spacing
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _geometry(shape_zyx: tuple[int, int, int], affine_lps: NDArray[np.float64]) -> Geometry:
    try:
        geometry = Geometry(shape_zyx, affine_lps)
    except InvalidValueError as error:
        raise GeometryRefused(f"the grid is singular: {affine_lps[:3].tolist()}") from error
    spacing = geometry.spacing_xyz_mm
    if min(spacing) < _SMALLEST_SPACING_MM or max(spacing) > _LARGEST_SPACING_MM:
        listed = " x ".join(f"{length:g}" for length in spacing)
        raise GeometryRefused(f"voxels of {listed} mm are not plausible for a CT")
    return geometry


def _refuse_sheared(geometry: Geometry) -> None:
    if not geometry.is_orthogonal:
        cosine = float(np.abs(geometry.direction.T @ geometry.direction - np.eye(3)).max())
        raise GeometryRefused(
            f"the grid is sheared: the cosine between two axes is {cosine:.4f}, expected at most "
            f"{ORTHOGONALITY_TOLERANCE}"
        )


# ---- voxels


def _refuse_impossible_size(
    path: Path, shape_zyx: tuple[int, int, int], dtype: np.dtype[np.generic], *, compressed: bool
) -> None:
    """Check, before anything is allocated, that the file could contain the voxels that its header states."""
    there, stated = path.stat().st_size, int(np.prod(shape_zyx)) * dtype.itemsize
    if stated > there * (_DEFLATE_RATIO if compressed else 1):
        raise PixelDataInvalid(f"truncated: the header states {stated} bytes of voxels, the file has {there}")


def _hounsfield(
    stream: BinaryIO,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype[np.generic],
    scaling: tuple[float, float] | None,
) -> NDArray[np.int16] | NDArray[np.float32]:
    """Read plane by plane into one array: int16 until a value does not fit, then float32."""
    voxels: NDArray[np.int16] | NDArray[np.float32] = np.empty(shape_zyx, np.int16)
    if scaling is None and dtype == np.dtype("<i2"):
        _fill(stream, voxels)
        return voxels
    stored = np.empty(shape_zyx[1:], dtype)
    for k in range(shape_zyx[0]):
        _fill(stream, stored)
        hu = stored.astype(np.float64)
        if scaling is not None:
            hu *= scaling[0]
            hu += scaling[1]
        if voxels.dtype == np.int16 and not _fits_int16(hu):
            voxels = voxels.astype(np.float32)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, which segmenters refuse by name
            voxels[k] = hu
    return voxels


def _label_planes(
    stream: BinaryIO,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype[np.generic],
    scaling: tuple[float, float] | None,
    *,
    reversed_planes: bool,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each plane's index and labels; the last one verifies a gzip stream's checksum."""
    stored = np.empty(shape_zyx[1:], dtype)
    for k in range(shape_zyx[0]):
        _fill(stream, stored)
        labels = stored.view(np.uint8) if dtype == np.uint8 and scaling is None else _labels(stored, scaling, k)
        if k == shape_zyx[0] - 1:
            stream.read(1)
        yield shape_zyx[0] - 1 - k if reversed_planes else k, labels


def _labels(stored: NDArray[np.generic], scaling: tuple[float, float] | None, plane: int) -> NDArray[np.uint8]:
    values = stored.astype(np.float64)
    if scaling is not None:
        values = values * scaling[0] + scaling[1]
    sound = (values >= 0) & (values <= _HIGHEST_LABEL) & (values == np.rint(values))
    if not sound.all():
        raise PixelDataInvalid(
            f"plane {plane} has the value {values[~sound][0]:g}; labels are whole numbers from 0 to {_HIGHEST_LABEL}"
        )
    return values.astype(np.uint8)


def _fits_int16(hu: NDArray[np.float64]) -> bool:
    return bool(hu.min() >= _INT16.min and hu.max() <= _INT16.max and np.array_equal(hu, np.rint(hu)))


def _fill(stream: BinaryIO, array: NDArray[np.generic]) -> None:
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise PixelDataInvalid(f"truncated: {len(rest)} bytes of voxels are missing")
        rest = rest[count:]


def _skip(stream: BinaryIO, count: int) -> None:
    while count:
        skipped = len(stream.read(min(count, _CHUNK_BYTES)))
        if not skipped:
            raise PixelDataInvalid("truncated before the first voxel")
        count -= skipped


def _inflated(file: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Inflated(file), _CHUNK_BYTES)


class _Inflated(io.RawIOBase):
    """The content of a gzip file with any number of members, in half the time of the standard library's 8 KiB reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._member.eof:
                self._pending = self._member.unused_data or self._file.read(_CHUNK_BYTES)
                if not self._pending.startswith(_GZIP_MAGIC):
                    return 0
                self._member = zlib.decompressobj(_GZIP_WINDOW)
            self._pending = self._pending or self._file.read(_CHUNK_BYTES)
            if not self._pending:
                raise EOFError("the gzip stream ends early")
            content = self._member.decompress(self._pending, min(len(buffer), _CHUNK_BYTES))
            self._pending = self._member.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                return len(content)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (zlib.error, EOFError) as error:
        raise PixelDataInvalid(f"the gzip stream is damaged or truncated ({error})") from error
    except OSError as error:
        raise StoreUnavailable(f"the file can't be read: {error.strerror}") from error


# ---- label names


def _names_in_extensions(stream: BinaryIO, count: int) -> dict[int, str]:
    """Read the ``count`` bytes up to the first voxel: the four that announce extensions, and Caret's table of names.

    Size and code (int32 each, in the byte order of the header) precede the content of an extension (nifti1.h). Longer
    extensions than a table of names needs are skipped.
    """
    if count > _LONGEST_EXTENSIONS:
        _skip(stream, count)
        return {}
    content = stream.read(count)
    if len(content) < count:
        raise PixelDataInvalid("truncated before the first voxel")
    start = content.find(_CARET)
    return _names_in_table(content[start:]) if start >= 0 else {}


def _names_in_table(content: bytes) -> dict[int, str]:
    """The names in Caret's XML, which ends where its root element ends."""
    end = content.find(b"</CaretExtension>")
    if end < 0:
        raise PixelDataInvalid("the table of label names in the header is cut")
    names: dict[int, str] = {}
    key: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        key[:] = [attributes.get("Key", "")] if tag == "Label" else []

    def text(content: str) -> None:
        if key and content.strip() and _LABEL.fullmatch(key[0].strip()):
            label = int(key[0])
            names[label] = names.get(label, "") + content

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: key.clear()
    try:
        parser.Parse(content[:end] + b"</CaretExtension>", True)
    except expat.ExpatError as error:
        raise PixelDataInvalid(f"the table of label names in the header is damaged ({error})") from error
    return {label: name.strip() for label, name in names.items() if 0 < label <= _HIGHEST_LABEL}


def _label_table(names: Mapping[int, str]) -> bytes:
    """Caret's XML with a name and a colour for each label."""
    known = catalogue()
    rows = []
    for label, name in names.items():
        red, green, blue = (part / 255 for part in known[name].rgb) if name in known else (1.0, 1.0, 1.0)
        rows.append(
            f'<Label Key="{label}" Red="{red:.4f}" Green="{green:.4f}" Blue="{blue:.4f}" Alpha="1">'
            f"<![CDATA[{name}]]></Label>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension><VolumeInformation Index="0"><LabelTable>\n'
        + "\n".join(rows)
        + "\n</LabelTable><VolumeType><![CDATA[Label]]></VolumeType></VolumeInformation></CaretExtension>\n"
    ).encode()
