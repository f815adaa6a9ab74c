"""Measures what a listed sender keeps of its speed while another peer floods the listener, on loopback.

``python benchmarks/receive_flood.py [TREE ...] [--seconds S] [--rounds R] [--case WORDS]``. TREE is a checkout whose
listener is measured (default: this one); several take turns. In each case one sender stores CT slices of 529 kB from
127.0.0.1 for S seconds alone, and then for S seconds while four connections at a time come from 127.0.0.2. Sender and
flood are processes of their own, and all share the processors: part of what the sender loses is what the flood computes
itself.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydicom import dcmread
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from receive import free_port, running, write_series

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.network import dimse, pdu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parents[1]
LISTED, FLOOD_ADDRESS, ARCHIVE = "STORESCU", "127.0.0.2", "ARCHIVE"
CONNECTIONS = 4
ITEMS_OF_A_REQUEST, ITEMS_OF_A_HEADER = 9_000, 45_000
ANSWER_LIMIT_S = 10.0
LARGEST_FRAGMENT = 131072 - pdu.PDV_HEADER.size
ANYWHERE: list[str] = []
HERE_ONLY = ["127.0.0.1"]


def request(calling: str, items: int = 0) -> bytes:
    """An association request for CT Image Storage, with so many transfer syntaxes in a second context."""
    context = pdu.ProposedContext(1, CTImageStorage, (ExplicitVRLittleEndian,))
    encoded = pdu.AssociationRequest(calling, ARCHIVE, (context,), 131072).encoded()
    syntaxes = b"\x03\0\0\0\x30\0\0\x031.2" + b"\x40\0\0\x031.2" * items
    second = b"\x20\0" + len(syntaxes).to_bytes(2) + syntaxes if items else b""
    body = encoded[pdu.HEADER.size :] + second
    return pdu.HEADER.pack(pdu.PduType.ASSOCIATE_RQ, len(body)) + body


def connection(port: int, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT_S, (address, 0))


class Association:
    """An association that stores without any check, as fast as the listener answers."""

    def __init__(self, port: int, address: str, calling: str) -> None:
        self.socket = connection(port, address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request(calling))
        self.read_pdu()

    def store(self, sop_instance_uid: str, dataset: bytes) -> int:
        """The status of a C-STORE."""
        command = dimse.store_request(CTImageStorage, sop_instance_uid).command(1).encoded()
        self.socket.sendall(pdu.p_data(1, pdu.COMMAND | pdu.LAST, command))
        for start in range(0, len(dataset), LARGEST_FRAGMENT):
            is_last = start + LARGEST_FRAGMENT >= len(dataset)
            fragment = dataset[start : start + LARGEST_FRAGMENT]
            self.socket.sendall(pdu.p_data(1, pdu.LAST if is_last else 0, fragment))
        (answer,) = pdu.fragments(memoryview(self.read_pdu()))
        return dimse.CommandSet.decode(bytes(answer.data)).number(dimse.Element.STATUS)

    def read_pdu(self) -> bytes:
        _, length = pdu.HEADER.unpack(self._read(pdu.HEADER.size))
        return self._read(length)

    def _read(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            if not (part := self.socket.recv(count - len(received))):
                raise ConnectionError("closed by the listener")
            received += part
        return received


def slices(items: int = 0) -> Iterator[tuple[str, bytes]]:
    """CT slices without end, each with its SOP Instance UID; with so many empty items in a sequence, without pixels."""
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder, "series"), 1)
        dataset = dcmread(next(Path(folder, "series").iterdir()))
    dataset.SOPInstanceUID = placeholder = "1.2.3.100000000000"
    if items:
        dataset.add_new(0x00081140, "OB", b"\xfe\xff\x00\xe0\0\0\0\0" * items)
        dataset.PixelData = bytes(8)
    buffer = DicomFileLike(BytesIO())
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    encoded = buffer.parent.getvalue().replace(b"\x08\0\x40\x11OB", b"\x08\0\x40\x11SQ")
    for number in itertools.count(10**11 + time.time_ns() // 1000 % 10**8 * 10**3):
        uid = f"1.2.3.{number:012}"
        yield uid, encoded.replace(placeholder.encode(), uid.encode(), 1)


def stored_until(end: float, port: int, address: str, calling: str, items: int = 0) -> int:
    """How many instances one sender stored."""
    count, association = 0, Association(port, address, calling)
    for uid, dataset in slices(items):
        if time.monotonic() >= end:
            return count
        count += association.store(uid, dataset) == 0
    raise AssertionError("slices do not end")


def connected_until(end: float, port: int, payload: bytes) -> int:
    """How many connections were answered or closed."""
    count = 0
    while time.monotonic() < end:
        with (
            suppress(OSError),
            connection(port, FLOOD_ADDRESS) as one,
        ):
            one.sendall(payload)
            while one.recv(1000):
                pass
        count += 1
    return count


def strangers(items: int) -> Callable[[float, int], int]:
    return lambda end, port: connected_until(end, port, request("STRANGER", items))


CASES: dict[str, tuple[list[str], Callable[[float, int], int]]] = {
    "requests from an address of no source": (HERE_ONLY, strangers(0)),
    "requests with an AE title of no source": (ANYWHERE, strangers(0)),
    f"the same, with {ITEMS_OF_A_REQUEST:,} items": (ANYWHERE, strangers(ITEMS_OF_A_REQUEST)),
    f"a source's headers of {ITEMS_OF_A_HEADER:,} items": (
        ANYWHERE,
        lambda end, port: stored_until(end, port, FLOOD_ADDRESS, "OTHER", ITEMS_OF_A_HEADER),
    ),
}
"""Where the sources may come from, and one connection of the flood; it returns how often it did its harm."""


def flood(case: str, port: int, seconds: float) -> int:
    end, counts = time.monotonic() + seconds, []
    threads = [threading.Thread(target=lambda: counts.append(CASES[case][1](end, port))) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def started(role: list[str], port: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *role, "--port", str(port), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def per_second(process: subprocess.Popen[str], seconds: float) -> float:
    output, _ = process.communicate(timeout=seconds + 60)
    return float(output) / seconds


def measure(tree: Path, case: str, seconds: float, scratch: Path) -> tuple[float, float, float]:
    """Stores per second alone and under the flood, and what the flood did per second."""
    port = free_port()
    sources = [{"ae_title": ae_title, "addresses": CASES[case][0]} for ae_title in (LISTED, "OTHER")]
    node = {"ae_title": ARCHIVE, "port": port, "data_folder": str(scratch / "data")}
    (scratch / "node.yaml").write_text(yaml.safe_dump({"node": node, "sources": sources}))
    command = [sys.executable, str(tree / "benchmarks" / "receive.py"), "--listen", str(scratch / "node.yaml")]
    with running(command, port, scratch / "log"):
        alone = per_second(started(["--send"], port, seconds), seconds)
        flooding = started(["--flood", case], port, seconds + 2)
        time.sleep(1)
        under_flood = per_second(started(["--send"], port, seconds), seconds)
        return alone, under_flood, per_second(flooding, seconds + 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[HERE], metavar="TREE")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", default="", help="only the cases with these words")
    parser.add_argument("--send", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        print(stored_until(time.monotonic() + options.seconds, options.port, "127.0.0.1", LISTED))
        return
    if options.flood:
        print(flood(options.flood, options.port, options.seconds))
        return
    print(f"{'median stores/s of a listed sender':44}{'alone':>8}{'flooded':>9}{'kept':>7}{'flood/s':>9}  tree")
    for case in (each for each in CASES if options.case in each):
        figures: dict[Path, list[tuple[float, float, float]]] = {tree: [] for tree in options.trees}
        for _ in range(options.rounds):
            for tree in options.trees:
                with tempfile.TemporaryDirectory() as scratch:
                    figures[tree].append(measure(tree, case, options.seconds, Path(scratch)))
        for tree, rounds in figures.items():
            alone, flooded, harm = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"{case:44}{alone:8.0f}{flooded:9.1f}{flooded / alone:7.0%}{harm:9.1f}  {tree.name}", flush=True)


if __name__ == "__main__":
    main()
