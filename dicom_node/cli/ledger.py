"""``ledger check``: whether anything that the node acknowledged is lost."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from dicom_node.cli.output import json_option, print_json, print_table
from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from dicom_node.cli.context import Context
    from dicom_node.operate.ledger_check import LedgerReport

_VIOLATED = 1
_NOT_READ = 2


@click.group()
def ledger() -> None:
    """Look after the ledger and the spool."""


@ledger.command()
@click.option("--deep", is_flag=True, help="Read every file and compare its SHA-256.")
@json_option
@click.pass_obj
def check(context: Context, *, deep: bool, as_json: bool) -> None:
    """Check that nothing acknowledged is lost.

    Every instance, series, job, result and delivery must be in exactly one legal state, and files and rows must agree.
    Changes nothing; the node may run. Exit code 0: all is sound, 1: something is not, 2: ledger or spool can't be read.
    """
    from dicom_node.app.stores import open_store_to_read  # noqa: PLC0415
    from dicom_node.operate.ledger_check import check_ledger  # noqa: PLC0415
    from dicom_node.store.views import json_form  # noqa: PLC0415

    try:
        spool, opened = open_store_to_read(context.settings())
        with closing(opened):
            report = check_ledger(opened.consistency, spool, deep=deep)
    except DicomNodeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_NOT_READ)
    if as_json:
        print_json({"sound": report.is_sound, **json_form(report)})
    else:
        _print(report)
    if not report.is_sound:
        sys.exit(_VIOLATED)


def _print(report: LedgerReport) -> None:
    rows = [
        {"": kind, "state": state, "number": number}
        for kind, states in report.states.items()
        for state, number in (*states.items(), ("in all", report.counted[kind]))
    ]
    print_table("dicom-node ledger check", rows, ("", "state", "number"))
    read = "read" if report.deep else "looked at"
    click.echo(f"{report.files} files of {report.file_bytes} bytes {read} in {report.seconds:g} s")
    if report.is_sound:
        click.echo("sound")
        return
    examples = [{"kind": each.kind, "subject": each.subject, "detail": each.detail} for each in report.examples]
    print_table("violations", examples, ("kind", "subject", "detail"))
    for kind, number in report.violations.items():
        click.echo(f"{kind}: {number}")
