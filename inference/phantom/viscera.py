"""Organs of the neck, chest, abdomen and pelvis, the gut with its gas and contents, brain and face."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import course, radii, shapes, trunk
from inference.phantom.plan import SIDES

if TYPE_CHECKING:
    from inference.phantom.plan import Course, Plan, Radii

NOT_LUNG = ("fat", "muscle", "soft", "gut_wall", "gut_fluid", "stool", "gas", "stomach_fluid", "spleen", "kidney")


def paint_brain(plan: Plan) -> None:
    """Paint cerebrum, cerebellum and brain stem with ventricles into the skull."""
    for shape in ("cerebrum", "cerebellum"):
        plan.paint(plan.named_ellipsoid("brain", shape), "brain", "brain")
    plan.paint(plan.named_tube("brain_stem", "brain_stem"), "brain", "brain")
    for _, sign in SIDES:
        ventricle = plan.named_tube("ventricle", "lateral_ventricle", sign, scale=plan.patient.size("ventricle", 0.2))
        plan.paint(ventricle, "csf", "brain")


def paint_airway(plan: Plan) -> None:
    """Paint the trachea with the main bronchi, thyroid, and oesophagus."""
    for _, sign in SIDES:
        plan.paint(plan.named_ellipsoid("thyroid", "thyroid", sign), "thyroid")
    shift = plan.patient.shift_mm("airway", 2.0)
    gullet = plan.named_tube("oesophagus", "oesophagus", move=shift * 0.5, size=0.06)
    plan.paint(gullet, "oesophagus", "esophagus")
    for tissue, structure, grow in (("soft", None, 2.5), ("gas", "trachea", 0.0)):
        plan.paint(plan.named_tube("trachea", "trachea", move=shift, size=0.06, grow_mm=grow), tissue, structure)
        for side, _ in SIDES:
            plan.paint(plan.named_tube("trachea", f"bronchus_{side}", move=shift, grow_mm=grow), tissue, structure)


def paint_upper_abdomen(plan: Plan) -> None:
    """Paint liver, gallbladder, spleen, kidneys, adrenal glands, and pancreas."""
    cavity = plan.trunk(trunk("abdominal_cavity"), grow_mm=3.0)
    move = plan.patient.shift_mm("liver", 4.0)
    size = plan.patient.size("liver", 0.05)
    for lobe in ("liver_right_lobe", "liver_left_lobe"):
        solid = plan.named_ellipsoid("liver", lobe, move=move, scale=size)
        plan.paint(solid, "liver", "liver", inside=[cavity], over=NOT_LUNG)
    plan.paint(plan.named_ellipsoid("spleen", "spleen"), "spleen", "spleen", inside=[cavity], over=[*NOT_LUNG, "lung"])
    for side, _ in SIDES:
        name = f"kidney_{side}"
        plan.paint(plan.named_ellipsoid(name, name), "kidney", name)
        hilum = plan.named_ellipsoid(f"hilum_{side}", f"renal_pelvis_{side}", move=plan.patient.shift_mm(name, 4))
        plan.paint(hilum, "renal_pelvis")
    for side, sign in reversed(SIDES):
        _adrenal_gland(plan, f"adrenal_gland_{side}", sign)
    plan.paint(
        plan.named_tube("pancreas", "pancreas", shift_mm=3, wander_mm=2.5, size=0.06),
        "pancreas",
        "pancreas",
    )
    plan.paint(plan.named_ellipsoid("gallbladder", "gallbladder", move=move * 0.7), "bile", "gallbladder")


def _adrenal_gland(plan: Plan, name: str, sign: float) -> None:
    """Two limbs that diverge posteriorly."""
    row = shapes()[name]
    middle = row.centre(sign) + plan.patient.shift_mm(name, 2.5)
    for yaw, offset in ((sign * -28, -6.0), (sign * 24, 6.0)):
        limb = middle + np.array([sign * (offset * 0.6 + 2), 8.0, -4.0])
        solid = plan.ellipsoid(name, limb, row.radii, turn_deg=(yaw, 0, 0), size=row.size_sd)
        plan.paint(solid, "adrenal", name)


def paint_gut(plan: Plan) -> None:
    """Paint small bowel, colon, duodenum and stomach with a wall, contents, and gas where it rises (anterior)."""
    _small_bowel(plan)
    _colon(plan)
    _hollow(
        plan,
        "duodenum",
        course("duodenum"),
        radii("duodenum"),
        contents="gut_fluid",
        wall_mm=3.2,
        shift_mm=2.5,
        wander_mm=1.5,
    )
    for tissue, grow in (("gut_wall", 0.0), ("stomach_fluid", -4.0)):
        plan.paint(
            plan.named_tube("stomach", "stomach", grow_mm=grow, shift_mm=4.0, size=0.07),
            tissue,
            "stomach",
            over=NOT_LUNG,
        )
    level = float(plan.patient.random("stomach_gas").uniform(-62, -25))
    plan.paint(
        plan.named_tube("stomach", "stomach", grow_mm=-4.0, shift_mm=4.0, size=0.07),
        "gas",
        "stomach",
        over=["stomach_fluid"],
        inside=[plan.half_space((0, level, 300), (0, -1, 0))],
    )


def _colon(plan: Plan) -> None:
    points = course("colon")
    rng = plan.patient.random("colon")
    widths = radii("colon") * np.exp(rng.normal(0, 0.07, len(points)))[:, None]
    _hollow(plan, "colon", points, widths, contents="stool", wall_mm=3.2, shift_mm=2.0, wander_mm=3.0)
    for k in range(len(points) - 4):  # pockets of gas
        if rng.random() < 0.35:
            middle = (points[k] + points[k + 1]) / 2
            plan.paint(plan.named_ellipsoid(f"colon_gas_{k}", "colon_gas", move=middle), "gas", "colon", over=["stool"])


def _small_bowel(plan: Plan) -> None:
    """Loops that wind through the middle of the abdomen in rows."""
    rng = plan.patient.random("small_bowel")
    points = []
    for row, z in enumerate(np.arange(96.0, 232.0, 23.0)):
        for column, x in enumerate(np.linspace(-58, 62, 5)[:: 1 if row % 2 else -1]):
            y = -34 + (24 if (column + row) % 2 else -22)
            points.append((x + rng.normal(0, 5), y + rng.normal(0, 4), z + rng.normal(0, 4)))
    _hollow(plan, "small_bowel", points, [13.0] * len(points), contents="gut_fluid", wall_mm=3.5)


def _hollow(
    plan: Plan,
    structure: str,
    points: Course,
    widths: Radii,
    *,
    contents: str,
    wall_mm: float,
    shift_mm: float = 0.0,
    wander_mm: float = 0.0,
) -> None:
    for tissue, grow in (("gut_wall", 0.0), (contents, -wall_mm)):
        plan.paint(
            plan.tube(structure, points, widths, grow_mm=grow, shift_mm=shift_mm, wander_mm=wander_mm),
            tissue,
            structure,
        )


def paint_bladder(plan: Plan) -> None:
    """Paint the bladder, with variable filling."""
    fill = plan.patient.size("bladder", 0.1)
    for tissue, grow in (("gut_wall", 0.0), ("urine", -3.5)):
        solid = plan.named_ellipsoid("bladder", "bladder", move=(0.0, 0.0, 10 * (fill - 1)), scale=fill, grow_mm=grow)
        plan.paint(solid, tissue, "urinary_bladder")


def paint_face(plan: Plan) -> None:
    """Assign the unlabelled skin, soft tissue, bone and air at the front of the head to the face."""
    front = plan.half_space((0, -62, 738), (0, -1, 0.12))
    plan.paint(plan.named_ellipsoid("face", "face"), None, "face", inside=[front])
