"""The sweeper on both databases: when a study is complete, what it asks for, and the audit chain."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import Redis
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicom_node.intake import Intake, Sender, StoredFile
from models import audit, clock
from models.database import Database
from models.settings import Peer, Settings
from models.tables import AuditChain, AuditEvent, Image, ImageState, Study, StudyState
from models.upgrade import upgrade
from tests.reports import header
from tests.servers import Valkey, wait_until
from worker import sweeper as sweeping
from worker.broker import client
from worker.claims import Work, claim
from worker.hints import Hints
from worker.queue import make_app
from worker.sweeper import MOST_HINTS, SILENT_AFTER, HeldUp, Sweeper, close_quiet_studies

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOM = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")
PEERS = [Peer(name="room", ae_title="ROOM", role="source")]


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """A node whose broker does not run."""
    made = make_settings(peers=PEERS, broker_url=f"redis+socket://{tmp_path}/no.sock")
    upgrade(made)
    return made


@pytest.fixture
def intake(database: Database, settings: Settings) -> Intake:
    return Intake(database, settings)


@pytest.fixture
def at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


def receive(intake: Intake, number: int = 1, study: str = "1.2.3", sender: Sender = ROOM) -> None:
    source = header(number, study_instance_uid=study, sop_instance_uid=f"{study}.4.{number}")
    intake.record(sender, source, StoredFile(uuid.uuid4().hex, 1, source.sop_instance_uid, 0, "1.2"))


def wait(seconds: float) -> None:
    clock.advance(timedelta(seconds=seconds))


def states(database: Database) -> list[StudyState]:
    with database.read() as session:
        return list(session.scalars(select(Study.state).order_by(Study.id)))


# --- when a study is complete -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_noon")
def test_a_study_is_complete_when_it_was_quiet_and_its_association_has_ended(
    database: Database, intake: Intake
) -> None:
    receive(intake)
    intake.close(ROOM.uid, "released")
    wait(59.9)
    assert close_quiet_studies(database) == []
    wait(0.1)
    assert len(close_quiet_studies(database)) == 1
    assert states(database) == [StudyState.COMPLETE]
    with database.read() as session:
        assert session.scalars(select(Study.completed_at)).one() == clock.now()
    assert close_quiet_studies(database) == []


@pytest.mark.usefixtures("at_noon")
def test_a_study_is_not_complete_while_the_association_that_feeds_it_gives_signs_of_life(
    database: Database, intake: Intake
) -> None:
    receive(intake)
    for _ in range(10):
        wait(15)
        intake.touch([ROOM.uid])
        assert close_quiet_studies(database) == []
    intake.close(ROOM.uid, "aborted")
    assert len(close_quiet_studies(database)) == 1


@pytest.mark.usefixtures("at_noon")
def test_an_association_whose_listener_died_counts_as_open_only_for_as_long_as_its_last_sign_of_life_is_fresh(
    database: Database, intake: Intake
) -> None:
    receive(intake)
    wait(58)
    intake.touch([ROOM.uid])
    wait(SILENT_AFTER.total_seconds() - 0.1)
    assert close_quiet_studies(database) == []
    wait(0.1)
    assert len(close_quiet_studies(database)) == 1


@pytest.mark.usefixtures("at_noon")
def test_a_study_whose_sender_never_hangs_up_is_complete_after_the_longest_wait(
    database: Database, intake: Intake
) -> None:
    receive(intake)
    for _ in range(60):
        wait(14.99)
        intake.touch([ROOM.uid])
        assert close_quiet_studies(database) == []
    wait(1)
    intake.touch([ROOM.uid])
    assert len(close_quiet_studies(database)) == 1


@pytest.mark.usefixtures("at_noon")
def test_any_open_association_that_fed_a_study_keeps_it_open_and_one_that_did_not_does_not(
    database: Database, intake: Intake
) -> None:
    other = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.2")
    receive(intake, 1, "1.1")
    receive(intake, 2, "1.1", other)
    receive(intake, 1, "1.2")
    intake.close(ROOM.uid, "released")
    wait(60)
    intake.touch([other.uid])
    close_quiet_studies(database)
    assert states(database) == [StudyState.RECEIVING, StudyState.COMPLETE]


@pytest.mark.usefixtures("at_noon")
def test_a_study_that_needs_attention_or_was_reported_is_left_alone(database: Database, intake: Intake) -> None:
    for number, state in enumerate((StudyState.NEEDS_ATTENTION, StudyState.REPORTED)):
        receive(intake, 1, f"1.{number}")
        with database.write() as session:
            session.scalars(select(Study).where(Study.study_instance_uid == f"1.{number}")).one().state = state
    intake.close(ROOM.uid, "released")
    wait(10_000)
    assert close_quiet_studies(database) == []


@pytest.mark.usefixtures("at_noon")
def test_several_sweepers_at_once_close_each_study_once(database: Database, intake: Intake) -> None:
    for number in range(12):
        receive(intake, 1, f"1.{number}")
    intake.close(ROOM.uid, "released")
    wait(60)
    closed: list[int] = []
    start = threading.Barrier(4)

    def close() -> None:
        start.wait()
        closed.extend(close_quiet_studies(database))

    run_all([threading.Thread(target=close) for _ in range(4)])
    assert len(closed) == len(set(closed)) == 12


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- hints --------------------------------------------------------------------------------------------------------


def test_without_a_broker_studies_are_closed_all_the_same_and_nothing_waits(
    database: Database, settings: Settings, intake: Intake
) -> None:
    lives: list[float] = []
    with clock.frozen(NOON):
        for number in range(3):
            receive(intake, number)
        intake.close(ROOM.uid, "released")
        wait(60)
        hints = Hints(make_app(settings))
        sweeper = Sweeper(settings, database, hints, alive=lambda: lives.append(time.monotonic()))
        took = []
        for _ in range(5):
            began = time.monotonic()
            sweeper.sweep()
            took.append(time.monotonic() - began)
        # What waits for a broker does so in each round; a machine that stands still does not.
        assert min(took) < 0.4
    assert states(database) == [StudyState.COMPLETE]
    assert chain_of(database) != [], "it chains without the broker, too"
    assert hints._waiting.qsize() == 0, "hints that cannot be sent do not pile up"


def test_a_broker_that_accepts_and_never_answers_delays_a_round_by_one_timeout_at_most(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.broker.ANSWER_SECONDS", 1.0)
    path = Path("/tmp") / f"osteon-test-{uuid.uuid4().hex[:12]}.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(50)
        settings = make_settings(peers=PEERS, broker_url=f"redis+socket://{path}")
        upgrade(settings)
        database = Database.of(settings)
        try:
            intake = Intake(database, settings)
            for study in ("1.1", "1.2"):
                receive(intake, 1, study)
            with database.write() as session:
                # One study is to be analysed, the other to be reported.
                session.scalars(
                    select(Image).where(Image.sop_instance_uid == "1.1.4.1")
                ).one().state = ImageState.ANALYSED
                for row in session.scalars(select(Study)):
                    row.state = StudyState.COMPLETE
            sweeper = Sweeper(settings, database, Hints(make_app(settings)))
            sweeper.sweep()
            assert connections_to(silent) == 1, "whoever waited in vain for an answer has hung up"
            assert chain_of(database) != [], "and the rest of the round is done"
        finally:
            database.close()
            path.unlink()


def connections_to(server: socket.socket) -> int:
    """How many connections this server has not accepted yet."""
    server.setblocking(False)
    with ExitStack() as accepted:
        for number in itertools.count():
            try:
                accepted.enter_context(server.accept()[0])
            except BlockingIOError:
                return number
    raise AssertionError


def test_it_runs_until_it_is_stopped_and_says_after_each_round_that_it_lives(
    database: Database, settings: Settings
) -> None:
    stop, rounds = threading.Event(), threading.Semaphore(0)
    sweeper = Sweeper(settings, database, Hints(make_app(settings)), alive=rounds.release)
    thread = threading.Thread(target=sweeper.run, args=(stop,))
    thread.start()
    assert all(rounds.acquire(timeout=30) for _ in range(2))
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def broker(make_settings: Callable[..., Settings], valkey: Valkey) -> Iterator[tuple[Settings, Redis]]:
    """A node with a real broker, and a client that looks into its queues."""
    made = make_settings(peers=PEERS, broker_url=valkey.url)
    upgrade(made)
    with client(made) as connection:
        yield made, connection


def test_as_many_hints_wait_as_there_is_work_and_never_more_however_often_it_sweeps(
    database: Database, broker: tuple[Settings, Redis], intake: Intake
) -> None:
    settings, connection = broker
    for number in range(3):
        receive(intake, number)
    app = make_app(settings)
    sweeper = Sweeper(settings, database, Hints(app))

    def waiting() -> int:
        return int(connection.llen(Work.ANALYSE.value))  # type: ignore[arg-type]

    sweeper.sweep()
    wait_until(lambda: waiting() == 3, seconds=10, what="a hint for each image")
    for _ in range(10):
        sweeper.sweep()
    time.sleep(0.3)
    assert waiting() == 3
    assert connection.llen(Work.REPORT.value) == connection.llen(Work.DELIVER.value) == 0

    # Hints that were lost are given again.
    connection.delete(Work.ANALYSE.value)
    with database.write() as session:
        session.scalars(select(Image).limit(1)).one().state = ImageState.ANALYSED
    sweeper.sweep()
    wait_until(lambda: waiting() == 2, seconds=10, what="a hint for each image that is left")

    # Nor are there more than a worker can use, however much work there is.
    for number in range(3, MOST_HINTS + 10):
        receive(intake, number)
    sweeper.sweep()
    wait_until(lambda: waiting() >= MOST_HINTS, seconds=10, what="as many hints as a worker can use")
    for _ in range(5):
        sweeper.sweep()
    time.sleep(0.3)
    assert waiting() == MOST_HINTS
    app.close()


# --- studies whose images wait ------------------------------------------------------------------------------------


def quiet_studies(database: Database, intake: Intake, count: int) -> list[int]:
    """Receive studies of one image each, and let them be complete."""
    for number in range(count):
        receive(intake, 1, f"1.2.{number + 1}")
        wait(1)
    intake.close(ROOM.uid, "released")
    wait(120)
    return sorted(close_quiet_studies(database))


def read(database: Database, *studies: int) -> None:
    with database.write() as session:
        session.execute(update(Image).where(Image.study_id.in_(studies)).values(state=ImageState.ANALYSED))


def held_up(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(Study.id).where(Study.held_up.is_(True)).order_by(Study.id)))


def to_report(database: Database) -> int | None:
    held = claim(database, Work.REPORT, limit=timedelta(minutes=1))
    return None if held is None else held.row_id


@pytest.mark.usefixtures("at_noon")
def test_a_study_whose_images_wait_is_passed_over_until_a_sweeper_sees_that_they_were_read(
    database: Database, intake: Intake, settings: Settings
) -> None:
    first, second, third = quiet_studies(database, intake, 3)
    assert held_up(database) == [first, second, third]
    sweeper = Sweeper(settings, database, Hints(make_app(settings)))
    sweeper.sweep()
    assert to_report(database) is None
    read(database, second)
    assert to_report(database) is None
    wait(5)
    sweeper.sweep()
    assert held_up(database) == [first, third]
    with database.read() as session:
        # It could not have been claimed before, and nobody is warned that it was not.
        assert session.scalars(select(Study.due_at).where(Study.id == second)).one() == clock.now()
    assert to_report(database) == second


@pytest.mark.usefixtures("at_noon")
def test_a_study_that_was_read_before_it_was_complete_is_never_held_up(database: Database, intake: Intake) -> None:
    receive(intake)
    with database.write() as session:
        session.execute(update(Image).values(state=ImageState.ANALYSED))
    intake.close(ROOM.uid, "released")
    wait(60)
    (closed,) = close_quiet_studies(database)
    assert held_up(database) == []
    assert to_report(database) == closed


@pytest.mark.usefixtures("at_noon")
def test_an_image_that_comes_late_to_a_study_that_was_held_up_is_waited_for(database: Database, intake: Intake) -> None:
    (first,) = quiet_studies(database, intake, 1)
    late = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")
    receive(intake, 2, "1.2.1", late)
    intake.close(late.uid, "released")
    assert HeldUp(database).let_go_on() == []
    read(database, first)
    wait(60)
    assert close_quiet_studies(database) == [first]
    assert held_up(database) == []
    assert to_report(database) == first


@pytest.mark.usefixtures("at_noon")
def test_a_study_behind_many_whose_images_go_on_waiting_has_its_turn(
    database: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "LOOK_AT_FIRST", 2)
    monkeypatch.setattr(sweeping, "LOOK_AT_OTHERS", 3)
    monkeypatch.setattr(sweeping, "AT_ONCE", 2)
    studies = quiet_studies(database, intake, 10)
    looker = HeldUp(database)
    looker.let_go_on()
    for ready in reversed(studies[2:]):
        read(database, ready)
        # Three of ten with each look, and a look at the end of them.
        looks = [looker.let_go_on() for _ in range(5)]
        assert sum(map(len, looks)) == 1
        assert ready not in held_up(database)
    # The first are looked at each time.
    read(database, studies[0])
    assert looker.let_go_on() == [studies[0]]


# --- the audit chain ----------------------------------------------------------------------------------------------


def chain_of(database: Database) -> list[tuple[AuditChain, AuditEvent]]:
    joined = select(AuditChain, AuditEvent).join(AuditEvent, AuditEvent.id == AuditChain.event_id)
    with database.read() as session:
        return [(link, event) for link, event in session.execute(joined.order_by(AuditChain.seq))]


def expected_hash(event: AuditEvent, previous: str) -> str:
    """Written again here, as an auditor would, and not taken from the program."""
    content = [
        previous,
        event.id,
        event.at.strftime("%Y-%m-%dT%H:%M:%S")
        + (f".{event.at.microsecond:06}" if event.at.microsecond else "")
        + "+00:00",
        event.actor,
        event.action,
        event.subject,
        event.subject_id,
        event.details,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(database: Database, events: int) -> None:
    """The chain is without gaps, holds each event once, and every hash is that of its event and the hash before."""
    links = chain_of(database)
    assert [link.seq for link, _ in links] == list(range(1, events + 1))
    assert len({link.event_id for link, _ in links}) == events
    previous = "0" * 64
    for link, event in links:
        assert link.previous_hash == previous
        assert link.hash == expected_hash(event, previous)
        previous = link.hash


def add_events(database: Database, count: int, *, actor: str = "test") -> None:
    with database.write() as session:
        for number in range(count):
            audit.record(
                session, actor=actor, action="tested", subject="image", subject_id=number, b=number, a="é", none=None
            )


def test_every_event_gets_its_place_in_the_chain_and_the_chain_verifies(database: Database, settings: Settings) -> None:
    sweeper = Sweeper(settings, database, Hints(make_app(settings)))
    with clock.frozen(NOON):
        add_events(database, 3)
    sweeper.sweep()
    add_events(database, 4)
    sweeper.sweep()
    sweeper.sweep()
    verify(database, 7)


def test_several_sequencers_and_writers_at_once_make_one_chain_without_gaps(database: Database) -> None:
    start = threading.Barrier(4)
    written = threading.Event()
    errors: list[BaseException] = []

    def sequence() -> None:
        try:
            start.wait()
            while True:
                done = written.is_set()
                try:
                    with database.write() as session:
                        chained = audit.chain(session, limit=7)
                except IntegrityError:
                    continue
                if done and not chained:
                    return
        except BaseException as error:
            errors.append(error)

    def write(actor: str) -> None:
        start.wait()
        for _ in range(15):
            add_events(database, 4, actor=actor)

    writers = [threading.Thread(target=write, args=(f"writer-{number}",)) for number in range(2)]
    sequencers = [threading.Thread(target=sequence) for _ in range(2)]
    for thread in writers + sequencers:
        thread.start()
    for thread in writers:
        thread.join()
    written.set()
    for thread in sequencers:
        thread.join()
    assert errors == []
    verify(database, 120)


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_an_event_that_is_committed_after_a_younger_one_was_chained_is_chained_too(database: Database) -> None:
    with database.write() as slow:
        audit.record(slow, actor="slow", action="tested", subject="image", subject_id=1)
        slow.flush()
        add_events(database, 2)
        with database.write() as session:
            assert audit.chain(session) == 2
    with database.write() as session:
        assert audit.chain(session) == 1
    verify(database, 3)
    assert [event.id for _, event in chain_of(database)] == [2, 3, 1]


def test_an_event_that_many_younger_ones_were_chained_before_is_found_by_a_sweeper_that_starts(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LOOK_BACK", 3)
    add_events(database, 1)
    with database.read() as session:
        late = session.scalars(select(AuditEvent)).one()
    with database.write() as session:
        # As if its transaction had been open until now.
        session.add(
            AuditEvent(id=100, at=NOON, actor="test", action="tested", subject="image", subject_id=None, details={})
        )
        session.flush()
        session.add(AuditChain(seq=1, event_id=100, previous_hash="0" * 64, hash="1" * 64))
    with database.read() as session:
        assert audit.unchained(session, limit=1) == []
    sweeper = Sweeper(settings, database, Hints(make_app(settings)))
    sweeper.sweep()
    assert [event.id for _, event in chain_of(database)] == [100, late.id]
    # From then on the quick look suffices, until an hour has passed.
    monkeypatch.setattr(audit, "unchained", partial(_quickly, audit.unchained))
    sweeper.sweep()


def test_old_events_are_looked_through_some_at_a_time(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LOOK_BACK", 1)
    monkeypatch.setattr(audit, "LOOK_AT", 10)
    add_events(database, 50)
    with database.read() as session:
        events = list(session.scalars(select(AuditEvent).order_by(AuditEvent.id)))
    forgotten = {events[5].id, events[34].id}
    with database.write() as session:
        for seq, kept in enumerate([event for event in events if event.id not in forgotten], start=1):
            session.add(AuditChain(seq=seq, event_id=kept.id, previous_hash="0" * 64, hash="1" * 64))
    sweeper = Sweeper(settings, database, Hints(make_app(settings)))
    found = []
    for _ in range(5):
        sweeper.sweep()
        found.append({event.id for _, event in chain_of(database)[48:]})
    assert found[0] == {events[5].id}
    assert found[2] == {events[5].id}
    assert found[3] == forgotten
    monkeypatch.setattr(audit, "unchained", partial(_quickly, audit.unchained))
    sweeper.sweep()


def _quickly(
    look: Callable[..., list[AuditEvent]], session: Session, *, limit: int, after: int | None = None
) -> list[AuditEvent]:
    assert after is None
    return look(session, limit=limit)


def test_work_that_nobody_does_is_warned_of_once_and_again_after_it_was_done(
    database: Database, settings: Settings, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweeper.LOOK_AFTER_WAITING_SECONDS", 0.0)
    sweeper = Sweeper(settings, database, Hints(make_app(settings)))
    with clock.frozen(NOON), structlog.testing.capture_logs() as said:
        receive(intake, 1)
        wait(settings.study.warn_after - 1)
        receive(intake, 2)
        sweeper.sweep()
        assert about_waiting(said) == []
        wait(2)
        for _ in range(3):
            sweeper.sweep()
        assert about_waiting(said) == [("warning", "analyse")]
        with database.write() as session:
            session.scalars(select(Image).order_by(Image.id).limit(1)).one().state = ImageState.ANALYSED
        sweeper.sweep()
        assert about_waiting(said) == [("warning", "analyse"), ("info", "analyse")]


def about_waiting(said: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(line["log_level"], line["work"]) for line in said if "waits for too long" in line["event"]]


def test_the_hash_covers_every_column_of_the_event_and_the_hash_before(database: Database) -> None:
    add_events(database, 1)
    with database.read() as session:
        event = session.scalars(select(AuditEvent)).one()
    hashes = {audit.event_hash(event, audit.GENESIS), audit.event_hash(event, "1" * 64)}
    for name, value in (
        ("id", 99),
        ("at", NOON),
        ("actor", "another"),
        ("action", "another"),
        ("subject", "another"),
        ("subject_id", 99),
        ("details", {"a": "e"}),
    ):
        before = getattr(event, name)
        setattr(event, name, value)
        hashes.add(audit.event_hash(event, audit.GENESIS))
        setattr(event, name, before)
    assert len(hashes) == 9
