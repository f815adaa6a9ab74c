"""The shipped Orthanc configuration and routing script in a real Orthanc, with a Storage SCP in place of the node."""

import json
import os
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import SegmentationStorage

from dicom_node.deliver.scu import peer_of
from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.demo.pacs import outgoing_files
from dicom_node.demo.processes import Program
from dicom_node.network.requestor import Association
from dicom_node.settings import DestinationSettings
from inference.types import Geometry, Volume
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.waiting import wait_until

CONFIGURATION = Path(__file__).parents[3] / "orthanc" / "orthanc.json"
CT = "1.2.840.10008.5.1.4.1.1.2"
ORTHANC = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(ORTHANC is None, reason="Orthanc (Debian package orthanc) is not installed"),
]


@pytest.fixture
def start_orthanc(tmp_path):
    """Start Orthanc with the shipped files and the node at ``node_port``; return the REST base address."""
    programs = []

    def start(node_port, node_ae_title="PACS", configuration=CONFIGURATION):
        ports = {"ORTHANC_DICOM_PORT": str(free_port()), "ORTHANC_HTTP_PORT": str(free_port())}
        environment = ports | {
            "ORTHANC_STORAGE": str(tmp_path / "storage"),
            "ORTHANC_STABLE_AGE": "1",
            "ORTHANC_RETRY_PERIOD": "1",
            "NODE_AE_TITLE": node_ae_title,
            "NODE_PORT": str(node_port),
        }
        program = Program("Orthanc", [ORTHANC, str(configuration)], tmp_path / "orthanc.log", environment)
        programs.append(program)
        program.wait_for_port(int(ports["ORTHANC_HTTP_PORT"]))
        return f"http://127.0.0.1:{ports['ORTHANC_HTTP_PORT']}"

    yield start
    for program in programs:
        program.stop()


def _upload(base, path):
    request = urllib.request.Request(f"{base}/instances", data=path.read_bytes())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["Status"] == "Success"


def _ct_files(folder, seed, **changes):
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (4, 16, 16)).astype(np.int16)
    volume = Volume(voxels, Geometry((4, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0])))
    write_ct_series(volume, folder, SyntheticPatient(seed, 50, "F"))
    for path in folder.iterdir():
        dataset = dcmread(path)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.save_as(path)
    return sorted(folder.iterdir())


def test_only_stable_ct_series_are_sent_to_the_node(start_orthanc, tmp_path):
    kept = [
        *_ct_files(tmp_path / "seg", 1, SOPClassUID=SegmentationStorage, Modality="SEG"),
        *_ct_files(tmp_path / "localizer", 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        *_ct_files(tmp_path / "ours", 3, Manufacturer="dicom-node project"),
    ]
    wanted = _ct_files(tmp_path / "ct", 4)
    with scripted_pacs(classes=[CT, SegmentationStorage]) as (port, stored):
        base = start_orthanc(port)
        for path in (*kept, *wanted):  # the series that are not to be sent become stable first
            _upload(base, path)
        wait_until(lambda: len(stored) >= len(wanted))
        wait_until(lambda: _verdicts(tmp_path) == 4)
    expected = {str(dcmread(path).SOPInstanceUID) for path in wanted}
    assert {str(event.request.AffectedSOPInstanceUID) for event, _ in stored} == expected
    assert len(stored) == len(wanted)


def test_results_from_the_node_are_not_sent_back(start_orthanc, tmp_path):
    files = outgoing_files(_ct_files(tmp_path / "ct", 5))
    with scripted_pacs(classes=[CT]) as (port, stored):
        base = start_orthanc(port, node_ae_title="NODE")
        with urllib.request.urlopen(f"{base}/system", timeout=10) as answer:
            dicom_port = json.load(answer)["DicomPort"]
        orthanc = DestinationSettings(host="127.0.0.1", port=dicom_port, ae_title="ORTHANC")
        with Association(
            peer_of(orthanc), "NODE", [(files[0].sop_class_uid, files[0].transfer_syntax_uid)]
        ) as association:
            assert [association.store(file) for file in files] == [0] * 4
        wait_until(lambda: _verdicts(tmp_path) == 1)
    assert not stored
    assert "came from the node" in (tmp_path / "orthanc.log").read_text()


def test_series_the_node_could_not_accept_is_sent_again(start_orthanc, tmp_path):
    files = _ct_files(tmp_path / "ct", 6)
    away = free_port()
    base = start_orthanc(away)
    for path in files:
        _upload(base, path)
    log = tmp_path / "orthanc.log"
    wait_until(lambda: "Connection refused" in log.read_text())
    with scripted_pacs(classes=[CT], port=away) as (_, stored):
        for path in _ct_files(tmp_path / "next", 7):
            _upload(base, path)
        wait_until(lambda: len(stored) >= 2 * len(files))


def test_series_the_node_refuses_for_days_is_given_up(start_orthanc, tmp_path):
    """The shipped script except for its seven days: here even a failure of the last minute is too old."""
    script = (CONFIGURATION.parent / "route-ct-to-node.lua").read_text()
    shutil.copy(CONFIGURATION, tmp_path)
    (tmp_path / "route-ct-to-node.lua").write_text(script.replace("7 * 24 * 3600", "-60"))
    away = free_port()
    base = start_orthanc(away, configuration=tmp_path / CONFIGURATION.name)
    for path in _ct_files(tmp_path / "ct", 8):
        _upload(base, path)
    log = tmp_path / "orthanc.log"
    wait_until(lambda: "Connection refused" in log.read_text())
    with scripted_pacs(classes=[CT], port=away) as (_, stored):
        for seed in (9, 10):  # the second is processed once the script has finished with the first
            for path in _ct_files(tmp_path / str(seed), seed):
                _upload(base, path)
            wait_until(lambda seen=seed - 7: _verdicts(tmp_path) == seen)
        wait_until(lambda: len(stored) == 8)
    assert "offered to" not in log.read_text()


def _verdicts(tmp_path):
    log = (tmp_path / "orthanc.log").read_text()
    return log.count(": sent to node") + log.count(": stays here")
