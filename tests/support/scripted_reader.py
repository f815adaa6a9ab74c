"""Reading children controlled by a test: a decoder that spins, crashes, sleeps or allocates memory, in real processes.

It does so for images of ``ROWS`` rows only, and while headers are read for those of the patient ``PATIENT``.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ROWS = 9
PATIENT = "POISON"
_HOW = "SCRIPTED_READER"
_PLUG = """
from tests.support import scripted_reader
scripted_reader.plug()
"""


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Make every child started from now on do ``how``: spin, crash, sleep or memory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_PLUG)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv(_HOW, how)


def plug() -> None:
    """Called in the child before anything else."""
    from dicom_node.reconstruct import volume  # noqa: PLC0415 - in the child only
    from dicom_node.standard import files  # noqa: PLC0415

    decode, read = volume.stored_frames, files.read_header

    def stored_frames(source):
        if source.description.rows == ROWS:
            _do()
        return decode(source)

    def read_header(stream, allowance):
        if PATIENT.encode() in stream.read(2000):
            _do()
        stream.seek(0)
        return read(stream, allowance)

    volume.stored_frames, files.read_header = stored_frames, read_header


def _do() -> None:
    match os.environ[_HOW]:
        case "spin":
            while True:
                pass
        case "crash":
            warnings.warn("Doe^John", stacklevel=1)
            logging.getLogger("pydicom").warning("Doe^John")
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sleep":
            time.sleep(600)
        case "memory":
            np.ones(2**40, np.uint8)
        case "fault":
            raise RuntimeError("Doe^John")
