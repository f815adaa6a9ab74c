"""Checks and bounds for everything that is read from a model's files, which are not trusted.

Every function returns the checked value, or raises ModelPackageError that names the value, what was seen and expected.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any, TypeVar

from inference.errors import ModelPackageError, UnknownStructureError
from inference.structures import structure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

_N = TypeVar("_N", int, float)

JSON_LIMIT_BYTES = 1024**2
WEIGHTS_LIMIT_BYTES = 4 * 1024**3
"""Size limit of a weights file."""
HIGHEST_LABEL = 255
TEXT_LIMIT = 2000
_NAMED_IN_MESSAGES = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in the JSON file ``path``."""
    try:
        with open_file(path) as file:
            text = file.read(JSON_LIMIT_BYTES + 1)
        if len(text) > JSON_LIMIT_BYTES:
            raise ModelPackageError(f"{path} is larger than the limit of {JSON_LIMIT_BYTES} bytes")
        content = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise ModelPackageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelPackageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelPackageError(f"{path} must contain an object, not a {type(content).__name__}")
    return content


def open_file(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Open ``path`` for reading; refuses a pipe or a device, which may never end, without waiting for it.

    Raises:
        ModelPackageError: ``path`` is not a file.
        OSError: it can't be opened, or it is a link and ``follow_links`` is false.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    file = os.fdopen(os.open(path, flags), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ModelPackageError(f"{path} is not a file")


def closed(content: object, what: str, keys: Collection[str]) -> Mapping[str, Any]:
    """An object with exactly ``keys``."""
    if not isinstance(content, dict):
        raise ModelPackageError(f"{what} must be an object, not {_seen(content)}")
    foreign, missing = sorted(set(content) - set(keys)), sorted(set(keys) - set(content))
    if foreign or missing:
        shown = [key[:80] for key in foreign[:_NAMED_IN_MESSAGES]]
        raise ModelPackageError(f"{what}: {len(foreign)} unknown keys {shown}, missing keys {missing}")
    return content


def listed(content: object, what: str, most: int) -> list[Any]:
    """A list of 1 to ``most`` entries."""
    if not isinstance(content, list) or not 1 <= len(content) <= most:
        raise ModelPackageError(f"{what} must be a list of 1 to {most} entries, not {_seen(content)}")
    return content


def text(value: object, what: str) -> str:
    """Some printable text."""
    if not isinstance(value, str) or not value.strip() or len(value) > TEXT_LIMIT or not value.isprintable():
        raise ModelPackageError(f"{what} must be printable text of at most {TEXT_LIMIT} characters, not {_seen(value)}")
    return value


def name(value: object, what: str) -> str:
    """A name that is safe as a file name: letters, digits, ``_ . + -``, not starting with a dot."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ModelPackageError(f"{what} must be letters, digits and _ . + - (at most 100), not {_seen(value)}")
    return value


def sha256(value: object, what: str) -> str:
    """A SHA-256 in hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ModelPackageError(f"{what} must be 64 hexadecimal digits in lower case, not {_seen(value)}")
    return value


def truth(value: object, what: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ModelPackageError(f"{what} must be true or false, not {_seen(value)}")
    return value


def one_of(value: object, what: str, allowed: Sequence[str]) -> str:
    """One of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ModelPackageError(f"{what} must be one of {', '.join(allowed)}, not {_seen(value)}")
    return value


def whole_in(value: object, what: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelPackageError(f"{what} must be a whole number from {low} to {high}, not {_seen(value)}")
    return value


def number_in(value: object, what: str, low: float, high: float) -> float:
    """A number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ModelPackageError(f"{what} must be a number from {low:g} to {high:g}, not {_seen(value)}")
    return float(value)


def triple(values: Sequence[_N]) -> tuple[_N, _N, _N]:
    """Three values, one per axis."""
    if len(values) != 3:  # noqa: PLR2004 - z, y, x
        raise ModelPackageError(f"{list(values)!r} must be three numbers: only 3D networks are supported")
    return values[0], values[1], values[2]


def numbers(value: object, what: str, low: float, high: float) -> tuple[float, float, float]:
    """Three numbers from ``low`` to ``high``."""
    return triple([number_in(number, what, low, high) for number in listed(value, what, 3)])


def whole_numbers(value: object, what: str, low: int, high: int) -> tuple[int, int, int]:
    """Three whole numbers from ``low`` to ``high``."""
    return triple([whole_in(number, what, low, high) for number in listed(value, what, 3)])


def per_stage(values: object, stages: int, what: str, high: int) -> tuple[int, ...]:
    """One whole number from 1 to ``high`` for each stage; a single number applies to all."""
    given = [values] * stages if isinstance(values, int) else values
    if not isinstance(given, list) or len(given) != stages:
        raise ModelPackageError(f"{what} must be {stages} numbers, not {_seen(values)}")
    return tuple(whole_in(value, what, 1, high) for value in given)


def triples(values: object, stages: int, what: str, high: int) -> tuple[tuple[int, ...], ...]:
    """Three whole numbers from 1 to ``high`` for each stage; a single number applies to all three axes."""
    if not isinstance(values, list) or len(values) != stages:
        raise ModelPackageError(f"{what} must have one entry for each of {stages} stages, not {_seen(values)}")
    rows = [[value] * 3 if isinstance(value, int) else value for value in values]
    return tuple(whole_numbers(row, what, 1, high) for row in rows)


def axis_order(value: object) -> tuple[int, int, int]:
    """A permutation of 0, 1 and 2 (nnU-Net's transpose_forward)."""
    axes = whole_numbers(value, "transpose_forward", 0, 2)
    if sorted(axes) != [0, 1, 2]:
        raise ModelPackageError(f"transpose_forward {value!r} is not a permutation of 0, 1, 2")
    return axes


def known_structures(names: Iterable[str], what: str) -> None:
    """Require every name to be in the catalogue; the error lists all that are not."""
    unknown = []
    for wanted in names:
        try:
            structure(wanted)
        except UnknownStructureError:
            unknown.append(str(wanted)[:80])
    if unknown:
        raise ModelPackageError(f"{what}: inference/structures.csv has no structure named {', '.join(unknown)}")


def patch_of_network(patch_size: tuple[int, int, int], strides: Sequence[Sequence[int]], what: str) -> None:
    """Require each side of the window to be divisible by the network's strides, with more than one voxel left over."""
    deepest = 1
    for axis in range(3):
        shrink = 1
        for stride in strides:
            shrink *= stride[axis]
        if patch_size[axis] % shrink:
            raise ModelPackageError(
                f"{what}: patch size {patch_size[axis]} is not a multiple of the network's stride {shrink}"
            )
        deepest *= patch_size[axis] // shrink
    if deepest == 1:
        raise ModelPackageError(f"{what}: patch size {list(patch_size)} leaves one voxel in the network's last stage")


def _seen(value: object) -> str:
    return repr(str(value)[:80])
