"""TotalSegmentator's own SEG writer: ``PYTHON benchmarks/encode_totalsegmentator.py FOLDER``, by a Python that has it.

Prints JSON like ``encode_one.py``. Its input are the labels in the form used in its pipeline, (x, y, z) along Right,
Anterior and Superior, with their names, and the folder of the series, which it reads itself.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import highdicom  # noqa: F401 - the writer imports it when it is called, which is not what is measured
import numpy as np
from totalsegmentator.dicom_io import save_mask_as_dicomseg


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def main() -> None:
    inputs = Path(sys.argv[1])
    labels_zyx = np.load(inputs / "labels.npy")
    along_ras = np.ascontiguousarray(labels_zyx.transpose(2, 1, 0)[:, ::-1])
    described = json.loads((inputs / "segments.json").read_text())["segmentAttributes"][0]
    names = {entry["labelID"]: entry["SegmentLabel"] for entry in described}
    del labels_zyx
    base = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with tempfile.TemporaryDirectory(dir=inputs) as folder:
        wall, cpu = time.perf_counter(), cpu_seconds()
        save_mask_as_dicomseg(along_ras, names, inputs / "ct", Path(folder), np.diag([-1.0, -1.0, 1.0, 1.0]))
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        sizes = [path.stat().st_size for path in Path(folder).iterdir()]
    peak = resident_bytes("VmHWM") - base
    figures = {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "base_bytes": base, "bytes": sum(sizes)}
    print(json.dumps(figures | {"files": len(sizes)}))


if __name__ == "__main__":
    main()
