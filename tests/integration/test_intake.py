"""What an instance turns out to be when it is recorded, on both databases."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import func, select

from dicom_node.headers import Sides, SourceHeader
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.quarantine import OTHER_PATIENT, OTHER_PIXELS, OTHER_UIDS
from dicom_node.resends import Compared
from models import clock
from models.database import Database
from models.settings import GivenSettings, Peer
from models.tables import (
    Association,
    AuditEvent,
    File,
    FileKind,
    HeaderRevision,
    Image,
    ImageState,
    Quarantine,
    Study,
    StudyState,
)
from tests.reports import GSPS, PATIENT, header

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOM = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")
SETTINGS = GivenSettings(
    peers=[
        Peer(name="room", ae_title="ROOM", role="source"),
        Peer(name="fast", ae_title="FAST", role="source", quiet_time=5, priority="urgent"),
    ]
)
Receive = Callable[..., Receipt]


def stored(content: str = "") -> StoredFile:
    return StoredFile(uuid.uuid4().hex, 1000, hashlib.sha256(content.encode()).hexdigest(), 300, "1.2.840.10008.1.2.1")


@pytest.fixture
def intake(database: Database) -> Intake:
    return Intake(database, SETTINGS)


@pytest.fixture
def receive(database: Database, intake: Intake) -> Receive:
    """Record an instance; its bytes are told apart by `content`, by default those of its UID.

    `same` is what a comparison with the image on record said of its pixels.
    """

    def receive(
        source: SourceHeader, content: str | None = None, sender: Sender = ROOM, same: bool | None = None
    ) -> Receipt:
        file = stored(source.sop_instance_uid if content is None else content)
        if same is not None:
            with database.read() as session:
                uid = source.sop_instance_uid
                first = session.scalars(select(Image.id).where(Image.sop_instance_uid == uid)).one()
            file = replace(file, compared=Compared(first, same))
        return intake.record(sender, source, file)

    return receive


def only_study(database: Database) -> Study:
    with database.read() as session:
        return session.scalars(select(Study)).one()


def count(database: Database, table: type[Image] | type[File] | type[Quarantine] | type[Association]) -> int:
    with database.read() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def set_state(database: Database, state: StudyState) -> None:
    with database.write() as session:
        session.scalars(select(Study)).one().state = state


def test_a_new_instance_becomes_an_image_with_its_file_study_association_and_audit_event(
    database: Database, intake: Intake
) -> None:
    file = stored("bytes")
    with clock.frozen(NOON):
        assert intake.record(ROOM, header(), file) is Receipt.NEW
    with database.read() as session:
        image = session.scalars(select(Image)).one()
        study = session.scalars(select(Study)).one()
        kept = session.scalars(select(File)).one()
        association = session.scalars(select(Association)).one()
        event = session.scalars(select(AuditEvent)).one()
    assert (image.state, image.reason, image.dataset_sha256) == (ImageState.RECEIVED, None, file.sha256)
    assert SourceHeader.from_json(image.header) == header()
    assert image.scanner == "X1"
    assert (kept.key, kept.kind, kept.digest_offset, kept.image_id) == (file.key, FileKind.INSTANCE, 300, image.id)
    assert (study.state, study.generation, study.patient_id) == (StudyState.RECEIVING, 1, PATIENT.id)
    assert (study.quiet_until, study.complete_by) == (NOON + timedelta(seconds=60), NOON + timedelta(seconds=900))
    assert (association.uid, association.closed_at) == (ROOM.uid, None)
    assert (event.action, event.subject_id, event.details["sha256"]) == ("image.received", image.id, file.sha256)
    assert PATIENT.name not in str(event.details)
    assert PATIENT.id not in str(event.details)


def test_quiet_time_and_rank_are_those_of_the_source_that_sent_the_image(database: Database, receive: Receive) -> None:
    with clock.frozen(NOON):
        receive(header(), sender=replace(ROOM, calling_ae_title="FAST"))
    study = only_study(database)
    assert study.quiet_until == NOON + timedelta(seconds=5)
    assert study.urgent
    assert study.rank_at == NOON - timedelta(seconds=600)


def test_a_study_becomes_urgent_once_with_its_first_urgent_image(database: Database, receive: Receive) -> None:
    with clock.frozen(NOON):
        receive(header(1))
        assert (only_study(database).urgent, only_study(database).rank_at) == (False, NOON)
        for number in (2, 3):
            clock.advance(timedelta(seconds=10))
            receive(header(number), sender=replace(ROOM, calling_ae_title="FAST"))
            assert (only_study(database).urgent, only_study(database).rank_at) == (True, NOON - timedelta(seconds=600))
        receive(header(4))
    assert only_study(database).urgent


def test_no_quiet_time_outlasts_the_longest_wait(database: Database) -> None:
    slow = Peer(name="slow", ae_title="SLOW", role="source", quiet_time=3600)
    intake = Intake(database, GivenSettings(peers=[slow], study={"max_wait": 30, "quiet_time": 20}))
    with clock.frozen(NOON):
        intake.record(replace(ROOM, calling_ae_title="SLOW"), header(), stored())
    study = only_study(database)
    assert study.quiet_until == study.complete_by == NOON + timedelta(seconds=30)


def test_an_object_that_is_no_image_is_kept_and_not_analysed(database: Database, receive: Receive) -> None:
    assert receive(header(sop_class_uid=GSPS)) is Receipt.NEW
    with database.read() as session:
        image = session.scalars(select(Image)).one()
    assert (image.state, image.reason, image.is_image) == (ImageState.NOT_ANALYSED, "not_an_image", False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"animal": True}, "veterinary"),
        ({"presentation_intent": "FOR PROCESSING"}, "for_processing"),
        ({"sides": Sides(image="L", study_text="R")}, "laterality_conflict"),
    ],
)
def test_what_the_header_alone_tells_is_decided_when_the_instance_is_recorded(
    database: Database, receive: Receive, changes: dict[str, object], reason: str
) -> None:
    assert receive(header(**changes)) is Receipt.NEW
    with database.read() as session:
        image = session.scalars(select(Image)).one()
    assert (image.state, image.reason, image.is_image) == (ImageState.NOT_ANALYSED, reason, True)
    assert SourceHeader.from_json(image.header) == header(**changes)


# --- again --------------------------------------------------------------------------------------------------------


def test_the_same_bytes_again_are_a_duplicate_and_make_no_new_work(database: Database, receive: Receive) -> None:
    receive(header())
    set_state(database, StudyState.REPORTED)
    assert receive(header()) is Receipt.DUPLICATE
    study = only_study(database)
    assert (study.state, study.generation) == (StudyState.REPORTED, 1)
    assert (count(database, Image), count(database, File)) == (1, 1)


def test_a_duplicate_does_not_restart_the_quiet_time(database: Database, receive: Receive) -> None:
    with clock.frozen(NOON):
        receive(header())
        clock.advance(timedelta(seconds=30))
        receive(header())
    study = only_study(database)
    assert study.quiet_until == NOON + timedelta(seconds=60)
    assert (study.last_image_at, study.complete_by) == (NOON, NOON + timedelta(seconds=900))


def test_a_new_image_restarts_the_quiet_time(database: Database, receive: Receive) -> None:
    with clock.frozen(NOON):
        receive(header(1))
        clock.advance(timedelta(seconds=30))
        receive(header(2))
    study = only_study(database)
    assert study.quiet_until == NOON + timedelta(seconds=90)
    assert (study.first_image_at, study.last_image_at) == (NOON, NOON + timedelta(seconds=30))


def test_a_duplicate_is_known_before_a_file_is_written_for_it(intake: Intake, receive: Receive) -> None:
    receive(header())
    assert intake.known("1.2.3.4.1", stored("1.2.3.4.1").sha256) is Receipt.DUPLICATE
    assert intake.known("1.2.3.4.1", stored("other bytes").sha256) is Receipt.AGAIN
    assert intake.known("1.2.3.4.2", stored("1.2.3.4.1").sha256) is None


# --- contradictions -----------------------------------------------------------------------------------------------


def test_other_pixels_under_a_known_uid_are_quarantined_and_the_study_needs_attention(
    database: Database, receive: Receive
) -> None:
    receive(header())
    assert receive(header(), "other bytes", same=False) is Receipt.QUARANTINED
    study = only_study(database)
    assert (study.state, study.reason, study.generation) == (StudyState.NEEDS_ATTENTION, OTHER_PIXELS, 1)
    with database.read() as session:
        quarantine = session.scalars(select(Quarantine)).one()
        image = session.scalars(select(Image)).one()
        kept = session.get_one(File, quarantine.file_id)
        actions = session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert (quarantine.image_id, quarantine.reason) == (image.id, OTHER_PIXELS)
    assert kept.kind is FileKind.QUARANTINED
    assert kept.sha256 == quarantine.dataset_sha256 == stored("other bytes").sha256
    assert image.dataset_sha256 == stored("1.2.3.4.1").sha256, "what was received first stays"
    assert actions == ["image.received", "image.received_again", "image.quarantined"]


def test_other_bytes_under_a_known_uid_that_name_another_study_flag_the_study_that_holds_the_image(
    database: Database, receive: Receive
) -> None:
    receive(header())
    # Whatever its pixels are: an image belongs to one study.
    assert receive(header(study_instance_uid="9.9"), "other bytes", same=True) is Receipt.QUARANTINED
    study = only_study(database)
    assert (study.study_instance_uid, study.state, study.reason) == ("1.2.3", StudyState.NEEDS_ATTENTION, OTHER_UIDS)
    with database.read() as session:
        assert session.scalars(select(Quarantine.study_id)).one() == study.id
    assert receive(header(study_instance_uid="9.9")) is Receipt.DUPLICATE, "the same bytes, whatever they are read as"
    assert (count(database, Image), count(database, File)) == (1, 2)


def test_what_is_in_quarantine_already_makes_nothing_new_however_often_it_comes(
    database: Database, intake: Intake, receive: Receive
) -> None:
    receive(header())
    answers = [receive(header(), "other bytes", same=False) for _ in range(3)]
    assert answers == [Receipt.QUARANTINED, Receipt.QUARANTINED_BEFORE, Receipt.QUARANTINED_BEFORE]
    assert intake.known("1.2.3.4.1", stored("other bytes").sha256) is Receipt.QUARANTINED_BEFORE
    assert receive(header(), "and yet others", same=False) is Receipt.QUARANTINED
    assert (count(database, Quarantine), count(database, File)) == (2, 3)


def test_a_patient_who_contradicts_the_study_is_stored_and_stops_it_until_a_person_looks(
    database: Database, receive: Receive
) -> None:
    receive(header(1))
    other = replace(PATIENT, id="PID-2")
    assert receive(header(2, patient=other)) is Receipt.NEW
    study = only_study(database)
    assert (study.state, study.reason) == (StudyState.NEEDS_ATTENTION, OTHER_PATIENT)
    assert study.patient_id == PATIENT.id
    assert (count(database, Image), count(database, Quarantine)) == (2, 1)
    # A further image, even of the right patient, does not put it back to work.
    receive(header(3))
    assert only_study(database).state is StudyState.NEEDS_ATTENTION


def test_an_image_without_a_patient_id_contradicts_nobody(database: Database, receive: Receive) -> None:
    receive(header(1))
    receive(header(2, patient=replace(PATIENT, id="", issuer="")))
    study = only_study(database)
    assert (study.state, study.patient_id, study.generation) == (StudyState.RECEIVING, PATIENT.id, 2)


@pytest.mark.parametrize(
    ("issuers", "state"),
    [
        (("HOSPITAL", ""), StudyState.RECEIVING),
        (("", "HOSPITAL"), StudyState.RECEIVING),
        (("HOSPITAL", "", "HOSPITAL"), StudyState.RECEIVING),
        (("HOSPITAL", "CLINIC"), StudyState.NEEDS_ATTENTION),
        (("HOSPITAL", "", "CLINIC"), StudyState.NEEDS_ATTENTION),
        (("", "HOSPITAL", "CLINIC"), StudyState.NEEDS_ATTENTION),
    ],
)
def test_one_patient_id_of_two_issuers_is_a_contradiction_and_a_missing_issuer_is_none(
    database: Database, receive: Receive, issuers: tuple[str, ...], state: StudyState
) -> None:
    for number, issuer in enumerate(issuers):
        assert receive(header(number, patient=replace(PATIENT, issuer=issuer))) is Receipt.NEW
    assert only_study(database).state is state


def test_a_study_that_begins_without_a_patient_id_belongs_to_the_first_patient_who_is_named(
    database: Database, receive: Receive
) -> None:
    receive(header(1, patient=replace(PATIENT, id="", issuer="")))
    receive(header(2))
    assert only_study(database).state is StudyState.RECEIVING
    receive(header(3, patient=replace(PATIENT, id="PID-2")))
    assert only_study(database).state is StudyState.NEEDS_ATTENTION


# --- late ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [StudyState.COMPLETE, StudyState.REPORTED])
def test_a_late_image_opens_the_study_again_as_its_next_generation(
    database: Database, receive: Receive, state: StudyState
) -> None:
    with clock.frozen(NOON):
        receive(header(1))
        set_state(database, state)
        clock.advance(timedelta(hours=1))
        receive(header(2))
    study = only_study(database)
    assert (study.state, study.generation) == (StudyState.RECEIVING, 2)
    assert study.quiet_until == NOON + timedelta(hours=1, seconds=60)


# --- at once ------------------------------------------------------------------------------------------------------


def at_once(receive: Receive, instances: list[tuple[SourceHeader, Sender]]) -> list[Receipt]:
    """Receive each instance in a thread of its own, all at the same moment."""
    start = threading.Barrier(len(instances))
    receipts: list[Receipt] = []
    errors: list[BaseException] = []

    def bring(source: SourceHeader, sender: Sender) -> None:
        try:
            start.wait()
            receipts.append(receive(source, sender=sender))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=bring, args=instance) for instance in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return receipts


def test_associations_that_bring_a_new_study_at_once_make_one_study_and_lose_no_image(
    database: Database, receive: Receive
) -> None:
    senders = [replace(ROOM, uid=str(uuid.uuid4())) for _ in range(8)]
    receipts = at_once(receive, [(header(number), sender) for number, sender in enumerate(senders)])
    assert receipts == [Receipt.NEW] * 8
    assert only_study(database).generation == 8
    assert (count(database, Image), count(database, Association)) == (8, 8)


def test_one_instance_that_comes_by_several_associations_at_once_is_new_once(
    database: Database, receive: Receive
) -> None:
    senders = [replace(ROOM, uid=str(uuid.uuid4())) for _ in range(6)]
    receipts = at_once(receive, [(header(), sender) for sender in senders])
    assert sorted(receipts) == [Receipt.DUPLICATE] * 5 + [Receipt.NEW]
    assert only_study(database).generation == 1
    assert (count(database, Image), count(database, File)) == (1, 1)


def test_one_correction_that_comes_by_several_associations_at_once_is_one_revision(
    database: Database, receive: Receive
) -> None:
    receive(header())
    corrected = header(patient=replace(PATIENT, name="Roe^Jane"))
    senders = [replace(ROOM, uid=str(uuid.uuid4())) for _ in range(6)]
    bring = partial(receive, content="corrected", same=True)
    receipts = at_once(bring, [(corrected, sender) for sender in senders])
    assert sorted(receipts) == [Receipt.DUPLICATE] * 5 + [Receipt.REVISED]
    study = only_study(database)
    assert (study.generation, study.patient_name) == (2, "Roe^Jane")
    with database.read() as session:
        assert session.scalars(select(HeaderRevision.changed)).all() == [["PatientName"]]


# --- associations -------------------------------------------------------------------------------------------------


def test_an_association_is_on_record_as_open_until_it_is_closed(
    database: Database, intake: Intake, receive: Receive
) -> None:
    with clock.frozen(NOON):
        receive(header(1))
        clock.advance(timedelta(seconds=5))
        intake.touch([ROOM.uid])
        clock.advance(timedelta(seconds=5))
        intake.close(ROOM.uid, "released")
        clock.advance(timedelta(seconds=5))
        # What comes too late does not open it again.
        intake.touch([ROOM.uid])
        intake.close(ROOM.uid, "aborted")
    with database.read() as session:
        association = session.scalars(select(Association)).one()
    assert association.opened_at == NOON
    assert association.seen_at == NOON + timedelta(seconds=5)
    assert (association.closed_at, association.outcome) == (NOON + timedelta(seconds=10), "released")
