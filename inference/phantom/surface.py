"""Table, skin, fat, the muscular envelope, the body cavities and the lungs; also the tables others are measured from.

Rows of every table are (z, centre x, centre y, half width, half depth) of the reference adult in mm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.plan import SIDES
from inference.phantom.shapes import Trunk

if TYPE_CHECKING:
    from inference.phantom.plan import Plan

MUSCLE_ENVELOPE = (
    (-75, 0, 12, 140, 80),
    (-40, 0, 15, 158, 100),
    (0, 0, 15, 166, 106),
    (60, 0, 12, 160, 107),
    (130, 0, 6, 146, 100),
    (200, 0, 2, 138, 96),
    (300, 0, 0, 146, 106),
    (400, 0, 0, 153, 113),
    (480, 0, 3, 150, 112),
    (530, 0, 10, 150, 110),
    (565, 0, 14, 142, 104),
    (590, 0, 12, 104, 88),
    (620, 0, 6, 64, 60),
    (660, 0, 3, 57, 58),
    (720, 0, 2, 55, 58),
)
RIB_CAGE = (
    (230, 0, 0, 128, 92),
    (300, 0, 0, 136, 99),
    (350, 0, 0, 141, 103),
    (400, 0, 0, 142, 105),
    (450, 0, 0, 136, 101),
    (500, 0, 3, 122, 91),
    (540, 0, 8, 100, 76),
    (570, 0, 12, 78, 60),
    (590, 0, 15, 62, 46),
    (610, 0, 18, 45, 34),
)
ABDOMINAL_CAVITY = (
    (20, 0, 0, 60, 60),
    (60, 0, -5, 90, 75),
    (110, 0, -12, 112, 76),
    (160, 0, -12, 116, 78),
    (200, 0, -10, 117, 80),
    (300, 0, -4, 124, 86),
    (350, 0, -2, 129, 90),
    (400, 0, -2, 130, 92),
    (430, 0, -2, 126, 90),
)
SUBCUTANEOUS_SHARE = ((-260, 0.8), (0, 1.15), (130, 1.2), (300, 0.8), (480, 0.6), (600, 0.35), (720, 0.15))
SKIN_MM = 2.5
SCALP_MM = 3.0


def paint_surface(plan: Plan) -> None:
    """Everything that is not a structure of its own: table, skin, subcutaneous fat, muscle, cavity fat."""
    _table(plan)
    envelope = plan.trunk(MUSCLE_ENVELOPE)
    heights, shares = np.array(SUBCUTANEOUS_SHARE).T
    fat_mm = np.interp(envelope.heights, plan.build.height(heights), shares) * plan.patient.fat_mm
    fat = envelope.grown(fat_mm, fat_mm * 0.85)
    for tissue, layer_mm in (("skin", SKIN_MM), ("fat", 0.0)):
        plan.paint(fat.grown(layer_mm, layer_mm), tissue)
        _limbs(plan, tissue, plan.patient.fat_mm * 0.6 + layer_mm)
        _head(plan, tissue, SCALP_MM + layer_mm)
    plan.paint(envelope, "muscle")
    _limbs(plan, "muscle", 0.0)
    _head(plan, "soft", 0.0)
    plan.paint(plan.trunk(ABDOMINAL_CAVITY), "fat")


def paint_lungs(plan: Plan) -> None:
    """Mediastinal fat, five lobes parted by oblique and horizontal fissures, the domes of the diaphragm."""
    patient = plan.patient
    plan.paint(_mediastinum(plan), "fat")
    inspiration = float(patient.random("inspiration").normal(0, 7))
    for side, sign in SIDES:
        lung = _lung(plan, sign)
        tilt = 0.85 + 0.08 * float(patient.shift_mm(f"fissure_{side}", 1.0)[0])
        level = 452 + float(patient.shift_mm(f"fissure_{side}", 6.0)[2])
        plan.paint(lung, "lung", f"lung_upper_lobe_{side}")
        plan.paint(lung, "lung", f"lung_lower_lobe_{side}", inside=[plan.half_space((0, 0, level), (0, tilt, -1))])
        if side == "right":
            horizontal = 488 + float(patient.shift_mm("horizontal_fissure", 5.0)[2])
            plan.paint(
                lung,
                "lung",
                "lung_middle_lobe_right",
                inside=[
                    plan.half_space((0, 0, level), (0, -tilt, 1)),
                    plan.half_space((0, 0, horizontal), (0, -0.1, -1)),
                ],
            )
        top = 404 if side == "right" else 392
        radii = (66, 88, 112)
        dome = (sign * 64, -8, top - radii[2] + inspiration)
        for tissue, grow in (("muscle", 0.0), ("fat", -3.5)):
            plan.paint(
                plan.ellipsoid(f"diaphragm_{side}", dome, radii, size=0.02, grow_mm=grow),
                tissue,
                over=["lung", "muscle"],
                inside=[lung],
            )


def cage_section(z: float) -> tuple[float, float, float]:
    """Centre y, half width and half depth of the rib cage (through the middle of the ribs) at height ``z``."""
    table = np.array(RIB_CAGE)
    y, width, depth = (float(np.interp(z, table[:, 0], table[:, k])) for k in (2, 3, 4))
    return y, width, depth


def _lung(plan: Plan, sign: float) -> Trunk:
    rows = []
    for z in np.arange(312.0, 600.0, 12.0):
        y, width, depth = cage_section(z)
        medial = float(np.interp(z, [312, 400, 470, 540, 600], [45, 20, 16, 15, 12]))
        lateral = width - 7.0
        apex = float(np.sqrt(np.clip((602.0 - z) / 45.0, 0.0, 1.0)))
        half = max((lateral - medial) / 2 * apex, 1.0)
        rows.append((z, sign * (medial + lateral) / 2, y + 4, half * 1.04, (depth - 9.0) * max(apex, 0.2)))
    return plan.trunk(rows)


def _mediastinum(plan: Plan) -> Trunk:
    return plan.trunk(
        ((330, 0, -10, 45, 70), (400, 0, -8, 55, 78), (470, 0, 0, 42, 72), (540, 0, 8, 32, 55), (590, 0, 10, 22, 35))
    )


def _head(plan: Plan, tissue: str, grow_mm: float) -> None:
    plan.paint(plan.ellipsoid("head", (0, 2, 788), (77, 98, 88), grow_mm=grow_mm), tissue)
    plan.paint(plan.ellipsoid("head", (0, -48, 722), (60, 52, 66), grow_mm=grow_mm), tissue)
    plan.paint(plan.ellipsoid("head", (0, -104, 738), (13, 14, 22), grow_mm=grow_mm), tissue)


def _limbs(plan: Plan, tissue: str, grow_mm: float) -> None:
    for side, sign in SIDES:
        thigh = [(sign * 92, 12, -30), (sign * 96, 8, -130), (sign * 92, 5, -300)]
        plan.paint(plan.tube(f"thigh_{side}", thigh, [78, 76, 68], grow_mm=grow_mm * 0.9), tissue)
        plan.paint(
            plan.ellipsoid(f"shoulder_{side}", (sign * 150, 22, 548), (48, 50, 52), grow_mm=grow_mm * 0.4), tissue
        )
        points, radii = arm_course(plan, sign)
        plan.paint(plan.tube(f"arm_{side}", points, radii, grow_mm=grow_mm * 0.5), tissue)


def arm_course(plan: Plan, sign: float) -> tuple[list[tuple[float, float, float]], list[float]]:
    """Axis and muscle radius of one arm from the shoulder to the hand."""
    if plan.patient.arms_raised:
        return (
            [(sign * 160, 22, 555), (sign * 175, 2, 640), (sign * 150, -25, 800), (sign * 90, -35, 905)],
            [42, 41, 36, 30],
        )
    return (
        [
            (sign * 164, 24, 550),
            (sign * 190, 30, 480),
            (sign * 208, 22, 270),
            (sign * 216, 0, 150),
            (sign * 205, -35, 0),
        ],
        [42, 41, 36, 33, 24],
    )


def _table(plan: Plan) -> None:
    """A lens-shaped table top: a shell of carbon fibre about foam."""
    middle = 106 + 1.15 * plan.patient.fat_mm + SKIN_MM + 22
    heights = np.array([-400.0, 1000.0])
    flat = np.ones(2)
    table = Trunk(heights, 0 * flat, middle * flat, 222 * flat, 18 * flat)
    plan.paint(table, "table")
    plan.paint(table.grown(-4, -4), "foam")
