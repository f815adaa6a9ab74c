"""``segment``: run the engine on files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_json
from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from dicom_node.cli.context import Context

_PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
_RESULTS_HELP = "DICOM objects to write, with the keys of a destination in rules.yaml; default: BINARY SEG and SR."


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="Installed model, package folder, or tissue.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option("--recursive", is_flag=True, help="Search subfolders too; each CT gets its own results folder.")
@click.option("--series-uid", help="Only the series with this Series Instance UID.")
@click.option("--again", is_flag=True, help="Redo finished inputs.")
@click.option("--structures", default="", metavar="A,B", help="Only these structures.")
@click.option("--results", default="", metavar="'KEY: VALUE, ...'", help=_RESULTS_HELP)
@click.option("--no-dicom", is_flag=True, help="Write no DICOM objects.")
@click.option(
    "--unchecked-hu", is_flag=True, help="Accept the values as Hounsfield units even if they seem implausible."
)
@click.option("--parity", is_flag=True, help="Match TotalSegmentator 2.18 voxel by voxel.")
@click.option("--mirroring", is_flag=True, help="Average over mirrored windows, as nnU-Net does by default; slow.")
@click.option("--no-body-crop", is_flag=True, help="Segment the air around the patient too.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(_PRECISIONS), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all cores.")
@json_option
@click.pass_obj
def segment(
    context: Context,
    /,
    *,
    inputs: tuple[Path, ...],
    model: str,
    out: Path,
    structures: str,
    results: str,
    no_dicom: bool,
    no_body_crop: bool,
    unchecked_hu: bool,
    as_json: bool,
    recursive: bool,
    series_uid: str | None,
    again: bool,
    **engine: Any,
) -> None:
    """Segment files without a network.

    INPUTS are folders of DICOM files, and NIfTI files. The results are a label map, measurements and, for DICOM input,
    DICOM objects. Exit code 3: some inputs were rejected, or files that may be images of
    them could not be read.
    """
    from dicom_node.route.requests import read_request  # noqa: PLC0415
    from dicom_node.segment.case import Wanted  # noqa: PLC0415
    from dicom_node.segment.command import segment_inputs  # noqa: PLC0415
    from inference.errors import UnknownStructureError  # noqa: PLC0415
    from inference.nnunet.contract import EngineOptions  # noqa: PLC0415

    if results and no_dicom:
        raise click.UsageError("--results and --no-dicom can't be combined")
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
            models_folder=context.models_folder(),
            options=EngineOptions(body_crop=not no_body_crop, **engine),
            wanted=Wanted(tuple(structures.replace(",", " ").split()), asked, unchecked_hu),
            recursive=recursive,
            series_instance_uid=series_uid,
            again=again,
            show_progress=not as_json,
        ):
            outcomes.append(outcome)
            for remark in outcome.remarks:
                click.echo(remark, err=True)
            if not as_json:
                click.echo(outcome.line, err=outcome.refused)
    except UnknownStructureError as error:
        raise click.BadParameter(str(error), param_hint="--structures") from error
    if as_json:
        print_json([{"folder": str(o.folder), "skipped": o.skipped, **o.summary} for o in outcomes])
    if any(outcome.refused or outcome.is_partial for outcome in outcomes):
        sys.exit(PROBLEM_FOUND)
