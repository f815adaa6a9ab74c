"""A small chest with lungs, spine and skin in noisy air, from which the scale of a CT can be recognised."""

from __future__ import annotations

import numpy as np

SHAPE = (12, 60, 64)
AIR, LUNG, FAT, MUSCLE, BONE = -1000, -850, -100, 40, 700


def chest_hu(seed: int = 0, noise: float = 8.0) -> np.ndarray:
    """HU, [plane, row, column], int16; the body ends within the image."""
    _, rows, columns = SHAPE
    y, x = np.ogrid[:rows, :columns]
    hu = np.full(SHAPE, float(AIR))

    def fill(centre_yx, radii_yx, value):
        hu[:, ((y - centre_yx[0]) / radii_yx[0]) ** 2 + ((x - centre_yx[1]) / radii_yx[1]) ** 2 <= 1] = value

    fill((30, 32), (22, 28), FAT)
    fill((30, 32), (19, 25), MUSCLE)
    fill((27, 21), (11, 8), LUNG)
    fill((27, 43), (11, 8), LUNG)
    fill((43, 32), (4, 5), BONE)
    # both ends of the spine differ, so that a flipped volume is not equal
    hu[0, 40, 30:34] = 900
    hu += np.random.default_rng(seed).normal(0, noise, SHAPE)
    return np.rint(hu).astype(np.int16)


def outside_circle(
    centre_yx: tuple[float, float] = (29.5, 31.5), radii_yx: tuple[float, float] = (30, 32)
) -> np.ndarray:
    """The pixels, [row, column], outside a circle (an ellipse where the radii differ)."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    outside: np.ndarray = ((y - centre_yx[0]) / radii_yx[0]) ** 2 + ((x - centre_yx[1]) / radii_yx[1]) ** 2 > 1
    return outside
