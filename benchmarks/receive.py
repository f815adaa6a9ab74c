"""Measures how many CT instances per second the listener makes durable, compared with Orthanc and DCMTK's storescp.

``python benchmarks/receive.py [--instances N] [--rounds R]``. All receivers take turns on this machine in each round,
so that the ratios hold even if absolute figures drift; the median of the rounds is printed. Senders are DCMTK's
storescu with TCP_NODELAY on loopback. The listener is the node's own (as in ``dicom-node listen``: real spool, real
SQLite ledger, everything synced before 0x0000); pynetdicom's own listener syncs the file and keeps no ledger; Orthanc
in its default syncs the file but neither folder nor index; storescp syncs nothing. TMPDIR chooses the disk; on tmpfs
syncs are free and the figures are those of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.receive.scp import Listener
from dicom_node.settings import load_settings
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 512
START_LIMIT_S = 30.0
SENDER_LIMIT_S = 300.0
NO_DELAY = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}


def write_series(folder: Path, instances: int) -> None:
    """A CT series of 512 x 512 slices with noise."""
    folder.mkdir()
    series_uid, study_uid = generate_uid(), generate_uid()
    noise = np.random.default_rng(0).integers(-1000, 1000, (ROWS, ROWS), dtype="<i2").tobytes()
    for number in range(instances):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.Modality = "CT"
        dataset.PatientName = dataset.PatientID = "BENCHMARK"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-200, -200, float(number)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.8]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows = dataset.Columns = ROWS
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = noise
        dataset.save_as(folder / f"{number:05}.dcm", enforce_file_format=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node_command(folder: Path, port: int) -> list[str]:
    settings = {
        "node": {"ae_title": "ARCHIVE", "port": port, "data_folder": str(folder / "data")},
        "sources": [{"ae_title": "STORESCU"}],
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    return [sys.executable, __file__, "--listen", str(folder / "node.yaml")]


def listen(config_file: Path) -> None:
    """The node's listener as in ``dicom-node listen``, without the rest of the node."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = load_settings(config_file)
    spool = Spool(settings.spool_folder)
    ledger = Ledger(settings.effective_ledger_url, spool)
    listener = Listener(settings, spool, ledger.arrivals)
    listener.start()
    try:
        signal.pause()
    finally:
        listener.stop()
        ledger.close()


def pynetdicom_command(folder: Path, port: int) -> list[str]:
    return [sys.executable, __file__, "--pynetdicom", str(folder / "out"), "--port", str(port)]


def pynetdicom_receiver(folder: Path, port: int) -> None:
    """pynetdicom's own listener with a handler that syncs the file, and keeps no ledger."""
    folder.mkdir()

    def store(event: evt.Event) -> int:
        path = folder / f"{event.request.AffectedSOPInstanceUID}-{time.monotonic_ns()}"
        with path.open("xb") as file:
            file.write(event.encoded_dataset())
            file.flush()
            os.fsync(file.fileno())
        return 0

    entity = AE(ae_title="ARCHIVE")
    entity.maximum_pdu_size = 131072
    entity.add_supported_context("1.2.840.10008.1.1")
    entity.add_supported_context(CTImageStorage, [ExplicitVRLittleEndian])
    entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])


def orthanc_command(folder: Path, port: int) -> list[str]:
    settings = {
        "DicomAet": "ARCHIVE",
        "DicomPort": port,
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    return ["Orthanc", str(folder / "orthanc.json")]


def storescp_command(folder: Path, port: int) -> list[str]:
    (folder / "out").mkdir()
    return ["storescp", "--fork", "--bit-preserving", "-aet", "ARCHIVE", "-od", str(folder / "out"), str(port)]


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run the receiver; it answers C-ECHO when the body starts."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=NO_DELAY)
    try:
        end = time.monotonic() + START_LIMIT_S
        echo = ["echoscu", "-aet", "STORESCU", "-aec", "ARCHIVE", "127.0.0.1", str(port)]
        while subprocess.run(echo, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def instances_per_second(port: int, folders: list[Path]) -> float:
    """Send all folders at once, with one sender each."""
    command = ["storescu", "-aet", "STORESCU", "-aec", "ARCHIVE", "+sd", "-pdu", "131072", "127.0.0.1", str(port)]
    started = time.monotonic()
    senders = [
        subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=NO_DELAY)
        for folder in folders
    ]
    for sender in senders:
        _, errors = sender.communicate(timeout=SENDER_LIMIT_S)
        if sender.returncode or errors:
            raise SystemExit(f"storescu: exit {sender.returncode}: {errors[-500:].decode(errors='replace')}")
    return sum(len(list(folder.iterdir())) for folder in folders) / (time.monotonic() - started)


RECEIVERS: dict[str, Callable[[Path, int], list[str]]] = {
    "dicom-node listen (synced)": node_command,
    "pynetdicom (file synced)": pynetdicom_command,
    "Orthanc, default (synced)": orthanc_command,
    "storescp --fork (not synced)": storescp_command,
}


def measure(series: list[Path], rounds: int, scratch: Path) -> dict[tuple[str, int], list[float]]:
    figures: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for name, command in RECEIVERS.items():
            for senders in (1, len(series)):
                folder = scratch / f"{number}-{senders}-{name.split()[0]}"
                folder.mkdir()
                port = free_port()
                with running(command(folder, port), port, folder / "log"):
                    figure = instances_per_second(port, series[:senders])
                figures.setdefault((name, senders), []).append(figure)
                shutil.rmtree(folder)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200, help="per sender")
    parser.add_argument("--senders", type=int, default=4, help="simultaneous senders for the second column")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--listen", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pynetdicom", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pynetdicom:
        pynetdicom_receiver(options.pynetdicom, options.port)
        return
    if options.listen:
        listen(options.listen)
        return
    missing = [tool for tool in ("Orthanc", "storescp", "storescu", "echoscu") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)} (Debian: dcmtk, orthanc)")
    with tempfile.TemporaryDirectory() as scratch:
        series = [Path(scratch, f"series{number}") for number in range(options.senders)]
        for folder in series:
            write_series(folder, options.instances)
        figures = measure(series, options.rounds, Path(scratch))
    ours = next(iter(RECEIVERS))
    print(f"{'instances/s (and ours / theirs)':32}{'1 sender':>20}{f'{options.senders} senders':>20}")
    for name in RECEIVERS:
        cells = []
        for senders in (1, options.senders):
            figure = statistics.median(figures[name, senders])
            ratio = statistics.median(figures[ours, senders]) / figure
            cells.append(f"{figure:11.0f} ({ratio:.2f})")
        print(f"{name:32}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
