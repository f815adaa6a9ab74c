"""The scores as files: a row per subject and structure (CSV, Parquet), a row per mean (CSV), and all means as JSON."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dicom_node.dataset.files import replaced_file, write_json, write_text
from dicom_node.errors import ConfigurationError
from dicom_node.evaluate.summary import ATTRIBUTES, group_of, is_counted, row_as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dicom_node.evaluate.provenance import Provenance
    from dicom_node.evaluate.scoring import SubjectScores
    from dicom_node.evaluate.summary import Averaging, Summary

_MEASUREMENTS = frozenset(
    {"dice", "surface_dice", "hd95_mm", "truth_ml", "found_ml", "first_ml", "second_ml", "volume_error"}
    | {"volume_difference", "first_mean", "second_mean", "median", "statistic", "p", "p_holm", "p_fdr"}
    | {f"{measure}{bound}" for measure in ("difference", "effect") for bound in ("", "_low", "_high")}
)
SCORES_CSV, SCORES_PARQUET, MEANS_CSV, SUMMARY_JSON = "scores.csv", "scores.parquet", "means.csv", "evaluation.json"


def score_rows(
    subjects: Sequence[SubjectScores], names: Sequence[str], provenance: Provenance, averaging: Averaging
) -> list[dict[str, Any]]:
    """A row per subject and structure, with its provenance; None for an infinite distance or no truth."""
    shown = set(names)
    return [
        {
            "subject": subject.id,
            **attribute_columns(subject),
            "structure": score.name,
            "group": group_of(score.name),
            "counted": is_counted(score, averaging.convention),
            "dice": score.dice,
            "surface_dice": score.surface_dice,
            "hd95_mm": score.hd95_mm if math.isfinite(score.hd95_mm) else None,
            "truth_ml": score.truth_ml,
            "found_ml": score.found_ml,
            "volume_error": score.volume_error if score.truth_ml else None,
            **provenance_columns(provenance),
        }
        for subject in subjects
        for score in subject.structures
        if score.name in shown
    ]


def attribute_columns(subject: SubjectScores) -> dict[str, str | None]:
    """What scores are grouped by, in the row of a subject; None where it is unknown."""
    return {attribute.replace(" ", "_"): subject.attributes.get(attribute) for attribute in ATTRIBUTES}


def provenance_columns(provenance: Provenance) -> dict[str, str]:
    """Beside :func:`attribute_columns`, whose split is that of the subject."""
    return {"evaluated_split" if key == "split" else key: value for key, value in asdict(provenance).items()}


def mean_rows(summary: Summary) -> list[dict[str, Any]]:
    """A row per mean; ``of`` states its kind."""
    kinds: list[tuple[str, Sequence[Any]]] = [
        ("all", (summary.overall,)),
        ("group", summary.groups),
        *summary.by_attribute.items(),
        ("structure", summary.structures),
    ]
    return [{"of": kind, **row_as_json(row)} for kind, rows in kinds for row in rows]


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys.

    Raises:
        ConfigurationError: the file can't be written.
    """
    listed = list(rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(listed[0]) if listed else ["subject"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_text(path, table.getvalue())


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys.

    Raises:
        ConfigurationError: the file can't be written, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional library, and slow to import
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError("Parquet requires pyarrow: pip install 'dicom-node[research]'") from error
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), type(None): pa.string()}
    schema = pa.schema([(name, kinds[_type_of(rows, name)]) for name in (rows[0] if rows else ())])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with replaced_file(path) as part:
        pq.write_table(table, part, compression="zstd")


def _type_of(rows: Sequence[Mapping[str, Any]], column: str) -> type:
    """Of the values of a column; a column of measurements stays one where none could be made."""
    if column in _MEASUREMENTS:
        return float
    return next((type(row[column]) for row in rows if row[column] is not None), type(None))


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """Write everything as one JSON document.

    Raises:
        ConfigurationError: the file can't be written.
    """
    write_json(path, content)
