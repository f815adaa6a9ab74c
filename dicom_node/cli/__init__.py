"""The commands, thin. Tables for people, ``--json`` for programs, exit codes for both.

Exit codes: 0 done, 1 something is wrong (said on stderr), 2 the command was called wrongly, 3 a check found a problem.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import __version__
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.log import configure_logging
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger
    from inference.models.package import ModelPackage

_PROBLEM_FOUND = 3
_NEVER_WRAPPED = frozenset({"name", "id", "state", "progress", "attempts", "kind"})
_JOB_ID = click.IntRange(1, 2**63 - 1)
_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
_SPACING_HELP = "Columns, rows, planes in mm."
_FIELD_OF_VIEW_HELP = "whole, head_neck, chest, abdomen, chest_abdomen or trunk."
_SERIES_HELP = "A folder with your own CT series; without it a phantom is made."
_RESAMPLING_HELP = "corners: as TotalSegmentator; nnunet: as nnU-Net itself; default: that of the task, else nnunet."
_RESULTS_HELP = "Which DICOM objects, with the keys of a destination in rules.yaml; default: BINARY SEG and SR."
_MODEL_HELP = "A model of the demo configuration; default: the demo model for a phantom, tissue for your own CT."


class _Command:
    """What every command shares: where the configuration is, and how to speak."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.console = Console()

    def settings(self) -> Settings:
        return load_settings(self.config)

    def models_folder(self) -> Path:
        """Where models are installed; beside the configuration where there is none, as its default says."""
        return self.settings().models_folder if self.config.is_file() else self.config.parent / "models"

    def ledger(self) -> Ledger:
        from dicom_node.app.compose import open_store  # noqa: PLC0415 - `--help` must not load every library

        return open_store(self.settings())[1]


class _Group(click.Group):
    """Errors of the node become one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DicomNodeError as error:
            raise click.ClickException(str(error)) from error


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dicom-node")
@click.option(
    "--config",
    envvar="DICOM_NODE_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("config/node.yaml"),
    show_default=True,
    help="The node's configuration file.",
)
@click.pass_context
def main(ctx: click.Context, config: Path) -> None:
    """A DICOM node that segments CT: C-STORE in, DICOM SEG and TID 1500 SR out.

    Research software, not a medical device.
    """
    ctx.obj = _Command(config)
    # stdout belongs to the answer (tables, JSON); `serve`, `listen` and `work` send their log there themselves
    configure_logging(ctx.invoked_subcommand or "", sys.stderr, logging.WARNING)


def _is_stated(ctx: click.Context, option: str) -> bool:
    """Whether somebody gave this option of ``dicom-node`` itself."""
    return ctx.find_root().get_parameter_source(option) is not ParameterSource.DEFAULT


# ---- running


@main.command()
@click.pass_obj
def serve(command: _Command) -> None:
    """Run the whole node: the listener and the work process, each restarted when it dies."""
    from dicom_node.app.compose import serve as run  # noqa: PLC0415

    configure_logging("serve")
    sys.exit(run(command.settings(), command.config))


@main.command()
@click.pass_obj
def listen(command: _Command) -> None:
    """Run the listener alone (C-STORE and C-ECHO)."""
    from dicom_node.app.compose import run_listener  # noqa: PLC0415

    configure_logging("listen")
    run_listener(command.settings())


@main.command()
@click.pass_obj
def work(command: _Command) -> None:
    """Run everything after the spool alone: completion, rules, segmentation, delivery."""
    from dicom_node.app.compose import run_work  # noqa: PLC0415

    configure_logging("work")
    run_work(command.settings())


# ---- looking


@main.command()
@_json_option
@click.pass_obj
def status(command: _Command, *, as_json: bool) -> None:
    """How many instances, series, jobs and deliveries are in which state."""
    overview = command.ledger().overview
    counts, open_series = overview.counts(), overview.open_series()
    if as_json:
        _print_json({"counts": counts, "open_series": open_series})
        return
    table = Table("", "state", "number", title="dicom-node")
    for thing, states in counts.items():
        for state, number in states.items():
            table.add_row(thing, state, str(number))
    command.console.print(table)
    if open_series:
        columns = ("series_instance_uid", "revision", "sending_ae", "last_arrival", "look_again_at")
        command.console.print(_table("series that are still arriving", open_series, columns))


@main.command()
@click.option("--limit", default=50, show_default=True, help="The newest so many.")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--series", "series_uid", help="Only jobs of this Series Instance UID.")
@_json_option
@click.pass_obj
def jobs(command: _Command, *, limit: int, state: str | None, series_uid: str | None, as_json: bool) -> None:
    """The jobs, newest first, with the reason where one was rejected or failed."""
    rows = command.ledger().overview.jobs(limit, state, series_uid)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        row["progress"] = f"{row['progress']:.0%}"
    columns = ("id", "state", "model", "progress", "stage", "series_instance_uid", "revision", "reason")
    command.console.print(_table("jobs", rows, columns))


@main.command()
@click.argument("job_id", type=_JOB_ID)
@_json_option
@click.pass_obj
def job(command: _Command, *, job_id: int, as_json: bool) -> None:
    """Everything about one job: evidence, decision, stages, results, deliveries."""
    found = command.ledger().overview.job(job_id)
    if found is None:
        raise click.ClickException(f"there is no job {job_id}")
    if as_json:
        _print_json(found)
        return
    results, deliveries, series = found.pop("results"), found.pop("deliveries"), found.pop("series")
    for title, facts in ((f"job {job_id}", found), ("series", series)):
        table = Table("fact", "value", title=title)
        for name, value in facts.items():
            table.add_row(name, Text(json.dumps(value, indent=1) if isinstance(value, dict | list) else str(value)))
        command.console.print(table)
    command.console.print(_table("results", results, ("kind", "sop_instance_uid", "series_instance_uid", "size_bytes")))
    columns = ("destination", "state", "attempts", "last_status", "last_reason", "next_attempt_at", "delivered_at")
    command.console.print(_table("deliveries", deliveries, columns))


@main.command()
@click.argument("job_id", type=_JOB_ID)
@_json_option
@click.pass_obj
def retry(command: _Command, *, job_id: int, as_json: bool) -> None:
    """Try a failed or rejected job, or its undelivered results, again now."""
    from dicom_node.pipeline import now_utc  # noqa: PLC0415

    answer = command.ledger().jobs.retry(job_id, now_utc())
    if answer is None:
        raise click.ClickException(
            f"job {job_id} does not exist, a newer revision took its place, or its state leaves nothing to do"
        )
    if as_json:
        _print_json({"job": job_id, "answer": answer})
    else:
        click.echo(answer)


@main.command()
@_json_option
@click.pass_obj
def check(command: _Command, *, as_json: bool) -> None:
    """Is everything right: configuration, rules, models and their digests, ledger, port, disk, C-ECHO to every peer."""
    from dicom_node.app.check import run_checks  # noqa: PLC0415

    findings = run_checks(command.config)
    if as_json:
        _print_json([{"check": f.name, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        table = Table("check", "", title="dicom-node check")
        table.add_column("detail", overflow="fold")  # a digest must be whole to be copied
        for finding in findings:
            verdict = Text("ok", "green") if finding.ok else Text("wrong", "red")
            table.add_row(Text(finding.name), verdict, Text(finding.detail))
        command.console.print(table)
    if not all(finding.ok for finding in findings):
        sys.exit(_PROBLEM_FOUND)


@main.command()
@click.option("--out", type=click.File("w", encoding="utf-8", atomic=True), default="-", help="Default: stdout.")
@_json_option
@click.pass_context
def conformance(ctx: click.Context, *, out: TextIO, as_json: bool) -> None:
    """The DICOM Conformance Statement, in Markdown.

    Of the product with its defaults; where --config or DICOM_NODE_CONFIG is given, of the node configured there.
    """
    from dicom_node.conformance.statement import conformance_statement, facts  # noqa: PLC0415

    settings = ctx.obj.settings() if _is_stated(ctx, "config") else None
    out.write(json.dumps(facts(settings), indent=1) + "\n" if as_json else conformance_statement(settings))


# ---- rules


@main.group()
def rules() -> None:
    """The routing rules."""


@rules.command()
@click.argument("series")
@_json_option
@click.pass_obj
def explain(command: _Command, *, series: str, as_json: bool) -> None:
    """Why SERIES (a Series Instance UID the node has received, or a folder of DICOM files) would or would not run."""
    from dicom_node.app.compose import explain_rules  # noqa: PLC0415

    explanations = explain_rules(command.settings(), series)
    if as_json:
        _print_json(explanations)
        return
    for explanation in explanations:
        table = Table("rule", "condition", "seen", "holds", title=f"series {explanation['series_instance_uid']}")
        for row in explanation["conditions"]:
            table.add_row(Text(row["rule"]), Text(row["condition"]), Text(row["seen"]), "yes" if row["held"] else "no")
        command.console.print(table)
        for decision in explanation["decisions"]:
            what = f" -> model {decision['model']}; results" if decision["model"] else "; notice"
            click.echo(f"{decision['reason']}{what} to: {', '.join(decision['destinations']) or 'nobody'}")


# ---- segmenting files


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="Name of an installed model, a package folder, or tissue.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where the results go.")
@click.option("--recursive", is_flag=True, help="Look into folders below too; each CT gets a folder of results.")
@click.option("--series-uid", help="Only the series with this Series Instance UID.")
@click.option("--again", is_flag=True, help="Also what an earlier run has finished.")
@click.option("--structures", default="", metavar="A,B", help="Only these structures.")
@click.option("--results", default="", metavar="'KEY: VALUE, ...'", help=_RESULTS_HELP)
@click.option("--no-dicom", is_flag=True, help="No SEG and no SR.")
@click.option("--parity", is_flag=True, help="Answer as TotalSegmentator 2.18 does, voxel by voxel.")
@click.option("--no-body-crop", is_flag=True, help="Look at the air around the patient too.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(_PRECISIONS), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all cores.")
@_json_option
@click.pass_obj
def segment(
    command: _Command,
    /,
    *,
    inputs: tuple[Path, ...],
    model: str,
    out: Path,
    structures: str,
    results: str,
    no_dicom: bool,
    no_body_crop: bool,
    as_json: bool,
    recursive: bool,
    series_uid: str | None,
    again: bool,
    **engine: Any,
) -> None:
    """Segment INPUTS (folders of DICOM files, NIfTI files) without a network: label map, measurements, DICOM results.

    Exit code 3: some inputs were refused, each with its reason.
    """
    from dicom_node.route.requests import read_request  # noqa: PLC0415
    from dicom_node.segment.command import segment_inputs  # noqa: PLC0415
    from dicom_node.segment.run import Wanted  # noqa: PLC0415
    from inference.errors import UnknownStructureError  # noqa: PLC0415
    from inference.nnunet.contract import EngineOptions  # noqa: PLC0415

    if results and no_dicom:
        raise click.UsageError("--results says which DICOM objects, --no-dicom says none")
    try:
        asked = None if no_dicom else read_request(results)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param_hint="--results") from error
    outcomes = []
    try:
        for outcome in segment_inputs(
            inputs,
            out,
            model_name=model,
            models_folder=command.models_folder(),
            options=EngineOptions(body_crop=not no_body_crop, **engine),
            wanted=Wanted(tuple(structures.replace(",", " ").split()), asked),
            recursive=recursive,
            series_instance_uid=series_uid,
            again=again,
            show_progress=not as_json,
        ):
            outcomes.append(outcome)
            if not as_json:
                click.echo(outcome.line, err=outcome.refused)
    except UnknownStructureError as error:
        raise click.BadParameter(str(error), param_hint="--structures") from error
    if as_json:
        _print_json([{"folder": str(o.folder), "skipped": o.skipped, **o.summary} for o in outcomes])
    if any(outcome.refused for outcome in outcomes):
        sys.exit(_PROBLEM_FOUND)


# ---- models


@main.group()
def models() -> None:
    """The library of installed models (models_folder in the settings)."""


@models.command("install")
@click.argument("sources", nargs=-1, required=True, metavar="NAME|PATH|URL...")
@click.option("--task", help="The known task whose weights these are (`models known`).")
@click.option("--name", help="What the model shall be called here; default: its task.")
@click.option("--sha256", help="What the zip must have.")
@click.option("--folds", help="Separated by commas: 0,1,2 or all; default: those of the task, else every one.")
@click.option("--resampling", type=click.Choice(["corners", "nnunet"]), help=_RESAMPLING_HELP)
@click.option("--model-version", "version", help="Version to record.")
@click.option("--licence", help="Licence to record.")
@click.option("--intended-use", help="Printed on every result; default: research use only.")
@click.option("--minimum-slices", type=click.IntRange(1), help="Smaller volumes are refused; default: 16.")
@click.option("--minimum-extent-mm", type=click.FloatRange(0), help="Smaller volumes are refused; default: 30.")
@_json_option
@click.pass_obj
def models_install(
    command: _Command, /, *, sources: tuple[str, ...], folds: str | None, as_json: bool, **stated: Any
) -> None:
    """Install a model from its folder, its zip, an https address, or by the name of a known task.

    Several sources are the parts of one model. Nothing of a source is executed; a model that can't be trusted or is not
    whole is not installed.
    """
    from inference.models.install import Stated, install  # noqa: PLC0415

    chosen = Stated(folds=tuple(folds.split(",")) if folds else None, **stated)
    with _models_errors(), _progress() as report:
        package = install(sources, command.models_folder(), chosen, report)
    facts = _model_facts(package)
    if as_json:
        _print_json(facts)
        return
    rows = [{"fact": name.replace("_", " "), "value": value} for name, value in facts.items()]
    command.console.print(_table(f"installed: {package.identity.name}", rows, ("fact", "value")))
    if package.crop is not None and not (package.folder.parent / package.crop.model).exists():
        click.echo(f"it works inside what {package.crop.model} finds: install that too")


@models.command("known")
@_json_option
@click.pass_obj
def models_known(command: _Command, *, as_json: bool) -> None:
    """The tasks that can be installed by their name, or by --task from a folder."""
    from inference.models.tasks import tasks  # noqa: PLC0415
    from inference.structures import catalogue  # noqa: PLC0415

    known = catalogue()
    rows = [
        {
            "name": task.name,
            "title": task.title,
            "structures": len(task.structures),
            "licence": task.licence,
            "downloadable": task.downloadable,
            "not_in_the_catalogue": [name for name in task.structures if name not in known],
        }
        for task in tasks().values()
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        how = "yes, by its name" if row["downloadable"] else "yes, from your own files"
        row["can be installed"] = "no: structures without codes" if row["not_in_the_catalogue"] else how
    command.console.print(_table("known tasks", rows, ("name", "title", "can be installed")))


@models.command("list")
@_json_option
@click.pass_obj
def models_list(command: _Command, *, as_json: bool) -> None:
    """What is installed. Files of weights are not read; `models verify` does that."""
    from inference.errors import ModelPackageError  # noqa: PLC0415
    from inference.models.library import installed, read  # noqa: PLC0415

    folder, rows, damaged = command.models_folder(), [], []
    for name in installed(folder):
        try:
            rows.append(_model_facts(read(folder, name, check_weights=False)))
        except ModelPackageError as error:  # the sound ones shall be listed all the same
            damaged.append(f"{name}: {error}")
    if as_json:
        _print_json(rows)
    else:
        command.console.print(_table(f"models in {folder}", rows, ("name", "version", "structures", "parts", "digest")))
    for reason in damaged:
        click.echo(f"Error: {reason}", err=True)
    if damaged:
        sys.exit(_PROBLEM_FOUND)


@models.command("verify")
@click.argument("names", nargs=-1)
@_json_option
@click.pass_obj
def models_verify(command: _Command, *, names: tuple[str, ...], as_json: bool) -> None:
    """Hash every file of the installed models (or of NAMES) again."""
    from inference.errors import ModelPackageError  # noqa: PLC0415
    from inference.models.library import installed, read  # noqa: PLC0415

    folder, rows = command.models_folder(), []
    for name in names or installed(folder):
        try:
            rows.append({"name": name, "ok": True, "detail": read(folder, name).identity.digest})
        except ModelPackageError as error:
            rows.append({"name": name, "ok": False, "detail": str(error)})
    if as_json:
        _print_json(rows)
    else:
        command.console.print(_table(f"models in {folder}", rows, ("name", "ok", "detail")))
    if not all(row["ok"] for row in rows):
        sys.exit(_PROBLEM_FOUND)


@models.command("remove")
@click.argument("name")
@_json_option
@click.pass_obj
def models_remove(command: _Command, *, name: str, as_json: bool) -> None:
    """Delete an installed model."""
    from inference.models.library import remove  # noqa: PLC0415

    with _models_errors():
        remove(command.models_folder(), name)
    if as_json:
        _print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


@contextmanager
def _models_errors() -> Iterator[None]:
    from inference.errors import InferenceError  # noqa: PLC0415

    try:
        yield
    except InferenceError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the library of models'}: {error.strerror}") from error


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage on stderr, where that is a terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage)
            progress.update(bars[stage], completed=done, total=total)

        yield report


def _model_facts(package: ModelPackage) -> dict[str, Any]:
    return {
        "name": package.identity.name,
        "version": package.identity.version,
        "digest": package.identity.digest,
        "structures": len(package.names_by_label),
        "parts": len(package.parts),
        "folder": str(package.folder),
        "intended_use": package.identity.intended_use,
        "licence": package.licence,
        "source": package.source,
        "minimum_slices": package.minimum_slices,
        "minimum_extent_mm": package.minimum_extent_mm,
    }


# ---- phantom, demo, evaluation


@main.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--spacing", nargs=3, type=float, default=(1.5, 1.5, 3.0), show_default=True, help=_SPACING_HELP)
@click.option("--field-of-view", default="whole", show_default=True, help=_FIELD_OF_VIEW_HELP)
@click.option("--format", "file_format", type=click.Choice(["dicom", "nifti"]), default="dicom", show_default=True)
def phantom(seed: int, out: Path, spacing: tuple[float, float, float], field_of_view: str, file_format: str) -> None:
    """Make a labelled synthetic patient: a CT series (with its truth as NIfTI), or a NIfTI pair."""
    from dicom_node.demo.phantom_series import write_phantom  # noqa: PLC0415

    click.echo(write_phantom(seed, out, spacing, field_of_view, file_format))


@main.command()
@click.option(
    "--series",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help=_SERIES_HELP,
)
@click.option(
    "--model",
    help=_MODEL_HELP,
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the phantom.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"), show_default=True)
def demo(series: Path | None, model: str | None, seed: int, out: Path) -> None:
    """Run the whole job once, on this machine: PACS, node, SEG and SR back in the PACS, a table and a picture."""
    from dicom_node.demo.run import run_demo  # noqa: PLC0415

    sys.exit(run_demo(series=series, model=model, seed=seed, out=out))


_passed_on = {"ignore_unknown_options": True, "help_option_names": []}


@main.command(context_settings=_passed_on)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def evaluate(arguments: tuple[str, ...]) -> None:
    """Score an nnU-Net model on unseen phantoms: Dice and surface Dice per structure (--help tells the options)."""
    from inference.evaluation.phantoms import main as run  # noqa: PLC0415

    run(arguments)


@main.command(context_settings=_passed_on)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train the demo model on phantoms (--help tells the options)."""
    from inference.training.demo_model import main as run  # noqa: PLC0415

    run(arguments)


def _table(title: str, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> Table:
    """UIDs, reasons and times fold over several lines; short values stay whole, also in a terminal of 80 columns."""
    columns = tuple(columns)
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column in _NEVER_WRAPPED)
    for row in rows:
        # Text: what stands in square brackets is a value, not rich's markup
        table.add_row(*(Text("" if row[column] is None else str(row[column])) for column in columns))
    return table


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
