"""Values and headers as JSON, and back: the output of a child must be plain data.

Frozen values are sent by field name, arrays separately in shared memory, headers as the elements that pydicom found:
undecoded values as bytes, sequences as items. That takes a fifth of the time of reading the file again. pickle would
run arbitrary code from a child that was compromised by a file.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import DataElement, Dataset, config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import VR

import dicom_node.types
import inference.types
from dicom_node.errors import LimitExceeded
from dicom_node.standard.headers import LONGEST_VALUE, Allowance, is_sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_DEEPEST = 16
"""Sequences within sequences; functional groups of CT nest three deep."""
_MOST_TAGS = 10_000
"""The headers of a series have some hundreds; hostile ones have any."""
_VALUES: Mapping[str, Any] = {
    name: each
    for module in (dicom_node.types, inference.types)
    for name, each in vars(module).items()
    if isinstance(each, type) and is_dataclass(each)
}


class Packer:
    """Turns one value into JSON; ``headers`` are known to the receiver, and are replaced by their number.

    ``arrays`` are the value's arrays, in the order of their numbers.
    """

    def __init__(self, headers: Mapping[int, int]) -> None:
        self.arrays: list[NDArray[Any]] = []
        self._headers = headers
        self._numbers: dict[int, int] = {}

    def packed(self, value: Any) -> Any:
        """The value in JSON types; an object that occurs twice is restored as one object.

        Raises:
            TypeError: something that can't be sent.
        """
        match value:
            case None | bool() | int() | float() | str() | np.generic():
                return value.item() if isinstance(value, np.generic) else value
            case tuple() | list():
                return [self.packed(one) for one in value]
            case np.ndarray():
                self.arrays.append(value)
                return {"array": len(self.arrays) - 1}
            case Dataset():
                return {"header": self._headers[id(value)]}
        return self._packed_value(value)

    def _packed_value(self, value: Any) -> Any:
        if type(value) is not _VALUES.get(type(value).__name__):
            raise TypeError(f"a {type(value).__name__} can't be sent")
        if id(value) in self._numbers:
            return {"same": self._numbers[id(value)]}
        packed = {field.name: self.packed(getattr(value, field.name)) for field in fields(value)}
        self._numbers[id(value)] = len(self._numbers)
        return {"is": type(value).__name__, "of": packed}


class Unpacker:
    """The counterpart of :class:`Packer`."""

    def __init__(self, arrays: list[NDArray[Any]], headers: list[Dataset]) -> None:
        self._arrays = arrays
        self._headers = headers
        self._made: list[Any] = []

    def unpacked(self, packed: Any) -> Any:
        """The value; JSON lists become tuples."""
        match packed:
            case list():
                return tuple(self.unpacked(one) for one in packed)
            case {"array": number}:
                return self._arrays[number]
            case {"header": number}:
                return self._headers[number]
            case {"same": number}:
                return self._made[number]
            case {"is": name, "of": stated}:
                made = _VALUES[name](**{field: self.unpacked(one) for field, one in stated.items()})
                self._made.append(made)
                return made
        return packed


def plain_header(header: Dataset, series: Allowance) -> list[Any]:
    """A header, its sequences counted in ``series``.

    Raises:
        LimitExceeded: it exceeds the limits of a header, or sequences are nested too deeply.
    """
    allowances = (Allowance(), series)
    return [_plain(header.file_meta, allowances, 0), _plain(header, allowances, 0)]


def header_of(plain: list[Any]) -> Dataset:
    """The inverse of :func:`plain_header`."""
    meta, header = plain
    found = _dataset(header)
    found.file_meta = FileMetaDataset(_dataset(meta))
    return found


def _plain(dataset: Dataset, allowances: tuple[Allowance, ...], depth: int) -> list[Any]:
    if depth > _DEEPEST:
        raise LimitExceeded(f"sequences in a header are nested deeper than the limit of {_DEEPEST}")
    for allowance in allowances:
        allowance.spend(elements=len(dataset), items=int(depth > 0))
    elements = []
    for tag, element in list(dataset._dict.items()):  # noqa: SLF001 - the public iterators decode every element
        if isinstance(element, RawDataElement) and is_sequence(element):
            element = _opened(dataset, tag, element)  # noqa: PLW2901 - the same element
        if not isinstance(element, RawDataElement):
            elements.append(_plain_read(element, allowances, depth))
        elif len(element.value or b"") <= LONGEST_VALUE:
            text = None if element.value is None else element.value.decode("latin-1")
            elements.append([int(tag), element.VR, element.length, text])
    implicit, little = dataset.original_encoding
    own, inherited = dataset.original_character_set, dataset._parent_encoding  # noqa: SLF001 - there is no other way
    return [implicit, little, own, inherited, elements]


def _opened(dataset: Dataset, tag: BaseTag, element: RawDataElement) -> RawDataElement | DataElement:
    """The sequence with its items; unchanged if it can't be read, so that a later access raises the same error."""
    try:
        return dataset[tag]
    except Exception:  # noqa: BLE001 - pydicom answers hostile bytes with whatever that leads to
        dataset._dict[tag] = element  # noqa: SLF001
        return element


def _plain_read(element: DataElement, allowances: tuple[Allowance, ...], depth: int) -> list[Any]:
    """An element already decoded by pydicom: a sequence, the character set, or one of the File Meta Information."""
    if element.VR == VR.SQ:
        items = [_plain(item, allowances, depth + 1) for item in element.value]
        return [int(element.tag), items, element.is_undefined_length]
    value = element.value
    if isinstance(value, MultiValue | list):
        return [int(element.tag), str(element.VR), [str(part) for part in value]]
    if isinstance(value, bytes):
        return [int(element.tag), str(element.VR), {"bytes": value.decode("latin-1")}]
    return [int(element.tag), str(element.VR), value if isinstance(value, int | None) else str(value)]


@lru_cache(_MOST_TAGS)
def _tag(number: int) -> BaseTag:
    """One object for each tag: pydicom compares those that are not the same one in Python."""
    return BaseTag(number)


def _dataset(plain: list[Any]) -> Dataset:
    implicit, little, own, inherited, elements = plain
    found: dict[BaseTag, RawDataElement | DataElement] = {}
    for element in elements:
        tag = _tag(element[0])
        if len(element) == 4:  # noqa: PLR2004 - as it came
            _, vr, length, text = element
            value = None if text is None else text.encode("latin-1")
            found[tag] = RawDataElement(tag, vr, length, value, 0, implicit, little)
        elif isinstance(element[1], list):
            items = Sequence([_dataset(item) for item in element[1]])
            found[tag] = DataElement(tag, VR.SQ, items, is_undefined_length=element[2], already_converted=True)
        else:
            value = element[2]
            if isinstance(value, dict):
                value = value["bytes"].encode("latin-1")
            found[tag] = DataElement(tag, element[1], value, validation_mode=config.IGNORE)
    dataset = Dataset(found, parent_encoding=inherited)
    dataset.set_original_encoding(implicit, little, own)
    return dataset
