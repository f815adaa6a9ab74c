"""One CT after the other: read, segment, measure, encode, write. One that is refused does not stop the others."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import structlog

from dicom_node import __version__
from dicom_node.encode.identity import derived_uid
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.segment import outputs
from dicom_node.types import ResultContext
from inference.errors import InferenceError
from inference.measure import measure
from inference.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from dicom_node.segment.inputs import Input, Scan
    from dicom_node.segment.model import Model
    from dicom_node.types import EncodedResult, ResultRequest
    from inference.nnunet.contract import EngineOptions
    from inference.types import Measurements, Segmenter

SEGMENTED, REFUSED = "segmented", "refused"
_STATION_NAME = "dicom-node"
_DEVICE_UID = derived_uid("dicom-node segment", "device")
"""The command keeps no ledger and hence no UID of an installation: its results name this one device everywhere."""
_COMPLETION_REASON = "these are all files that the segment command was given"
_READ, _SEGMENTED = 0.05, 0.9
"""Where these stages end on the progress bar."""


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
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="segment")
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
        started_at = datetime.now(UTC)
        stages = _Stages(on_progress)
        outputs.make_folder(folder)
        if self._loading is None:  # while the first one is read
            self._loading = self._beside.submit(self._model.load, self._options)
        status, reason, produced = SEGMENTED, None, dict[str, Any]()
        try:
            produced = self._work(entry, folder, started_at, stages)
        except ConfigurationError:
            raise
        except (DicomNodeError, InferenceError) as error:
            status, reason = REFUSED, str(error)
        except MemoryError:
            status, reason = REFUSED, "out of memory"
        except Exception as error:  # noqa: BLE001 - an input nobody foresaw must not stop the others
            structlog.get_logger().exception("input.crashed", kind=entry.facts["kind"])
            status, reason = REFUSED, f"unexpected {type(error).__name__}; the log tells where"
        if status == REFUSED:
            outputs.remove_earlier(folder)
        summary = {
            "status": status,
            "reason": reason,
            "statement": f"{self._model.identity.intended_use}. Research software, not a medical device.",
            "input": entry.facts,
            **self._asked(),
            **produced,
            "started_at": started_at.isoformat(),
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

    def _work(self, entry: Input, folder: Path, started_at: datetime, stages: _Stages) -> dict[str, Any]:
        with stages.measured("read", 0.0):
            scan = entry.read()
        asked = self._wanted.results
        if scan.reconstruction is not None and asked is not None:
            self._beside.submit(_import_encoder)
        with stages.measured("load", _READ):
            segmenter = self._loaded()
        with stages.measured("segment", _READ):
            upright = segmenter.segment(scan.volume, stages.part(_READ, _SEGMENTED))
            segmentation = self._wanted_part(scan, upright)
        # a model by rules has no stages, notes and backend to tell of
        stages.seconds |= {name: round(s, 3) for name, s in getattr(segmenter, "stage_seconds", {}).items()}
        with stages.measured("measure", _SEGMENTED):
            measurements = measure(scan.source, segmentation, with_shape=asked is not None and asked.shape)
        outputs.remove_earlier(folder)
        writing = self._beside.submit(outputs.write_label_map, folder, segmentation, scan.grid)
        results: list[dict[str, str]] = []
        try:
            if scan.reconstruction is not None and asked is not None:
                with stages.measured("encode", _SEGMENTED):
                    encoded = self._encoded(scan, segmentation, measurements, started_at, asked)
                    results = outputs.write_results(folder, encoded)
            with stages.measured("write", 1.0):
                outputs.write_measurements(folder, measurements)
        finally:
            wait([writing])  # also where encoding fails: what is refused leaves no file behind
        writing.result()
        geometry = scan.source.geometry
        return {
            "content_sha256": scan.content_digest,
            "grid": {"shape_zyx": geometry.shape_zyx, "spacing_xyz_mm": geometry.spacing_xyz_mm},
            "notes": [*(scan.reconstruction.notes if scan.reconstruction else ()), *getattr(segmenter, "notes", ())],
            "backend": getattr(segmenter, "description", None),
            "structures_found": len(measurements.structures),
            "results": results,
        }

    def _loaded(self) -> Segmenter:
        assert self._loading is not None
        try:
            return self._loading.result()
        except InferenceError as error:
            raise ConfigurationError(f"model {self._model.identity.name}: {error}") from error

    def _wanted_part(self, scan: Scan, upright: Segmentation) -> Segmentation:
        labels, names = scan.on_source(upright.labels_zyx), dict(upright.names_by_label)
        if self._wanted.structures:
            names = {label: name for label, name in names.items() if name in self._wanted.structures}
            kept = np.zeros(256, np.uint8)
            kept[list(names)] = list(names)
            labels = kept[labels]
        return Segmentation(labels, scan.source.geometry, names, upright.model)

    def _encoded(
        self,
        scan: Scan,
        segmentation: Segmentation,
        measurements: Measurements,
        started_at: datetime,
        asked: ResultRequest,
    ) -> Sequence[EncodedResult]:
        from dicom_node.encode.run import encode  # noqa: PLC0415 - loads highdicom, for DICOM input only

        assert scan.reconstruction is not None
        context = ResultContext(
            started_at=started_at,
            revision=1,
            content_digest=self._run_digest(scan.content_digest),
            station_name=_STATION_NAME,
            device_uid=_DEVICE_UID,
            completion_reason=_COMPLETION_REASON,
        )
        return encode(scan.reconstruction, segmentation, measurements, context, {"files": asked})

    def _run_digest(self, content_digest: str) -> str:
        """What, beside the identity of the model, the UIDs derive from: the input, and the choice of structures.

        Anything that changes the answer makes other UIDs, so that no archive takes two answers for one instance.
        """
        if not self._wanted.structures:
            return content_digest  # as a node
        return hashlib.sha256(json.dumps([content_digest, *self._wanted.structures]).encode()).hexdigest()


class _Stages:
    """How long each stage of one CT took, and where it is."""

    def __init__(self, on_progress: Callable[[float, str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._start = time.monotonic()

    @contextmanager
    def measured(self, name: str, fraction: float) -> Iterator[None]:
        self._on_progress(fraction, name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)

    def part(self, first: float, last: float) -> Callable[[float, str], None]:
        """Progress of one stage as a part of the whole."""
        return lambda fraction, stage: self._on_progress(first + (last - first) * fraction, stage)

    def total(self) -> float:
        return round(time.monotonic() - self._start, 3)


def _peak_rss_bytes() -> int:
    """Of this process alone; getrusage's maximum also counts what the process was before it became this program."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _import_encoder() -> None:
    """Loading highdicom takes half a second, which the network's first windows hide."""
    import dicom_node.encode.run  # noqa: F401, PLC0415
