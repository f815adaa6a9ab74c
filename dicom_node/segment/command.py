"""``dicom-node segment``: find what there is, segment one after the other, say how each went."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dicom_node.app.places import cache_folder_of_user
from dicom_node.segment.inputs import find_inputs
from dicom_node.segment.model import find_model, refuse_unknown
from dicom_node.segment.progress import progress_bar
from dicom_node.segment.run import REFUSED, SegmentRun, result_folders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dicom_node.segment.case import Wanted
    from dicom_node.standard.files import PassedOver
    from inference.nnunet.contract import EngineOptions


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went with one CT. ``skipped``: an earlier run had finished it, and the ``summary`` is that run's."""

    name: str
    folder: Path
    skipped: bool
    summary: dict[str, Any]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether files that may be images of it could not be read."""
        return any(each.is_dicom for each in self.passed_over)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line for people on the files that were passed over for each reason."""
        by_reason: dict[str, list[PassedOver]] = {}
        for each in self.passed_over:
            by_reason.setdefault(each.reason, []).append(each)
        return tuple(_remark(reason, files) for reason, files in by_reason.items())

    @property
    def refused(self) -> bool:
        """Whether there is a reason instead of results."""
        return bool(self.summary["status"] == REFUSED)

    @property
    def line(self) -> str:
        """One line for people."""
        if self.refused:
            return f"{self.name}: refused: {self.summary['reason']}"
        found, seconds = self.summary["structures_found"], self.summary["seconds"]
        how = "finished by an earlier run" if self.skipped else f"{found} structures in {seconds:.1f} s"
        return f"{self.name}: {how}, in {self.folder}"


def _remark(reason: str, files: Sequence[PassedOver]) -> str:
    first = files[0]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    detail = f" ({first.detail})" if first.detail else ""
    return f"passed over: {first.path}{more}: {reason}{detail}"


def segment_inputs(
    given: Sequence[Path],
    out: Path,
    *,
    model_name: str,
    models_folder: Path,
    options: EngineOptions,
    wanted: Wanted,
    recursive: bool,
    series_instance_uid: str | None,
    again: bool,
    show_progress: bool,
) -> Iterator[Outcome]:
    """Segment everything in ``given`` into ``out``; each outcome comes as soon as it is there.

    One input alone fills ``out`` itself; several, or any number with ``recursive``, fill a folder in it each.

    Raises:
        ConfigurationError: no such model, nothing to segment, or ``out`` can't be written.
        UnknownStructureError: the model finds no such structure.
    """
    model = find_model(model_name, models_folder, options)
    refuse_unknown(wanted.structures, model)
    entries = find_inputs(given, recursive=recursive, series_instance_uid=series_instance_uid, without=out)
    folders = result_folders(entries, out, below=recursive or len(given) > 1)
    options = replace(options, cache_folder=cache_folder_of_user())
    with SegmentRun(model, options, wanted) as run:
        for entry, folder in zip(entries, folders, strict=True):
            earlier = None if again else run.finished(entry, folder)
            if earlier is not None:
                yield Outcome(entry.name, folder, skipped=True, summary=earlier, passed_over=entry.passed_over)
                continue
            with progress_bar(entry.name, shown=show_progress) as on_progress:
                summary = run.segment(entry, folder, on_progress)
            yield Outcome(entry.name, folder, skipped=False, summary=summary, passed_over=entry.passed_over)
