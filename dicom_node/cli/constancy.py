"""``constancy``: accept the answer of a model on phantoms, check it later, measure how much it depends on the scan."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_facts, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from dicom_node.cli.context import Context
    from dicom_node.constancy.baseline import Baseline
    from dicom_node.constancy.comparing import Check
    from dicom_node.constancy.subject import Subject
    from dicom_node.constancy.variation import Variation
    from dicom_node.settings import Settings

_ONLY_ACCEPT = ("replace", "spacing", "lowest_dice", "volume_percent", "mean_hu")
_ONLY_VARY = ("thickness", "kernels")
_NOT_CHECK = ("phantoms", "field_of_view")
_SHOWN_STRUCTURES = 20
_BASELINE_HELP = "Folder of the accepted answer; default: that of the model in the node's constancy folder."
_PHANTOMS_HELP = "With --accept and --vary; default: 3 and 2."
_ENGINE_HELP = "Default: as the node is configured to run the model."
_FIELDS_OF_VIEW = ["whole", "head_neck", "chest", "abdomen", "chest_abdomen", "trunk"]


@click.command()
@click.argument("model")
@click.option("--accept", is_flag=True, help="Keep today's answer as the one to compare with.")
@click.option("--vary", type=click.Path(path_type=Path, file_okay=False), metavar="OUT", help="Write the uncertainty.")
@click.option("--baseline", type=click.Path(path_type=Path, file_okay=False), help=_BASELINE_HELP)
@click.option("--replace", is_flag=True, help="With --accept: replace the earlier answer.")
@click.option("--phantoms", type=click.IntRange(1, 20), help=_PHANTOMS_HELP)
@click.option("--field-of-view", type=click.Choice(_FIELDS_OF_VIEW), default="whole", show_default=True)
@click.option(
    "--spacing", nargs=3, type=float, default=(1.5, 1.5, 3.0), show_default=True, help="With --accept, in mm."
)
@click.option("--lowest-dice", type=click.FloatRange(0, 1), default=0.99, show_default=True, help="With --accept.")
@click.option("--volume-percent", type=click.FloatRange(0), default=1.0, show_default=True, help="With --accept.")
@click.option("--mean-hu", type=click.FloatRange(0), default=3.0, show_default=True, help="With --accept.")
@click.option("--thickness", default="1,2,3,5", show_default=True, metavar="A,B", help="With --vary, in mm.")
@click.option("--kernels", default="soft,standard,sharp", show_default=True, metavar="A,B", help="With --vary.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help=_ENGINE_HELP)
@click.option("--backend", type=click.Choice(["auto", "openvino", "torch"]), help=_ENGINE_HELP)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help=_ENGINE_HELP)
@click.option("--threads", type=click.IntRange(0), help=f"0: all cores. {_ENGINE_HELP}")
@json_option
@click.pass_context
def constancy(
    ctx: click.Context,
    /,
    *,
    model: str,
    accept: bool,
    vary: Path | None,
    baseline: Path | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Check that a model still gives the answer that was accepted.

    Phantoms are segmented and compared with the label maps that `--accept` has kept: Dice, volume and mean HU of every
    structure. MODEL is a model of the node's configuration, run as the node runs it, or an installed model. With
    `--vary`, phantoms are scanned with several slice thicknesses and kernels instead, and the uncertainty of every
    volume is written to OUT.

    Exit code 3: the answer has drifted, or the model is not the accepted one.
    """
    _refuse_misplaced(ctx, accept=accept, vary=vary)
    settings = _settings(ctx.obj)
    subject = _subject(
        ctx.obj, settings, model, {name: more[name] for name in ("device", "backend", "precision", "threads")}
    )
    if vary is not None:
        _vary(subject, vary, more, as_json=as_json)
        return
    folder = baseline or _constancy_folder(settings) / subject.identity.name
    if accept:
        _accept(subject, folder, more, as_json=as_json)
        return
    from dicom_node.constancy.baseline import record_check  # noqa: PLC0415
    from dicom_node.constancy.run import check  # noqa: PLC0415

    with progress_bars() as report:
        result = check(subject, folder, report)
    if as_json:
        print_json(result.as_json())
    else:
        _print_check(result)
    record_check(folder, result.as_record())
    if result.drifted:
        sys.exit(PROBLEM_FOUND)


def _refuse_misplaced(ctx: click.Context, *, accept: bool, vary: Path | None) -> None:
    """An option of another mode would be ignored without a word."""
    if accept and vary is not None:
        raise click.UsageError("--accept and --vary exclude each other")
    others = (
        *(() if accept else _ONLY_ACCEPT),
        *(() if vary is not None else _ONLY_VARY),
        *(() if accept or vary is not None else _NOT_CHECK),
        *(("baseline",) if vary is not None else ()),
    )
    given = [name for name in others if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        mode = "--accept" if accept else "--vary" if vary is not None else "a check, which repeats what was accepted"
        raise click.UsageError(f"--{given[0].replace('_', '-')} has no meaning for {mode}")


def _settings(context: Context) -> Settings | None:
    """Those of the node; None for a user without a configuration."""
    return context.settings() if context.given or os.access(context.config, os.R_OK) else None


def _constancy_folder(settings: Settings | None) -> Path:
    from dicom_node.app.places import models_folder_without_configuration  # noqa: PLC0415

    return models_folder_without_configuration().parent / "constancy" if settings is None else settings.constancy_folder


def _subject(context: Context, settings: Settings | None, model: str, options: dict[str, Any]) -> Subject:
    from dicom_node.app.places import cache_folder_of_user  # noqa: PLC0415
    from dicom_node.constancy.subject import model_of_library, model_of_node  # noqa: PLC0415
    from inference.nnunet.contract import EngineOptions  # noqa: PLC0415

    given = {name: value for name, value in options.items() if value is not None}
    if settings is not None and model in settings.models:
        return model_of_node(model, settings, settings.work.model_copy(update=given))
    return model_of_library(model, context.models_folder(), EngineOptions(**given, cache_folder=cache_folder_of_user()))


def _accept(subject: Subject, folder: Path, more: dict[str, Any], *, as_json: bool) -> None:
    from dicom_node.constancy.baseline import Limits  # noqa: PLC0415
    from dicom_node.constancy.run import Plan, accept  # noqa: PLC0415
    from inference.types import InvalidValueError  # noqa: PLC0415

    try:
        plan = Plan(more["phantoms"] or Plan().phantoms, more["spacing"], more["field_of_view"])
    except InvalidValueError as error:
        raise click.UsageError(str(error)) from error
    limits = Limits(more["lowest_dice"], more["volume_percent"], more["mean_hu"])
    with progress_bars() as report:
        baseline = accept(subject, folder, plan, limits, report, replace=more["replace"])
    if as_json:
        print_json({"folder": str(folder), **baseline.as_json()})
    else:
        _print_accepted(baseline)
        click.echo(f"in {folder}")


def _vary(subject: Subject, out: Path, more: dict[str, Any], *, as_json: bool) -> None:
    from dicom_node.constancy.page import PAGE, write_variation  # noqa: PLC0415
    from dicom_node.constancy.variation import Ways, vary  # noqa: PLC0415
    from inference.types import InvalidValueError  # noqa: PLC0415

    try:
        thicknesses = tuple(float(each) for each in more["thickness"].split(","))
        kernels = tuple(each.strip() for each in more["kernels"].split(","))
        ways = Ways(thicknesses, kernels, more["phantoms"] or Ways().phantoms, more["field_of_view"])
    except (ValueError, InvalidValueError) as error:
        raise click.UsageError(str(error)) from error
    with progress_bars() as report:
        variation = vary(subject, ways, report)
    write_variation(out, subject.identity, variation)
    if as_json:
        print_json(variation.as_json())
    else:
        _print_variation(variation)
        click.echo(f"in {out / PAGE}")


def _print_accepted(baseline: Baseline) -> None:
    rows = [
        {
            "phantom": phantom.id,
            "structures_found": sum(each.volume_ml > 0 for each in phantom.structures),
            "mean_Dice_with_truth": _mean([each.dice for each in phantom.structures if each.dice is not None]),
        }
        for phantom in baseline.phantoms
    ]
    print_table(f"Accepted: {_named(baseline.model)}", rows, list(rows[0]))


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


def _named(model: Any) -> str:
    return f"{model.name} {model.version} (sha256 {model.digest[:12]}…)"


def _print_check(check: Check) -> None:
    facts = {"model": _named(check.model), "accepted": check.accepted_at}
    facts |= {name.replace("_", " "): getattr(check.conditions, name) for name in ("backend", "device", "precision")}
    print_facts("Constancy", facts | {"lowest Dice": f"{check.lowest_dice:.4f}"})
    worst = sorted(check.exceeded, key=lambda each: each.dice)[:_SHOWN_STRUCTURES]
    if worst:
        rows = [
            {
                "name": each.structure,
                "id": each.phantom.removeprefix("phantom-"),
                "Dice": f"{each.dice:.4f}",
                "ml": f"{each.found.volume_ml:.2f} ({each.accepted.volume_ml:.2f})",
                "HU": f"{_hu(each.found.mean_hu)} ({_hu(each.accepted.mean_hu)})",
            }
            for each in worst
        ]
        title = f"Beyond the limits: {len(check.exceeded)}, the worst {len(rows)} of them; accepted in brackets"
        print_table(title, rows, list(rows[0]))
    click.echo(check.conclusion)


def _hu(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _print_variation(variation: Variation) -> None:
    rows = [
        {
            "name": each.structure,
            "mean_ml": f"{each.mean_ml:.1f}",
            "SD_ml": f"{each.sd_ml:.2f}",
            "CV": f"{each.cv_percent:.1f} %",
            "range": f"{each.lowest_percent:.0f} to {each.highest_percent:.0f} %",
            "missed": each.missed,
        }
        for each in variation.structures
    ]
    if rows:
        print_table("Volumes over slice thickness and kernel, within a phantom", rows, list(rows[0]))
    for name, reason in variation.left_out.items():
        click.echo(f"{name}: {reason}", err=True)
