"""A model controlled step by step by a test, in real worker processes.

A volume is identified by its HU, which is the same number everywhere; every voxel of its labels is that number. The
test communicates through a folder: ``Script.hold`` stops a step of a volume until it is released, ``Script.fail`` makes
it fail, ``Script.events`` lists what has happened so far, in order.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import SegmentationRefusedError
from inference.structures import STRUCTURES
from inference.types import ModelIdentity, Segmentation

if TYPE_CHECKING:
    import pytest

_FOLDER = "SCRIPTED_WORKER"
_LONGEST_S = 60
_MIB = 1024**2
_PLUG = """
from dicom_node.work import models
from tests.support.scripted_worker import ScriptedSegmenter
models.load_segmenter = lambda name, model, work: ScriptedSegmenter(name)
"""


class Script:
    """The test's side."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every worker started from now on follow the script in ``folder``."""
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_PLUG)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv(_FOLDER, str(folder))

    def hold(self, step: str) -> None:
        """Make a step, such as ``infer 1`` or ``load a``, begin and then wait for :meth:`release`."""
        (self.folder / f"hold {step}").touch()

    def release(self, step: str) -> None:
        (self.folder / f"hold {step}").unlink()

    def fail(self, step: str, how: str) -> None:
        """Make the next ``step`` end with ``kill``, ``memory``, ``refuse`` or, permanently, ``always kill``."""
        (self.folder / f"fail {step}").write_text(how)

    def grow(self, step: str, mib: int) -> None:
        """Make the process allocate this much more memory in ``step`` and keep it."""
        (self.folder / f"grow {step}").write_text(str(mib))

    def events(self) -> list[str]:
        file = self.folder / "events"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, event: str) -> None:
        end = time.monotonic() + _LONGEST_S
        while event not in self.events():
            assert time.monotonic() < end, f"no {event!r} among {self.events()}"
            time.sleep(0.01)


class ScriptedSegmenter:
    """The worker's side."""

    def __init__(self, name: str) -> None:
        self.identity = ModelIdentity(name, "1", "0" * 64, "Thresholding")
        self.names_by_label = {label: each.name for label, each in enumerate(STRUCTURES[:99], start=1)}
        self._folder = Path(os.environ[_FOLDER])
        self._kept: list[np.ndarray] = []
        self._step(f"load {name}")

    def prepare(self, volume, progress):
        self._step(f"prepare {_number(volume)}")
        return volume

    def infer(self, prepared, progress):
        number = _number(prepared)
        progress(0.5, "windows")
        self._step(f"infer {number}")
        labels = np.full(prepared.geometry.shape_zyx, number, np.uint8)
        return Segmentation(labels, prepared.geometry, self.names_by_label, self.identity)

    def segment(self, volume, progress):
        return self.infer(self.prepare(volume, progress), progress)

    def _step(self, step: str) -> None:
        self._tell(f"{step} begins")
        while (self._folder / f"hold {step}").exists():
            time.sleep(0.01)
        grow, fail = self._folder / f"grow {step}", self._folder / f"fail {step}"
        if grow.exists():
            self._kept.append(np.ones(int(grow.read_text()) * _MIB, np.uint8))
        if fail.exists():
            how = fail.read_text()
            if not how.startswith("always"):
                fail.unlink()
            self._fail(how.removeprefix("always "))
        self._tell(f"{step} ends")

    def _fail(self, how: str) -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "refuse":
            raise SegmentationRefusedError("the script says no")
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * _MIB, before[1]))
        try:
            np.ones(256 * _MIB, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    def _tell(self, event: str) -> None:
        with (self._folder / "events").open("a") as file:
            file.write(f"{event}\n")


def _number(volume) -> int:
    return int(volume.voxels_zyx[0, 0, 0])
