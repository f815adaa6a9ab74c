"""Table, skin, fat, the muscular envelope, the body cavities and the lungs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import profile_at, trunk
from inference.phantom.plan import SIDES
from inference.phantom.shapes import Trunk

if TYPE_CHECKING:
    from inference.phantom.plan import Plan

SUBCUTANEOUS_SHARE = ((-260, 0.8), (0, 1.15), (130, 1.2), (300, 0.8), (480, 0.6), (600, 0.35), (720, 0.15))
"""(z, thickness of the subcutaneous fat as a fraction of the patient's ``fat_mm``)."""
SKIN_MM = 2.5
SCALP_MM = 3.0


def paint_surface(plan: Plan) -> None:
    """Paint everything that is not a structure: table, skin, subcutaneous fat, muscle, cavity fat."""
    _table(plan)
    envelope = plan.trunk(trunk("muscle_envelope"))
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
    plan.paint(plan.trunk(trunk("abdominal_cavity")), "fat")


def paint_lungs(plan: Plan) -> None:
    """Paint mediastinal fat, five lobes divided by oblique and horizontal fissures, and the domes of the diaphragm."""
    patient = plan.patient
    plan.paint(plan.trunk(trunk("mediastinum")), "fat")
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
        for tissue, grow in (("muscle", 0.0), ("fat", -3.5)):
            plan.paint(
                plan.named_ellipsoid(
                    f"diaphragm_{side}", f"diaphragm_{side}", move=(0.0, 0.0, inspiration), grow_mm=grow
                ),
                tissue,
                over=["lung", "muscle"],
                inside=[lung],
            )


def cage_section(z: float) -> tuple[float, float, float]:
    """Centre y, half width and half depth of the rib cage (through the middle of the ribs) at height ``z``."""
    table = trunk("rib_cage")
    y, width, depth = (float(np.interp(z, table[:, 0], table[:, k])) for k in (2, 3, 4))
    return y, width, depth


def _lung(plan: Plan, sign: float) -> Trunk:
    rows = []
    for z in np.arange(312.0, 600.0, 12.0):
        y, width, depth = cage_section(z)
        medial = profile_at("lung_medial", z)
        lateral = width - 7.0
        apex = float(np.sqrt(np.clip((602.0 - z) / 45.0, 0.0, 1.0)))
        half = max((lateral - medial) / 2 * apex, 1.0)
        rows.append((z, sign * (medial + lateral) / 2, y + 4, half * 1.04, (depth - 9.0) * max(apex, 0.2)))
    return plan.trunk(rows)


def _head(plan: Plan, tissue: str, grow_mm: float) -> None:
    for shape in ("head", "jaw_and_neck", "nose"):
        plan.paint(plan.named_ellipsoid("head", shape, grow_mm=grow_mm), tissue)


def _limbs(plan: Plan, tissue: str, grow_mm: float) -> None:
    arm = "arm_raised" if plan.patient.arms_raised else "arm_lowered"
    for side, sign in SIDES:
        plan.paint(plan.named_tube(f"thigh_{side}", "thigh", sign, grow_mm=grow_mm * 0.9), tissue)
        plan.paint(plan.named_ellipsoid(f"shoulder_{side}", "shoulder", sign, grow_mm=grow_mm * 0.4), tissue)
        plan.paint(plan.named_tube(f"arm_{side}", arm, sign, grow_mm=grow_mm * 0.5), tissue)


def _table(plan: Plan) -> None:
    """A lens-shaped table top: a carbon-fibre shell around foam."""
    middle = 106 + 1.15 * plan.patient.fat_mm + SKIN_MM + 22
    heights = np.array([-400.0, 1000.0])
    flat = np.ones(2)
    table = Trunk(heights, 0 * flat, middle * flat, 222 * flat, 18 * flat)
    plan.paint(table, "table")
    plan.paint(table.grown(-4, -4), "foam")
