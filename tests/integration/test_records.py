"""The record on SQLite and on PostgreSQL: its tables, and what the database itself refuses."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from models.database import Database
from models.settings import Settings
from models.tables import Base
from models.upgrade import MIGRATIONS, upgrade
from models.version import REVISION


def test_migrations_make_exactly_the_tables_that_the_models_describe(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    assert differences == []


def test_the_revision_that_the_program_asks_for_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == REVISION


def test_upgrading_twice_changes_nothing(settings: Settings) -> None:
    assert upgrade(settings) == upgrade(settings) == REVISION
