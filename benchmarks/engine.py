"""Compares TotalSegmentator and this engine in one run, on the same weights and the same CT.

    python benchmarks/engine.py --peer ENVIRONMENT --ct CT.nii.gz --work FOLDER
        --report docs/developers/engine-benchmark.md --json benchmarks/results/engine-benchmark.json

ENVIRONMENT is a virtual environment with ``TotalSegmentator==2.18.0`` and ``highdicom``, and CT.nii.gz any CT (the
figures in docs/ are of the example in TotalSegmentator's own repository). Inputs and models are made once in FOLDER.

Every measurement is a separate process: wall and CPU seconds (user and system, including children) and the peak of the
largest process, as counted by the kernel. Programs take turns in each round, so that the ratios hold even if absolute
figures drift; medians are reported. "new process" is the whole command line; "warm" is the second segmentation in one
process, from HU in memory to labels on the source grid, as in a node's worker. This parent process imports nothing
large, because a child's peak memory starts at its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEER_LABELS = (
    "import json; from totalsegmentator.map_to_binary import class_map, class_map_5_parts as parts; "
    "print(json.dumps({'total': list(class_map['total'].values()), "
    "'parts': {name: list(part.values()) for name, part in parts.items()}}))"
)
PEER_VERSIONS = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({p: version(p) for p in ('TotalSegmentator', 'nnunetv2', 'torch')}))"
)
PEER_STAGE = re.compile(r"^\s*(Resampled|Predicted|Saved|calculated) in ([0-9.]+)s", re.MULTILINE)
RUN_LIMIT_S = 2 * 3600


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison. ``models`` is the kind of weights, ``package`` their name when installed."""

    title: str
    source: str
    models: str
    package: str
    task: str
    peer_options: tuple[str, ...]

    @property
    def dicom_out(self) -> bool:
        return "dicom_seg" in self.peer_options


CASES = {
    "3mm": Case("3 mm, 117 structures", "ct", "3mm", "total_3mm", "total_3mm", ("-ml", "-f")),
    "1.5mm": Case("1.5 mm, five parts, 117 structures", "ct", "1.5mm", "total", "total", ("-ml",)),
    "dicom": Case(
        "DICOM series to SEG and SR, demo model at 3 mm",
        "ct/dicom",
        "demo",
        "demo_3mm",
        "total_3mm",
        ("-ot", "dicom_seg", "-f"),
    ),
    "phantom": Case("phantom, demo model at 3 mm", "phantom", "demo", "demo_3mm", "total_3mm", ("-ml", "-f")),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources used by one process and its children."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


class Bench:
    """The folder of one benchmark and the programs that work in it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.peer: Path = arguments.peer
        self.ct: Path | None = arguments.ct
        self.shape: list[int] = arguments.shape
        self.device: str = arguments.device
        self.rounds: int = arguments.rounds
        self.times_only: bool = arguments.times_only
        self.work.mkdir(parents=True, exist_ok=True)
        self.labels = self.work / "peer-labels.json"
        if not self.labels.exists():
            self.labels.write_text(last_line(run([self.peer / "bin" / "python", "-c", PEER_LABELS]).output))
        total = json.loads(self.labels.read_text())["total"]
        self.peer_names = self.work / "peer-names.json"
        self.peer_names.write_text(json.dumps({index + 1: name for index, name in enumerate(total)}))

    # ---- inputs

    def input(self, case: Case) -> Path:
        """The CT of ``case``, made if missing."""
        if case.source == "phantom":
            folder = self.work / "phantom"
            if not (folder / "nifti" / "ct.nii.gz").exists():
                step("engine_inputs.py", "phantom", "--out", folder)
            return folder / "nifti" / "ct.nii.gz"
        folder = self.work / "ct"
        if not (folder / "dicom").exists():
            if self.ct is None:
                raise SystemExit("this case needs a CT: --ct CT.nii.gz")
            step("engine_inputs.py", "ct", "--source", self.ct, "--out", folder, "--shape", *self.shape)
        return folder / "dicom" if case.source == "ct/dicom" else folder / "ct.nii.gz"

    def home(self, case: Case) -> Path:
        """TotalSegmentator's home folder with the weights of ``case``."""
        home = self.work / f"home-{case.models}"
        if not (home / "config.json").exists():
            step("engine_inputs.py", "models", "--home", home, "--labels", self.labels, case.models)
        return home

    def package(self, case: Case) -> Path:
        """The same weights, installed as a package."""
        folder = self.work / "packages" / case.package
        if not folder.exists():
            where = ("--home", self.home(case), "--library", folder.parent)
            step("engine_inputs.py", "package", *where, "--task", case.task, "--name", case.package)
        return folder

    # ---- measurements

    def run_peer(self, case: Case) -> tuple[Usage, Path]:
        """Run TotalSegmentator's command line; returns its label map."""
        out = fresh(self.work / "peer-out" / case.package)
        target = out if case.dicom_out else out / "labels.nii.gz"
        device = "gpu" if self.device == "cuda" else self.device
        command = [self.peer / "bin" / "TotalSegmentator", "-i", self.input(case), "-o", target, *case.peer_options]
        environment = {**os.environ, "TOTALSEG_HOME_DIR": str(self.home(case).resolve())}
        usage = run([*command, "-d", device, "--statistics"], environment)
        (found,) = out.glob("*.dcm" if case.dicom_out else "*.nii.gz")
        return usage, found

    def run_command(self, case: Case, *options: str) -> tuple[Usage, dict[str, Any], Path]:
        """Run our command line; returns its summary and its label map."""
        out = fresh(self.work / "our-out" / case.package)
        usage = run(
            [
                *(node_command(), "segment", self.input(case), "--out", out),
                *("--model", self.package(case), "--device", self.device, *options),
            ]
        )
        (summary,) = out.rglob("summary.json")
        found = summary.parent / ("segmentation.dcm" if case.dicom_out else "labels.nii.gz")
        return usage, json.loads(summary.read_text()), found

    def run_warm(self, case: Case, labels: Path, *options: str, runs: int = 2) -> dict[str, Any]:
        """Run our engine inside one process; returns what it printed."""
        done = run(
            [
                *(sys.executable, HERE / "engine_ours.py", "--package", self.package(case)),
                *("--input", self.input(case), "--labels", labels, "--runs", str(runs)),
                *("--device", self.device, "--cache", self.work / "cache", *options),
            ]
        )
        answer: dict[str, Any] = json.loads(last_line(done.output))
        labels.with_suffix(".json").write_text(json.dumps(answer["names"]))
        return answer

    def measure(self, name: str) -> dict[str, Any]:
        """Run all rounds of a case, then compare the label maps."""
        case = CASES[name]
        self.package(case)
        self.input(case)
        best, parity, precise = (self.work / f"{name}-{kind}.npy" for kind in ("best", "parity", "precise"))
        rounds = []
        for number in range(self.rounds):
            peer, peer_map = self.run_peer(case)
            say(name, number, "TotalSegmentator", peer.wall_s)
            cold, summary, our_map = self.run_command(case)
            say(name, number, "ours, new process", cold.wall_s)
            warm = self.run_warm(case, best, runs=1) if self.times_only else self.run_warm(case, best)
            say(name, number, "ours, warm", warm["runs"][-1]["wall_s"])
            stages = {key: float(value) for key, value in PEER_STAGE.findall(peer.output)}
            rounds.append(
                {
                    "peer": {**facts(peer), "stages_s": stages},
                    "cold": {**facts(cold), "summary": summary},
                    "warm": {
                        **warm["runs"][-1],
                        "peak_bytes": warm["peak_bytes"],
                        "load_s": warm["load_s"],
                        "windows": warm["windows"],
                    },
                }
            )
        result: dict[str, Any] = {"title": case.title, "rounds": rounds, "agreement": {}}
        if self.times_only:
            return result
        if case.dicom_out:
            by_default = compare(peer_map, our_map)
            _, _, our_map = self.run_command(case, "--parity", "--precision", "float32")
            result["agreement"] = {
                "SEG of parity mode with TotalSegmentator's": compare(peer_map, our_map),
                "SEG of the default answer with TotalSegmentator's": by_default,
            }
            return result
        peer_pair, best_pair = (peer_map, self.peer_names), (best, best.with_suffix(".json"))
        self.run_warm(case, parity, "--parity", "--precision", "float32", runs=1)
        say(name, 0, "parity mode done", 0.0)
        self.run_warm(case, precise, "--precision", "float32", runs=1)
        result["agreement"] = {
            "parity mode with TotalSegmentator": compare(*peer_pair, parity, parity.with_suffix(".json")),
            "default answer with TotalSegmentator": compare(*peer_pair, *best_pair),
            "default answer with itself in float32": compare(precise, precise.with_suffix(".json"), *best_pair),
        }
        return result


def compare(first: Path, first_names: Path, second: Path | None = None, second_names: Path | None = None) -> Any:
    """Agreement of two label maps; SEGs contain their own names."""
    files = (first, "-", first_names, "-") if second is None else (first, first_names, second, second_names or "-")
    return json.loads(last_line(step("engine_compare.py", *files).output))


def step(script: str, *arguments: Any) -> Usage:
    """Run one of the scripts next to this one in a separate process."""
    return run([sys.executable, HERE / script, *arguments])


def run(command: list[Any], environment: dict[str, str] | None = None) -> Usage:
    """Run to the end; if it fails, the error contains its output."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output[-4000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)


def node_command() -> Path:
    return Path(sys.executable).parent / "dicom-node"


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def facts(usage: Usage) -> dict[str, float]:
    return {key: value for key, value in asdict(usage).items() if key != "output"}


def say(case: str, number: int, what: str, seconds: float) -> None:
    print(f"{case}, round {number + 1}: {what} {seconds:.1f} s", file=sys.stderr, flush=True)


# ---- the report


def median(rounds: list[dict[str, Any]], program: str, key: str) -> float:
    return statistics.median(entry[program][key] for entry in rounds)


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| case | | wall s | times as fast | CPU s | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        rounds = result["rounds"]
        titles = {"peer": "TotalSegmentator, new process", "cold": "ours, new process", "warm": "**ours, warm**"}
        if CASES[name].dicom_out:  # the warm figure excludes DICOM, so it cannot be compared
            del titles["warm"]
        for program, title in titles.items():
            wall, cpu, peak = (median(rounds, program, key) for key in ("wall_s", "cpu_s", "peak_bytes"))
            ratios = [entry["peer"]["wall_s"] / entry[program]["wall_s"] for entry in rounds]
            ratio = "" if program == "peer" else f"{statistics.median(ratios):.1f}"
            case = result["title"] if program == "peer" else ""
            lines.append(f"| {case} | {title} | {wall:.1f} | {ratio} | {cpu:.1f} | {peak / 1e9:.2f} |")
    return lines


def agreement_table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| case | compared | equal voxels | different | mean Dice |", "|---|---|---|---|---|"]
    lines += [
        f"| {result['title']} | {what} | {100 * seen['equal']:.4f} % | {seen['different']} of {seen['voxels']} "
        f"| {seen['mean_dice']:.4f} ({seen['structures']} structures) |"
        for result in results.values()
        for what, seen in result["agreement"].items()
    ]
    return lines


def stage_table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| case | program | stages, s (last round) |", "|---|---|---|"]
    for result in results.values():
        last = result["rounds"][-1]
        for title, stages in (
            ("TotalSegmentator", last["peer"]["stages_s"]),
            ("ours, new process", last["cold"]["summary"]["stage_seconds"]),
            ("ours, warm", last["warm"]["stages_s"]),
        ):
            said = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
            lines.append(f"| {result['title']} | {title} | {said} |")
    return lines


def floor_table(results: dict[str, dict[str, Any]], floor: dict[str, Any], rate: str) -> list[str]:
    """Windows times their operations divided by the machine's rate, next to the warm time."""
    lines = [
        "| case | windows | TFLOP per window | floor s | warm s | floor / warm |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        windows = result["rounds"][-1]["warm"].get("windows")
        if windows is None:
            continue
        flop = floor["flop_per_window"][CASES[name].package]
        total = sum(windows[part] * operations for part, operations in flop.items())
        seconds, warm = total / floor["flop_per_s"][rate], median(result["rounds"], "warm", "wall_s")
        each = statistics.mean(flop.values()) / 1e12
        count = " + ".join(str(windows[part]) for part in flop)
        lines.append(
            f"| {result['title']} | {count} | {each:.3f} | {seconds:.1f} | {warm:.1f} | {seconds / warm:.0%} |"
        )
    return lines


def report(content: dict[str, Any]) -> str:
    results, floor = content["results"], content["floor"]
    rates = ", ".join(f"{precision} {rate / 1e9:.0f} GFLOP/s" for precision, rate in floor["flop_per_s"].items())
    fastest = max(floor["flop_per_s"], key=floor["flop_per_s"].get)
    peer = ", ".join(f"{name} {version}" for name, version in content["peer"].items())
    how = f"Medians of {content['rounds']} alternating rounds; load average at the start {content['load']:.1f}"
    if content["times_only"]:
        how += "; times only, so `warm` is the first volume of a loaded model"
    lines = [
        "# The engine, compared with TotalSegmentator",
        "",
        f"Written by `{content['command']}` on {content['date']}: {content['machine']}.",
        f"Peer: {peer}. CT: {content['ct']}. {how}.",
        "",
        *table(results),
        "",
        *(["## Agreement", "", *agreement_table(results), ""] if not content["times_only"] else []),
        "## Where the time goes",
        "",
        *stage_table(results),
        "",
        f"One large convolution on this machine: {rates}. The floor is the time of all windows at {fastest} alone.",
        "",
        *floor_table(results, floor, fastest),
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GB, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment with TotalSegmentator")
    parser.add_argument("--ct", type=Path, help="NIfTI CT for all cases except `phantom`")
    parser.add_argument("--case", nargs="+", choices=[*CASES, "all"], default=["all"])
    parser.add_argument("--shape", type=int, nargs=3, default=(280, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--times-only", action="store_true", help="skip the parity and float32 runs: saves half an hour for 1.5 mm"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs, models and results")
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    bench = Bench(arguments)
    names = list(CASES) if "all" in arguments.case else arguments.case
    content: dict[str, Any] = {
        "command": f"python benchmarks/engine.py --case {' '.join(names)} --rounds {arguments.rounds} "
        f"--device {arguments.device}{' --times-only' if arguments.times_only else ''}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load": load,
        "ct": f"{arguments.ct.name if arguments.ct else 'none'} as {' x '.join(map(str, arguments.shape))} (z, y, x)",
        "peer": json.loads(last_line(run([arguments.peer / "bin" / "python", "-c", PEER_VERSIONS]).output)),
        "rounds": arguments.rounds,
        "times_only": arguments.times_only,
        "results": {name: bench.measure(name) for name in names},
    }
    packages = sorted({bench.package(CASES[name]) for name in names})
    done = step("engine_floor.py", *packages, "--device", arguments.device)
    content["floor"] = json.loads(last_line(done.output))
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    arguments.report.write_text(report(content))
    print(arguments.report.read_text())


if __name__ == "__main__":
    main()
