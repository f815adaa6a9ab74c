"""The body search, in phantoms with known outlines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.nnunet.body import body_mask, bounding_box

SPACING = (5.0, 4.0, 4.0)
SHAPE = (30, 100, 110)


def scene():
    """A trunk with lungs and a separate arm in air, a table of 4 mm, and noise: HU, and the true body mask."""
    _, y, x = np.indices(SHAPE)
    trunk = ((y - 45) / 30) ** 2 + ((x - 50) / 35) ** 2 < 1
    lungs = ((y - 45) / 22) ** 2 + ((np.abs(x - 50) - 16) / 13) ** 2 < 1
    arm = (y - 45) ** 2 + (x - 97) ** 2 < 6**2
    hu = np.full(SHAPE, -1000.0)
    hu[trunk | arm] = 40
    hu[lungs] = -850
    hu[:, 82] = -300  # the table, a thin shell that fills its voxels partly
    hu += np.random.default_rng(0).normal(scale=60, size=SHAPE)
    return hu.astype(np.int16), trunk | arm


def test_mask_contains_body_lungs_and_arms_but_not_table_or_air():
    hu, patient = scene()
    mask = body_mask(hu, SPACING)
    assert mask[patient].all()
    assert not mask[:, 82:].any()
    assert mask.sum() < 1.7 * patient.sum()


def test_lungs_at_the_border_of_the_field_of_view_belong_to_the_body():
    hu, patient = scene()
    cut = (slice(None), slice(None), slice(25, 110))  # through one lung
    assert body_mask(hu[cut], SPACING)[patient[cut]].all()


@pytest.mark.parametrize("hu", [np.full(SHAPE, -1000, np.int16), np.full((30, 60, 110), 40, np.int16)])
def test_no_mask_without_a_body_or_with_a_narrow_field_of_view(hu):
    assert body_mask(hu, SPACING) is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_box_contains_everything_and_has_the_requested_size_or_the_arrays(data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    least = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < 0.05
    box = bounding_box(mask, least)
    assert mask[box].sum() == mask.sum()
    for axis, (at, size, wanted) in enumerate(zip(box, shape, least, strict=True)):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        tight = found[-1] + 1 - found[0] if found.size else size
        assert 0 <= at.start < at.stop <= size
        assert at.stop - at.start == max(tight, min(wanted, size))
