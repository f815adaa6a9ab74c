"""What Linux says about memory: how much there is, what a process holds, and whether the kernel ran out of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of versions 2 and 1, as a container sees its own."""


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process runs in where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(file.read_text()))
    return min(found)


def resident_bytes(process_id: int) -> int:
    """What a process holds in memory; 0 when it is gone.

    Pages that it shares with others, such as the voxels of a request, count in parts (PSS); on a kernel that does not
    tell, they count in full (RSS).
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
    """How many processes the kernel has ended since it started because memory ran out."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
