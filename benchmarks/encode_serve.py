"""How fast a real Orthanc serves a SEG to a viewer: ``python benchmarks/encode_serve.py --folder FOLDER SEG...``.

Every SEG is sent to a separate Orthanc (Debian's, with only the DICOMweb plugin) by STOW-RS. Prints JSON: seconds to
store it and to answer a request for its series' metadata, and milliseconds per frame (median of several, spread over
the object, each requested once as ``/frames/N`` like by viewers). Prints ``{}`` if Orthanc or the plugin is not
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from pydicom import dcmread

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.demo.processes import Program, free_port

ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
JSON = "application/dicom+json"
PARTS = 'multipart/related; type="application/dicom"; boundary=part'
PART_HEAD, PART_END = b"--part\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--part--"
ANSWER_LIMIT_S = 300


def served(seg: Path, folder: Path, frames: int) -> dict[str, Any]:
    dataset = dcmread(seg, stop_before_pixels=True)
    port = free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "UnknownSopClassAccepted": True,
        "Plugins": [str(DICOMWEB)],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with Program("Orthanc", [str(ORTHANC), str(folder / "orthanc.json")], folder / "orthanc.log") as orthanc:
        orthanc.wait_for_port(port)
        base = f"http://127.0.0.1:{port}"
        version = json.loads(answer(f"{base}/system"))["Version"]
        content = b"".join((PART_HEAD, seg.read_bytes(), PART_END))
        store_s = timed(f"{base}/dicom-web/studies", content, {"Content-Type": PARTS, "Accept": JSON})
        del content
        series = f"{base}/dicom-web/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
        metadata_s = timed(f"{series}/metadata", None, {"Accept": JSON})
        count = int(dataset.NumberOfFrames)
        numbers = [1 + index * (count - 1) // max(frames - 1, 1) for index in range(frames)]
        place = f"{series}/instances/{dataset.SOPInstanceUID}/frames"
        accepted = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
        frame_s = [timed(f"{place}/{number}", None, accepted) for number in numbers]
    return {
        "orthanc": version,
        "frames": count,
        "store_s": store_s,
        "metadata_s": metadata_s,
        "frame_ms": 1e3 * statistics.median(frame_s),
        "frames_asked": frames,
    }


def timed(address: str, content: bytes | None, headers: dict[str, str]) -> float:
    start = time.perf_counter()
    answer(address, content, headers)
    return time.perf_counter() - start


def answer(address: str, content: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(address, data=content, headers=headers or {})
    with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as found:
        body: bytes = found.read()
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("segs", type=Path, nargs="+")
    arguments = parser.parse_args()
    found = {}
    for seg in arguments.segs if ORTHANC and DICOMWEB.exists() else ():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found[seg.stem] = served(seg, Path(folder), arguments.frames)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
