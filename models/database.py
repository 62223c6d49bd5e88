"""The engine and its sessions, on SQLite and PostgreSQL alike.

`Database.read()` and `Database.write()` are the only ways to a session; `Database.ask()` is for a question that is
asked often. A write session commits when its block ends and rolls back on an exception. On SQLite it begins IMMEDIATE,
so that two writers queue instead of failing half-way, and every commit is synchronous (`synchronous=FULL`): what was
committed survives a power cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from models.errors import CannotStart
from models.settings import Settings
from models.tables.base import Utc
from models.version import REVISION

BUSY_TIMEOUT_SECONDS = 20
CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 20
# Whoever acknowledges nothing for so long is not there any more: as seen from here, and from the server.
GONE_MILLISECONDS = 20_000
# PostgreSQL ends what takes too long; only one that stands still is left to this side (models.patience).
BEYOND_SERVER_SECONDS = 5


class _DatabaseNow(FunctionElement[datetime]):
    """The database's own time; compiled per dialect below."""

    type = Utc()
    inherit_cache = True


@compiles(_DatabaseNow, "sqlite")
def _now_on_sqlite(element: _DatabaseNow, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(_DatabaseNow, "postgresql")
def _now_on_postgresql(element: _DatabaseNow, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "clock_timestamp()"


_Value = TypeVar("_Value")


class _Unindexed(FunctionElement[Any]):
    """A column, but not its index; compiled per dialect below."""

    inherit_cache = True


@compiles(_Unindexed)
def _as_it_is(element: _Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(_Unindexed, "sqlite")
def _with_a_plus(element: _Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return "+" + compiler.process(element.clauses, **kw)


def unindexed(column: InstrumentedAttribute[_Value]) -> ColumnElement[_Value]:
    """Return a column of which SQLite does not use an index; PostgreSQL, which counts its rows, decides by itself.

    SQLite takes any value of an indexed column for rare, and so would rather read a million delivered reports than the
    fifty that were not committed yet.
    """
    named = _Unindexed(column)
    named.type = column.type
    return named


def database_now(session: Session) -> datetime:
    """Return the database's time, which all hosts share."""
    return session.scalars(select(_DatabaseNow())).one()


def database_url(settings: Settings) -> URL:
    """Return where the record is kept: `database_url`, or SQLite in the data folder."""
    if settings.database_url is not None:
        return make_url(settings.database_url.get_secret_value())
    return URL.create("sqlite", database=str(settings.data_dir.absolute() / "osteon.db"))


class DatabaseNotUpgraded(CannotStart):
    """The tables are not those of this version."""


class Database:
    """The record. Threads may share one; a forked child makes its own."""

    def __init__(self, url: URL | str) -> None:
        self.engine = make_engine(url)
        self._reading = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = sessionmaker(self.engine.execution_options(osteon_write=True), expire_on_commit=False)
        # SQLAlchemy's AUTOCOMMIT would leave a SQLite connection changed; there it is enough to begin nothing.
        on_sqlite = self.engine.dialect.name == "sqlite"
        alone = {"osteon_alone": True} if on_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._asking = self.engine.execution_options(**alone)

    @classmethod
    def of(cls, settings: Settings) -> Database:
        """Open the database that `settings` name."""
        return cls(database_url(settings))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session to read with; nothing it changes is kept."""
        with self._reading() as session:
            yield session

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """Give a connection for a statement that reads: without a session and a transaction, at half the price."""
        with self._asking.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session whose changes are committed, durably, when the block ends."""
        with self._writing.begin() as session:
            yield session

    def require_upgraded(self) -> None:
        """Raise DatabaseNotUpgraded unless the tables have the revision that this version needs."""
        try:
            with self.engine.connect() as connection:
                found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (OperationalError, ProgrammingError) as error:
            if isinstance(error, OperationalError) and self.engine.dialect.name != "sqlite":
                raise
            found = None
        if found != REVISION:
            raise DatabaseNotUpgraded(
                f"the tables have revision {found or 'none'}, this version needs {REVISION}: run `osteon db upgrade`"
            )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def make_engine(url: URL | str, *, statement_seconds: int = STATEMENT_TIMEOUT_SECONDS) -> Engine:
    """Return an engine with timeouts, without parameters in error texts, and with SQLite set as the record needs it.

    On PostgreSQL nothing waits longer than `statement_seconds` and a little for an answer, whatever the server does.
    """
    url = make_url(url)
    if url.get_backend_name() != "sqlite":
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_size=10,
            max_overflow=50,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "tcp_user_timeout": GONE_MILLISECONDS,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                "options": _postgresql_options(statement_seconds),
            },
        )
        event.listen(engine, "do_connect", _patiently(statement_seconds + BEYOND_SERVER_SECONDS))
        return engine
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True, pool_timeout=POOL_TIMEOUT_SECONDS, pool_size=10, max_overflow=50)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_on_sqlite)
    return engine


def _postgresql_options(statement_seconds: int) -> str:
    """Return what each session asks of its server.

    A host that vanishes in the middle of a transaction closes nothing, and a server that is not told otherwise keeps
    that transaction's row locks for two hours (Linux' `tcp_keepalive_time`): nobody could claim those rows. So the
    server looks for silent clients, and gives no client that is there, but stopped, longer than a statement may take.
    """
    settings: dict[str, str | int] = {
        "timezone": "UTC",
        "synchronous_commit": "on",
        "statement_timeout": statement_seconds * 1000,
        "lock_timeout": LOCK_TIMEOUT_SECONDS * 1000,
        "idle_in_transaction_session_timeout": statement_seconds * 1000,
        "tcp_user_timeout": GONE_MILLISECONDS,
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 2,
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _patiently(seconds: float) -> Callable[..., Any]:
    """Return what opens a connection that closes itself when the server does not answer for so long."""
    # psycopg comes with the node; whoever has SQLite alone does without.
    from models.patience import PatientConnection

    class Connection(PatientConnection):
        statement_seconds = seconds

    def connect(_dialect: Any, _record: Any, arguments: Any, named: dict[str, Any]) -> Connection:
        return Connection.connect(*arguments, **named)

    return connect


def _set_up_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # Without this the sqlite3 module begins transactions by itself, and never IMMEDIATE.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "recursive_triggers=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_on_sqlite(connection: Any) -> None:
    options = connection.get_execution_options()
    if not options.get("osteon_alone", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("osteon_write", False) else "BEGIN")
