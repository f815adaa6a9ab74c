"""A listener in a separate process, to be killed: ``python listener_process.py FOLDER PORT``."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.receive.scp import Listener
from dicom_node.settings import NodeSettings, ReceiveSettings, Settings, SourceSettings
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool

folder, port = Path(sys.argv[1]), int(sys.argv[2])
settings = Settings(
    node=NodeSettings(ae_title="NODE", port=port, data_folder=folder),
    receive=ReceiveSettings(minimum_free_disk_bytes=0),
    sources=(SourceSettings(ae_title="SENDER"),),
)
spool = Spool(settings.spool_folder)
ledger = Ledger(settings.effective_ledger_url, spool)
ledger.arrivals.close_interrupted_associations(datetime.now(UTC))
Listener(settings, spool, ledger.arrivals).start()
sys.stdout.write("listening\n")
sys.stdout.flush()
signal.pause()
