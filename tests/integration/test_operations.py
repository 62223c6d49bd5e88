"""How the node stands, on both databases: what waits, what was done, what failed, who was heard of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from console.operations import standing
from dicom_node.network.mllp import ACKNOWLEDGED
from dicom_node.outcome import Result, judged
from models import audit, clock, operations
from models.database import Database, database_now
from models.operations import ARRIVED, Failures, Stage
from models.settings import Peer, Settings
from models.tables import (
    CommitmentRequest,
    CommitmentRequestState,
    DeliveryAttempt,
    DeliveryState,
    DestinationState,
    File,
    FileKind,
    Image,
    ImageState,
    Quarantine,
    Resend,
    Study,
    StudyState,
)
from tests.integration.test_claims import delivery, image, study

NOON = datetime(2026, 1, 1, 12, 20, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


def request(session: Session, **changes: Any) -> CommitmentRequest:
    values = {"peer": "room", "transaction_uid": "2.25.1", "instances": [], "received_at": NOON}
    made = CommitmentRequest(**{**values, "rank_at": NOON, "due_at": NOON, **changes})
    session.add(made)
    return made


def resend(session: Session, of: Image, **changes: Any) -> None:
    file = File(image_id=of.id, kind=FileKind.RESEND, key="k", size=1, sha256="", stored_at=NOON)
    session.add(file)
    session.flush()
    values: dict[str, Any] = {"dataset_sha256": "", "transfer_syntax_uid": "", "header": "", "calling_ae_title": "ROOM"}
    values |= {"received_at": NOON, "rank_at": NOON, "due_at": NOON, "association_id": of.association_id}
    session.add(Resend(study_id=of.study_id, image_id=of.id, file_id=file.id, **(values | changes)))


def queue(database: Database) -> dict[str, Stage]:
    with database.read() as session:
        return {stage.name: stage for stage in operations.queue(session)}


# --- what waits -------------------------------------------------------------------------------------------------------


def test_an_empty_node_waits_for_nothing(database: Database) -> None:
    with database.read() as session:
        stages = operations.queue(session)
        assert operations.holders(session) == []
    assert [(stage.waiting, stage.oldest_at, stage.in_hand) for stage in stages] == [(0, None, 0)] * 7
    assert [stage.name for stage in stages] == [
        "receive",
        "analyse",
        "examine",
        "report",
        "deliver",
        "committed",
        "commit",
    ]


def test_each_stage_has_its_depth_and_the_age_of_its_oldest_work(database: Database) -> None:
    with database.write() as session:
        study(session, "1.1", first_image_at=NOON - 3 * MINUTE)
        study(session, "1.2", first_image_at=NOON - 5 * MINUTE)
        of = study(session, "1.3", state=StudyState.COMPLETE, completed_at=NOON - HOUR, held_up=True)
        study(session, "1.4", state=StudyState.COMPLETE, completed_at=NOON - 2 * HOUR)
        reported = study(session, "1.5", state=StudyState.REPORTED)
        # An urgent image goes first; the oldest is another.
        image(session, of, "1", received_at=NOON - MINUTE, rank_at=NOON - 11 * MINUTE)
        image(session, of, "2", received_at=NOON - 4 * MINUTE, rank_at=NOON - 4 * MINUTE)
        read = image(session, of, "3", state=ImageState.ANALYSED, received_at=NOON - 9 * HOUR)
        resend(session, read, received_at=NOON - 6 * HOUR)
        delivery(session, reported, "pacs", 1, created_at=NOON - 7 * HOUR)
        delivery(session, reported, "other", 1, state=DeliveryState.CANCELLED, created_at=NOON - 50 * HOUR)
        asked = {"state": DeliveryState.DELIVERED, "commit_due_at": NOON}
        delivery(session, reported, "archive", 1, delivered_at=NOON - 8 * HOUR, **asked)
        request(session, received_at=NOON - 9 * HOUR)
    found = queue(database)
    assert {name: (stage.waiting, stage.oldest_at) for name, stage in found.items()} == {
        "receive": (2, NOON - 5 * MINUTE),
        "analyse": (2, NOON - 4 * MINUTE),
        "examine": (1, NOON - 6 * HOUR),
        "report": (2, NOON - 2 * HOUR),
        "deliver": (1, NOON - 7 * HOUR),
        "committed": (1, NOON - 8 * HOUR),
        "commit": (1, NOON - 9 * HOUR),
    }


def test_who_holds_work_is_told_as_long_as_the_lease_lasts(database: Database) -> None:
    with database.write() as session:
        of = study(session)
        now = database_now(session)
        for number, (holder, left) in enumerate((("a:1", 9), ("a:1", 9), ("b:2", 9), ("dead:3", -1))):
            image(session, of, str(number), lease_holder=holder, lease_until=now + timedelta(seconds=left))
        image(session, of, "9")
        session.add(
            DestinationState(name="pacs", due_at=NOON, lease_holder="b:2", lease_until=now + timedelta(seconds=9))
        )
    assert (queue(database)["analyse"].waiting, queue(database)["analyse"].in_hand) == (5, 3)
    with database.read() as session:
        assert [(holder.name, holder.rows) for holder in operations.holders(session)] == [("a:1", 2), ("b:2", 2)]


def test_of_very_many_it_is_said_that_there_are_so_many_or_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOST_COUNTED", 3)
    with database.write() as session:
        of = study(session, state=StudyState.COMPLETE)
        study(session, "2", state=StudyState.COMPLETE, held_up=True)
        for number in range(5):
            image(session, of, str(number))
    assert queue(database)["analyse"].waiting == 3


# --- what was done ----------------------------------------------------------------------------------------------------


def record(database: Database, at: datetime, action: str, **details: Any) -> None:
    with clock.frozen(at), database.write() as session:
        audit.record(session, actor="test", action=action, subject="test", subject_id=1, **details)


def test_a_day_is_counted_by_its_hours(database: Database) -> None:
    record(database, NOON - 24 * HOUR, "image.analysed")  # 12:20 yesterday, which is more than 24 hours
    for at, action in (
        (NOON - 23 * HOUR, "image.analysed"),
        (NOON - 20 * MINUTE, "image.analysed"),
        (NOON, "image.analysed"),
        (NOON - 21 * MINUTE, "image.received"),
        (NOON - 21 * MINUTE, "image.received"),
        (NOON, "image.shadow_read"),
    ):
        record(database, at, action)
    for outcome in ("stored", "refused", "already_there", "stored_with_remark", "acknowledged", "not_reached"):
        record(database, NOON - HOUR, "report.delivery", outcome=outcome)
    with database.read() as session:
        hours = operations.throughput(session)
    assert len(hours) == 24
    assert [hour.began_at for hour in hours] == [NOON.replace(minute=0) - back * HOUR for back in reversed(range(24))]
    assert {(hour.began_at.hour, hour.received, hour.read, hour.delivered) for hour in hours if hour.read} == {
        (13, 0, 1, 0),
        (12, 0, 2, 0),
    }
    assert (hours[-2].received, hours[-2].delivered) == (2, 4)


def test_what_counts_as_arrived_is_what_the_sender_takes_for_delivered() -> None:
    arrived = {judged(status).reason for status in range(0x10000) if judged(status).result is Result.DELIVERED}
    assert {*arrived, ACKNOWLEDGED} == set(ARRIVED)


# --- what failed ------------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_reason_over_the_time_that_is_asked_for(database: Database) -> None:
    with database.write() as session:
        of = study(session, "1", state=StudyState.REPORTED)
        refused = {"state": ImageState.NOT_ANALYSED, "reason": "blank"}
        image(session, of, "1", **refused, received_at=NOON - HOUR)
        # Urgent: its rank lies before the time that is asked for, and it came after.
        image(session, of, "2", **refused, received_at=NOON - 6 * HOUR, rank_at=NOON - 20 * HOUR)
        image(session, of, "3", **refused, received_at=NOON - 30 * HOUR, rank_at=NOON - 30 * HOUR)
        image(session, of, "4", state=ImageState.FAILED, reason="file_missing", received_at=NOON)
        image(session, of, "5", state=ImageState.ANALYSED, received_at=NOON)
        attention = {"state": StudyState.NEEDS_ATTENTION}
        study(session, "2", **attention, reason="report_failed", first_image_at=NOON - HOUR)
        study(session, "3", **attention, reason="report_failed", first_image_at=NOON - 40 * HOUR)
        needing = {"state": DeliveryState.NEEDS_ATTENTION}
        delivery(session, of, "pacs", 1, **needing, reason="refused", created_at=NOON - HOUR)
        delivery(session, of, "ris", 1, **needing, reason=None, created_at=NOON - HOUR)
        request(session, state=CommitmentRequestState.NEEDS_ATTENTION, reason="not_reached")
        for resolved_at in (None, NOON, NOON):
            session.add(
                Quarantine(
                    study_id=of.id,
                    reason="same_uid_other_pixels",
                    dataset_sha256="",
                    calling_ae_title="ROOM",
                    received_at=NOON - HOUR,
                    resolved_at=resolved_at,
                )
            )
    with database.read() as session:
        found = operations.failures(session, NOON - 12 * HOUR)
        later = operations.failures(session, NOON - 48 * HOUR)
    assert found == [
        Failures("image", "blank", 2, False),
        Failures("image", "file_missing", 1, False),
        Failures("quarantine", "same_uid_other_pixels", 2, False),
        Failures("quarantine", "same_uid_other_pixels", 1, True),
        Failures("study", "report_failed", 1, True),
        Failures("delivery", "refused", 1, True),
        Failures("delivery", "unknown", 1, True),
        Failures("request", "not_reached", 1, True),
    ]
    assert Failures("image", "blank", 3, False) in later
    assert Failures("study", "report_failed", 2, True) in later


# --- who was heard of -------------------------------------------------------------------------------------------------


def test_of_each_destination_it_is_known_when_it_was_reached_tried_and_took_something(database: Database) -> None:
    with database.write() as session:
        of = study(session, "1")
        arrived = delivery(session, of, "pacs", 1, state=DeliveryState.DELIVERED, delivered_at=NOON - 2 * HOUR)
        delivery(session, of, "pacs", 2, state=DeliveryState.COMMITTED, delivered_at=NOON - HOUR, rank_at=NOON - HOUR)
        waiting = delivery(session, of, "ris", 1)
        session.add(DestinationState(name="pacs", due_at=NOON, reached_at=NOON - HOUR))
        session.add(DestinationState(name="ris", due_at=NOON + HOUR, failures=3, reason="not_reached"))
        for row, at in ((arrived, NOON - 2 * HOUR), (waiting, NOON - 3 * MINUTE), (waiting, NOON - 9 * MINUTE)):
            session.add(DeliveryAttempt(delivery_id=row.id, started_at=at, ended_at=at, outcome="stored"))
    with database.read() as session:
        pacs, ris, new = operations.contacts(session, ["pacs", "ris", "new"])
    assert (pacs.reached_at, pacs.delivered_at, pacs.tried_at) == (NOON - HOUR, NOON - HOUR, NOON - 2 * HOUR)
    assert (ris.delivered_at, ris.tried_at, ris.failures, ris.reason) == (None, NOON - 3 * MINUTE, 3, "not_reached")
    assert ris.due_at == NOON + HOUR
    assert (new.reached_at, new.delivered_at, new.tried_at, new.failures) == (None, None, None, 0)


def test_a_study_that_is_reported_waits_nowhere_any_more(database: Database) -> None:
    with database.write() as session:
        study(session, state=StudyState.COMPLETE, completed_at=NOON)
    assert queue(database)["report"].waiting == 1
    with database.write() as session:
        session.execute(update(Study).values(state=StudyState.REPORTED))
    assert queue(database)["report"] == Stage("report", 0, None, 0)


def test_what_is_printed_for_programs_says_it_all_and_names_no_patient(settings: Settings, database: Database) -> None:
    with database.write() as session:
        of = study(session, patient_name="PLANTED^NAME", patient_id="PLANTED", accession_number="PLANTED")
        image(session, of, "1", received_at=NOON - HOUR)
        delivery(session, of, "pacs", 1, state=DeliveryState.NEEDS_ATTENTION, created_at=NOON, reason="refused")
    peers = [
        Peer(name="room", ae_title="ROOM", role="source", silent_after=1),
        Peer(name="pacs", ae_title="PACS", role="destination", host="127.0.0.1", port=1),
    ]
    settings.data_dir.mkdir(exist_ok=True)
    with database.read() as session:
        printed = json.dumps(standing(session, settings.model_copy(update={"peers": peers}), 24 * HOUR))
    assert "PLANTED" not in printed
    found = json.loads(printed)
    assert found["at"] == "2026-01-01T12:20:00+00:00"
    (stage,) = [stage for stage in found["queue"] if stage["name"] == "analyse"]
    assert (stage["waiting"], stage["oldest_seconds"]) == (1, 3600)
    assert found["failures"] == [{"what": "delivery", "reason": "refused", "count": 1, "still_open": True}]
    assert [(source["peer"], source["silent"]) for source in found["sources"]] == [("room", False)]
    assert [destination["destination"] for destination in found["destinations"]] == ["pacs"]
    assert found["spool"]["total_bytes"] > found["spool"]["free_bytes"] > 0
    assert len(found["last_24_hours"]["hours"]) == 24
