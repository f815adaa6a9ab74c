"""Both PACS that the demonstration can use do what it needs, and end when told to."""

import os
import shutil
import socket

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.demo.pacs import EmbeddedPacs, OrthancPacs, Peer, outgoing_files
from dicom_node.demo.processes import Program, ProgramFailed
from inference.types import Geometry, Volume
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port

CT = "1.2.840.10008.5.1.4.1.1.2"
ORTHANC = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def series(tmp_path):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (6, 16, 16)).astype(np.int16)
    volume = Volume(voxels, Geometry((6, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0])))
    uid = write_ct_series(volume, tmp_path / "ct", SyntheticPatient(1, 50, "F"))
    (tmp_path / "ct" / "notes.txt").write_text("not DICOM")
    return uid, outgoing_files(sorted((tmp_path / "ct").iterdir()))


def _pacs(kind, folder, node):
    if kind == "embedded":
        return EmbeddedPacs(folder)
    if ORTHANC is None:
        pytest.skip("Orthanc (Debian package orthanc) is not installed")
    return OrthancPacs(ORTHANC, folder, node)


@pytest.mark.parametrize("kind", ["embedded", "orthanc"])
def test_pacs_stores_forwards_and_returns(kind, series, tmp_path):
    uid, files = series
    with scripted_pacs(classes=[CT]) as (node_port, stored):
        node = Peer("PACS", node_port)
        with _pacs(kind, tmp_path / "pacs", node) as pacs:
            taken, sent = [], []
            pacs.take(files, taken.append)
            assert taken == [1, 2, 3, 4, 5, 6]
            pacs.send_to_node(uid, node, sent.append)
            assert sent[-1] == 6
            study = str(dcmread(files[0].path).StudyInstanceUID)
            fetched = pacs.fetch(study, "CT", tmp_path / "back")
            assert pacs.fetch(study, "SEG", tmp_path / "back") == ()
        expected = {file.sop_instance_uid for file in files}
        assert {str(event.request.AffectedSOPInstanceUID) for event, _ in stored} == expected
        assert {str(dcmread(path).SOPInstanceUID) for path in fetched} == expected
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", pacs.peer.port), timeout=1)


@pytest.mark.parametrize("kind", ["embedded", "orthanc"])
def test_refusal_by_the_node_is_reported(kind, series, tmp_path):
    uid, files = series
    with scripted_pacs(lambda *_: 0xC000, classes=[CT]) as (node_port, _):
        node = Peer("PACS", node_port)
        with _pacs(kind, tmp_path / "pacs", node) as pacs:
            pacs.take(files, lambda _: None)
            with pytest.raises(ProgramFailed):
                pacs.send_to_node(uid, node, lambda _: None)


def test_program_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    with (
        Program("broken", ["sh", "-c", "echo no such disk; exit 3"], tmp_path / "log") as program,
        pytest.raises(ProgramFailed, match=r"exit code 3:\nno such disk"),
    ):
        program.wait_for_port(free_port(), limit_s=10)
