"""Shows the results: a table of structures, and the picture."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import dcmread
from rich.table import Table

from dicom_node.demo.picture import legend_groups, write_picture
from dicom_node.demo.scores import UnexpectedResult, dice_by_name
from dicom_node.reconstruct import reconstruct
from dicom_node.results import StoredSegmentation, StoredStructure, read_report, read_segmentation
from dicom_node.types import Series, SourceInstance
from inference.structures import STRUCTURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from dicom_node.network.requestor import OutgoingFile
    from inference.phantom import Phantom
    from inference.types import Volume


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """The files of one CT series to send, and for a phantom the truth."""

    files: tuple[OutgoingFile, ...]
    series_uid: str
    study_uid: str
    title: str
    truth: Phantom | None


@dataclass(frozen=True, slots=True)
class Received:
    """The two result objects that were fetched, and the name of the PACS."""

    segmentation: Path
    report: Path
    pacs_name: str


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One structure of the printed table."""

    name: str
    group: str
    values: StoredStructure
    dice: float | None


def show_results(console: Console, case: Case, results: Received, out: Path) -> None:
    """Read the objects, print the table, and write ``structures.csv`` and ``result.png`` to ``out``.

    Raises:
        UnexpectedResult: the objects do not match each other.
        ResultUnreadable: they do not match the CT that was sent, or are not a SEG and a report.
    """
    volume = _volume(case)
    received = read_segmentation(results.segmentation, volume.geometry)
    by_tracking_uid = {stored.tracking_uid: stored for stored in read_report(results.report)}
    dice = _dice(case, volume, received)
    rows = _rows(received, by_tracking_uid, dice)
    _print_table(console, rows, dice)
    _write_table(out / "structures.csv", rows)
    volume_ml = {row.name: row.values.volume_ml or 0.0 for row in rows}
    group_of = {row.name: row.group for row in rows}
    score = f", mean Dice {sum(dice.values()) / len(dice):.3f}" if dice else ""
    picture = out / "result.png"
    write_picture(
        picture,
        volume,
        received.labels_zyx,
        segments=received.segments,
        groups=legend_groups(received.segments, volume_ml, group_of),
        title=f"{len(received.segments)} structures",
        subtitle=f"{case.title}; {received.algorithm}; SEG and SR read back from {results.pacs_name}{score}",
    )
    for what, path in (("SEG", results.segmentation), ("SR", results.report), ("table", out / "structures.csv")):
        console.print(f"{what}: {path}", soft_wrap=True, markup=False)
    console.print(f"picture: {picture}", style="bold", soft_wrap=True, markup=False)


def _volume(case: Case) -> Volume:
    """The CT on its source frames, reconstructed from the files that were sent."""
    instances = tuple(SourceInstance(file.path, dcmread(file.path, stop_before_pixels=True)) for file in case.files)
    return reconstruct(Series(case.series_uid, case.study_uid, instances)).source


def _dice(case: Case, volume: Volume, received: StoredSegmentation) -> dict[str, float]:
    if case.truth is None:
        return {}
    truth = case.truth.truth
    if not truth.geometry.same_grid(volume.geometry):
        raise UnexpectedResult("the CT that was sent is not on the grid of the phantom")
    if not {segment.name for segment in received.segments} & set(truth.names_by_label.values()):
        return {}
    return dice_by_name(received, truth.labels_zyx, truth.names_by_label)


def _rows(
    received: StoredSegmentation, by_tracking_uid: Mapping[str, StoredStructure], dice: Mapping[str, float]
) -> list[Row]:
    group_of = {entry.name: entry.group for entry in STRUCTURES}
    rows = []
    for segment in received.segments:
        values = by_tracking_uid.get(segment.tracking_uid)
        if values is None:
            raise UnexpectedResult(f"segment {segment.label} of the SEG has no Measurement Group in the SR")
        rows.append(Row(segment.name, group_of.get(segment.name, "other"), values, dice.get(segment.name)))
    return rows


def _print_table(console: Console, rows: Sequence[Row], dice: Mapping[str, float]) -> None:
    table = Table(title="structures, from the SR in the PACS")
    for heading, justify in (("structure", "left"), ("group", "left"), ("volume (ml)", "right"), ("mean HU", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # literals, seen by mypy as str
    if dice:
        table.add_column("Dice (truth)", justify="right")
    for row in rows:
        mean_hu = "" if row.values.mean_hu is None else f"{row.values.mean_hu:.1f}"
        cells = [
            row.name.replace("_", " "),
            row.group,
            "" if row.values.volume_ml is None else f"{row.values.volume_ml:.1f}",
            mean_hu,
        ]
        table.add_row(*cells, *([f"{row.dice:.3f}" if row.dice is not None else "-"] if dice else []))
    console.print(table)
    if dice:
        lowest = min(dice, key=lambda name: dice[name])
        console.print(
            f"mean Dice over {len(dice)} structures: [bold]{sum(dice.values()) / len(dice):.3f}[/],"
            f" lowest {dice[lowest]:.3f} ({lowest.replace('_', ' ')})"
        )


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["structure", "group", "volume_ml", "mean_hu", "dice"])
        for row in rows:
            writer.writerow([row.name, row.group, row.values.volume_ml, row.values.mean_hu, row.dice])
