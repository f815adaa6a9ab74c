"""Heart and great vessels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.plan import SIDES
from inference.phantom.skeleton import spine_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.phantom.plan import Plan

    Points = NDArray[np.float64]

LONG_AXIS = np.array([0.62, -0.62, -0.48])
"""From the base of the heart to its apex: left, anterior, down."""


def paint_veins(plan: Plan) -> None:
    """Vena cava, iliac veins, portal and splenic vein, superior vena cava (unlabelled)."""
    size = plan.patient.size("veins", 0.07)
    for side, sign in SIDES:
        start = (-13.0, spine_at(148) - 26, 148.0)
        points = [
            start,
            (sign * 16 - 9, 16, 125),
            (sign * 36 - 3, 22, 98),
            (sign * 50, 16, 70),
            (sign * 58, -8, 40),
            (sign * 66, -42, 8),
        ]
        plan.paint(
            plan.tube(f"iliac_vena_{side}", points, 7.6 * size, wander_mm=1.5), "iliac_vein", f"iliac_vena_{side}"
        )
    shift = plan.patient.shift_mm("cava", 2.0)[0]
    cava = [
        (-14 + shift, spine_at(148) - 27, 146),
        (-20 + shift, spine_at(200) - 27, 200),
        (-23 + shift, spine_at(270) - 28, 270),
        (-25 + shift, 4, 330),
        (-28, -10, 380),
        (-32, -20, 402),
    ]
    plan.paint(
        plan.tube("inferior_vena_cava", cava, np.array([10, 11, 11.5, 12, 13, 13]) * size), "vein", "inferior_vena_cava"
    )
    portal = [
        (78, 32, 346),
        (52, 14, 336),
        (24, -8, 326),
        (0, -20, 318),
        (-16, -20, 330),
        (-34, -18, 348),
        (-50, -16, 356),
    ]
    plan.paint(
        plan.tube("portal", portal, np.array([6, 6, 6.3, 7.5, 8, 8, 6.5]) * size, shift_mm=2.5, wander_mm=2),
        "portal",
        "portal_vein_and_splenic_vein",
    )


def paint_heart(plan: Plan) -> None:
    """Pericardial fat, four chambers, myocardium; systemic veins above."""
    patient = plan.patient
    move = patient.shift_mm("heart", 4.0)
    size = patient.size("heart", 0.06)

    middle = np.array([10.0, -38.0, 418.0])

    def chamber(
        structure: str,
        tissue: str,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        along: Points | None = None,
    ) -> None:
        solid = plan.ellipsoid(
            structure,
            middle + (np.array(centre) - middle) * size + move,
            np.array(radii) * size,
            along=along,
            shift_mm=1.2,
            size=0.03,
        )
        plan.paint(solid, tissue, structure if structure.startswith("heart") else None)

    plan.paint(plan.tube("vena_cava_superior", [(-26, -14, 545), (-30, -18, 490), (-32, -24, 445)], 9.5), "right_heart")
    chamber("pericardium", "fat", (12, -38, 416), (62, 48, 56))
    chamber("heart_atrium_right", "right_heart", (-30, -32, 424), (25, 28, 33))
    chamber("heart_ventricle_right", "right_heart", (4, -64, 410), (44, 22, 36))
    chamber("heart_atrium_left", "left_heart", (10, -4, 442), (33, 20, 25))
    chamber("heart_myocardium", "myocardium", (36, -40, 410), (37, 37, 50), LONG_AXIS)
    chamber("heart_ventricle_left", "left_heart", (33, -37, 413), (25, 25, 40), LONG_AXIS)


def paint_arteries(plan: Plan) -> None:
    """Pulmonary artery, aorta with its arch to the left, iliac arteries."""
    patient = plan.patient
    pulmonary = patient.size("pulmonary", 0.06)
    move = patient.shift_mm("heart", 4.0) * 0.7
    trunk = np.array([(14, -62, 440), (16, -54, 460), (14, -34, 476), (12, -24, 480)]) + move
    plan.paint(plan.tube("pulmonary", trunk, np.array([14, 14, 13.5, 12]) * pulmonary), "pulmonary", "pulmonary_artery")
    for points in (
        [(14, -28, 478), (-14, -14, 476), (-44, -6, 470), (-62, -4, 462)],
        [(14, -28, 478), (34, -12, 484), (54, 2, 478)],
    ):
        plan.paint(
            plan.tube("pulmonary", np.array(points) + move, np.array([11, 10.5, 9.5, 7.5][: len(points)]) * pulmonary),
            "pulmonary",
            "pulmonary_artery",
        )
    wide = patient.aorta_factor
    ascending = np.array([(4, -38, 442), (-12, -46, 462), (-18, -42, 490)]) + move
    arch = [(-10, -30, 514), (8, -8, 525), (26, 12, 514), (30, 28, 490)]
    descending = [
        (30, spine_at(450) - 12, 450),
        (26, spine_at(400) - 16, 400),
        (18, spine_at(350) - 20, 350),
        (10, spine_at(290) - 27, 290),
        (9, spine_at(220) - 27, 220),
        (8, spine_at(160) - 27, 158),
    ]
    course = [*ascending.tolist(), *arch, *descending]
    radii = np.array([15.5, 16, 15.5, 14.5, 13.5, 13, 12.8, 12.3, 12, 11.5, 10.5, 9.8, 9.2]) * wide
    plan.paint(plan.tube("aorta", course, radii), "artery", "aorta")
    for side, sign in SIDES:
        branch = [
            (8.0, spine_at(158) - 27, 156.0),
            (sign * 24 + 4, -8.0, 122.0),
            (sign * 44, 0.0, 92.0),
            (sign * 56, -16.0, 62.0),
            (sign * 70, -46.0, 20.0),
            (sign * 72, -54.0, 2.0),
        ]
        plan.paint(
            plan.tube(
                f"iliac_artery_{side}", branch, np.array([7.2, 7, 6.8, 6.5, 6.2, 6.0]) * (0.5 + 0.5 * wide), wander_mm=2
            ),
            "artery",
            f"iliac_artery_{side}",
        )
