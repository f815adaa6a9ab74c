"""``dicom-node demo`` as a user runs it: it ends with a picture or when interrupted, and leaves nothing running."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("DICOM_NODE_TEST_DATA", ROOT.parent / "shared" / "data"))
SERIES = DATA / "derived" / "totalsegmentator_example_sendable"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not SERIES.is_dir(), reason=f"the real series {SERIES} is not there"),
]


def _start(out):
    command = [sys.executable, "-m", "dicom_node.cli", "demo", "--series", str(SERIES), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_real_series_yields_table_and_picture(tmp_path):
    process = _start(tmp_path / "out")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert (tmp_path / "out" / "result.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "SEG.dcm").stat().st_size > 100_000
    with (tmp_path / "out" / "structures.csv").open() as file:
        volume_ml = {row["structure"]: float(row["volume_ml"]) for row in csv.DictReader(file)}
    assert 1500 < volume_ml["soft_tissue"] < 3000  # 20 slices of an upper abdomen
    assert "picture:" in said
    assert not any(_listens(int(port)) for port in re.findall(r"port (\d+)", said))


def test_interrupt_ends_every_process(tmp_path):
    process = _start(tmp_path / "out")
    started = next(line for line in process.stdout if "port" in line)
    ports = [int(port) for port in re.findall(r"port (\d+)", started)]
    assert len(ports) == 2
    assert all(_listens(port) for port in ports)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert not any(_listens(port) for port in ports)


def test_folder_without_ct_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "dicom_node.cli", "demo", "--series", str(tmp_path / "empty")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no CT image" in done.stdout
