"""Orthanc with DICOMweb, OHIF and Chromium, shared by all tests here; if one is missing, the tests are skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dicom_node.demo.processes import Program
from dicom_node.settings import DestinationSettings
from tests.browser.origin import serve
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
OHIF_VERSION = re.search(r"^version=(\S+)$", (ROOT / "deploy" / "fetch-ohif.sh").read_text(), re.MULTILINE)[1]
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SCREENSHOTS = ROOT / "test-results" / "browser"


class Archive:
    """Orthanc with only the DICOMweb plugin (it crashed when orthanc-gdcm was also loaded)."""

    ae_title = "ORTHANC"

    def __init__(self, program: str, folder: Path) -> None:
        self.http_port, self._dicom_port = free_port(), free_port()
        configuration = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.http_port,
            "DicomAet": self.ae_title,
            "DicomPort": self._dicom_port,
            "DicomAlwaysAllowStore": True,
            # Orthanc 1.10.1 predates label map segmentations (2024) and accepts them by C-STORE only with this setting
            "UnknownSopClassAccepted": True,
            "Plugins": [str(DICOMWEB)],
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        command = [program, str(folder / "orthanc.json")]
        self._program = Program("Orthanc", command, folder / "orthanc.log", {"TCP_NODELAY": "1"})
        self._program.wait_for_port(self.http_port)
        self._program.wait_for_port(self._dicom_port)

    @property
    def destination(self) -> DestinationSettings:
        return DestinationSettings(host="127.0.0.1", port=self._dicom_port, ae_title=self.ae_title)

    def get(self, place: str, accept: str) -> int:
        """The HTTP status of the DICOMweb response."""
        address = f"http://127.0.0.1:{self.http_port}/dicom-web{place}"
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": accept})) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def put(self, content: bytes | memoryview) -> None:
        """Store one Part 10 file by REST."""
        place = f"http://127.0.0.1:{self.http_port}/instances"
        with urllib.request.urlopen(urllib.request.Request(place, data=bytes(content)), timeout=120) as answer:
            assert json.load(answer)["Status"] == "Success"

    def stop(self) -> None:
        self._program.stop()


@pytest.fixture(scope="package")
def archive(tmp_path_factory):
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or not DICOMWEB.is_file():
        pytest.skip("Orthanc or its DICOMweb plugin is not installed (apt: orthanc orthanc-dicomweb)")
    orthanc = Archive(program, tmp_path_factory.mktemp("orthanc"))
    yield orthanc
    orthanc.stop()


@pytest.fixture(scope="package")
def origin(archive):
    """The address of OHIF with the configuration from deploy/, and Orthanc's DICOMweb on the same origin."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    site = cache / "dicom-node-tests" / f"ohif-{OHIF_VERSION}"
    if not (site / "index.html").is_file():
        pytest.skip(f"OHIF {OHIF_VERSION} is not in {site} (deploy/fetch-ohif.sh fetches it with npm)")
    with serve(site, ROOT / "deploy" / "compose" / "ohif-config.js", archive.http_port) as address:
        yield address


@pytest.fixture(scope="package")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt: chromium)")
    # no GPU: software WebGL
    arguments = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


@pytest.fixture
def screenshot(request):
    """Where this test saves its screenshots."""
    return SCREENSHOTS / f"{re.sub('[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}.png"
