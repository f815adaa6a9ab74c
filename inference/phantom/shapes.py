"""The analytic solids that make up a synthetic patient, each evaluated only inside its bounding box.

All lengths are millimetres in the *body frame* of the phantom: the axes of LPS (+x to the patient's Left, +y Posterior,
+z Superior), the origin midway between the two femoral heads, at the size of the reference adult. The patient's size
and position on the table are one affine map from a voxel index to that frame (:class:`Block`), so solids do not depend
on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Points = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Bounds = tuple[Points, Points]

FLAT_ENDS = 8
"""Exponent of the third axis that turns an ellipsoid into a disc with slightly rounded edges."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A box of voxels: ``[first, last)`` in x, y, z index order, and the affine from an index to the body frame."""

    first_xyz: tuple[int, int, int]
    last_xyz: tuple[int, int, int]
    body_from_index: Points
    """4 x 4: (x, y, z, 1) index to mm in the body frame."""

    @property
    def slices_zyx(self) -> tuple[slice, slice, slice]:
        """The box as an index into a ``[z, y, x]`` array."""
        (x0, y0, z0), (x1, y1, z1) = self.first_xyz, self.last_xyz
        return slice(z0, z1), slice(y0, y1), slice(x0, x1)

    def linear(self, normal: Points, offset: float) -> Floats:
        """``normal . position + offset`` at every voxel, broadcastable to the block's shape [z, y, x].

        Axes that do not contribute stay of length 1, which keeps most of the work two-dimensional when the grid is
        parallel to the body.
        """
        coefficients = normal @ self.body_from_index[:3, :3]
        value = np.full((1, 1, 1), normal @ self.body_from_index[:3, 3] + offset, dtype=np.float32)
        for axis, (coefficient, start, stop) in enumerate(
            zip(coefficients, self.first_xyz, self.last_xyz, strict=True)
        ):
            if abs(coefficient) * (stop - start) > 1e-6:
                shape = [1, 1, 1]
                shape[2 - axis] = stop - start
                value = value + (coefficient * np.arange(start, stop)).astype(np.float32).reshape(shape)
        return value


class Solid(Protocol):
    """A region of space."""

    def pieces(self) -> Iterator[Solid]:
        """The parts that deserve their own bounding box; their union is the solid."""
        ...

    def bounds(self) -> Bounds:
        """Lowest and highest corner of the axis-parallel box around the solid, mm in the body frame."""
        ...

    def contains(self, block: Block) -> Mask:
        """Whether each voxel centre lies inside; broadcastable to the block's shape [z, y, x]."""
        ...

    def scaled(self, factor: float) -> Solid:
        """The same solid around its own centre or axis, its radii multiplied by ``factor``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid:
    """Ellipsoid, or (``flatness`` = :data:`FLAT_ENDS`) an elliptical disc along its third axis."""

    centre: Points
    radii: Points
    axes: Points
    """3 x 3 rotation; column k is the direction of ``radii[k]``."""
    flatness: int = 2

    def pieces(self) -> Iterator[Solid]:
        """One box."""
        yield self

    def bounds(self) -> Bounds:
        """Exact for an ellipsoid, the enclosing oriented box for a disc."""
        scaled = self.axes * self.radii
        reach = np.linalg.norm(scaled, axis=1) if self.flatness == 2 else np.abs(scaled).sum(axis=1)
        return self.centre - reach, self.centre + reach

    def contains(self, block: Block) -> Mask:
        """Inside u^2 + v^2 + |w|^flatness = 1."""
        total: Floats = np.zeros((1, 1, 1), dtype=np.float32)
        for k in range(3):
            normal = self.axes[:, k] / self.radii[k]
            square = np.square(block.linear(normal, -float(normal @ self.centre)))
            if k == 2 and self.flatness == FLAT_ENDS:
                square = np.square(np.square(square))
            total = total + square
        inside: Mask = total <= 1.0
        return inside

    def scaled(self, factor: float) -> Ellipsoid:
        """In all directions."""
        return replace(self, radii=self.radii * factor)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One straight piece of a :class:`Tube` with rounded ends; its elliptical section widens linearly."""

    start: Points
    end: Points
    start_radii: Points
    end_radii: Points
    broad: Points
    """Direction in which ``radii[0]`` is measured (made perpendicular to the axis); ``radii[1]`` is across it."""

    def pieces(self) -> Iterator[Solid]:
        """One box."""
        yield self

    def bounds(self) -> Bounds:
        """Box around both end balls."""
        reach = max(self.start_radii.max(), self.end_radii.max())
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def contains(self, block: Block) -> Mask:
        """Whether the distance to the axis, in radii, is at most one."""
        axis = self.end - self.start
        length = max(float(np.linalg.norm(axis)), 1e-6)
        axis = axis / length
        broad = self.broad - (self.broad @ axis) * axis
        norm = float(np.linalg.norm(broad))
        broad = broad / norm if norm > 1e-3 else _any_perpendicular(axis)
        across = np.cross(axis, broad)
        along = block.linear(axis, -float(axis @ self.start))
        fraction = np.clip(along / np.float32(length), 0.0, 1.0)
        first, second = (
            np.float32(a) + np.float32(b - a) * fraction for a, b in zip(self.start_radii, self.end_radii, strict=True)
        )
        total = np.square((along - fraction * np.float32(length)) / np.minimum(first, second))
        total = total + np.square(block.linear(broad, -float(broad @ self.start)) / first)
        total = total + np.square(block.linear(across, -float(across @ self.start)) / second)
        inside: Mask = total <= 1.0
        return inside

    def scaled(self, factor: float) -> Segment:
        """Across its axis."""
        return replace(self, start_radii=self.start_radii * factor, end_radii=self.end_radii * factor)


@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """A bent tube of elliptical section through ``points`` (n, 3) with ``radii`` (n, 2)."""

    points: Points
    radii: Points
    broad: Points

    def pieces(self) -> Iterator[Solid]:
        """The segments, whose boxes are far smaller than the box around the whole curve."""
        for k in range(len(self.points) - 1):
            yield Segment(self.points[k], self.points[k + 1], self.radii[k], self.radii[k + 1], self.broad)

    def bounds(self) -> Bounds:
        """Box around all segments."""
        reach = self.radii.max()
        return self.points.min(axis=0) - reach, self.points.max(axis=0) + reach

    def contains(self, block: Block) -> Mask:
        """Inside any segment."""
        inside: Mask = np.zeros((1, 1, 1), dtype=np.bool_)
        for piece in self.pieces():
            inside = inside | piece.contains(block)
        return inside

    def scaled(self, factor: float) -> Tube:
        """Across its axis."""
        return replace(self, radii=self.radii * factor)


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """A solid with elliptical horizontal sections, given by tables over z (body outline, rib cage, lungs)."""

    heights: Points
    """Ascending z, mm; the solid ends at the first and the last."""
    centre_x: Points
    centre_y: Points
    half_width: Points
    half_depth: Points

    def pieces(self) -> Iterator[Solid]:
        """One box."""
        yield self

    def bounds(self) -> Bounds:
        """Box around all sections."""
        return (
            np.array(
                [
                    (self.centre_x - self.half_width).min(),
                    (self.centre_y - self.half_depth).min(),
                    self.heights[0],
                ]
            ),
            np.array(
                [
                    (self.centre_x + self.half_width).max(),
                    (self.centre_y + self.half_depth).max(),
                    self.heights[-1],
                ]
            ),
        )

    def contains(self, block: Block) -> Mask:
        """Inside the ellipse at the voxel's height."""
        x, y, z = (block.linear(np.eye(3)[k], 0.0) for k in range(3))
        total = np.square((x - self._at(z, self.centre_x)) / self._at(z, self.half_width))
        total = total + np.square((y - self._at(z, self.centre_y)) / self._at(z, self.half_depth))
        inside: Mask = (total <= 1.0) & (z >= self.heights[0]) & (z <= self.heights[-1])
        return inside

    def grown(self, across_mm: float | Points, depth_mm: float | Points) -> Trunk:
        """The same solid with half width and half depth enlarged, or reduced by negative values."""
        return Trunk(
            self.heights,
            self.centre_x,
            self.centre_y,
            np.maximum(self.half_width + across_mm, 0.5),
            np.maximum(self.half_depth + depth_mm, 0.5),
        )

    def scaled(self, factor: float) -> Trunk:
        """Across the body axis."""
        return replace(self, half_width=self.half_width * factor, half_depth=self.half_depth * factor)

    def _at(self, z: Floats, table: Points) -> Floats:
        return np.interp(z, self.heights, table).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class HalfSpace:
    """Everything on the side of a plane to which ``normal`` points; used only to cut other solids."""

    point: Points
    normal: Points

    def pieces(self) -> Iterator[Solid]:
        """One (unbounded) piece."""
        yield self

    def bounds(self) -> Bounds:
        """All of space."""
        return np.full(3, -np.inf), np.full(3, np.inf)

    def contains(self, block: Block) -> Mask:
        """On the side of the normal."""
        inside: Mask = block.linear(self.normal, -float(self.normal @ self.point)) >= 0.0
        return inside

    def scaled(self, factor: float) -> HalfSpace:
        """The same: a half-space has no size."""
        del factor
        return self


def _any_perpendicular(axis: Points) -> Points:
    other = np.eye(3)[int(np.argmin(np.abs(axis)))]
    direction = np.cross(axis, other)
    result: Points = direction / np.linalg.norm(direction)
    return result


def rotation(yaw_deg: float = 0.0, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Points:
    """Rotation matrix Rz(yaw) Rx(pitch) Ry(roll): about +z (x towards y), about +x (y towards z), about +y (z to x)."""
    a, b, c = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    result: Points = about_z @ about_x @ about_y
    return result


def axes_along(direction: Points, reference: Points) -> Points:
    """Rotation whose third axis is ``direction`` and whose first axis is as close to ``reference`` as possible."""
    third = direction / np.linalg.norm(direction)
    first = reference - (reference @ third) * third
    norm = float(np.linalg.norm(first))
    first = first / norm if norm > 1e-6 else _any_perpendicular(third)
    result: Points = np.stack([first, np.cross(third, first), third], axis=1)
    return result


def smooth_curve(points: Points, radii: Points, step_mm: float) -> tuple[Points, Points]:
    """Catmull-Rom spline through ``points`` (n, 3), sampled about every ``step_mm``; ``radii`` (n, 2) interpolated."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    curve, widths = [points[:1]], [radii[:1]]
    for k in range(len(points) - 1):
        p0, p1, p2, p3 = padded[k : k + 4]
        steps = max(1, round(float(np.linalg.norm(p2 - p1)) / step_mm))
        t = (np.arange(1, steps + 1) / steps)[:, None]
        curve.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
        widths.append(radii[k] + (radii[k + 1] - radii[k]) * t)
    return np.concatenate(curve), np.concatenate(widths)
