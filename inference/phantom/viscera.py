"""Organs of the neck, chest, abdomen and pelvis, the gut with its gas and contents, brain and face."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.plan import SIDES
from inference.phantom.surface import ABDOMINAL_CAVITY

if TYPE_CHECKING:
    from inference.phantom.plan import Course, Plan, Radii

NOT_LUNG = ("fat", "muscle", "soft", "gut_wall", "gut_fluid", "stool", "gas", "stomach_fluid", "spleen", "kidney")


def paint_brain(plan: Plan) -> None:
    """Cerebrum, cerebellum and brain stem with ventricles; painted into the skull."""
    plan.paint(plan.ellipsoid("brain", (0, 6, 788), (64, 82, 68), size=0.02), "brain", "brain")
    plan.paint(plan.ellipsoid("brain", (0, 44, 742), (48, 34, 26), size=0.02), "brain", "brain")
    plan.paint(plan.tube("brain_stem", [(0, 14, 745), (0, 30, 716)], [15, 9]), "brain", "brain")
    for _, sign in SIDES:
        ventricle = [(sign * 12, -30, 800), (sign * 13, 0, 806), (sign * 22, 35, 795)]
        plan.paint(plan.tube("ventricle", ventricle, plan.patient.size("ventricle", 0.2) * 5.5), "csf", "brain")


def paint_airway(plan: Plan) -> None:
    """Trachea with the main bronchi, thyroid, oesophagus."""
    for _, sign in SIDES:
        plan.paint(plan.ellipsoid("thyroid", (sign * 19, -22, 606), (10, 11, 22)), "thyroid")
    shift = plan.patient.shift_mm("airway", 2.0)
    gullet = (
        np.array([(1, 4, 628), (2, 16, 590), (3, 24, 545), (4, 27, 500), (9, 20, 440), (13, 10, 400), (20, 2, 372)])
        + shift * 0.5
    )
    plan.paint(plan.tube("oesophagus", gullet, 8.4, size=0.06), "oesophagus", "esophagus")
    trachea = np.array([(0, -18, 640), (0, -12, 605), (0, 4, 555), (-2, 10, 502)]) + shift
    for tissue, structure, grow in (("soft", None, 2.5), ("gas", "trachea", 0.0)):
        plan.paint(plan.tube("trachea", trachea, 9.0, size=0.06, grow_mm=grow), tissue, structure)
        for _, sign in SIDES:
            bronchus = np.array([(-2, 10, 502), (sign * 24 - 1, 12, 482 + 4 * sign), (sign * 40, 14, 468)]) + shift
            plan.paint(plan.tube("trachea", bronchus, [8, 7, 6], grow_mm=grow), tissue, structure)


def paint_upper_abdomen(plan: Plan) -> None:
    """Liver, gallbladder, spleen, kidneys, adrenal glands, pancreas."""
    cavity = plan.trunk(ABDOMINAL_CAVITY, grow_mm=3.0)
    move = plan.patient.shift_mm("liver", 4.0)
    size = plan.patient.size("liver", 0.05)
    for centre, radii, turn in (((-66, 0, 326), (64, 82, 78), (0, 0, 8)), ((8, -46, 352), (66, 34, 34), (0, -8, -10))):
        plan.paint(
            plan.ellipsoid("liver", np.array(centre) + move, np.array(radii) * size, turn_deg=turn, turn_sd_deg=3),
            "liver",
            "liver",
            inside=[cavity],
            over=NOT_LUNG,
        )
    plan.paint(
        plan.ellipsoid(
            "spleen", (90, 38, 338), (26, 37, 51), turn_deg=(-20, 12, 10), shift_mm=4, size=0.08, turn_sd_deg=5
        ),
        "spleen",
        "spleen",
        inside=[cavity],
        over=[*NOT_LUNG, "lung"],
    )
    for side, sign in SIDES:
        name = f"kidney_{side}"
        middle = np.array([sign * 64, 44, 268 + 6 * sign])
        plan.paint(
            plan.ellipsoid(
                name, middle, (27, 26, 54), turn_deg=(sign * -20, 8, sign * 12), shift_mm=4, size=0.06, turn_sd_deg=4
            ),
            "kidney",
            name,
        )
        hilum = plan.patient.shift_mm(name, 4) + np.array([sign * 50, 38, 268 + 6 * sign])
        plan.paint(plan.ellipsoid(f"hilum_{side}", hilum, (12, 9, 18)), "renal_pelvis")
    for side, sign, centre in (("right", -1.0, (-37, 24, 334)), ("left", 1.0, (36, 16, 330))):
        name = f"adrenal_gland_{side}"
        middle = np.array(centre) + plan.patient.shift_mm(name, 2.5)
        for yaw, offset in ((sign * -28, -6.0), (sign * 24, 6.0)):
            limb = middle + np.array([sign * (offset * 0.6 + 2), 8.0, -4.0])
            plan.paint(plan.ellipsoid(name, limb, (4.4, 14, 13), turn_deg=(yaw, 0, 0), size=0.05), "adrenal", name)
    pancreas = [(-30, -22, 262), (-26, -24, 280), (-6, -32, 298), (24, -22, 312), (54, 6, 326), (76, 24, 336)]
    plan.paint(
        plan.tube("pancreas", pancreas, [14, 16, 12.5, 12, 11.5, 9.5], shift_mm=3, wander_mm=2.5, size=0.06),
        "pancreas",
        "pancreas",
    )
    plan.paint(
        plan.ellipsoid(
            "gallbladder",
            np.array([-50, -58, 296]) + move * 0.7,
            (17, 17, 31),
            turn_deg=(0, 20, -10),
            shift_mm=3,
            size=0.08,
            turn_sd_deg=6,
        ),
        "bile",
        "gallbladder",
    )


def paint_gut(plan: Plan) -> None:
    """Small bowel, colon, duodenum, stomach: a wall, contents, gas where it rises (anterior)."""
    _small_bowel(plan)
    _colon(plan)
    duodenum = [
        (-22, -40, 298),
        (-42, -32, 296),
        (-50, -14, 280),
        (-48, -6, 248),
        (-26, -4, 228),
        (4, -10, 226),
        (30, -16, 246),
    ]
    _hollow(
        plan,
        "duodenum",
        duodenum,
        [12.5, 12.5, 12.5, 12, 12, 12, 11.5],
        contents="gut_fluid",
        wall_mm=3.2,
        shift_mm=2.5,
        wander_mm=1.5,
    )
    stomach = [(54, 6, 374), (66, -8, 352), (66, -32, 322), (46, -50, 292), (14, -54, 278), (-14, -46, 292)]
    radii = [30, 33, 30, 26, 21, 14]
    for tissue, grow in (("gut_wall", 0.0), ("stomach_fluid", -4.0)):
        plan.paint(
            plan.tube("stomach", stomach, radii, grow_mm=grow, shift_mm=4.0, size=0.07),
            tissue,
            "stomach",
            over=NOT_LUNG,
        )
    level = float(plan.patient.random("stomach_gas").uniform(-62, -25))
    plan.paint(
        plan.tube("stomach", stomach, radii, grow_mm=-4.0, shift_mm=4.0, size=0.07),
        "gas",
        "stomach",
        over=["stomach_fluid"],
        inside=[plan.half_space((0, level, 300), (0, -1, 0))],
    )


def _colon(plan: Plan) -> None:
    course = np.array(
        [
            (-72, -22, 112),
            (-84, -8, 150),
            (-94, 6, 200),
            (-94, 6, 240),
            (-80, -18, 262),
            (-56, -52, 246),
            (-28, -72, 226),
            (8, -74, 216),
            (44, -66, 234),
            (74, -38, 272),
            (92, -6, 304),
            (101, 16, 276),
            (102, 16, 220),
            (98, 14, 160),
            (88, -6, 120),
            (58, -26, 92),
            (26, -14, 78),
            (14, 14, 88),
            (6, 40, 76),
            (0, 54, 50),
            (0, 48, 16),
            (0, 34, -14),
            (0, 34, -38),
        ]
    )
    rng = plan.patient.random("colon")
    radii = np.array(
        [23, 24, 22, 21, 20, 19, 19, 19, 18, 18, 18, 16, 16, 16, 15, 15, 14.5, 14.5, 15, 18, 18, 14, 11]
    ) * np.exp(rng.normal(0, 0.07, len(course)))
    _hollow(plan, "colon", course, radii, contents="stool", wall_mm=3.2, shift_mm=2.0, wander_mm=3.0)
    for k in range(len(course) - 4):  # pockets of gas
        if rng.random() < 0.35:
            middle = (course[k] + course[k + 1]) / 2
            plan.paint(
                plan.ellipsoid(f"colon_gas_{k}", middle + np.array([0, -5.0, 0]), (12, 10, 14)),
                "gas",
                "colon",
                over=["stool"],
            )


def _small_bowel(plan: Plan) -> None:
    """Loops that wind through the middle of the abdomen, row above row."""
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
    course: Course,
    radii: Radii,
    *,
    contents: str,
    wall_mm: float,
    shift_mm: float = 0.0,
    wander_mm: float = 0.0,
) -> None:
    for tissue, grow in (("gut_wall", 0.0), (contents, -wall_mm)):
        plan.paint(
            plan.tube(structure, course, radii, grow_mm=grow, shift_mm=shift_mm, wander_mm=wander_mm),
            tissue,
            structure,
        )


def paint_bladder(plan: Plan) -> None:
    """Bladder, filled more or less."""
    fill = plan.patient.size("bladder", 0.1)
    for tissue, grow in (("gut_wall", 0.0), ("urine", -3.5)):
        plan.paint(
            plan.ellipsoid(
                "bladder", (0, -22, 18 + 10 * (fill - 1)), (40 * fill, 34 * fill, 32 * fill), shift_mm=2.0, grow_mm=grow
            ),
            tissue,
            "urinary_bladder",
        )


def paint_face(plan: Plan) -> None:
    """The front of the head with skin, soft tissue, bone and air that have no name of their own."""
    plan.paint(
        plan.ellipsoid("face", (0, -50, 738), (84, 84, 66)),
        None,
        "face",
        inside=[plan.half_space((0, -62, 738), (0, -1, 0.12))],
    )
