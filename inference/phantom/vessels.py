"""Heart and great vessels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import course, radii, shapes
from inference.phantom.plan import SIDES

if TYPE_CHECKING:
    from inference.phantom.plan import Plan

LONG_AXIS = np.array([0.62, -0.62, -0.48])
"""From the base of the heart to its apex: left, anterior, down."""
HEART_MIDDLE = np.array([10.0, -38.0, 418.0])


def paint_veins(plan: Plan) -> None:
    """Paint vena cava, iliac veins, portal and splenic vein, superior vena cava (unlabelled)."""
    size = plan.patient.size("veins", 0.07)
    for side, sign in SIDES:
        name = f"iliac_vena_{side}"
        plan.paint(plan.named_tube(name, "iliac_vein", sign, scale=size, wander_mm=1.5), "iliac_vein", name)
    name = "inferior_vena_cava"
    move = np.zeros((6, 3))
    move[:4, 0] = plan.patient.shift_mm("cava", 2.0)[0]  # it does not move where it enters the heart
    plan.paint(plan.named_tube(name, name, move=move, scale=size), "vein", name)
    plan.paint(
        plan.named_tube("portal", "portal_and_splenic_vein", scale=size, shift_mm=2.5, wander_mm=2),
        "portal",
        "portal_vein_and_splenic_vein",
    )


def paint_heart(plan: Plan) -> None:
    """Paint pericardial fat, four chambers, myocardium, and the systemic veins above."""
    move = plan.patient.shift_mm("heart", 4.0)
    size = plan.patient.size("heart", 0.06)
    plan.paint(plan.named_tube("vena_cava_superior", "superior_vena_cava"), "right_heart")
    for name, tissue, along in (
        ("pericardium", "fat", None),
        ("heart_atrium_right", "right_heart", None),
        ("heart_ventricle_right", "right_heart", None),
        ("heart_atrium_left", "left_heart", None),
        ("heart_myocardium", "myocardium", LONG_AXIS),
        ("heart_ventricle_left", "left_heart", LONG_AXIS),
    ):
        row = shapes()[name]
        solid = plan.ellipsoid(
            name,
            HEART_MIDDLE + (row.centre(1.0) - HEART_MIDDLE) * size + move,
            row.radii * size,
            along=along,
            shift_mm=row.shift_sd_mm,
            size=row.size_sd,
        )
        plan.paint(solid, tissue, name if name.startswith("heart") else None)


def paint_arteries(plan: Plan) -> None:
    """Paint the pulmonary artery, the aorta with its arch to the left, and the iliac arteries."""
    patient = plan.patient
    pulmonary = patient.size("pulmonary", 0.06)
    move = patient.shift_mm("heart", 4.0) * 0.7
    for name in ("pulmonary_trunk", "pulmonary_artery_right", "pulmonary_artery_left"):
        plan.paint(plan.named_tube("pulmonary", name, move=move, scale=pulmonary), "pulmonary", "pulmonary_artery")
    wide = patient.aorta_factor
    parts = ("ascending_aorta", "aorta_from_the_arch")
    points = np.concatenate([course(parts[0]) + move, course(parts[1])])
    plan.paint(plan.tube("aorta", points, np.concatenate([radii(part) for part in parts]) * wide), "artery", "aorta")
    for side, sign in SIDES:
        name = f"iliac_artery_{side}"
        tube = plan.named_tube(name, "iliac_artery", sign, scale=0.5 + 0.5 * wide, wander_mm=2)
        plan.paint(tube, "artery", name)
