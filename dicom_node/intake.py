"""Records what was received: association, study, image and file, in one transaction that ends before the answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import SourceHeader
from dicom_node.services import is_image
from models import audit, clock
from models.database import Database
from models.settings import Settings
from models.tables import (
    Association,
    File,
    FileKind,
    Image,
    ImageState,
    Quarantine,
    Report,
    Study,
    StudyState,
)

OTHER_BYTES = "same_uid_other_bytes"
OTHER_PATIENT = "contradicting_patient"


class Receipt(StrEnum):
    """What an instance turned out to be."""

    NEW = "new"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    OWN = "own"


@dataclass(frozen=True)
class Sender:
    """The association that an instance came by."""

    uid: str
    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True)
class StoredFile:
    """Where the instance's bytes lie."""

    key: str
    size: int
    sha256: str
    digest_offset: int
    transfer_syntax_uid: str


class Intake:
    """Writes the record of received instances. Threads may share one."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._actor = audit.part_actor("listener")

    def known(self, sop_instance_uid: str, sha256: str) -> Receipt | None:
        """Return DUPLICATE or OWN for what needs no file and no row, without waiting for a writer."""
        with self._database.read() as session:
            digest = session.scalar(select(Image.dataset_sha256).where(Image.sop_instance_uid == sop_instance_uid))
            if digest == sha256:
                return Receipt.DUPLICATE
            own = session.scalar(select(Report.id).where(Report.sop_instance_uid == sop_instance_uid))
        return Receipt.OWN if own is not None else None

    def record(self, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        """Commit an instance whose file is durable. What the database raises is passed on.

        Returns
        -------
        Receipt
            NEW, DUPLICATE (the file is not needed) or QUARANTINED (kept for a person to look at).
        """
        with self._database.write() as session:
            association_id = self._association(session, sender)
            again = self._again(session, sender, header, stored)
            if again is not None:
                return again
            study = self._study(session, sender, header)
            # Once more, now that nobody else can add to this study.
            again = self._again(session, sender, header, stored)
            if again is not None:
                return again
            image = self._image(session, sender, header, stored, study, association_id)
            self._grow(study, image, header, session, sender)
            return Receipt.NEW

    def holds_file(self, key: str) -> bool:
        """Return whether a file with this key is on record."""
        with self._database.read() as session:
            return session.scalar(select(File.id).where(File.key == key)) is not None

    def touch(self, association_uids: list[str]) -> None:
        """Say that these associations are still open."""
        with self._database.write() as session:
            session.execute(
                update(Association)
                .where(Association.uid.in_(association_uids), Association.closed_at.is_(None))
                .values(seen_at=clock.now())
            )

    def open_elsewhere(self, association_uids: list[str], *, within: timedelta) -> int:
        """Count the open associations on record, seen `within` that time, that are not among these."""
        seen = Association.seen_at > clock.now() - within
        others = select(Association.id).where(
            Association.closed_at.is_(None), seen, Association.uid.not_in(association_uids)
        )
        with self._database.read() as session:
            return session.scalar(select(func.count()).select_from(others.subquery())) or 0

    def close(self, association_uid: str, outcome: str) -> None:
        """Say that an association has ended."""
        with self._database.write() as session:
            session.execute(
                update(Association)
                .where(Association.uid == association_uid, Association.closed_at.is_(None))
                .values(closed_at=clock.now(), outcome=outcome)
            )

    def _again(self, session: Session, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt | None:
        """Deal with an instance whose UID is on record, in whatever study; None if it is not."""
        image = session.scalars(select(Image).where(Image.sop_instance_uid == header.sop_instance_uid)).first()
        if image is None:
            return None
        if self._is_kept(session, image, stored.sha256):
            return Receipt.DUPLICATE
        study = session.scalars(select(Study).where(Study.id == image.study_id).with_for_update()).one()
        self._quarantine(session, sender, study, image, stored)
        return Receipt.QUARANTINED

    def _association(self, session: Session, sender: Sender) -> int:
        now = clock.now()
        _insert_unless_there(
            session,
            Association,
            uid=sender.uid,
            calling_ae_title=sender.calling_ae_title,
            called_ae_title=sender.called_ae_title,
            address=sender.address,
            opened_at=now,
            seen_at=now,
        )
        return session.scalars(select(Association.id).where(Association.uid == sender.uid)).one()

    def _study(self, session: Session, sender: Sender, header: SourceHeader) -> Study:
        """Return the study's row, locked until the commit, made if it is new."""
        now = clock.now()
        _insert_unless_there(
            session,
            Study,
            study_instance_uid=header.study_instance_uid,
            patient_name=header.patient.name,
            patient_id=header.patient.id,
            issuer_of_patient_id=header.patient.issuer,
            patient_birth_date=header.patient.birth_date,
            patient_sex=header.patient.sex,
            accession_number=header.study.accession_number,
            study_date=header.study.date,
            study_description=header.study.description,
            calling_ae_title=sender.calling_ae_title,
            urgent=self._settings.is_urgent(sender.calling_ae_title),
            state=StudyState.RECEIVING,
            generation=0,
            first_image_at=now,
            last_image_at=now,
            quiet_until=now,
            complete_by=now,
            rank_at=now - self._head_start(sender),
            due_at=now,
            tries=0,
            lease_token=0,
        )
        found = select(Study).where(Study.study_instance_uid == header.study_instance_uid).with_for_update()
        return session.scalars(found).one()

    def _image(
        self,
        session: Session,
        sender: Sender,
        header: SourceHeader,
        stored: StoredFile,
        study: Study,
        association_id: int,
    ) -> Image:
        now = clock.now()
        reason = reason_not_to_read(header, self._settings)
        image = Image(
            study_id=study.id,
            association_id=association_id,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            series_instance_uid=header.series_instance_uid,
            transfer_syntax_uid=stored.transfer_syntax_uid,
            modality=header.modality[:16],
            body_part=header.body_part_examined[:64],
            view=header.view_position[:64],
            laterality=header.laterality[:16],
            header=header.to_json(),
            is_image=is_image(header.sop_class_uid),
            received_at=now,
            dataset_sha256=stored.sha256,
            state=ImageState.RECEIVED if reason is None else ImageState.NOT_ANALYSED,
            reason=reason,
            due_at=now,
            rank_at=now - self._head_start(sender),
        )
        session.add(image)
        session.flush()
        session.add(_file(image, stored, FileKind.INSTANCE))
        audit.record(
            session,
            actor=self._actor,
            action="image.received",
            subject="image",
            subject_id=image.id,
            sha256=stored.sha256,
            calling_ae_title=sender.calling_ae_title,
        )
        return image

    def _grow(self, study: Study, image: Image, header: SourceHeader, session: Session, sender: Sender) -> None:
        now = clock.now()
        study.generation += 1
        study.last_image_at = now
        study.quiet_until = now + timedelta(seconds=self._settings.quiet_time_of(sender.calling_ae_title))
        study.complete_by = now + timedelta(seconds=self._settings.study.max_wait)
        study.quiet_until = min(study.quiet_until, study.complete_by)
        if self._settings.is_urgent(sender.calling_ae_title) and not study.urgent:
            study.urgent, study.rank_at = True, study.rank_at - self._head_start(sender)
        if not study.patient_id:
            # The first image that says whose study this is; the next may contradict it.
            study.patient_id, study.issuer_of_patient_id = header.patient.id, header.patient.issuer
        elif not study.issuer_of_patient_id and study.patient_id == header.patient.id:
            study.issuer_of_patient_id = header.patient.issuer
        if _contradicts(study, header):
            study.state, study.reason = StudyState.NEEDS_ATTENTION, OTHER_PATIENT
            _add_to_quarantine(session, sender, study, image, None, OTHER_PATIENT, image.dataset_sha256)
        elif study.state != StudyState.NEEDS_ATTENTION:
            study.state, study.tries, study.lease_until = StudyState.RECEIVING, 0, None

    def _quarantine(self, session: Session, sender: Sender, study: Study, image: Image, stored: StoredFile) -> None:
        file = _file(image, stored, FileKind.QUARANTINED)
        session.add(file)
        session.flush()
        study.state, study.reason = StudyState.NEEDS_ATTENTION, OTHER_BYTES
        _add_to_quarantine(session, sender, study, image, file, OTHER_BYTES, stored.sha256)
        audit.record(
            session,
            actor=self._actor,
            action="image.quarantined",
            subject="image",
            subject_id=image.id,
            sha256=stored.sha256,
        )

    @staticmethod
    def _is_kept(session: Session, image: Image, sha256: str) -> bool:
        """Whether these bytes are on record, as the image or in its quarantine: a sender may send both again."""
        quarantined = select(Quarantine.id).where(Quarantine.image_id == image.id, Quarantine.dataset_sha256 == sha256)
        return image.dataset_sha256 == sha256 or session.scalar(quarantined.limit(1)) is not None

    def _head_start(self, sender: Sender) -> timedelta:
        urgent = self._settings.is_urgent(sender.calling_ae_title)
        return timedelta(seconds=self._settings.study.urgent_head_start if urgent else 0)


def _contradicts(study: Study, header: SourceHeader) -> bool:
    """Two patient IDs in one study, or one ID of two issuers; what is missing contradicts nothing."""
    known, found = study.issuer_of_patient_id, header.patient.issuer
    other_id = bool(header.patient.id) and study.patient_id != header.patient.id
    other_issuer = bool(header.patient.id and known and found) and known != found
    return bool(study.patient_id) and (other_id or other_issuer)


def _file(image: Image, stored: StoredFile, kind: FileKind) -> File:
    return File(
        image_id=image.id,
        kind=kind,
        key=stored.key,
        size=stored.size,
        sha256=stored.sha256,
        digest_offset=stored.digest_offset,
        stored_at=clock.now(),
    )


def _add_to_quarantine(
    session: Session, sender: Sender, study: Study, image: Image, file: File | None, reason: str, sha256: str
) -> None:
    session.add(
        Quarantine(
            study_id=study.id,
            image_id=image.id,
            file_id=file.id if file else None,
            reason=reason,
            dataset_sha256=sha256,
            calling_ae_title=sender.calling_ae_title,
            received_at=clock.now(),
        )
    )


def _insert_unless_there(session: Session, table: type[Association] | type[Study], **values: object) -> None:
    """INSERT … ON CONFLICT DO NOTHING: two associations may bring the first image of one study at the same moment."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**values).on_conflict_do_nothing())
