"""The sweeper's glance on both databases: one statement, which misses nothing that a closer look would find."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select, update

from dicom_node.intake import Intake, Sender, StoredFile
from models import audit, clock
from models.database import Database
from models.settings import Peer, Settings
from models.tables import (
    AuditChain,
    AuditEvent,
    CommitmentRequest,
    Delivery,
    DeliveryState,
    File,
    Image,
    ImageState,
    Resend,
    Study,
    StudyState,
)
from models.upgrade import upgrade
from tests.post import Post, peer
from tests.reports import header
from worker.claims import Work, count_claimable
from worker.glance import glance
from worker.hints import Hints
from worker.lanes import waiting
from worker.queue import make_app
from worker.sweeper import PERIOD_SECONDS, SHORTEST_PERIOD_SECONDS, Sweeper, close_quiet_studies

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOM = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """A node whose broker does not run, with one destination."""
    peers = [Peer(name="room", ae_title="ROOM", role="source"), peer("pacs", 9)]
    made = make_settings(peers=peers, broker_url=f"redis+socket://{tmp_path}/no.sock")
    upgrade(made)
    return made


@pytest.fixture
def sweeper(settings: Settings, database: Database) -> Iterator[Sweeper]:
    app = make_app(settings)
    yield Sweeper(settings, database, Hints(app))
    app.close()


def receive(settings: Settings, database: Database, study: str = "1.2.3") -> None:
    intake = Intake(database, settings)
    source = header(1, study_instance_uid=study, sop_instance_uid=f"{study}.4.1")
    intake.record(ROOM, source, StoredFile(uuid.uuid4().hex, 1, source.sop_instance_uid, 0, "1.2"))
    intake.close(ROOM.uid, "released")


def a_received_image(settings: Settings, database: Database) -> None:
    receive(settings, database)


def an_instance_that_came_again(settings: Settings, database: Database) -> None:
    receive(settings, database)
    with database.write() as session:
        image = session.scalars(select(Image)).one()
        image.state = ImageState.ANALYSED
        session.add(
            Resend(
                image_id=image.id,
                study_id=image.study_id,
                association_id=image.association_id,
                file_id=session.scalars(select(File.id)).one(),
                calling_ae_title="ROOM",
                dataset_sha256="1" * 64,
                header=image.header,
                transfer_syntax_uid="1.2",
                received_at=clock.now(),
                rank_at=clock.now(),
                due_at=clock.now(),
            )
        )


def a_quiet_study(settings: Settings, database: Database) -> None:
    receive(settings, database)
    with database.write() as session:
        session.execute(update(Image).values(state=ImageState.ANALYSED))
    clock.advance(timedelta(seconds=60))


def a_complete_study(settings: Settings, database: Database) -> None:
    a_quiet_study(settings, database)
    assert close_quiet_studies(database)


def a_delivery_that_is_due(settings: Settings, database: Database) -> None:
    post = Post(settings)
    post.report()
    post.database.close()
    with database.write() as session:
        session.execute(update(Study).values(state=StudyState.REPORTED))


def a_destination_to_be_asked_for_commitment(settings: Settings, database: Database) -> None:
    a_delivery_that_is_due(settings, database)
    with database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.DELIVERED, commit_due_at=clock.now()))


def a_request_for_commitment(settings: Settings, database: Database) -> None:  # noqa: ARG001
    now = clock.now()
    with database.write() as session:
        session.add(
            CommitmentRequest(
                peer="room", transaction_uid="1.2", instances=[], received_at=now, rank_at=now, due_at=now
            )
        )


WORK = [
    a_received_image,
    an_instance_that_came_again,
    a_complete_study,
    a_delivery_that_is_due,
    a_destination_to_be_asked_for_commitment,
    a_request_for_commitment,
]


@pytest.mark.parametrize("make", WORK, ids=lambda make: make.__name__)
def test_whatever_can_be_claimed_or_asked_for_is_seen(
    make: Callable[[Settings, Database], None], settings: Settings, database: Database
) -> None:
    with database.read() as session:
        assert not glance(session).work
    make(settings, database)
    with database.read() as session:
        kinds = [work for work in Work if work is not Work.DELIVER]
        assert any(count_claimable(session, work, at_most=1) for work in kinds) or waiting(session)
        assert glance(session).work


def test_a_study_is_seen_when_its_quiet_time_is_over_and_announced_before(
    settings: Settings, database: Database
) -> None:
    receive(settings, database)
    with database.write() as session:
        session.execute(update(Image).values(state=ImageState.ANALYSED))
    with database.read() as session:
        seen = glance(session)
        assert (seen.work, seen.next_quiet) == (False, NOON + timedelta(seconds=60))
        clock.advance(timedelta(seconds=60))
        seen = glance(session)
        assert (seen.work, seen.next_quiet) == (True, None)


def test_the_next_round_is_due_when_the_next_study_becomes_quiet(
    settings: Settings, database: Database, sweeper: Sweeper
) -> None:
    assert sweeper.sweep() == PERIOD_SECONDS
    receive(settings, database)
    assert sweeper.sweep() == PERIOD_SECONDS
    clock.advance(timedelta(seconds=59.8))
    assert sweeper.sweep() == pytest.approx(0.2)
    clock.advance(timedelta(seconds=0.19))
    assert sweeper.sweep() == SHORTEST_PERIOD_SECONDS
    clock.advance(timedelta(seconds=0.01))
    # One that is quiet and whose association is still open is looked after twice a second, and not without a pause.
    assert sweeper.sweep() == PERIOD_SECONDS


def test_a_round_that_finds_nothing_asks_the_record_once(
    settings: Settings, database: Database, sweeper: Sweeper
) -> None:
    receive(settings, database)
    with database.write() as session:
        session.execute(update(Image).values(state=ImageState.ANALYSED))
    sweeper.sweep()
    with statements(database) as asked:
        sweeper.sweep()
    assert len(asked) == 1


def test_an_event_that_was_committed_late_is_chained_although_nothing_new_comes(
    database: Database, sweeper: Sweeper
) -> None:
    with database.write() as session:
        audit.record(session, actor="test", action="tested", subject="image", subject_id=1)
    sweeper.sweep()
    with database.write() as session:
        # As if its transaction had been open until now.
        session.add(
            AuditEvent(id=0, at=NOON, actor="test", action="tested", subject="image", subject_id=None, details={})
        )
    sweeper.sweep()
    assert chained(database) == 1
    sweeper._look_back_at = 0.0  # as if that time had passed
    sweeper.sweep()
    assert chained(database) == 2


def chained(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(AuditChain.seq)).all())


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect what is asked of the database, apart from the beginnings of transactions."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
