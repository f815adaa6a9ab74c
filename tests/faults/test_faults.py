"""Each fault case in a few rounds: the same code as the record, which ``make faults`` makes."""

from __future__ import annotations

import pytest

from tests.faults import CASES
from tests.faults.case import CannotBeDone


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_must_hold_holds(case, tmp_path):
    try:
        outcome = case.run(tmp_path, case.rounds_in_tests)
    except CannotBeDone as why:
        pytest.skip(str(why))
    assert outcome.violations == ()
    assert all(outcome.tried.values()), "nothing was tried"
