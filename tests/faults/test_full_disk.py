"""No space, no database: the sender is told to try again, nothing half-written stays, and trying again succeeds."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from models.settings import Peer, Settings
from models.tables import Association, File, Image, Study
from models.upgrade import upgrade
from tests.faults.small_disk import small_disk
from tests.servers import Node, PostgreSQL, dcmtk, given, renewed, wait_until

MEBIBYTE = 1024 * 1024
NOWHERE = "redis+socket:///nonexistent/valkey.sock"
PEERS = [Peer(name="modality", ae_title="MODALITY", role="source")]


@pytest.fixture
def sample(test_data: Path, tmp_path: Path) -> Path:
    """A radiograph of 7.5 MB."""
    return renewed(test_data / "dicom" / "WG04_RG2_UNC.dcm", tmp_path / "sample.dcm", study=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    with small_disk(tmp_path, "16m") as mounted:
        yield mounted


@pytest.fixture
def listening() -> Iterator[list[Node]]:
    """Nodes to be stopped."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.stop()


def test_a_full_spool_is_answered_with_a700_and_the_same_send_succeeds_once_there_is_space(
    sample: Path, disk: Path, tmp_path: Path, listening: list[Node]
) -> None:
    node = started(given(disk / "node", broker_url=NOWHERE, peers=PEERS), tmp_path, listening)
    filler = disk / "filler"
    # Enough room for the record, and for the first half of the image.
    filler.write_bytes(bytes(free(disk) - 4 * MEBIBYTE))
    for _ in range(2):
        assert send(node, sample) == [0xA700]
        assert left_behind(node) == []
        assert free(disk) > 3 * MEBIBYTE
    filler.unlink()
    succeeds(node, sample)


def test_a_record_whose_own_file_system_is_full_is_answered_with_a700_and_the_file_is_taken_back(
    sample: Path, disk: Path, tmp_path: Path, listening: list[Node]
) -> None:
    url = f"sqlite:///{disk}/osteon.db"
    node = started(given(tmp_path / "node", database_url=url, broker_url=NOWHERE, peers=PEERS), tmp_path, listening)
    filler = disk / "filler"
    filler.write_bytes(bytes(free(disk)))
    for _ in range(2):
        assert send(node, sample) == [0xA700]
        assert dcmtk("echoscu", node.address).exit_status == 0
    # Counting the rows takes space, too.
    filler.unlink()
    assert left_behind(node) == []
    succeeds(node, sample)


def test_below_the_mark_in_percent_every_store_is_answered_with_a700(
    sample: Path, disk: Path, tmp_path: Path, listening: list[Node]
) -> None:
    settings = given(disk / "node", broker_url=NOWHERE, peers=PEERS, listener={"min_free_percent": 56})
    node = started(settings, tmp_path, listening)
    # 8 of 16 MB.
    filler = disk / "filler"
    filler.write_bytes(bytes(free(disk) - 8 * MEBIBYTE))
    assert send(node, sample) == [0xA700]
    assert left_behind(node) == []
    filler.unlink()
    succeeds(node, sample)


def test_a_file_that_may_not_grow_is_answered_with_a700_and_nothing_of_it_stays(
    sample: Path, tmp_path: Path, listening: list[Node]
) -> None:
    node = listener(given(tmp_path / "node", broker_url=NOWHERE, peers=PEERS), tmp_path, listening)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MEBIBYTE, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    process = node.start("listen", preexec=limit)
    node.wait_until_listening()
    assert send(node, sample) == [0xA700]
    assert left_behind(node) == []
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    succeeds(node, sample)


def test_below_the_low_space_mark_every_store_is_answered_with_a700_and_echoes_still_succeed(
    sample: Path, disk: Path, tmp_path: Path, listening: list[Node]
) -> None:
    settings = given(disk / "node", broker_url=NOWHERE, peers=PEERS, listener={"min_free_bytes": 9 * MEBIBYTE})
    node = started(settings, tmp_path, listening)
    # The image would fit, but then the mark would already be passed.
    filler = disk / "filler"
    filler.write_bytes(bytes(free(disk) - 8 * MEBIBYTE))
    assert send(node, sample) == [0xA700]
    assert dcmtk("echoscu", node.address).exit_status == 0
    assert left_behind(node) == []
    filler.unlink()
    succeeds(node, sample)


def test_a_spool_that_cannot_be_written_to_is_answered_with_a700(
    sample: Path, tmp_path: Path, listening: list[Node]
) -> None:
    node = started(given(tmp_path / "node", broker_url=NOWHERE, peers=PEERS), tmp_path, listening)
    incoming = node.settings.data_dir / "spool" / "incoming"
    incoming.rename(incoming.with_name("away"))
    assert send(node, sample) == [0xA700]
    incoming.with_name("away").rename(incoming)
    assert left_behind(node) == []
    succeeds(node, sample)


def test_a_locked_sqlite_is_answered_with_a700_and_the_file_is_taken_back(
    sample: Path, tmp_path: Path, listening: list[Node]
) -> None:
    node = started(given(tmp_path / "node", broker_url=NOWHERE, peers=PEERS), tmp_path, listening)
    lock = sqlite3.connect(node.settings.data_dir / "osteon.db", isolation_level=None, timeout=1)
    lock.execute("BEGIN IMMEDIATE")
    try:
        # It waits for its turn (models.database.BUSY_TIMEOUT_SECONDS) before it gives up.
        assert send(node, sample) == [0xA700]
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert left_behind(node) == []
    succeeds(node, sample)


def test_a_postgresql_that_is_out_of_reach_is_answered_with_a700_and_the_file_is_taken_back(
    sample: Path, postgresql: PostgreSQL, tmp_path: Path, listening: list[Node]
) -> None:
    url = postgresql.new_database()
    settings = given(
        tmp_path / "node",
        database_url=url.render_as_string(hide_password=False),
        broker_url=NOWHERE,
        peers=PEERS,
    )
    node = started(settings, tmp_path, listening)
    name = url.database
    postgresql.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    end_connections = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    postgresql.run(end_connections)
    try:
        assert send(node, sample) == [0xA700]
        assert node.half_received == []
        assert dcmtk("echoscu", node.address).exit_status == 0
    finally:
        postgresql.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert left_behind(node) == []
    succeeds(node, sample)


def test_a_postgresql_that_goes_away_before_the_commit_leaves_no_file_without_a_row(
    sample: Path, postgresql: PostgreSQL, tmp_path: Path, listening: list[Node]
) -> None:
    url = postgresql.new_database()
    settings = given(
        tmp_path / "node",
        database_url=url.render_as_string(hide_password=False),
        broker_url=NOWHERE,
        peers=PEERS,
    )
    node = started(settings, tmp_path, listening)
    name = url.database
    # The transaction waits for this trigger, and is ended while it waits: the file is in its place by then.
    with node.database.write() as session:
        connection = session.connection()
        connection.exec_driver_sql(
            "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$"
        )
        connection.exec_driver_sql("CREATE TRIGGER waits BEFORE INSERT ON files FOR EACH ROW EXECUTE FUNCTION waits()")
    answers: list[list[int]] = []
    sending = threading.Thread(target=lambda: answers.append(send(node, sample)))
    sending.start()
    asleep = "FROM pg_stat_activity WHERE datname = :name AND wait_event = 'PgSleep'"

    def first(what: str) -> object:
        with node.database.read() as session:
            return session.scalars(text(f"SELECT {what} {asleep}"), {"name": name}).first()

    wait_until(lambda: first("pid") is not None, what="the transaction waits")
    assert len(spool_files(node)) == 1
    assert node.half_received == []
    assert first("pg_terminate_backend(pid)") is True
    sending.join()
    assert answers == [[0xA700]]
    assert left_behind(node) == []
    with node.database.write() as session:
        session.connection().exec_driver_sql("DROP TRIGGER waits ON files")
    succeeds(node, sample)


def started(settings: Settings, folder: Path, nodes: list[Node]) -> Node:
    """A listener that listens."""
    node = listener(settings, folder, nodes)
    node.start("listen")
    node.wait_until_listening()
    return node


def listener(settings: Settings, folder: Path, nodes: list[Node]) -> Node:
    """A node whose listener is not started yet."""
    upgrade(settings)
    nodes.append(Node(settings, folder / "node.log"))
    return nodes[-1]


def send(node: Node, path: Path) -> list[int]:
    """Send by storescu; return the statuses of the answers."""
    return dcmtk("storescu", node.address, "-R", "-xe", path).statuses


def succeeds(node: Node, path: Path) -> None:
    """Send and find one image on record whose file is there."""
    assert send(node, path) == [0x0000]
    ((file, row),) = node.spooled().values()
    assert file.stat().st_size == row.size
    assert spool_files(node) == [file]
    assert node.half_received == []


def left_behind(node: Node) -> list[str]:
    """Files in the spool and rows of what was received."""
    with node.database.read() as session:
        rows = [
            table.__tablename__
            for table in (Association, Study, Image, File)
            if session.scalars(select(func.count()).select_from(table)).one()
        ]
    return [*rows, *map(str, spool_files(node)), *node.half_received]


def spool_files(node: Node) -> list[Path]:
    """Files that are kept."""
    spool = node.settings.data_dir.absolute() / "spool"
    return [path for path in spool.rglob("*") if path.is_file() and path.parent.name != "incoming"]


def free(folder: Path) -> int:
    """Bytes that may still be written."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
