"""The database under the ledger: SQLite in WAL mode with synchronous=FULL, or PostgreSQL by URL.

Every change is a write transaction that holds the write lock from its first statement (``BEGIN IMMEDIATE`` on SQLite),
so that read-then-write is atomic, and that is on disk when it returns.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

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

    from sqlalchemy import URL, Connection, Engine

_BUSY_TIMEOUT_MS = 10_000
_EXAMPLE_URL = "postgresql+psycopg://user@host:5432/name"
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Connections to the ledger's database, and its schema."""

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        """``url``: an SQLAlchemy URL. Connections are opened when needed; ``read_only``: none of them can write.

        Raises:
            ConfigurationError: the URL can't be parsed or its driver is not installed.
        """
        try:
            parsed = sqlalchemy.make_url(url)
            is_sqlite = parsed.get_backend_name() == "sqlite"
            self._engine = sqlalchemy.create_engine(
                _in_mode("ro" if read_only else "rw", parsed) if is_sqlite else parsed, pool_pre_ping=not is_sqlite
            )
        except (SQLAlchemyError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"ledger_url: {type(error).__name__}: {error}") from error
        except ValueError:  # its message quotes part of the URL, which may contain a password
            raise ConfigurationError(f"ledger_url: expected a URL such as {_EXAMPLE_URL}") from None
        self._url = url
        self._new_file = Path(parsed.database) if is_sqlite and not read_only and parsed.database else None
        self._turn = threading.Lock()
        self._read_options = {"postgresql_readonly": True} if read_only and not is_sqlite else {}
        if is_sqlite:
            _prepare_sqlite(self._engine, read_only=read_only)

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
        with _translated(), self._engine.connect().execution_options(**self._read_options) as connection:
            yield connection

    def upgrade(self) -> None:
        """Upgrade the schema to the newest version; only this makes the file of an SQLite ledger.

        Raises:
            ConfigurationError: the database was written by a newer version of the node.
            StoreUnavailable: it is unavailable.
        """
        if self._new_file is not None:
            with suppress(OSError):  # that it can't be opened is said below
                self._new_file.touch(mode=0o600)
        config = self._alembic()
        script = ScriptDirectory.from_config(config)
        with self.write() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            _refuse_newer(found, script)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check_schema(self) -> None:
        """Check that the schema is the newest one, as :meth:`upgrade` leaves it.

        Raises:
            ConfigurationError: it is not.
            StoreUnavailable: the database is unavailable.
        """
        script = ScriptDirectory.from_config(self._alembic())
        with self.read() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        _refuse_newer(found, script)
        if found != script.get_current_head():
            raise ConfigurationError(
                f"the ledger has schema {found}, and this version needs {script.get_current_head()}: "
                "the first start of the node upgrades it"
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        return config


def _refuse_newer(found: str | None, script: ScriptDirectory) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    if found is not None and found not in known:
        raise ConfigurationError(
            f"the ledger has schema {found}, which is newer than this version supports (up to "
            f"{script.get_current_head()}); install the version that wrote it"
        )


def _in_mode(mode: str, url: URL) -> URL:
    """The URL of the same SQLite file: ``rw``, it is not created; ``ro``, nor changed (https://www.sqlite.org/uri.html).

    A ledger that is away for a moment must not be made anew, empty.
    """
    return url.set(database=f"file:{quote(url.database or '')}", query={"mode": mode, "uri": "true"})


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        # the driver's text has codes, tables and at most a key that exists already; SQLAlchemy's quotes parameters
        raise StoreUnavailable(f"ledger: {type(error.orig).__name__}: {error.orig}") from error
    except PoolTimeout as error:
        raise StoreUnavailable("ledger: all database connections are in use") from error


def _prepare_sqlite(engine: Engine, *, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
