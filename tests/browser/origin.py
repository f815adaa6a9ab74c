"""OHIF's files and Orthanc's DICOMweb on one origin, as deploy/compose/viewer.conf does with nginx."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ANSWER_LIMIT_S = 300
_NOT_FORWARDED = {"connection", "keep-alive", "transfer-encoding", "accept-encoding"}


class _Origin(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, orthanc_port: int, configuration: Path, **named):
        self._orthanc_port = orthanc_port
        self._configuration = configuration
        super().__init__(*arguments, **named)

    def do_GET(self):
        place = self.path.partition("?")[0]
        if place.startswith("/dicom-web/"):
            self._forward()
            return
        if place == "/app-config.js":
            self._answer(self._configuration.read_bytes(), "text/javascript")
            return
        # a single-page application handles unknown paths itself
        path = self.translate_path(place)
        if "." not in path.rpartition("/")[2]:
            self.path = "/index.html"
        super().do_GET()

    def _forward(self):
        connection = HTTPConnection("127.0.0.1", self._orthanc_port, timeout=_ANSWER_LIMIT_S)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
            connection.request("GET", self.path, headers=kept)
            answer = connection.getresponse()
            body = answer.read()
            self._answer(body, answer.getheader("Content-Type", "application/octet-stream"), answer.status)
        finally:
            connection.close()

    def _answer(self, body: bytes, content_type: str, status: int = 200):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Log nothing: the browser's own log is more detailed."""


@contextmanager
def serve(site: Path, configuration: Path, orthanc_port: int) -> Iterator[str]:
    """Serve the files in ``site``, OHIF's ``configuration``, and Orthanc under /dicom-web; gives the address."""
    handler = partial(_Origin, directory=str(site), orthanc_port=orthanc_port, configuration=configuration)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
