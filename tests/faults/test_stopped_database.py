"""A PostgreSQL that stands still without closing its connections: nobody waits for it for ever."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session

from models.database import BEYOND_SERVER_SECONDS, CONNECT_TIMEOUT_SECONDS, make_engine
from models.patience import PatientConnection
from models.settings import Peer
from models.upgrade import upgrade
from tests.servers import Node, PostgreSQL, dcmtk, given, renewed

# A busy machine takes its time besides.
SLACK = 15


class Stoppable:
    """A PostgreSQL of one's own."""

    def __init__(self, folder: Path) -> None:
        self.server = PostgreSQL(folder)
        self._pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop all its processes; let them go on at the end."""
        postmaster = psutil.Process(self._pid)
        postmaster.send_signal(signal.SIGSTOP)
        stopped = [postmaster, *postmaster.children(recursive=True)]
        for process in stopped[1:]:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stoppable]:
    made = Stoppable(tmp_path_factory.mktemp("stoppable"))
    yield made
    made.server.stop()


@pytest.fixture
def node(stoppable: Stoppable, tmp_path: Path) -> Iterator[Node]:
    """A listener."""
    settings = given(
        tmp_path / "node",
        database_url=stoppable.server.new_database().render_as_string(hide_password=False),
        broker_url="redis+socket:///nonexistent/valkey.sock",
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(settings)
    node = Node(settings, tmp_path / "node.log")
    node.start("listen")
    node.wait_until_listening()
    yield node
    node.stop()


def test_a_store_is_answered_with_a700_in_time_an_echo_as_ever_and_afterwards_the_same_store_succeeds(
    node: Node, stoppable: Stoppable, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    before, after = (renewed(radiographs["RG3"], tmp_path / name) for name in ("before.dcm", "after.dcm"))
    # From now on it holds a connection that was good.
    assert dcmtk("storescu", node.address, "-R", before).statuses == [0x0000]
    with stoppable.standing_still():
        begun = time.monotonic()
        assert dcmtk("storescu", node.address, "-R", after).statuses == [0xA700]
        assert time.monotonic() - begun < PatientConnection.ping_seconds + CONNECT_TIMEOUT_SECONDS + SLACK
        assert dcmtk("echoscu", node.address).exit_status == 0
        assert node.half_received == []
    assert dcmtk("storescu", node.address, "-R", after).statuses == [0x0000]
    stored = node.spooled()
    assert len(stored) == 2
    spool = node.settings.data_dir.absolute() / "spool"
    assert {path for path in spool.rglob("*") if path.is_file()} == {path for path, _ in stored.values()}


@pytest.mark.parametrize("last", ["SELECT 1", "COMMIT"])
def test_a_transaction_that_is_under_way_fails_in_time_and_its_connection_is_not_used_again(
    stoppable: Stoppable, last: str
) -> None:
    engine = make_engine(stoppable.server.new_database(), statement_seconds=1)
    try:
        with Session(engine) as session:
            session.execute(text("CREATE TABLE t AS SELECT 1 AS x"))
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            with stoppable.standing_still():
                begun = time.monotonic()
                with pytest.raises(OperationalError) as failed:
                    session.commit() if last == "COMMIT" else session.execute(text(last))
                assert time.monotonic() - begun < 1 + BEYOND_SERVER_SECONDS + SLACK
            assert failed.value.connection_invalidated
        with Session(engine) as session:
            assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    finally:
        engine.dispose()


def test_a_stopped_client_holds_no_row_for_longer_than_a_statement_may_take(stoppable: Stoppable) -> None:
    url = stoppable.server.new_database()
    engine, other = make_engine(url, statement_seconds=1), make_engine(url)
    try:
        with Session(engine) as session, Session(other) as beside:
            session.execute(text("CREATE TABLE t AS SELECT 1 AS x"))
            session.commit()
            session.execute(text("SELECT x FROM t FOR UPDATE"))
            # Without a word for so long, as by a SIGSTOP between two statements.
            assert beside.scalars(text("SELECT x FROM t FOR UPDATE")).all() == [1]
            with pytest.raises(InternalError) as failed:
                session.execute(text("UPDATE t SET x = 2"))
            assert failed.value.connection_invalidated
    finally:
        engine.dispose()
        other.dispose()
