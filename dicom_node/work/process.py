"""A child process with a channel: how it is started and ended, and what ended it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import structlog

from dicom_node.work.channel import Channel
from dicom_node.work.lifetime import die_with
from dicom_node.work.memory import kernel_kills

_EXIT_WAIT_S = 5.0
_TAIL_BYTES = 1500
_NICENESS = 5
"""The listener and the deliveries have priority; a segmentation takes seconds anyway."""
_EXPENDABLE = "500"
"""If memory runs out, the kernel should kill this process, which is replaced, and not the listener."""


class ChildProcess:
    """The process, our end of its channel, and its stderr (which can't contain patient data)."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, stderr: IO[bytes]) -> None:
        self.process = process
        self.channel = channel
        self._stderr = stderr
        self._kills_before = kernel_kills()

    @classmethod
    def start(cls, module: str) -> ChildProcess:
        """Start ``module`` with the descriptor of its socket and our process id as arguments.

        Linux ends the child together with the thread that calls this (see :func:`become_expendable`).

        Raises:
            OSError: there is not enough memory, or there are too many processes or descriptors.
        """
        with contextlib.ExitStack() as failed:
            ours, theirs = (failed.enter_context(end) for end in socket.socketpair())
            stderr = failed.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                env=_environment(),
            )
            failed.pop_all()  # keep them open as long as the process runs
        theirs.close()
        return cls(process, Channel(ours), stderr)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did; waits for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return -min(0, self.process.wait(_EXIT_WAIT_S)) or None
        return None

    def kill(self) -> None:
        """End the process and everything in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_EXIT_WAIT_S)

    def close(self) -> None:
        """Close what this process has of it."""
        self.channel.close()
        self._stderr.close()

    def end(self) -> str:
        """How it ended: signal or exit status.

        The last lines it wrote go to the log alone: reasons end in patients' studies, and these lines name our files.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_EXIT_WAIT_S)
        code = self.process.poll()
        if code is None:
            how = "it closed its channel but did not exit"
        elif code == -signal.SIGKILL:
            how = f"signal SIGKILL, {self._who_killed()}"
        elif code < 0:
            how = f"signal {signal.Signals(-code).name}"
        else:
            how = f"exit status {code}"
        structlog.get_logger().error("child.ended", pid=self.process.pid, how=how, output=self._tail())
        return how

    def _who_killed(self) -> str:
        if kernel_kills() > self._kills_before:
            return "probably out of memory: the kernel killed a process for lack of memory while this one ran"
        return "sent by a user, or by the kernel for lack of memory"

    def _tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        text = self._stderr.read().decode(errors="replace")
        return " | ".join(line.strip() for line in text.splitlines() if line.strip())


def become_expendable(node_process: int) -> None:
    """Called by the child: it has the lowest priority, is killed first if memory runs out, and ends with the node."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's voxels
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
    die_with(node_process)


def _environment() -> dict[str, str]:
    """Ours, without the node's settings (a database's password may be there), and with this package importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE__")}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
