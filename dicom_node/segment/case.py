"""One input as a case of the analysis: files in, a folder of files out."""

from __future__ import annotations

import time
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigurationError
from dicom_node.nifti import grid_of
from dicom_node.segment import outputs
from dicom_node.segment.context import context_of
from dicom_node.segment.inputs import DicomSeries
from dicom_node.types import Series
from inference.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path

    from dicom_node.analysis import Findings
    from dicom_node.nifti import FileGrid
    from dicom_node.reading.reader import ImageReader
    from dicom_node.segment.inputs import Input
    from dicom_node.segment.model import Model
    from dicom_node.types import EncodedResult, Reconstruction, ResultContext, ResultRequest
    from inference.types import Segmentation, Segmenter, Volume

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
    """What the results shall hold: ``structures`` (all where empty, in any order), and which objects of DICOM input.

    ``unchecked_hu``: see :class:`~dicom_node.types.Series`.
    """

    structures: tuple[str, ...]
    results: ResultRequest | None
    unchecked_hu: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", tuple(sorted(set(self.structures))))


class FileCase:
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
        stages: Stages,
        beside: ThreadPoolExecutor,
        reader: ImageReader,
    ) -> None:
        self._entry = entry
        self._folder = folder
        self._loading = loading
        self._wanted = wanted
        self._stages = stages
        self._beside = beside
        self._reader = reader
        self._grid: FileGrid | None = None
        self._digest: Future[str] | None = None
        self.model = model.identity.name
        self.minimum = model.minimum
        self.structures = wanted.structures
        self.unchecked_hu = wanted.unchecked_hu
        self.started_at = datetime.now(UTC)
        self.produced: dict[str, Any] = {}
        """What the summary says about the results."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count the time of the block, and show it."""
        return self._stages.measured(name)

    def read(self) -> Series | Volume:
        """Open the files, those of DICOM in the child; their digest is made beside what follows."""
        entry = self._entry
        if isinstance(entry, DicomSeries):
            opened = entry.opened(self._reader.read(entry.paths, keep=True))
        else:
            opened = entry.read()
        self._grid = opened.grid
        self._digest = self._beside.submit(entry.content_digest)
        if isinstance(opened.images, Series):
            return replace(opened.images, unchecked_hu=self._wanted.unchecked_hu)
        return opened.images

    def reconstruct(self, series: Series) -> Reconstruction:
        """In the child: a file that crashes a decoder, or keeps it busy for ever, must not stop the inputs after it."""
        return self._reader.reconstruct(series)

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
        return context_of(self._content_digest(), self.structures, self.started_at, self._entry.missing)

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


class Stages:
    """How long each stage of one CT took, and where it is."""

    def __init__(self, on_progress: Callable[[float, str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._start = time.monotonic()

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Show the stage, and count the time of the block."""
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
        """Seconds since the beginning."""
        return round(time.monotonic() - self._start, 3)


def _import_encoder() -> None:
    """Loading highdicom takes half a second, which the network's first windows hide."""
    import dicom_node.encode.run  # noqa: F401, PLC0415
