"""``phantom``: make a synthetic patient."""

from __future__ import annotations

from pathlib import Path

import click

_SPACING_HELP = "Spacing of columns, rows and planes in mm."
_FIELD_OF_VIEW_HELP = "whole, head_neck, chest, abdomen, chest_abdomen or trunk."


@click.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--spacing", nargs=3, type=float, default=(1.5, 1.5, 3.0), show_default=True, help=_SPACING_HELP)
@click.option("--field-of-view", default="whole", show_default=True, help=_FIELD_OF_VIEW_HELP)
@click.option("--format", "file_format", type=click.Choice(["dicom", "nifti"]), default="dicom", show_default=True)
def phantom(seed: int, out: Path, spacing: tuple[float, float, float], field_of_view: str, file_format: str) -> None:
    """Make a labelled synthetic patient.

    Writes a CT series and its true labels as NIfTI, or both as NIfTI.
    """
    from dicom_node.demo.phantom_series import write_phantom  # noqa: PLC0415

    click.echo(write_phantom(seed, out, spacing, field_of_view, file_format))
