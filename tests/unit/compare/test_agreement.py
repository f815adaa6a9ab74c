"""The rule for outliers, and the grid on which two SEGs are compared without their CT."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.compare.agreement import PairAgreement, union_of_planes
from dicom_node.compare.outliers import outliers
from dicom_node.compare.systems import named, stated_by_name
from dicom_node.errors import ConfigurationError, ResultUnreadable
from dicom_node.evaluate.provenance import Stated
from dicom_node.evaluate.scoring import SubjectScores
from dicom_node.evaluate.summary import Averaging, summarise
from inference.evaluation.scores import StructureScore
from inference.types import Geometry


def pair(dice: list[float]) -> PairAgreement:
    subjects = tuple(
        SubjectScores(f"s{n}", {}, (StructureScore("liver", value, value, 1.0, 5, 5),), ("liver",), ("liver",), True)
        for n, value in enumerate(dice)
    )
    return PairAgreement("A", "B", subjects, ("liver",), summarise(subjects, ("liver",), Averaging("nnunet")))


def test_the_outlier_is_found_by_median_and_deviation_and_nothing_else():
    dice = [0.90, 0.91, 0.89, 0.92, 0.88, 0.90, 0.40]
    found, not_judged = outliers([pair(dice)])
    assert [(each.subject, each.dice, each.median) for each in found] == [("s6", 0.40, 0.90)]
    assert found[0].limit == pytest.approx(0.90 - max(3.5 * 1.4826 * 0.01, 0.05))
    assert not_judged == []


def test_where_all_agree_a_small_drop_is_no_outlier():
    assert outliers([pair([0.999] * 6 + [0.96])])[0] == []
    assert [each.subject for each in outliers([pair([0.999] * 6 + [0.93])])[0]] == ["s6"]


def test_few_subjects_are_not_judged_and_said_to_be():
    assert outliers([pair([0.9, 0.9, 0.9, 0.1])]) == ([], [("A and B", "liver")])


def grid(planes: int, first_mm: float, columns: int = 8) -> Geometry:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (-10, 5, first_mm)
    return Geometry((planes, 6, columns), affine)


def test_two_stacks_of_planes_of_one_ct_have_a_grid_that_holds_both():
    shared = union_of_planes(grid(4, 30.0), grid(5, 21.0))
    assert shared.same_grid(grid(7, 21.0))
    own = grid(9, 21.0)
    assert union_of_planes(own, grid(2, 27.0)) is own


@pytest.mark.parametrize("other", [grid(4, 31.0), grid(4, 30.0, columns=9)], ids=["between planes", "other size"])
def test_planes_of_another_ct_are_refused(other):
    with pytest.raises(ResultUnreadable, match="different grids"):
        union_of_planes(grid(4, 30.0), other)


def test_systems_are_called_by_their_last_part_or_as_asked(tmp_path):
    assert named(["total", "ours=results/", str(tmp_path / "reader 1")]) == {
        "total": "total",
        "ours": "results/",
        "reader-1": str(tmp_path / "reader 1"),
    }
    (tmp_path / "a=b").mkdir()
    assert str(tmp_path / "a=b") in named(["total", str(tmp_path / "a=b")]).values()


@pytest.mark.parametrize(
    ("places", "reason"), [(["a"], "1 given, expected at least 2"), (["x/a", "y/a"], "would both be called a")]
)
def test_one_system_or_two_of_one_name_are_refused(places, reason):
    with pytest.raises(ConfigurationError, match=reason):
        named(places)


def test_what_is_stated_belongs_to_a_system():
    said = {"software": ["A=Program 3", "B=x=y"], "model": []}
    stated = stated_by_name(("A", "B"), said, Stated(data_set="d"))
    assert (stated["A"].software, stated["B"].software, stated["B"].model) == ("Program 3", "x=y", None)
    assert stated["A"].data_set == "d"
    for wrong in ("Program 3", "C=Program 3"):
        with pytest.raises(ConfigurationError, match="expected NAME=TEXT with one of A, B"):
            stated_by_name(("A", "B"), {"software": [wrong]}, Stated())
