"""Numbers as decimal strings (PS3.5 table 6.2-1, VR DS): a few for pydicom, or coordinates by the million as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydicom.valuerep import DSfloat

from dicom_node.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_DECIMALS = 4
"""0.1 micrometre is far below any voxel size, and three coordinates take at most 48 characters."""
_SCALE = 10**_DECIMALS
_LARGEST = 10**10
"""A sign, ten digits, the point and the decimals are the 16 characters that a DS may have."""
_OTHERS = 3
"""Characters of a value besides its digits: sign, point, and the backslash after it."""


def decimal(value: float) -> DSfloat:
    """``value`` to as many digits as 16 characters hold."""
    return DSfloat(float(value), auto_format=True)


def decimals(values: Iterable[float]) -> list[DSfloat]:
    """Each of ``values`` as :func:`decimal`."""
    return [decimal(value) for value in values]


def longest_text(largest: float) -> int:
    """The most bytes that :func:`decimal_strings` needs for one value of a magnitude up to ``largest``.

    Raises:
        EncodingError: it does not fit into a DS.
    """
    if not abs(largest) < _LARGEST:
        raise EncodingError(f"coordinate {largest:g} mm does not fit into a decimal string")
    return max(_DECIMALS + 1, len(str(round(abs(largest) * _SCALE)))) + _OTHERS


def decimal_strings(values: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``values`` as characters, each followed by a backslash, and the offset at which each ends.

    Trailing zeros are left out.

    Raises:
        EncodingError: a value does not fit into a DS.
    """
    if not len(values):
        return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    width = longest_text(float(np.abs(values).max()))
    scaled = np.rint(values * _SCALE).astype(np.int64)
    rest = np.abs(scaled)
    if rest.max() < 2**32:
        rest = rest.astype(np.uint32)  # three times faster to divide
    text = np.empty((len(values), width), dtype=np.uint8)
    said = np.empty(text.shape, dtype=np.bool_)
    text[:, 0], said[:, 0] = ord("-"), scaled < 0
    text[:, -1], said[:, -1] = ord("\\"), True
    point = width - 2 - _DECIMALS
    begun = np.zeros(len(values), dtype=np.bool_)
    for column in range(width - 2, 0, -1):
        if column == point:
            text[:, column], said[:, column] = ord("."), begun
            continue
        if column < point:
            said[:, column] = True if column == point - 1 else rest > 0
        tens = rest // 10
        digit = (rest - 10 * tens).astype(np.uint8)
        rest = tens
        text[:, column] = digit + ord("0")
        if column > point:
            begun |= digit > 0
            said[:, column] = begun
    return text[said], np.cumsum(said.sum(axis=1))
