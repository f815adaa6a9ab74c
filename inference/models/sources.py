"""Gathers the model folders of an installation from a results folder, zips, URLs or the name of a known task.

The result is always a list of nnU-Net model folders on this disk, in the order in which their labels are merged.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from inference.errors import ModelDigestError, ModelPackageError
from inference.models import checks
from inference.models.archive import unpack_model
from inference.models.download import check_url, download
from inference.models.nnunet_folder import CHECKPOINT_NAME, read_nnunet_folder
from inference.models.package import file_digest
from inference.models.tasks import Task, task, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference.models.nnunet_folder import NnunetFolder

    Report = Callable[[str, int, int], None]

PINS_NAME = "pins.json"
_DOWNLOADS_NAME = ".downloads"
_SEARCH_LIMIT = 20_000
"""Most folders to search for models."""
_SPACING_TOLERANCE_MM = 0.005


@dataclass(frozen=True, slots=True)
class Gathered:
    """Model folders on this disk, their task (None: some other model), and where they came from."""

    folders: tuple[Path, ...]
    task: Task | None
    source: str


def gather(
    sources: Sequence[str], library: Path, work: Path, wanted: Task | None, sha256: str | None, report: Report
) -> Gathered:
    """Gather ``sources``: folders are used in place; zips and URLs are unpacked below ``work``.

    ``sha256`` is the expected SHA-256 of the single zip among the sources.

    Raises:
        ModelPackageError: a source is missing, unsafe or damaged, or a part of the task is not among them.
    """
    if len(sources) == 1 and not _is_address(sources[0]) and not Path(sources[0]).exists():
        wanted = task(sources[0]) if wanted is None else wanted
        sources = _released(wanted)
    if sha256 is not None and (len(sources) != 1 or (Path(sources[0]).is_dir())):
        raise ModelPackageError("a SHA-256 can be given for a single zip only")
    found: list[Path] = []
    said: list[str] = []
    for number, source in enumerate(sources):
        for place in _zips_of(source, wanted) or [source]:
            folder, where = _bring(place, library, work / f"{number}-{len(found)}", sha256, report)
            models = find_models(folder)
            if not models:
                raise ModelPackageError(f"{place} contains no nnU-Net model (plans.json, dataset.json, fold_*)")
            found += models
            said += [where] if where else []
    wanted = wanted or _guess(found)
    folders = _parts(found, wanted) if wanted and wanted.parts else _plain(found, sources)
    own = [folder for folder in folders if not folder.is_relative_to(work)]
    return Gathered(tuple(folders), wanted, "; ".join(said + ([_told(own)] if own else [])))


def check_task(parts: Sequence[NnunetFolder], wanted: Task) -> None:
    """Check that the folders give the structures of the task at its spacing.

    Raises:
        ModelPackageError: with the names of the structures that are missing and of those that are not in the task.
    """
    if wanted.parts is None:
        given = {name for part in parts for name in part.names_by_channel.values()}
        _same_names(wanted.name, wanted.structures, tuple(sorted(given)), ordered=False)
    for part, known in zip(parts, wanted.parts or (), strict=wanted.parts is not None):
        _same_names(f"{wanted.name}, {known.dataset}", known.structures, tuple(part.names_by_channel.values()))
    for part in parts:
        spacing = dict(zip(part.axes, part.spacing_mm, strict=True))
        seen = (spacing[2], spacing[1], spacing[0])
        expected = wanted.spacing_xyz_mm or seen
        if max(abs(a - b) for a, b in zip(seen, expected, strict=True)) > _SPACING_TOLERANCE_MM:
            raise ModelPackageError(f"{part.folder} was trained at {seen} mm; {wanted.name} uses {expected} mm")


def _same_names(what: str, expected: Sequence[str], seen: Sequence[str], *, ordered: bool = True) -> None:
    missing, foreign = sorted(set(expected) - set(seen)), sorted(set(seen) - set(expected))
    if missing or foreign:
        raise ModelPackageError(
            f"{what}: dataset.json lacks {', '.join(missing) or 'nothing'}; "
            f"not in the task: {', '.join(foreign) or 'nothing'}"
        )
    if ordered and tuple(expected) != tuple(seen):
        first = next(number for number, pair in enumerate(zip(expected, seen, strict=True), 1) if pair[0] != pair[1])
        raise ModelPackageError(
            f"{what}: label {first} of dataset.json is {seen[first - 1]}, expected {expected[first - 1]}"
        )


def find_models(root: Path) -> list[Path]:
    """Every model folder at or below ``root``, without following links."""
    found = []
    for count, (folder, below, files) in enumerate(os.walk(root)):
        if {"plans.json", "dataset.json"} <= set(files):
            found.append(Path(folder))
            below.clear()
        below.sort()
        if count > _SEARCH_LIMIT:
            raise ModelPackageError(f"{root} has more than {_SEARCH_LIMIT} folders; give the model's own folder")
    return found


def _is_address(source: str) -> bool:
    return "://" in source


def _released(wanted: Task) -> list[str]:
    if not wanted.downloadable:
        why = "its weights are not public" if wanted.parts else "no nnU-Net v2 weights have been released for it"
        raise ModelPackageError(f"{wanted.name} can't be downloaded: {why}; install it from your own folder or zips")
    return [part.url for part in wanted.parts or () if part.url]


def _zips_of(source: str, wanted: Task | None) -> list[str]:
    """The zips of the task's parts, if the folder has them and not the unpacked models."""
    folder = Path(source)
    if _is_address(source) or not folder.is_dir() or wanted is None or wanted.parts is None:
        return []
    zips = [folder / f"{part.dataset}.zip" for part in wanted.parts]
    return [str(path) for path in zips] if all(path.is_file() for path in zips) else []


def _bring(source: str, library: Path, work: Path, sha256: str | None, report: Report) -> tuple[Path, str | None]:
    """A folder with the contents of ``source``, and how to record a zip or a URL."""
    if not _is_address(source):
        path = Path(source)
        if path.is_dir():
            return path, None
        if not path.is_file():
            raise ModelPackageError(f"{source} is not a folder, a zip, an https URL or the name of a known task")
        return _unpacked(path, work, _approved(path, file_digest(path), sha256), path.name, report)
    check_url(source)
    name = checks.name(unquote(urlsplit(source).path.rsplit("/", 1)[-1]), "file name in the URL")
    downloads = library / _DOWNLOADS_NAME
    downloads.mkdir(exist_ok=True)
    target = downloads / name
    try:
        digest = download(source, target, lambda done, size: report(f"download {name}", done, size))
    except ModelPackageError as error:
        raise ModelPackageError(
            f"{error}. Without network access, download the file elsewhere and install it by its path"
        ) from error
    try:
        _pin(library / PINS_NAME, source, _approved(target, digest, sha256))
        return _unpacked(target, work, digest, source, report)
    finally:
        target.unlink()


def _unpacked(archive: Path, work: Path, digest: str, where: str, report: Report) -> tuple[Path, str]:
    report(f"unpack {archive.name}", 0, 1)
    work.mkdir(parents=True)
    unpack_model(archive, work)
    report(f"unpack {archive.name}", 1, 1)
    return work, f"{where} (SHA-256 {digest})"


def _approved(path: Path, digest: str, sha256: str | None) -> str:
    if sha256 is not None and sha256.lower() != digest:
        raise ModelDigestError(f"{path.name} has the SHA-256 {digest}, expected {sha256.lower()}")
    return digest


def _pin(file: Path, url: str, digest: str) -> None:
    """Require a URL to give the same file every time."""
    pins = checks.read_json(file) if file.exists() else {}
    if pins.get(url, digest) != digest:
        raise ModelDigestError(
            f"{url} gave a file with the SHA-256 {pins[url]} before, but now gives {digest}; "
            f"if this is intended, delete its line in {file}"
        )
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as opened:
        json.dump({**pins, url: digest}, opened, indent=1, sort_keys=True)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def _told(models: Sequence[Path]) -> str:
    """How to record folders: the last two parts of their paths, and one SHA-256 over all their checkpoints."""
    total = hashlib.sha256()
    for model in models:
        for path in sorted(model.glob(f"fold_*/{CHECKPOINT_NAME}")):
            total.update(f"{path.relative_to(model).as_posix()} {file_digest(path)}\n".encode())
    return f"{', '.join('/'.join(m.parts[-2:]) for m in models)} (checkpoints: SHA-256 {total.hexdigest()})"


def _guess(found: Sequence[Path]) -> Task | None:
    """The task that these folders belong to; None if none of them is known."""
    names = {model.parent.name for model in found}
    whole, begun = [], []
    for known in tasks().values():
        datasets = {part.dataset for part in known.parts or ()}
        if datasets and datasets <= names:
            whole.append(known)
        elif datasets & names:
            begun.append(known)
    if len(whole) == 1 and {part.dataset for part in whole[0].parts or ()} == names:
        return whole[0]
    if whole:
        raise ModelPackageError(f"found models of {', '.join(t.name for t in whole)}; say which task to install")
    if begun:
        missing = sorted({part.dataset for part in begun[0].parts or ()} - names)
        raise ModelPackageError(f"parts of {begun[0].name} are missing: {', '.join(missing)}")
    return None


def _parts(found: Sequence[Path], wanted: Task) -> list[Path]:
    """The folder of each part, found by its name or, if no name is known, by its structures."""
    parts = wanted.parts or ()
    chosen = [[m for m in found if (m.parent.name, m.name) == (part.dataset, part.model)][:1] for part in parts]
    if not any(chosen) and len(found) == len(parts):
        given = [(model, set(read_nnunet_folder(model).names_by_channel.values())) for model in found]
        chosen = [[m for m, names in given if names == set(part.structures)][:1] for part in parts]
        if not any(chosen) and len(parts) == 1:
            return list(found)  # to be refused with the names that differ
    missing = [f"{part.dataset}/{part.model}" for part, model in zip(parts, chosen, strict=True) if not model]
    if missing:
        raise ModelPackageError(f"parts of {wanted.name} are missing: {', '.join(missing)}")
    return [model for models in chosen for model in models]


def _plain(found: Sequence[Path], sources: Sequence[str]) -> list[Path]:
    if len(found) > len(sources):
        names = ", ".join("/".join(model.parts[-2:]) for model in found[:10])
        raise ModelPackageError(f"found {len(found)} models ({names}); give the folder of each part, or a task")
    return list(found)
