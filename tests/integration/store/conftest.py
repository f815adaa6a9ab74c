"""A ledger on either of its databases; the tests start their own PostgreSQL server on loopback and end it by PID."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dicom_node.store.database import Database
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def server_programs() -> Path | None:
    """The folder of initdb and postgres, which on Debian is not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@contextmanager
def running_server() -> Iterator[str]:
    """A new server; gives its SQLAlchemy URL."""
    programs = server_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = _unprivileged_user(folder)
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "--auth=trust", "--username=node", "--no-sync", "-D", data],
        check=True,
        capture_output=True,
        user=user,
        cwd=folder,
    )
    port = free_port()
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder],
        user=user,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
        yield f"postgresql+psycopg://node@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: SIGTERM would wait for every open connection
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("postgres")
    os.chown(folder, account.pw_uid, account.pw_gid)
    return "postgres"


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a PostgreSQL server that runs for the whole session."""
    if server_programs() is None:
        pytest.skip("PostgreSQL is not installed (apt: postgresql)")
    with running_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    base = request.getfixturevalue("postgresql_url")
    fresh_schema(base)
    return base


def fresh_schema(url: str) -> None:
    """Forget everything in the database."""
    database = Database(url)
    with database.write() as db:
        db.exec_driver_sql("DROP SCHEMA public CASCADE")
        db.exec_driver_sql("CREATE SCHEMA public")
    database.close()


@pytest.fixture
def ledger(url, tmp_path):
    opened = Ledger(url, Spool(tmp_path / "spool"))
    yield opened
    opened.close()
