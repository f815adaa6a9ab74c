"""How long and how much memory does it take to encode a series of 104 structures, beside highdicom alone?

``python benchmarks/encode.py [--planes N] [--rounds R]``. The volume is 512 x 512 x N with 104 structures of 100 planes
each (10,400 BINARY frames at the default of 400 planes). Every measurement is a process of its own, ours and
highdicom's in turn in each round, so that the ratios hold where the absolute figures drift; the median of the rounds is
printed. "ours" is the node's whole encode stage for that object, read back and checked, and its file made durable in
the spool; "highdicom" is the same attributes made by highdicom from the whole label map and saved by pydicom, not
checked (the label map not compressed). Each process encodes a
small series first, because a node does so once and then for weeks finds the libraries' tables in memory.
CPU seconds are of the process, user and system; peak memory is above what the labels and headers take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.encode.check import (
    refuse_other_identity,
    refuse_other_labelmap,
    refuse_other_labels,
    refuse_other_measurements,
    reread,
)
from dicom_node.encode.encode import encoded_result
from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.labelmap import labelmap_file
from dicom_node.encode.part10 import file_of
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.seg import highdicom_segmentation, segment_description, segmentation_file
from dicom_node.encode.segments import Finding, Segment, SegmentationReference, present_segments
from dicom_node.encode.source import PreparedSource, prepare
from dicom_node.encode.sr import highdicom_report, report_file
from dicom_node.store.spool import Spool
from dicom_node.types import Reconstruction, ResultContext, ResultKind, SourceFrame
from inference.measure import measure
from inference.structures import paper_labels
from inference.types import Geometry, Measurements, ModelIdentity, Segmentation, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 512
STRUCTURES_WIDE, STRUCTURES_HIGH = 13, 8
CASES = ("SEG BINARY", "LABELMAP", "SR")
REFERENCE = SegmentationReference("1.2.840.10008.5.1.4.1.1.66.4", "1.2.4", "1.2.5")
WRITERS = ("highdicom", "ours")
ROUND_LIMIT_S = 300


class Case:
    """One run with everything that its results are made from."""

    def __init__(self, planes: int) -> None:
        grid = Geometry((planes, ROWS, ROWS), np.diag([0.8, 0.8, 1.5, 1.0]))
        volume = Volume(np.zeros(grid.shape_zyx, dtype=np.int16), grid)
        headers = tuple(header(k) for k in range(planes))
        frames = tuple(SourceFrame(each.SOPInstanceUID, CTImageStorage) for each in headers)
        self.reconstruction = Reconstruction(volume=volume, source=volume, frames=frames, headers=headers)
        self.model = ModelIdentity("benchmark", "1", "00" * 32, "nnU-Net")
        self.labels = Segmentation(labels_of(grid.shape_zyx), grid, paper_labels(), self.model)
        self.measurements: Measurements = measure(volume, self.labels)

    def prepared(self) -> tuple[PreparedSource, tuple[Segment, ...], Provenance]:
        context = ResultContext(datetime.now(UTC), 1, "00" * 32, "benchmark", "2.25.1")
        source = prepare(self.reconstruction)
        identity = RunIdentity.of(source.series_instance_uid, self.model, context)
        segments = present_segments(self.labels, self.measurements, identity)
        said = statements(context, self.model, len(source.planes), ())
        return source, segments, Provenance(identity, context, source, said)


def header(k: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.PatientName = dataset.PatientID = "BENCHMARK"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
    dataset.ImagePositionPatient = [0, 0, 1.5 * k]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.8, 0.8]
    dataset.Rows = dataset.Columns = ROWS
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dcmread(BytesIO(file_of(dataset)))  # as the node gets them: what nobody looks at stays bytes


def labels_of(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """104 ellipsoids, each over a quarter of the planes, with a rough surface."""
    labels = np.zeros(shape_zyx, dtype=np.uint8)
    planes = shape_zyx[0] // 4
    height, width = ROWS // STRUCTURES_HIGH, ROWS // STRUCTURES_WIDE
    z, y, x = np.ogrid[-1 : 1 : planes * 1j, -1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rough = np.random.default_rng(0).normal(1.5, 0.1, (planes, height, width))
    inside = 0.3 * z**2 + y**2 + x**2 < rough
    for index, label in enumerate(sorted(paper_labels())):
        row, column = divmod(index, STRUCTURES_WIDE)
        first = index * 7 % (shape_zyx[0] - planes + 1)
        box = labels[first : first + planes, row * height : (row + 1) * height, column * width : (column + 1) * width]
        box[inside] = label
    return labels


def ours(case: Case, kind: str, folder: Path) -> Path:
    source, segments, provenance = case.prepared()
    labels_zyx = case.labels.labels_zyx
    if kind == "SR":
        found = tuple(Finding(segment, REFERENCE) for segment in segments)
        content = report_file(found, (), provenance)
        refuse_other_measurements(content, found)
    elif kind == "LABELMAP":
        content = labelmap_file(labels_zyx, segments, provenance)
        refuse_other_labelmap(content, labels_zyx, segments, source)
    else:
        content = segmentation_file(labels_zyx, segments, provenance)
        refuse_other_labels(content, labels_zyx, segments, source)
    dataset = reread(content)
    refuse_other_identity(dataset, source)
    result, _ = Spool(folder).write_result(encoded_result(ResultKind(kind.split(maxsplit=1)[0]), dataset, content))
    return result.path


def highdicom(case: Case, kind: str, folder: Path) -> Path:
    source, segments, provenance = case.prepared()
    if kind == "SR":
        found = tuple(Finding(segment, REFERENCE) for segment in segments)
        dataset = highdicom_report(found, found, (), provenance, source.instances)
    else:
        table = np.zeros(256, dtype=np.uint8)
        table[[segment.label for segment in segments]] = [segment.number for segment in segments]
        descriptions = [segment_description(segment, provenance.model) for segment in segments]
        result = ResultKind(kind.split(maxsplit=1)[0])
        numbers_zyx = table[case.labels.labels_zyx]
        dataset = highdicom_segmentation(result, numbers_zyx, descriptions, provenance, source.planes)
        dataset["PixelData"].VR = "OB"
    path = folder / "highdicom.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def one_measurement(planes: int, kind: str, writer: str) -> None:
    """In a process of its own: prints wall and CPU seconds, peak MB above the start, bytes of the file."""
    encode: Callable[[Case, str, Path], Path] = {"ours": ours, "highdicom": highdicom}[writer]
    with tempfile.TemporaryDirectory() as folder:
        encode(Case(8), kind, Path(folder))
    case = Case(planes)
    base = resident_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), cpu_seconds()
        path = encode(case, kind, Path(folder))
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        size = path.stat().st_size
    peak = (resident_kb("VmHWM") - base) / 1024
    print(json.dumps({"wall s": wall, "CPU s": cpu, "peak MB": peak, "file MB": size / 1e6}))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("OBJECT", "WRITER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_measurement(arguments.planes, *arguments.one)
        return
    print("| object | writer | wall s | CPU s | peak MB | file MB |\n|---|---|---|---|---|---|")
    for kind in CASES:
        rounds: dict[str, list[dict[str, float]]] = {writer: [] for writer in WRITERS}
        for _ in range(arguments.rounds):
            for writer in WRITERS:
                command = [sys.executable, __file__, "--planes", str(arguments.planes), "--one", kind, writer]
                done = subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.PIPE,
                    timeout=ROUND_LIMIT_S,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                rounds[writer].append(json.loads(done.stdout))
        for writer, figures in rounds.items():
            medians = [statistics.median(figure[key] for figure in figures) for key in figures[0]]
            print(f"| {kind} | {writer} | " + " | ".join(f"{median:.2f}" for median in medians) + " |")


if __name__ == "__main__":
    main()
