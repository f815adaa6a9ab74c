"""Who is in the study, and who is not and why. Every series and every row is either used or listed with a reason.

One series stands for one patient, because the tests take the subjects as independent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from dicom_node.age_study.sources import Source, WithoutRows

YOUNGEST_YEARS = 18.0
NO_AGE = "no age: it is missing, or 000Y"
AMBIGUOUS = "the rows of the series state different ages or sexes"
TWO_SEXES = "series of both sexes under one pseudonym"
OTHER_MODEL = "measured by other models only"
OTHER_STUDY = "another study of the patient is used: the earliest"
OTHER_SERIES = (
    "another series of the study is used: the one with the most whole structures, then the thinnest slices, then the "
    "first by pseudonym"
)
REPEATED = "the structure is in the series twice: computed values are used before those of a report, then the first"
TRUNCATED = "truncated: the structure touches the border of the scan"
TRUNCATION_UNKNOWN = "it is not stated whether the structure is truncated"
ABSENT = "absent: the model found none"
NO_VALUE = "no value"
_COMPUTED = "computed"
_LONGEST = max(map(len, (ABSENT, TRUNCATED, TRUNCATION_UNKNOWN, NO_VALUE)))


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is in the study. ``model_digest``: begins as that of the model whose rows are used.

    ``keeps_unknown_truncation``: also rows that don't say whether the structure is truncated, as those of reports of
    other programs.
    """

    youngest_years: float = YOUNGEST_YEARS
    model_digest: str = ""
    keeps_unknown_truncation: bool = False

    def __str__(self) -> str:
        """For people."""
        unknown = "used" if self.keeps_unknown_truncation else "left out"
        return (
            f"from {self.youngest_years:g} years of age; one series of each patient; truncated structures left out, "
            f"those of which it is not said {unknown}"
        )


@dataclass(frozen=True, slots=True)
class Model:
    """What drew the structures; empty where the rows don't say."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.name or 'unnamed'} {self.version} (digest {self.digest or 'unknown'})".replace("  ", " ")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One series, or one structure of a series, that is not used; ``structure`` is empty for a whole series."""

    patient: str
    series: str
    structure: str
    reason: str


@dataclass(frozen=True, slots=True)
class Population:
    """The patients of the study, one series each, and what was measured in them.

    ``volume_ml`` and ``mean_hu`` are [patient, structure], NaN where a value is not used; ``reasons`` says why, and is
    empty where it is used. ``left_out`` has the series; ``values_left_out`` is read from ``reasons``.
    """

    model: Model
    rows_of_other_models: Mapping[str, int]
    patients: tuple[str, ...]
    series: tuple[str, ...]
    ages_years: NDArray[np.float64]
    sexes: NDArray[np.str_]
    contrast: Counter[str]
    structures: tuple[str, ...]
    volume_ml: NDArray[np.float64]
    mean_hu: NDArray[np.float64]
    reasons: NDArray[np.str_]
    series_in_table: int
    left_out: tuple[LeftOut, ...]
    rows_left_out: tuple[LeftOut, ...]
    without_rows: tuple[WithoutRows, ...]

    def counts_by_reason(self) -> dict[str, int]:
        """How many series each reason has left out."""
        counts = Counter(each.reason for each in self.left_out)
        return dict(sorted(counts.items()))

    def counts(self) -> dict[str, Any]:
        """How many patients, and how much was left out; plain values, no patient by patient."""
        return {
            "patients": len(self.patients),
            "series_in_table": self.series_in_table,
            "series_left_out": self.counts_by_reason(),
            "series_or_reports_without_rows": len(self.without_rows),
            "rows_left_out": len(self.rows_left_out),
            "rows_of_other_models": dict(self.rows_of_other_models),
            "contrast": dict(self.contrast),
        }

    def values_left_out(self) -> Iterable[LeftOut]:
        """A structure of a patient that is not used."""
        for row, column in zip(*np.nonzero(self.reasons != ""), strict=True):
            yield LeftOut(self.patients[row], self.series[row], self.structures[column], str(self.reasons[row, column]))


def select(source: Source, rules: Rules) -> Population:
    """The patients of ``source`` that meet ``rules``.

    Raises:
        ConfigurationError: the rows are of several models and ``rules`` names none, or no patient is left.
    """
    table = _Table.of(source.rows)
    model, is_own = _model(table, rules.model_digest)
    left_out: list[LeftOut] = []
    chosen = _one_per_patient(table, is_own, rules, left_out)
    if not chosen:
        counted = ", ".join(f"{reason} ({count})" for reason, count in Counter(e.reason for e in left_out).items())
        raise ConfigurationError(f"no patient is left for the study: {counted}")
    rows_left_out: list[LeftOut] = []
    rows = _unrepeated(table, chosen, is_own, rows_left_out)
    place = {number: row for row, number in enumerate(chosen)}
    at = np.array([place[number] for number in table.series[rows].tolist()]), table.structure[rows]
    shape = len(chosen), len(table.structure_names)
    volume_ml, mean_hu = np.full(shape, np.nan), np.full(shape, np.nan)
    why: NDArray[np.str_] = np.full(shape, ABSENT, dtype=f"<U{_LONGEST}")
    is_whole = ~table.truncated[rows] & (table.says_truncated[rows] | rules.keeps_unknown_truncation)
    volume_ml[at] = np.where(is_whole, table.volume_ml[rows], np.nan)
    mean_hu[at] = np.where(is_whole, table.mean_hu[rows], np.nan)
    unknown = np.where(table.says_truncated[rows], TRUNCATED, TRUNCATION_UNKNOWN)
    is_empty = table.volume_ml[rows] == 0
    has_value = np.isfinite(table.volume_ml[rows]) | np.isfinite(table.mean_hu[rows])
    why[at] = np.where(is_empty, ABSENT, np.where(~is_whole, unknown, np.where(has_value, "", NO_VALUE)))
    volume_ml[why != ""], mean_hu[why != ""] = np.nan, np.nan
    used = np.flatnonzero(np.bincount(at[1], minlength=shape[1]))
    first = np.array([table.first[number] for number in chosen])
    return Population(
        model=model,
        rows_of_other_models={
            str(other): int((table.model == number).sum())
            for number, other in enumerate(table.models)
            if other != model
        },
        patients=tuple(str(table.pseudonym[row]) for row in first),
        series=tuple(table.series_names[number] for number in chosen),
        ages_years=table.age_years[first],
        sexes=np.array([table.sex[row] or "" for row in first]),
        contrast=Counter({None: "unknown", True: "with", False: "without"}[table.contrast[row]] for row in first),
        structures=tuple(table.structure_names[column] for column in used),
        volume_ml=volume_ml[:, used],
        mean_hu=mean_hu[:, used],
        reasons=why[:, used],
        series_in_table=len(table.series_names),
        left_out=tuple(left_out),
        rows_left_out=tuple(rows_left_out),
        without_rows=source.without_rows,
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows as arrays; series and structures as numbers. ``first`` is the first row of each series."""

    series: NDArray[np.int64]
    series_names: tuple[str, ...]
    first: NDArray[np.intp]
    structure: NDArray[np.int64]
    structure_names: tuple[str, ...]
    model: NDArray[np.int64]
    models: tuple[Model, ...]
    volume_ml: NDArray[np.float64]
    mean_hu: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    says_truncated: NDArray[np.bool_]
    is_computed: NDArray[np.bool_]
    age_years: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]
    day: NDArray[np.float64]
    pseudonym: NDArray[Any]
    study: NDArray[Any]
    sex: NDArray[Any]
    contrast: NDArray[Any]

    @classmethod
    def of(cls, rows: pa.Table) -> _Table:
        series, series_names = _coded(rows["series"])
        structure, structure_names = _coded(rows["structure"])
        described = [_words(rows[name]) for name in ("model", "model_version", "model_digest")]
        codes = [_coded(pc.fill_null(rows[name], ""))[0] for name in ("model", "model_version", "model_digest")]
        _, some, model = np.unique(np.stack(codes), axis=1, return_index=True, return_inverse=True)
        says = np.asarray(pc.is_valid(rows["truncated"]))
        return cls(
            series=series,
            series_names=series_names,
            first=np.unique(series, return_index=True)[1],
            structure=structure,
            structure_names=structure_names,
            model=model.ravel(),
            models=tuple(Model(*(str(column[row] or "") for column in described)) for row in some),
            volume_ml=_numbers(rows["volume_ml"]),
            mean_hu=_numbers(rows["mean_hu"]),
            truncated=np.asarray(pc.fill_null(rows["truncated"], fill_value=False)),
            says_truncated=says,
            is_computed=_words(rows["origin"]) == _COMPUTED,
            age_years=_numbers(rows["age_years"]),
            thickness_mm=_numbers(rows["slice_thickness_mm"]),
            day=_numbers(rows["study_date"].cast("int32")),
            pseudonym=_words(rows["pseudonym"]),
            study=_words(rows["study"]),
            sex=_words(rows["sex"]),
            contrast=_words(rows["contrast"]),
        )


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers in the order of the words, so that the order of the rows changes nothing."""
    encoded = column.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    order = sorted(range(len(words)), key=lambda number: words[number])
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    return rank[np.asarray(encoded.indices)], tuple(words[number] for number in order)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.cast("float64").to_numpy(), np.float64)


def _words(column: pa.ChunkedArray) -> NDArray[Any]:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


def _model(table: _Table, wanted: str) -> tuple[Model, NDArray[np.bool_]]:
    """The model of the study, and which rows are its own."""
    own = [number for number, model in enumerate(table.models) if model.digest.startswith(wanted)]
    if len(own) == 1:
        return table.models[own[0]], table.model == own[0]
    counts = "; ".join(f"{model}: {int((table.model == k).sum())} rows" for k, model in enumerate(table.models))
    if wanted:
        raise ConfigurationError(f"{len(own)} models have a digest that begins with {wanted!r}, expected one: {counts}")
    raise ConfigurationError(
        f"the rows are of {len(own)} models, whose values can't be compared; name the digest of one: {counts}"
    )


def _one_per_patient(table: _Table, is_own: NDArray[np.bool_], rules: Rules, left_out: list[LeftOut]) -> list[int]:
    """The series that are used, in the order of their patients; all others go to ``left_out``."""
    size = len(table.series_names)
    whole = np.bincount(table.series[is_own & table.says_truncated & ~table.truncated], minlength=size)
    reasons = _unfit(table, np.bincount(table.series[is_own], minlength=size) > 0, rules)
    by_patient: dict[str, list[int]] = {}
    for number in range(size):
        if number not in reasons:
            by_patient.setdefault(table.pseudonym[table.first[number]], []).append(number)
    chosen = []
    for _, listed in sorted(by_patient.items()):
        first, *others = sorted(listed, key=lambda number: _order(table, number, int(whole[number])))
        chosen.append(first)
        study = table.study[table.first[first]]
        for number in others:
            reasons[number] = OTHER_SERIES if table.study[table.first[number]] == study else OTHER_STUDY
    left_out += [
        LeftOut(str(table.pseudonym[table.first[number]]), table.series_names[number], "", reason)
        for number, reason in sorted(reasons.items())
    ]
    return chosen


def _unfit(table: _Table, has_rows: NDArray[np.bool_], rules: Rules) -> dict[int, str]:
    """The series that can't be used, whatever other series their patients have."""
    differs = _differs(table)
    sexes: dict[str, set[str]] = {}
    for row in table.first:
        if table.sex[row] in ("F", "M"):
            sexes.setdefault(table.pseudonym[row], set()).add(table.sex[row])
    reasons = {}
    for number, row in enumerate(table.first):
        age = table.age_years[row]
        if not has_rows[number]:
            reasons[number] = OTHER_MODEL
        elif differs[number]:
            reasons[number] = AMBIGUOUS
        elif not np.isfinite(age):
            reasons[number] = NO_AGE
        elif age < rules.youngest_years:
            reasons[number] = f"younger than {rules.youngest_years:g} years"
        elif len(sexes.get(table.pseudonym[row], ())) > 1:
            reasons[number] = TWO_SEXES
    return reasons


def _differs(table: _Table) -> NDArray[np.bool_]:
    """Whether the rows of a series disagree on age or sex."""
    first = table.first[table.series]
    same_age = (table.age_years == table.age_years[first]) | (
        np.isnan(table.age_years) & np.isnan(table.age_years[first])
    )
    is_other = ~same_age | (table.sex != table.sex[first])
    return np.bincount(table.series[is_other], minlength=len(table.series_names)) > 0


def _order(table: _Table, number: int, whole: int) -> tuple[float, float, str, int, float, str]:
    """Ascending: the earliest study first, in it the best series."""
    row = table.first[number]
    day, thickness = (
        value if np.isfinite(value) else float("inf") for value in (table.day[row], table.thickness_mm[row])
    )
    return day, float(table.age_years[row]), table.study[row], -whole, thickness, table.series_names[number]


def _unrepeated(
    table: _Table, chosen: list[int], is_own: NDArray[np.bool_], left_out: list[LeftOut]
) -> NDArray[np.intp]:
    """The rows of the ``chosen`` series, one per structure."""
    is_chosen = np.zeros(len(table.series_names), np.bool_)
    is_chosen[chosen] = True
    rows = np.flatnonzero(is_own & is_chosen[table.series])
    rows = rows[np.lexsort((~table.is_computed[rows], table.structure[rows], table.series[rows]))]
    pairs = np.stack([table.series[rows], table.structure[rows]])
    is_first = np.r_[True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)]
    left_out += [
        LeftOut(
            str(table.pseudonym[row]),
            table.series_names[table.series[row]],
            table.structure_names[table.structure[row]],
            REPEATED,
        )
        for row in rows[~is_first]
    ]
    result: NDArray[np.intp] = rows[is_first]
    return result
