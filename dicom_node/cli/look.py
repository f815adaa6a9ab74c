"""``status``, ``jobs``, ``job``, ``retry``, ``check``: monitor a node and act on its jobs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_facts, print_json, print_table
from dicom_node.store.states import JobState
from dicom_node.store.views import json_form

if TYPE_CHECKING:
    from dicom_node.cli.context import Context

_JOB_ID = click.IntRange(1, 2**63 - 1)


@click.command()
@json_option
@click.pass_obj
def status(context: Context, *, as_json: bool) -> None:
    """Show alarms, the processes of the node, and how many instances, series, jobs and deliveries are in each state."""
    from dicom_node.app.alarming import alarms_now  # noqa: PLC0415
    from dicom_node.app.roles import holders  # noqa: PLC0415

    ledger, settings = context.ledger(), context.settings()
    overview, alarms = ledger.overview, [json_form(alarm) for alarm in alarms_now(settings, ledger)]
    processes = [json_form(holder) for holder in holders(ledger.processes, settings.node.data_folder)]
    counts, open_series = json_form(overview.counts()), [json_form(series) for series in overview.open_series()]
    if as_json:
        print_json({"counts": counts, "open_series": open_series, "alarms": alarms, "processes": processes})
        return
    if alarms:
        print_table("alarms", alarms, ("kind", "subject", "text", "since"))
    if processes:
        print_table("processes on this machine", processes, ("role", "pid", "host", "since", "lives"))
    else:
        click.echo("no process of the node runs on this machine")
    table = Table("", "state", "count", title="dicom-node")
    for thing, states in counts.items():
        for state, number in states.items():
            table.add_row(thing, state, str(number))
    Console().print(table)
    if open_series:
        rows = [{**series, "next_check": series["look_again_at"]} for series in open_series]
        columns = ("series_instance_uid", "revision", "sending_ae", "last_arrival", "next_check")
        print_table("series still arriving", rows, columns)


@click.command()
@click.option("--limit", default=50, show_default=True, help="Show at most this many, newest first.")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--series", "series_uid", help="Only jobs for this Series Instance UID.")
@json_option
@click.pass_obj
def jobs(context: Context, *, limit: int, state: str | None, series_uid: str | None, as_json: bool) -> None:
    """List the jobs.

    The newest comes first. Rejected and failed jobs are listed with the reason.
    """
    found = context.ledger().overview.jobs(limit, JobState(state) if state else None, series_uid)
    rows = [json_form(row) for row in found]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["progress"] = f"{row['progress']:.0%}"
    print_table(
        "jobs", rows, ("id", "state", "model", "progress", "stage", "series_instance_uid", "revision", "reason")
    )


@click.command()
@click.argument("job_id", type=_JOB_ID)
@json_option
@click.pass_obj
def job(context: Context, *, job_id: int, as_json: bool) -> None:
    """Show one job in detail.

    This includes why the series was considered complete, what the rules decided, the stages, results and deliveries.
    """
    view = context.ledger().overview.job(job_id)
    if view is None:
        raise click.ClickException(f"there is no job {job_id}")
    found = json_form(view)
    if as_json:
        print_json(found)
        return
    results, deliveries, series = found.pop("results"), found.pop("deliveries"), found.pop("series")
    run_report, notes = found.pop("run_report"), [*found.pop("image_notes"), *found.pop("notes")]
    del found["names_by_label"]  # a hundred lines
    print_facts(f"job {job_id}", found)
    if run_report is not None:
        print_facts("run", run_report)
    print_facts("series", series)
    for note in notes:
        click.echo(f"note: {note}")
    print_table("results", results, ("kind", "sop_instance_uid", "series_instance_uid", "size_bytes"))
    columns = ("destination", "state", "attempts", "last_status", "last_reason", "next_attempt_at", "delivered_at")
    print_table("deliveries", deliveries, columns)


@click.command()
@click.argument("job_id", type=_JOB_ID)
@json_option
@click.pass_obj
def retry(context: Context, *, job_id: int, as_json: bool) -> None:
    """Retry a job now.

    A failed or rejected job runs again. For a finished job, the undelivered results are sent again.
    """
    from dicom_node.store.clock import now_utc  # noqa: PLC0415

    answer = context.ledger().jobs.retry(job_id, now_utc())
    if answer is None:
        raise click.ClickException(
            f"job {job_id} can't be retried: it does not exist, a newer revision of its series has replaced it, "
            "its images were deleted after the retention time, or it has nothing left to do"
        )
    if as_json:
        print_json({"job": job_id, "answer": answer})
    else:
        click.echo(answer)


@click.command()
@json_option
@click.pass_obj
def check(context: Context, *, as_json: bool) -> None:
    """Check the node and its peers.

    Checks the configuration, the rules, the ledger, the disk, the port, the models with their digests, and the accepted
    answers with which constancy compares on schedule, and sends a C-ECHO to every peer. For a destination whose viewer
    is OHIF on Orthanc, checks that it shows the segmentations that the rules send there. Exit code 3: a check found a
    problem.
    """
    from dicom_node.app.check import run_checks  # noqa: PLC0415
    from dicom_node.constancy.baseline import described  # noqa: PLC0415

    findings = run_checks(context.config, described)
    if as_json:
        print_json([{"check": f.name, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        table = Table("check", "result", title="dicom-node check")
        table.add_column("detail", overflow="fold")  # a digest must be whole to be copied
        for finding in findings:
            verdict = Text("ok", "green") if finding.ok else Text("failed", "red")
            table.add_row(Text(finding.name), verdict, Text(finding.detail))
        Console().print(table)
    if not all(finding.ok for finding in findings):
        sys.exit(PROBLEM_FOUND)
