"""``config``: start a configuration of your own."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def config() -> None:
    """Start a configuration of your own."""


@config.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Write the commented configuration into DIR.

    That is node.yaml, rules.yaml and the demo model. Nothing is overwritten.
    """
    from dicom_node.app.places import write_configuration  # noqa: PLC0415

    for written in write_configuration(folder):
        click.echo(f"wrote {written}")
    node_yaml = folder / "node.yaml"
    click.echo(
        f"\nNext, in {node_yaml}: list your PACS under sources and destinations, and set node.data_folder.\n"
        f"Then name the destination in {folder / 'rules.yaml'}, and check everything:\n\n"
        f"    dicom-node --config {node_yaml} check"
    )
