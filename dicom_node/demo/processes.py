"""The programs that the demo starts; each is always ended, by its process id."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STOP_LIMIT_S = 40.0
_LAST_LINES = 15
_LOWEST_PORT = 15000


class ProgramFailed(Exception):
    """A program of the demo ended early or did not become ready; the message includes the end of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that is currently free.

    It is below those that the kernel gives to outgoing connections, of which one may get it before the program starts.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    while True:
        port = random.randrange(_LOWEST_PORT, max(first_ephemeral, _LOWEST_PORT + 1000))  # noqa: S311 - no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Program:
    """One started program; its output goes to ``log_file``. A context manager that ends it."""

    def __init__(
        self, name: str, command: Sequence[str], log_file: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log_file = log_file
        with log_file.open("wb") as log:
            # its own session: Ctrl-C reaches only the demo, which then ends its programs in order
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process_id(self) -> int:
        """The id of the program's first process."""
        return self._process.pid

    def wait_for_port(self, port: int, limit_s: float = 60.0) -> None:
        """Return as soon as the program accepts connections on ``port`` of the loopback interface.

        Raises:
            ProgramFailed: it ended, or did not listen within ``limit_s``.
        """
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self.check_alive()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise ProgramFailed(f"{self.name} did not listen on port {port} within {limit_s:.0f} s:\n{self._log_end()}")

    def check_alive(self) -> None:
        """Raise ProgramFailed if the program has ended."""
        code = self._process.poll()
        if code is not None:
            raise ProgramFailed(f"{self.name} ended with exit code {code}:\n{self._log_end()}")

    def stop(self) -> None:
        """End the program with SIGTERM, or with SIGKILL to its session if it does not end in time."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _log_end(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])
