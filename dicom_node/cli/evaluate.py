"""``evaluate``: score segmentations, or a model, against a truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dicom_node.cli.output import end_with, json_option, print_table, progress_bars

if TYPE_CHECKING:
    from dicom_node.cli.context import Context
    from dicom_node.evaluate.run import Evaluation

_CONVENTION_HELP = "paper: a structure that is not in the truth never counts; nnunet: it counts as 0 if it was found."
_SOFTWARE_HELP = "Program and version that made the segmentations."
_ORDER_HELP = "Order in which the program resampled the images, such as 1 or 3."


@click.command()
@click.argument("predictions", metavar="MODEL|FOLDER")
@click.option(
    "--truth",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data set with the true segmentations.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option("--split", help="Only the subjects of this split, such as test.")
@click.option("--structures", default="", metavar="A,B", help="Only these structures.")
@click.option(
    "--convention", type=click.Choice(["paper", "nnunet"]), default="paper", show_default=True, help=_CONVENTION_HELP
)
@click.option(
    "--tolerance", type=click.FloatRange(0), default=3.0, show_default=True, help="Tolerance of surface Dice in mm."
)
@click.option("--replicates", type=click.IntRange(100), default=1000, show_default=True, help="Bootstrap draws.")
@click.option("--data-set", help="Name of the data set; default: as stated in its files.")
@click.option("--data-set-version", help="Version of the data set.")
@click.option("--software", help=_SOFTWARE_HELP)
@click.option("--model-name", help="Model and version that made the segmentations.")
@click.option("--resampling-order", help=_ORDER_HELP)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads of the model; 0: all cores."
)
@click.option(
    "--processes",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that compute scores; 0: one per core.",
)
@json_option
@click.pass_obj
def evaluate(
    context: Context,
    /,
    *,
    predictions: str,
    truth: Path,
    out: Path,
    split: str | None,
    structures: str,
    convention: str,
    tolerance: float,
    replicates: int,
    processes: int,
    as_json: bool,
    **more: Any,
) -> None:
    """Score segmentations against a truth.

    MODEL is an installed model, which segments the CTs of the truth first; FOLDER has a segmentation per subject:
    ID.nii.gz, ID.dcm (SEG, RT Structure Set), or a folder ID with results of `dicom-node segment` or a mask per
    structure. The page, tables and figures are written to OUT. What an interrupted evaluation has done is kept.

    Exit code 3: some subjects or structures were not evaluated; the reasons are listed.
    """
    from dicom_node.app.places import cache_folder_of_user  # noqa: PLC0415
    from dicom_node.evaluate.provenance import Stated  # noqa: PLC0415
    from dicom_node.evaluate.run import PAGE, Wanted, evaluate_folder, evaluate_model  # noqa: PLC0415
    from dicom_node.evaluate.summary import Averaging  # noqa: PLC0415
    from dicom_node.segment.model import find_model, is_model  # noqa: PLC0415
    from inference.nnunet.contract import EngineOptions  # noqa: PLC0415

    wanted = Wanted(
        averaging=Averaging(
            convention="nnunet" if convention == "nnunet" else "paper",
            structures=tuple(structures.replace(",", " ").split()),
            replicates=replicates,
        ),
        tolerance_mm=tolerance,
        split=split,
        stated=Stated(
            data_set=more["data_set"],
            data_set_version=more["data_set_version"],
            software=more["software"],
            model=more["model_name"],
            resampling_order=more["resampling_order"],
        ),
        processes=processes,
    )
    folder = Path(predictions)
    models_folder = context.models_folder()
    with progress_bars() as report:
        if folder.is_dir() and not is_model(predictions, models_folder):
            evaluation = evaluate_folder(folder, truth, out, wanted, report)
        else:
            options = EngineOptions(device=more["device"], precision=more["precision"], threads=more["threads"])
            model = find_model(predictions, models_folder, options)
            options = replace(options, cache_folder=cache_folder_of_user())
            evaluation = evaluate_model(model, options, truth, out, wanted, report)
    end_with(evaluation, out / PAGE, lambda: _print(evaluation), as_json=as_json)


def _print(evaluation: Evaluation) -> None:
    from dicom_node.evaluate.page import with_interval  # noqa: PLC0415

    summary = evaluation.summary
    rows = [
        {
            "name": row.name,
            "n": row.subjects,
            "Dice": with_interval(row.dice),
            "NSD": f"{row.surface_dice.value:.3f}",
            "HD95_mm": f"{row.hd95_mm.value:.1f}",
            "volume": f"{row.volume_error.value:+.1%}",
            "missed": row.missed,
        }
        for row in (*summary.groups, summary.overall)
    ]
    print_table("Means over the structures of each group; Dice with 95 % CI", rows, list(rows[0]))
    for title, value in evaluation.provenance.by_title().items():
        click.echo(f"{title}: {value}")
