"""The tables that a study may be made from, in the shape of a cohort's data set.

========================== ===========================================================================================
data set of a cohort       the folder that ``dicom-node cohort run`` writes
Parquet                    a file, or a folder of files, with columns of that data set (docs/users/cohort.md)
phantom cohort             a folder with ``truth.csv`` and ``meta.csv``, as ``dicom-node dataset phantom`` writes it
========================== ===========================================================================================
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from dicom_node.cohort.table import SCHEMA, read_rows, read_without_rows
from dicom_node.dataset.files import digest_of, sha256_of
from dicom_node.errors import ConfigurationError
from dicom_node.labelmaps.finding import META, read_meta
from dicom_node.labelmaps.subjects import sex_of_table
from dicom_node.standard.age import age_years_of_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TRUTH = "truth.csv"
_MEASUREMENTS = "measurements"
_REQUIRED = ("pseudonym", "study", "series", "structure", "volume_ml", "mean_hu", "truncated", "age_years", "sex")
_TRUTH_COLUMNS = ("image_id", "structure", "volume_ml", "mean_hu", "truncated")


@dataclass(frozen=True, slots=True)
class WithoutRows:
    """A series, or a report, that has no measurements, and why."""

    series: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """A table of measurements. ``rows`` has the columns of :data:`dicom_node.cohort.table.SCHEMA`, from ``files``."""

    description: str
    files: tuple[Path, ...]
    rows: pa.Table
    without_rows: tuple[WithoutRows, ...] = ()

    def digest(self) -> str:
        """SHA-256 over those of the files; their names and their order don't count.

        Raises:
            ConfigurationError: a file can't be read any more.
        """
        try:
            return digest_of(sorted(map(sha256_of, self.files)))
        except OSError as error:
            raise ConfigurationError(f"{error.filename} can't be read: {error.strerror}") from error


def read_source(path: Path) -> Source:
    """The table at ``path``.

    Raises:
        ConfigurationError: there is none of the forms, it can't be read, or it has no rows.
    """
    if (path / _MEASUREMENTS).is_dir():
        without = read_without_rows(path).to_pylist()
        listed = tuple(WithoutRows(each["series"], each["outcome"], each["reason"]) for each in without)
        files = tuple(path.glob("measurements/*.parquet")) + tuple(path.glob("without_rows/*.parquet"))
        source = Source("data set of a cohort", files, read_rows(path), listed)
    elif (path / _TRUTH).is_file():
        source = _phantoms(path)
    elif path.is_file() or any(path.glob("*.parquet")):
        files = (path,) if path.is_file() else tuple(sorted(path.glob("*.parquet")))
        source = Source("Parquet", files, _parquet(files))
    else:
        raise ConfigurationError(
            f"{path} is no table of measurements: expected the data set of a cohort (a folder with {_MEASUREMENTS}), "
            f"Parquet files, or a phantom cohort (a folder with {_TRUTH})"
        )
    if not source.rows.num_rows:
        raise ConfigurationError(f"{path} has no measurements")
    return source


def _parquet(files: Sequence[Path]) -> pa.Table:
    """The columns of the schema; those that are not required may be absent."""
    tables = []
    for file in files:
        try:
            table = pyarrow.parquet.read_table(file)
            absent = [name for name in _REQUIRED if name not in table.column_names]
            if absent:
                raise ConfigurationError(f"{file} has no column {', '.join(absent)}")
            columns = [
                table[field.name].cast(field.type)
                if field.name in table.column_names
                else pa.nulls(table.num_rows, field.type)
                for field in SCHEMA
            ]
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{file} can't be read as a table of measurements: {error}") from error
        tables.append(pa.table(columns, schema=_NULLABLE))
    return pa.concat_tables(tables)


_NULLABLE = pa.schema([field.with_nullable(True) for field in SCHEMA])


def _phantoms(folder: Path) -> Source:
    """The truth of a phantom cohort; its digest takes the place of a model's."""
    meta = read_meta(folder / META)
    file = folder / _TRUTH
    try:
        content = file.read_bytes()
        reader = csv.DictReader(content.decode().splitlines())
        if tuple(reader.fieldnames or ()) != _TRUTH_COLUMNS:
            raise ConfigurationError(f"{file} has the columns {reader.fieldnames}, expected {_TRUTH_COLUMNS}")
        digest = hashlib.sha256(content).hexdigest()
        rows = [_phantom_row(row, meta.get(row["image_id"], {}), digest) for row in reader]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} can't be read: {error}") from error
    measured = {row["pseudonym"] for row in rows}
    without = tuple(WithoutRows(name, "empty", "no structure in the truth") for name in meta if name not in measured)
    files = (file, folder / META)
    return Source("truth of a phantom cohort", files, pa.Table.from_pylist(rows, schema=_NULLABLE), without)


def _phantom_row(row: dict[str, str], meta: dict[str, str], digest: str) -> dict[str, Any]:
    if row["truncated"] not in ("True", "False"):
        raise ValueError(f"truncated is {row['truncated']!r}, expected True or False")
    return {
        **dict.fromkeys(("pseudonym", "study", "series"), row["image_id"]),
        "model": "truth of phantoms",
        "model_digest": digest,
        "structure": row["structure"],
        "volume_ml": float(row["volume_ml"]),
        "mean_hu": float(row["mean_hu"]),
        "truncated": row["truncated"] == "True",
        "age_years": age_years_of_table(meta.get("age", "")),
        "sex": sex_of_table(meta.get("sex") or meta.get("gender") or ""),
        "contrast": None if not meta.get("contrast") else meta["contrast"] != "native",
        "origin": "truth",
    }
