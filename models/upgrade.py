"""Brings the record's tables to this version (`osteon db upgrade`)."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event, select
from sqlalchemy.pool import ConnectionPoolEntry

from models import clock
from models.append_only import grant
from models.database import database_url, make_engine
from models.errors import CannotStart
from models.settings import Settings
from models.tables import Installation

# A table of millions of rows may be rewritten.
STATEMENT_SECONDS = 3600
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def upgrade(settings: Settings) -> str:
    """Create or upgrade the tables, guard the append-only ones, and return the revision in force.

    Works with `database_owner_url` where one is set, and gives the role of `database_url` its rights. May be run
    at any time and by several at once.
    """
    owner = settings.database_owner_url
    url = owner.get_secret_value() if owner else database_url(settings)
    engine = make_engine(url, statement_seconds=STATEMENT_SECONDS)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _let_tables_be_rebuilt)
    try:
        with engine.execution_options(osteon_write=True).begin() as connection:
            _one_at_a_time(connection)
            config = alembic_config(connection)
            command.upgrade(config, "head")
            _name_the_installation(connection)
            _no_row_lost_its_parent(connection)
            if connection.dialect.name == "postgresql":
                grant(connection, database_url(settings).render_as_string(hide_password=False))
            return current_revision(connection) or ""
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for an open connection; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None where there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def _one_at_a_time(connection: Connection) -> None:
    # SQLite's BEGIN IMMEDIATE already lets one in at a time.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7067836)")


def _let_tables_be_rebuilt(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # Alembic changes a SQLite table by copying, dropping and renaming it; dropping deletes the rows that others name.
    # The pragma does nothing inside a transaction, hence here; `_no_row_lost_its_parent` looks at the result.
    connection.execute("PRAGMA foreign_keys=OFF")


def _no_row_lost_its_parent(connection: Connection) -> None:
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise CannotStart("the upgrade would leave rows without those they name: nothing was changed")


def _name_the_installation(connection: Connection) -> None:
    table = Installation.__table__
    if connection.scalar(select(table.c.id)) is None:
        # PS3.5 B.2: a UID made from a UUID.
        uid = f"2.25.{uuid.uuid4().int}"
        connection.execute(table.insert().values(id=1, uid=uid, created_at=clock.now()))  # type: ignore[attr-defined]
