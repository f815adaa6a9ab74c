"""SIGKILL in the middle of sending: every instance answered with 0x0000 is stored with the bytes that were sent."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from pydicom.uid import CTImageStorage
from sqlalchemy import select

from dicom_node.operate.ledger_check import check_ledger
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import association, instance
from dicom_node.store.spool import Spool
from tests.support.ports import free_port

from .conftest import ct_slice, dataset_digest, encoded
from .peer import Peer, pdv_command, pdv_data, store_command

ROUNDS = 5
SENDERS = 3
ROOT = Path(__file__).resolve().parents[3]


class Sender(threading.Thread):
    """Send new instances until the connection breaks; remember which were acknowledged."""

    def __init__(self, port: int, series_uid: str) -> None:
        super().__init__()
        self.port, self.series_uid = port, series_uid
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        try:
            peer = Peer(self.port)
            for number in range(10_000):
                dataset = ct_slice(number, self.series_uid, rows=64)
                data = encoded(dataset, "1.2.840.10008.1.2.1")
                peer.send(pdv_command(1, store_command(CTImageStorage, dataset.SOPInstanceUID)))
                peer.send(pdv_data(1, data, last=True))
                if peer.status() == 0:
                    self.acknowledged[dataset.SOPInstanceUID] = hashlib.sha256(data).hexdigest()
        except (OSError, AssertionError):
            return


def start(folder: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("listener_process.py")), str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for line in process.stdout:
        if line.strip() == b"listening":
            return process
    raise AssertionError("the listener did not start")


def test_no_acknowledged_instance_is_lost(tmp_path):
    port = free_port()
    acknowledged: dict[str, str] = {}
    moments = random.Random(1)
    for number in range(ROUNDS):
        process = start(tmp_path, port)
        senders = [Sender(port, f"1.2.{number}.{k}") for k in range(SENDERS)]
        try:
            for sender in senders:
                sender.start()
            while not all(sender.acknowledged for sender in senders):
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.3))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        for sender in senders:
            sender.join(20)
            acknowledged |= sender.acknowledged
    process = start(tmp_path, port)
    process.kill()
    process.wait()
    process.stdout.close()

    spool = Spool(tmp_path / "spool")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", spool)
    with ledger.database.read() as db:
        rows = db.execute(select(instance)).all()
        ends = db.execute(select(association.c.closed_at)).scalars().all()
    report = check_ledger(ledger.consistency, spool, deep=True)
    ledger.close()
    assert report.examples == ()
    assert report.counted["instances"] == len(rows)
    recorded = {row.sop_instance_uid: row.dataset_sha256 for row in rows}
    assert len(acknowledged) >= ROUNDS * SENDERS
    assert {uid: recorded.get(uid) for uid in acknowledged} == acknowledged
    for row in rows:
        assert dataset_digest(spool.path(row.spool_name)) == row.dataset_sha256
    assert (
        len(recorded) <= len(acknowledged) + ROUNDS * SENDERS
    )  # at most the instance in progress, which was not acknowledged
    assert None not in ends
    unclaimed = set(spool.names(older_than_s=0)) - {row.spool_name for row in rows}
    assert len(unclaimed) <= ROUNDS * SENDERS
    spool.remove_leftovers(older_than_s=0)
    assert not list((tmp_path / "spool").rglob("*.part"))
