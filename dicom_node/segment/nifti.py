"""NIfTI-1 as it stands in the file: the volume of a CT, and label maps that lie on its very grid.

Read and written here and not by SimpleITK, because a label map must overlay its CT in every program: SimpleITK takes
the qform where the sform says something else (nibabel, and with it TotalSegmentator, takes the sform), and what it
writes differs in the last bits of the affine. Here the geometry of a label map is the CT's, byte for byte.

Source: nifti1.h (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h). NIfTI's space is RAS (+x to the patient's
Right, +y Anterior), so the first two rows of an affine change their sign on the way to LPS.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from dicom_node.errors import GeometryRefused, NotEligible, PixelDataInvalid, StoreUnavailable
from inference.structures import catalogue
from inference.types import ORTHOGONALITY_TOLERANCE, Geometry, InvalidValueError, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_HEADER = np.dtype(
    [
        ("sizeof_hdr", "i4"),
        ("data_type", "S10"),
        ("db_name", "S18"),
        ("extents", "i4"),
        ("session_error", "i2"),
        ("regular", "S1"),
        ("dim_info", "u1"),
        ("dim", "i2", 8),
        ("intent_p", "f4", 3),
        ("intent_code", "i2"),
        ("datatype", "i2"),
        ("bitpix", "i2"),
        ("slice_start", "i2"),
        ("pixdim", "f4", 8),
        ("vox_offset", "f4"),
        ("scl_slope", "f4"),
        ("scl_inter", "f4"),
        ("slice_end", "i2"),
        ("slice_code", "u1"),
        ("xyzt_units", "u1"),
        ("cal_max", "f4"),
        ("cal_min", "f4"),
        ("slice_duration", "f4"),
        ("toffset", "f4"),
        ("glmax", "i4"),
        ("glmin", "i4"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "i2"),
        ("sform_code", "i2"),
        ("quatern", "f4", 3),
        ("qoffset", "f4", 3),
        ("srow", "f4", (3, 4)),
        ("intent_name", "S16"),
        ("magic", "S4"),
    ]
).newbyteorder("<")
_HEADER_BYTES, _NIFTI_2_HEADER_BYTES = 348, 540
_FIRST_VOXEL = 352
"""Of a file without extensions: the header and the four bytes that announce them."""
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""DT_* codes whose voxels are single real numbers."""
_UINT8, _MILLIMETRES, _SCANNER, _LABELS = 2, 2, 1, 1002
"""Codes: DT_UINT8, NIFTI_UNITS_MM, NIFTI_XFORM_SCANNER_ANAT, NIFTI_INTENT_LABEL."""
_SPATIAL_UNITS = {1: "metres", 3: "micrometres"}
_UNKNOWN_EXTENSION = 0
"""NIFTI_ECODE_IGNORE: TotalSegmentator looks for Caret's table of names under this code, and nibabel gives out the
content of that one; under NIFTI_ECODE_CARET (30), where it belongs, nibabel (5.4) raises NotImplementedError.
"""

_MAXIMUM_VOXELS = 2**31
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 1e-3, 1e3
_DEFLATE_RATIO = 1032
"""No gzip file holds more than that many bytes for each of its own."""
_CHUNK_BYTES = 1 << 20
_BYTE_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_GZIP_MAGIC, _GZIP_WINDOW = b"\x1f\x8b", 31
_FASTEST = 1
_INT16 = np.iinfo(np.int16)
_LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class FileGrid:
    """How a volume lies in its file: the header, and whether the file's planes run against those of the volume.

    A left-handed grid (LAS, as many programs write) becomes right-handed by taking the planes in reverse.
    """

    header: bytes
    reversed_planes: bool = False


def read_volume(path: Path) -> tuple[Volume, FileGrid]:
    """The CT at ``path`` (``.nii`` or ``.nii.gz``, told by its content), HU as int16 where all are whole and fit.

    The sform counts, the qform where there is none, as for nibabel; a file that states neither is refused, because
    nobody can tell left from right in it.

    Raises:
        NotEligible: not NIfTI-1, no single volume of real numbers, a label map, too large, or in other units than mm.
        GeometryRefused: no orientation, a sheared or singular grid.
        PixelDataInvalid: truncated or damaged.
        StoreUnavailable: the file can't be read.
    """
    with _translated(), path.open("rb") as file:
        stream = _inflated(file) if file.peek(2)[:2] == _GZIP_MAGIC else file
        header, order = _read_header(stream)
        shape_zyx = _shape_zyx(header)
        dtype = _stored_dtype(header, order)
        affine = _affine_lps(header)
        reversed_planes = bool(np.linalg.det(affine[:3, :3]) < 0)
        if reversed_planes:
            affine[:, 3] += (shape_zyx[0] - 1) * affine[:, 2]
            affine[:, 2] *= -1
        geometry = _geometry(shape_zyx, affine)
        _refuse_impossible_size(path, shape_zyx, dtype, compressed=stream is not file)
        _skip(stream, int(header["vox_offset"]) - _HEADER_BYTES)
        voxels = _hounsfield(stream, shape_zyx, dtype, _scaling(header))
        stream.read(1)  # a gzip stream compares its checksum when it is read to the end
    grid = FileGrid(header.astype(_HEADER).tobytes(), reversed_planes)
    return Volume(voxels[::-1] if reversed_planes else voxels, geometry), grid


def grid_of(geometry: Geometry) -> FileGrid:
    """A file grid for a volume that came from no NIfTI file; the sform holds a tilted gantry's shear, a qform can't."""
    header = np.zeros((), _HEADER)
    header["sizeof_hdr"], header["regular"], header["magic"] = _HEADER_BYTES, b"r", b"n+1"
    header["xyzt_units"] = _MILLIMETRES
    header["dim"] = (3, *geometry.shape_zyx[::-1], 1, 1, 1, 1)
    affine = _LPS_OF_RAS @ geometry.affine_lps
    header["pixdim"] = (1, *geometry.spacing_xyz_mm, 0, 0, 0, 0)
    header["sform_code"], header["srow"] = _SCANNER, affine[:3]
    if geometry.is_orthogonal:
        header["qform_code"], header["qoffset"] = _SCANNER, affine[:3, 3]
        header["quatern"] = _quaternion(affine[:3, :3] / np.array(geometry.spacing_xyz_mm))
    return FileGrid(header.tobytes())


def write_labels(
    path: Path, labels_zyx: NDArray[np.uint8], grid: FileGrid, names: Mapping[int, str], description: str
) -> None:
    """Write a label map (gzip) on ``grid``, with the label names in the header extension.

    Nothing of the source but its geometry goes into the file. The same arguments give the same bytes.

    Raises:
        OSError: it can't be written.
    """
    source = np.frombuffer(grid.header, _HEADER)[0]
    header = np.zeros((), _HEADER)
    for field in ("sizeof_hdr", "regular", "dim", "xyzt_units", "qform_code", "sform_code", "magic"):
        header[field] = source[field]
    for field in ("pixdim", "quatern", "qoffset", "srow"):
        header[field] = source[field]
    extension = _label_table(names)
    header["datatype"], header["bitpix"] = _UINT8, 8
    header["vox_offset"] = _FIRST_VOXEL + len(extension)
    header["scl_slope"], header["intent_code"] = 1, _LABELS
    header["descrip"] = description.encode("ascii", "replace")[:79]
    compressor = zlib.compressobj(_FASTEST, zlib.DEFLATED, _GZIP_WINDOW)
    with path.open("wb") as file:
        file.write(compressor.compress(header.tobytes() + bytes((1, 0, 0, 0)) + extension))
        for plane in labels_zyx[::-1] if grid.reversed_planes else labels_zyx:
            file.write(compressor.compress(plane.tobytes()))
        file.write(compressor.flush())


# ---- header


def _read_header(stream: BinaryIO) -> tuple[np.void, str]:
    """The header in little-endian fields, and the byte order of the voxels."""
    content = stream.read(_HEADER_BYTES)
    if len(content) < _HEADER_BYTES:
        raise PixelDataInvalid(f"{len(content)} bytes, a NIfTI-1 header has {_HEADER_BYTES}")
    for order in _BYTE_ORDERS:
        (size,) = struct.unpack_from(f"{order}i", content)
        if size == _HEADER_BYTES:
            header = np.frombuffer(content, _HEADER.newbyteorder(order))[0]
            break
        if size == _NIFTI_2_HEADER_BYTES:
            raise NotEligible("NIfTI-2; expected NIfTI-1")
    else:
        raise NotEligible("not a NIfTI file: its first four bytes are not 348")
    if header["magic"] == b"ni1":
        raise NotEligible("header of an .hdr/.img pair; expected one .nii file")
    if header["magic"] != b"n+1":
        raise NotEligible("an Analyze header without NIfTI's mark: it tells no orientation")
    intent, units = int(header["intent_code"]), int(header["xyzt_units"]) & 7
    if intent == _LABELS:
        raise NotEligible(f"a label map (intent code {_LABELS}), not a CT")
    if units in _SPATIAL_UNITS:
        raise NotEligible(f"the grid is stated in {_SPATIAL_UNITS[units]}, expected millimetres")
    offset = float(header["vox_offset"])
    if not (_FIRST_VOXEL <= offset < _MAXIMUM_VOXELS and offset.is_integer()):
        raise PixelDataInvalid(f"the voxels are said to start at byte {offset:g}, expected {_FIRST_VOXEL} or later")
    return header, order


def _shape_zyx(header: np.void) -> tuple[int, int, int]:
    count, *sizes = (int(n) for n in header["dim"])
    if not 1 <= count <= len(sizes):
        raise PixelDataInvalid(f"{count} dimensions are stated, NIfTI has 1 to {len(sizes)}")
    sizes = sizes[:count]
    while len(sizes) > 3 and sizes[-1] == 1:  # noqa: PLR2004 - columns, rows, planes
        sizes.pop()
    listed = " x ".join(str(n) for n in sizes)
    if len(sizes) != 3:  # noqa: PLR2004
        raise NotEligible(f"an image of {len(sizes)} dimensions ({listed}), expected one volume of 3")
    if min(sizes) < 1 or np.prod(sizes, dtype=np.float64) > _MAXIMUM_VOXELS:
        raise NotEligible(f"a volume of {listed} voxels; at most {_MAXIMUM_VOXELS} are read")
    x, y, z = sizes
    return z, y, x


def _stored_dtype(header: np.void, order: str) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in _DTYPES:
        raise NotEligible(f"voxels of NIfTI data type {code}, expected integers or real numbers of at most 64 bits")
    return np.dtype(order + _DTYPES[code])


def _scaling(header: np.void) -> tuple[float, float] | None:
    """Slope and intercept; None where the stored values are meant (nifti1.h: slope 0)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return None
    if not np.isfinite(intercept):
        raise PixelDataInvalid(f"scl_slope {slope:g} with scl_inter {intercept:g} gives no numbers")
    return slope, intercept


def _affine_lps(header: np.void) -> NDArray[np.float64]:
    """Voxel index (x, y, z, 1) of the file to LPS mm, in float64 from the float32 of the file."""
    affine = np.eye(4)
    if header["sform_code"] > 0:
        affine[:3] = header["srow"]
    elif header["qform_code"] > 0:
        spacing = header["pixdim"][1:4].astype(np.float64)
        if header["pixdim"][0] < 0:
            spacing[2] *= -1
        affine[:3, :3] = _rotation(header["quatern"].astype(np.float64)) * spacing
        affine[:3, 3] = header["qoffset"]
    else:
        raise GeometryRefused("neither sform nor qform is set: the file does not say where left and right are")
    if not np.isfinite(affine).all():
        raise GeometryRefused("the affine is not finite")
    return _LPS_OF_RAS @ affine


def _rotation(bcd: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix of the unit quaternion (a, b, c, d) with a >= 0 left out in the file."""
    rest = 1.0 - float(bcd @ bcd)
    if not rest > -1e-5:  # noqa: PLR2004 - float32 rounding; also for NaN
        raise GeometryRefused("the qform holds no rotation")
    a = np.sqrt(max(rest, 0.0))
    b, c, d = bcd / max(1.0, float(np.sqrt(bcd @ bcd)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """b, c, d with a >= 0: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix, stable at half turns."""
    r = rotation
    symmetric = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    a, b, c, d = np.linalg.eigh(symmetric)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return sign * b, sign * c, sign * d


def _geometry(shape_zyx: tuple[int, int, int], affine_lps: NDArray[np.float64]) -> Geometry:
    try:
        geometry = Geometry(shape_zyx, affine_lps)
    except InvalidValueError as error:
        raise GeometryRefused(f"the grid is singular: {affine_lps[:3].tolist()}") from error
    spacing = geometry.spacing_xyz_mm
    if min(spacing) < _SMALLEST_SPACING_MM or max(spacing) > _LARGEST_SPACING_MM:
        listed = " x ".join(f"{length:g}" for length in spacing)
        raise GeometryRefused(f"voxels of {listed} mm: no CT has such")
    if not geometry.is_orthogonal:
        cosine = float(np.abs(geometry.direction.T @ geometry.direction - np.eye(3)).max())
        raise GeometryRefused(
            f"the grid is sheared: the cosine between two axes is {cosine:.4f}, at most {ORTHOGONALITY_TOLERANCE} "
            "is taken as a right angle"
        )
    return geometry


# ---- voxels


def _refuse_impossible_size(
    path: Path, shape_zyx: tuple[int, int, int], dtype: np.dtype[np.generic], *, compressed: bool
) -> None:
    """Before anything is allocated: could the file hold what its header states?"""
    there, stated = path.stat().st_size, int(np.prod(shape_zyx)) * dtype.itemsize
    if stated > there * (_DEFLATE_RATIO if compressed else 1):
        raise PixelDataInvalid(f"truncated: the header states {stated} bytes of voxels, the file has {there}")


def _hounsfield(
    stream: BinaryIO,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype[np.generic],
    scaling: tuple[float, float] | None,
) -> NDArray[np.int16] | NDArray[np.float32]:
    """Plane by plane into one array: int16 until a value does not fit, float32 from there on."""
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
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which segmenters refuse by name
            voxels[k] = hu
    return voxels


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
    """The content of a gzip file of any number of members; half the time of the standard library's 8 KiB reads."""

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


def _label_table(names: Mapping[int, str]) -> bytes:
    """One NIfTI extension of a multiple of 16 bytes: Caret's XML with a name and a colour for each label."""
    known = catalogue()
    rows = []
    for label, name in names.items():
        red, green, blue = (part / 255 for part in known[name].rgb) if name in known else (1.0, 1.0, 1.0)
        rows.append(
            f'<Label Key="{label}" Red="{red:.4f}" Green="{green:.4f}" Blue="{blue:.4f}" Alpha="1">'
            f"<![CDATA[{name}]]></Label>"
        )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension><VolumeInformation Index="0"><LabelTable>\n'
        + "\n".join(rows)
        + "\n</LabelTable><VolumeType><![CDATA[Label]]></VolumeType></VolumeInformation></CaretExtension>\n"
    ).encode()
    content = xml + b" " * (-(len(xml) + 8) % 16)
    return struct.pack("<ii", len(content) + 8, _UNKNOWN_EXTENSION) + content
