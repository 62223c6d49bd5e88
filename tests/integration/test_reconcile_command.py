"""`osteon reconcile` on both databases: what it counts, what it calls missing, and when that is overdue."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from console.reconcile import AT_A_TIME, Standing, standings
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import Settings
from models.tables import (
    Association,
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    ImageState,
    Report,
    ReportInput,
    Study,
    StudyState,
)
from models.upgrade import upgrade
from tests.rows import supersede
from tests.servers import Node

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PLANTED = "PLANTED^NAME"
ANALYSED, NOT_ANALYSED, FAILED = ImageState.ANALYSED, ImageState.NOT_ANALYSED, ImageState.FAILED


def study(session: Session, *states: ImageState, uid: str = "1.2.3", **changes: Any) -> Study:
    """A study that had to be complete at noon, and its images."""
    if session.scalars(select(Association)).first() is None:
        session.add(
            Association(uid="a", calling_ae_title="A", called_ae_title="B", address="::1", opened_at=NOON, seen_at=NOON)
        )
    words = ("issuer_of_patient_id", "patient_birth_date", "patient_sex", "study_date", "study_description")
    moments = ("first_image_at", "last_image_at", "quiet_until", "complete_by", "rank_at", "due_at")
    values: dict[str, Any] = {**dict.fromkeys(words, ""), **dict.fromkeys(moments, NOON), "generation": len(states)}
    values |= {"patient_name": PLANTED, "patient_id": PLANTED, "accession_number": PLANTED, "calling_ae_title": "A"}
    made = Study(study_instance_uid=uid, **(values | {"state": StudyState.REPORTED} | changes))
    session.add(made)
    session.flush()
    for state in states:
        image(session, made, state)
    return made


def image(session: Session, of: Study, state: ImageState, **changes: Any) -> Image:
    words = ("transfer_syntax_uid", "modality", "body_part", "view", "laterality", "header", "dataset_sha256")
    values = {**dict.fromkeys(words, ""), "rank_at": NOON, "due_at": NOON, "received_at": NOON, "is_image": True}
    uid = f"{of.study_instance_uid}.{len(session.scalars(select(Image.id)).all())}"
    made = Image(
        study_id=of.id,
        association_id=session.scalars(select(Association.id)).one(),
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
        series_instance_uid="1.2.3.3",
        state=state,
        **(values | changes),
    )
    session.add(made)
    session.flush()
    return made


def report(session: Session, of: Study, revision: int = 1, *, images: int | None = None) -> Report:
    """A report about the study's first images, by default all of them."""
    about = session.scalars(
        select(Image.id).where(Image.study_id == of.id, Image.is_image).order_by(Image.id).limit(images)
    ).all()
    made = Report(
        study_id=of.id,
        kind="comprehensive_3d",
        revision=revision,
        generation=len(about),
        sop_class_uid="1.2",
        sop_instance_uid=f"2.25.{of.id}.{revision}",
        series_instance_uid="2.25.9",
        impression="no_fracture",
        content=b"",
        sha256="",
        created_at=NOON,
        inputs=[ReportInput(image_id=number) for number in about],
    )
    session.add(made)
    session.flush()
    earlier = select(Report.id).where(Report.study_id == of.id, Report.revision == revision - 1)
    for report_id in session.scalars(earlier):
        supersede(session, report_id)
    return made


def deliver(session: Session, made: Report, destination: str, state: DeliveryState, **changes: Any) -> None:
    session.add(
        Delivery(
            report_id=made.id,
            study_id=made.study_id,
            destination=destination,
            state=state,
            **({"created_at": NOON, "due_at": NOON, "rank_at": NOON} | changes),
        )
    )


def only(database: Database, *, after: timedelta = timedelta(minutes=5)) -> Standing:
    """The one study as it stands some time after noon, where an hour is allowed."""
    with clock.frozen(NOON + after):
        (standing,) = standings(database, patience=timedelta(hours=1))
    return standing


def said(standing: Standing) -> list[tuple[str, bool]]:
    return [(item.what, item.overdue) for item in standing.missing]


def test_a_study_that_was_read_reported_and_delivered_misses_nothing(database: Database) -> None:
    with database.write() as session:
        made = study(session, ANALYSED, ANALYSED, NOT_ANALYSED, FAILED)
        about = report(session, made)
        deliver(session, about, "pacs", DeliveryState.DELIVERED)
        deliver(session, about, "archive", DeliveryState.COMMITTED)
    standing = only(database)
    assert (standing.received, standing.read, standing.reported) == (4, 4, 4)
    assert standing.delivered() == {"pacs": 4, "archive": 4}
    assert standing.committed() == {"archive": True}
    assert said(standing) == []


def test_what_is_on_its_way_is_missing_and_overdue_only_once_its_time_is_over(database: Database) -> None:
    with database.write() as session:
        made = study(session, ANALYSED, ImageState.RECEIVED, state=StudyState.COMPLETE)
        deliver(session, report(session, made, images=1), "pacs", DeliveryState.DUE)
    what = ["1 not read yet", "report: study is complete", "pacs: due"]
    standing = only(database, after=timedelta(minutes=59))
    assert (standing.received, standing.read, standing.reported, standing.delivered()) == (2, 1, 1, {"pacs": 0})
    assert said(standing) == [(item, False) for item in what]
    assert said(only(database, after=timedelta(minutes=61))) == [(item, True) for item in what]


@pytest.mark.parametrize("state", [DeliveryState.NEEDS_ATTENTION, DeliveryState.CANCELLED])
def test_a_report_that_will_not_arrive_by_itself_is_overdue_at_once(database: Database, state: DeliveryState) -> None:
    with database.write() as session:
        about = report(session, study(session, ANALYSED))
        deliver(session, about, "pacs", DeliveryState.DELIVERED)
        deliver(session, about, "archive", state, reason="refused")
    standing = only(database)
    assert standing.delivered() == {"pacs": 1, "archive": 0}
    assert said(standing) == [(f"archive: {state.value} (refused)", True)]


def test_a_study_that_needs_attention_is_overdue_with_its_reason(database: Database) -> None:
    with database.write() as session:
        study(session, ANALYSED, state=StudyState.NEEDS_ATTENTION, reason="contradicting_patient")
    assert said(only(database)) == [("report: needs attention (contradicting_patient)", True)]


def test_only_the_newest_report_counts_and_it_has_to_speak_of_every_image(database: Database) -> None:
    with database.write() as session:
        made = study(session, ANALYSED, ANALYSED, ANALYSED)
        deliver(session, report(session, made, 1, images=1), "pacs", DeliveryState.CANCELLED)
        deliver(session, report(session, made, 2, images=2), "pacs", DeliveryState.DELIVERED)
    standing = only(database)
    assert (standing.reported, standing.delivered()) == (2, {"pacs": 2})
    assert said(standing) == [("1 not in the report", True)]
    with database.write() as session:
        deliver(session, report(session, session.scalars(select(Study)).one(), 3), "pacs", DeliveryState.DELIVERED)
    assert said(only(database)) == []


def test_a_study_without_any_report_that_is_said_to_be_reported_is_overdue(database: Database) -> None:
    with database.write() as session:
        study(session, ANALYSED)
    assert said(only(database)) == [("1 not in the report", True)]


def test_what_is_no_image_is_counted_apart_and_needs_no_report(database: Database) -> None:
    with database.write() as session:
        image(session, study(session), NOT_ANALYSED, is_image=False)
    standing = only(database)
    assert (standing.received, standing.objects) == (0, 1)
    assert said(standing) == []


def test_an_image_that_a_person_replaced_counts_no_more(database: Database) -> None:
    with database.write() as session:
        made = study(session, ANALYSED)
        image(session, made, ImageState.RECEIVED, replaced_at=NOON)
        deliver(session, report(session, made), "pacs", DeliveryState.DELIVERED)
    standing = only(database)
    assert (standing.received, standing.read, standing.reported, standing.delivered()) == (1, 1, 1, {"pacs": 1})
    assert said(standing) == []


def test_a_report_that_the_destination_is_asked_to_commit_is_missing_until_it_does_and_never_overdue(
    database: Database,
) -> None:
    with database.write() as session:
        about = report(session, study(session, ANALYSED))
        deliver(session, about, "pacs", DeliveryState.DELIVERED, commit_due_at=NOON)
    standing = only(database, after=timedelta(days=1))
    assert standing.committed() == {"pacs": False}
    assert said(standing) == [("pacs: not committed yet", False)]


def test_an_instance_whose_file_is_gone_is_missing_unless_retention_removed_it(database: Database) -> None:
    with database.write() as session:
        made = study(session, ANALYSED, ANALYSED)
        report(session, made)
        one, other = session.scalars(select(Image).order_by(Image.id)).all()
        for number, (owner, removed) in enumerate([(one, None), (other, NOON)]):
            session.add(
                File(
                    image_id=owner.id,
                    kind=FileKind.INSTANCE,
                    key=f"key-{number}",
                    size=1,
                    sha256="",
                    stored_at=NOON,
                    missing_at=NOON,
                    removed_at=removed,
                )
            )
    assert said(only(database)) == [("1 files", True)]


def test_every_study_is_looked_at_however_many_there_are(database: Database) -> None:
    with database.write() as session:
        study(session, uid="0")
        row = {column.name: getattr(session.scalars(select(Study)).one(), column.name) for column in Study.__table__.c}
        rows = [row | {"id": 2 * number, "study_instance_uid": str(number)} for number in range(1, 2 * AT_A_TIME + 5)]
        session.execute(insert(Study), rows)
    found = [standing.study for standing in standings(database, patience=timedelta(0))]
    assert found == [1, *(row["id"] for row in rows)]


def test_asked_for_files_it_names_rows_without_a_file_and_files_without_a_row(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings()
    upgrade(settings)
    node = Node(settings, tmp_path / "log")
    spool = Spool(settings.data_dir / "spool")
    kept, unknown = (spool.put_bytes(content)[0] for content in (b"kept", b"unknown"))
    with node.database.write() as session:
        owner = image(session, study(session), ANALYSED)
        report(session, session.scalars(select(Study)).one())
        for key in (kept, "0" * 32):
            session.add(File(image_id=owner.id, kind=FileKind.MODEL_INPUT, key=key, size=1, sha256="", stored_at=NOON))
    assert node.run("reconcile").returncode == 0
    answer = node.run("reconcile", "--files")
    assert answer.stdout.splitlines()[-2:] == [
        "file 2 (model_input) of image 1 is gone",
        f"file {unknown} has no row",
    ]
    assert answer.returncode == 1
    node.database.close()


def test_the_command_prints_all_studies_or_only_those_with_something_missing_and_no_patient(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings()
    upgrade(settings)
    node = Node(settings, tmp_path / "log")
    with node.database.write() as session:
        deliver(session, report(session, study(session, ANALYSED, uid="1.2.1")), "pacs", DeliveryState.DELIVERED)
    whole = node.run("reconcile")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.splitlines() == [
        "study 1; received 1; read 1 (1 analysed); reported 1; delivered pacs 1",
        "1 studies; received 1; read 1 (1 analysed, 0 not analysed, 0 failed); reported 1; delivered pacs 1",
        "0 studies with something missing, 0 of them overdue",
    ]
    with node.database.write() as session:
        study(session, ImageState.RECEIVED, uid="1.2.2", state=StudyState.RECEIVING)
    missing = node.run("reconcile", "--missing", "--json", "--uids")
    assert missing.returncode == 1
    lines = [json.loads(line) for line in missing.stdout.splitlines()]
    assert [line.get("study_instance_uid") for line in lines] == ["1.2.2", None]
    assert lines[0]["missing"] == [
        {"what": "1 not read yet", "overdue": True},
        {"what": "report: study is receiving", "overdue": True},
    ]
    assert lines[1]["totals"] == {
        "studies": 2,
        "received": 2,
        "other_objects": 0,
        "read": 1,
        "analysed": 1,
        "not_analysed": 0,
        "failed": 0,
        "reported": 1,
        "delivered": {"pacs": 1},
        "incomplete": 1,
        "overdue": 1,
    }
    patient = node.run("reconcile", "--patience", str(60 * 24 * 36500))
    assert patient.returncode == 0
    assert PLANTED not in whole.stdout + missing.stdout + patient.stdout
    assert "1.2.1" not in whole.stdout + patient.stdout
    node.database.close()
