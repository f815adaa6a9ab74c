"""Measures time and memory to encode a series with 104 structures, compared with other programs.

    python benchmarks/encode.py --work FOLDER --report docs/developers/encode-benchmark.md
        --json benchmarks/results/encode-benchmark.json --totalsegmentator PYTHON

PYTHON is the interpreter of an environment with ``TotalSegmentator==2.18.0`` and ``highdicom``; without it, that writer
is left out. dcmqi is one of the tests' dependencies.

The series, made in FOLDER, is 512 x 512 x 400 with 104 structures, which give 10,400 BINARY frames. Every measurement
is a separate process, and the writers take turns in each round, so that the ratios hold even if absolute figures drift;
medians are reported. The slowest writers run in the first round only.

"ours" is the node's whole encode stage for that object: checking the source, reading the object back and comparing it
with the labels, and making its file durable in the spool. "highdicom" makes the same attributes with highdicom from the
whole label map and saves them with pydicom, without a check. Both start with libraries and labels in memory, as does
TotalSegmentator's writer, and memory is counted above that. dcmqi's programs are whole processes that read the labels
from a file.

This parent process imports nothing large, because a child's peak memory starts at its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from engine import HERE, last_line, machine, run, say

OBJECTS = {
    "BINARY": "SEG BINARY, all structures",
    "LABELMAP": "SEG LABELMAP, RLE",
    "SR": "TID 1500 SR",
    "RTSTRUCT": "RTSTRUCT, 20 structures",
    "capture": "secondary captures: pages and overlays",
    "PDF": "PDF of the pages",
    "all": "SEG, SR, RTSTRUCT of 20 and captures of one series",
}
SLOW = {("BINARY", "dcmqi"), ("BINARY", "TotalSegmentator")}
BARS = {
    "BINARY": "at most 2 s CPU, +450 MB, 5 x as fast as highdicom",
    "LABELMAP": "at most 0.5 s CPU, +110 MB",
    "SR": "at most 0.2 s CPU",
    "all": "at most 5 s wall on 2 cores",
}
SERVED = ("BINARY", "LABELMAP")
OURS = "ours"


class Writer(NamedTuple):
    name: str
    objects: tuple[str, ...]


class Bench:
    """The folder of one benchmark and the programs that work in it."""

    def __init__(self, work: Path, totalsegmentator: Path | None) -> None:
        self.work = work
        self.totalsegmentator = totalsegmentator
        self.writers = [
            Writer(OURS, tuple(OBJECTS)),
            Writer("highdicom", ("BINARY", "LABELMAP", "SR")),
            *([Writer("dcmqi", ("BINARY", "LABELMAP", "SR"))] if find_spec("dcmqi") else []),
            *([Writer("TotalSegmentator", ("BINARY",))] if totalsegmentator else []),
        ]

    def measure(self, what: str, writer: str) -> dict[str, float]:
        """Make one measurement; for dcmqi, the kernel's figures for the whole process."""
        if writer == "dcmqi":
            return self._dcmqi(what)
        if writer == "TotalSegmentator":
            command = [self.totalsegmentator, HERE / "encode_totalsegmentator.py", self.work]
        else:
            command = [sys.executable, HERE / "encode_one.py", "--folder", self.work]
            command += ["--object", what, "--writer", writer]
        if writer == OURS and what in SERVED:
            command += ["--keep", self.work / f"{what}.dcm"]
        figures: dict[str, float] = json.loads(last_line(run(command).output))
        return figures

    def _dcmqi(self, what: str) -> dict[str, float]:
        programs = Path(sys.executable).parent
        written, series = self.work / "dcmqi.dcm", self.work / "ct"
        if what == "SR":
            command = [programs / "tid1500writer", "--inputMetadata", self.work / "report.json"]
            command += ["--inputCompositeContextDirectory", series, "--inputImageLibraryDirectory", series]
        else:
            command = [programs / "itkimage2segimage", "--inputMetadata", self.work / "segments.json"]
            command += ["--inputImageList", self.work / "labels.nrrd", "--inputDICOMDirectory", series]
            command += ["--segmentationType", what.lower()]
        usage = run([*command, "--outputDICOM", written])
        size = written.stat().st_size
        written.unlink()
        return {"wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_bytes": usage.peak_bytes, "bytes": size, "files": 1}

    def rounds(self, number_of_rounds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
        """The figures of each round, by object and writer."""
        found: dict[str, dict[str, list[dict[str, float]]]] = {what: {} for what in OBJECTS}
        for number in range(number_of_rounds):
            for what in OBJECTS:
                for writer in self.writers:
                    if what not in writer.objects or (number and (what, writer.name) in SLOW):
                        continue
                    figures = self.measure(what, writer.name)
                    say(what, number, writer.name, figures["wall_s"])
                    found[what].setdefault(writer.name, []).append(figures)
        return found


# ---- the report


def median(rounds: list[dict[str, float]], key: str) -> float:
    return statistics.median(figures[key] for figures in rounds)


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> list[str]:
    lines = [
        "| object | writer | wall s | CPU s | CPU / ours | peak MB | MB (files) |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, by_writer in results.items():
        for writer, rounds in by_writer.items():
            wall, cpu, peak = (median(rounds, key) for key in ("wall_s", "cpu_s", "peak_bytes"))
            ratios = [own["cpu_s"] / our["cpu_s"] for own, our in zip(rounds, by_writer[OURS], strict=False)]
            ratio = "" if writer == OURS else f"{statistics.median(ratios):.1f}"
            title, name = (OBJECTS[what], f"**{OURS}**") if writer == OURS else ("", writer)
            name += ", whole process" if writer == "dcmqi" else ""
            files = f"{rounds[0]['bytes'] / 1e6:.1f}" + (f" ({rounds[0]['files']})" if rounds[0]["files"] > 1 else "")
            lines.append(f"| {title} | {name} | {wall:.2f} | {cpu:.2f} | {ratio} | {peak / 1e6:.0f} | {files} |")
    return lines


def bars(results: dict[str, dict[str, list[dict[str, float]]]]) -> list[str]:
    lines = ["| object | target | measured |", "|---|---|---|"]
    for what, asked in BARS.items():
        rounds = results[what][OURS]
        wall, cpu, peak = (median(rounds, key) for key in ("wall_s", "cpu_s", "peak_bytes"))
        said = f"{wall:.2f} s wall, {cpu:.2f} s CPU, +{peak / 1e6:.0f} MB"
        if "highdicom" in results[what]:
            pairs = zip(results[what]["highdicom"], rounds, strict=True)
            said += f", {statistics.median(own['wall_s'] / our['wall_s'] for own, our in pairs):.1f} x as fast (wall)"
        lines.append(f"| {OBJECTS[what]} | {asked} | {said} |")
    return lines


def serving_table(serving: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| SEG | frames | store, s | series metadata, s | one frame, ms |",
        "|---|---|---|---|---|",
    ]
    for what, seen in serving.items():
        lines.append(
            f"| {OBJECTS[what]} | {seen['frames']} | {seen['store_s']:.1f} | {seen['metadata_s']:.2f} "
            f"| {seen['frame_ms']:.0f} |"
        )
    return lines


def report(content: dict[str, Any]) -> str:
    peers = ", ".join(f"{name} {number}" for name, number in content["peers"].items())
    served = next(iter(content["serving"].values()), None)
    lines = [
        "# Encoding, compared with other writers",
        "",
        f"Written by `{content['command']}` on {content['date']}: {content['machine']}.",
        f"Medians of {content['rounds']} alternating rounds; dcmqi and TotalSegmentator wrote BINARY once.",
        f"Load average at the start: {content['load']:.1f}. Peers: {peers}{content['absent']}.",
        f"One series of 512 x 512 x {content['planes']}, 104 structures.",
        "",
        *table(content["results"]),
        "",
        "Peak memory does not count the series and its labels, except for dcmqi (whole process). Ours includes the",
        "check of the source, the read-back and fsync. pydicom encodes highdicom's RLE: GDCM is faster but aborts the",
        "process on frames of an odd size. dcmqi's label map is not compressed.",
        "",
        "## Targets",
        "",
        *bars(content["results"]),
        "",
        "## Serving a viewer",
        "",
    ]
    if served is None:
        lines += ["Not measured: Orthanc with its DICOMweb plugin is not installed.", ""]
    else:
        lines += [
            f"Orthanc {served['orthanc']} with the DICOMweb plugin: STOW-RS, `/metadata`, and `/frames/N` (median of",
            f"{served['frames_asked']} frames, each requested once).",
            "",
            *serving_table(content["serving"]),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the series and the results")
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--totalsegmentator", type=Path, metavar="PYTHON", help="if not given, that writer is left out")
    parser.add_argument("--planes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=5, help="how many frames to request from Orthanc")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    work: Path = arguments.work
    run([sys.executable, HERE / "encode_inputs.py", "--folder", work, "--planes", arguments.planes])
    bench = Bench(work, arguments.totalsegmentator)
    names = {writer.name for writer in bench.writers}
    peers = {name: version(name) for name in ("highdicom", "dcmqi", "pydicom") if find_spec(name)}
    if arguments.totalsegmentator:
        asked = "from importlib.metadata import version; print(version('TotalSegmentator'))"
        peers["TotalSegmentator"] = last_line(run([arguments.totalsegmentator, "-c", asked]).output)
    missing = sorted({"dcmqi", "TotalSegmentator"} - names)
    absent = f"; not given and left out: {', '.join(missing)}" if missing else ""
    results = bench.rounds(arguments.rounds)
    segs = [work / f"{what}.dcm" for what in SERVED]
    command = [sys.executable, HERE / "encode_serve.py", "--folder", work, "--frames", arguments.frames, *segs]
    content = {
        "command": f"python benchmarks/encode.py --planes {arguments.planes} --rounds {arguments.rounds}"
        f"{' --totalsegmentator PYTHON' if arguments.totalsegmentator else ''}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load": load,
        "planes": arguments.planes,
        "rounds": arguments.rounds,
        "peers": peers,
        "absent": absent,
        "results": results,
        "serving": json.loads(last_line(run(command).output)),
    }
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    arguments.report.write_text(report(content))
    print(arguments.report.read_text())


if __name__ == "__main__":
    main()
