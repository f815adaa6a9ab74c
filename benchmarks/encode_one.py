"""One measurement of ``benchmarks/encode.py``, in a separate process.

``python benchmarks/encode_one.py --folder FOLDER --object OBJECT --writer ours|highdicom [--keep FILE]`` prints JSON:
wall and CPU seconds, peak memory above what the series and its labels take, bytes written. A small series is encoded
first, because a node does so once and then for weeks finds the libraries' tables in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

sys.path.insert(0, str(Path(__file__).parents[1]))
from encode_inputs import SEG_CLASS, SEG_INSTANCE, SEG_SERIES, Case

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.reread import refuse_other_identity, reread
from dicom_node.encode.run import encode_in_turn, encoded_result
from dicom_node.encode.seg import attributes
from dicom_node.encode.seg.attributes import highdicom_segmentation
from dicom_node.encode.seg.descriptions import segment_description
from dicom_node.encode.segments import Finding, Segment, SegmentationReference, present_segments
from dicom_node.encode.source.series import PreparedSource, prepare
from dicom_node.encode.sr.check import refuse_other_measurements
from dicom_node.encode.sr.report import highdicom_report, report_file
from dicom_node.store.spool import Spool
from dicom_node.types import ResultContext, ResultKind, ResultRequest, SegmentationForm
from inference.structures import STRUCTURES, paper_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dicom_node.types import EncodedResult

NAMES = frozenset(paper_labels().values())
CONTOURED = tuple(each.name for each in STRUCTURES if each.group == "organ" and each.name in NAMES)[:20]
REQUESTS = {
    "BINARY": ResultRequest(report=False),
    "LABELMAP": ResultRequest(SegmentationForm.LABELMAP, report=False),
    "RTSTRUCT": ResultRequest(SegmentationForm.NONE, report=False, contours=CONTOURED),
    "capture": ResultRequest(SegmentationForm.NONE, report=False, capture=True),
    "PDF": ResultRequest(SegmentationForm.NONE, report=False, document=True),
    "all": ResultRequest(contours=CONTOURED, capture=True),
}
REFERENCE = SegmentationReference(SEG_CLASS, SEG_INSTANCE, SEG_SERIES)


def context() -> ResultContext:
    return ResultContext(datetime.now(UTC), 1, "00" * 32, "benchmark", "2.25.1")


def prepared(case: Case) -> tuple[PreparedSource, tuple[Segment, ...], Provenance]:
    about, model = context(), case.labels.model
    source = prepare(case.reconstruction)
    identity = RunIdentity.of(source.series_instance_uid, model, about)
    segments = present_segments(case.labels, case.measurements, identity)
    said = statements(about, model, len(source.planes), ())
    return source, segments, Provenance(identity, about, source, said)


def ours(case: Case, what: str, folder: Path) -> list[Path]:
    """The node's encode stage and its files made durable in the spool."""
    return [result.path for result, _ in Spool(folder).write_results(_our_results(case, what))]


def _our_results(case: Case, what: str) -> Iterable[EncodedResult]:
    if what == "SR":
        return [_our_report(case)]
    requests = {"pacs": REQUESTS[what]}
    return encode_in_turn(case.reconstruction, case.labels, case.measurements, context(), requests)


def _our_report(case: Case) -> EncodedResult:
    """The steps of :func:`encode_in_turn` for a report on a SEG that is not made with it."""
    source, segments, provenance = prepared(case)
    found = tuple(Finding(segment, REFERENCE) for segment in segments)
    content = report_file(found, (), provenance)
    refuse_other_measurements(content, found)
    dataset = reread(content)
    refuse_other_identity(dataset, source)
    return encoded_result(ResultKind.REPORT, dataset, content)


def highdicom(case: Case, what: str, folder: Path) -> list[Path]:
    """The same attributes made by highdicom from the whole label map, saved by pydicom, not checked."""
    source, segments, provenance = prepared(case)
    if what == "SR":
        found = tuple(Finding(segment, REFERENCE) for segment in segments)
        dataset = highdicom_report(found, found, (), provenance, source.instances)
    else:
        table = np.zeros(256, dtype=np.uint8)
        table[[segment.label for segment in segments]] = [segment.number for segment in segments]
        descriptions = [segment_description(segment, provenance.model) for segment in segments]
        kind = ResultKind.SEGMENTATION if what == "BINARY" else ResultKind.LABELMAP
        syntax = RLELossless if what == "LABELMAP" else ExplicitVRLittleEndian
        with patch.object(attributes, "ExplicitVRLittleEndian", syntax):
            numbers_zyx = table[case.labels.labels_zyx]
            dataset = highdicom_segmentation(kind, numbers_zyx, descriptions, provenance, source.planes)
        dataset["PixelData"].VR = "OB"
    path = folder / "highdicom.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return [path]


WRITERS: dict[str, Callable[[Case, str, Path], list[Path]]] = {"ours": ours, "highdicom": highdicom}


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--object", choices=[*REQUESTS, "SR"], required=True)
    parser.add_argument("--writer", choices=WRITERS, required=True)
    parser.add_argument("--keep", type=Path, help="where the first file goes")
    arguments = parser.parse_args()
    write, what = WRITERS[arguments.writer], arguments.object
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write(Case.small(arguments.folder), what, Path(folder))
    case = Case.read(arguments.folder)
    base = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the high-water mark
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        wall, cpu = time.perf_counter(), cpu_seconds()
        paths = write(case, what, Path(folder))
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        size = sum(path.stat().st_size for path in paths)
        if arguments.keep:
            shutil.copy(paths[0], arguments.keep)
    peak = resident_bytes("VmHWM") - base
    figures = {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "base_bytes": base, "bytes": size}
    print(json.dumps(figures | {"files": len(paths)}))


if __name__ == "__main__":
    main()
