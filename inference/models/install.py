"""Installs nnU-Net model folders as a package: reads each checkpoint once, safely, and rewrites it.

A package appears in the library completely or not at all: it is written to a temporary folder, synced and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from inference.errors import ModelPackageError
from inference.models import checks
from inference.models.architecture import architecture_entry
from inference.models.nnunet_folder import read_nnunet_folder
from inference.models.orientation import CANONICAL, array_axes, directions_xyz, orientation_of
from inference.models.package import FAMILY, MANIFEST_NAME, ModelPackage, file_digest, manifest_text, read_package
from inference.models.sources import check_task, gather
from inference.models.tasks import task
from inference.structures import structure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from inference.models.nnunet_folder import NnunetFolder
    from inference.models.package import Crop, Resampling
    from inference.models.sources import Gathered

RESEARCH_USE = "Research use only - not for clinical use"
LEFTOVER_PREFIX = ".installing-"
_LOCK_NAME = ".lock"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model folder does not say about itself; the defaults are those of nnU-Net.

    ``folds`` None: all folds in the folder. ``labels`` None: as in dataset.json for a single part; for several parts,
    TotalSegmentator's numbers if every structure has one, else consecutive numbers in the order of the parts.
    """

    name: str
    source: str
    version: str = "1"
    licence: str = "not stated"
    intended_use: str = RESEARCH_USE
    folds: tuple[str, ...] | None = None
    labels: Mapping[int, str] | None = None
    resampling: Resampling = "nnunet"
    window_step: float = 0.5
    crop: Crop | None = None
    auxiliary: tuple[str, ...] = ()
    orientation: str | None = None
    minimum_slices: int = 16
    minimum_extent_mm: float = 30.0
    training: Mapping[str, Any] | None = None
    """How it was trained, see :class:`inference.models.package.ModelPackage`."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user states; None: what is known about the task, else the default of :class:`Facts`."""

    name: str | None = None
    task: str | None = None
    sha256: str | None = None
    version: str | None = None
    licence: str | None = None
    intended_use: str | None = None
    folds: tuple[str, ...] | None = None
    resampling: Resampling | None = None
    orientation: str | None = None
    minimum_slices: int | None = None
    minimum_extent_mm: float | None = None


def install(
    sources: Sequence[str],
    library: Path,
    stated: Stated,
    report: Callable[[str, int, int], None],
    warn: Callable[[str], None] = lambda _: None,
) -> ModelPackage:
    """Install one model from folders, zips and https URLs (its parts), or by the name of a known task.

    ``report(stage, done, all)`` is called with the progress.

    Raises:
        ModelPackageError: with the reason; nothing was installed.
    """
    wanted = None if stated.task is None else task(stated.task)
    with locked(library):
        if stated.name or wanted:  # before a download that takes an hour
            _check_free(library, stated.name or stated.task)
        work = library / f"{LEFTOVER_PREFIX}~sources"  # no model can be called so
        try:
            gathered = gather(sources, library, work, wanted, stated.sha256, report)
            facts = _facts(stated, gathered)
            parts = [read_nnunet_folder(folder, facts.folds) for folder in gathered.folders]
            if gathered.task is not None:
                check_task(parts, gathered.task)
            package = _install(parts, library, facts, lambda done, total: report("convert", done, total))
            for warning in dict.fromkeys(warning for part in parts for warning in part.warnings):
                warn(warning)
            return package
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _facts(stated: Stated, gathered: Gathered) -> Facts:
    known = gathered.task
    name = stated.name or (known.name if known else None)
    if name is None:
        raise ModelPackageError("this is not a model of a known task; give it a name")
    facts = Facts(name=name, source=gathered.source)
    if known is not None:
        facts = replace(
            facts,
            version=known.version,
            licence=known.licence,
            folds=known.folds,
            labels=known.names_by_label,
            resampling="corners" if known.spacing_xyz_mm else "nnunet",
            window_step=known.window_step,
            crop=known.crop,
            auxiliary=known.auxiliary,
            orientation=CANONICAL if known.parts else None,  # TotalSegmentator reorients, whatever the reader is
        )
    said = {key: value for key, value in asdict(stated).items() if value is not None and key not in ("task", "sha256")}
    return replace(facts, **said)


def install_folders(
    folders: Sequence[Path], library: Path, facts: Facts, on_checkpoint: Callable[[int, int], None] | None = None
) -> ModelPackage:
    """Install the nnU-Net model in ``folders`` (its parts, in merge order) as one package.

    ``on_checkpoint(done, all)`` is called after each checkpoint.

    Raises:
        ModelPackageError: a folder is not valid, or the library has a model of that name; nothing was installed.
    """
    parts = [read_nnunet_folder(folder, facts.folds) for folder in folders]
    if not parts:
        raise ModelPackageError(f"no folder given for model {facts.name!r}")
    with locked(library):
        return _install(parts, library, facts, on_checkpoint or (lambda _done, _all: None))


def _install(
    parts: Sequence[NnunetFolder], library: Path, facts: Facts, on_checkpoint: Callable[[int, int], None]
) -> ModelPackage:
    odd = [part.folder.name for part in parts if not part.resampled_by_default]
    if facts.resampling == "nnunet" and odd:
        raise ModelPackageError(f"{', '.join(odd)}: plans.json requires a resampling other than nnU-Net's default")
    orientations = [orientation_of(part.reader, facts.orientation) for part in parts]
    orientation = orientations[0]  # of all: the stated one, or the only one that a reader can tell
    with _place(library, facts.name) as place:
        entries = _write_parts(parts, array_axes(orientation), place, on_checkpoint)
        content = _manifest(facts, parts, entries, directions_xyz(orientation))
        (place / MANIFEST_NAME).write_text(manifest_text(content), encoding="utf-8")
        read_package(place)
        _sync(place)
    return read_package(library / facts.name, check_weights=False)


@contextmanager
def locked(library: Path) -> Iterator[None]:
    """Lock the library, so that one process at a time changes it, and remove what a killed process left behind.

    Raises:
        ModelPackageError: another process has the lock.
    """
    library.mkdir(parents=True, exist_ok=True)
    with (library / _LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelPackageError(f"another process is installing or removing a model in {library}") from None
        for leftover in library.glob(f"{LEFTOVER_PREFIX}*"):
            shutil.rmtree(leftover)
        yield


def _check_free(library: Path, name: str | None) -> None:
    if (library / checks.name(name, "name of the model")).exists():
        raise ModelPackageError(f"{library} already has a model named {name!r}; remove it first")


@contextmanager
def _place(library: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which becomes the package ``name`` of ``library`` if the block ends without error."""
    _check_free(library, name)
    place = library / (LEFTOVER_PREFIX + name)
    place.mkdir(mode=0o755)
    try:
        yield place
        place.rename(library / name)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    _sync_folder(library)


def _write_parts(
    parts: Sequence[NnunetFolder],
    array_axes: tuple[int, int, int],
    place: Path,
    on_checkpoint: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    from safetensors import SafetensorError  # noqa: PLC0415 - as below
    from safetensors.torch import save_file  # noqa: PLC0415 - torch is needed only to install

    from inference.models.checkpoint import read_checkpoint  # noqa: PLC0415

    total, done, entries = sum(len(part.checkpoints) for part in parts), 0, []
    for number, part in enumerate(parts, start=1):
        weights: list[dict[str, Any]] = []
        mirroring_axes: tuple[int, ...] = ()
        for path in part.checkpoints:
            checkpoint = read_checkpoint(path, part)
            if not weights:  # nnU-Net, too, mirrors as the first fold says
                mirroring_axes = checkpoint.mirroring_axes
            file = place / f"part{number}_{path.parent.name}.safetensors"
            try:
                save_file(checkpoint.weights, file)
            except (SafetensorError, OSError) as error:  # a full disk may raise either
                raise ModelPackageError(f"cannot write {file.name}: {str(error)[:200]}") from error
            file.chmod(0o644)  # safetensors makes files readable by their owner only
            weights.append({"file": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)})
            done += 1
            on_checkpoint(done, total)
        entries.append(
            {
                "name": f"part{number}",
                "weights": weights,
                "architecture": architecture_entry(part.architecture),
                "normalisation": asdict(part.normalisation),
                "axes": [array_axes[axis] for axis in part.axes],
                "spacing_mm": part.spacing_mm,
                "patch_size": part.patch_size,
                "names_by_channel": part.names_by_channel,
                **({"mirroring_axes": mirroring_axes} if mirroring_axes else {}),
            }
        )
    return entries


def _manifest(
    facts: Facts, parts: Sequence[NnunetFolder], entries: Sequence[Mapping[str, Any]], orientation: str
) -> dict[str, Any]:
    content = {
        "name": facts.name,
        "version": facts.version,
        "family": FAMILY,
        "intended_use": facts.intended_use,
        "licence": facts.licence,
        "source": facts.source,
        "labels": dict(facts.labels or number_labels(parts)),
        "resampling": facts.resampling,
        "window_step": facts.window_step,
        "crop": asdict(facts.crop) if facts.crop else None,
        "minimum_slices": facts.minimum_slices,
        "minimum_extent_mm": facts.minimum_extent_mm,
        "parts": list(entries),
    }
    if facts.auxiliary:
        content["auxiliary"] = facts.auxiliary
    if facts.training:
        content["training"] = facts.training
    if orientation != CANONICAL:
        content["orientation"] = orientation
    plain: dict[str, Any] = json.loads(json.dumps(content))  # as it will be read: lists, and keys as text
    return plain


def number_labels(parts: Sequence[NnunetFolder]) -> dict[int, str]:
    """Number the structures of all parts; see :class:`Facts`."""
    if len(parts) == 1:
        return dict(parts[0].names_by_channel)
    names = list(dict.fromkeys(name for part in parts for _, name in sorted(part.names_by_channel.items())))
    known = [structure(name).total117_index for name in names]
    numbers = [number for number in known if number is not None]
    if len(numbers) < len(names):
        numbers = list(range(1, len(names) + 1))
    if max(numbers) > checks.HIGHEST_LABEL:
        raise ModelPackageError(
            f"the parts have {len(names)} structures; at most {checks.HIGHEST_LABEL} fit into one label map"
        )
    return dict(sorted(zip(numbers, names, strict=True)))


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
