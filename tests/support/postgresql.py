"""A PostgreSQL server of the tests' own on loopback, which can be stopped and started again; ended by its PID."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from dicom_node.store.database import Database
from tests.support.ports import free_port
from tests.support.waiting import wait_until


def server_programs() -> Path | None:
    """The folder of initdb and postgres, which on Debian is not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class PostgresServer:
    """A new server; a context manager that starts it, and removes its data at the end."""

    def __init__(self) -> None:
        programs = server_programs()
        assert programs is not None
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user = _unprivileged_user(self._folder)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://node@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Self:
        subprocess.run(
            [
                self._programs / "initdb",
                "--auth=trust",
                "--username=node",
                "--no-sync",
                "-D",
                self._folder / "data",
            ],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self._folder,
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        where = ["-D", self._folder / "data", "-p", str(self._port), "-h", "127.0.0.1", "-k", self._folder]
        self._process = subprocess.Popen(
            [self._programs / "postgres", *where],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ready = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self._port), "-t", "1"]
        wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)

    def stop(self) -> None:
        """Stop it; its connections end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: SIGTERM would wait for every open connection
            self._process.wait(60)
            self._process = None


def fresh_schema(url: str) -> None:
    """Forget everything in the database."""
    database = Database(url)
    with database.write() as db:
        db.exec_driver_sql("DROP SCHEMA public CASCADE")
        db.exec_driver_sql("CREATE SCHEMA public")
    database.close()


def _unprivileged_user(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("postgres")
    os.chown(folder, account.pw_uid, account.pw_gid)
    return "postgres"
