"""Guards of the append-only tables: the database itself refuses to change what was recorded.

On SQLite triggers refuse UPDATE, DELETE and an INSERT that would replace a row (OR REPLACE deletes without firing
DELETE triggers unless `recursive_triggers` is on, so the INSERT itself is looked at). On PostgreSQL triggers refuse
UPDATE and DELETE for each row and TRUNCATE for the statement, and the application's role gets no right to them.

`protect` runs after every migration (`migrations/env.py`): Alembic's batch mode rebuilds SQLite tables and drops
their triggers without a word.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, UniqueConstraint, text
from sqlalchemy.engine import make_url

from models.tables import Base

MESSAGE = "this table is append-only"
_BODY = f"BEGIN RAISE EXCEPTION '{MESSAGE}' USING ERRCODE = 'insufficient_privilege'; END"
# When a trigger fires, as pg_trigger.tgtype counts it: before each row changes or goes, before the table is emptied.
_NO_CHANGE, _NO_TRUNCATE = 1 | 2 | 8 | 16, 2 | 32


def append_only_tables() -> list[Table]:
    """Return the guarded tables, in the order of their dependencies."""
    guarded = {mapper.class_.__tablename__ for mapper in Base.registry.mappers if mapper.class_.__append_only__}
    return [table for table in Base.metadata.sorted_tables if table.name in guarded]


def protect(connection: Connection) -> None:
    """Put every guard in place, replacing those that are there."""
    if connection.dialect.name == "sqlite":
        for table in append_only_tables():
            _protect_on_sqlite(connection, table)
    else:
        connection.execute(
            text(f"CREATE OR REPLACE FUNCTION osteon_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ {_BODY} $$")
        )
        for table in append_only_tables():
            _protect_on_postgresql(connection, table)


def is_protected(connection: Connection) -> bool:
    """Whether every guard is in place, as `protect` puts it there."""
    return not unguarded(connection)


def unguarded(connection: Connection) -> list[str]:
    """Return the append-only tables of which a guard is missing, switched off, or another than `protect` puts there."""
    there = _guards_on_sqlite(connection) if connection.dialect.name == "sqlite" else _guards_on_postgresql(connection)
    wanted = _sqlite_guards if connection.dialect.name == "sqlite" else _postgresql_guards
    return [table.name for table in append_only_tables() if not wanted(table).items() <= there.items()]


def _guards_on_sqlite(connection: Connection) -> dict[str, Any]:
    found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    return {row.name: row.sql for row in found}


def _guards_on_postgresql(connection: Connection) -> dict[str, Any]:
    found = connection.exec_driver_sql(
        "SELECT t.tgname, c.relname, t.tgtype, t.tgenabled::text, t.tgqual IS NULL AND t.tgattr::text = '', p.prosrc "
        "FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid "
        "WHERE NOT t.tgisinternal AND pg_table_is_visible(c.oid)"
    )
    return {
        name: (table, kind, always and enabled in ("O", "A"), _BODY in source)
        for name, table, kind, enabled, always, source in found
    }


def grant(connection: Connection, application_url: str) -> None:
    """On PostgreSQL, let the role of `application_url` use the tables that the connected role owns.

    Creates the role where it is missing. The application may add to every table, and change or delete only in those
    that are not append-only. Does nothing where both are the same role.
    """
    url = make_url(application_url)
    owner = connection.scalar(text("SELECT current_user"))
    role = url.username
    if role is None or role == owner:
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    if connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}) is None:
        secret = _verifier(connection, role, url.password or "")
        connection.exec_driver_sql(f"CREATE ROLE {quote(role)} LOGIN PASSWORD '{secret}'")
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {quote(role)}")
    connection.exec_driver_sql(f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {quote(role)}")
    connection.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {quote(role)}")
    guarded = {table.name for table in append_only_tables()}
    for table in Base.metadata.sorted_tables:
        rights = "SELECT, INSERT" if table.name in guarded else "SELECT, INSERT, UPDATE, DELETE"
        connection.exec_driver_sql(f"REVOKE ALL ON {quote(table.name)} FROM {quote(role)}")
        connection.exec_driver_sql(f"GRANT {rights} ON {quote(table.name)} TO {quote(role)}")


def _verifier(connection: Connection, role: str, password: str) -> str:
    """Return the password's SCRAM verifier, made here, so that the server and its log never see the password."""
    driver: Any = connection.connection.dbapi_connection
    made: bytes = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return made.decode("ascii")


def _protect_on_sqlite(connection: Connection, table: Table) -> None:
    for name, statement in _sqlite_guards(table).items():
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        connection.exec_driver_sql(statement)


def _sqlite_guards(table: Table) -> dict[str, str]:
    """Return what makes each guard, by its name; SQLite keeps the text."""
    name = table.name
    guards = {
        f"{name}_no_{operation}": f"CREATE TRIGGER {name}_no_{operation} BEFORE {operation.upper()} ON {name} "
        f"BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END"
        for operation in ("update", "delete")
    }
    taken = " OR ".join(
        f"EXISTS (SELECT 1 FROM {name} WHERE {' AND '.join(f'{c} = NEW.{c}' for c in columns)})"  # noqa: S608 (our own names)
        for columns in _unique_keys(table)
    )
    guards[f"{name}_no_replace"] = (
        f"CREATE TRIGGER {name}_no_replace BEFORE INSERT ON {name} WHEN {taken} "
        f"BEGIN SELECT RAISE(ABORT, '{MESSAGE}: the key is taken'); END"
    )
    return guards


def _postgresql_guards(table: Table) -> dict[str, tuple[str, int, bool, bool]]:
    """Return each guard by its name: its table, when it fires, whether it always does, and whether it refuses."""
    name = table.name
    return {
        f"{name}_no_change": (name, _NO_CHANGE, True, True),
        f"{name}_no_truncate": (name, _NO_TRUNCATE, True, True),
    }


def _unique_keys(table: Table) -> list[list[str]]:
    keys = [[column.name for column in table.primary_key]]
    keys += [
        [c.name for c in constraint.columns]
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    return sorted(keys)


def _protect_on_postgresql(connection: Connection, table: Table) -> None:
    name = table.name
    for trigger, when in (
        (f"{name}_no_change", f"BEFORE UPDATE OR DELETE ON {name} FOR EACH ROW"),
        (f"{name}_no_truncate", f"BEFORE TRUNCATE ON {name} FOR EACH STATEMENT"),
    ):
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {trigger} ON {name}")
        connection.exec_driver_sql(f"CREATE TRIGGER {trigger} {when} EXECUTE FUNCTION osteon_refuse_change()")
