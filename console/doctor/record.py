"""The database: whether it answers, has our tables and their guards, takes what is written, and keeps our time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from console.doctor.verdict import Finding, warning, well, wrong
from console.trouble import of_database
from models import clock
from models.append_only import append_only_tables, unguarded
from models.database import Database, DatabaseNotUpgraded, database_now, database_url
from models.settings import Settings
from models.tables import Association

AREA = "database"
SLOW_SECONDS = 0.5
FULL_SHARE = 0.8
CLOCKS_APART, CLOCKS_FAR_APART = timedelta(seconds=2), timedelta(seconds=30)
_UPGRADE = "run `osteon db upgrade`; with PostgreSQL, as the role that owns the tables (database_owner_url)"


def look_at_record(settings: Settings) -> Iterator[Finding]:
    """Ask the database; nothing is changed in it."""
    where = place_of(settings)
    path = database_url(settings).database
    if database_url(settings).get_backend_name() == "sqlite" and path and not Path(path).is_file():
        # Opening it would make it.
        yield warning(AREA, f"there is no record yet: {where}", "start the node (`osteon up`), or `osteon db upgrade`")
        return
    database = Database.of(settings)
    try:
        yield from _looked_at(database, where)
    except DatabaseNotUpgraded as error:
        yield wrong(AREA, str(error), _UPGRADE)
    except SQLAlchemyError as error:
        yield wrong(AREA, f"{where}: {of_database(error)}", "without it every C-STORE is refused for now (A700)")
    finally:
        database.close()


def place_of(settings: Settings) -> str:
    """Return where the record is, without its password."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        return f"SQLite in {url.database}"
    return f"PostgreSQL, {url.database} at {url.host or 'its socket'}:{url.port or 5432} as {url.username}"


def _looked_at(database: Database, where: str) -> Iterator[Finding]:
    with database.ask() as connection:
        began = time.monotonic()
        version = connection.scalar(
            text("SELECT sqlite_version()" if _on_sqlite(connection) else "SHOW server_version")
        )
        seconds = time.monotonic() - began
        yield well(AREA, f"{where} answers (version {version})")
        if seconds > SLOW_SECONDS:
            yield warning(AREA, f"takes {seconds:.1f} s to answer", "look at the load of its host and at the network")
    database.require_upgraded()
    yield well(AREA, "its tables have the revision of this version")
    with database.ask() as connection:
        open_to_change = unguarded(connection)
        if open_to_change:
            said = f"append-only tables without their guards: {', '.join(open_to_change)}"
            yield wrong(AREA, said, f"{_UPGRADE}; then find out who took them off: `osteon audit verify`")
        else:
            yield well(AREA, f"the guards of all {len(append_only_tables())} append-only tables are in place")
        if not _on_sqlite(connection):
            yield from _of_a_server(connection)
    yield _written(database)
    with database.read() as session:
        yield from _clocks(session, on_this_host=database.engine.dialect.name == "sqlite")


def _on_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _of_a_server(connection: Connection) -> Iterator[Finding]:
    """Look at what PostgreSQL can have set otherwise than we need it."""
    role, superuser = connection.execute(
        text("SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user")
    ).one()
    guarded = [table.name for table in append_only_tables()]
    may = text(
        "SELECT count(*) FROM pg_class WHERE relname = ANY(:guarded) AND pg_table_is_visible(oid) AND "
        "(pg_has_role(current_user, relowner, 'MEMBER') OR "
        "has_table_privilege(oid, 'UPDATE, DELETE, TRUNCATE, TRIGGER'))"
    )
    if superuser or connection.scalar(may, {"guarded": guarded}):
        what = "is a superuser" if superuser else "owns the tables, or may change append-only ones"
        todo = "set database_owner_url to the owner, database_url to a role of its own, and run `osteon db upgrade`"
        yield warning(AREA, f"the role {role} {what}: whoever has its password can take the guards off", todo)
    else:
        yield well(AREA, f"the role {role} owns no table, and may only add to append-only ones")
    for setting in ("fsync", "full_page_writes"):
        if connection.scalar(text(f"SHOW {setting}")) != "on":
            said = f"{setting} is off: what was answered with success may be lost when its host fails"
            yield wrong(AREA, said, f"set {setting} = on in postgresql.conf and restart PostgreSQL")
    # Sessions of others are counted too, although not what they do.
    taken = connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")) or 0
    most = int(connection.scalar(text("SHOW max_connections")) or 0)
    if most and taken > most * FULL_SHARE:
        yield warning(AREA, f"{taken} of {most} connections are taken", "raise max_connections, or stop who holds them")


def _written(database: Database) -> Finding:
    """Write a row and take it back."""
    now = clock.now()
    try:
        with database.write() as session:
            session.add(
                Association(
                    uid=str(uuid.uuid4()),
                    calling_ae_title="",
                    called_ae_title="",
                    address="",
                    opened_at=now,
                    seen_at=now,
                )
            )
            session.flush()
            session.rollback()
    except SQLAlchemyError as error:
        return wrong(AREA, f"cannot be written: {of_database(error)}", "until then every C-STORE is answered with A700")
    return well(AREA, "can be written")


def _clocks(session: Session, *, on_this_host: bool) -> Iterator[Finding]:
    before = clock.now()
    theirs = database_now(session)
    after = clock.now()
    apart = theirs - (before + (after - before) / 2)
    seconds = abs(apart.total_seconds())
    ahead = "ahead of" if apart > timedelta(0) else "behind"
    # The answer may have been under way for as long as it took.
    if abs(apart) - (after - before) <= CLOCKS_APART:
        if not on_this_host:
            yield well("clock", f"within {max(seconds, 0.1):.1f} s of the database's clock")
        return
    said = f"the database's clock is {seconds:.0f} s {ahead} this host's"
    todo = "let NTP set the clocks of both hosts: work is due by one and leased by the other"
    yield (wrong if abs(apart) > CLOCKS_FAR_APART else warning)("clock", said, todo)
