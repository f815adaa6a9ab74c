"""The numbers of data sets. nnU-Net finds a data set by its number, so a folder must have each number once.

A number belongs to the data set that is named in ``.numbers/NUMBER``. That folder is prepared under another name with
all of its content and then renamed, which the file system allows to one process only, however many try. It stays, so
that the same conversion gets the same number again.
"""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING, Any

from dicom_node.dataset.files import make_folder, read_json, rename_first, write_json
from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dicom_node.dataset.sets import RawSet, WantedSet

FREE_NUMBERS = range(301, 1000)
"""For sets that have no number in TotalSegmentator."""
_NUMBERS, _OWNER = ".numbers", "data_set.json"


def allocate(sets: Sequence[WantedSet], out: Path, source_name: str) -> tuple[RawSet, ...]:
    """Give each of ``sets`` a folder name whose number no other data set in ``out`` has.

    A set with the same name, labels and source as in an earlier run gets the same number as then.

    Raises:
        ConfigurationError: ``out`` can't be written, no number is left, or the number that a set has in
            TotalSegmentator belongs to another data set in ``out``.
    """
    return tuple(_allocated(each, out, _owner(each, source_name)) for each in sets)


def _owner(each: WantedSet, source_name: str) -> dict[str, Any]:
    return {
        "word": each.word,
        "source": source_name,
        "spacing_mm": each.spacing_mm,
        "labels": each.labels.label_by_name,
    }


def _allocated(each: WantedSet, out: Path, owner: dict[str, Any]) -> RawSet:
    if each.number is not None:
        if not _take(out, each.number, owner):
            raise ConfigurationError(_taken(out, each.number, owner))
        return each.numbered(each.number)
    earlier = [number for number in FREE_NUMBERS if read_json(_claim(out, number) / _OWNER) == owner]
    for number in earlier or FREE_NUMBERS:
        if _take(out, number, owner):
            return each.numbered(number)
    raise ConfigurationError(f"{out} has no number left for {each.word}: {FREE_NUMBERS[0]} to {FREE_NUMBERS[-1]}")


def _taken(out: Path, number: int, owner: dict[str, Any]) -> str:
    other = read_json(_claim(out, number) / _OWNER)
    if other is None:
        there = next(iter(_folders(out, number)), _claim(out, number))
        return f"{there} exists, but was not written by a conversion into {out}"
    return (
        f"data set {number} in {out} is made from {other.get('source')!r}, expected {owner['source']!r}: choose "
        "another OUT, or state the same --source-name"
    )


def _take(out: Path, number: int, owner: dict[str, Any]) -> bool:
    """Whether ``number`` belongs to ``owner``, now or since an earlier run."""
    claim = _claim(out, number)
    if _folders(out, number) and not claim.exists():
        return False  # another program's
    if not claim.exists():
        prepared = claim.with_name(f".{number}-{secrets.token_hex(8)}")
        make_folder(prepared)
        write_json(prepared / _OWNER, owner)
        if not rename_first(prepared, claim):
            shutil.rmtree(prepared, ignore_errors=True)
    return read_json(claim / _OWNER) == owner


def _claim(out: Path, number: int) -> Path:
    return out / _NUMBERS / str(number)


def _folders(out: Path, number: int) -> list[Path]:
    return sorted(out.glob(f"Dataset{number:03}_*"))
