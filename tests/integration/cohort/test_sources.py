"""Sources that misbehave: lists with a typing error, archives that refuse or send more than requested."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from structlog.testing import capture_logs

from dicom_node.cohort.definition import Archive, Definition
from dicom_node.cohort.definition import WebArchive as WebSettings
from dicom_node.cohort.dicomweb import WebArchive
from dicom_node.cohort.sources import DimseArchive, Pulled, Wanted, read_list
from dicom_node.errors import ConfigurationError, ConnectionLost, Disposition, NetworkError
from dicom_node.network.dimse import SUCCESS, Response
from dicom_node.store.cohorts import Selected
from tests.support.dicom_peers import with_count

CT = "1.2.840.10008.5.1.4.1.1.2"


class Taking:
    """Accepts everything and keeps nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def begin(self, *_):
        return None

    def write(self, _fragment):
        return None

    def conclude(self):
        return Response(SUCCESS)

    def take_file(self, _path):
        return None

    def pulled(self, _series):
        return Pulled(0, "")


LARGEST_BYTES = 2000
WANTED = Wanted("CT", frozenset({CT}), lambda *_: Taking(), LARGEST_BYTES)


def definition(**changes):
    base = {"name": "c", "data_set": "out", "key_file": "key"}
    return Definition.model_construct(**base, query={"StudyDate": "2020"}, series_list=None, folder=None, **changes)


@pytest.fixture
def dimse():
    """Start a pynetdicom archive with these handlers; return our source for it."""
    servers = []

    def start(find=None, get=None):
        entity = AE("ARCHIVE")
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        entity.add_supported_context(CT, ImplicitVRLittleEndian, scu_role=True, scp_role=True)
        handlers = [(event, each) for event, each in ((evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)) if each]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        servers.append(server)
        archive = Archive(host="127.0.0.1", port=server.server_address[1], ae_title="ARCHIVE", response_timeout_s=5)
        return DimseArchive(definition(), archive, "NODE", WANTED)

    yield start
    for server in servers:
        server.shutdown()


def answer(**keys):
    found = Dataset()
    for keyword, value in keys.items():
        setattr(found, keyword, value)
    return found


def test_studies_are_queried_first_and_then_the_series_of_each(dimse):
    asked = []

    def find(event):
        query = event.identifier
        asked.append({element.keyword: str(element.value or "") for element in query})
        if query.QueryRetrieveLevel == "STUDY":
            for study in ("1.2", "1.3", "1.2", "no UID"):
                yield 0xFF00, answer(StudyInstanceUID=study)
        elif query.StudyInstanceUID == "1.2":
            yield 0xFF00, answer(SeriesInstanceUID="1.2.1", NumberOfSeriesRelatedInstances="40")
            yield 0xFF00, answer(SeriesInstanceUID="1.2.2")

    assert list(dimse(find).select()) == [Selected("1.2.1", "1.2", 40), Selected("1.2.2", "1.2", None)]
    assert [each["QueryRetrieveLevel"] for each in asked] == ["STUDY", "SERIES", "SERIES"]
    assert asked[0]["StudyDate"] == "2020"
    assert [(each["StudyInstanceUID"], each["Modality"]) for each in asked[1:]] == [("1.2", "CT"), ("1.3", "CT")]


@pytest.mark.parametrize("count", ["2147483648", "999999999999", "0", "-1"])
def test_count_that_is_none_is_left_out(dimse, count):
    def find(event):
        if event.identifier.QueryRetrieveLevel == "STUDY":
            yield 0xFF00, answer(StudyInstanceUID="1.2")
        else:
            found = answer(SeriesInstanceUID="1.2.1")
            yield 0xFF00, with_count(found, count)

    assert list(dimse(find).select()) == [Selected("1.2.1", "1.2", None)]


def test_refused_query_is_reported_with_its_status(dimse):
    def refuse(_event):
        yield 0xA700, None

    with pytest.raises(NetworkError, match="study level with status A700"):
        list(dimse(refuse).select())


def test_refused_c_get_is_reported_with_its_status(dimse):
    def refuse(_event):
        yield 1
        yield 0xA701, None

    with pytest.raises(NetworkError, match="answered a C-GET with status A701"):
        dimse(get=refuse).pull(Selected("1.2.1", "1.2", 1))


@pytest.mark.parametrize("size", [1000, LARGEST_BYTES])
def test_instance_of_a_c_get_that_is_too_large_is_refused(dimse, size):
    def send(_event):
        yield 2
        for number in range(2):
            image = Dataset()
            image.SOPClassUID, image.SOPInstanceUID = CT, f"1.2.1.{number}"
            image.PixelData = bytes(size)
            image["PixelData"].VR = "OW"
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            yield 0xFF00, image

    source, series = dimse(get=send), Selected("1.2.1", "1.2", 2)
    if size < LARGEST_BYTES:
        assert source.pull(series) == Pulled(0, "")
        return
    with pytest.raises(NetworkError, match="more than 2000 bytes") as refused:
        source.pull(series)
    assert refused.value.disposition is Disposition.FAIL, "tried again only as often as the limits of a cohort say"


def test_unreachable_archive_is_not_counted_against_the_series():
    archive = Archive(host="127.0.0.1", port=1, ae_title="ARCHIVE", connect_timeout_s=1)
    with pytest.raises(ConnectionLost):
        DimseArchive(definition(), archive, "NODE", WANTED).pull(Selected("1.2.1", "1.2", 1))


# ---- DICOMweb


credentials: list[str | None] = []


@pytest.fixture
def web():
    """Start a server that answers ``path -> (status, content type, body)``; return our source and the paths."""
    servers = []

    def start(respond):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                credentials.append(self.headers.get("Authorization"))
                status, kind, body = respond(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        settings = WebSettings(url=f"http://127.0.0.1:{server.server_port}/dicom-web", timeout_s=5)
        source = WebArchive(definition(), settings, WANTED)
        servers.append(source)
        return source, asked

    yield start
    for each in servers:
        if isinstance(each, WebArchive):
            each.close()
        else:
            each.shutdown()
            each.server_close()


def part(size):
    return b"--b\r\nContent-Type: application/dicom\r\n\r\n" + bytes(size) + b"\r\n"


def study(number):
    return {"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}}


def test_answers_are_requested_in_pages_even_from_a_server_that_ignores_paging(web):
    everything = [study(number) for number in range(200)]

    def respond(path):
        return (200, "application/dicom+json", json.dumps([] if "/series" in path else everything).encode())

    source, asked = web(respond)
    assert list(source.select()) == []
    assert sum("/studies?" in path for path in asked) == 2
    assert "limit=200" in asked[0]
    assert "offset=200" in asked[1]


def test_archive_with_smaller_pages_is_asked_until_there_is_nothing_new(web):
    def respond(path):
        if "/series" in path:
            return (204, "application/dicom+json", b"")
        offset = int(path.partition("offset=")[2])
        return (
            200,
            "application/dicom+json",
            json.dumps([study(n) for n in range(offset, min(offset + 100, 250))]).encode(),
        )

    source, asked = web(respond)
    list(source.select())
    assert len({path.partition("?")[0] for path in asked if "/series" in path}) == 250


def test_user_and_password_come_from_netrc(web, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login reader password secret\n")
    credentials.clear()
    source, _ = web(lambda _path: (204, "application/dicom+json", b""))
    assert list(source.select()) == []
    assert credentials == ["Basic " + b64encode(b"reader:secret").decode()]
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login reader secret\n")
    with pytest.raises(ConfigurationError, match="is no entry of a netrc file") as caught:
        web(lambda _path: (204, "application/dicom+json", b""))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "body", "error", "says"),
    [
        (503, "text/plain", b"", ConnectionLost, "HTTP status 503"),
        (404, "text/plain", b"", NetworkError, "HTTP status 404"),
        (200, "text/html", b"<html>", NetworkError, "answered with text/html"),
        (200, 'multipart/related; boundary="b"', b"nothing of the kind", NetworkError, "unexpected response"),
        (200, 'multipart/related; boundary="b"', b"--b\r\n\r\nabc", ConnectionLost, "truncated"),
        (200, 'multipart/related; boundary="b"', part(LARGEST_BYTES + 1), NetworkError, "more than 2000 bytes"),
    ],
)
def test_invalid_wado_answer_is_an_error(web, status, kind, body, error, says):
    source, _ = web(lambda _path: (status, kind, body))
    with pytest.raises(error, match=says):
        source.pull(Selected("1.2.1", "1.2", 1))


def test_parts_up_to_the_largest_size_are_taken(web):
    source, _ = web(lambda _path: (200, 'multipart/related; boundary="b"', 2 * part(LARGEST_BYTES) + b"--b--\r\n"))
    assert source.pull(Selected("1.2.1", "1.2", 2)) == Pulled(0, "")


# ---- the list


def test_listed_series_that_the_archive_lacks_stays_in_the_cohort(dimse, tmp_path):
    def find(event):
        if event.identifier.StudyInstanceUID == "1.2":
            yield 0xFF00, answer(SeriesInstanceUID="1.2.1", NumberOfSeriesRelatedInstances="40")

    file = tmp_path / "list.txt"
    file.write_text("1.2\n1.3 1.3.1\n1.4\n")
    source = dimse(find)
    source._definition = source._definition.model_copy(update={"query": None, "series_list": file})
    with capture_logs() as logs:
        assert list(source.select()) == [Selected("1.2.1", "1.2", 40), Selected("1.3.1", "1.3", None)]
    assert [(line["event"], line["study"]) for line in logs] == [("cohort.nothing_found", "1.4")]


def test_list_names_studies_and_series_and_a_bad_line_is_named(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# ours\n1.2.3\n\n1.2.4 1.2.4.1  # one series\n")
    assert list(read_list(file)) == [("1.2.3", ""), ("1.2.4", "1.2.4.1")]
    file.write_text("1.2.3\n4711;Meier\n")
    with pytest.raises(ConfigurationError, match=r"list\.txt:2: expected the UID"):
        list(read_list(file))
