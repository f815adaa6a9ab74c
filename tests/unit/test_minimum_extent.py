"""The minimum extent of a volume for a model: one rule for the node, the segment command and the engine."""

from __future__ import annotations

import numpy as np
import pytest

from inference.types import Geometry, MinimumExtent

GEOMETRY = Geometry((6, 5, 7), np.diag([0.5, 0.75, 2.5, 1.0]))  # 3.5 x 3.75 x 15 mm


@pytest.mark.parametrize("minimum", [MinimumExtent(), MinimumExtent(slices=6), MinimumExtent(extent_mm=3.5)])
def test_volume_of_exactly_the_minimum_is_large_enough(minimum):
    assert minimum.refusal(GEOMETRY) is None


@pytest.mark.parametrize(
    ("minimum", "reason"),
    [
        (MinimumExtent(slices=7), "6 slices; the model needs at least 7"),
        (
            MinimumExtent(extent_mm=3.6),
            "the volume measures 3.5 x 3.8 x 15.0 mm; the model needs at least 3.6 mm along every axis",
        ),
    ],
)
def test_smaller_volume_is_refused_with_the_numbers(minimum, reason):
    assert minimum.refusal(GEOMETRY) == reason
