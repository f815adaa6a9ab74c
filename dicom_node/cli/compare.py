"""``compare``: models, folders of segmentations and readers, two by two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dicom_node.cli.output import end_with, json_option, print_table, progress_bars

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.cli.context import Context
    from dicom_node.compare.differences import Difference
    from dicom_node.compare.run import Agreement, Comparison
    from dicom_node.compare.systems import System
    from dicom_node.evaluate.provenance import Stated
    from dicom_node.evaluate.run import Wanted
    from inference.nnunet.contract import EngineOptions

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_CONVENTION_HELP = (
    "With a truth, which structures count. paper: one that is not in the truth never counts; nnunet: one that was "
    "found all the same counts as 0."
)


@click.command()
@click.argument("systems", metavar="A B [C]...", nargs=-1, required=True)
@click.option("--truth", type=_FOLDER, help="Data set with the true segmentations.")
@click.option("--images", type=_FOLDER, help="Without a truth: the CTs, for models to segment and for pictures.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option("--split", help="Only the subjects of this split of the truth, such as test.")
@click.option("--structures", default="", metavar="A,B", help="Only these structures.")
@click.option(
    "--convention", type=click.Choice(["paper", "nnunet"]), default="paper", show_default=True, help=_CONVENTION_HELP
)
@click.option("--tolerance", type=click.FloatRange(0), default=3.0, show_default=True, help="Of surface Dice, in mm.")
@click.option("--replicates", type=click.IntRange(100), default=1000, show_default=True, help="Bootstrap draws.")
@click.option("--pictures", type=click.IntRange(0), default=12, show_default=True, help="Number of outliers to draw.")
@click.option("--data-set", help="Name of the data set; default: what its files say.")
@click.option("--data-set-version", help="Version of the data set.")
@click.option("--software", multiple=True, metavar="NAME=TEXT", help="Program and version that NAME was made by.")
@click.option("--model-name", multiple=True, metavar="NAME=TEXT", help="Model and version, or the reader.")
@click.option(
    "--resampling-order", multiple=True, metavar="NAME=TEXT", help="Order in which NAME resampled the images."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="Of models; 0: all cores.")
@click.option(
    "--processes", type=click.IntRange(0), default=0, show_default=True, help="For computing scores; 0: one per core."
)
@json_option
@click.pass_obj
def compare(
    context: Context,
    /,
    *,
    systems: tuple[str, ...],
    truth: Path | None,
    images: Path | None,
    out: Path,
    pictures: int,
    as_json: bool,
    **more: Any,
) -> None:
    """Compare models, folders of segmentations and readers, two by two.

    A, B, ... are installed models, folders with a segmentation per subject (ID.nii.gz, ID.dcm, or a folder ID), or
    results of `dicom-node evaluate`; NAME=A gives one a name. With --truth, their scores are compared: Wilcoxon's
    signed-rank test per structure and over all, corrected by Holm and Benjamini-Hochberg, effect size, intervals.
    Without it, the agreement of each two is measured, and outliers are shown as pictures.

    Exit code 3: something was not compared; the reasons are listed.
    """
    from dicom_node.app.places import cache_folder_of_user  # noqa: PLC0415
    from dicom_node.compare.run import PAGE, compare_agreement, compare_with_truth  # noqa: PLC0415
    from inference.nnunet.contract import EngineOptions  # noqa: PLC0415

    if truth is not None and images is not None:
        raise click.UsageError("--images is for comparisons without --truth, which has the CTs itself")
    wanted = _wanted(more)
    options = EngineOptions(device=more["device"], precision=more["precision"], threads=more["threads"])
    opened = _opened(context, systems, wanted.stated, options, more)
    options = replace(options, cache_folder=cache_folder_of_user())
    result: Comparison | Agreement
    with progress_bars() as report:
        if truth is not None or all(system.is_evaluated for system in opened):
            result = compare_with_truth(opened, truth, out, wanted, options, report)
        else:
            result = compare_agreement(opened, images, out, wanted, options, pictures, report)
    end_with(result, out / PAGE, lambda: _print(result), as_json=as_json)


def _wanted(more: Mapping[str, Any]) -> Wanted:
    from dicom_node.evaluate.provenance import Stated  # noqa: PLC0415
    from dicom_node.evaluate.run import Wanted  # noqa: PLC0415
    from dicom_node.evaluate.summary import Averaging  # noqa: PLC0415

    return Wanted(
        averaging=Averaging(
            convention="nnunet" if more["convention"] == "nnunet" else "paper",
            structures=tuple(more["structures"].replace(",", " ").split()),
            replicates=more["replicates"],
        ),
        tolerance_mm=more["tolerance"],
        split=more["split"],
        stated=Stated(data_set=more["data_set"], data_set_version=more["data_set_version"]),
        processes=more["processes"],
    )


def _opened(
    context: Context, systems: Sequence[str], common: Stated, options: EngineOptions, more: Mapping[str, Any]
) -> list[System]:
    from dicom_node.compare.systems import System, named, stated_by_name  # noqa: PLC0415
    from dicom_node.segment.model import find_model, is_model  # noqa: PLC0415

    places = named(systems)
    said = {"software": more["software"], "model": more["model_name"], "resampling_order": more["resampling_order"]}
    stated = stated_by_name(tuple(places), said, common)
    models_folder = context.models_folder()
    opened = []
    for name, place in places.items():
        is_folder = Path(place).is_dir() and not is_model(place, models_folder)
        where = Path(place) if is_folder else find_model(place, models_folder, options)
        opened.append(System(name, where, stated[name]))
    return opened


def _print(result: Comparison | Agreement) -> None:
    from dicom_node.compare.run import Agreement  # noqa: PLC0415
    from dicom_node.evaluate.page import with_interval  # noqa: PLC0415

    if isinstance(result, Agreement):
        rows = [
            {
                "name": pair.name,
                "n": pair.summary.overall.subjects,
                "Dice": with_interval(pair.summary.overall.dice),
                "NSD": with_interval(pair.summary.overall.surface_dice),
                "outliers": sum((each.first, each.second) == (pair.first, pair.second) for each in result.outliers),
            }
            for pair in result.pairs
        ]
        print_table("Agreement over all structures; with 95 % CI", rows, list(rows[0]))
        by_attribute = [
            {
                "name": pair.name,
                "subjects": f"{attribute}: {row.name}",
                "n": row.subjects,
                "Dice": with_interval(row.dice),
                "NSD": with_interval(row.surface_dice),
            }
            for pair in result.pairs
            for attribute, means in pair.summary.by_attribute.items()
            for row in means
        ]
        if by_attribute:
            print_table("Agreement by subject attribute; with 95 % CI", by_attribute, list(by_attribute[0]))
    _print_differences([row for row in result.differences if row.of == "all"])
    for title, value in result.provenance.by_title().items():
        click.echo(f"{title}: {value}")


def _print_differences(differences: Sequence[Difference]) -> None:
    from dicom_node.compare.page import TITLES, p_value  # noqa: PLC0415
    from dicom_node.evaluate.page import with_interval  # noqa: PLC0415

    rows = [
        {
            "first": row.first,
            "second": row.second,
            "measure": TITLES[row.measure],
            "n": row.subjects,
            "difference": with_interval(row.difference, "+.3f"),
            "p (Holm)": p_value(row.p_holm),
            "effect": f"{row.effect.value:+.2f}" if row.subjects else "-",
            "better": row.better,
        }
        for row in differences
    ]
    if rows:
        print_table("First less second, over all structures; one value per subject", rows, list(rows[0]))
