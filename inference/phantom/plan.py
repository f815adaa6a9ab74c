"""The list of painted parts that make up a body, and shorthands for solids in reference coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.phantom import anatomy
from inference.phantom.anatomy import shapes
from inference.phantom.patient import LANDMARK_HEIGHTS_MM, Build
from inference.phantom.shapes import FLAT_ENDS, Ellipsoid, HalfSpace, Trunk, Tube, axes_along, rotation, smooth_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.phantom.patient import Patient
    from inference.phantom.shapes import Solid

    Points = NDArray[np.float64]
    Course = Sequence[Sequence[float]] | Points
    Radii = float | Sequence[float] | Sequence[Sequence[float]] | Points

SIDES = (("left", 1.0), ("right", -1.0))
"""Name and sign of x in LPS."""

LATERAL = np.array([1.0, 0.0, 0.0])
VERTICAL = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, slots=True)
class Part:
    """One painted solid. Later parts cover earlier ones, restricted to ``over`` if it is given.

    ``tissue`` None keeps the existing tissue and only assigns it to ``structure`` (the face).
    """

    solid: Solid
    tissue: str | None
    structure: str | None = None
    inside: tuple[Solid, ...] = ()
    outside: tuple[Solid, ...] = ()
    over: frozenset[str] | None = None


class Plan:
    """Collects the parts of one patient; all coordinates are those of the reference adult."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.build = Build(patient)
        self.parts: list[Part] = []

    def paint(
        self,
        solid: Solid,
        tissue: str | None,
        structure: str | None = None,
        *,
        inside: Sequence[Solid] = (),
        outside: Sequence[Solid] = (),
        over: Sequence[str] | None = None,
    ) -> None:
        """Append one part, in the size that the patient has for its structure."""
        factor = 1.0 if structure is None else self.patient.size_factors.get(structure, 1.0)
        if factor != 1.0:
            solid = solid.scaled(factor)
        kept = None if over is None else frozenset(over)
        self.parts.append(Part(solid, tissue, structure, tuple(inside), tuple(outside), kept))

    def ellipsoid(
        self,
        name: str,
        centre: Sequence[float] | Points,
        radii: Sequence[float] | Points,
        *,
        turn_deg: Sequence[float] = (0.0, 0.0, 0.0),
        shift_mm: float = 0.0,
        size: float = 0.0,
        turn_sd_deg: float = 0.0,
        disc: bool = False,
        along: Points | None = None,
        grow_mm: float = 0.0,
    ) -> Ellipsoid:
        """An ellipsoid; the random streams of ``name`` vary shift, size and turn by the given standard deviations."""
        patient = self.patient
        middle = np.asarray(centre, dtype=np.float64)
        if along is None:
            axes = rotation(*(np.asarray(turn_deg, dtype=np.float64) + patient.turn_deg(name, 1.0) * turn_sd_deg))
        else:
            axes = axes_along(along, LATERAL)
        build = float(np.sqrt(self.build.across(middle[2]) * self.build.depth(middle[2])))
        scale = build * (patient.size(name, size) if size else 1.0)
        return Ellipsoid(
            centre=self.build.place(middle + (patient.shift_mm(name, shift_mm) if shift_mm else 0.0)),
            radii=np.asarray(radii, dtype=np.float64) * scale + grow_mm,
            axes=axes,
            flatness=FLAT_ENDS if disc else 2,
        )

    def tube(
        self,
        name: str,
        points: Course,
        radii: Radii,
        *,
        broad: Points = LATERAL,
        shift_mm: float = 0.0,
        size: float = 0.0,
        wander_mm: float = 0.0,
        step_mm: float = 12.0,
        grow_mm: float = 0.0,
        straight: bool = False,
    ) -> Tube:
        """A tube through ``points``; ``radii`` is one number, one per point, or one pair (broad, across) per point."""
        patient = self.patient
        centres = np.asarray(points, dtype=np.float64)
        widths = np.asarray(radii, dtype=np.float64)
        if widths.ndim == 0:
            widths = np.full((len(centres), 2), float(widths))
        elif widths.ndim == 1:
            widths = np.repeat(widths[:, None], 2, axis=1)
        if shift_mm:
            centres = centres + patient.shift_mm(name, shift_mm)
        if wander_mm:
            centres = centres + np.clip(
                patient.random("wander", name).normal(0, wander_mm, centres.shape), -2 * wander_mm, 2 * wander_mm
            )
        if not straight:
            centres, widths = smooth_curve(centres, widths, step_mm)
        scale = patient.size(name, size) if size else 1.0
        return Tube(points=self.build.place(centres), radii=widths * scale + grow_mm, broad=broad)

    def named_ellipsoid(
        self,
        stream: str,
        shape: str,
        sign: float = 1.0,
        *,
        move: Sequence[float] | Points | float = 0.0,
        scale: Sequence[float] | Points | float = 1.0,
        grow_mm: float = 0.0,
    ) -> Ellipsoid:
        """The ellipsoid named ``shape`` in the tables, varied by the random streams of ``stream``.

        Args:
            stream: name of the random streams that vary position, size and turn by the table's standard deviations.
            shape: a row of ``ellipsoids.csv``.
            sign: 1 for the left side, -1 for the right.
            move: added to the centre, in mm.
            scale: multiplies the radii.
            grow_mm: added to the radii.
        """
        row = shapes()[shape]
        return self.ellipsoid(
            stream,
            row.centre(sign) + np.asarray(move),
            row.radii * np.asarray(scale),
            turn_deg=row.turn_deg(sign),
            shift_mm=row.shift_sd_mm,
            size=row.size_sd,
            turn_sd_deg=row.turn_sd_deg,
            grow_mm=grow_mm,
        )

    def named_tube(
        self,
        stream: str,
        course: str,
        sign: float = 1.0,
        *,
        move: Sequence[float] | Points | float = 0.0,
        scale: Points | float = 1.0,
        shift_mm: float = 0.0,
        size: float = 0.0,
        wander_mm: float = 0.0,
        grow_mm: float = 0.0,
    ) -> Tube:
        """The tube named ``course`` in ``courses.csv``, varied as in :meth:`tube`.

        ``move`` (mm) is added to its points, ``scale`` multiplies its radii.
        """
        points, radii = anatomy.course(course, sign) + np.asarray(move), anatomy.radii(course) * scale
        return self.tube(stream, points, radii, shift_mm=shift_mm, size=size, wander_mm=wander_mm, grow_mm=grow_mm)

    def trunk(self, table: Sequence[Sequence[float]] | Points, grow_mm: float = 0.0) -> Trunk:
        """A trunk from rows (z, centre x, centre y, half width, half depth) in ascending z."""
        rows = np.asarray(table, dtype=np.float64)
        # the landmarks where the proportions change become rows too, so that the trunk follows the rest of the body
        heights = np.unique(
            np.concatenate([rows[:, 0], LANDMARK_HEIGHTS_MM, np.arange(rows[0, 0], rows[-1, 0], 20.0)]).clip(
                rows[0, 0], rows[-1, 0]
            )
        )
        x, y, width, depth = (np.interp(heights, rows[:, 0], rows[:, k]) for k in range(1, 5))
        placed = self.build.place(np.stack([x, y, heights], axis=-1))
        return Trunk(
            heights=placed[:, 2],
            centre_x=placed[:, 0],
            centre_y=placed[:, 1],
            half_width=np.maximum(width * self.build.across(heights) + grow_mm, 0.5),
            half_depth=np.maximum(depth * self.build.depth(heights) + grow_mm, 0.5),
        )

    def half_space(self, point: Sequence[float], normal: Sequence[float]) -> HalfSpace:
        """The side of a plane through ``point`` to which ``normal`` points."""
        direction = np.asarray(normal, dtype=np.float64)
        return HalfSpace(self.build.place(np.asarray(point, dtype=np.float64)), direction / np.linalg.norm(direction))
