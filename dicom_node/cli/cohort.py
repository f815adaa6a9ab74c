"""``cohort``: series of an archive into one table of measurements."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_facts, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicom_node.age_study.run import AgeStudy
    from dicom_node.cli.context import Context
    from dicom_node.cohort.run import Progress

_UNKNOWN_TRUNCATION_HELP = (
    "Include structures that may or may not be truncated, such as those from reports of other programs."
)


def _rules_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say who is in a study."""
    for option in (
        click.option("--keep-unknown-truncation", is_flag=True, help=_UNKNOWN_TRUNCATION_HELP),
        click.option(
            "--model-digest",
            default="",
            metavar="BEGIN",
            help="If the rows are from several models: the first characters of its digest.",
        ),
        click.option(
            "--youngest",
            type=click.FloatRange(0),
            default=18.0,
            show_default=True,
            help="Lowest age in the study, in years.",
        ),
    ):
        command = option(command)
    return command


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


@cohort.command()
@click.argument("definition_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--work", "with_work", is_flag=True, help="Also start a work process, for a machine without a node.")
@click.option("--retry", is_flag=True, help="Pull the failed series again.")
@json_option
@click.pass_obj
def run(context: Context, *, definition_file: Path, with_work: bool, retry: bool, as_json: bool) -> None:
    """Pull the series that FILE selects, and measure them.

    Continues where an earlier run of the same FILE ended, however it ended. Exit code 3: a series failed.
    """
    with _research():
        from dicom_node.cohort.run import run_cohort  # noqa: PLC0415
    from dicom_node.cohort.definition import load_definition  # noqa: PLC0415

    settings = context.settings()
    definition = load_definition(definition_file, settings)
    with cohort_progress() as on_progress:
        summary = run_cohort(
            settings, definition, config=context.config if with_work else None, retry=retry, on_progress=on_progress
        )
    if as_json:
        print_json(summary)
    else:
        print_facts(f"cohort {definition.name}", summary)
    if summary["failed"]:
        sys.exit(PROBLEM_FOUND)


@cohort.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@_rules_options
@click.option("--replicates", type=click.IntRange(100), default=1000, show_default=True, help="Bootstrap draws.")
@json_option
def age(
    *,
    source: Path,
    out: Path,
    youngest: float,
    model_digest: str,
    keep_unknown_truncation: bool,
    replicates: int,
    as_json: bool,
) -> None:
    """Correlate volume and attenuation with age.

    SOURCE is the data set of a cohort, Parquet files with its columns, or a phantom cohort. Spearman's rank correlation
    of every structure, for all patients and by sex, with intervals and corrected p, trends and figures are written to
    OUT, with the paper's values beside them. Whatever is not used is listed with its reason.
    """
    with _research():
        from dicom_node.age_study.run import PAGE, run_age_study  # noqa: PLC0415
        from dicom_node.age_study.selection import Rules  # noqa: PLC0415

    rules = Rules(youngest, model_digest, keep_unknown_truncation)
    result = run_age_study(source, out, rules, replicates)
    if as_json:
        print_json(result.as_json())
        return
    _print_age_study(result)
    click.echo(f"in {out / PAGE}")


def _print_age_study(result: AgeStudy) -> None:
    from dicom_node.age_study.page import p_text, with_interval  # noqa: PLC0415

    population = result.population
    print_facts(
        f"{len(population.patients)} patients of {population.series_in_table} series",
        result.provenance | population.counts_by_reason(),
    )
    rows = [
        {
            "name": each.structure,
            "quantity": each.quantity,
            "n": each.patients,
            "r_s": with_interval(each),
            "p": p_text(each.p),
            "FDR": p_text(each.p_fdr),
            "paper": each.paper_r_s,
        }
        for each in result.study.of("all").values()
        if each.paper_r_s is not None
    ]
    print_table("Beside the paper; r_s with 95 % CI", rows, ("name", "quantity", "n", "r_s", "p", "FDR", "paper"))


@cohort.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
@_rules_options
@click.option("--name", default="", help="Name of the patients in results; default: that of SOURCE.")
@json_option
def percentiles(
    *,
    source: Path,
    out: Path,
    name: str,
    youngest: float,
    model_digest: str,
    keep_unknown_truncation: bool,
    as_json: bool,
) -> None:
    """Describe volume and attenuation by age and sex.

    SOURCE is as for cohort age, and the same patients are used. Percentiles of every structure over age, for all
    patients and by sex, are written to OUT. A structure with too few patients is listed there with the reason. The
    percentiles describe the patients of SOURCE and are not a norm.
    """
    with _research():
        from dicom_node.age_study.percentiles import run_percentiles  # noqa: PLC0415
        from dicom_node.age_study.selection import Rules  # noqa: PLC0415
    from dicom_node.percentiles import LONGEST_NAME  # noqa: PLC0415

    if len(name) > LONGEST_NAME:
        raise click.BadParameter(f"{len(name)} characters, expected at most {LONGEST_NAME}", param_hint="--name")
    rules = Rules(youngest, model_digest, keep_unknown_truncation)
    references = run_percentiles(source, out, rules, name or source.resolve().name[:LONGEST_NAME])
    facts = {
        "curves": len(references.curves),
        "without_curve": len(references.left_out),
        **references.sample.model_dump(mode="json"),
    }
    if as_json:
        print_json(facts)
    else:
        print_facts(str(out), facts)


@contextmanager
def _research() -> Iterator[None]:
    """The libraries of the extra, or what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("pyarrow", "statsmodels"):
            raise
        raise click.ClickException(f"cohorts require {package}: pip install 'dicom-node[research]'") from error


@contextmanager
def cohort_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with the counts and the time left, on stderr if that is a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as RichProgress  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    # a pace over many series: they come and end in bursts
    with RichProgress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("selecting", total=None)

        def report(progress: Progress) -> None:
            said = f"{progress.done} done, {progress.refused} refused, {progress.failed} failed"
            description = f"{said}: {progress.reason}" if progress.reason else said
            bars.update(bar, description=description, completed=progress.ended, total=progress.selected)

        yield report
