"""The tables of a study as CSV and Parquet."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dicom_node.age_study.study import Finding
from dicom_node.dataset.files import replaced_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dicom_node.age_study.selection import Population
    from dicom_node.age_study.study import Study

_COUNTS = frozenset({"patients", "absent", "truncated", "truncation_unknown", "no_value"})
_WORDS = frozenset({"group", "structure", "quantity"})


def findings_table(study: Study, provenance: Mapping[str, str]) -> pa.Table:
    """A row per correlation, each with what it is of."""
    kinds = {
        field.name: pa.string() if field.name in _WORDS else pa.int64() if field.name in _COUNTS else pa.float64()
        for field in fields(Finding)
    }
    schema = pa.schema([*kinds.items(), ("difference", pa.float64()), *((key, pa.string()) for key in provenance)])
    rows = [asdict(each) | {"difference": each.difference} | dict(provenance) for each in study.findings]
    return pa.Table.from_pylist(rows, schema=schema)


def left_out_table(population: Population) -> pa.Table:
    """A row for each series that is not used, or not wholly used, and each series or report without measurements."""
    listed = [
        *(("series", each.patient, each.series, "", each.reason) for each in population.left_out),
        *(("row", each.patient, each.series, each.structure, each.reason) for each in population.rows_left_out),
        *(("without rows", "", each.series, "", f"{each.outcome}: {each.reason}") for each in population.without_rows),
    ]
    return _words_table(("what", "patient", "series", "structure", "reason"), listed)


def values_left_out_table(population: Population) -> pa.Table:
    """A row for each structure of a patient of the study whose values are not used."""
    listed = [(each.patient, each.series, each.structure, each.reason) for each in population.values_left_out()]
    return _words_table(("patient", "series", "structure", "reason"), listed)


def trends_table(study: Study) -> pa.Table:
    """A row per group, structure, quantity and year of age at which there is a trend."""
    columns: dict[str, list[Any]] = {name: [] for name in ("group", "structure", "quantity", "age_years", "value")}
    for key, values in study.trends.items():
        known = np.isfinite(values)
        for name, word in zip(("group", "structure", "quantity"), key, strict=True):
            columns[name] += [word] * int(known.sum())
        columns["age_years"] += study.trend_ages_years[known].tolist()
        columns["value"] += values[known].tolist()
    kinds = [(name, pa.string() if name in _WORDS else pa.float64()) for name in columns]
    return pa.table(columns, schema=pa.schema(kinds))


def write_csv(path: Path, table: pa.Table) -> None:
    """Write ``table``.

    Raises:
        ConfigurationError: the file can't be written.
    """
    with replaced_file(path) as part:
        pyarrow.csv.write_csv(table, part, pyarrow.csv.WriteOptions(quoting_style="needed"))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write ``table``.

    Raises:
        ConfigurationError: the file can't be written.
    """
    with replaced_file(path) as part:
        pyarrow.parquet.write_table(table, part, compression="zstd")


def _words_table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})
