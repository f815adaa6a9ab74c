"""Bones: skull, spine, ribs, shoulder girdle, arms, pelvis, femurs; and the few unlabelled ones between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.plan import LATERAL, SIDES, VERTICAL
from inference.phantom.surface import cage_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.phantom.plan import Course, Plan, Radii

SPINE_COURSE = np.array(
    [(95, 34), (150, 22), (200, 20), (270, 30), (350, 45), (430, 56), (520, 52), (585, 34), (640, 20), (700, 18)],
    dtype=np.float64,
)
"""(z, y) of the centres of the vertebral bodies: lumbar and cervical lordosis, thoracic kyphosis."""

VERTEBRAE = (
    # name, lower and upper end plate z, half width, half depth of the body
    ("L5", 108, 136, 25, 17),
    ("L4", 145, 173, 24, 17),
    ("L3", 182, 209, 23, 16.5),
    ("L2", 218, 244, 22, 16),
    ("L1", 252, 278, 21, 16),
    ("T12", 286, 310, 20, 15.5),
    ("T11", 316, 339, 19, 15.5),
    ("T10", 345, 367, 18, 15.5),
    ("T9", 372, 393, 17, 15.5),
    ("T8", 398, 418, 17, 15),
    ("T7", 423, 443, 16, 15),
    ("T6", 448, 467, 15.5, 14.5),
    ("T5", 471, 490, 15, 14),
    ("T4", 494, 512, 15, 13),
    ("T3", 516, 533, 15, 12),
    ("T2", 537, 554, 15.5, 11),
    ("T1", 558, 575, 16, 10.5),
    ("C7", 579, 594, 14.5, 9.5),
    ("C6", 598, 612, 13.5, 9.5),
    ("C5", 616, 630, 13, 9.5),
    ("C4", 634, 648, 13, 9.5),
    ("C3", 652, 666, 12.5, 9.5),
    ("C2", 670, 688, 12.5, 9.5),
)
ATLAS_Z = 700.0
RIB_END_DEG = (150, 150, 148, 146, 144, 141, 138, 130, 121, 110, 88, 62)
"""How far each rib runs round the cage, from the spine (0) to the sternum (180); the last two float."""
RIB_DROP_MM = (20, 34, 48, 60, 70, 78, 84, 88, 88, 86, 66, 46)
"""How far each rib falls on its way."""


def paint_skeleton(plan: Plan) -> None:
    """All bones, cortical shell first and spongy core over it."""
    _skull(plan)
    _sternum(plan)
    _shoulder_girdle(plan)
    _pelvis(plan)
    _femurs(plan)
    _sacrum(plan)
    for number in range(1, 13):
        for side, sign in SIDES:
            _rib(plan, number, side, sign)
    _spine(plan)


def spine_at(z: float) -> float:
    """Give y of the centre of the vertebral bodies at reference height ``z``."""
    return float(np.interp(z, SPINE_COURSE[:, 0], SPINE_COURSE[:, 1]))


def _spine(plan: Plan) -> None:
    discs = [(x, spine_at(z), z) for z in np.arange(104.0, 690.0, 16.0) for x in (0.0,)]
    widths = [
        (
            float(np.interp(p[2], [104, 285, 450, 585, 690], [22, 18, 14, 13, 11])),
            float(np.interp(p[2], [104, 285, 450, 585, 690], [15, 14, 13, 9, 8])),
        )
        for p in discs
    ]
    plan.paint(plan.tube("discs", discs, widths), "disc")
    canal = [
        (0.0, spine_at(z) + float(np.interp(z, [104, 285, 450, 585, 690], [24, 22, 21, 17, 16])), z)
        for z in np.arange(104.0, 720.0, 16.0)
    ]
    plan.paint(plan.tube("canal", canal, 8.0), "canal")
    for row in VERTEBRAE:
        _vertebra(plan, row)
    _atlas(plan)


def _vertebra(plan: Plan, row: tuple[str, float, float, float, float]) -> None:
    name, bottom, top, width, depth = row
    structure = f"vertebrae_{name}"
    middle = (bottom + top) / 2
    half = (top - bottom) / 2
    y = spine_at(middle)
    tilt = np.array([0.0, (spine_at(top + 8) - spine_at(bottom - 8)) / (top - bottom + 16), 1.0])
    region = name[0]
    back = {"L": 36.0, "T": 33.0, "C": 26.0}[region] + y
    arch_radius = {"L": 5.5, "T": 5.0, "C": 4.6}[region]
    canal = {"L": 15.0, "T": 13.0, "C": 13.5}[region]
    arch = [
        (canal, y + depth - 3, middle + 2),
        (canal + 1, y + depth + 9, middle + 1),
        (0, back, middle - 2),
        (-canal - 1, y + depth + 9, middle + 1),
        (-canal, y + depth - 3, middle + 2),
    ]
    plan.paint(plan.tube(structure, arch, arch_radius, step_mm=9), "trabecular", structure)
    spinous = {"L": (28.0, -5.0), "T": (26.0, -20.0), "C": (18.0, -6.0)}[region]
    if name in ("C7", "T1"):
        spinous = (26.0, -8.0)
    plan.paint(
        plan.tube(
            structure,
            [(0, back, middle - 2), (0, back + spinous[0], middle - 2 + spinous[1])],
            [(arch_radius - 0.8, arch_radius + 1.5)] * 2,
            straight=True,
        ),
        "trabecular",
        structure,
    )
    reach = {"L": 38.0, "T": 30.0, "C": 24.0}[region]
    for _, sign in SIDES:
        process = [
            (sign * (canal + 1), y + depth + 8, middle),
            (sign * reach, y + depth + (14 if region != "C" else 2), middle + 2),
        ]
        plan.paint(plan.tube(structure, process, arch_radius - 0.6, straight=True), "trabecular", structure)
    for tissue, grow in (("cortical", 0.0), ("trabecular", -2.2)):
        plan.paint(
            plan.ellipsoid(
                structure, (0, y, middle), (width, depth, half + 0.5), along=tilt, disc=True, size=0.03, grow_mm=grow
            ),
            tissue,
            structure,
        )
    if name == "C2":
        plan.paint(
            plan.tube(structure, [(0, y, 684), (0, y - 1, 708)], [7.0, 6.0], straight=True), "cortical", structure
        )


def _atlas(plan: Plan) -> None:
    structure = "vertebrae_C1"
    y = spine_at(ATLAS_Z)
    angles = np.linspace(0, 2 * np.pi, 17)
    ring = [(21 * np.sin(a), y + 7 - 19 * np.cos(a), ATLAS_Z) for a in angles]
    plan.paint(plan.tube(structure, ring, 5.2, straight=True), "trabecular", structure)
    for _, sign in SIDES:
        plan.paint(plan.ellipsoid(structure, (sign * 20, y + 1, ATLAS_Z), (9, 10, 9)), "trabecular", structure)
        plan.paint(
            plan.tube(structure, [(sign * 24, y + 4, ATLAS_Z), (sign * 38, y + 5, ATLAS_Z - 1)], 5.0, straight=True),
            "trabecular",
            structure,
        )


def _rib(plan: Plan, number: int, side: str, sign: float) -> None:
    structure = f"rib_{side}_{number}"
    patient = plan.patient
    vertebra = next(row for row in VERTEBRAE if row[0] == f"T{number}")
    start = vertebra[2] - 3.0
    y = spine_at(start)
    end_angle = RIB_END_DEG[number - 1] + float(np.clip(patient.random("rib_end", str(number)).normal(0, 3), -6, 6))
    drop = RIB_DROP_MM[number - 1] + float(patient.random("rib_slope").normal(0, 3))
    points = [
        (sign * (vertebra[3] + 3), y + vertebra[4] * 0.75, start),
        (sign * (vertebra[3] + 16), y + vertebra[4] + 13, start - 2),
    ]
    first = {1: 42, 2: 34, 3: 30}.get(number, 25)
    for angle in np.linspace(first, end_angle, max(4, round((end_angle - first) / 9))):
        fraction = (angle - first) / (150.0 - first)
        z = start - 4 - drop * (1 - (1 - min(fraction, 1.0)) ** 1.3)
        centre, width, depth = cage_section(z)
        points.append((sign * width * np.sin(np.deg2rad(angle)), centre + depth * np.cos(np.deg2rad(angle)), z))
    broad, thin = (7.0, 4.4) if number < 11 else (6.2, 4.4)
    plan.paint(
        plan.tube(structure, points, [(broad, thin)] * len(points), broad=VERTICAL, step_mm=10), "rib", structure
    )
    if 1 <= number <= 7:  # costal cartilage runs on to the sternum
        z = float(np.interp(number, [1, 7], [548, 420]))
        tip = points[-1]
        plan.paint(
            plan.tube(f"cartilage_{side}_{number}", [tip, (sign * 17, sternum_at(z) + 2, z)], 4.5, straight=True),
            "cartilage",
            over=["fat", "muscle", "soft"],
        )


def sternum_at(z: float) -> float:
    """Give y of the middle of the sternum at reference height ``z``."""
    return float(np.interp(z, [390, 450, 500, 565], [-106, -103, -90, -62]))


def _sternum(plan: Plan) -> None:
    points = [(0, sternum_at(z), z) for z in (395.0, 430.0, 470.0, 510.0, 535.0, 562.0)]
    plan.paint(
        plan.tube("sternum", points, [(9, 4), (15, 5), (15, 5.5), (15, 6), (20, 7), (26, 7)], broad=LATERAL),
        "trabecular",
    )


def _shoulder_girdle(plan: Plan) -> None:
    raised = plan.patient.arms_raised
    for side, sign in SIDES:
        lift = 10.0 if raised else 0.0
        structure = f"clavicula_{side}"
        course = [
            (sign * 20, -70, 566),
            (sign * 62, -72, 576 + lift / 3),
            (sign * 108, -30, 584 + lift),
            (sign * 146, 8, 580 + lift),
        ]
        _bone(plan, structure, course, [8.0, 6.6, 6.6, 7.2])
        structure = f"scapula_{side}"
        turn = 22.0 if raised else 0.0
        low = (sign * (92 + turn), 84 - turn * 0.35, 440 + turn * 0.6)
        medial = (sign * 66, 98, 545)
        lateral = (sign * 134, 46, 538)
        for k in np.linspace(0.0, 1.0, 5):  # a triangular plate as a fan of flat tubes
            upper = np.array(medial) + (np.array(lateral) - np.array(medial)) * k
            plan.paint(
                plan.tube(
                    structure,
                    [low, upper],
                    [(9, 4.8), (12, 4.8)],
                    broad=np.array([sign * 0.8, -0.6, 0.1]),
                    straight=True,
                ),
                "rib",
                structure,
            )
        _bone(
            plan,
            structure,
            [(sign * 72, 106, 548), (sign * 120, 88, 562), (sign * 158, 44, 586 + lift * 0.5)],
            [6, 7.5, 8],
        )
        plan.paint(plan.ellipsoid(structure, (sign * 132, 40, 545), (10, 15, 19)), "trabecular", structure)
        _bone(plan, structure, [(sign * 128, 28, 560), (sign * 134, 0, 565)], [7.5, 6])
        structure = f"humerus_{side}"
        if raised:
            shaft = [(sign * 160, 20, 556), (sign * 170, 6, 610), (sign * 172, -6, 700), (sign * 150, -25, 805)]
            ends = (sign * 146, -28, 822)
        else:
            shaft = [(sign * 162, 22, 550), (sign * 184, 28, 490), (sign * 196, 30, 380), (sign * 206, 22, 268)]
            ends = (sign * 207, 20, 250)
        _bone(plan, structure, shaft, [17, 12.5, 11.5, 13])
        _ball(plan, structure, shaft[0], 22.5)
        _bone(plan, structure, [(ends[0] - 19, *ends[1:]), (ends[0] + 19, *ends[1:])], [9, 9])
        if not raised:
            for offset in (-9.0, 12.0):
                bones = [(sign * 210 + offset, 8, 228), (sign * 213 + offset, -8, 110), (sign * 204 + offset, -34, 12)]
                plan.paint(plan.tube(f"forearm_{side}", bones, 6.5), "rib")


def _pelvis(plan: Plan) -> None:
    for side, sign in SIDES:
        structure = f"hip_{side}"
        plate = plan.ellipsoid(
            structure, (sign * 96, 22, 100), (9, 66, 58), turn_deg=(sign * 22, 0, sign * 26), size=0.03
        )
        plan.paint(plate, "cortical", structure)
        _bone(plan, structure, [(sign * 46, 70, 88), (sign * 66, 52, 58), (sign * 84, 16, 24)], [14, 15, 17])
        socket = (sign * 86, 0, 2)
        ring_out = plan.ellipsoid(structure, socket, (35, 35, 35))
        opening = plan.half_space((sign * 97, 0, -4), (sign * 0.8, 0.0, -0.6))
        plan.paint(ring_out, "trabecular", structure, outside=[opening])
        _bone(plan, structure, [(sign * 70, -20, -2), (sign * 36, -50, -12), (sign * 10, -58, -22)], [10, 8.5, 10])
        _bone(plan, structure, [(sign * 84, 26, -14), (sign * 68, 30, -48), (sign * 58, 12, -62)], [15, 13, 12])
        _bone(plan, structure, [(sign * 58, 12, -60), (sign * 30, -28, -48), (sign * 10, -54, -32)], [9, 7.5, 8])
    plan.paint(plan.ellipsoid("symphysis", (0, -57, -24), (5, 11, 15)), "cartilage")


def _femurs(plan: Plan) -> None:
    for side, sign in SIDES:
        structure = f"femur_{side}"
        head = (sign * 88, 0, 0)
        plan.paint(plan.ellipsoid(f"joint_{side}", head, (27, 27, 27)), "cartilage")
        _bone(plan, structure, [(sign * 88, 0, 0), (sign * 124, 8, -28)], [16, 17])
        _bone(
            plan,
            structure,
            [
                (sign * 134, 18, 0),
                (sign * 132, 16, -40),
                (sign * 122, 10, -80),
                (sign * 112, 4, -190),
                (sign * 100, 0, -330),
            ],
            [15, 22, 16.5, 14.5, 14.5],
        )
        _ball(plan, structure, head, 24.0)


def _sacrum(plan: Plan) -> None:
    points = [(0, 36, 98), (0, 58, 74), (0, 76, 44), (0, 80, 14), (0, 68, -10)]
    widths = [(40, 18), (44, 20), (34, 15), (20, 11), (9, 6)]
    for tissue, grow in (("cortical", 0.0), ("trabecular", -3.0)):
        plan.paint(plan.tube("sacrum", points, widths, broad=LATERAL, grow_mm=grow), tissue, "sacrum")


def _skull(plan: Plan) -> None:
    plan.paint(plan.ellipsoid("skull", (0, 4, 786), (73, 93, 82)), "skull")
    plan.paint(plan.ellipsoid("skull", (0, -52, 735), (38, 36, 34)), "trabecular")
    plan.paint(plan.ellipsoid("skull", (0, 6, 724), (48, 48, 16)), "trabecular")
    jaw = [(48, -8, 724), (46, -20, 690), (24, -76, 676), (-24, -76, 676), (-46, -20, 690), (-48, -8, 724)]
    plan.paint(plan.tube("jaw", jaw, [(7, 6)] * 6, broad=VERTICAL, straight=True), "cortical")
    plan.paint(plan.ellipsoid("nasal_cavity", (0, -62, 742), (14, 30, 17)), "gas")
    plan.paint(plan.tube("pharynx", [(0, -30, 738), (0, -14, 700), (0, -16, 660), (0, -18, 640)], [9, 9, 8, 7]), "gas")
    for _, sign in SIDES:
        plan.paint(plan.ellipsoid("sinus", (sign * 30, -58, 738), (11, 14, 13)), "gas")
        plan.paint(plan.ellipsoid("orbit", (sign * 32, -74, 766), (16, 16, 15)), "fat")
        plan.paint(plan.ellipsoid("orbit", (sign * 32, -78, 766), (11.5, 11.5, 11.5)), "csf")


def _bone(plan: Plan, structure: str, points: Course, radii: Radii) -> None:
    for tissue, grow in (("cortical", 0.0), ("trabecular", -3.0)):
        plan.paint(plan.tube(structure, points, radii, grow_mm=grow), tissue, structure)


def _ball(plan: Plan, structure: str, centre: Sequence[float], radius: float) -> None:
    for tissue, grow in (("cortical", 0.0), ("trabecular", -2.5)):
        plan.paint(plan.ellipsoid(structure, centre, (radius, radius, radius), grow_mm=grow), tissue, structure)
