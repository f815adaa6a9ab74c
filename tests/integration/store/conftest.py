"""A ledger on either of its databases; the tests start their own PostgreSQL server on loopback and end it by PID."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.support.postgresql import PostgresServer, fresh_schema, server_programs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a PostgreSQL server that runs for the whole session."""
    if server_programs() is None:
        pytest.skip("PostgreSQL is not installed (apt: postgresql)")
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    base = request.getfixturevalue("postgresql_url")
    fresh_schema(base)
    return base


@pytest.fixture
def ledger(url, tmp_path):
    opened = Ledger(url, Spool(tmp_path / "spool"))
    yield opened
    opened.close()
