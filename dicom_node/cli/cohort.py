"""``cohort``: series of an archive into one table of measurements."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def cohort() -> None:
    """Measure many series of an archive.

    One Parquet data set results, with pseudonyms in place of patients. Requires pip install 'dicom-node[research]'.
    """


@cohort.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def key(file: Path) -> None:
    """Make a key for pseudonyms.

    FILE must not exist. Keep it at the site, and keep a copy: with another key, every patient gets another pseudonym.
    """
    from dicom_node.cohort.pseudonym import write_new_key  # noqa: PLC0415

    write_new_key(file)
    click.echo(f"{file}: keep it secret, and keep a copy")
