"""Memory figures from Linux: the total, the use of a process, and whether the kernel ran out of memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""For cgroup versions 2 and 1, as seen inside a container."""


def machine_bytes() -> int:
    """Total memory of this machine, or the limit of this process's container if that is lower."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(file.read_text()))
    return min(found)


def resident_bytes(process_id: int) -> int:
    """Memory used by a process; 0 if it has ended.

    Pages shared with other processes, such as the voxels of a request, count proportionally (PSS), or in full (RSS) on
    a kernel that does not report PSS.
    """
    folder = Path(f"/proc/{process_id}")
    with contextlib.suppress(OSError):
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def kernel_kills() -> int:
    """How many processes the kernel has killed since boot because memory ran out."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
