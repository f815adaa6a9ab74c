"""Composition root of ``dicom-node listen``, which runs the listener and nothing else.

One busy Python thread in the same process slows the listener from 200 to 4 instances a second. It has a module apart
from ``working.py``, so that it starts without the libraries for images.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

from dicom_node.app.roles import role_held
from dicom_node.app.signals import stop_on_signals
from dicom_node.app.stores import open_store
from dicom_node.errors import ConfigurationError
from dicom_node.receive.scp import Listener
from dicom_node.store.clock import now_utc
from dicom_node.store.processes import Role

if TYPE_CHECKING:
    from dicom_node.settings import Settings


def run_listener(settings: Settings) -> None:
    """Run the listener until SIGTERM or SIGINT.

    Raises:
        NodeInUse: another process listens for this data folder.
        ConfigurationError: the address can't be bound.
    """
    stop = stop_on_signals()
    spool, ledger = open_store(settings)
    with closing(ledger), role_held(ledger.processes, Role.LISTEN, settings.node.data_folder, stop):
        ledger.arrivals.close_interrupted_associations(now_utc())
        listener = Listener(settings, spool, ledger.arrivals)
        try:
            listener.start()
        except OSError as error:
            place = f"{settings.node.bind_address}:{settings.node.port}"
            raise ConfigurationError(f"can't listen on {place}: {os.strerror(error.errno or 0)}") from error
        stop.wait()
        listener.stop()
