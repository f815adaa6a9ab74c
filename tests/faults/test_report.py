"""The list of faults is whole and true, and docs/reliability.md says what it and the record say."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.faults import CASES
from tests.faults.report import GROUPS, PAGE, faults, page

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {
    "R": 11, "S": 10, "J": 12, "P": 10, "D": 10, "F": 11, "A": 9, "C": 15, "I": 7, "M": 8, "K": 6, "W": 10, "O": 6,
}  # fmt: skip
"""How many faults each group of the list has, so that none is left out."""


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests that pytest collects from a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in functions if name.startswith("test_"))


def test_page_is_what_the_list_and_the_record_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.faults.report"


def test_no_fault_is_left_out():
    assert GROUPS.keys() == NUMBERS.keys()
    expected = [f"{letter}{number}" for letter, last in NUMBERS.items() for number in range(1, last + 1)]
    assert [row.id for row in faults()] == expected


@pytest.mark.parametrize("row", faults(), ids=lambda row: row.id)
def test_every_row_names_existing_tests_or_says_why_there_are_none(row):
    assert row.fault.endswith(".")
    assert row.holds.endswith(".")
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        path, _, name = test.partition("::")
        assert re.fullmatch(r"(.*/)?test_\w+\.py", path), test
        assert name in names_in(path), test
    assert row.tests or row.cases or row.missing, "nothing is said of it"


def test_fault_cases_answer_rows_of_the_list():
    known = {row.id for row in faults()}
    assert {answer for case in CASES for answer in case.answers} <= known
    assert all(case.answers for case in CASES)
