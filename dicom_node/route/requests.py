"""The results for a rule's destinations: the defaults for a name alone, or the options in a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from dicom_node.errors import ConfigurationError
from dicom_node.percentiles import read_percentiles
from dicom_node.settings.loader import parse
from dicom_node.settings.models import PathS, Truth  # noqa: TC001 - pydantic reads it
from dicom_node.settings.places import shown
from dicom_node.settings.validation import Closed, checked, configured, did_you_mean
from dicom_node.types import ResultRequest, SegmentationForm
from inference.structures import STRUCTURES

if TYPE_CHECKING:
    from pydantic import ValidationInfo

NOTICE_ALONE = ResultRequest(segmentation=SegmentationForm.NONE, report=False, notice=True)
_GROUPS = tuple(dict.fromkeys(structure.group for structure in STRUCTURES))
_SELECTABLE = frozenset(structure.name for structure in STRUCTURES) | frozenset(_GROUPS)


def _selectable(name: str) -> str:
    if name not in _SELECTABLE:
        known = f"the names in inference/structures.csv and the groups {', '.join(_GROUPS)}"
        raise ValueError(f"unknown structure {shown(name)}{did_you_mean(name, _SELECTABLE)}; known: {known}")
    return name


def _of_percentiles(file: Path, info: ValidationInfo) -> Path:
    """The absolute path of ``file``, which is read: a file that is missing or broken is found when a node starts."""
    path = Path((info.context or {}).get("folder", "")).absolute() / file
    try:
        read_percentiles(path)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return path


Selection = tuple[Annotated[str, AfterValidator(_selectable)], ...]


class RequestOptions(Closed):
    """The options; omitted ones have the defaults of :class:`ResultRequest`."""

    segmentation: SegmentationForm = SegmentationForm.BINARY
    split: Literal["group"] = "group"
    structures: Selection = ()
    contours: Selection = ()
    background: Truth = True
    report: Truth = True
    ibsi_codes: Truth = False
    shape: Truth = False
    capture: Truth = False
    document: Truth = False
    notice: Truth = False
    percentiles: Annotated[PathS, AfterValidator(_of_percentiles)] = Path()
    """Relative paths are relative to the folder of the file that states them, or else to the current one."""

    @model_validator(mode="after")
    def _is_consistent(self) -> RequestOptions:
        try:
            self.request()
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    def request(self) -> ResultRequest:
        """The request.

        Raises:
            ConfigurationError: the options contradict each other.
        """
        chosen = {key: getattr(self, key) for key in OPTIONS if key in self.model_fields_set}
        if chosen.pop("split", None):
            chosen["split_by_group"] = True
        if "percentiles" in chosen:
            chosen["percentiles"] = str(self.percentiles)
        return ResultRequest(**chosen)


OPTIONS = tuple(RequestOptions.model_fields)


class DestinationRequest(RequestOptions):
    """One entry of a rule's ``destinations``."""

    to: Annotated[str, AfterValidator(configured("destination"))]

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, entry: Any) -> Any:
        return {"to": entry} if isinstance(entry, str) else entry


def read_request(options: str) -> ResultRequest:
    """A request for result files: the keys of a destination except ``to``, as ``segmentation: labelmap, shape: true``.

    Raises:
        ConfigurationError: as for a destination; also for ``auto`` and ``notice``, which require one.
    """
    request = checked(parse(f"{{{options}}}", "results", has_lines=False), RequestOptions).request()
    if request.asks_peer or request.notice:
        raise ConfigurationError("results: 'segmentation: auto' and 'notice' require a destination")
    return request
