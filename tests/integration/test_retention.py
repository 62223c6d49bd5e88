"""Which files retention removes, on both databases, and which stay whatever their age."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.reconcile import missing_files
from dicom_node.spool import FileGone, Spool
from models import clock
from models.database import Database
from models.settings import Settings
from models.tables import (
    AuditEvent,
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    ImageState,
    Quarantine,
    Report,
    Resend,
    Study,
    StudyState,
)
from models.upgrade import upgrade
from tests.reports import header
from tests.rows import supersede
from worker.retention import STUDIES_A_STEP, Retention

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOM = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")
DAYS = 30


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(retention={"days": DAYS})
    upgrade(made)
    return made


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings.data_dir / "spool")


@pytest.fixture
def retention(settings: Settings, database: Database, spool: Spool) -> Retention:
    return Retention(settings, database, spool)


@pytest.fixture(autouse=True)
def at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


@pytest.fixture
def study(database: Database, settings: Settings, spool: Spool) -> Study:
    """A study of one image, read and reported, whose report was delivered to one destination at noon."""
    received(database, settings, spool)
    with database.write() as session:
        image = session.scalars(select(Image)).one()
        image.state = ImageState.ANALYSED
        key, sha256 = spool.put_bytes(b"model input")
        session.add(File(image_id=image.id, kind=FileKind.MODEL_INPUT, key=key, size=11, sha256=sha256, stored_at=NOON))
        study = session.scalars(select(Study)).one()
        study.state = StudyState.REPORTED
        report(session, study, "PACS")
    return study


def received(database: Database, settings: Settings, spool: Spool, content: bytes = b"bytes") -> Receipt:
    key, sha256 = spool.put_bytes(content)
    return Intake(database, settings).record(ROOM, header(), StoredFile(key, len(content), sha256, 0, "1.2"))


def report(
    session: Session, study: Study, *destinations: str, supersedes: int | None = None, kind: str = "sr"
) -> Report:
    made = Report(
        study_id=study.id,
        kind=kind,
        revision=1 if supersedes is None else 2,
        generation=1,
        sop_class_uid="1.2",
        sop_instance_uid=str(uuid.uuid4()),
        series_instance_uid="1.2",
        impression="absent",
        content=b"report",
        sha256="0" * 64,
        supersedes_id=supersedes,
        created_at=clock.now(),
    )
    session.add(made)
    session.flush()
    if supersedes is not None:
        supersede(session, supersedes)
    for name in destinations:
        session.add(
            Delivery(
                report_id=made.id,
                study_id=study.id,
                destination=name,
                state=DeliveryState.DELIVERED,
                created_at=clock.now(),
                delivered_at=clock.now(),
                due_at=clock.now(),
                rank_at=clock.now(),
            )
        )
    return made


def change_delivery(database: Database, **values: Any) -> None:
    with database.write() as session:
        delivery = session.scalars(select(Delivery).order_by(Delivery.id.desc()).limit(1)).one()
        for name, value in values.items():
            setattr(delivery, name, value)


def later(days: float) -> None:
    clock.advance(timedelta(days=days))


def kept(database: Database) -> list[FileKind]:
    with database.read() as session:
        return sorted(session.scalars(select(File.kind).where(File.removed_at.is_(None))))


ALL = [FileKind.INSTANCE, FileKind.MODEL_INPUT]


@pytest.mark.usefixtures("study")
def test_received_files_go_when_the_answer_arrived_long_enough_ago_and_records_and_model_inputs_stay(
    database: Database, settings: Settings, spool: Spool, retention: Retention
) -> None:
    later(DAYS - 1)
    assert retention.step() is False
    assert kept(database) == ALL
    later(2)
    retention.step()
    assert kept(database) == [FileKind.MODEL_INPUT]
    with database.read() as session:
        file = session.scalars(select(File).where(File.kind == FileKind.INSTANCE)).one()
        other = session.scalars(select(File).where(File.kind == FileKind.MODEL_INPUT)).one()
        events = session.scalars(select(AuditEvent).where(AuditEvent.action == "file.removed")).all()
        assert session.scalars(select(Image)).one().state is ImageState.ANALYSED
    assert file.removed_at == clock.now()
    assert [(one.subject_id, one.details["sha256"]) for one in events] == [(file.id, file.sha256)]
    with pytest.raises(FileGone):
        spool.open(file.key)
    with spool.open(other.key) as opened:
        assert opened.read() == b"model input"
    # It is not missing, and the same bytes are no news.
    assert list(missing_files(database, spool)) == []
    assert Intake(database, settings).known("1.2.3.4.1", file.sha256) is Receipt.DUPLICATE
    assert received(database, settings, spool) is Receipt.DUPLICATE


@pytest.mark.usefixtures("study")
def test_without_a_number_of_days_everything_is_kept(
    make_settings: Callable[..., Settings], database: Database, spool: Spool
) -> None:
    later(3650)
    assert Retention(make_settings(), database, spool).step() is False
    assert kept(database) == ALL


def add_quarantine(session: Session, study: Study) -> None:
    session.add(
        Quarantine(
            study_id=study.id, reason="x", dataset_sha256="0" * 64, calling_ae_title="ROOM", received_at=clock.now()
        )
    )


def add_resend(session: Session, study: Study) -> None:
    image, file = session.scalars(select(Image)).one(), session.scalars(select(File).limit(1)).one()
    session.add(
        Resend(
            study_id=study.id,
            image_id=image.id,
            association_id=image.association_id,
            file_id=file.id,
            dataset_sha256="0" * 64,
            transfer_syntax_uid="1.2",
            header="{}",
            calling_ae_title="ROOM",
            received_at=clock.now(),
            due_at=clock.now(),
            rank_at=clock.now(),
        )
    )


def set_attention(session: Session, study: Study) -> None:
    session.get_one(Study, study.id).state = StudyState.NEEDS_ATTENTION


def set_receiving(session: Session, study: Study) -> None:
    session.get_one(Study, study.id).state = StudyState.RECEIVING


def set_image_waiting(session: Session, _study: Study) -> None:
    session.scalars(select(Image)).one().state = ImageState.RECEIVED


def remove_deliveries(session: Session, _study: Study) -> None:
    session.delete(session.scalars(select(Delivery)).one())


def add_report_that_goes_nowhere(session: Session, study: Study) -> None:
    report(session, study, supersedes=session.scalars(select(Report.id)).one())


def add_heatmap_that_one_destination_has_not_got(session: Session, study: Study) -> None:
    report(session, study, "VIEWER", kind="heatmap")
    session.flush()
    session.scalars(
        select(Delivery).where(Delivery.destination == "VIEWER")
    ).one().state = DeliveryState.NEEDS_ATTENTION


def add_report_that_overtook_the_first(session: Session, study: Study) -> None:
    session.scalars(select(Delivery)).one().state = DeliveryState.DUE
    report(session, study, "PACS", supersedes=session.scalars(select(Report.id)).one())


@pytest.mark.parametrize(
    "keep",
    [
        add_quarantine,
        add_resend,
        set_attention,
        set_receiving,
        set_image_waiting,
        remove_deliveries,
        add_report_that_goes_nowhere,
        add_heatmap_that_one_destination_has_not_got,
        add_report_that_overtook_the_first,
    ],
)
def test_files_stay_while_something_waits_for_work_or_a_person_or_the_answer_goes_nowhere(
    database: Database, retention: Retention, study: Study, keep: Callable[[Session, Study], None]
) -> None:
    with database.write() as session:
        keep(session, study)
    later(10 * DAYS)
    retention.step()
    assert kept(database) == ALL


@pytest.mark.parametrize(
    "values",
    [
        {"state": DeliveryState.DUE, "delivered_at": None},
        {"state": DeliveryState.NEEDS_ATTENTION, "delivered_at": None},
        {"state": DeliveryState.CANCELLED, "delivered_at": None},
        {"commit_due_at": NOON},
    ],
)
def test_every_destination_of_the_newest_report_counts_and_commitment_that_is_asked_for_too(
    database: Database, retention: Retention, study: Study, values: dict[str, Any]
) -> None:
    with database.write() as session:
        report(session, study, "PACS", "ARCHIVE", supersedes=session.scalars(select(Report.id)).one())
    change_delivery(database, **values)
    later(DAYS + 1)
    retention.step()
    assert kept(database) == ALL
    change_delivery(database, state=DeliveryState.COMMITTED, delivered_at=NOON, committed_at=clock.now())
    later(DAYS - 1)
    retention.step()
    assert kept(database) == ALL
    later(2)
    retention.step()
    assert kept(database) == [FileKind.MODEL_INPUT]


def test_many_studies_are_looked_at_in_steps_until_all_were(
    database: Database, retention: Retention, study: Study
) -> None:
    with database.write() as session:
        session.execute(
            Study.__table__.insert(),
            [
                {
                    **{column.key: getattr(study, column.key) for column in Study.__table__.columns},
                    "id": study.id + number,
                    "study_instance_uid": f"9.{number}",
                }
                for number in range(1, STUDIES_A_STEP + 1)
            ],
        )
    assert [retention.step() for _ in range(4)] == [True, False, True, False]
