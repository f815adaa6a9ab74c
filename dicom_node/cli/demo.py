"""``demo``: the whole workflow once."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_SERIES_HELP = "Folder with your own CT series; default: a generated phantom."
_MODEL_HELP = "Model from the demo configuration; default: the demo model for a phantom, tissue for your own CT."


@click.command()
@click.option("--series", type=click.Path(path_type=Path, exists=True, file_okay=False), help=_SERIES_HELP)
@click.option("--model", help=_MODEL_HELP)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the phantom.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"), show_default=True)
def demo(series: Path | None, model: str | None, seed: int, out: Path) -> None:
    """Run the whole workflow once on this machine.

    A PACS sends a CT series to the node and gets SEG and SR back; a table and a picture show the results.
    """
    from dicom_node.demo.run import run_demo  # noqa: PLC0415

    sys.exit(run_demo(series=series, model=model, seed=seed, out=out))
