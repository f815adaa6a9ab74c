"""What a rule's destinations get: a name alone gets the default, a mapping says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dicom_node.errors import ConfigurationError
from dicom_node.route.yaml_core import load_yaml
from dicom_node.route.yaml_values import entries, known, mapping, text, truth
from dicom_node.types import ResultRequest, SegmentationForm
from inference.structures import STRUCTURES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SWITCHES = ("background", "report", "ibsi_codes", "shape", "capture", "document", "notice")
_SELECTIONS = ("structures", "contours")
OPTIONS = ("segmentation", "split", *_SELECTIONS, *_SWITCHES)
"""The keys that may stand beside ``to``."""
_SELECTABLE = frozenset(name for structure in STRUCTURES for name in (structure.name, structure.group))
NOTICE_ALONE = ResultRequest(segmentation=SegmentationForm.NONE, report=False, notice=True)
_GROUPS = tuple(dict.fromkeys(structure.group for structure in STRUCTURES))


def read_requests(value: Any, place: str, destinations: Collection[str]) -> Mapping[str, ResultRequest]:
    """The request of each destination in the list ``value``, in its order.

    Raises:
        ConfigurationError: an unknown destination, option, form, structure or group, a destination that stands twice,
            or options that contradict each other.
    """
    requests: dict[str, ResultRequest] = {}
    for number, entry in enumerate(entries(value, place)):
        name, request = _request(entry, f"{place}[{number}]", destinations)
        if name in requests:
            raise ConfigurationError(f"{place} names a destination more than once")
        requests[name] = request
    return requests


def read_notices(value: Any, place: str, destinations: Collection[str]) -> Mapping[str, ResultRequest]:
    """As :func:`read_requests` for a rule that refuses, which can give a notice and nothing else.

    Raises:
        ConfigurationError: an unknown destination, one that stands twice, or anything but ``notice: true`` beside it.
    """
    requests: dict[str, ResultRequest] = {}
    for number, entry in enumerate(entries(value, place)):
        fields = mapping(entry, f"{place}[{number}]", {"to", "notice"}, set())
        name = known(fields["to"], f"{place}[{number}].to", "destination", destinations)
        if not truth(fields["notice"], f"{place}[{number}] ({name}).notice"):
            raise ConfigurationError(f"{place}[{number}] ({name}).notice must be true: the rule refuses")
        if name in requests:
            raise ConfigurationError(f"{place} names a destination more than once")
        requests[name] = NOTICE_ALONE
    return requests


def read_request(options: str) -> ResultRequest:
    """The request of who keeps files: the keys of a destination but ``to``, as ``segmentation: labelmap, shape: true``.

    Raises:
        ConfigurationError: as :func:`read_requests`; ``auto`` and ``notice`` have no meaning without a destination.
    """
    place = "results"
    try:
        fields = load_yaml(f"{{{options}}}")
    except yaml.YAMLError:
        raise ConfigurationError(f"{place} must be 'key: value, key: value', not {options!r}") from None
    request = _asked(mapping(fields, place, set(), set(OPTIONS)), place)
    if request.asks_peer or request.notice:
        raise ConfigurationError(f"{place}: segmentation: auto and notice have no meaning without a destination")
    return request


def _request(entry: Any, place: str, destinations: Collection[str]) -> tuple[str, ResultRequest]:
    if not isinstance(entry, dict):
        return known(entry, place, "destination", destinations), ResultRequest()
    fields = mapping(entry, place, {"to"}, set(OPTIONS))
    name = known(fields["to"], f"{place}.to", "destination", destinations)
    return name, _asked(fields, f"{place} ({name})")


def _asked(fields: Mapping[str, Any], place: str) -> ResultRequest:
    chosen: dict[str, Any] = {
        **{key: truth(fields[key], f"{place}.{key}") for key in _SWITCHES if key in fields},
        **{key: _selection(fields[key], f"{place}.{key}") for key in _SELECTIONS if key in fields},
    }
    if "segmentation" in fields:
        chosen["segmentation"] = _form(fields["segmentation"], f"{place}.segmentation")
    if "split" in fields:
        if fields["split"] != "group":
            raise ConfigurationError(f"{place}.split can only be group, not {fields['split']!r}")
        chosen["split_by_group"] = True
    try:
        return ResultRequest(**chosen)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from error


def _form(value: Any, place: str) -> SegmentationForm:
    name = text(value, place)
    try:
        return SegmentationForm(name)
    except ValueError:
        raise ConfigurationError(f"{place} must be one of {', '.join(SegmentationForm)}, not {name!r}") from None


def _selection(value: Any, place: str) -> tuple[str, ...]:
    names = tuple(text(name, f"{place}[{number}]") for number, name in enumerate(entries(value, place)))
    unknown = [name for name in names if name not in _SELECTABLE]
    if unknown:
        raise ConfigurationError(
            f"{place}: no structure is called {', '.join(unknown)}; known: the names of inference/structures.csv and "
            f"the groups {', '.join(_GROUPS)}"
        )
    return names
