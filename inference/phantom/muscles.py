"""The labelled muscles: gluteal, deep back (autochthonous) and iliopsoas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import profile_at, spine_at
from inference.phantom.plan import LATERAL, SIDES

if TYPE_CHECKING:
    from inference.phantom.plan import Plan

SOFT = ("fat", "muscle", "soft")


def paint_muscles(plan: Plan) -> None:
    """Paint the muscles; call before painting the bones, which they surround."""
    girth = plan.patient.size("muscularity", 0.05)
    for side, sign in SIDES:
        for muscle, scale, over in (
            ("gluteus_maximus", (girth, girth, 1.0), SOFT),
            ("gluteus_medius", (girth, 1.0, 1.0), (*SOFT, "gluteal")),
            ("gluteus_minimus", (girth, 1.0, 1.0), (*SOFT, "gluteal")),
        ):
            name = f"{muscle}_{side}"
            plan.paint(plan.named_ellipsoid(name, muscle, sign, scale=scale), "gluteal", name, over=over)
        _autochthon(plan, side, sign, girth)
        name = f"iliopsoas_{side}"
        psoas = plan.named_tube(name, "iliopsoas", sign, scale=girth, wander_mm=1.0)
        plan.paint(psoas, "iliopsoas", name, over=SOFT)
        iliacus = plan.named_ellipsoid(name, "iliacus", sign, scale=(girth, 1.0, 1.0))
        plan.paint(iliacus, "iliopsoas", name, over=SOFT)


def _autochthon(plan: Plan, side: str, sign: float, girth: float) -> None:
    """Along the spine from the sacrum to the skull, without crossing the midline."""
    name = f"autochthon_{side}"
    heights = np.arange(45.0, 660.0, 30.0)
    course = [
        (
            sign * profile_at("autochthon_lateral", z),
            spine_at(z) + profile_at("autochthon_behind_spine", z),
            z,
        )
        for z in heights
    ]
    widths = [
        (profile_at("autochthon_half_width", z) * girth, profile_at("autochthon_half_depth", z) * girth)
        for z in heights
    ]
    plan.paint(
        plan.tube(name, course, widths, broad=LATERAL, step_mm=30),
        "back_muscle",
        name,
        over=SOFT,
        outside=[plan.half_space((sign * 1.5, 0, 300), (-sign, 0, 0))],
    )
