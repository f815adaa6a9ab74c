"""The anatomy of the reference adult, read from the tables in ``data/``.

All lengths are mm in the body frame (:mod:`inference.phantom.shapes`). A paired structure has one row, for the left
side: ``lateral_mm`` and the turns about the long and the sagittal axis change sign on the right, ``x_mm`` does not. If
``spine_z_mm`` is given, ``y_mm`` is relative to the vertebral bodies at that height.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tissue:
    """A row of ``tissues.csv``: attenuation in each contrast phase, and the SD of its low-frequency inhomogeneity.

    Typical values for adult abdominal and chest CT at 120 kV; they need only be plausible and ordered as in life (fat
    below water below muscle below enhanced organ below bone).
    """

    tissue: str
    native_hu: float
    arterial_hu: float
    portal_venous_hu: float
    texture_sd_hu: float


@dataclass(frozen=True, slots=True)
class Vertebra:
    """A row of ``vertebrae.csv``: heights of the end plates, semi-axes of the body, and the processes behind it."""

    name: str
    bottom_mm: float
    top_mm: float
    half_width_mm: float
    half_depth_mm: float
    arch_behind_mm: float
    arch_radius_mm: float
    canal_half_width_mm: float
    spinous_length_mm: float
    spinous_rise_mm: float
    transverse_reach_mm: float
    transverse_behind_mm: float


@dataclass(frozen=True, slots=True)
class Rib:
    """A row of ``ribs.csv``: how far the rib runs around the cage (0 spine, 180 sternum), and how far it falls."""

    number: float
    first_deg: float
    end_deg: float
    drop_mm: float
    broad_radius_mm: float
    thin_radius_mm: float


@dataclass(frozen=True, slots=True)
class FieldExtent:
    """A row of ``fields_of_view.csv``: heights above the femoral heads, and half the image width."""

    field_of_view: str
    bottom_mm: float
    top_mm: float
    half_width_mm: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A row of ``ellipsoids.csv``, with the standard deviations between patients."""

    ellipsoid: str
    x_mm: float
    lateral_mm: float
    y_mm: float
    z_mm: float
    radius_1_mm: float
    radius_2_mm: float
    radius_3_mm: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    shift_sd_mm: float
    size_sd: float
    turn_sd_deg: float

    def centre(self, sign: float) -> Points:
        """(x, y, z) on the left (1) or the right (-1)."""
        return np.array([self.x_mm + sign * self.lateral_mm, self.y_mm, self.z_mm])

    @property
    def radii(self) -> Points:
        """Along the ellipsoid's own three axes."""
        return np.array([self.radius_1_mm, self.radius_2_mm, self.radius_3_mm])

    def turn_deg(self, sign: float) -> tuple[float, float, float]:
        """Yaw, pitch and roll on the left (1) or the right (-1)."""
        mirrored = sign if self.lateral_mm else 1.0
        return mirrored * self.yaw_deg, self.pitch_deg, mirrored * self.roll_deg


@dataclass(frozen=True, slots=True)
class _CoursePoint:
    course: str
    x_mm: float
    lateral_mm: float
    y_mm: float
    z_mm: float
    spine_z_mm: float | None
    broad_radius_mm: float
    thin_radius_mm: float

    def place(self, sign: float) -> tuple[float, float, float]:
        y = self.y_mm if self.spine_z_mm is None else spine_at(self.spine_z_mm) + self.y_mm
        return self.x_mm + sign * self.lateral_mm, y, self.z_mm


@dataclass(frozen=True, slots=True)
class _Section:
    trunk: str
    z_mm: float
    centre_x_mm: float
    centre_y_mm: float
    half_width_mm: float
    half_depth_mm: float


@dataclass(frozen=True, slots=True)
class _ProfilePoint:
    profile: str
    z_mm: float
    value_mm: float


_Row = TypeVar("_Row", Tissue, Vertebra, Rib, FieldExtent, Shape, _CoursePoint, _Section, _ProfilePoint)


@cache
def tissues() -> dict[str, Tissue]:
    """Every tissue by name."""
    return {row.tissue: row for row in _table("tissues.csv", Tissue)}


@cache
def vertebrae() -> dict[str, Vertebra]:
    """Every vertebra except the atlas by name, from the bottom up."""
    return {row.name: row for row in _table("vertebrae.csv", Vertebra)}


@cache
def ribs() -> dict[int, Rib]:
    """Every rib by number."""
    return {int(row.number): row for row in _table("ribs.csv", Rib)}


@cache
def fields_of_view() -> dict[str, FieldExtent]:
    """The body regions that an examination may cover, by name."""
    return {row.field_of_view: row for row in _table("fields_of_view.csv", FieldExtent)}


@cache
def shapes() -> dict[str, Shape]:
    """Every ellipsoid by name."""
    return {row.ellipsoid: row for row in _table("ellipsoids.csv", Shape)}


@cache
def trunk(name: str) -> Points:
    """Rows (z, centre x, centre y, half width, half depth) of a trunk in ascending z."""
    rows = [row for row in _table("sections.csv", _Section) if row.trunk == name]
    return _read_only(
        [(row.z_mm, row.centre_x_mm, row.centre_y_mm, row.half_width_mm, row.half_depth_mm) for row in rows], name
    )


def course(name: str, sign: float = 1.0) -> Points:
    """The points (x, y, z) of a tube's axis, on the left (1) or the right (-1); a new array."""
    return np.array([row.place(sign) for row in _course(name)])


def radii(name: str) -> Points:
    """The pair of radii (broad, thin) at each point of :func:`course`; a new array."""
    return np.array([(row.broad_radius_mm, row.thin_radius_mm) for row in _course(name)])


def profile_at(name: str, z: float) -> float:
    """The value at reference height ``z`` of a length that changes along the body."""
    heights, values = _profile(name)
    return float(np.interp(z, heights, values))


def spine_at(z: float) -> float:
    """Y of the centre of the vertebral bodies at reference height ``z``: lordosis, kyphosis, lordosis."""
    return profile_at("spine_y", z)


@cache
def _course(name: str) -> tuple[_CoursePoint, ...]:
    rows = tuple(row for row in _table("courses.csv", _CoursePoint) if row.course == name)
    if not rows:
        raise KeyError(name)
    return rows


@cache
def _profile(name: str) -> Points:
    rows = [row for row in _table("profiles.csv", _ProfilePoint) if row.profile == name]
    return _read_only([(row.z_mm, row.value_mm) for row in rows], name).T


def _read_only(rows: Sequence[tuple[float, ...]], name: str) -> Points:
    if not rows:
        raise KeyError(name)
    if [row[0] for row in rows] != sorted({row[0] for row in rows}):
        raise InvalidValueError(f"the heights of {name} do not ascend")
    array = np.array(rows)
    array.setflags(write=False)
    return array


@cache
def _table(file_name: str, kind: type[_Row]) -> tuple[_Row, ...]:
    with resources.files("inference.phantom").joinpath("data", file_name).open(encoding="utf-8") as file:
        return read_table(file, file_name, kind)


def read_table(lines: Iterable[str], file_name: str, kind: type[_Row]) -> tuple[_Row, ...]:
    """The rows of a table; its columns must be the fields of ``kind``.

    Raises:
        InvalidValueError: other columns, an entry that is not a finite number, or two equal rows.
    """
    columns = {field.name: str(field.type) for field in fields(kind)}
    make: Callable[..., _Row] = kind
    reader = csv.DictReader(lines, strict=True)
    if reader.fieldnames is None or list(reader.fieldnames) != list(columns):
        raise InvalidValueError(f"{file_name} has the columns {reader.fieldnames}, expected {list(columns)}")
    rows = []
    for number, row in enumerate(reader, start=2):
        if None in row:
            raise InvalidValueError(f"{file_name}:{number} has more than {len(columns)} entries")
        where = f"{file_name}:{number}: "
        rows.append(make(**{name: _value(row[name], wanted, where + name) for name, wanted in columns.items()}))
    if len(set(rows)) < len(rows):
        raise InvalidValueError(f"{file_name} has two equal rows")
    return tuple(rows)


def _value(text: str | None, kind: str, where: str) -> str | float | None:
    if kind == "str" and text:
        return text
    if not text and kind == "float | None":
        return None
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if kind == "str" or not math.isfinite(number):
        raise InvalidValueError(f"{where} is {text!r}, expected {'a name' if kind == 'str' else 'a number'}")
    return number
