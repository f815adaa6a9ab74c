"""Bones: skull, spine, ribs, shoulder girdle, arms, pelvis, femurs, and the few unlabelled ones between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import course, profile_at, radii, ribs, shapes, spine_at, vertebrae
from inference.phantom.plan import LATERAL, SIDES, VERTICAL
from inference.phantom.surface import cage_section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.phantom.anatomy import Vertebra
    from inference.phantom.plan import Plan

    Points = NDArray[np.float64]

ATLAS_Z = 700.0


def paint_skeleton(plan: Plan) -> None:
    """Paint all bones, first the cortical shell and then the spongy core."""
    _skull(plan)
    _sternum(plan)
    _shoulder_girdle(plan)
    _pelvis(plan)
    _femurs(plan)
    _bone(plan, "sacrum", "sacrum")
    for number in range(1, 13):
        for side, sign in SIDES:
            _rib(plan, number, side, sign)
    _spine(plan)


def _spine(plan: Plan) -> None:
    discs = [(0.0, spine_at(z), z) for z in np.arange(104.0, 690.0, 16.0)]
    widths = [(profile_at("disc_half_width", z), profile_at("disc_half_depth", z)) for _, _, z in discs]
    plan.paint(plan.tube("discs", discs, widths), "disc")
    canal = [(0.0, spine_at(z) + profile_at("canal_behind_spine", z), z) for z in np.arange(104.0, 720.0, 16.0)]
    plan.paint(plan.tube("canal", canal, 8.0), "canal")
    for row in vertebrae().values():
        _vertebra(plan, row)
    _atlas(plan)


def _vertebra(plan: Plan, row: Vertebra) -> None:
    """Arch, spinous and transverse processes, then the body over them."""
    structure = f"vertebrae_{row.name}"
    middle = (row.bottom_mm + row.top_mm) / 2
    y = spine_at(middle)
    _vertebral_arch(plan, row, structure, middle, y)
    half_height = (row.top_mm - row.bottom_mm) / 2 + 0.5
    below, above = spine_at(row.bottom_mm - 8), spine_at(row.top_mm + 8)
    tilt = np.array([0.0, (above - below) / (row.top_mm - row.bottom_mm + 16), 1.0])
    half_axes = (row.half_width_mm, row.half_depth_mm, half_height)
    for tissue, grow in (("cortical", 0.0), ("trabecular", -2.2)):
        body = plan.ellipsoid(structure, (0, y, middle), half_axes, along=tilt, disc=True, size=0.03, grow_mm=grow)
        plan.paint(body, tissue, structure)
    if row.name == "C2":
        dens = plan.tube(structure, [(0, y, 684), (0, y - 1, 708)], [7.0, 6.0], straight=True)
        plan.paint(dens, "cortical", structure)


def _vertebral_arch(plan: Plan, row: Vertebra, structure: str, middle: float, y: float) -> None:
    depth, canal, radius = row.half_depth_mm, row.canal_half_width_mm, row.arch_radius_mm
    back = row.arch_behind_mm + y
    arch = [
        (canal, y + depth - 3, middle + 2),
        (canal + 1, y + depth + 9, middle + 1),
        (0, back, middle - 2),
        (-canal - 1, y + depth + 9, middle + 1),
        (-canal, y + depth - 3, middle + 2),
    ]
    plan.paint(plan.tube(structure, arch, radius, step_mm=9), "trabecular", structure)
    spinous = [(0, back, middle - 2), (0, back + row.spinous_length_mm, middle - 2 + row.spinous_rise_mm)]
    widths = [(radius - 0.8, radius + 1.5)] * 2
    plan.paint(plan.tube(structure, spinous, widths, straight=True), "trabecular", structure)
    for _, sign in SIDES:
        transverse = [
            (sign * (canal + 1), y + depth + 8, middle),
            (sign * row.transverse_reach_mm, y + depth + row.transverse_behind_mm, middle + 2),
        ]
        plan.paint(plan.tube(structure, transverse, radius - 0.6, straight=True), "trabecular", structure)


def _atlas(plan: Plan) -> None:
    structure = "vertebrae_C1"
    y = spine_at(ATLAS_Z)
    angles = np.linspace(0, 2 * np.pi, 17)
    ring = [(21 * np.sin(a), y + 7 - 19 * np.cos(a), ATLAS_Z) for a in angles]
    plan.paint(plan.tube(structure, ring, 5.2, straight=True), "trabecular", structure)
    for _, sign in SIDES:
        plan.paint(
            plan.named_ellipsoid(structure, "atlas_lateral_mass", sign, move=(0.0, y, 0.0)), "trabecular", structure
        )
        plan.paint(
            plan.tube(structure, [(sign * 24, y + 4, ATLAS_Z), (sign * 38, y + 5, ATLAS_Z - 1)], 5.0, straight=True),
            "trabecular",
            structure,
        )


def _rib(plan: Plan, number: int, side: str, sign: float) -> None:
    """From its vertebra around the cage, sloping downwards; the first seven continue to the sternum as cartilage."""
    structure = f"rib_{side}_{number}"
    patient, rib, vertebra = plan.patient, ribs()[number], vertebrae()[f"T{number}"]
    start = vertebra.top_mm - 3.0
    y = spine_at(start)
    end_deg = rib.end_deg + float(np.clip(patient.random("rib_end", str(number)).normal(0, 3), -6, 6))
    drop_mm = rib.drop_mm + float(patient.random("rib_slope").normal(0, 3))
    points = [
        (sign * (vertebra.half_width_mm + 3), y + vertebra.half_depth_mm * 0.75, start),
        (sign * (vertebra.half_width_mm + 16), y + vertebra.half_depth_mm + 13, start - 2),
    ]
    for angle in np.linspace(rib.first_deg, end_deg, max(4, round((end_deg - rib.first_deg) / 9))):
        fraction = (angle - rib.first_deg) / (150.0 - rib.first_deg)
        z = start - 4 - drop_mm * (1 - (1 - min(fraction, 1.0)) ** 1.3)
        centre, width, depth = cage_section(z)
        points.append((sign * width * np.sin(np.deg2rad(angle)), centre + depth * np.cos(np.deg2rad(angle)), z))
    widths = [(rib.broad_radius_mm, rib.thin_radius_mm)] * len(points)
    plan.paint(plan.tube(structure, points, widths, broad=VERTICAL, step_mm=10), "rib", structure)
    if number <= 7:
        z = float(np.interp(number, [1, 7], [548, 420]))
        end = (sign * 17, profile_at("sternum_y", z) + 2, z)
        cartilage = plan.tube(f"cartilage_{side}_{number}", [points[-1], end], 4.5, straight=True)
        plan.paint(cartilage, "cartilage", over=["fat", "muscle", "soft"])


def _sternum(plan: Plan) -> None:
    points = course("sternum")
    points[:, 1] = [profile_at("sternum_y", z) for z in points[:, 2]]
    plan.paint(plan.tube("sternum", points, radii("sternum"), broad=LATERAL), "trabecular")


def _shoulder_girdle(plan: Plan) -> None:
    lift = 10.0 if plan.patient.arms_raised else 0.0
    for side, sign in SIDES:
        _bone(plan, f"clavicula_{side}", "clavicle", sign, move=_upwards(0.0, lift / 3, lift, lift))
        _scapula(plan, f"scapula_{side}", sign, lift)
        _arm(plan, side, sign)


def _scapula(plan: Plan, structure: str, sign: float, lift: float) -> None:
    """A triangular plate, made of a fan of flat tubes, with its spine, socket and coracoid process."""
    turn = 22.0 if plan.patient.arms_raised else 0.0
    low = (sign * (92 + turn), 84 - turn * 0.35, 440 + turn * 0.6)
    medial, lateral = np.array((sign * 66, 98, 545)), np.array((sign * 134, 46, 538))
    flat = np.array([sign * 0.8, -0.6, 0.1])
    for k in np.linspace(0.0, 1.0, 5):
        upper = medial + (lateral - medial) * k
        blade = plan.tube(structure, [low, upper], [(9, 4.8), (12, 4.8)], broad=flat, straight=True)
        plan.paint(blade, "rib", structure)
    _bone(plan, structure, "scapular_spine", sign, move=_upwards(0.0, 0.0, lift * 0.5))
    plan.paint(plan.named_ellipsoid(structure, "glenoid", sign), "trabecular", structure)
    _bone(plan, structure, "coracoid", sign)


def _arm(plan: Plan, side: str, sign: float) -> None:
    structure, posture = f"humerus_{side}", "raised" if plan.patient.arms_raised else "lowered"
    _bone(plan, structure, f"humerus_{posture}", sign)
    _ball(plan, structure, course(f"humerus_{posture}", sign)[0], 22.5)
    _bone(plan, structure, f"elbow_{posture}", sign)
    if not plan.patient.arms_raised:
        for offset in (-9.0, 12.0):
            plan.paint(plan.named_tube(f"forearm_{side}", "forearm", sign, move=(offset, 0.0, 0.0)), "rib")


def _pelvis(plan: Plan) -> None:
    for side, sign in SIDES:
        structure = f"hip_{side}"
        plan.paint(plan.named_ellipsoid(structure, "iliac_wing", sign), "cortical", structure)
        _bone(plan, structure, "ilium", sign)
        opening = plan.half_space((sign * 97, 0, -4), (sign * 0.8, 0.0, -0.6))
        plan.paint(plan.named_ellipsoid(structure, "acetabulum", sign), "trabecular", structure, outside=[opening])
        for name in ("superior_pubic_ramus", "ischium", "inferior_pubic_ramus"):
            _bone(plan, structure, name, sign)
    plan.paint(plan.named_ellipsoid("symphysis", "symphysis"), "cartilage")


def _femurs(plan: Plan) -> None:
    for side, sign in SIDES:
        structure = f"femur_{side}"
        plan.paint(plan.named_ellipsoid(f"joint_{side}", "hip_joint", sign), "cartilage")
        _bone(plan, structure, "femoral_neck", sign)
        _bone(plan, structure, "femoral_shaft", sign)
        _ball(plan, structure, shapes()["hip_joint"].centre(sign), 24.0)


def _skull(plan: Plan) -> None:
    plan.paint(plan.named_ellipsoid("skull", "skull"), "skull")
    for shape in ("facial_bones", "skull_base"):
        plan.paint(plan.named_ellipsoid("skull", shape), "trabecular")
    plan.paint(plan.tube("jaw", course("jaw"), radii("jaw"), broad=VERTICAL, straight=True), "cortical")
    plan.paint(plan.named_ellipsoid("nasal_cavity", "nasal_cavity"), "gas")
    plan.paint(plan.named_tube("pharynx", "pharynx"), "gas")
    for _, sign in SIDES:
        plan.paint(plan.named_ellipsoid("sinus", "sinus", sign), "gas")
        plan.paint(plan.named_ellipsoid("orbit", "orbit", sign), "fat")
        plan.paint(plan.named_ellipsoid("orbit", "eye", sign), "csf")


def _bone(plan: Plan, structure: str, name: str, sign: float = 1.0, *, move: Points | float = 0.0) -> None:
    for tissue, grow in (("cortical", 0.0), ("trabecular", -3.0)):
        plan.paint(plan.named_tube(structure, name, sign, move=move, grow_mm=grow), tissue, structure)


def _upwards(*heights_mm: float) -> Points:
    """Displacements (0, 0, z) of the points of a course."""
    return np.array([(0.0, 0.0, height) for height in heights_mm])


def _ball(plan: Plan, structure: str, centre: Points, radius: float) -> None:
    for tissue, grow in (("cortical", 0.0), ("trabecular", -2.5)):
        plan.paint(plan.ellipsoid(structure, centre, (radius, radius, radius), grow_mm=grow), tissue, structure)
