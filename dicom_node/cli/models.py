"""``models``: the library of installed models."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dicom_node.cli.context import PROBLEM_FOUND
from dicom_node.cli.output import json_option, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.cli.context import Context
    from inference.models.package import ModelPackage

_RESAMPLING_HELP = "corners: as in TotalSegmentator; nnunet: as in nnU-Net; default: the task's, otherwise nnunet."

_ORIENTATION_HELP = "Orientation of the training files, such as LPS or RAS; needed if plans.json does not imply it."


@click.group()
def models() -> None:
    """Install, list, verify and remove models.

    Models are kept in the model library (models_folder in node.yaml).
    """


@models.command()
@click.argument("sources", nargs=-1, required=True, metavar="NAME|PATH|URL...")
@click.option("--task", help="The known task that the weights belong to (see `models known`).")
@click.option("--name", help="Name of the installed model; default: the task's name.")
@click.option("--sha256", help="Expected SHA-256 of the zip.")
@click.option("--folds", help="Separated by commas: 0,1,2 or all; default: the task's folds, otherwise every fold.")
@click.option("--resampling", type=click.Choice(["corners", "nnunet"]), help=_RESAMPLING_HELP)
@click.option("--orientation", metavar="XYZ", help=_ORIENTATION_HELP)
@click.option("--model-version", "version", help="Version to record.")
@click.option("--licence", help="Licence to record.")
@click.option("--intended-use", help="Stated in every result; default: research use only.")
@click.option("--minimum-slices", type=click.IntRange(1), help="Reject volumes with fewer slices; default: 16.")
@click.option(
    "--minimum-extent-mm", type=click.FloatRange(0), help="Reject smaller volumes, along any axis; default: 30."
)
@json_option
@click.pass_obj
def install(context: Context, /, *, sources: tuple[str, ...], folds: str | None, as_json: bool, **stated: Any) -> None:
    """Install a model.

    The source is the name of a known task, a folder, a zip file or an https URL. Several sources are the parts of one
    model. No code in a source is executed. A model that can't be trusted or is incomplete is not installed.
    """
    from inference.models.install import Stated  # noqa: PLC0415
    from inference.models.install import install as install_model  # noqa: PLC0415

    chosen = Stated(folds=tuple(folds.split(",")) if folds else None, **stated)
    warnings: list[str] = []
    with _errors_of_models(), progress_bars() as report:
        package = install_model(sources, context.models_folder(), chosen, report, warnings.append)
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    facts = _facts(package)
    if as_json:
        print_json(facts)
        return
    rows = [{"property": name.replace("_", " "), "value": value} for name, value in facts.items()]
    print_table(f"installed: {package.identity.name}", rows, ("property", "value"))
    if package.crop is not None and not (package.folder.parent / package.crop.model).exists():
        needed = package.crop.model
        click.echo(f"This model segments only the region that {needed} finds. Install {needed} too.")


@models.command()
@json_option
def known(*, as_json: bool) -> None:
    """List the known tasks.

    Install a task by its name, or from a folder with --task.
    """
    from inference.models.tasks import tasks  # noqa: PLC0415
    from inference.structures import catalogue  # noqa: PLC0415

    coded = catalogue()
    rows = [
        {
            "name": task.name,
            "title": task.title,
            "structures": len(task.structures),
            "licence": task.licence,
            "downloadable": task.downloadable,
            "not_in_the_catalogue": [name for name in task.structures if name not in coded],
        }
        for task in tasks().values()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        how = "yes, by name" if row["downloadable"] else "yes, from your own files"
        row["can be installed"] = "no: some structures have no code" if row["not_in_the_catalogue"] else how
    print_table("known tasks", rows, ("name", "title", "can be installed"))


@models.command("list")
@json_option
@click.pass_obj
def list_(context: Context, *, as_json: bool) -> None:
    """List the installed models.

    This does not read the weights; `models verify` does.
    """
    from inference.errors import ModelPackageError  # noqa: PLC0415
    from inference.models.library import installed, read  # noqa: PLC0415

    folder, rows, damaged = context.models_folder(), [], []
    for name in installed(folder):
        try:
            rows.append(_facts(read(folder, name, check_weights=False)))
        except ModelPackageError as error:  # the others are still listed
            damaged.append(f"{name}: {error}")
    if as_json:
        print_json(rows)
    else:
        print_table(f"models in {folder}", rows, ("name", "version", "structures", "parts", "digest"))
    for reason in damaged:
        click.echo(f"Error: {reason}", err=True)
    if damaged:
        sys.exit(PROBLEM_FOUND)


@models.command()
@click.argument("names", nargs=-1)
@json_option
@click.pass_obj
def verify(context: Context, *, names: tuple[str, ...], as_json: bool) -> None:
    """Verify the digests of installed models.

    Every file of the models NAMES is hashed again; default: of all installed models.
    """
    from inference.errors import ModelPackageError  # noqa: PLC0415
    from inference.models.library import installed, read  # noqa: PLC0415

    folder, rows = context.models_folder(), []
    for name in names or installed(folder):
        try:
            rows.append({"name": name, "ok": True, "detail": read(folder, name).identity.digest})
        except ModelPackageError as error:
            rows.append({"name": name, "ok": False, "detail": str(error)})
    if as_json:
        print_json(rows)
    else:
        print_table(f"models in {folder}", rows, ("name", "ok", "detail"))
    if not all(row["ok"] for row in rows):
        sys.exit(PROBLEM_FOUND)


@models.command()
@click.argument("name")
@json_option
@click.pass_obj
def remove(context: Context, *, name: str, as_json: bool) -> None:
    """Delete an installed model."""
    from inference.models import library  # noqa: PLC0415

    with _errors_of_models():
        library.remove(context.models_folder(), name)
    if as_json:
        print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


@contextmanager
def _errors_of_models() -> Iterator[None]:
    from inference.errors import InferenceError  # noqa: PLC0415

    try:
        yield
    except InferenceError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the model library'}: {error.strerror}") from error


def _facts(package: ModelPackage) -> dict[str, Any]:
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
        "orientation": package.orientation,
        "mirroring": any(part.mirroring_axes for part in package.parts),
        "minimum_slices": package.minimum_slices,
        "minimum_extent_mm": package.minimum_extent_mm,
    }
