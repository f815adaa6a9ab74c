"""The order in which a body is painted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.phantom.muscles import paint_muscles
from inference.phantom.plan import Plan
from inference.phantom.skeleton import paint_skeleton
from inference.phantom.surface import paint_lungs, paint_surface
from inference.phantom.vessels import paint_arteries, paint_heart, paint_veins
from inference.phantom.viscera import (
    paint_airway,
    paint_bladder,
    paint_brain,
    paint_face,
    paint_gut,
    paint_upper_abdomen,
)

if TYPE_CHECKING:
    from inference.phantom.patient import Patient
    from inference.phantom.plan import Part


def body_parts(patient: Patient) -> list[Part]:
    """All parts of a patient; where two overlap, the later one wins, so bones and vessels come last."""
    plan = Plan(patient)
    for paint in (
        paint_surface,
        paint_lungs,
        paint_muscles,
        paint_gut,
        paint_upper_abdomen,
        paint_bladder,
        paint_heart,
        paint_airway,
        paint_veins,
        paint_arteries,
        paint_skeleton,
        paint_brain,
        paint_face,
    ):
        paint(plan)
    return plan.parts
