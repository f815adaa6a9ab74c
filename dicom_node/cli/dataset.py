"""``dataset``: make phantom cohorts, and convert data sets to nnU-Net's raw format."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from inference.phantom.cohort import Ages, Effect

_AGES_HELP = "LOWEST-HIGHEST in years, uniform; or LOWEST-HIGHEST:MEAN:SD, normal within these."
_SHARES_HELP = "NAME:SHARE,NAME:SHARE ..."
_VIEWS = "whole, head_neck, chest, abdomen, chest_abdomen, trunk"
_PLANTED_HELP = (
    "An effect of age, STRUCTURE:volume:RS or STRUCTURE:hu:RS, with Spearman's rank correlation RS in the cohort. "
    "A paired structure named without its side has the effect on both sides. Repeatable."
)
_SETS_HELP = (
    "A data set to make: organs, vertebrae, cardiac, muscles or ribs (the parts at 1.5 mm), total_3mm, total_6mm, or "
    "total_Xmm with any spacing. Repeatable; default: all seven."
)
_PAPER = ("aorta:volume:0.64", "autochthon:hu:-0.74")
_WITHOUT_EFFECT = (
    *("spleen", "liver", "kidney_left", "kidney_right", "pancreas"),
    *("gallbladder", "stomach", "brain", "urinary_bladder", "inferior_vena_cava"),
)


@click.group()
def dataset() -> None:
    """Make phantom cohorts and convert data sets."""


@dataset.command("phantom")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--n", "count", type=click.IntRange(1), required=True, help="Number of subjects.")
@click.option("--first-seed", type=click.IntRange(0), default=1_000_000, show_default=True, help="Seed of subject 1.")
@click.option("--ages", default="20-90", show_default=True, help=_AGES_HELP)
@click.option("--female", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of women.")
@click.option("--field-of-view", default="whole:1", show_default=True, help=f"{_SHARES_HELP} of {_VIEWS}.")
@click.option(
    "--contrast",
    default="native:0.35,arterial:0.2,portal_venous:0.45",
    show_default=True,
    help=f"{_SHARES_HELP} of the contrast phases.",
)
@click.option("--split", default="train:0.8,val:0.1,test:0.1", show_default=True, help=_SHARES_HELP)
@click.option("--planted", multiple=True, metavar="EFFECT", help=_PLANTED_HELP)
@click.option(
    "--planted-paper",
    is_flag=True,
    help="The effects of the paper (aorta volume 0.64, autochthonous muscle HU -0.74), and ten without an effect.",
)
@click.option(
    "--spacing",
    nargs=3,
    type=float,
    default=(1.5, 1.5, 1.5),
    show_default=True,
    help="Spacing of columns, rows and planes in mm.",
)
@click.option("--masks", is_flag=True, help="Write one file per structure, as published, instead of one label map.")
@click.option("--truth-only", is_flag=True, help="Write only the tables, without CT and labels.")
@click.option("--processes", type=click.IntRange(0), default=0, show_default=True, help="0: one per core.")
@json_option
def phantom(
    *,
    out: Path,
    count: int,
    first_seed: int,
    ages: str,
    female: float,
    field_of_view: str,
    contrast: str,
    split: str,
    planted: tuple[str, ...],
    planted_paper: bool,
    spacing: tuple[float, float, float],
    masks: bool,
    truth_only: bool,
    processes: int,
    as_json: bool,
) -> None:
    """Make a cohort of synthetic patients with a known truth.

    Writes OUT in the layout of the published data set: a folder per subject with CT and labels, and meta.csv; beside
    them truth.csv with the true volume and attenuation of every structure, and manifest.json with all seeds. An
    interrupted cohort is continued.
    """
    from dicom_node.dataset.phantoms import CohortFiles, write_cohort  # noqa: PLC0415
    from inference.errors import UnknownStructureError  # noqa: PLC0415
    from inference.phantom.cohort import CohortPlan  # noqa: PLC0415
    from inference.types import InvalidValueError  # noqa: PLC0415

    effects = list(planted)
    if planted_paper:
        effects += [*_PAPER, *(f"{name}:volume:0" for name in _WITHOUT_EFFECT)]
    try:
        plan = CohortPlan(
            count=count,
            first_seed=first_seed,
            ages=_ages(ages),
            female=female,
            fields_of_view=_shares("--field-of-view", field_of_view, tuple(_VIEWS.split(", "))),
            contrast_phases=_shares("--contrast", contrast, ("native", "arterial", "portal_venous")),
            splits=_shares("--split", split, ("train", "val", "test")),
            effects=tuple(_effect(text) for text in effects),
        )
        with progress_bars() as report:
            manifest = write_cohort(plan, out, CohortFiles(spacing, masks, truth_only), processes, report)
    except (InvalidValueError, UnknownStructureError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print_json(manifest)
        return
    click.echo(f"{count} phantoms in {out}")
    if manifest["effects"]:
        columns = ("structure", "quantity", "spearman", "spearman_in_truth", "whole_in_subjects")
        print_table("Effects of age", manifest["effects"], columns)


def _ages(text: str) -> Ages:
    from inference.phantom.cohort import Ages  # noqa: PLC0415

    found = re.fullmatch(r"(\d+)-(\d+)(?::([\d.]+):([\d.]+))?", text)
    if found is None:
        raise click.BadParameter(f"{text!r}, expected a form such as 20-90 or 20-90:62:15", param_hint="--ages")
    lowest, highest, mean, sd = found.groups()
    return Ages(int(lowest), int(highest), float(mean) if mean else None, float(sd) if sd else None)


def _shares(option: str, text: str, known: tuple[str, ...]) -> Any:
    shares = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        try:
            shares[name] = float(share or 1)
        except ValueError as error:
            raise click.BadParameter(f"{share!r} is not a number", param_hint=option) from error
        if name not in known:
            raise click.BadParameter(f"{name!r}, expected {', '.join(known)}", param_hint=option)
    return shares


def _effect(text: str) -> Effect:
    from inference.phantom.cohort import Effect  # noqa: PLC0415

    found = re.fullmatch(r"(\w+):(volume|hu):(-?\d*\.?\d+)", text)
    if found is None:
        raise click.BadParameter(f"{text!r}, expected a form such as aorta:volume:0.64", param_hint="--planted")
    return Effect(found[1], "volume" if found[2] == "volume" else "hu", float(found[3]))


@dataset.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "names", multiple=True, metavar="SET", help=_SETS_HELP)
@click.option(
    "--classes",
    type=click.Choice(["auto", "v1", "v2"]),
    default="auto",
    show_default=True,
    help="The published classes: v1 (104, the paper), v2 (117). auto: those of the first subject.",
)
@click.option(
    "--structures", default="", metavar="A,B", help="Use these classes instead, with labels from 1 and without parts."
)
@click.option(
    "--rename", type=click.Path(path_type=Path, exists=True, dir_okay=False), help='JSON file {"their name": "ours"}.'
)
@click.option(
    "--order",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Resampling of images: 1 linear (TotalSegmentator since 2.16), 3 cubic (before).",
)
@click.option(
    "--absent-where-missing", is_flag=True, help="Treat a structure without a file as absent, not as unknown."
)
@click.option(
    "--source-name", default="", help="Name and version of the data, for dataset.json; default: the folder's name."
)
@click.option("--processes", type=click.IntRange(0), default=0, show_default=True, help="0: one per core.")
@json_option
def convert(
    *,
    source: Path,
    out: Path,
    names: tuple[str, ...],
    classes: str,
    structures: str,
    rename: Path | None,
    order: str,
    absent_where_missing: bool,
    source_name: str,
    processes: int,
    as_json: bool,
) -> None:
    """Convert a data set to nnU-Net's raw format.

    SOURCE is the published data set, a phantom cohort, a folder with CT series and the SEG or RT Structure Sets that
    refer to them, or images and labels as NIfTI. OUT gets one data set per set of labels, and the report of the
    validation, validation.html and validation.json. An interrupted conversion is continued.

    Exit code 3: some subjects were refused or left out; the report says why.
    """
    from dicom_node.dataset.conversion import Conversion  # noqa: PLC0415
    from dicom_node.dataset.convert import REPORT_PAGE, classes_of  # noqa: PLC0415
    from dicom_node.dataset.convert import convert as run  # noqa: PLC0415
    from dicom_node.dataset.numbers import allocate  # noqa: PLC0415
    from dicom_node.dataset.sets import CLASSES, DEFAULT_SETS, chosen_sets, class_names  # noqa: PLC0415
    from dicom_node.labelmaps import find_subjects  # noqa: PLC0415

    own = tuple(structures.replace(",", " ").split())
    if own and classes != "auto":
        raise click.UsageError("--classes and --structures can't be combined")
    found = find_subjects(source)
    renamed = {} if rename is None else _renaming(rename)
    version = None if own else next((each for each in CLASSES if each == classes), None) or classes_of(found, renamed)
    name, default = source_name or source.absolute().name, ("total_3mm",) if own else DEFAULT_SETS
    conversion = Conversion(
        sets=allocate(chosen_sets(names or default, version, own), out, name),
        classes=own if version is None else class_names(version),
        order=3 if order == "3" else 1,
        names=renamed,
        absent_where_missing=absent_where_missing,
        needs_split=any(subject.split for subject in found.subjects),
    )
    with progress_bars() as report:
        content = run(found, out, conversion, name, processes, report)
    faults = [each for each in content["findings"] if each["fault"]]
    if as_json:
        print_json(content)
    else:
        print_table(
            "Data sets", content["sets"], ("folder", "structures", "spacing_mm", "train", "val", "test", "refused")
        )
        for each in (*faults, *content["left_out"]):
            click.echo(f"{each['id']}: {each.get('text') or each['reason']}", err=True)
        click.echo(f"{len(content['findings']) - len(faults)} remarks, in {out / REPORT_PAGE}")
    if faults or content["left_out"]:
        sys.exit(PROBLEM_FOUND)


def _renaming(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path.name} is not a JSON file", param_hint="--rename") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise click.BadParameter(f"{path.name} has no table of names", param_hint="--rename")
    return content
