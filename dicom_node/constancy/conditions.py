"""What an answer may depend on besides the model: node, libraries, driver, machine, backend, device and precision."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import __version__

if TYPE_CHECKING:
    from inference.types import RunReport

LIBRARIES = ("numpy", "scipy", "torch", "openvino")
"""Those that compute with voxels."""
NONE = "none"
KNOWN_BEFORE_A_RUN = ("dicom_node", "python", "libraries", "nvidia_driver", "processor")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_PROCESSORS = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where a model ran; each value is text for people, :data:`NONE` where there is nothing of the kind.

    ``libraries`` are name and version of :data:`LIBRARIES`, joined by commas; torch names its CUDA too.
    """

    dicom_node: str
    python: str
    libraries: str
    nvidia_driver: str
    processor: str
    backend: str = NONE
    device: str = NONE
    precision: str = NONE
    deviations: str = NONE
    """What went otherwise than planned during the run and may change the answer, such as a fallback."""


def conditions_of(run: RunReport | None) -> Conditions:
    """Those of this process; ``run`` says what ran the model, if anything has."""
    ran = {}
    if run is not None:
        notes = "; ".join(note.text for note in run.notes if note.changes_answer)
        ran = {"backend": run.backend, "device": run.device, "precision": run.precision, "deviations": notes or NONE}
    return Conditions(
        dicom_node=__version__,
        python=platform.python_version(),
        libraries=", ".join(filter(None, map(_library, LIBRARIES))),
        nvidia_driver=_found(_NVIDIA_DRIVER, r"Kernel Module\D*([\d.]+)"),
        processor=_found(_PROCESSORS, r"model name\s*:\s*(.+)"),
        **ran,
    )


def _library(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def _found(path: Path, pattern: str) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return NONE
    match = re.search(pattern, text)
    return match[1].strip() if match else NONE
