"""Paired comparison of scores against scipy and statsmodels, one call per line, and against the definitions."""

from __future__ import annotations

import gc
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon
from statsmodels.stats.multitest import multipletests

from dicom_node.compare.differences import IS_LARGER_BETTER, differences
from dicom_node.compare.page import comparison_page
from dicom_node.compare.scores import Score, Scored, counted_scores, refuse_other_measures, without_other_truths
from dicom_node.errors import ConfigurationError
from dicom_node.evaluate.provenance import Provenance


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """statsmodels collects garbage in every Holm correction, which takes long among the objects of many libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


GROUP_BY_STRUCTURE = {"liver": "organ", "spleen": "organ", "aorta": "vessel", "hip_left": "bone"}
STRUCTURES = tuple(GROUP_BY_STRUCTURE)


def system(name: str, dice: np.ndarray, **of_all) -> Scored:
    """A system with ``dice`` [subject, structure]; NaN: no score. HD95 falls as Dice rises."""
    scores = tuple(
        Score(
            subject=f"s{row:03}",
            structure=STRUCTURES[column],
            group=GROUP_BY_STRUCTURE[STRUCTURES[column]],
            dice=float(value),
            surface_dice=float(value) ** 2,
            hd95_mm=float(20 * (1 - value)) if value else None,
            volume_error=float(1 - value) if value else None,
            truth_ml=of_all.get("truth_ml", 10.0),
            is_missed=value == 0,
        )
        for (row, column), value in np.ndenumerate(dice)
        if np.isfinite(value)
    )
    return Scored(name, of_all.get("provenance", Provenance()), scores, (), ())


def tables(seed: int, systems: int = 2, subjects: int = 20) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    subject = random.normal(0, 0.05, (subjects, 1))
    return [np.clip(0.85 + subject + random.normal(0, 0.03, (subjects, 4)), 0.01, 1) for _ in range(systems)]


def by_line(rows, measure="dice"):
    return {(row.first, row.second, row.of, row.name): row for row in rows if row.measure == measure}


def test_every_line_is_that_of_scipy_and_statsmodels():
    dice = tables(1, systems=3)
    dice[1][3, 1] = np.nan
    dice[2][:, 0] = dice[0][:, 0]
    rows, _ = differences([system(name, each) for name, each in zip("ABC", dice, strict=True)])
    found = by_line(rows)
    expected = {}
    for (first, one), (second, other) in combinations(zip("ABC", dice, strict=True), 2):
        for column, structure in enumerate(STRUCTURES):
            pairs = np.isfinite(one[:, column]) & np.isfinite(other[:, column])
            expected[first, second, structure] = one[pairs, column], other[pairs, column]
    p = {}
    for (first, second, structure), (one, other) in expected.items():
        row = found[first, second, "structure", structure]
        assert row.subjects == len(one)
        assert row.difference.value == pytest.approx(np.mean(one - other))
        assert (row.first_mean, row.second_mean) == pytest.approx((one.mean(), other.mean()))
        assert row.median == pytest.approx(np.median(one - other))
        p[first, second, structure] = 1.0 if (one == other).all() else wilcoxon(one, other).pvalue
        assert row.p == pytest.approx(p[first, second, structure], abs=1e-12)
        ranks = rankdata(np.abs(one - other)) * (one != other)
        effect = (ranks * np.sign(one - other)).sum() / max(ranks.sum(), 1)
        assert row.effect.value == pytest.approx(effect)
        assert row.difference.low <= row.difference.value <= row.difference.high
    for name, method in (("p_holm", "holm"), ("p_fdr", "fdr_bh")):
        corrected = dict(zip(p, multipletests(list(p.values()), method=method)[1], strict=True))
        for (first, second, structure), value in corrected.items():
            assert getattr(found[first, second, "structure", structure], name) == pytest.approx(value, abs=1e-12)


def test_over_all_a_subject_counts_once_with_its_mean_over_the_structures_of_both():
    """Not its structures one by one, which are not independent."""
    one, other = tables(2)
    other[4, 2] = np.nan
    rows, problems = differences([system("A", one), system("B", other)])
    means = [np.nanmean(np.where(np.isfinite(other), each, np.nan), axis=1) for each in (one, other)]
    row = by_line(rows)["A", "B", "all", "all"]
    assert row.subjects == 20
    assert row.p == pytest.approx(wilcoxon(*means).pvalue)
    organs = [each[:, :2].mean(axis=1) for each in (one, other)]
    assert by_line(rows)["A", "B", "group", "organ"].p == pytest.approx(wilcoxon(*organs).pvalue)
    assert [(each.id, each.reason) for each in problems] == [
        ("s004", "aorta: scored for A only, so not compared with B")
    ]


def test_a_planted_difference_is_found_in_its_structure_and_no_other():
    one, other = tables(3, subjects=40)
    one[:, 2] = np.clip(other[:, 2] - 0.05, 0, 1)
    rows, _ = differences([system("A", one), system("B", other)])
    better = {key[3]: row.better for key, row in by_line(rows).items() if key[2] == "structure"}
    assert better == {"liver": None, "spleen": None, "aorta": "B", "hip_left": None}
    row = by_line(rows)["A", "B", "structure", "aorta"]
    assert row.difference.value == pytest.approx(-0.05, abs=0.005)
    assert row.effect.value == pytest.approx(-1)
    assert by_line(rows, "hd95_mm")["A", "B", "structure", "aorta"].better == "B"  # smaller is better
    assert by_line(rows, "hd95_mm")["A", "B", "structure", "aorta"].difference.value > 0


def test_without_a_difference_hardly_a_table_finds_one():
    """Holm keeps the chance of any false finding among the lines of a table below 5 %."""
    wrong = 0
    for seed in range(20):
        pair = [system(name, each) for name, each in zip("AB", tables(1000 + seed), strict=True)]
        rows, _ = differences(pair, replicates=1)
        wrong += any(row.better for row in rows if row.measure == "dice" and row.of == "structure")
    assert wrong <= 4  # 99 % bound of 20 draws with probability 0.05


def test_equal_systems_have_p_1_and_no_effect():
    one = tables(4)[0]
    rows, _ = differences([system("A", one), system("B", one)])
    assert {(row.p, row.p_holm, row.effect.value, row.better) for row in rows} == {(1.0, 1.0, 0.0, None)}


@pytest.mark.parametrize(("seed", "subjects"), [(11, 6), (12, 25)])
def test_swapping_the_systems_turns_every_sign(seed, subjects):
    one, other = tables(seed, subjects=subjects)
    there, back = (
        by_line(differences(pair, replicates=1)[0])
        for pair in ([system("A", one), system("B", other)], [system("B", other), system("A", one)])
    )
    for (first, second, kind, name), row in there.items():
        turned = back[second, first, kind, name]
        assert turned.difference.value == pytest.approx(-row.difference.value)
        assert turned.effect.value == pytest.approx(-row.effect.value)
        assert turned.p == pytest.approx(row.p)
        assert turned.better == row.better


def test_five_subjects_can_not_show_a_difference():
    one = tables(5, subjects=5)[0]
    rows, _ = differences([system("A", one), system("B", one - 0.3)])
    assert min(row.p for row in rows) == pytest.approx(0.0625)
    assert not any(row.better for row in rows)


@pytest.mark.parametrize(
    ("subjects", "kinds"), [(5, {"all", "group", "structure"}), (6, {"group", "structure"}), (9, set())]
)
def test_the_page_says_where_no_difference_could_be_shown(subjects, kinds):
    """Lines: 1 of all, 3 groups, 4 structures; the smallest p of 6 subjects is 0.031."""
    one, other = tables(5, subjects=subjects)
    rows, _ = differences([system("A", one), system("B", other)], replicates=100)
    page = comparison_page("A and B", Provenance(), 100, rows, (), ())
    titles = {"all": "All structures together", "group": "Groups of structures", "structure": "Single structures"}
    assert {kind for kind, title in titles.items() if f"{title}: with {subjects} subjects" in page} == kinds


def test_a_missed_structure_counts_as_dice_0_and_has_no_distance():
    one, other = tables(6)
    other[:3, 0] = 0
    rows, _ = differences([system("A", one), system("B", other)])
    dice, hd95 = (by_line(rows, each)["A", "B", "structure", "liver"] for each in ("dice", "hd95_mm"))
    assert (dice.subjects, dice.missed_first, dice.missed_second) == (20, 0, 3)
    assert (hd95.subjects, hd95.missed_second) == (17, 3)


def test_subjects_and_structures_of_one_system_are_listed():
    one, other = tables(7)
    one[2] = np.nan
    other[:, 3] = np.nan
    _, problems = differences([system("A", one), system("B", other)])
    assert {(each.id, each.reason) for each in problems} == {
        ("s002", "scored for B only, so not compared with A"),
        ("hip_left", "scored for A only, so not compared with B"),
    }


def test_scores_of_other_data_or_another_tool_are_refused():
    one = tables(8)[0]
    for what in ("data_set", "data_set_version", "tool"):
        other = system("B", one, provenance=Provenance(**{what: "another"}))
        with pytest.raises(ConfigurationError, match=f"B was evaluated with {what.replace('_', ' ')} 'another'"):
            refuse_other_measures([system("A", one), other])
    refuse_other_measures([system("A", one), system("B", one, provenance=Provenance(software="another"))])


def test_a_subject_with_two_truths_is_left_out_and_listed():
    one = tables(9)[0]
    left, problems = without_other_truths([system("A", one), system("B", one[:1], truth_ml=10.5)])
    assert [each.id for each in problems] == ["s000"]
    assert "liver has 10 ml in one and 10.5 ml in that of B" in problems[0].reason
    assert [len(each.subjects) for each in left] == [19, 0]


def test_only_rows_that_count_are_scores_and_volume_errors_are_absolute():
    row = {"subject": "s1", "structure": "liver", "group": "organ", "dice": 0.8, "surface_dice": 0.9, "hd95_mm": 2.0}
    rows = [
        {**row, "counted": True, "truth_ml": 10.0, "found_ml": 8.0},
        {**row, "counted": True, "truth_ml": 10.0, "found_ml": 0.0},
        {**row, "counted": False, "truth_ml": 0.0, "found_ml": 8.0},
    ]
    assert [(each.volume_error, each.is_missed) for each in counted_scores(rows)] == [
        (pytest.approx(0.2), False),
        (None, True),
    ]
    assert set(IS_LARGER_BETTER) == {"dice", "surface_dice", "hd95_mm", "volume_error"}
