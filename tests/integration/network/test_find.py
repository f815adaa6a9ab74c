"""C-FIND as requestor: DCMTK's archive, Orthanc's count of a series, and every kind of response."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.demo.pacs import OrthancPacs, outgoing_files
from dicom_node.demo.pacs import Peer as DemoPeer
from dicom_node.errors import ConnectionLost, NotSendable, ProtocolFault
from dicom_node.network.requestor import Association, Peer
from dicom_node.receive.count import expected_count
from dicom_node.settings import SourceSettings
from dicom_node.standard.uids import STUDY_ROOT_FIND
from inference.types import Geometry, Volume
from tests.support.ports import free_port
from tests.support.waiting import wait_for_port

FIND = [(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))]


def query(**keys) -> Dataset:
    identifier = Dataset()
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def peer_at(port: int) -> Peer:
    return Peer("ARCHIVE", "127.0.0.1", port, connect_timeout_s=5, response_timeout_s=20, largest_pdu_bytes=16384)


@pytest.fixture
def ct_series(tmp_path):
    """Four slices as files, and the UIDs of their study and series."""
    voxels = np.random.default_rng(1).integers(-1000, 1000, (4, 16, 16)).astype(np.int16)
    volume = Volume(voxels, Geometry((4, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0])))
    series = write_ct_series(volume, tmp_path / "ct", SyntheticPatient(1, 50, "F"))
    paths = sorted((tmp_path / "ct").iterdir())
    return outgoing_files(paths), str(dcmread(paths[0]).StudyInstanceUID), series


@pytest.fixture
def dcmqrscp(tmp_path):
    """DCMTK's archive on loopback."""
    if shutil.which("dcmqrscp") is None:
        pytest.skip("dcmqrscp (Debian package dcmtk) is not installed")
    storage, port = tmp_path / "storage", free_port()
    storage.mkdir()
    configuration = tmp_path / "dcmqrscp.cfg"
    configuration.write_text(
        f"MaxPDUSize = 16384\nMaxAssociations = 4\nHostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {storage} RW (10, 1024mb) ANY\nAETable END\n"
    )
    command = ["dcmqrscp", "--config", str(configuration), str(port)]
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port)
    yield port
    program.terminate()
    program.wait(10)


def test_dcmtk_finds_the_instances_we_stored(dcmqrscp, ct_series):
    files, study, series = ct_series
    with Association(peer_at(dcmqrscp), "NODE", [(str(CTImageStorage), str(ExplicitVRLittleEndian)), *FIND]) as archive:
        assert [archive.store(file) for file in files] == [0] * len(files)
        identifier = query(
            QueryRetrieveLevel="IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=""
        )
        answers = list(archive.find(STUDY_ROOT_FIND, identifier))
        assert archive.store(files[0]) == 0  # the association can still be used afterwards
    assert [status for status, _ in answers] == [0xFF00] * len(files) + [0]
    assert {answer.SOPInstanceUID for _, answer in answers[:-1]} == {file.sop_instance_uid for file in files}
    assert answers[-1][1] is None


def test_orthanc_counts_the_instances_of_the_series_we_stored(ct_series, tmp_path):
    orthanc = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if orthanc is None:
        pytest.skip("Orthanc (Debian package orthanc) is not installed")
    files, study, series = ct_series
    with OrthancPacs(orthanc, tmp_path / "pacs", DemoPeer("NODE", free_port())) as pacs:
        source = SourceSettings(ae_title=pacs.peer.ae_title, count_host="127.0.0.1", count_port=pacs.peer.port)
        assert expected_count(source, "NODE", study, series) is None
        pacs.take(files, lambda _: None)
        assert expected_count(source, "NODE", study, series) == len(files)


@pytest.fixture
def archive():
    """A function that starts a pynetdicom SCP with a C-FIND handler and returns its port."""
    servers = []

    def start(handler, context=StudyRootQueryRetrieveInformationModelFind, syntaxes=None) -> int:
        entity = AE(ae_title="ARCHIVE")
        entity.add_supported_context(context, syntaxes)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handler)])
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_identifiers_are_sent_and_read_in_the_accepted_syntax(archive, syntax):
    asked = []

    def handler(event):
        asked.append((event.context.transfer_syntax, event.identifier))
        for number in range(300):
            yield 0xFF00, query(SeriesInstanceUID=f"1.2.{number}", SeriesDescription="x" * 60)

    identifier = query(QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2", SeriesInstanceUID="")
    with Association(peer_at(archive(handler, syntaxes=[syntax])), "NODE", FIND) as association:
        answers = list(association.find(STUDY_ROOT_FIND, identifier))
    assert asked == [(syntax, identifier)]
    assert [status for status, _ in answers] == [0xFF00] * 300 + [0]
    assert [answer.SeriesInstanceUID for _, answer in answers[:-1]] == [f"1.2.{number}" for number in range(300)]


def test_failure_status_ends_the_responses(archive):
    def refuse(_event):
        yield 0xA700, None

    with Association(peer_at(archive(refuse)), "NODE", FIND) as association:
        assert list(association.find(STUDY_ROOT_FIND, query(QueryRetrieveLevel="STUDY"))) == [(0xA700, None)]


def test_peer_without_the_service_is_an_error(archive):
    with (
        Association(peer_at(archive(None, Verification)), "NODE", FIND) as association,
        pytest.raises(NotSendable, match="FIND"),
    ):
        list(association.find(STUDY_ROOT_FIND, query(QueryRetrieveLevel="STUDY")))


def test_abort_between_responses_is_an_error(archive):
    def handler(event):
        yield 0xFF00, query(SeriesInstanceUID="1.2.3")
        event.assoc.abort()

    with (
        pytest.raises(ConnectionLost, match=r"lost the connection to ARCHIVE at 127\.0\.0\.1:.* during a C-FIND"),
        Association(peer_at(archive(handler)), "NODE", FIND) as association,
    ):
        list(association.find(STUDY_ROOT_FIND, query(QueryRetrieveLevel="SERIES")))


def test_oversized_identifier_is_an_error(archive, monkeypatch):
    monkeypatch.setattr("dicom_node.network.requestor.LARGEST_ANSWER_BYTES", 5_000)

    def handler(_event):
        yield 0xFF00, query(ImageComments="x" * 10_000)

    with (
        pytest.raises(ProtocolFault, match="exceeds 5000 bytes"),
        Association(peer_at(archive(handler)), "NODE", FIND) as association,
    ):
        list(association.find(STUDY_ROOT_FIND, query(QueryRetrieveLevel="SERIES")))


def test_more_series_than_exist_are_no_answer(archive, monkeypatch):
    monkeypatch.setattr("dicom_node.receive.count.MOST_ANSWERS", 5)

    def handler(event):
        for number in range(10):
            found = query(SeriesInstanceUID=f"1.2.{number}", NumberOfSeriesRelatedInstances=3)
            yield 0xFF00, found

    source = SourceSettings(ae_title="ARCHIVE", count_host="127.0.0.1", count_port=archive(handler))
    with pytest.raises(ValueError, match="more than 5 answers"):
        expected_count(source, "NODE", "1.2", "1.2.1")
