"""How far a CT is: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(name: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that goes away at the end, where ``shown`` and where stderr is a terminal.

    What it yields takes the fraction that is done and a word for the stage.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[stage]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as bars:
        task = bars.add_task(escape(name), total=1.0, stage="")
        yield lambda fraction, stage: bars.update(task, completed=fraction, stage=stage)
