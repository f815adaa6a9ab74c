"""A listener on loopback with a real spool and a real ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - a dataclass field
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from dicom_node.receive.scp import Listener
from dicom_node.settings import NodeSettings, ReceiveSettings, Settings, SourceSettings
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import association, instance
from dicom_node.store.spool import Spool
from tests.support.sent_slices import ct_slice, dataset_digest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Node:
    """A running listener with its spool and ledger."""

    listener: Listener
    spool: Spool
    ledger: Ledger
    root: Path

    @property
    def port(self) -> int:
        return self.listener.port

    def rows(self) -> list:
        with self.ledger.database.read() as db:
            return list(db.execute(select(instance).order_by(instance.c.id)).all())

    def associations(self) -> list:
        with self.ledger.database.read() as db:
            return list(db.execute(select(association)).all())

    def files(self) -> set[str]:
        return {p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()}

    def assert_consistent(self) -> None:
        """Every row has its file with the recorded bytes, and every file has a row."""
        rows = self.rows()
        for row in rows:
            assert dataset_digest(self.spool.path(row.spool_name)) == row.dataset_sha256
        assert self.files() == {row.spool_name for row in rows}


SOURCES = (
    SourceSettings(ae_title="SENDER"),
    SourceSettings(ae_title="ECHOONLY", services=("echo",)),
    SourceSettings(ae_title="ELSEWHERE", addresses=("192.0.2.0/24",)),
)


def settings_for(folder: Path, sources: tuple[SourceSettings, ...] = SOURCES, **receive) -> Settings:
    return Settings(
        node=NodeSettings(ae_title="NODE", port=0, data_folder=folder),
        receive=ReceiveSettings(**{"minimum_free_disk_bytes": 0, **receive}),
        sources=sources,
    )


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator:
    """A function that starts a node; its keyword arguments are receive settings, or ``sources``."""
    nodes: list[Node] = []

    def start(**receive) -> Node:
        settings = settings_for(tmp_path / "data", **receive)
        spool = Spool(settings.spool_folder)
        ledger = Ledger(settings.effective_ledger_url, spool)
        node = Node(Listener(settings, spool, ledger.arrivals), spool, ledger, settings.spool_folder)
        node.listener.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.listener.stop()
        node.ledger.close()


@pytest.fixture
def node(start_node) -> Node:
    return start_node()


@pytest.fixture
def ct_files(tmp_path: Path) -> list[Path]:
    """Ten slices of one series as Part 10 files."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(10):
        ct_slice(number).save_as(folder / f"{number:02}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())
