import shutil
import subprocess

import pytest

from dicom_node.types import ResultKind
from tests.support.dicom_peers import make_result
from tests.support.ports import free_port
from tests.support.waiting import wait_for_port


@pytest.fixture
def results(tmp_path):
    seg = [make_result(tmp_path, n) for n in range(1, 4)]
    return (*seg, make_result(tmp_path, 4, kind=ResultKind.REPORT))


@pytest.fixture
def storescp(tmp_path):
    """DCMTK's storescp on a free port: (port, folder in which it stores)."""
    if shutil.which("storescp") is None:
        pytest.skip("storescp (Debian package dcmtk) is not installed")
    folder = tmp_path / "storescp"
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(
        ["storescp", "--aetitle", "PACS", "--output-directory", str(folder), "--accept-all", "+B", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield port, folder
    finally:
        process.terminate()
        process.wait(10)
