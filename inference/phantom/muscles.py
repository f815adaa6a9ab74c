"""The labelled muscles: gluteal, deep back (autochthonous) and iliopsoas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.plan import LATERAL, SIDES
from inference.phantom.skeleton import spine_at

if TYPE_CHECKING:
    from inference.phantom.plan import Plan


def paint_muscles(plan: Plan) -> None:
    """Painted before the bones, which they embrace."""
    girth = plan.patient.size("muscularity", 0.05)
    soft = ["fat", "muscle", "soft"]
    for side, sign in SIDES:
        plan.paint(
            plan.ellipsoid(
                f"gluteus_maximus_{side}",
                (sign * 70, 84, 14),
                (54 * girth, 28 * girth, 84),
                turn_deg=(sign * -14, 8, sign * -10),
                size=0.04,
            ),
            "gluteal",
            f"gluteus_maximus_{side}",
            over=soft,
        )
        plan.paint(
            plan.ellipsoid(
                f"gluteus_medius_{side}",
                (sign * 116, 34, 74),
                (25 * girth, 50, 60),
                turn_deg=(sign * 18, 0, sign * 12),
                size=0.04,
            ),
            "gluteal",
            f"gluteus_medius_{side}",
            over=[*soft, "gluteal"],
        )
        plan.paint(
            plan.ellipsoid(
                f"gluteus_minimus_{side}",
                (sign * 110, 8, 48),
                (16 * girth, 34, 42),
                turn_deg=(sign * 12, 0, sign * 10),
                size=0.04,
            ),
            "gluteal",
            f"gluteus_minimus_{side}",
            over=[*soft, "gluteal"],
        )
        heights = np.arange(45.0, 660.0, 30.0)
        course = [
            (
                sign * float(np.interp(z, [45, 110, 285, 585, 650], [26, 31, 31, 26, 22])),
                spine_at(z) + float(np.interp(z, [45, 110, 285, 450, 585, 650], [54, 42, 38, 36, 34, 30])),
                z,
            )
            for z in heights
        ]
        widths = [
            (
                float(np.interp(z, [45, 110, 285, 585, 650], [16, 27, 29, 23, 17])) * girth,
                float(np.interp(z, [45, 110, 285, 585, 650], [9, 20, 19, 15, 12])) * girth,
            )
            for z in heights
        ]
        plan.paint(
            plan.tube(f"autochthon_{side}", course, widths, broad=LATERAL, step_mm=30),
            "back_muscle",
            f"autochthon_{side}",
            over=soft,
            outside=[plan.half_space((sign * 1.5, 0, 300), (-sign, 0, 0))],
        )
        psoas = [
            (sign * 30, 34, 276),
            (sign * 40, 30, 215),
            (sign * 50, 20, 150),
            (sign * 66, -4, 90),
            (sign * 80, -36, 30),
            (sign * 96, -32, -8),
            (sign * 106, -4, -42),
        ]
        plan.paint(
            plan.tube(f"iliopsoas_{side}", psoas, np.array([9, 17, 22, 22, 19, 15, 9]) * girth, wander_mm=1.0),
            "iliopsoas",
            f"iliopsoas_{side}",
            over=soft,
        )
        plan.paint(
            plan.ellipsoid(
                f"iliopsoas_{side}", (sign * 82, 8, 100), (18 * girth, 46, 48), turn_deg=(sign * 22, 0, sign * 26)
            ),
            "iliopsoas",
            f"iliopsoas_{side}",
            over=soft,
        )
