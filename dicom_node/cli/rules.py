"""``rules``: test the routing rules on a series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.cli.output import json_option, print_json

if TYPE_CHECKING:
    from dicom_node.cli.context import Context


@click.group()
def rules() -> None:
    """Test the routing rules."""


@rules.command()
@click.argument("series")
@json_option
@click.pass_obj
def explain(context: Context, *, series: str, as_json: bool) -> None:
    """Explain why SERIES would or would not run.

    SERIES is a folder of DICOM files, or the Series Instance UID of a series that the node has stored.
    """
    from dicom_node.app.explain import explain_rules  # noqa: PLC0415

    explanations = explain_rules(context.settings(), series)
    if as_json:
        print_json(explanations)
        return
    for explanation in explanations:
        table = Table("rule", "condition", "found", "met", title=f"series {explanation['series_instance_uid']}")
        for row in explanation["conditions"]:
            table.add_row(Text(row["rule"]), Text(row["condition"]), Text(row["seen"]), "yes" if row["held"] else "no")
        Console().print(table)
        for note in explanation["notes"]:
            click.echo(note)
        for decision in explanation["decisions"]:
            what = f" -> model {decision['model']}; results" if decision["model"] else "; notice"
            click.echo(f"{decision['reason']}{what} to: {', '.join(decision['destinations']) or 'no destination'}")
