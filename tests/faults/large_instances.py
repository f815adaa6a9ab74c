"""Enhanced CT of a gigabyte each, several at a time: they go to disk as they come."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
import threading
import time
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

from tests.faults.case import FaultCase, Outcome
from tests.faults.listening import Node, Told, left
from tests.integration.receive.peer import Peer, pdv_command, pdv_data, store_command
from tests.support.sent_slices import ct_slice, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEBIBYTES = 1024
SENDERS = 4
MEMORY_LIMIT_MB = 250.0
_MEBIBYTE = 1024 * 1024
_ROWS = 512
_FRAME_BYTES = _ROWS * _ROWS * 2
_FRAGMENT = 131072 - 6
"""What fits into the largest PDU of the listener."""
_ROOM = 1.25
"""Free disk that is asked for, as a multiple of what is sent."""
_ANSWER_LIMIT_S = 600.0


def large(folder: Path, rounds: int) -> Outcome:
    """Store four instances of ``rounds`` MiB of pixels at once."""
    wanted, free = SENDERS * rounds * _MEBIBYTE, shutil.disk_usage(folder).free
    if free < wanted * _ROOM:
        return Outcome({"instances": 0}, {"free disk, MB": free // 10**6}, ("too little free disk for the images",))
    node, told = Node(folder / "node"), Told()
    senders = [LargeSender(node.port, number, rounds * _MEBIBYTE) for number in range(SENDERS)]
    try:
        node.start()
        before_mb, begun = node.memory_mb(), time.monotonic()
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(_ANSWER_LIMIT_S)
        seconds, most_mb = time.monotonic() - begun, node.memory_mb("VmHWM")
        crashes = node.crashes()
        node.stop()
    finally:
        node.kill_all()
    stored = [sender for sender in senders if sender.status == 0]
    told.sent |= {(sender.uid, sender.digest.hexdigest()) for sender in stored}
    told.acknowledged |= {sender.uid for sender in stored}
    remaining = left(node, told)
    shutil.rmtree(node.settings.spool_folder)
    violations = [*remaining.violations(), *crashes]
    violations += [f"an instance was answered {each.status}" for each in senders if each.status != 0]
    if most_mb > MEMORY_LIMIT_MB:
        violations.append(f"the listener had {most_mb:.0f} MB")
    return Outcome(
        tried={"instances at once": SENDERS, "MiB each": rounds},
        seen={
            "stored with their bytes": remaining.rows - len(remaining.other_bytes),
            "listener before, MB": round(before_mb, 1),
            "listener at most, MB": round(most_mb, 1),
            "MB/s": round(wanted / 1e6 / seconds, 1),
        },
        violations=tuple(violations),
    )


class LargeSender(threading.Thread):
    """Sends one instance, made while it is sent; ``status`` is the answer, None where there was none."""

    def __init__(self, port: int, number: int, pixel_bytes: int) -> None:
        super().__init__(daemon=True)
        self.uid = f"1.2.3.{number + 1}"
        self.digest = hashlib.sha256()
        self.status: int | None = None
        self._port, self._number, self._pixel_bytes = port, number, pixel_bytes

    def run(self) -> None:
        peer = Peer(self._port, classes=(EnhancedCTImageStorage,), timeout_s=_ANSWER_LIMIT_S)
        try:
            peer.send(pdv_command(1, store_command(EnhancedCTImageStorage, self.uid)))
            for fragment in self._fragments():
                self.digest.update(fragment)
                peer.send(pdv_data(1, fragment, last=False))
            peer.send(pdv_data(1, b"", last=True))
            self.status = peer.status()
        except (OSError, AssertionError):
            return
        finally:
            peer.close()

    def _fragments(self) -> Iterator[bytes]:
        """The data set; no two fragments are the same."""
        header = _header(self.uid, self._number, self._pixel_bytes)
        for start in range(0, len(header), _FRAGMENT):
            yield header[start : start + _FRAGMENT]
        noise = random.Random(self._number).randbytes(_FRAGMENT)
        for start in range(0, self._pixel_bytes, _FRAGMENT):
            yield (struct.pack("<Q", start) + noise[8:])[: self._pixel_bytes - start]


def _header(uid: str, number: int, pixel_bytes: int) -> bytes:
    """Everything up to the first pixel, with the position of each frame."""
    dataset = ct_slice(number, series_uid=f"1.2.4.{number + 1}")
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, uid
    dataset.Rows = dataset.Columns = _ROWS
    dataset.NumberOfFrames = pixel_bytes // _FRAME_BYTES
    dataset.PerFrameFunctionalGroupsSequence = [_frame(k) for k in range(dataset.NumberOfFrames)]
    del dataset.PixelData
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, pixel_bytes)
    return encoded(dataset, ExplicitVRLittleEndian) + pixel_data


def _frame(number: int) -> Dataset:
    position, frame = Dataset(), Dataset()
    position.ImagePositionPatient = [-100, -100, number]
    frame.PlanePositionSequence = [position]
    return frame


CASES = (
    FaultCase(
        name="four-large-instances",
        fault="Four Enhanced CT instances of 1 GiB each (so many MiB as there are rounds) are sent at once.",
        holds="All are stored with their bytes; the listener never has more than 250 MB of memory.",
        answers=("R8",),
        run=large,
        rounds=MEBIBYTES,
        rounds_in_tests=64,
    ),
)
