"""What was accepted: the phantoms as files, the label maps that the model gave, and their measures.

A baseline is a folder: ``baseline.json``, for each phantom a folder with ``ct.nii.gz``, ``truth.nii.gz`` and
``labels.nii.gz``, and ``checks.jsonl`` with a line per check. The CT is kept, not drawn again, so that a change of the
phantoms themselves is no drift of the model. Every file has its SHA-256 in ``baseline.json``, which has its own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from dicom_node.constancy.conditions import Conditions  # noqa: TC001 - pydantic looks it up
from dicom_node.dataset.files import digest_of, make_folder, sha256_of, write_json
from dicom_node.errors import ConfigurationError
from inference.types import InvalidValueError, ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BASELINE_JSON, CHECKS = "baseline.json", "checks.jsonl"
CT, TRUTH, LABELS = "ct.nii.gz", "truth.nii.gz", "labels.nii.gz"
_KIND = "dicom-node constancy baseline"
_FORMAT = 1
_ACCEPT = "accept the model (again) with --accept"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the answer may differ from the accepted one, for each structure of each phantom.

    The defaults leave room for other rounding: with the demo model, OpenVINO beside torch in float32 has a Dice of at
    least 0.9994 for every structure (docs/operators/constancy.md).

    A structure is beyond them if the Dice of accepted and new labels is below ``lowest_dice``, or if its volume differs
    by more than ``volume_percent``, and in both cases by more than ``free_voxels``; or if its mean attenuation differs
    by more than ``mean_hu``. ``free_voxels`` is for structures of a few voxels, in which rounding moves one.
    """

    lowest_dice: float = 0.99
    volume_percent: float = 1.0
    mean_hu: float = 3.0
    free_voxels: int = 5

    def __post_init__(self) -> None:
        """Raises InvalidValueError unless Dice is from 0 to 1 and the others are not negative."""
        if not 0 <= self.lowest_dice <= 1:
            raise InvalidValueError(f"the lowest Dice must be from 0 to 1, not {self.lowest_dice:g}")
        if min(self.volume_percent, self.mean_hu, self.free_voxels) < 0:
            raise InvalidValueError(f"limits must not be negative: {self}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One structure in one label map; ``dice`` with the truth is None if the truth does not know the structure.

    ``mean_hu`` is None where nothing was found.
    """

    name: str
    volume_ml: float
    mean_hu: float | None
    dice: float | None


@dataclass(frozen=True, slots=True)
class AcceptedPhantom:
    """``id`` is its folder; ``labels_sha256`` is of the labels in memory, ``files`` are digests by file name."""

    id: str
    seed: int
    labels_sha256: str
    files: dict[str, str]
    structures: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Everything that a check compares with. ``accepted_at`` is UTC, ISO 8601."""

    accepted_at: str
    model: ModelIdentity
    conditions: Conditions
    limits: Limits
    phantoms: tuple[AcceptedPhantom, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


_BASELINE = TypeAdapter(Baseline)


def write_baseline(folder: Path, baseline: Baseline) -> None:
    """Write ``baseline.json``.

    Raises:
        ConfigurationError: it can't be written.
    """
    content = baseline.as_json()
    content = {"kind": _KIND, "format": _FORMAT, "sha256": digest_of(content), "baseline": content}
    write_json(folder / BASELINE_JSON, content)


def is_accepted(folder: Path) -> bool:
    """Whether a baseline is in ``folder``, sound or not."""
    return (folder / BASELINE_JSON).exists()


def read_baseline(folder: Path) -> Baseline:
    """The baseline in ``folder``, all of its files as they were accepted.

    Raises:
        ConfigurationError: there is none, it is of another format, or a file is missing or was changed.
    """
    if not is_accepted(folder):
        raise ConfigurationError(f"{folder} has no {BASELINE_JSON}, so there is nothing to compare with; {_ACCEPT}")
    try:
        document = json.loads((folder / BASELINE_JSON).read_text(encoding="utf-8"))
        kind, number, content = document["kind"], document["format"], document["baseline"]
        is_sound = kind == _KIND and document["sha256"] == digest_of(content)
    except OSError as error:
        raise ConfigurationError(f"{folder / BASELINE_JSON} can't be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(_damaged(folder, f"{BASELINE_JSON} is not what was written")) from error
    if kind == _KIND and number != _FORMAT:
        raise ConfigurationError(f"{folder} has format {number}, expected {_FORMAT}; {_ACCEPT}")
    if not is_sound:
        raise ConfigurationError(_damaged(folder, f"{BASELINE_JSON} was changed"))
    try:
        baseline = _BASELINE.validate_json(json.dumps(content))
    except ValidationError as error:
        raise ConfigurationError(_damaged(folder, f"{BASELINE_JSON} has other content than expected")) from error
    for phantom in baseline.phantoms:
        for name, digest in phantom.files.items():
            _refuse_changed(folder, f"{phantom.id}/{name}", digest)
    return baseline


def described(folder: Path) -> str:
    """What the baseline in ``folder`` is of, for people.

    Raises:
        ConfigurationError: as :func:`read_baseline`.
    """
    baseline = read_baseline(folder)
    model, phantoms = baseline.model, len(baseline.phantoms)
    return f"{model.name} {model.version}, sha256 {model.digest}, phantoms: {phantoms}, accepted {baseline.accepted_at}"


def _refuse_changed(folder: Path, name: str, digest: str) -> None:
    try:
        seen = sha256_of(folder / name)
    except OSError as error:
        raise ConfigurationError(_damaged(folder, f"{name} can't be read: {error.strerror}")) from error
    if seen != digest:
        raise ConfigurationError(_damaged(folder, f"{name} has the SHA-256 {seen[:12]}…, expected {digest[:12]}…"))


def _damaged(folder: Path, what: str) -> str:
    return f"the baseline in {folder} is damaged: {what}; {_ACCEPT}, or restore it from a backup"


def replace_folder(new: Path, folder: Path) -> None:
    """Let ``new`` take the place of ``folder``, if that exists; a program that ends half-way leaves one of them whole.

    Raises:
        ConfigurationError: a folder can't be moved or removed.
    """
    old = folder.with_name(f".old-{folder.name}")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} can't be replaced: {error.strerror}") from error


def empty_folder(folder: Path) -> Path:
    """Make ``folder``, and remove what a program that ended half-way has left there.

    Raises:
        ConfigurationError: it can't be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    return folder


def record_check(folder: Path, entry: Mapping[str, Any]) -> None:
    """Append one line about a check.

    Raises:
        ConfigurationError: it can't be written.
    """
    try:
        with (folder / CHECKS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{folder / CHECKS} can't be written: {error.strerror}") from error


def last_check(folder: Path) -> dict[str, Any] | None:
    """The last line that can be read; None if there is none."""
    try:
        lines = (folder / CHECKS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:  # a line that was cut when the machine failed
            continue
        if isinstance(entry, dict):
            return entry
    return None
