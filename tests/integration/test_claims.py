"""Claiming work on both databases: the most urgent row, once, held by a lease with a fencing token."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, inspect, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from dicom_node.headers import SourceHeader
from dicom_node.intake import Intake, Sender, StoredFile
from models import clock
from models.database import Database, database_now
from models.settings import GivenSettings, Peer
from models.tables import (
    Association,
    Delivery,
    DeliveryState,
    DestinationState,
    Image,
    ImageState,
    Report,
    Study,
    StudyState,
)
from tests.reports import header
from worker.claims import Claim, LeaseLost, Work, claim, claimable, count_claimable, release, still_held
from worker.leases import Lease, kept_alive

LIMIT = timedelta(minutes=2)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DX = "1.2.840.10008.5.1.4.1.1.1.1"
TABLES: dict[Work, Any] = {Work.ANALYSE: Image, Work.REPORT: Study}


def study(session: Session, uid: str = "1.2.3", **changes: Any) -> Study:
    words = ("patient_name", "patient_id", "issuer_of_patient_id", "patient_birth_date", "accession_number")
    moments = ("first_image_at", "last_image_at", "quiet_until", "complete_by", "rank_at", "due_at")
    values: dict[str, Any] = {**dict.fromkeys(words, ""), **dict.fromkeys(moments, NOON)}
    values |= {"patient_sex": "", "study_date": "", "study_description": "", "calling_ae_title": "ROOM"}
    made = Study(study_instance_uid=uid, **(values | changes))
    session.add(made)
    session.flush()
    return made


def image(session: Session, of: Study, uid: str, **changes: Any) -> Image:
    association = session.scalars(select(Association)).first()
    if association is None:
        association = Association(
            uid="a", calling_ae_title="ROOM", called_ae_title="OSTEON", address="::1", opened_at=NOON, seen_at=NOON
        )
        session.add(association)
        session.flush()
    words = ("transfer_syntax_uid", "modality", "body_part", "view", "laterality", "header", "dataset_sha256")
    values: dict[str, Any] = {**dict.fromkeys(words, ""), "rank_at": NOON, "due_at": NOON, "received_at": NOON}
    made = Image(
        study_id=of.id,
        association_id=association.id,
        sop_instance_uid=uid,
        sop_class_uid=DX,
        series_instance_uid="1.2.3.3",
        is_image=True,
        **(values | changes),
    )
    session.add(made)
    session.flush()
    return made


def delivery(session: Session, of: Study, destination: str, revision: int, **changes: Any) -> Delivery:
    report = session.scalars(select(Report).where(Report.study_id == of.id, Report.revision == revision)).first()
    if report is None:
        report = Report(
            study_id=of.id,
            kind="comprehensive_3d",
            revision=revision,
            generation=revision,
            sop_class_uid="1.2",
            sop_instance_uid=f"2.25.{of.id}.{revision}",
            series_instance_uid="2.25.9",
            impression="no_fracture",
            content=b"",
            sha256="",
            created_at=NOON,
        )
        session.add(report)
        session.flush()
    values: dict[str, Any] = {"created_at": NOON, "rank_at": NOON, "due_at": NOON}
    made = Delivery(report_id=report.id, study_id=of.id, destination=destination, **(values | changes))
    session.add(made)
    session.flush()
    return made


def taken(database: Database, work: Work) -> Claim:
    found = claim(database, work, limit=LIMIT)
    assert found is not None
    return found


def expire(database: Database, held: Claim) -> None:
    """Let a lease run out, by the database's time."""
    table = TABLES[held.work]
    with database.write() as session:
        past = database_now(session) - timedelta(seconds=1)
        session.execute(update(table).where(table.id == held.row_id).values(lease_until=past))


# --- order --------------------------------------------------------------------------------------------------------


def test_rows_are_claimed_by_rank_and_those_of_one_rank_in_the_order_they_came(database: Database) -> None:
    with database.write() as session:
        parent = study(session)
        ranks = [3, 1, 2, 1]
        ids = [
            image(session, parent, f"1.{n}", rank_at=NOON + timedelta(seconds=rank)).id for n, rank in enumerate(ranks)
        ]
    claimed = [taken(database, Work.ANALYSE).row_id for _ in ids]
    assert claimed == [ids[1], ids[3], ids[2], ids[0]]
    assert claim(database, Work.ANALYSE, limit=LIMIT) is None


@pytest.mark.parametrize(("seconds_later", "urgent_first"), [(60, True), (599, True), (601, False)])
def test_an_urgent_image_overtakes_a_routine_one_that_has_not_waited_longer_than_its_head_start(
    database: Database, seconds_later: float, urgent_first: bool
) -> None:
    peers = [
        Peer(name="ward", ae_title="WARD", role="source"),
        Peer(name="er", ae_title="ER", role="source", priority="urgent"),
    ]
    intake = Intake(database, GivenSettings(peers=peers))
    uids = {}
    for title, study_uid, at in (("WARD", "1.1", 0.0), ("ER", "1.2", seconds_later)):
        source = header(1, study_instance_uid=study_uid, sop_instance_uid=f"{study_uid}.1")
        with clock.frozen(NOON + timedelta(seconds=at)):
            stored = StoredFile(f"{title:x<32}", 1, title, 0, "1.2")
            intake.record(Sender(title, title, "OSTEON", "::1"), source, stored)
        uids[title] = source.sop_instance_uid
    first = taken(database, Work.ANALYSE).row_id
    with database.read() as session:
        assert session.get_one(Image, first).sop_instance_uid == uids["ER" if urgent_first else "WARD"]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_study_that_its_header_calls_urgent_goes_first_with_all_of_its_images_where_headers_are_trusted(
    database: Database, trusted: bool
) -> None:
    peers = [Peer(name="ward", ae_title="WARD", role="source")]
    intake = Intake(database, GivenSettings(peers=peers, study={"trust_header_priority": trusted}))
    came = [("1.1", False), ("1.2", False), ("1.2", True), ("1.3", False), ("1.2", False)]
    for number, (study_uid, urgent) in enumerate(came):
        source = header(1, study_instance_uid=study_uid, sop_instance_uid=f"{study_uid}.{number}", urgent=urgent)
        with clock.frozen(NOON + timedelta(seconds=number)):
            stored = StoredFile(f"{number:032}", 1, str(number), 0, "1.2")
            intake.record(Sender("ward", "WARD", "OSTEON", "::1"), source, stored)
    numbers = [taken(database, Work.ANALYSE).row_id - 1 for _ in came]
    assert numbers == ([1, 2, 4, 0, 3] if trusted else [0, 1, 2, 3, 4])
    with database.read() as session:
        assert session.scalars(select(Study.urgent).order_by(Study.id)).all() == [False, trusted, False]


def test_under_an_endless_stream_of_urgent_images_a_routine_one_is_read_within_their_head_start(
    database: Database,
) -> None:
    intake = Intake(database, GivenSettings(study={"urgent_head_start": 30}))
    read_after = None
    with clock.frozen(NOON):
        for number in range(60):
            urgent = number != 12
            source = header(1, study_instance_uid=f"1.{number}", sop_instance_uid=f"1.{number}.1", urgent=urgent)
            intake.record(Sender("a", "WARD", "OSTEON", "::1"), source, StoredFile(f"{number:032}", 1, "", 0, "1.2"))
            if number >= 10:  # and ten urgent ones always wait
                held = taken(database, Work.ANALYSE)
                with database.write() as session:
                    row = still_held(session, held, Image)
                    row.state = ImageState.ANALYSED
                    if not SourceHeader.from_json(row.header).urgent:
                        read_after = (clock.now() - row.received_at).total_seconds()
            clock.advance(timedelta(seconds=1))
    assert read_after is not None, "it is never read"
    assert 20 < read_after <= 30 + 10, "those that came before it is urgent enough go first, and no others"


def test_a_row_is_not_claimed_before_it_is_due(database: Database) -> None:
    with clock.frozen(NOON):
        with database.write() as session:
            parent = study(session)
            image(session, parent, "1.1", due_at=NOON + timedelta(seconds=10))
            later = image(session, parent, "1.2", rank_at=NOON + timedelta(hours=1)).id
        assert taken(database, Work.ANALYSE).row_id == later
        assert claim(database, Work.ANALYSE, limit=LIMIT) is None
        clock.advance(timedelta(seconds=10))
        assert claim(database, Work.ANALYSE, limit=LIMIT) is not None


@pytest.mark.parametrize("state", [ImageState.ANALYSED, ImageState.NOT_ANALYSED, ImageState.FAILED])
def test_an_image_that_is_done_is_not_claimed(database: Database, state: ImageState) -> None:
    with database.write() as session:
        image(session, study(session), "1.1", state=state)
    assert claim(database, Work.ANALYSE, limit=LIMIT) is None


# --- one holder ---------------------------------------------------------------------------------------------------


def test_claimers_in_several_threads_never_get_the_same_row_and_leave_none(database: Database) -> None:
    with database.write() as session:
        parent = study(session)
        ids = {image(session, parent, f"1.{n}").id for n in range(60)}
    claimed: list[Claim] = []
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work() -> None:
        try:
            start.wait()
            while (found := claim(database, Work.ANALYSE, limit=LIMIT)) is not None:
                claimed.append(found)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(claimed) == 60
    assert {found.row_id for found in claimed} == ids


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_on_postgresql_a_claimer_goes_past_a_row_that_another_transaction_holds(database: Database) -> None:
    with database.write() as session:
        parent = study(session)
        first, second = (image(session, parent, f"1.{n}").id for n in range(2))
    with database.write() as session:
        session.scalars(select(Image).where(Image.id == first).with_for_update()).one()
        assert taken(database, Work.ANALYSE).row_id == second


def test_a_row_is_not_claimed_again_while_its_lease_lasts(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    with clock.frozen(clock.now() + timedelta(days=1)):
        # Leases go by the database's time, not by that of a host whose clock is wrong.
        taken(database, Work.ANALYSE)
        assert claim(database, Work.ANALYSE, limit=LIMIT) is None


def test_a_lease_that_ran_out_can_be_taken_over_and_its_late_holder_may_not_write(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    late = taken(database, Work.ANALYSE)
    expire(database, late)
    new = taken(database, Work.ANALYSE)
    assert (new.row_id, new.tries) == (late.row_id, 2)
    assert new.token > late.token
    with pytest.raises(LeaseLost), database.write() as session:
        still_held(session, late, Image).state = ImageState.ANALYSED
    with database.write() as session:
        row = still_held(session, new, Image)
        assert row.state is ImageState.RECEIVED
        row.state = ImageState.ANALYSED
        release(row)
    with pytest.raises(LeaseLost), database.write() as session:
        still_held(session, new, Image)


def test_a_late_holder_whose_row_nobody_took_over_may_still_write(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    held = taken(database, Work.ANALYSE)
    expire(database, held)
    with database.write() as session:
        assert still_held(session, held, Image).id == held.row_id


def test_a_released_row_can_be_claimed_again_after_its_wait(database: Database) -> None:
    with clock.frozen(NOON):
        with database.write() as session:
            image(session, study(session), "1.1")
        held = taken(database, Work.ANALYSE)
        with database.write() as session:
            release(still_held(session, held, Image), wait=timedelta(seconds=5))
        assert claim(database, Work.ANALYSE, limit=LIMIT) is None
        clock.advance(timedelta(seconds=5))
        again = taken(database, Work.ANALYSE)
        assert (again.tries, again.token) == (2, held.token + 1)


# --- leases kept alive ---------------------------------------------------------------------------------------------


@pytest.fixture
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.leases.LEASE", timedelta(seconds=3))
    monkeypatch.setattr("worker.leases.BEAT_SECONDS", 0.2)


def left(database: Database, row: int, table: Any = Image) -> float | None:
    """Seconds until the lease ends, by the database's time."""
    with database.read() as session:
        until = session.get_one(table, row).lease_until
        return None if until is None else float((until - database_now(session)).total_seconds())


@pytest.mark.usefixtures("_short_leases")
def test_a_lease_is_short_and_lasts_for_as_long_as_its_holder_lives(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    held = taken(database, Work.ANALYSE)
    assert 0 < (left(database, held.row_id) or 0) <= 3
    with kept_alive(database, held.lease):
        time.sleep(3.5)
        assert claim(database, Work.ANALYSE, limit=LIMIT) is None
    time.sleep(3.1)
    assert taken(database, Work.ANALYSE).token == held.token + 1


@pytest.mark.usefixtures("_short_leases")
def test_a_holder_that_hangs_beyond_the_time_limit_of_its_work_loses_its_lease(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    held = claim(database, Work.ANALYSE, limit=timedelta(seconds=0.5))
    assert held is not None
    with kept_alive(database, held.lease):
        time.sleep(4)
        taken(database, Work.ANALYSE)
        with pytest.raises(LeaseLost), database.write() as session:
            still_held(session, held, Image)


@pytest.mark.usefixtures("_short_leases")
def test_one_heart_keeps_rows_of_several_tables_and_leaves_alone_what_was_given_back_or_taken_over(
    database: Database,
) -> None:
    with database.write() as session:
        parent = study(session, state=StudyState.COMPLETE)
        read = [image(session, study(session, f"1.{number}"), f"1.{number}.1").id for number in range(3)]
        place = DestinationState(
            name="pacs", due_at=NOON, lease_token=7, lease_until=database_now(session) + timedelta(seconds=3)
        )
        session.add(place)
        session.flush()
        parent_id, place_id = parent.id, place.id
    claims = [taken(database, Work.ANALYSE) for _ in read] + [taken(database, Work.REPORT)]
    with kept_alive(database, *(held.lease for held in claims), Lease(DestinationState, place_id, 7, LIMIT)):
        with database.write() as session:
            release(still_held(session, claims[0], Image), wait=timedelta(hours=1))
        expire(database, claims[1])
        assert taken(database, Work.ANALYSE).row_id == read[1]
        time.sleep(3.5)
        assert left(database, read[0], Image) is None
        assert (left(database, read[1], Image) or 0) < 0, "its new holder does not keep it"
        assert (left(database, read[2], Image) or 0) > 0
        assert (left(database, parent_id, Study) or 0) > 0
        assert (left(database, place_id, DestinationState) or 0) > 0


@pytest.mark.usefixtures("_short_leases")
def test_a_heart_that_cannot_reach_the_database_beats_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.write() as session:
        image(session, study(session), "1.1")
    held = taken(database, Work.ANALYSE)
    write, failed = database.write, []

    def fails_twice() -> Any:
        if len(failed) < 2:
            failed.append(1)
            raise OperationalError("UPDATE", None, Exception("away"))
        return write()

    monkeypatch.setattr(database, "write", fails_twice)
    with kept_alive(database, held.lease):
        time.sleep(3.5)
        assert (left(database, held.row_id) or 0) > 0
    assert len(failed) == 2


# --- many rows ----------------------------------------------------------------------------------------------------


MANY = 10_000


def test_with_ten_thousand_images_waiting_claims_stay_quick_and_memory_flat(database: Database) -> None:
    with database.write() as session:
        parent = study(session)
        first = image(session, parent, "1.0")
        columns = {column.key: getattr(first, column.key) for column in inspect(Image).columns if column.key != "id"}
        rows = [
            {**columns, "sop_instance_uid": f"1.{n}", "rank_at": NOON + timedelta(seconds=n % 977)}
            for n in range(1, MANY)
        ]
        session.execute(insert(Image), rows)
        # As many are done already, and some are held.
        done = {"state": ImageState.ANALYSED}
        session.execute(insert(Image), [{**row, **done, "sop_instance_uid": f"2.{n}"} for n, row in enumerate(rows)])
        del rows
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE images")
    assert "images_state_rank_at_id" in claim_plan(database)

    def drain(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            held = taken(database, Work.ANALYSE)
            with database.write() as session:
                row = still_held(session, held, Image)
                row.state = ImageState.ANALYSED
                release(row)
        return (time.perf_counter() - began) / count

    drain(20)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    took = drain(200)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    with database.read() as session:
        assert count_claimable(session, Work.ANALYSE, at_most=50) == 50
    assert grown < 200_000, f"{grown} bytes more after 200 images"
    assert took < 0.5, f"{took * 1000:.1f} ms for a claim and its end"


def claim_plan(database: Database) -> str:
    """How the database looks for the row that `claim` takes."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE images"):
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        taken(database, Work.ANALYSE)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    ((statement, parameters),) = statements
    explain = "EXPLAIN QUERY PLAN " if database.engine.dialect.name == "sqlite" else "EXPLAIN "
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(explain + statement, parameters).all()
    return "\n".join(str(row) for row in plan)


# --- reports wait for their images, deliveries for their predecessors -----------------------------------------------


def test_a_study_is_not_reported_while_one_of_its_images_waits(database: Database) -> None:
    with database.write() as session:
        waiting = study(session, "1.1", state=StudyState.COMPLETE)
        image(session, waiting, "1.1.1", state=ImageState.ANALYSED)
        last = image(session, waiting, "1.1.2").id
        # Another study's image does not hold it up.
        image(session, study(session, "1.2"), "1.2.1")
        waiting_id = waiting.id
    assert claim(database, Work.REPORT, limit=LIMIT) is None
    with database.write() as session:
        session.get_one(Image, last).state = ImageState.FAILED
    assert taken(database, Work.REPORT).row_id == waiting_id


def test_a_study_that_becomes_urgent_with_a_later_image_is_reported_before_one_that_came_earlier(
    database: Database,
) -> None:
    peers = [
        Peer(name="ward", ae_title="WARD", role="source"),
        Peer(name="er", ae_title="ER", role="source", priority="urgent"),
    ]
    intake = Intake(database, GivenSettings(peers=peers))
    for at, (title, study_uid) in enumerate((("WARD", "1.1"), ("WARD", "1.2"), ("ER", "1.2"))):
        source = header(1, study_instance_uid=study_uid, sop_instance_uid=f"{study_uid}.{at}")
        with clock.frozen(NOON + timedelta(seconds=at)):
            intake.record(Sender(title, title, "OSTEON", "::1"), source, StoredFile(f"{at:032}", 1, str(at), 0, "1.2"))
    with database.write() as session:
        session.execute(update(Image).values(state=ImageState.ANALYSED))
        session.execute(update(Study).values(state=StudyState.COMPLETE))
    claimed = [taken(database, Work.REPORT).row_id for _ in range(2)]
    with database.read() as session:
        assert [session.get_one(Study, row).study_instance_uid for row in claimed] == ["1.2", "1.1"]


@pytest.mark.parametrize("state", [StudyState.RECEIVING, StudyState.REPORTED, StudyState.NEEDS_ATTENTION])
def test_only_a_complete_study_is_reported(database: Database, state: StudyState) -> None:
    with database.write() as session:
        study(session, state=state)
    assert claim(database, Work.REPORT, limit=LIMIT) is None


@pytest.mark.parametrize(
    "end", [DeliveryState.DELIVERED, DeliveryState.CANCELLED, DeliveryState.NEEDS_ATTENTION, DeliveryState.COMMITTED]
)
def test_at_one_destination_a_report_waits_for_its_predecessor(database: Database, end: DeliveryState) -> None:
    with clock.frozen(NOON):
        with database.write() as session:
            parent = study(session, "1.1")
            # The predecessor has failed once, and is due later.
            first = delivery(session, parent, "pacs", 1, due_at=NOON + timedelta(seconds=60)).id
            second = delivery(session, parent, "pacs", 2).id
            elsewhere = delivery(session, parent, "archive", 2).id
            other = delivery(session, study(session, "1.2"), "pacs", 1).id
        assert to_deliver(database) == {elsewhere, other}
        clock.advance(timedelta(seconds=60))
        assert to_deliver(database) == {elsewhere, other, first}
        with database.write() as session:
            session.get_one(Delivery, first).lease_until = database_now(session) + LIMIT
        assert to_deliver(database) == {elsewhere, other}, "it is being sent now: its successor still waits"
        with database.write() as session:
            session.get_one(Delivery, first).state = end
        assert to_deliver(database) == {elsewhere, other, second}


def to_deliver(database: Database) -> set[int]:
    """What a lane could take now (worker.lanes)."""
    with database.read() as session:
        return set(session.scalars(claimable(Work.DELIVER, database_now(session))))


def test_what_is_to_be_delivered_is_claimed_by_lanes_alone(database: Database) -> None:
    with pytest.raises(ValueError, match="one at a time"):
        claim(database, Work.DELIVER, limit=LIMIT)


def test_counting_what_can_be_claimed_stops_at_the_limit_and_leaves_out_what_is_held_or_not_due(
    database: Database,
) -> None:
    with clock.frozen(NOON):
        with database.write() as session:
            parent = study(session)
            for number in range(5):
                image(session, parent, f"1.{number}")
            image(session, parent, "1.9", due_at=NOON + timedelta(seconds=1))
        taken(database, Work.ANALYSE)
        with database.read() as session:
            assert count_claimable(session, Work.ANALYSE, at_most=50) == 4
            assert count_claimable(session, Work.ANALYSE, at_most=3) == 3
            assert count_claimable(session, Work.REPORT, at_most=50) == 0
