"""How far the command is: bars on a terminal, nothing anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable


class ProgressBars:
    """The bar of the CT that is worked on, on stderr; ``shown`` says whether there is anybody to look at it."""

    def __init__(self, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def bar(self, name: str) -> Callable[[float, str], None]:
        """The bar of the next CT; what it returns takes the fraction that is done and a word for the stage."""
        for finished in self._bars.task_ids:
            self._bars.remove_task(finished)
        # square brackets in a name of a file are not rich's markup
        task = self._bars.add_task(name.replace("[", r"\["), total=1.0, stage="")
        return lambda fraction, stage: self._bars.update(task, completed=fraction, stage=stage)
