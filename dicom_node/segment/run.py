"""One CT after the other: read, segment, measure, encode, write. One that is refused does not stop the others."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from dicom_node import __version__
from dicom_node.analysis import analyse
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.segment import outputs
from dicom_node.segment.context import context_of
from dicom_node.segment.nifti import grid_of
from inference.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from dicom_node.analysis import Findings
    from dicom_node.segment.inputs import Input
    from dicom_node.segment.model import Model
    from dicom_node.segment.nifti import FileGrid
    from dicom_node.types import EncodedResult, ResultContext, ResultRequest, Series
    from inference.nnunet.contract import EngineOptions
    from inference.types import Segmentation, Segmenter, Volume

SEGMENTED, REFUSED = "segmented", "refused"
_BEGINS_AT = {
    "read": 0.0,
    "reconstruct": 0.02,
    "load": 0.05,
    "segment": 0.05,
    "measure": 0.9,
    "encode": 0.92,
    "write": 0.98,
}
"""Where each stage begins on the progress bar."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the results shall hold: ``structures`` (all where empty, in any order), and which objects of DICOM input."""

    structures: tuple[str, ...]
    results: ResultRequest | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", tuple(sorted(set(self.structures))))


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
        self._loading: Future[Segmenter] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown(cancel_futures=True)

    def finished(self, entry: Input, folder: Path) -> dict[str, Any] | None:
        """The summary of an earlier run that segmented the same input in the same way; None where there is none."""
        summary = outputs.read_summary(folder)
        if summary is None or summary.get("status") != SEGMENTED:
            return None
        expected = json.loads(json.dumps({"input": entry.facts, **self._asked()}))
        return summary if all(summary.get(key) == value for key, value in expected.items()) else None

    def segment(self, entry: Input, folder: Path, on_progress: Callable[[float, str], None]) -> dict[str, Any]:
        """Fill ``folder`` with everything about one CT; returns its summary, whose ``status`` says how it went.

        Raises:
            ConfigurationError: the folder can't be written, or the model can't be loaded; no CT can be segmented then.
        """
        outputs.make_folder(folder)
        if self._loading is None:  # while the first one is read
            self._loading = self._beside.submit(self._model.load, self._options)
        stages = _Stages(on_progress)
        case = _FileCase(entry, folder, self._model, self._loading, self._wanted, stages, self._beside)
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
        return {
            "model": asdict(self._model.identity),
            "engine": {
                "device": self._options.device,
                "precision": self._options.precision,
                "threads": self._options.threads,
                "parity": self._options.parity,
                "body_crop": self._options.body_crop and not self._options.parity,
            },
            "wanted": {
                "structures": list(self._wanted.structures) or "all",
                "results": None if self._wanted.results is None else asdict(self._wanted.results),
            },
        }


def _refusal(case: _FileCase, entry: Input) -> str | None:
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


class _FileCase:
    """One input, as :func:`dicom_node.analysis.analyse` sees it: files in, files out.

    ``beside`` does what need not be waited for: the digest of the input, loading the encoder, writing the label map.
    """

    def __init__(
        self,
        entry: Input,
        folder: Path,
        model: Model,
        loading: Future[Segmenter],
        wanted: Wanted,
        stages: _Stages,
        beside: ThreadPoolExecutor,
    ) -> None:
        self._entry = entry
        self._folder = folder
        self._loading = loading
        self._wanted = wanted
        self._stages = stages
        self._beside = beside
        self._grid: FileGrid | None = None
        self._digest: Future[str] | None = None
        self.model = model.identity.name
        self.minimum = model.minimum
        self.structures = wanted.structures
        self.started_at = datetime.now(UTC)
        self.produced: dict[str, Any] = {}
        """What the summary says about the results."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count the time of the block, and show it."""
        return self._stages.measured(name)

    def read(self) -> Series | Volume:
        """Open the files; their digest is made beside what follows."""
        opened = self._entry.read()
        self._grid = opened.grid
        self._digest = self._beside.submit(self._entry.content_digest)
        return opened.images

    def infer(self, volume: Volume) -> Segmentation:
        """Segment in this process, once the model is loaded."""
        if self._grid is None and self._wanted.results is not None:
            self._beside.submit(_import_encoder)
        with self.stage("load"):
            try:
                segmenter = self._loading.result()
            except InferenceError as error:
                raise ConfigurationError(f"model {self.model}: {error}") from error
        with self.stage("segment"):
            labels = segmenter.segment(volume, self._stages.part("segment", "measure"))
        self._stages.add(labels.run.stage_seconds if labels.run else {})
        return labels

    def requests(self) -> Mapping[str, ResultRequest] | None:
        """One destination: the files."""
        return None if self._wanted.results is None else {"files": self._wanted.results}

    def encoding(self) -> AbstractContextManager[None]:
        """Nobody else is encoded in this process."""
        return nullcontext()

    def context(self) -> ResultContext:
        """What the results state beside the findings."""
        return context_of(self._content_digest(), self.structures, self.started_at)

    def keep(self, findings: Findings, results: Iterator[EncodedResult]) -> None:
        """Write everything into the folder; whoever reads it there finds the summary last."""
        geometry = findings.ct.source.geometry
        grid = self._grid or grid_of(geometry)
        outputs.remove_earlier(self._folder)
        writing = self._beside.submit(outputs.write_label_map, self._folder, findings.segmentation, grid)
        try:
            with self.stage("encode"):
                written = outputs.write_results(self._folder, tuple(results))
            with self.stage("write"):
                outputs.write_measurements(self._folder, findings.measurements)
        finally:
            wait([writing])  # also where encoding fails: what is refused leaves no file behind
        writing.result()
        run = findings.segmentation.run
        self.produced = {
            "content_sha256": self._content_digest(),
            "grid": {"shape_zyx": geometry.shape_zyx, "spacing_xyz_mm": geometry.spacing_xyz_mm},
            "notes": list(findings.notes),
            "backend": run.backend if run else None,
            "device": run.device if run else None,
            "precision": run.precision if run else None,
            "structures_found": len(findings.measurements.structures),
            "results": written,
        }

    def _content_digest(self) -> str:
        assert self._digest is not None
        return self._digest.result()


class _Stages:
    """How long each stage of one CT took, and where it is."""

    def __init__(self, on_progress: Callable[[float, str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._start = time.monotonic()

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        self._on_progress(_BEGINS_AT[name], name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Stages that the engine measured itself."""
        self.seconds |= {name: round(value, 3) for name, value in seconds.items()}

    def part(self, stage: str, following: str) -> Callable[[float, str], None]:
        """Progress of one stage as a part of the whole."""
        first, last = _BEGINS_AT[stage], _BEGINS_AT[following]
        return lambda fraction, word: self._on_progress(first + (last - first) * fraction, word)

    def total(self) -> float:
        return round(time.monotonic() - self._start, 3)


def _peak_rss_bytes() -> int:
    """Of this process alone; getrusage's maximum also counts what the process was before it became this program."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _import_encoder() -> None:
    """Loading highdicom takes half a second, which the network's first windows hide."""
    import dicom_node.encode.run  # noqa: F401, PLC0415
