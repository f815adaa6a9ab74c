"""``train``: train a model on data sets in nnU-Net's raw format."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from dicom_node.cli.output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dicom_node.cli.context import Context

_ROWS_SHOWN = 12
_COLUMNS = ("epoch", "iterations", "training_loss", "validation_loss", "patch_dice", "learning_rate", "seconds")


@click.command()
@click.argument("data_sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--configuration",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="Training configuration: a file like those in config/training.",
)
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for all state and curves."
)
@click.option(
    "--library", type=click.Path(path_type=Path, file_okay=False), help="Where to install; default: the node's models."
)
@click.option("--name", help="Name of the model; default: that of the configuration.")
@click.option("--model-version", default="1", show_default=True, help="Version of the model, part of every result.")
@click.option("--epochs", type=click.IntRange(1), help="Replaces the configuration's value.")
@click.option("--iterations-per-epoch", type=click.IntRange(1), help="Replaces the configuration's value.")
@click.option("--seed", type=click.IntRange(0, 2**31), help="Replaces the configuration's value.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="Number of GPUs to use.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="On a CPU; 0: one per core.")
@click.option("--processes", type=click.IntRange(0), help="Processes that draw patches; default: 0 on a CPU.")
@click.option("--save-every", type=click.FloatRange(0), default=3.0, show_default=True, help="Minutes.")
@json_option
@click.pass_obj
def train(
    context: Context,
    *,
    data_sets: tuple[Path, ...],
    file: Path,
    work: Path,
    library: Path | None,
    name: str | None,
    model_version: str,
    epochs: int | None,
    iterations_per_epoch: int | None,
    seed: int | None,
    device: Any,
    gpus: int,
    threads: int,
    processes: int | None,
    save_every: float,
    as_json: bool,
) -> None:
    """Train a model with nnU-Net and install it.

    DATA_SETS are folders in nnU-Net's raw format; several become the parts of one model. An interrupted training is
    continued by the same command. Requires nnU-Net: pip install 'dicom-node[train]'.
    """
    from inference.errors import InferenceError  # noqa: PLC0415

    try:
        from inference.training.configuration import read_configuration  # noqa: PLC0415
        from inference.training.run import Machine, Progress  # noqa: PLC0415
        from inference.training.run import train as run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("nnunetv2", "batchgeneratorsv2"):
            raise
        raise click.ClickException("training requires nnU-Net: pip install 'dicom-node[train]'") from error
    try:
        configuration = read_configuration(file)
        stated: dict[str, Any] = {"epochs": epochs, "iterations_per_epoch": iterations_per_epoch, "seed": seed}
        configuration = replace(configuration, **{key: value for key, value in stated.items() if value is not None})
        with _live_table() as (stage, epoch):
            package = run(
                data_sets,
                configuration,
                work,
                library or context.models_folder(),
                Machine(device, gpus, threads, processes, 60 * save_every),
                Progress(stage, epoch),
                name=name,
                model_version=model_version,
            )
    except InferenceError as error:
        raise click.ClickException(str(error)) from error
    result = {"name": package.identity.name, "folder": str(package.folder), "digest": package.identity.digest}
    if as_json:
        print_json({**result, "training": package.training})
        return
    for part in package.training["parts"]:
        fold, metrics = part["split"]["fold"], part["metrics"]
        click.echo(
            f"{part['data_set']} ({part['reference']}), fold {fold}, {metrics['epochs']} epochs with nnU-Net "
            f"{package.training['software']['nnunetv2']}: Dice {metrics['patch_dice']:.4f} on random patches of the "
            f"{len(part['split']['validation'])} validation cases"
            + (" (which were trained on)" if fold == "all" else "")
            + f"; resampling {part['resampling']}"
        )
    click.echo(f"{result['name']} {result['digest']} in {result['folder']}")


@contextmanager
def _live_table() -> Iterator[tuple[Callable[[str, str], None], Callable[[Mapping[str, float]], None]]]:
    """A table of the last epochs on stderr if that is a terminal; otherwise a line per stage and epoch."""
    from rich.live import Live  # noqa: PLC0415

    console = Console(stderr=True)
    rows: list[Mapping[str, float]] = []
    title = ""

    def table() -> Table:
        shown = Table(title=title)
        for column in _COLUMNS:
            shown.add_column(column.replace("_", " "), justify="right")
        for row in rows[-_ROWS_SHOWN:]:
            shown.add_row(*(f"{row[column]:.4g}" for column in _COLUMNS))
        return shown

    with Live(console=console, auto_refresh=False, transient=False) as live:

        def stage(data_set: str, name: str) -> None:
            nonlocal title
            title = f"{data_set}: {name}"
            if console.is_terminal:
                live.update(table(), refresh=True)
            else:
                click.echo(title, err=True)

        def epoch(values: Mapping[str, float]) -> None:
            rows.append(values)
            if console.is_terminal:
                live.update(table(), refresh=True)
            else:
                click.echo(" ".join(f"{column}={values[column]:.5g}" for column in _COLUMNS), err=True)

        yield stage, epoch
