"""The instance count from the sender's index, queried from a real C-FIND SCP, and every way to get none."""

from __future__ import annotations

import socket
import threading

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from dicom_node.errors import AssociationRejected, ConnectionLost, NotSendable
from dicom_node.receive.count import expected_count
from dicom_node.settings import SourceSettings
from tests.support.dicom_peers import with_count
from tests.support.ports import free_port

INDEX = {("1.2", "1.2.1"): 300, ("1.2", "1.2.2"): 0}


def answer(event):
    asked = event.identifier
    if asked.QueryRetrieveLevel != "SERIES":
        yield 0xC000, None
        return
    for (study, series), count in INDEX.items():
        if (study, series) == (asked.StudyInstanceUID, asked.SeriesInstanceUID):
            found = Dataset()
            found.QueryRetrieveLevel, found.StudyInstanceUID, found.SeriesInstanceUID = "SERIES", study, series
            found.NumberOfSeriesRelatedInstances = count
            yield 0xFF00, found


def refuse(_event):
    yield 0xA700, None


def crash(_event):
    raise RuntimeError


def without_count(event):
    found = Dataset()
    found.SeriesInstanceUID = event.identifier.SeriesInstanceUID
    yield 0xFF00, found


@pytest.fixture
def archive():
    entity = AE(ae_title="ARCHIVE")
    entity.require_called_aet = True
    servers = []

    def start(handler, context=StudyRootQueryRetrieveInformationModelFind, syntaxes=None) -> SourceSettings:
        entity.supported_contexts = []
        entity.add_supported_context(context, syntaxes)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handler)])
        servers.append(server)
        return SourceSettings(
            ae_title="SENDER", count_host="127.0.0.1", count_port=server.server_address[1], count_ae_title="ARCHIVE"
        )

    yield start
    for server in servers:
        server.shutdown()


def test_the_index_is_queried(archive):
    assert expected_count(archive(answer), "NODE", "1.2", "1.2.1") == 300


@pytest.mark.parametrize("series", ["1.2.2", "1.2.999"])
def test_series_unknown_to_the_index_has_no_count(archive, series):
    assert expected_count(archive(answer), "NODE", "1.2", series) is None


@pytest.mark.parametrize("handler", [refuse, crash, without_count])
def test_response_without_a_count_gives_none(archive, handler):
    assert expected_count(archive(handler), "NODE", "1.2", "1.2.1") is None


def test_peer_without_the_service_is_an_error(archive):
    with pytest.raises(NotSendable):
        expected_count(archive(answer, Verification), "NODE", "1.2", "1.2.1")


def test_rejection_by_the_peer_is_an_error(archive):
    source = archive(answer).model_copy(update={"count_ae_title": "WRONG"})
    with pytest.raises(AssociationRejected):
        expected_count(source, "NODE", "1.2", "1.2.1")


def test_unreachable_peer_is_an_error():
    source = SourceSettings(ae_title="SENDER", count_host="127.0.0.1", count_port=free_port())
    with pytest.raises(ConnectionLost):
        expected_count(source, "NODE", "1.2", "1.2.1")


def test_silent_peer_is_an_error(monkeypatch):
    monkeypatch.setattr("dicom_node.receive.count.ANSWER_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = SourceSettings(ae_title="SENDER", count_host="127.0.0.1", count_port=silent.getsockname()[1])
        with pytest.raises(ConnectionLost):
            expected_count(source, "NODE", "1.2", "1.2.1")


def test_peer_whose_answers_never_end_is_an_error(archive, monkeypatch):
    monkeypatch.setattr("dicom_node.receive.count.LIMIT_S", 0.5)
    monkeypatch.setattr("dicom_node.receive.count.MOST_ANSWERS", 10**9)
    ended = threading.Event()

    def go_on(event):
        while not ended.is_set():
            yield 0xFF00, event.identifier

    try:
        with pytest.raises(ConnectionLost):
            expected_count(archive(go_on), "NODE", "1.2", "1.2.1")
    finally:
        ended.set()


@pytest.mark.filterwarnings("ignore:Value .* is not valid for elements with a VR of IS:UserWarning")
@pytest.mark.parametrize("count", ["9" * 20, "2147483648", "-1", "2.5", "many", "1\\1"])
def test_count_that_is_none_is_an_error(archive, count):
    def mislead(event):
        found = Dataset()
        found.SeriesInstanceUID = event.identifier.SeriesInstanceUID
        yield 0xFF00, with_count(found, count)

    with pytest.raises((ValueError, TypeError)):
        expected_count(archive(mislead, syntaxes=ImplicitVRLittleEndian), "NODE", "1.2", "1.2.1")


def test_no_peer_is_queried_unless_configured():
    assert expected_count(SourceSettings(ae_title="SENDER"), "NODE", "1.2", "1.2.1") is None
