"""Who is told of alarms: a mail server and a web server on loopback."""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Smtp(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as a relay needs to take a message."""

    def handle(self):
        self._say("220 relay")
        while line := self.rfile.readline():
            verb = line.split()[0].upper() if line.split() else b""
            if verb == b"DATA":
                self._say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.received.append(message_from_bytes(b"".join(lines), policy=policy.default))
            self._say("221 bye" if verb == b"QUIT" else "250 ok")

    def _say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


class _SmtpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.server.answers_after.wait(60)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_args):
        pass


@contextmanager
def _serving(server):
    server.received = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mail_server(port=0):
    """A running server; ``received`` are the messages, ``server_address`` is where it listens."""
    return _serving(_SmtpServer(("127.0.0.1", port), _Smtp))


def web_server(port=0, status=204, answers_after=None):
    """As above; ``received`` are the path, content type and content of each POST, answered with ``status``.

    ``answers_after``: an event to wait for.
    """
    server = ThreadingHTTPServer(("127.0.0.1", port), _Hook)
    server.status, server.answers_after = status, answers_after or threading.Event()
    if answers_after is None:
        server.answers_after.set()
    return _serving(server)
