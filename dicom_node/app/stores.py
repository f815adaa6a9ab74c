"""Opens what both processes of the node share: the spool and the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool

if TYPE_CHECKING:
    from dicom_node.settings import Settings


def open_store(settings: Settings) -> tuple[Spool, Ledger]:
    """The spool and the ledger of this node; creates the folders (mode 0700) and upgrades the schema.

    Raises:
        ConfigurationError: the data folder can't be created or written, or the ledger's URL or schema can't be used.
        StoreUnavailable: spool or ledger is unavailable.
    """
    folder = settings.node.data_folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.ledger_url is None:
            settings.ledger_file.touch(mode=0o600)  # SQLite would make it world-readable
    except OSError as error:
        raise ConfigurationError(f"node.data_folder {folder} can't be used: {error.strerror}") from error
    spool = Spool(settings.spool_folder)
    return spool, Ledger(settings.effective_ledger_url, spool)


def open_store_to_read(settings: Settings) -> tuple[Spool, Ledger]:
    """The spool and the ledger of this node, of which nothing is created or changed.

    Raises:
        ConfigurationError: the ledger's URL or schema can't be used.
        StoreUnavailable: spool or ledger is unavailable, or not there.
    """
    spool = Spool(settings.spool_folder, read_only=True)
    return spool, Ledger(settings.effective_ledger_url, spool, read_only=True)
