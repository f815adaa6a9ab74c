"""The data set of a cohort: one row per series and structure, in Parquet files that survive any crash.

::

    dataset.json                 which key and which dates; rows with another key are refused
    measurements/PART.parquet    the rows of one series, or of one stored report
    without_rows/PART.parquet    a series or a report that gave no rows, and why

A file is written under a temporary name, synced and renamed, so that it is complete or absent. Its name is the
pseudonym of what it describes, so that a series written again replaces its own file: there are no duplicates, whichever
process is killed at whatever time. pandas, polars and duckdb read the folder ``measurements`` as one table.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from dicom_node import __version__
from dicom_node.errors import ConfigurationError, StoreUnavailable
from dicom_node.store.durable import PART, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from dicom_node.cohort.pseudonym import Pseudonyms
    from dicom_node.cohort.subject import Dates, SeriesFacts
    from inference.types import Measurements, ModelIdentity

_VERSION = 1
_FOLDER_MODE = 0o700
_PART = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{32})?")
_SUPERSEDED = "superseded"

SCHEMA = pa.schema(
    [
        pa.field("pseudonym", pa.string(), nullable=False),
        pa.field("study", pa.string(), nullable=False),
        pa.field("series", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("structure", pa.string(), nullable=False),
        pa.field("volume_ml", pa.float64()),
        pa.field("mean_hu", pa.float64()),
        pa.field("sd_hu", pa.float64()),
        pa.field("median_hu", pa.float64()),
        pa.field("minimum_hu", pa.float64()),
        pa.field("maximum_hu", pa.float64()),
        pa.field("truncated", pa.bool_()),
        pa.field("age_years", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("manufacturer", pa.string()),
        pa.field("scanner_model", pa.string()),
        pa.field("kernel", pa.string()),
        pa.field("contrast", pa.bool_()),
        pa.field("slice_thickness_mm", pa.float64()),
        pa.field("kvp", pa.float64()),
        pa.field("study_date", pa.date32()),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("node_version", pa.string()),
    ]
)
"""docs/users/cohort.md describes the columns. Columns may be added, but never renamed or given another meaning."""

WITHOUT_ROWS_SCHEMA = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("series", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""``outcome``: ``refused`` (not a series for the model), ``failed``, ``empty`` (nothing was found), or
``superseded`` (another report replaces this one).
"""


class Origin(StrEnum):
    """Where the measurements of a row come from."""

    COMPUTED = "computed"
    """Measured by this node from the images."""
    STORED_REPORT = "stored report"
    """Read from an SR that was in the archive."""


@dataclass(frozen=True, slots=True)
class StructureRow:
    """The measurements of one structure; None where a report does not state a value.

    HU statistics are taken over the voxels of the structure; ``truncated``: it touches the border of the scan, so
    ``volume_ml`` is a lower bound.
    """

    structure: str
    volume_ml: float | None
    mean_hu: float | None
    sd_hu: float | None
    median_hu: float | None
    minimum_hu: float | None
    maximum_hu: float | None
    truncated: bool | None
    model: str | None
    model_version: str | None
    model_digest: str | None


def rows_of(measurements: Measurements, model: ModelIdentity) -> tuple[StructureRow, ...]:
    """One row for each structure found by ``model``."""
    return tuple(
        StructureRow(
            structure=measured.name,
            volume_ml=measured.volume_ml,
            mean_hu=measured.mean_hu,
            sd_hu=measured.sd_hu,
            median_hu=measured.median_hu,
            minimum_hu=measured.min_hu,
            maximum_hu=measured.max_hu,
            truncated=measured.truncated,
            model=model.name,
            model_version=model.version,
            model_digest=model.digest,
        )
        for measured in measurements.structures
    )


class CohortTable:
    """The data set in one folder. Several processes may write different parts of it at the same time."""

    def __init__(self, folder: Path) -> None:
        """The data set in ``folder``; :meth:`open_for` creates it."""
        self.folder = folder
        self._rows, self._without = folder / "measurements", folder / "without_rows"

    def open_for(self, pseudonyms: Pseudonyms, dates: Dates) -> None:
        """Create the folders, or check that existing rows have the same key and kind of dates.

        Raises:
            ConfigurationError: they have not, or the folder can't be written.
        """
        described = {"version": _VERSION, "key_id": pseudonyms.key_id, "dates": str(dates)}
        try:
            for folder in (self.folder, self._rows, self._without):
                folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            file = self.folder / "dataset.json"
            if not file.exists():
                replace_file(file, json.dumps(described).encode())
            found = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "dataset.json is damaged"
            raise ConfigurationError(f"the data set {self.folder} can't be used: {reason}") from error
        if found != described:
            raise ConfigurationError(
                f"the data set {self.folder} was begun with another pseudonym key, other dates or another version "
                f"({found}); its patients could not be recognised in new rows: write to a new folder"
            )

    def remove_leftovers(self) -> None:
        """Remove what a killed process was writing. Call it while no other process writes.

        Raises:
            StoreUnavailable: the disk fails.
        """
        with _translated(self.folder):
            for folder in (self.folder, self._rows, self._without):
                for left in folder.glob(f"*{PART}"):
                    left.unlink()

    def write(self, part: str, facts: SeriesFacts, rows: Sequence[StructureRow], origin: Origin) -> None:
        """Replace the rows of ``part`` with ``rows``; every row has a structure.

        ``part``: the pseudonym of the series or, for a stored report, those of series and report joined by a hyphen.

        Raises:
            StoreUnavailable: the disk is full or fails.
            ConfigurationError: ``part`` is not made of pseudonyms.
        """
        shared = asdict(facts) | {"origin": str(origin), "node_version": __version__}
        table = pa.Table.from_pylist([shared | asdict(row) for row in rows], schema=SCHEMA)
        _write_parquet(self._rows / _file_name(part), table)
        with _translated(self.folder):
            (self._without / _file_name(part)).unlink(missing_ok=True)

    def write_reason(self, part: str, study: str, series: str, origin: Origin, outcome: str, reason: str) -> None:
        """Record why ``part`` of the pseudonymous ``series`` has no rows; ``reason`` without identity.

        Raises:
            StoreUnavailable: the disk is full or fails.
            ConfigurationError: ``part`` is not made of pseudonyms.
        """
        row = {"study": study, "series": series, "origin": str(origin), "outcome": outcome, "reason": reason}
        table = pa.Table.from_pylist([row], schema=WITHOUT_ROWS_SCHEMA)
        _write_parquet(self._without / _file_name(part), table)

    def supersede(self, part: str, facts: SeriesFacts) -> None:
        """Remove the rows of ``part``, a report replaced by another report, and never write them again.

        Raises:
            StoreUnavailable: the disk is full or fails.
        """
        reason = "a newer report replaces it"
        self.write_reason(part, facts.study, facts.series, Origin.STORED_REPORT, _SUPERSEDED, reason)
        with _translated(self.folder):
            (self._rows / _file_name(part)).unlink(missing_ok=True)

    def is_superseded(self, part: str) -> bool:
        """Whether ``part`` is a report replaced by another report."""
        file = self._without / _file_name(part)
        if not file.exists():
            return False
        return bool(pyarrow.parquet.read_table(file)["outcome"][0].as_py() == _SUPERSEDED)


def read_rows(folder: Path) -> pa.Table:
    """All rows of the data set in ``folder``, as :data:`SCHEMA`.

    Raises:
        ConfigurationError: it is not a data set, or a file can't be read.
    """
    return _read(folder / "measurements", SCHEMA)


def read_without_rows(folder: Path) -> pa.Table:
    """The series and reports of the data set in ``folder`` that gave no rows, as :data:`WITHOUT_ROWS_SCHEMA`.

    Raises:
        ConfigurationError: it is not a data set, or a file can't be read.
    """
    # a crash between writing the rows and removing the reason leaves both
    with_rows = {file.name for file in (folder / "measurements").glob("*.parquet")}
    return _read(folder / "without_rows", WITHOUT_ROWS_SCHEMA, without=with_rows)


def _read(folder: Path, schema: pa.Schema, without: Iterable[str] = ()) -> pa.Table:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder.parent} is not the data set of a cohort: it has no folder {folder.name}")
    left_out = frozenset(without)
    files = sorted(str(file) for file in folder.glob("*.parquet") if file.name not in left_out)
    if not files:
        return schema.empty_table()
    try:
        return pyarrow.dataset.dataset(files, schema=schema, format="parquet").to_table()
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{folder} can't be read: {type(error).__name__}") from error


def _file_name(part: str) -> str:
    if not _PART.fullmatch(part):
        raise ConfigurationError("a part of a data set is named by the pseudonym of its series")
    return f"{part}.parquet"


def _write_parquet(file: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    with _translated(file.parent.parent):
        replace_file(file, sink.getvalue())


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"the data set {folder} can't be written: {error.strerror}") from error
