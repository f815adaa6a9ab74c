"""An installed model: a folder with ``manifest.json`` and safetensors files; the node loads weights in no other form.

The manifest is not trusted: unknown keys are errors, every number has bounds, no name may contain a path. ``digest`` is
the SHA-256 of all its other entries except ``source`` (keys sorted, no white space). Since these include the SHA-256 of
every weights file, the digest identifies the model, regardless of who installed it from where. Reading needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from inference.errors import ModelDigestError, ModelPackageError
from inference.models import checks
from inference.models.architecture import Architecture, read_architecture
from inference.models.orientation import CANONICAL, ORIENTATIONS, directions_xyz
from inference.types import MinimumExtent, ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader
    from pathlib import Path

MANIFEST_NAME = "manifest.json"
FORMAT = 1
FAMILY = "nnU-Net"
SPACING_BOUNDS_MM = (0.1, 20.0)
PATCH_BOUNDS = (8, 512)
MOST_PARTS = 16
MOST_FOLDS = 10
_DIRECTIONS = sorted({directions_xyz(orientation) for orientation in ORIENTATIONS})

Resampling = Literal["corners", "nnunet"]
"""How HU are resampled to the network's grid and labels back to the source grid.

``corners``: as TotalSegmentator before nnU-Net sees the volume (linear, keeps the outermost voxel centres).
``nnunet``: as nnU-Net's preprocessing (cubic, keeps voxel borders, resamples thick planes separately).
"""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """nnU-Net's CTNormalization: clip to two percentiles of the training HU, subtract the mean, divide by the SD."""

    lowest_hu: float
    highest_hu: float
    mean_hu: float
    sd_hu: float


@dataclass(frozen=True, slots=True)
class Part:
    """One nnU-Net model; several parts may share the work of one segmenter.

    ``axes``: the network's axes are the patient's (z, y, x) taken in this order (nnU-Net's transpose_forward, after the
    order of axes in which the model's reader gives files);
    ``spacing_mm`` and ``patch_size`` are in the network's order. ``names_by_channel`` names the network's output
    channels (0, the background, excluded). ``weights`` holds one safetensors file per fold; the folds are averaged.
    """

    name: str
    weights: tuple[Path, ...]
    architecture: Architecture
    normalisation: Normalisation
    axes: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    names_by_channel: Mapping[int, str]
    mirroring_axes: tuple[int, ...] = ()
    """The network's axes along which nnU-Net mirrors windows and averages, unless it is told not to."""


@dataclass(frozen=True, slots=True)
class Crop:
    """Limits the model to the bounding box, plus a margin, of structures that another package finds first.

    ``margin_xyz_mm`` is along columns, rows and planes of the volume, as in TotalSegmentator's ``crop_addon``.
    """

    model: str
    structures: tuple[str, ...]
    margin_xyz_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Everything a segmenter needs to know about a model before its weights are loaded.

    ``names_by_label`` numbers the structures of the result. ``window_step`` is the shift between neighbouring windows,
    as a fraction of the window (nnU-Net: 0.5; TotalSegmentator's ``total``: 0.8).
    """

    folder: Path
    identity: ModelIdentity
    parts: tuple[Part, ...]
    names_by_label: Mapping[int, str]
    resampling: Resampling
    window_step: float
    crop: Crop | None
    minimum_slices: int
    minimum_extent_mm: float
    licence: str
    source: str
    auxiliary: tuple[str, ...] = ()
    """Structures that the parts find but the result leaves out, as background."""
    orientation: str = CANONICAL
    """The directions to which x, y and z of what the networks see ascend (R or L, A or P, S or I)."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How the node trained it: ``configuration``, ``software``, and per part data set, split and metrics; or empty."""
    stamps: Mapping[Path, tuple[int, ...]] = field(default_factory=dict, compare=False)
    """Stamps of the weights files that were checked; a changed or replaced file has another stamp."""

    @property
    def minimum(self) -> MinimumExtent:
        """The smallest volume that the model accepts."""
        return MinimumExtent(self.minimum_slices, self.minimum_extent_mm)

    def check_unchanged(self, part: Part) -> None:
        """Raise ModelDigestError if a file of ``part`` is not the one whose digest was checked.

        If called after the weights were read, it ensures that the weights are the ones that were checked.
        """
        for path in part.weights:
            try:
                now = _stamp(path.lstat())
            except OSError as error:
                raise ModelPackageError(f"cannot read {path}: {error.strerror}") from error
            if now != self.stamps.get(path):
                raise ModelDigestError(f"{path} was changed after its SHA-256 was checked")


def read_package(folder: Path, *, check_weights: bool = True) -> ModelPackage:
    """Read the package in ``folder``; with ``check_weights`` every weights file is hashed and compared.

    Raises:
        ModelPackageError: the manifest or a file is missing or malformed, or has a value that is not allowed.
        ModelDigestError: the manifest or a weights file is not the installed one.
    """
    found = checks.read_json(folder / MANIFEST_NAME)
    content = checks.closed(found, str(folder / MANIFEST_NAME), _known_keys(found, _KEYS, _OPTIONAL_KEYS))
    checks.whole_in(content["format"], "format", FORMAT, FORMAT)
    try:
        package = _package(folder, content)
    except ModelPackageError as error:
        raise ModelPackageError(f"{folder / MANIFEST_NAME}: {error}") from None
    digest = manifest_digest(content)
    if digest != package.identity.digest:
        raise ModelDigestError(
            f"{folder / MANIFEST_NAME} was changed: its entries have the SHA-256 {digest}, "
            f"but {package.identity.digest} was installed"
        )
    stamps = {
        folder / weights["file"]: _check_file(folder / weights["file"], weights, with_digest=check_weights)
        for weights in _weights_of(content)
    }
    return replace(package, stamps=stamps)


def check_digest(identity: ModelIdentity, approved: str | None) -> None:
    """Raise ModelDigestError unless ``approved`` is None or the model's digest."""
    if approved is not None and approved.lower() != identity.digest:
        raise ModelDigestError(
            f"model {identity.name!r} has the digest {identity.digest}, but {approved.lower()} is approved"
        )


def manifest_text(content: Mapping[str, Any]) -> str:
    """The text of ``manifest.json`` with the entries in ``content``, to which ``format`` and ``digest`` are added."""
    whole = {"format": FORMAT, **content}
    return json.dumps({**whole, "digest": manifest_digest(whole)}, indent=1) + "\n"


def manifest_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form of everything except the digest itself and the source."""
    named = {key: value for key, value in content.items() if key not in ("digest", "source")}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _fields(kind: type[Normalisation | Crop]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def read_normalisation(content: object) -> Normalisation:
    """Read the constants of a CTNormalization from their manifest entry.

    Raises:
        ModelPackageError: they are not four finite numbers that make sense together.
    """
    given = checks.closed(content, "normalisation", _fields(Normalisation))
    low, high, mean, sd = (checks.number_in(given[key], key, -1e5, 1e5) for key in _fields(Normalisation))
    if low >= high or sd <= 0:
        raise ModelPackageError(f"CTNormalization clips to {low:g}..{high:g} HU and divides by {sd:g}: not valid")
    return Normalisation(low, high, mean, sd)


_KEYS = (
    *("format", "digest", "name", "version", "family", "intended_use", "licence", "source", "labels", "parts"),
    *("resampling", "window_step", "crop", "minimum_slices", "minimum_extent_mm"),
)
_OPTIONAL_KEYS = ("auxiliary", "orientation", "training")
_TRAINING_KEYS = ("configuration", "software", "parts")
_OPTIONAL_PART_KEYS = ("mirroring_axes",)
"""Written only where they say something, so that the digests of packages without them stay what they were."""
_PART_KEYS = tuple(key for key in Part.__dataclass_fields__ if key not in _OPTIONAL_PART_KEYS)
_WEIGHTS_KEYS = ("file", "bytes", "sha256")


def _known_keys(content: object, keys: tuple[str, ...], optional: tuple[str, ...]) -> tuple[str, ...]:
    return (*keys, *(key for key in optional if isinstance(content, dict) and key in content))


def _package(folder: Path, content: Mapping[str, Any]) -> ModelPackage:
    identity = ModelIdentity(
        name=checks.name(content["name"], "name"),
        version=checks.text(content["version"], "version"),
        digest=checks.sha256(content["digest"], "digest"),
        family=checks.one_of(content["family"], "family", (FAMILY,)),
        intended_use=checks.text(content["intended_use"], "intended_use"),
    )
    package = ModelPackage(
        folder=folder,
        identity=identity,
        parts=tuple(_part(folder, part) for part in checks.listed(content["parts"], "parts", MOST_PARTS)),
        names_by_label=_names(content["labels"], "labels"),
        resampling=cast("Resampling", checks.one_of(content["resampling"], "resampling", get_args(Resampling))),
        window_step=checks.number_in(content["window_step"], "window_step", 0.1, 1.0),
        crop=None if content["crop"] is None else read_crop(content["crop"]),
        minimum_slices=checks.whole_in(content["minimum_slices"], "minimum_slices", 1, 10_000),
        minimum_extent_mm=checks.number_in(content["minimum_extent_mm"], "minimum_extent_mm", 0.0, 10_000.0),
        licence=checks.text(content["licence"], "licence"),
        source=checks.text(content["source"], "source"),
        auxiliary=_auxiliary(content),
        orientation=checks.one_of(content.get("orientation", CANONICAL), "orientation", _DIRECTIONS),
        training=checks.closed(content["training"], "training", _TRAINING_KEYS) if "training" in content else {},
    )
    _check_names(package)
    return package


def _part(folder: Path, content: object) -> Part:
    given = checks.closed(content, "part", _known_keys(content, _PART_KEYS, _OPTIONAL_PART_KEYS))
    what = f"part {checks.name(given['name'], 'name of a part')}"
    weights = [
        checks.closed(entry, "weights", _WEIGHTS_KEYS) for entry in checks.listed(given["weights"], what, MOST_FOLDS)
    ]
    part = Part(
        name=given["name"],
        weights=tuple(folder / checks.name(entry["file"], "weights file") for entry in weights),
        architecture=read_architecture(given["architecture"]),
        normalisation=read_normalisation(given["normalisation"]),
        axes=checks.axis_order(given["axes"]),
        spacing_mm=checks.numbers(given["spacing_mm"], "spacing_mm", *SPACING_BOUNDS_MM),
        patch_size=checks.whole_numbers(given["patch_size"], "patch_size", *PATCH_BOUNDS),
        names_by_channel=_names(given["names_by_channel"], f"{what}: names_by_channel"),
        mirroring_axes=_mirroring_axes(given, what),
    )
    if sorted(part.names_by_channel) != list(range(1, len(part.names_by_channel) + 1)):
        raise ModelPackageError(f"{what}: channels must be numbered 1..{len(part.names_by_channel)} without gaps")
    checks.patch_of_network(part.patch_size, part.architecture.strides, what)
    return part


def read_crop(content: object) -> Crop:
    """Read a crop from its manifest entry.

    Raises:
        ModelPackageError: unknown structures, or a margin out of bounds.
    """
    given = checks.closed(content, "crop", _fields(Crop))
    structures = tuple(
        checks.text(entry, "structure") for entry in checks.listed(given["structures"], "structures", 255)
    )
    checks.known_structures(structures, "crop")
    return Crop(
        model=checks.name(given["model"], "crop.model"),
        structures=structures,
        margin_xyz_mm=checks.numbers(given["margin_xyz_mm"], "margin_xyz_mm", 0.0, 1000.0),
    )


def _auxiliary(content: Mapping[str, Any]) -> tuple[str, ...]:
    if "auxiliary" not in content:
        return ()
    listed = checks.listed(content["auxiliary"], "auxiliary", checks.HIGHEST_LABEL)
    names = tuple(checks.text(name, "auxiliary") for name in listed)
    checks.known_structures(names, "auxiliary")
    return names


def _mirroring_axes(given: Mapping[str, Any], what: str) -> tuple[int, ...]:
    if "mirroring_axes" not in given:
        return ()
    name = f"{what}: mirroring_axes"
    axes = tuple(checks.whole_in(axis, name, 0, 2) for axis in checks.listed(given["mirroring_axes"], name, 3))
    if list(axes) != sorted(set(axes)):
        raise ModelPackageError(f"{name} {list(axes)} must ascend")
    return axes


def _names(content: object, what: str) -> dict[int, str]:
    """Structures by number; keys of a JSON object are always text."""
    if not isinstance(content, dict) or not 1 <= len(content) <= checks.HIGHEST_LABEL:
        raise ModelPackageError(f"{what} must name 1 to {checks.HIGHEST_LABEL} structures")
    named = {_number(key, what): checks.text(value, what) for key, value in content.items()}
    checks.known_structures(named.values(), what)
    return dict(sorted(named.items()))


def _number(key: str, what: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 3) or key.startswith("0"):  # noqa: PLR2004 - 1..255
        raise ModelPackageError(f"{what}: {key[:80]!r} must be a whole number from 1 to {checks.HIGHEST_LABEL}")
    return checks.whole_in(int(key), what, 1, checks.HIGHEST_LABEL)


def _check_names(package: ModelPackage) -> None:
    names = [*package.names_by_label.values(), *package.auxiliary]
    given = {name for part in package.parts for name in part.names_by_channel.values()}
    if len(set(names)) < len(names) or set(names) != given:
        odd = sorted(set(names) ^ given) or sorted(name for name in set(names) if names.count(name) > 1)
        raise ModelPackageError(f"labels and the channels of the parts disagree about {', '.join(odd)}")
    files = [path.name for part in package.parts for path in part.weights]
    if len(set(files)) < len(files) or len({part.name for part in package.parts}) < len(package.parts):
        raise ModelPackageError("two parts or two folds share a name")


def _weights_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [weights for part in content["parts"] for weights in part["weights"]]


def _check_file(path: Path, weights: Mapping[str, Any], *, with_digest: bool) -> tuple[int, ...]:
    """Compare a file with its manifest entry, and return its stamp."""
    expected = checks.sha256(weights["sha256"], f"sha256 of {path.name}")
    size = checks.whole_in(weights["bytes"], f"bytes of {path.name}", 1, checks.WEIGHTS_LIMIT_BYTES)
    try:
        if path.is_symlink():
            raise ModelDigestError(f"{path} is a link; a package must contain its own files")
        with checks.open_file(path, follow_links=False) as file:
            status = os.fstat(file.fileno())
            if status.st_size != size:
                raise ModelDigestError(f"{path} has {status.st_size} bytes, but {size} were installed")
            if with_digest:
                if (found := _digest(file)) != expected:
                    raise ModelDigestError(f"{path} has the SHA-256 {found}, but {expected} was installed")
                _check_header(path, file)
            return _stamp(status)
    except OSError as error:
        raise ModelPackageError(f"cannot read {path}: {error.strerror}") from error


def _check_header(path: Path, file: BufferedReader) -> None:
    """Limit the header, whose length is the first 8 bytes: safetensors would parse even 100 MB as a whole."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > checks.JSON_LIMIT_BYTES:
        raise ModelPackageError(f"{path} has a header of {length} bytes; at most {checks.JSON_LIMIT_BYTES} are allowed")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size and times; a program that changes the file can't set the status change time (ctime)."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
