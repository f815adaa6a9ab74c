"""Another process with a worker's name."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dicom_node.store.workers import WorkerName

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME_OF_THIS_PROCESS = "from dicom_node.store.workers import WorkerName; print(WorkerName.own(), flush=True); input()"


@contextmanager
def other_process() -> Iterator[tuple[subprocess.Popen[str], WorkerName]]:
    """A process that lives until its standard input ends, and its worker name."""
    with subprocess.Popen(
        [sys.executable, "-c", _NAME_OF_THIS_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, WorkerName.parse(process.stdout.readline().rstrip("\n"))
        finally:
            process.kill()
