"""``conformance``: the DICOM Conformance Statement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TextIO

import click

from dicom_node.cli.output import json_option

if TYPE_CHECKING:
    from dicom_node.cli.context import Context


@click.command()
@click.option(
    "--out", type=click.File("w", encoding="utf-8", atomic=True), default="-", help="Output file; default: stdout."
)
@json_option
@click.pass_obj
def conformance(context: Context, *, out: TextIO, as_json: bool) -> None:
    """Write the DICOM Conformance Statement.

    The statement is in Markdown. It describes the product with its defaults or, if --config or DICOM_NODE_CONFIG is
    given, the node configured there.
    """
    from dicom_node.conformance.statement import conformance_statement, facts  # noqa: PLC0415

    settings = context.settings() if context.given else None
    out.write(json.dumps(facts(settings), indent=1) + "\n" if as_json else conformance_statement(settings))
