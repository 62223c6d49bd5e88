"""Instances that are recorded at the same time: one commit for all, and what one of them does to the others."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import Session

from dicom_node.group_commit import GroupCommit, NotRecorded, Undecided
from dicom_node.headers import SourceHeader
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from models.database import Database, database_url
from models.settings import GivenSettings, Settings
from models.tables import File, Image, Study, StudyState
from tests.reports import PATIENT, header
from tests.servers import wait_until

SETTINGS = GivenSettings()
SECONDS = 30


class GatedIntake(Intake):
    """An intake whose first instance of each group waits in its transaction until it is let through."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, SETTINGS)
        self.gates = threading.Semaphore(0)
        self.inside = threading.Semaphore(0)
        self.at_start: Callable[[Session], None] | None = None
        self._sessions: list[Session] = []

    def write(self, session: Session, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        if not any(known is session for known in self._sessions):
            self._sessions.append(session)
            self.inside.release()
            assert self.gates.acquire(timeout=SECONDS)
            if self.at_start is not None:
                self.at_start(session)
        return super().write(session, sender, header, stored)

    def begun(self) -> None:
        """Wait until a group has begun."""
        assert self.inside.acquire(timeout=SECONDS)

    def let_through(self, groups: int = 1) -> None:
        """Let groups go on."""
        self.gates.release(groups)


class Group:
    """Brings instances, each from a thread and an association of its own, while another commit is under way."""

    def __init__(self, database: Database, *, patience: float = SECONDS) -> None:
        self.intake = GatedIntake(database)
        self.recorder = GroupCommit(database, self.intake, patience=patience)
        self._threads = ThreadPoolExecutor(32)

    def bring(self, source: SourceHeader, content: str | None = None) -> Future[Receipt]:
        """Hand an instance over."""
        return self._threads.submit(self.recorder.record, sender(), source, stored(source, content))

    def waiting(self, count: int) -> None:
        """Wait until so many instances wait for the commit that is under way."""
        wait_until(lambda: len(self.recorder._waiting) == count, what=f"{count} instances wait")

    def close(self) -> None:
        self.intake.let_through(100)
        self._threads.shutdown()


@pytest.fixture
def group(database: Database) -> Iterator[Group]:
    made = Group(database)
    yield made
    made.close()


def sender() -> Sender:
    return Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")


def stored(source: SourceHeader, content: str | None = None) -> StoredFile:
    digest = hashlib.sha256((content or source.sop_instance_uid).encode()).hexdigest()
    return StoredFile(uuid.uuid4().hex, 1000, digest, 300, "1.2.840.10008.1.2.1")


def in_study(study: str, number: int = 1, **changes: Any) -> SourceHeader:
    return header(number, study_instance_uid=study, sop_instance_uid=f"{study}.4.{number}", **changes)


def commits_of(database: Database) -> list[None]:
    """Return a list that grows by one with each transaction that is committed after writing."""
    commits: list[None] = []

    def note(connection: Any) -> None:
        if connection.get_execution_options().get("osteon_write"):
            commits.append(None)

    event.listen(database.engine, "commit", note)
    return commits


def images(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.scalars(select(Image.sop_instance_uid)))


def test_instances_that_wait_share_one_commit_and_each_learns_what_it_is(database: Database, group: Group) -> None:
    commits = commits_of(database)
    first = group.bring(in_study("1.1"))
    group.intake.begun()
    news = [group.bring(in_study(f"1.{number % 3}", number)) for number in range(2, 8)]
    again, other = group.bring(in_study("1.1")), group.bring(in_study("1.1"), "other bytes")
    group.waiting(8)
    group.intake.let_through(2)
    assert first.result(SECONDS) is Receipt.NEW
    assert [new.result(SECONDS) for new in news] == [Receipt.NEW] * 6
    assert again.result(SECONDS) is Receipt.DUPLICATE
    assert other.result(SECONDS) is not Receipt.NEW
    assert len(commits) == 2
    with database.read() as session:
        rows = session.execute(select(Study.study_instance_uid, Study.generation))
        generations = dict(rows.all())
    assert generations == {"1.0": 2, "1.1": 3, "1.2": 2}


def test_one_that_the_database_refuses_takes_no_other_with_it_and_leaves_nothing_of_itself(
    database: Database, group: Group
) -> None:
    first = group.bring(in_study("1.1"))
    group.intake.begun()
    # It fails when its image is written; its study, with another patient, was written by then.
    refused = group.bring(in_study("2.1", 1, patient=replace(PATIENT, id="PID-2"), series_instance_uid=None))
    alone = group.bring(in_study("0.1", 1, series_instance_uid=None))
    group.waiting(2)
    others = [group.bring(in_study(study, 2)) for study in ("2.1", "1.1", "3.1")]
    group.waiting(5)
    # The first, the group at once, and the group with each apart.
    group.intake.let_through(3)
    assert [first.result(SECONDS), *(other.result(SECONDS) for other in others)] == [Receipt.NEW] * 4
    for one in (refused, alone):
        with pytest.raises(NotRecorded):
            one.result(SECONDS)
    with database.read() as session:
        studies = {study.study_instance_uid: study for study in session.scalars(select(Study))}
        assert session.scalar(select(func.count()).select_from(File)) == 4
    assert images(database) == ["1.1.4.1", "1.1.4.2", "2.1.4.2", "3.1.4.2"]
    assert set(studies) == {"1.1", "2.1", "3.1"}
    assert (studies["2.1"].patient_id, studies["2.1"].state) == (PATIENT.id, StudyState.RECEIVING)


def test_a_group_that_the_database_cannot_write_is_on_record_nowhere_and_the_next_one_is(
    database: Database, group: Group
) -> None:
    first = group.bring(in_study("1.1"))
    group.intake.begun()
    lost = [group.bring(in_study("1.1", number)) for number in range(2, 6)]
    group.waiting(4)
    group.intake.let_through()
    assert first.result(SECONDS) is Receipt.NEW
    group.intake.begun()
    group.intake.at_start = break_transaction
    group.intake.let_through()
    for one in lost:
        with pytest.raises(NotRecorded):
            one.result(SECONDS)
    assert images(database) == ["1.1.4.1"]
    group.intake.at_start = None
    # SQLite's limit is that of the connection.
    database.engine.dispose()
    group.intake.let_through(10)
    again = [group.bring(in_study("1.1", number)) for number in range(2, 6)]
    assert [one.result(SECONDS) for one in again] == [Receipt.NEW] * 4


def break_transaction(session: Session) -> None:
    """Make the open transaction fail: no page more on SQLite, its connection ended on PostgreSQL."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA max_page_count=1")
        return
    with Session(connection.engine) as other:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_a_connection_that_is_lost_during_the_commit_leaves_it_undecided(database: Database, group: Group) -> None:
    with database.write() as session:
        connection = session.connection()
        connection.exec_driver_sql(
            "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$"
        )
        # It waits when the transaction is committed, not before.
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON files DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION waits()"
        )
    group.intake.let_through()
    brought = group.bring(in_study("1.1"))
    end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")

    def ended() -> bool:
        with database.read() as session:
            return session.scalars(end).first() is True

    wait_until(ended, what="the commit waits, and is ended")
    with pytest.raises(Undecided):
        brought.result(SECONDS)


def test_who_waits_too_long_withdraws_what_nobody_took_and_leaves_undecided_what_is_under_way(
    database: Database,
) -> None:
    group = Group(database, patience=1)
    first = group.bring(in_study("1.1", 1))
    group.intake.begun()
    withdrawn = group.bring(in_study("1.1", 2))
    with pytest.raises(NotRecorded):
        withdrawn.result(SECONDS)
    taken = [group.bring(in_study("1.1", number)) for number in (3, 4)]
    group.waiting(2)
    group.intake.let_through()
    group.intake.begun()
    assert first.result(SECONDS) is Receipt.NEW
    wait_until(lambda: any(one.done() for one in taken), what="one has waited long enough")
    undecided = [one for one in taken if one.done()]
    assert [type(one.exception()) for one in undecided] == [Undecided]
    group.close()
    assert images(database) == ["1.1.4.1", "1.1.4.3", "1.1.4.4"]


def test_two_listeners_that_commit_the_same_studies_at_once_do_not_stop_each_other(
    settings: Settings, database: Database
) -> None:
    databases = [Database(database_url(settings)) for _ in range(2)]
    recorders = [GroupCommit(one, Intake(one, SETTINGS)) for one in databases]
    try:
        with ThreadPoolExecutor(24) as threads:
            # Every listener is brought the studies in another order, and several of them at once.
            brought = []
            for number in range(1, 9):
                for place, recorder in enumerate(recorders):
                    for study in sorted(("1.1", "1.2", "1.3", "1.4"), reverse=bool(place)):
                        source = in_study(study, number + 100 * place)
                        brought.append(threads.submit(recorder.record, sender(), source, stored(source)))
            assert [one.result(SECONDS) for one in brought] == [Receipt.NEW] * 64
    finally:
        for one in databases:
            one.close()
    with database.read() as session:
        assert list(session.scalars(select(Study.generation))) == [16] * 4
