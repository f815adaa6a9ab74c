"""The database under the ledger: SQLite in WAL mode with synchronous=FULL, or PostgreSQL by URL.

Every change is a write transaction that holds the write lock from its first statement (``BEGIN IMMEDIATE`` on SQLite),
so that read-then-write is atomic, and that is on disk when it returns.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dicom_node.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

_BUSY_TIMEOUT_MS = 10_000
_EXAMPLE_URL = "postgresql+psycopg://user@host:5432/name"
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Connections to the ledger's database, and its schema."""

    def __init__(self, url: str) -> None:
        """``url``: an SQLAlchemy URL. Connections are opened when needed.

        Raises:
            ConfigurationError: the URL can't be parsed or its driver is not installed.
        """
        try:
            self._engine = sqlalchemy.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except (SQLAlchemyError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"ledger_url: {type(error).__name__}: {error}") from error
        except ValueError:  # its message quotes part of the URL, which may contain a password
            raise ConfigurationError(f"ledger_url: expected a URL such as {_EXAMPLE_URL}") from None
        self._url = url
        self._turn = threading.Lock()
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One durable, serialised change; rolled back if the body raises.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable.
        """
        with (
            self._next_writer(),
            _translated(),
            self._engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def _next_writer(self) -> Iterator[None]:
        """Queue the threads of one process: an SQLite connection that finds the lock taken sleeps for a guessed time,
        which cost 4 of 10 instances a second with four senders.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        if not self._turn.acquire(timeout=_BUSY_TIMEOUT_MS / 1000):
            raise StoreUnavailable(f"ledger: another thread has been writing for {_BUSY_TIMEOUT_MS} ms")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent read that never waits for writers.

        Raises:
            StoreUnavailable: the database is unavailable.
        """
        with _translated(), self._engine.connect() as connection:
            yield connection

    def upgrade(self) -> None:
        """Upgrade the schema to the newest version.

        Raises:
            ConfigurationError: the database was written by a newer version of the node.
        """
        config = self._alembic()
        script = ScriptDirectory.from_config(config)
        with self.write() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            known = {revision.revision for revision in script.walk_revisions()}
            if found is not None and found not in known:
                raise ConfigurationError(
                    f"the ledger has schema {found}, which is newer than this version supports (up to "
                    f"{script.get_current_head()}); install the version that wrote it"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        return config


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        # the driver's text has codes, tables and at most a key that exists already; SQLAlchemy's quotes parameters
        raise StoreUnavailable(f"ledger: {type(error.orig).__name__}: {error.orig}") from error
    except PoolTimeout as error:
        raise StoreUnavailable("ledger: all database connections are in use") from error


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
