"""Measures the overhead of `dicom-node cohort run` over the engine's own time, and checks a run that is killed.

``python benchmarks/cohort.py [--series N] [--package FOLDER | --tissue] [--spacing MM] [--kills K]``. Phantoms of
different patients are in Orthanc; the cohort pulls them by C-GET while `dicom-node work` runs with its model loaded.
Engine time is what `dicom-node segment` would take for the same series (stages ``read`` to ``encode``), as recorded for
the jobs in the ledger; the overhead is the wall time of the run beyond that. With ``--kills``, the run is killed with
SIGKILL whenever another fraction of the series has rows; then only the counts are compared: ours, the table's and
Orthanc's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.app.stores import open_store
from dicom_node.cohort.pseudonym import write_new_key
from dicom_node.cohort.table import read_rows
from dicom_node.demo.pacs import OrthancPacs, Peer, outgoing_files
from dicom_node.demo.phantom_series import write_series
from dicom_node.demo.processes import Program, free_port
from dicom_node.settings import load_settings
from inference.phantom import phantom

DEMO_MODEL = Path(__file__).parents[1] / "config" / "models" / "phantom_demo_104"

MODEL = "benchmark"
ENGINE = ("read", "reconstruct", "prepare", "segment", "measure", "encode")


def configure(folder: Path, pacs: Peer, package: Path | None) -> Path:
    """node.yaml, rules.yaml, the key and the definition of the cohort; without ``package``, of tissue only."""
    node = {
        "node": {"ae_title": "BENCHNODE", "data_folder": "data"},
        "destinations": {"pacs": {"host": "127.0.0.1", "port": pacs.port, "ae_title": pacs.ae_title}},
        "models": {MODEL: {"kind": "nnunet", "package": str(package)} if package else {"kind": "tissue"}},
        "work": {"preload": [MODEL]},
        "operate": {"disk_stop_percent": 100, "disk_resume_percent": 100},
    }
    cohort = {
        "name": "benchmark",
        "data_set": "table",
        "key_file": "key",
        "archive": {"retrieve": "c-get", "host": "127.0.0.1", "port": pacs.port, "ae_title": pacs.ae_title},
        "query": {"Modality": "CT"},
        "model": MODEL,
        "destinations": ["pacs"],
        "limits": {"free_disk_gib": 0, "at_once": 1, "in_queue": 4},
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(node))
    (folder / "rules.yaml").write_text("rules: []")
    (folder / "cohort.yaml").write_text(yaml.safe_dump(cohort))
    write_new_key(folder / "key")
    return folder / "node.yaml"


def run(folder: Path, kills: int, series: int) -> dict[str, object]:
    """Run the command, possibly killed several times; returns the summary of the last run."""
    command = [sys.executable, "-m", "dicom_node.cli", "--config", str(folder / "node.yaml")]
    command += ["cohort", "run", str(folder / "cohort.yaml"), "--json"]
    for kill in range(kills):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        enough = series * (kill + 1) // (kills + 1)
        while len(list((folder / "table" / "measurements").glob("*.parquet"))) < enough:
            if running.poll() is not None:
                raise SystemExit("the run ended before it was killed")
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        print(f"killed with {enough} of {series} series in the table", flush=True)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=6)
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--package", type=Path, default=DEMO_MODEL, help="model package; default: the demo model")
    models.add_argument("--tissue", action="store_true", help="the model without a network, the fastest")
    parser.add_argument("--spacing", type=float, default=3.0, help="voxel spacing of the phantoms, mm")
    parser.add_argument("--kills", type=int, default=0)
    arguments = parser.parse_args()
    orthanc = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if orthanc is None:
        raise SystemExit("Orthanc is not installed (apt: orthanc)")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        pacs = running.enter_context(OrthancPacs(orthanc, folder / "orthanc", Peer("BENCHNODE", free_port())))
        for seed in range(arguments.series):
            write_series(phantom(seed, (arguments.spacing,) * 3, "chest"), folder / "ct" / str(seed))
            pacs.take(outgoing_files(sorted((folder / "ct" / str(seed)).iterdir())), lambda _: None)
        config = configure(folder, pacs.peer, None if arguments.tissue else arguments.package.resolve())
        settings = load_settings(config)
        _, ledger = open_store(settings)
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "work"]
        work = running.enter_context(Program("work", command, folder / "work.log"))
        while '"worker.loaded"' not in (folder / "work.log").read_text():
            work.check_alive()
            time.sleep(0.2)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = run(folder, arguments.kills, arguments.series)
        after = resource.getrusage(
            resource.RUSAGE_CHILDREN
        )  # of the runs alone: Orthanc and the work process have not ended
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        jobs = [ledger.overview.job(row.id) for row in ledger.overview.jobs(10_000)]
        stages: dict[str, float] = {}
        for job in jobs:
            for stage, seconds in (job.stage_seconds or {}).items():
                stages[stage] = stages.get(stage, 0) + seconds
        ledger.close()
        counts = pacs._get("/statistics")  # noqa: SLF001 - of the demo
        rows = read_rows(folder / "table").to_pandas()
        print(json.dumps(summary, indent=1))
        print(f"jobs: {len(jobs)}, of series: {len({job.series.series_instance_uid for job in jobs})}")
        print(f"Orthanc: {counts['CountSeries']} series (CT, SEG, SR), {counts['CountInstances']} instances")
        print(f"table: {rows.series.nunique()} series, {rows.duplicated(['series', 'structure']).sum()} duplicate rows")
        print("stages, s:", {stage: round(seconds, 1) for stage, seconds in stages.items()})
        engine = sum(stages.get(stage, 0) for stage in ENGINE)
        if not arguments.kills:
            wall = float(summary["seconds"])
            print(f"wall {wall:.1f} s, engine {engine:.1f} s: overhead {100 * (wall / engine - 1):+.1f} %")
            print(f"CPU of cohort run {cpu:.1f} s, {cpu / arguments.series:.2f} s a series")


if __name__ == "__main__":
    main()
