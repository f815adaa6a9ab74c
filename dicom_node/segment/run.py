"""One CT after the other, each with a summary. One that is refused does not stop the others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from dicom_node import __version__
from dicom_node.analysis import analyse
from dicom_node.errors import ConfigurationError, DicomNodeError, StoreUnavailable
from dicom_node.percentiles import read_percentiles
from dicom_node.reading.reader import ImageReader
from dicom_node.segment import outputs
from dicom_node.segment.case import FileCase, Stages
from inference.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from dicom_node.segment.case import Wanted
    from dicom_node.segment.inputs import Input
    from dicom_node.segment.model import Model
    from inference.nnunet.contract import EngineOptions
    from inference.types import Segmenter

SEGMENTED, REFUSED = "segmented", "refused"


def result_folders(entries: Sequence[Input], out: Path, *, below: bool) -> tuple[Path, ...]:
    """Where the results of each go: ``out`` itself for one alone, else (or if ``below``) a folder in it for each.

    Raises:
        ConfigurationError: two would go into one folder.
    """
    if len(entries) == 1 and not below:
        return (out,)
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"the results of several inputs would go into one folder: {', '.join(twice)}")
    return tuple(out / name for name in names)


class SegmentRun:
    """One model and what is wanted of it, for any number of CTs; the model loads while the first one is read."""

    def __init__(self, model: Model, options: EngineOptions, wanted: Wanted) -> None:
        self._model = model
        self._options = options
        self._wanted = wanted
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="segment")
        self._reader = ImageReader()
        self._loading: Future[Segmenter] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._beside.shutdown(cancel_futures=True)

    def finished(self, entry: Input, folder: Path) -> dict[str, Any] | None:
        """The summary of an earlier run that segmented the same input in the same way; None where there is none."""
        summary = outputs.read_summary(folder)
        if summary is None or summary.get("status") != SEGMENTED:
            return None
        expected = json.loads(json.dumps({"input": entry.facts, **self._asked()}))
        if any(summary.get(key) != value for key, value in expected.items()):
            return None
        # last, because it reads every file: a corrected name or other pixels may leave every count and size as it was
        try:
            return summary if summary.get("content_sha256") == entry.content_digest() else None
        except StoreUnavailable:
            return None  # and why is said when it is segmented

    def segment(self, entry: Input, folder: Path, on_progress: Callable[[float, str], None]) -> dict[str, Any]:
        """Fill ``folder`` with everything about one CT; returns its summary, whose ``status`` says how it went.

        Raises:
            ConfigurationError: the folder can't be written, or the model can't be loaded; no CT can be segmented then.
        """
        outputs.make_folder(folder)
        if self._loading is None:  # while the first one is read
            self._loading = self._beside.submit(self._model.load, self._options)
        stages = Stages(on_progress)
        case = FileCase(entry, folder, self._model, self._loading, self._wanted, stages, self._beside, self._reader)
        reason = _refusal(case, entry)
        status = SEGMENTED if reason is None else REFUSED
        if reason is not None:
            outputs.remove_earlier(folder)
        summary = {
            "status": status,
            "reason": reason,
            "statement": f"{self._model.identity.intended_use}. Research software, not a medical device.",
            "input": entry.facts,
            **self._asked(),
            **(case.produced if reason is None else {}),
            "started_at": case.started_at.isoformat(),
            "seconds": stages.total(),
            "stage_seconds": stages.seconds,
            "peak_rss_bytes": _peak_rss_bytes(),
            "dicom_node": __version__,
        }
        outputs.write_summary(folder, summary)
        on_progress(1.0, status)
        return summary

    def _asked(self) -> dict[str, Any]:
        """Everything that decides on the results but the input."""
        results = self._wanted.results
        return {
            "model": asdict(self._model.identity),
            "engine": {
                "device": self._options.device,
                "precision": self._options.precision,
                "threads": self._options.threads,
                "parity": self._options.parity,
                "body_crop": self._options.body_crop and not self._options.parity,
                "mirroring": self._options.mirroring,
            },
            "wanted": {
                "structures": list(self._wanted.structures) or "all",
                "results": None if results is None else asdict(results),
                **({"percentiles_sha256": _digest(results.percentiles)} if results and results.percentiles else {}),
                **({"unchecked_hu": True} if self._wanted.unchecked_hu else {}),
            },
        }


def _digest(percentiles: str) -> str:
    return read_percentiles(Path(percentiles)).digest()


def _refusal(case: FileCase, entry: Input) -> str | None:
    """Why ``case`` could not be segmented; None where it was."""
    try:
        analyse(case)
    except ConfigurationError:
        raise
    except (DicomNodeError, InferenceError) as error:
        return str(error)
    except MemoryError:
        return "out of memory"
    except Exception as error:  # noqa: BLE001 - an input nobody foresaw must not stop the others
        structlog.get_logger().exception("input.crashed", kind=entry.facts["kind"])
        return f"unexpected {type(error).__name__}; see the log"
    return None


def _peak_rss_bytes() -> int:
    """Of this process alone; getrusage's maximum also counts what the process was before it became this program."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
