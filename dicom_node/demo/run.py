"""Runs the whole job once on one machine: a PACS sends a CT series to the node, and SEG and SR return to the PACS."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydicom import dcmread
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dicom_node.app.places import DEMO_MODEL, shipped_model
from dicom_node.app.stores import open_store
from dicom_node.demo.pacs import PACS_AE_TITLE, Pacs, Peer, choose_pacs, outgoing_files
from dicom_node.demo.phantom_series import write_series
from dicom_node.demo.processes import Program, ProgramFailed, free_port
from dicom_node.demo.report import Case, Received, show_results
from dicom_node.demo.scores import UnexpectedResult
from dicom_node.errors import DicomNodeError
from dicom_node.settings import Settings, load_settings
from dicom_node.store.states import JobState
from inference.phantom import phantom

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from dicom_node.network.requestor import OutgoingFile

_PHANTOM_SPACING_XYZ_MM = (1.5, 1.5, 3.0)
_CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_POLL_S = 0.3
_JOB_APPEARS_WITHIN_S = 120.0
_ENDED_BADLY = (JobState.REJECTED, JobState.FAILED, JobState.SUPERSEDED)
_ALMOST = 0.99
"""Maximum of the progress bar until the results are delivered."""
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, eq=False)
class _Started:
    """The running programs of the demo."""

    pacs: Pacs
    node: Peer
    program: Program
    settings: Settings


def run_demo(*, series: Path | None, model: str | None, seed: int, out: Path) -> int:
    """Run the demo and return the exit code; results are kept in ``out``, everything else is temporary.

    ``series``: a folder whose largest CT series is sent unchanged; None: send phantom ``seed``.
    ``model``: None: the demo model for a phantom, ``tissue`` for a real CT.
    """
    console = Console()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dicom-node-demo-") as work:
            _run(console, _case(console, series, seed, Path(work)), _model(series, model), Path(work), out)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; all programs of the demo were stopped[/]")
        return _INTERRUPTED
    except (ProgramFailed, UnexpectedResult, DicomNodeError) as error:
        console.print(f"[red]the demo failed:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


def _run(console: Console, case: Case, model: str, work: Path, out: Path) -> None:
    node = Peer("DEMONODE", free_port())
    with ExitStack() as running:
        pacs = running.enter_context(choose_pacs(work / "pacs", node))
        config = _write_configuration(work, node, pacs, model)
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "serve"]
        program = running.enter_context(Program("the node", command, out / "node.log"))
        program.wait_for_port(node.port)
        console.print(
            f"PACS: {pacs.name}, port {pacs.peer.port}; node: {node.ae_title}, port {node.port}; model: {model}"
        )
        waited_s = _send_and_wait(console, case, _Started(pacs, node, program, load_settings(config)))
        results = Received(_fetch_one(pacs, case, "SEG", work, out), _fetch_one(pacs, case, "SR", work, out), pacs.name)
    console.print(f"last image sent -> results in the PACS: [bold]{waited_s:.1f} s[/]")
    show_results(console, case, results, out)


# ---- what is sent


def _case(console: Console, series: Path | None, seed: int, work: Path) -> Case:
    if series is not None:
        return _own_case(series)
    with console.status(f"making phantom patient {seed}"):
        made = phantom(seed, _PHANTOM_SPACING_XYZ_MM)
        write_series(made, work / "phantom")
    files = _largest_ct_series(work / "phantom")
    header = dcmread(files[0].path, stop_before_pixels=True)
    return Case(
        tuple(files),
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
        f"Synthetic patient, seed {seed}",
        made,
    )


def _own_case(folder: Path) -> Case:
    files = _largest_ct_series(folder)
    header = dcmread(files[0].path, stop_before_pixels=True)
    return Case(
        tuple(files),
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
        f"CT series {folder.resolve().name}",
        None,
    )


def _largest_ct_series(folder: Path) -> list[OutgoingFile]:
    by_series: dict[str, list[OutgoingFile]] = {}
    for file in outgoing_files(sorted(path for path in folder.rglob("*") if path.is_file())):
        if file.sop_class_uid in _CT_CLASSES:
            header = dcmread(file.path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            by_series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(file)
    if not by_series:
        raise UnexpectedResult(f"{folder} has no CT images in DICOM Part 10 format")
    return max(by_series.values(), key=len)


def _model(series: Path | None, model: str | None) -> str:
    return model or (DEMO_MODEL if series is None else "tissue")


# ---- the node


def _write_configuration(work: Path, node: Peer, pacs: Pacs, model: str) -> Path:
    models = {"tissue": {"kind": "tissue"}, DEMO_MODEL: {"kind": "nnunet", "package": str(shipped_model(DEMO_MODEL))}}
    if model not in models:
        raise UnexpectedResult(f"unknown model {model!r}; the demo has: {', '.join(models)}")
    settings = {
        "node": {"ae_title": node.ae_title, "port": node.port, "data_folder": str(work / "node")},
        "receive": {"minimum_free_disk_bytes": 256 * 1024**2},
        "sources": [{"ae_title": PACS_AE_TITLE, "addresses": ["127.0.0.1"]}],
        "destinations": {"pacs": {"host": "127.0.0.1", "port": pacs.peer.port, "ae_title": pacs.peer.ae_title}},
        "completion": {"regular_quiet_s": 2, "otherwise_quiet_s": 10},
        "models": models,
        "operate": {"sweep_s": 0.5, "disk_stop_percent": 99, "disk_resume_percent": 98},
    }
    rules = {"rules": [{"name": "demo", "when": [], "model": model, "destinations": ["pacs"]}]}
    (work / "rules.yaml").write_text(yaml.safe_dump(rules, sort_keys=False), encoding="utf-8")
    config = work / "node.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return config


def _send_and_wait(console: Console, case: Case, started: _Started) -> float:
    """Store the series in the PACS, send it to the node and wait; returns seconds from last image to delivery."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        count = len(case.files)
        stored = progress.add_task(f"storing {count} images in the PACS", total=count)
        started.pacs.take(case.files, lambda number: progress.update(stored, completed=number))
        sent = progress.add_task("sending from the PACS to the node", total=count)
        started.pacs.send_to_node(case.series_uid, started.node, lambda number: progress.update(sent, completed=number))
        progress.update(sent, completed=count)
        last_image = time.monotonic()
        task = progress.add_task("node: waiting until the series is complete", total=1.0)
        _wait_for_delivery(
            case, started, lambda done, words: progress.update(task, completed=done, description=f"node: {words}")
        )
        return time.monotonic() - last_image


def _wait_for_delivery(case: Case, started: _Started, show: Callable[[float, str], None]) -> None:
    """Follow the job in the node's ledger until its results are in the PACS.

    Raises:
        ProgramFailed: the job did not succeed, the node ended, or it created no job for the series.
    """
    ledger = open_store(started.settings)[1]
    give_up_at = time.monotonic() + _JOB_APPEARS_WITHIN_S
    try:
        while True:
            started.program.check_alive()
            newest = ledger.overview.jobs(1, None, case.series_uid)
            if newest:
                (job,) = newest
                if job.state in _ENDED_BADLY:
                    raise ProgramFailed(f"job {job.id} is {job.state}: {job.reason}")
                if job.state is JobState.DELIVERED:
                    show(1.0, "results delivered")
                    return
                show(min(job.progress, _ALMOST), job.stage or job.state.lower())
            elif time.monotonic() > give_up_at:
                raise ProgramFailed("the node created no job for the series; see node.log")
            time.sleep(_POLL_S)
    finally:
        ledger.close()


def _fetch_one(pacs: Pacs, case: Case, modality: str, work: Path, out: Path) -> Path:
    """Fetch the only object of this modality in the study to ``out/SEG.dcm`` or ``out/SR.dcm``."""
    fetched = pacs.fetch(case.study_uid, modality, work / "fetched")
    if len(fetched) != 1:
        raise UnexpectedResult(f"the PACS has {len(fetched)} {modality} objects in the study, expected one")
    return Path(shutil.copy(fetched[0], out / f"{modality}.dcm"))


def _leave(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
