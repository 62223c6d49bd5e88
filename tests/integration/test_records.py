"""The record on SQLite and on PostgreSQL: its tables, and what the database itself refuses."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    Enum,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    create_engine,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError

from models import audit, clock
from models.append_only import append_only_tables
from models.database import Database, DatabaseNotUpgraded, database_now, database_url
from models.settings import Settings
from models.tables import AuditEvent, Base, File, FileKind, Image, Installation, Study, StudyState
from models.tables.base import Utc
from models.upgrade import MIGRATIONS, alembic_config, upgrade
from models.version import REVISION
from tests.servers import PostgreSQL, given

NOT_ALLOWED = re.compile("permission denied|must be owner")
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = append_only_tables()
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


# --- tables and migrations ----------------------------------------------------------------------------------------


def test_migrations_make_exactly_the_tables_that_the_models_describe(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    assert differences == []


def test_partial_indexes_hold_what_the_models_say(database: Database) -> None:
    """Of the condition of an index the comparison above says nothing."""

    def conditions(found: object) -> str:
        return "" if found is None else re.sub(r"[\s()]", "", str(found)).lower()

    kind = database.engine.dialect.name
    inspector = inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        made = {
            index["name"]: conditions(index.get("dialect_options", {}).get(f"{kind}_where"))
            for index in inspector.get_indexes(table.name)
        }
        for index in table.indexes:
            assert made[index.name] == conditions(index.dialect_options[kind]["where"]), index.name


def test_the_revision_that_the_program_asks_for_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == REVISION


def test_upgrading_twice_changes_nothing(settings: Settings, database: Database) -> None:
    with database.read() as session:
        named = session.scalars(select(Installation.uid)).one()
    assert upgrade(settings) == upgrade(settings) == REVISION
    with database.read() as session:
        assert session.scalars(select(Installation.uid)).one() == named


def test_an_upgrade_keeps_the_rows_their_parents_and_the_checks_of_their_states(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    with closing(Database(database_url(settings))) as database:
        with database.engine.execution_options(osteon_write=True).begin() as connection:
            command.upgrade(alembic_config(connection), "0001")
            before = MetaData()
            before.reflect(connection)
            for name, wanted in {
                "associations": {"uid": "a"},
                "studies": {"state": "receiving"},
                "images": {"study_id": 1, "association_id": 1, "state": "received", "sop_instance_uid": "1.2.3"},
                "files": {"image_id": 1, "kind": "instance"},
            }.items():
                connection.execute(before.tables[name].insert().values(_some_row(before.tables[name]) | wanted))
        assert upgrade(settings) == REVISION
        with database.read() as session:
            image = session.scalars(select(Image)).one()
            assert (image.sop_instance_uid, image.study_id, image.replaced_at) == ("1.2.3", 1, None)
            file = session.scalars(select(File)).one()
            assert (file.image_id, file.kind, file.missing_at) == (1, FileKind.INSTANCE, None)
        for statement in ("UPDATE images SET state = 'lost'", "UPDATE files SET kind = 'lost'"):
            with pytest.raises(IntegrityError, match=r"(?i)check"), database.write() as session:
                session.execute(text(statement))


def test_an_upgrade_fills_in_what_the_newest_report_of_each_study_says(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    with closing(Database(database_url(settings))) as database:
        with database.engine.execution_options(osteon_write=True).begin() as connection:
            command.upgrade(alembic_config(connection), "0002")
            before = MetaData()
            before.reflect(connection)
            studies, reports = before.tables["studies"], before.tables["reports"]
            for number, said in enumerate((["no_fracture", "fracture"], ["undetermined"], []), start=1):
                wanted = {"state": "reported", "study_instance_uid": f"1.2.{number}"}
                connection.execute(studies.insert().values(_some_row(studies) | wanted))
                for revision, impression in enumerate(said, start=1):
                    wanted = {"study_id": number, "revision": revision, "impression": impression}
                    wanted["sop_instance_uid"] = f"1.2.{number}.{revision}"
                    connection.execute(reports.insert().values(_some_row(reports) | wanted))
        assert upgrade(settings) == REVISION
        with database.read() as session:
            found = session.execute(select(Study.decision, Study.held_up).order_by(Study.id)).all()
        assert [tuple(row) for row in found] == [("fracture", False), ("undetermined", False), (None, False)]


def _some_row(table: Table) -> dict[str, object]:
    """A value for every column that needs one."""
    values = {int: 1, str: "", bool: False, bytes: b"", datetime: datetime(2026, 1, 1)}
    return {c.name: values[c.type.python_type] for c in table.columns if not c.nullable and c.name != "id"}


def test_a_node_does_not_start_on_tables_of_another_version(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    with closing(Database(database_url(settings))) as database:
        with pytest.raises(DatabaseNotUpgraded, match="osteon db upgrade"):
            database.require_upgraded()
        upgrade(settings)
        database.require_upgraded()
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'another'"))
        with pytest.raises(DatabaseNotUpgraded, match="another"):
            database.require_upgraded()


def test_what_is_evidence_is_append_only() -> None:
    assert {table.name for table in TABLES} >= {
        "predictions",
        "findings",
        "regions",
        "reports",
        "report_inputs",
        "delivery_attempts",
        "reviews",
        "audit_events",
        "audit_chain",
        "model_versions",
        "model_activations",
        "installation",
    }


# --- what is recorded stays ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A database that holds one row in each append-only table."""

    database: Database
    settings: Settings

    @property
    def is_sqlite(self) -> bool:
        return self.database.engine.dialect.name == "sqlite"

    def rows(self, table: Table) -> list[Any]:
        with self.database.read() as session:
            return list(session.execute(select(table)).all())

    def refuse(self, table: Table, statement: str, *values: Any) -> None:
        """Run a statement, which must be refused and change nothing."""
        before = self.rows(table)
        assert before
        with pytest.raises(DBAPIError, match="append-only"), self.database.engine.begin() as connection:
            connection.exec_driver_sql(statement, values)
        assert self.rows(table) == before


ON_SQLITE = ["sqlite", "sqlite, upgraded twice", "sqlite, rebuilt"]
ON_POSTGRESQL = ["postgresql", "postgresql, upgraded twice"]
on_sqlite = pytest.mark.parametrize("recorded", ON_SQLITE, indirect=True, scope="module")
on_postgresql = pytest.mark.parametrize("recorded", ON_POSTGRESQL, indirect=True, scope="module")


@pytest.fixture(scope="module", params=[*ON_SQLITE, *ON_POSTGRESQL])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Databases after everything that could have taken their guards away."""
    folder = tmp_path_factory.mktemp("recorded")
    server = None if request.param.startswith("sqlite") else request.getfixturevalue("postgresql")
    url = {} if server is None else {"database_url": server.new_database().render_as_string(hide_password=False)}
    settings = given(folder, **url)
    upgrade(settings)
    with closing(Database(database_url(settings))) as database:
        if request.param.endswith("twice"):
            upgrade(settings)
        if request.param.endswith("rebuilt"):
            rebuild(database)
            upgrade(settings)
        with database.engine.begin() as connection:
            fill(connection)
        yield Recorded(database, settings)


def rebuild(database: Database) -> None:
    """Do what Alembic's batch mode does for nearly every change of a table on SQLite."""
    with database.engine.execution_options(osteon_write=True).begin() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        operations = Operations(MigrationContext.configure(connection))
        for table in TABLES:
            with operations.batch_alter_table(table.name, recreate="always"):
                pass
        left = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").scalar()
    assert left == 0, "batch mode drops triggers: if it no longer did, this test would prove nothing"


def fill(connection: Connection) -> None:
    """Put a row into each guarded table and into each that one of them refers to."""
    for table in Base.metadata.sorted_tables:
        if table.name != "installation":  # named by the upgrade
            connection.execute(table.insert().values(row(table)))


def row(table: Table, number: int = 1) -> dict[str, Any]:
    """A row of plausible values; whatever refers to another table refers to its first row."""
    return {column.name: 1 if column.foreign_keys else value(column.type, number) for column in table.columns}


def value(kind: Any, number: int) -> Any:
    if isinstance(kind, Utc):
        return MOMENT
    if isinstance(kind, Enum):
        return kind.enums[0]
    for types, made in (
        (Boolean, True),
        (Integer, number),
        (Float, 0.5),
        (JSON, {}),
        (LargeBinary, b"bytes"),
    ):
        if isinstance(kind, types):
            return made
    return f"v{number}"


def unique_keys(recorded: Recorded, table: Table) -> list[list[str]]:
    """The unique keys besides the primary key, as the database knows them."""
    found = inspect(recorded.database.engine)
    keys = [key["column_names"] for key in found.get_unique_constraints(table.name)]
    keys += [index["column_names"] for index in found.get_indexes(table.name) if index["unique"]]
    return [[name for name in key if name is not None] for key in keys]


def like_the_row(table: Table, stored: Any, key: list[str]) -> list[Any]:
    """Values of a row that has `key` in common with the stored one and no other unique value."""
    return [
        old if name in key else old + 1000 if isinstance(old, int) and not isinstance(old, bool) else f"{old}x"
        for name, old in zip((column.name for column in table.columns), stored, strict=True)
    ]


@each_table
def test_a_recorded_row_cannot_be_updated(recorded: Recorded, table: Table) -> None:
    for column in table.columns:
        recorded.refuse(table, f'UPDATE {table.name} SET "{column.name}" = "{column.name}"')


@each_table
def test_a_recorded_row_cannot_be_deleted(recorded: Recorded, table: Table) -> None:
    recorded.refuse(table, f"DELETE FROM {table.name}")


@each_table
def test_a_recorded_row_cannot_be_replaced_by_inserting_its_key_again(recorded: Recorded, table: Table) -> None:
    names = [column.name for column in table.columns]
    key = [column.name for column in table.primary_key]
    if recorded.is_sqlite:
        for verb in ("INSERT OR REPLACE INTO", "REPLACE INTO"):
            recorded.refuse(table, f"{verb} {table.name} SELECT * FROM {table.name}")
    recorded.refuse(
        table,
        f"INSERT INTO {table.name} SELECT * FROM {table.name} WHERE true "
        f'ON CONFLICT ({", ".join(key)}) DO UPDATE SET "{names[-1]}" = excluded."{names[-1]}"',
    )


@on_sqlite
@each_table
def test_sqlite_refuses_replacement_on_a_foreign_connection_without_our_pragmas_by_any_unique_key(
    recorded: Recorded, table: Table
) -> None:
    keys = [[column.name for column in table.primary_key], *unique_keys(recorded, table)]
    with closing(sqlite3.connect(str(database_url(recorded.settings).database))) as raw:
        assert raw.execute("PRAGMA recursive_triggers").fetchone() == (0,)
        assert raw.execute("PRAGMA foreign_keys").fetchone() == (0,)
        before = raw.execute(f"SELECT * FROM {table.name}").fetchall()
        marks = ", ".join("?" * len(table.columns))
        for key in keys:
            values = like_the_row(table, before[0], key)
            for statement in (
                f"INSERT OR REPLACE INTO {table.name} VALUES ({marks})",
                f"INSERT INTO {table.name} VALUES ({marks}) ON CONFLICT DO UPDATE SET {key[0]} = {key[0]}",
            ):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    raw.execute(statement, values)
        for statement in (f"UPDATE OR REPLACE {table.name} SET rowid = rowid", f"DELETE FROM {table.name}"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
        assert raw.execute(f"SELECT * FROM {table.name}").fetchall() == before


@on_postgresql
@each_table
def test_postgresql_refuses_to_truncate(recorded: Recorded, table: Table) -> None:
    recorded.refuse(table, f"TRUNCATE {table.name} CASCADE")
    recorded.refuse(table, f"TRUNCATE {', '.join(each.name for each in Base.metadata.sorted_tables)}")


@on_postgresql
def test_postgresql_refuses_to_truncate_what_is_recorded_by_way_of_another_table(recorded: Recorded) -> None:
    for parent in ("studies", "images", "deliveries"):
        recorded.refuse(Base.metadata.tables["reports"], f"TRUNCATE {parent} CASCADE")


@each_table
def test_a_new_row_can_still_be_recorded(recorded: Recorded, table: Table) -> None:
    """Comes last: a guard that refused everything would pass the tests before."""
    values = row(table, 7)
    before = len(recorded.rows(table))
    with recorded.database.write() as session:
        for name in {name for key in unique_keys(recorded, table) for name in key}:
            for foreign in table.columns[name].foreign_keys:
                parent = foreign.column.table
                if session.execute(select(parent).where(foreign.column == 7)).first() is None:
                    session.execute(parent.insert().values(row(parent, 7)))
                values[name] = 7
        session.execute(table.insert().values(values))
    assert len(recorded.rows(table)) == before + 1


# --- the application's role ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """A PostgreSQL database whose tables one role owns and another uses."""

    application: Database
    owner: Database
    name: str


@pytest.fixture(scope="module")
def roles(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    unique = uuid.uuid4().hex[:8]
    admin = postgresql.new_database()
    postgresql.run(f"CREATE ROLE owner_{unique} LOGIN CREATEROLE PASSWORD 'owner'")
    postgresql.run(f"ALTER DATABASE {admin.database} OWNER TO owner_{unique}")
    owner = admin.set(username=f"owner_{unique}", password="owner")
    application = admin.set(username=f"app-{unique}", password="it's 100%(s) \\ safe")
    settings = given(
        tmp_path_factory.mktemp("roles"),
        database_url=application.render_as_string(hide_password=False),
        database_owner_url=owner.render_as_string(hide_password=False),
    )
    upgrade(settings)
    upgrade(settings)
    with closing(Database.of(settings)) as by_application, closing(Database(make_url(owner))) as by_owner:
        by_application.require_upgraded()
        yield Roles(by_application, by_owner, f"app-{unique}")


def test_the_applications_role_owns_nothing(roles: Roles) -> None:
    owned = "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = current_user"
    owned_functions = "SELECT count(*) FROM pg_proc WHERE pg_get_userbyid(proowner) = current_user"
    with roles.application.engine.connect() as connection:
        assert connection.scalar(text("SELECT current_user")) == roles.name
        assert connection.scalar(text(owned)) == connection.scalar(text(owned_functions)) == 0


def test_the_applications_role_can_do_its_work(roles: Roles) -> None:
    with roles.application.write() as session:
        audit.record(session, actor="test", action="tested", subject="study", subject_id=None)
        session.execute(Base.metadata.tables["studies"].insert().values(row(Base.metadata.tables["studies"])))
    with roles.application.write() as session:
        session.scalars(select(Study)).one().state = StudyState.COMPLETE
        assert audit.chain(session) == 1
    with roles.application.write() as session:
        session.delete(session.scalars(select(Study)).one())


@each_table
def test_the_applications_role_can_neither_change_what_is_recorded_nor_lift_the_guards(
    roles: Roles, table: Table
) -> None:
    name = table.name
    for statement in (
        f"UPDATE {name} SET {table.columns.keys()[0]} = {table.columns.keys()[0]}",
        f"DELETE FROM {name}",
        f"TRUNCATE {name} CASCADE",
        f"DROP TRIGGER {name}_no_change ON {name}",
        f"DROP TRIGGER {name}_no_truncate ON {name}",
        f"ALTER TABLE {name} DISABLE TRIGGER ALL",
        f"ALTER TABLE {name} RENAME TO {name}_old",
        f"DROP TABLE {name} CASCADE",
    ):
        with (
            pytest.raises(DBAPIError, match=NOT_ALLOWED),
            roles.application.engine.begin() as connection,
        ):
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SET session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION osteon_refuse_change() RETURNS trigger LANGUAGE plpgsql "
        "AS $$BEGIN RETURN NULL; END$$",
        "DROP FUNCTION osteon_refuse_change() CASCADE",
        "UPDATE alembic_version SET version_num = 'another'",
        "CREATE TABLE another (id integer)",
    ],
)
def test_the_applications_role_cannot_go_round_the_guards(roles: Roles, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match=NOT_ALLOWED),
        roles.application.engine.begin() as connection,
    ):
        connection.exec_driver_sql(statement)


def test_even_the_owner_is_refused_while_the_guards_stand(roles: Roles) -> None:
    for statement in ("UPDATE installation SET uid = '1'", "DELETE FROM installation", "TRUNCATE installation"):
        with pytest.raises(DBAPIError, match="append-only"), roles.owner.engine.begin() as connection:
            connection.exec_driver_sql(statement)


# --- sessions -----------------------------------------------------------------------------------------------------


def actors(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(AuditEvent.actor).order_by(AuditEvent.id)))


def add(session: Any, actor: str) -> None:
    audit.record(session, actor=actor, action="tested", subject="study", subject_id=1)


def test_a_write_session_commits_when_its_block_ends_and_keeps_nothing_of_one_that_fails(database: Database) -> None:
    with database.write() as session:
        add(session, "kept")
    with suppress(RuntimeError), database.write() as session:
        add(session, "lost")
        session.flush()
        raise RuntimeError("half-way")
    assert actors(database) == ["kept"]


def test_a_read_session_keeps_nothing(database: Database) -> None:
    with database.read() as session:
        add(session, "lost")
        session.flush()
    assert actors(database) == []


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as session:
        add(session, "being written")
        session.flush()
        assert actors(database) == []
    assert actors(database) == ["being written"]


def test_a_moment_comes_back_as_it_was_and_one_without_a_zone_is_refused(database: Database) -> None:
    at = datetime(2026, 3, 29, 1, 59, 59, 123456, tzinfo=UTC)
    with clock.frozen(at), database.write() as session:
        add(session, "a")
    with database.read() as session:
        assert session.scalars(select(AuditEvent.at)).one() == at
    with pytest.raises(StatementError, match="without a time zone"), database.write() as session:
        session.add(AuditEvent(at=datetime(2026, 1, 1), actor="a", action="b", subject="c", details={}))


def test_the_databases_own_time_is_now_and_moves_within_a_transaction(database: Database) -> None:
    with database.write() as session:
        first = database_now(session)
        assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)
        session.execute(text("SELECT count(*) FROM studies"))
        assert first <= database_now(session)


def test_an_error_of_the_database_does_not_show_the_parameters(database: Database) -> None:
    values = row(Base.metadata.tables["studies"]) | {"patient_name": "PLANTED^NAME", "id": 1}
    with database.write() as session:
        session.execute(Base.metadata.tables["studies"].insert().values(values))
    with pytest.raises(IntegrityError) as error, database.write() as session:
        session.execute(Base.metadata.tables["studies"].insert().values(values))
    assert "PLANTED" not in str(error.value)


@pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("way", ["read", "write"])
def test_sqlite_keeps_what_was_committed_through_a_power_cut(database: Database, way: str) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "busy_timeout": 20_000,
    }
    with getattr(database, way)() as session:
        found = {name: session.execute(text(f"PRAGMA {name}")).scalar() for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("of", ["DATABASE", "ROLE"])
def test_postgresql_commits_synchronously_whatever_the_default_of_the_database_or_the_role_says(
    postgresql: PostgreSQL, of: str
) -> None:
    url = postgresql.new_database()
    name = url.database if of == "DATABASE" else url.username
    postgresql.run(f'ALTER {of} "{name}" SET synchronous_commit = off')
    show = "SHOW synchronous_commit"
    plain, ours = create_engine(url), Database(url)
    try:
        with plain.connect() as connection:
            assert connection.exec_driver_sql(show).scalar() == "off"
        with ours.write() as session:
            assert session.connection().exec_driver_sql(show).scalar() == "on"
    finally:
        plain.dispose()
        ours.close()
        postgresql.run(f'ALTER {of} "{name}" RESET synchronous_commit')


@pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)
def test_a_second_writer_on_sqlite_waits_at_its_beginning_and_not_half_way(
    database: Database, settings: Settings
) -> None:
    with database.write() as session, closing(sqlite3.connect(str(database_url(settings).database), timeout=0)) as raw:
        session.execute(text("SELECT 1"))  # begins IMMEDIATE, although nothing was written yet
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            raw.execute("BEGIN IMMEDIATE")


def test_a_database_that_cannot_be_opened_is_an_operational_error_and_not_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "osteon.db"
    folder.mkdir()
    with (
        closing(Database(f"sqlite:///{folder}")) as database,
        pytest.raises(OperationalError),
        database.read() as session,
    ):
        session.execute(text("SELECT 1"))
