"""Output of commands: tables for people, JSON for programs, progress bars for long operations."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.cli.context import PROBLEM_FOUND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from dicom_node.evaluate.cases import Problem

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_NEVER_WRAPPED = frozenset({"name", "id", "state", "progress", "attempts", "kind"})


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(value, indent=2))


def print_table(title: str, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    """Print the ``columns`` of ``rows``.

    UIDs, reasons and times wrap over several lines; short values never do, even in a terminal of 80 columns.
    """
    columns = tuple(columns)
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column in _NEVER_WRAPPED)
    for row in rows:
        # Text: rich would read square brackets in a plain string as markup
        table.add_row(*(Text("" if row[column] is None else str(row[column])) for column in columns))
    Console().print(table)


def print_facts(title: str, facts: dict[str, Any]) -> None:
    """Print one fact per line; lists and mappings as JSON."""
    table = Table("fact", title=title)
    table.add_column("value", overflow="fold")  # a digest must be whole to be copied
    for name, value in facts.items():
        table.add_row(name, Text(json.dumps(value, indent=1) if isinstance(value, dict | list) else str(value)))
    Console().print(table)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage on stderr if that is a terminal; yields the function to report (stage, done, total) to."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage)
            progress.update(bars[stage], completed=done, total=total)

        yield report


class Study(Protocol):
    """What an evaluation or a comparison found."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What was left out, with the reasons."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        ...


def end_with(study: Study, page: Path, print_tables: Callable[[], None], *, as_json: bool) -> None:
    """Print what was found, list on stderr what was left out, and exit with the code for problems if anything was."""
    if as_json:
        print_json(study.as_json())
    else:
        print_tables()
        click.echo(f"in {page}")
    for problem in study.problems:
        click.echo(f"{problem.id}: {problem.reason}", err=True)
    if study.problems:
        sys.exit(PROBLEM_FOUND)
