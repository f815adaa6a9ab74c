"""Reading single attributes out of headers that may hold anything: a sound value or a refusal that names the attribute.

Nothing here quotes a value that was read from a text attribute; numbers and UIDs are quoted, they identify nobody.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from pydicom.datadict import dictionary_description
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.errors import SeriesRejected


def text(header: Dataset, keyword: str) -> str:
    """The value as stripped text; empty where the attribute is missing, empty or cannot be read at all."""
    try:
        value = _value(header, keyword)
        return "" if value is None else str(value).strip(" \0")
    except Exception:  # noqa: BLE001 - pydicom converts lazily and any converter may fail on hostile bytes
        return ""


def texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Every value of a multi-valued text attribute, stripped; empty where the attribute is missing."""
    try:
        value = _value(header, keyword)
        if value is None:
            return ()
        return tuple(str(part).strip(" \0") for part in (value if _is_multiple(value) else [value]))
    except Exception:  # noqa: BLE001 - see text
        return ()


def items(header: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none where it is missing or is no sequence."""
    try:
        value = _value(header, keyword)
    except Exception:  # noqa: BLE001 - see text
        return ()
    return value if isinstance(value, DicomSequence) else ()


def is_stated(header: Dataset, keyword: str) -> bool:
    """Whether the attribute is there and not empty, whether it can be read or not."""
    try:
        value = _value(header, keyword)
    except Exception:  # noqa: BLE001 - see text
        return True
    return value is not None and not (isinstance(value, str | bytes | DicomSequence | MultiValue) and len(value) == 0)


def finite_numbers(
    header: Dataset, keyword: str, count: int, refusal: type[SeriesRejected], where: str
) -> tuple[float, ...]:
    """Exactly ``count`` finite numbers.

    Raises:
        refusal: the attribute is missing, has another number of values, or one is no finite number; ``where`` (an
            instance, a frame) and the name of the attribute are in the message.
    """
    try:
        value = _value(header, keyword)
        parts = () if value is None else tuple(value) if _is_multiple(value) else (value,)
        numbers = tuple(float(part) for part in parts)
    except Exception as error:
        raise refusal(f"{where}: {dictionary_description(keyword)} is not numeric") from error
    if len(numbers) == count and all(map(math.isfinite, numbers)):
        return numbers
    if not numbers:
        fault = "is missing"
    elif len(numbers) != count:
        fault = f"has {len(numbers)} values, expected {count}"
    else:
        fault = "is not finite"
    raise refusal(f"{where}: {dictionary_description(keyword)} {fault}")


def whole_number(header: Dataset, keyword: str, refusal: type[SeriesRejected], where: str) -> int:
    """One whole number.

    Raises:
        refusal: as :func:`finite_numbers`, and for a fraction.
    """
    (number,) = finite_numbers(header, keyword, 1, refusal, where)
    if not number.is_integer():
        raise refusal(f"{where}: {dictionary_description(keyword)} is {number}, expected a whole number")
    return int(number)


def _value(header: Dataset, keyword: str) -> Any:
    """``header.get(keyword)``; by the tag, which takes pydicom a third of the time."""
    element = header.get(_tag(keyword))
    return None if element is None else element.value


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _is_multiple(value: object) -> bool:
    """Not by being iterable: text and names are iterable too."""
    return isinstance(value, MultiValue | list | tuple)
