"""``config``: create a configuration."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def config() -> None:
    """Create a configuration."""


@config.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Write a commented configuration to DIR.

    It consists of node.yaml, rules.yaml and the demo model. Existing files are not overwritten.
    """
    from dicom_node.app.places import write_configuration  # noqa: PLC0415

    for written in write_configuration(folder):
        click.echo(f"wrote {written}")
    node_yaml = folder / "node.yaml"
    click.echo(
        f"\nNext, in {node_yaml}: list your PACS under sources and destinations, and set node.data_folder.\n"
        f"Then name the destination in {folder / 'rules.yaml'} and check the configuration:\n\n"
        f"    dicom-node --config {node_yaml} check"
    )
