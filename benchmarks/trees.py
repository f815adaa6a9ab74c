"""Checks whether this checkout is as fast as an earlier one: both do the same work alternately, compared pair by pair.

``python benchmarks/trees.py OLD NEW --package FOLDER --ct FILE [--case demo receive encode engine] [--pairs 9]``. OLD
and NEW are checkouts with their own ``.venv``; FOLDER is a model package and FILE a CT for the engine. Each figure is
from a separate process: ``demo`` is the whole of ``dicom-node demo``, ``receive`` the time in which one and then
four senders (DCMTK's storescu) bring 512 x 512 slices to ``dicom-node listen``, ``encode`` the CPU seconds of SEG, SR,
RTSTRUCT of 20 structures and captures of 104 structures, ``engine`` a warm segmentation. Nothing else may run on the
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from receive import free_port, instances_per_second, running, write_series

if TYPE_CHECKING:
    from collections.abc import Callable

SENDERS = 4


def run(tree: Path, *arguments: object) -> str:
    """Run a program of ``tree`` with its own Python; returns its output."""
    command = [tree / ".venv" / "bin" / "python", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} in {tree}: exit {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


class Cases:
    """The work and its inputs, made once and used by both trees."""

    def __init__(self, scratch: Path, trees: tuple[Path, Path], options: argparse.Namespace) -> None:
        self._scratch = scratch
        self._options = options
        self._series = [scratch / f"series{number}" for number in range(SENDERS)]
        if "receive" in options.case:
            for folder in self._series:
                write_series(folder, options.instances)
        if "encode" in options.case:
            for number, tree in enumerate(trees):
                script = tree / "benchmarks" / "encode_inputs.py"
                run(tree, script, "--folder", scratch / f"encode{number}", "--planes", options.planes)
        self._number_of = {tree: number for number, tree in enumerate(trees)}

    def demo(self, tree: Path) -> float:
        """Wall seconds."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as out:
            started = time.monotonic()
            run(tree, "-m", "dicom_node.cli", "demo", "--out", out)
            return time.monotonic() - started

    def receive(self, tree: Path) -> float:
        """Wall seconds for one sender, then four."""
        seconds = 0.0
        for senders in (1, SENDERS):
            with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                port = free_port()
                settings = {
                    "node": {"ae_title": "ARCHIVE", "port": port, "data_folder": f"{folder}/data"},
                    "sources": [{"ae_title": "STORESCU"}],
                }
                config = Path(folder, "node.yaml")
                config.write_text(yaml.safe_dump(settings))
                (config.parent / "rules.yaml").write_text("rules: []\n")
                python = str(tree / ".venv" / "bin" / "python")
                # with -m and no PYTHONPATH, Python takes the package from the current folder or its own environment
                command = [
                    "env",
                    f"PYTHONPATH={tree}",
                    python,
                    "-m",
                    "dicom_node.cli",
                    "--config",
                    str(config),
                    "listen",
                ]
                with running(command, port, Path(folder, "log")):
                    count = senders * self._options.instances
                    seconds += count / instances_per_second(port, self._series[:senders])
        return seconds

    def encode(self, tree: Path) -> float:
        """CPU seconds."""
        folder = self._scratch / f"encode{self._number_of[tree]}"
        arguments = ("--folder", folder, "--object", "all", "--writer", "ours")
        answer = json.loads(run(tree, tree / "benchmarks" / "encode_one.py", *arguments).splitlines()[-1])
        return float(answer["cpu_s"])

    def engine(self, tree: Path) -> float:
        """Wall seconds of the second segmentation in one process."""
        arguments = ("--package", self._options.package, "--input", self._options.ct)
        script = tree / "benchmarks" / "engine_ours.py"
        answer = json.loads(run(tree, script, *arguments, "--labels", self._scratch / "labels.npy").splitlines()[-1])
        return float(answer["runs"][-1]["wall_s"])


def compare(case: Callable[[Path], float], old: Path, new: Path, pairs: int) -> dict[str, float]:
    """Medians of both, and the median of the ratios new / old of the pairs; the order alternates from pair to pair."""
    figures: dict[Path, list[float]] = {old: [], new: []}
    for number in range(pairs):
        for tree in (old, new) if number % 2 else (new, old):
            figures[tree].append(case(tree))
    ratios = [after / before for before, after in zip(figures[old], figures[new], strict=True)]
    return {
        "old": statistics.median(figures[old]),
        "new": statistics.median(figures[new]),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    names = ("demo", "receive", "encode", "engine")
    parser.add_argument("--case", nargs="+", choices=names, default=list(names))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--instances", type=int, default=200, help="per sender")
    parser.add_argument("--planes", type=int, default=400)
    parser.add_argument("--package", type=Path, help="for the engine")
    parser.add_argument("--ct", type=Path, help="for the engine")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if "engine" in options.case and not (options.package and options.ct):
        parser.error("the engine needs --package and --ct")
    old, new = options.old.resolve(), options.new.resolve()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        cases = Cases(Path(scratch), (old, new), options)
        print(f"{'':10}{'old s':>10}{'new s':>10}{'new / old':>12}{'of the pairs':>18}")
        for name in options.case:
            found = results[name] = compare(getattr(cases, name), old, new, options.pairs)
            spread = f"{found['lowest_ratio']:.3f} to {found['highest_ratio']:.3f}"
            print(f"{name:10}{found['old']:10.3f}{found['new']:10.3f}{found['ratio']:12.3f}{spread:>18}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"pairs": options.pairs, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
