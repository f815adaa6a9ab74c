"""Finds what this machine offers: a CUDA device, fast arithmetic, cores, memory."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inference.errors import InferenceError

if TYPE_CHECKING:
    from inference.nnunet.contract import EngineOptions

Device = Literal["cpu", "cuda"]


def effective_device(options: EngineOptions) -> Device:
    """Where the convolutions run.

    Raises:
        InferenceError: CUDA was requested but is not available.
    """
    if options.device == "cpu" or (options.device == "auto" and options.backend == "openvino"):
        return "cpu"
    if _cuda_is_available():
        return "cuda"
    if options.device == "cuda":
        raise InferenceError("device cuda was requested, but torch finds no CUDA device")
    return "cpu"


def effective_precision(options: EngineOptions) -> Literal["float32", "bfloat16", "float16"]:
    """The precision of the convolutions; parity runs in float32 unless another is requested."""
    if options.precision != "auto":
        return options.precision
    if options.parity:
        return "float32"
    if effective_device(options) == "cuda":
        return "float16"
    return "bfloat16" if "avx512_bf16" in _cpu_flags() else "float32"


def _cuda_is_available() -> bool:
    """Asks the driver first: without a driver, torch need not be imported."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    import torch  # noqa: PLC0415 - see above

    return torch.cuda.is_available()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - not a path of ours
            return next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def available_memory_bytes() -> int:
    """Memory that this process can still take, limited by the machine or by its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = _lines(Path("/proc/meminfo"))
    found.extend(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    limit, used, kinds = (_lines(_CONTROL_GROUP / f"memory.{name}") for name in ("max", "current", "stat"))
    if limit and used and limit[0].isdigit():
        # the page cache counts as used, but the kernel reclaims its inactive pages on demand
        cached = sum(int(line.split()[1]) for line in kinds if line.startswith("inactive_file "))
        found.append(int(limit[0]) - int(used[0]) + cached)
    return max(0, min(found))


_CONTROL_GROUP = Path("/sys/fs/cgroup")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
