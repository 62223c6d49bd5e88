"""Records what was received: association, study, image and file, in one transaction that ends before the answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import SourceHeader
from dicom_node.patients import contradicts
from dicom_node.quarantine import OTHER_PATIENT, grow, quarantine
from dicom_node.resends import Compared, decide
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
    Resend,
    ResendState,
    Study,
    StudyState,
)


class Receipt(StrEnum):
    """What an instance turned out to be."""

    NEW = "new"
    DUPLICATE = "duplicate"
    AGAIN = "again"
    """Under a UID that is on record, with other bytes: to be compared (`dicom_node.resends`) before it is recorded."""
    REVISED = "revised"
    TO_BE_EXAMINED = "to_be_examined"
    QUARANTINED = "quarantined"
    QUARANTINED_BEFORE = "quarantined_before"
    OWN = "own"
    RESTORED = "restored"

    @property
    def needs_no_file(self) -> bool:
        """Whether the same bytes are kept already."""
        return self in (Receipt.DUPLICATE, Receipt.QUARANTINED_BEFORE)

    @property
    def is_conflict(self) -> bool:
        """Whether the UID belongs to another image."""
        return self in (Receipt.QUARANTINED, Receipt.QUARANTINED_BEFORE)


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
    compared: Compared | None = None
    """With the image that its UID belongs to, where the caller compared them."""


class Intake:
    """Writes the record of received instances. Threads may share one."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._actor = audit.part_actor("listener")

    def known(self, sop_instance_uid: str, sha256: str) -> Receipt | None:
        """Say, without waiting for a writer, what an instance is that is no new one; None where it is.

        DUPLICATE, QUARANTINED_BEFORE and OWN need no file and no row; AGAIN is to be compared first.
        """
        with self._database.read() as session:
            known = _known(session, sop_instance_uid, sha256)
            if known is Receipt.DUPLICATE and session.scalars(_missing(sop_instance_uid, sha256)).first() is not None:
                return None
            if known is not None:
                return known
            own = session.scalar(select(Report.id).where(Report.sop_instance_uid == sop_instance_uid))
        return Receipt.OWN if own is not None else None

    def record(self, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        """Commit an instance whose file is durable. What the database raises is passed on.

        Returns
        -------
        Receipt
            NEW, REVISED, TO_BE_EXAMINED or QUARANTINED; DUPLICATE and QUARANTINED_BEFORE, whose file is not needed; or
            RESTORED (the file takes the place of one that went missing).
        """
        with self._database.write() as session:
            return self.write(session, sender, header, stored)

    def write(self, session: Session, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        """Do what `record` does, in a transaction that someone else commits."""
        association_id = self._association(session, sender)
        again = self._again(session, sender, header, stored, association_id)
        if again is not None:
            return again
        study = self._study(session, sender, header)
        # Once more, now that nobody else can add to this study.
        again = self._again(session, sender, header, stored, association_id)
        if again is not None:
            return again
        image = self._image(session, sender, header, stored, study, association_id)
        self._grow(study, image, header, session, sender)
        return Receipt.NEW

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

    def _again(
        self, session: Session, sender: Sender, header: SourceHeader, stored: StoredFile, association_id: int
    ) -> Receipt | None:
        """Deal with an instance whose UID is on record, in whatever study; None if it is not."""
        known = _known(session, header.sop_instance_uid, stored.sha256)
        if known is Receipt.DUPLICATE:
            return self._restored(session, header.sop_instance_uid, stored) or known
        if known is not Receipt.AGAIN:
            return known
        holder = select(Image.study_id).where(_current(header.sop_instance_uid)).scalar_subquery()
        study = session.scalars(select(Study).where(Study.id == holder).with_for_update()).first()
        # Once more, now that nobody else can change this study's images.
        known = _known(session, header.sop_instance_uid, stored.sha256)
        if known is not Receipt.AGAIN or study is None:
            return known if known is not Receipt.AGAIN else None
        image = session.scalars(select(Image).where(_current(header.sop_instance_uid)).with_for_update()).one()
        resend = self._resend(session, sender, header, stored, image, association_id)
        compared = stored.compared
        same = compared.same if compared is not None and compared.image_id == image.id else None
        decide(session, self._settings, self._actor, study, image, resend, same)
        return _RECEIPTS[resend.state]

    def _resend(
        self,
        session: Session,
        sender: Sender,
        header: SourceHeader,
        stored: StoredFile,
        image: Image,
        association_id: int,
    ) -> Resend:
        now = clock.now()
        file = _file(image, stored, FileKind.RESEND)
        session.add(file)
        session.flush()
        resend = Resend(
            study_id=image.study_id,
            image_id=image.id,
            association_id=association_id,
            file_id=file.id,
            dataset_sha256=stored.sha256,
            transfer_syntax_uid=stored.transfer_syntax_uid,
            header=header.to_json(),
            calling_ae_title=sender.calling_ae_title,
            received_at=now,
            state=ResendState.WAITING,
            due_at=now,
            rank_at=now - self._head_start(sender, header),
        )
        session.add(resend)
        session.flush()
        audit.record(
            session,
            actor=self._actor,
            action="image.received_again",
            subject="image",
            subject_id=image.id,
            resend=resend.id,
            sha256=stored.sha256,
            calling_ae_title=sender.calling_ae_title,
        )
        return resend

    def _restored(self, session: Session, sop_instance_uid: str, stored: StoredFile) -> Receipt | None:
        """Let the same bytes take the place of an image's file that went missing. Its state stays what it is."""
        file = session.scalars(_missing(sop_instance_uid, stored.sha256).with_for_update(of=File)).first()
        if file is None:
            return None
        file.key, file.size, file.digest_offset = stored.key, stored.size, stored.digest_offset
        file.stored_at, file.missing_at = clock.now(), None
        audit.record(
            session,
            actor=self._actor,
            action="file.restored",
            subject="file",
            subject_id=file.id,
            image=file.image_id,
            sha256=stored.sha256,
        )
        return Receipt.RESTORED

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
            urgent=self._is_urgent(sender, header),
            state=StudyState.RECEIVING,
            generation=0,
            first_image_at=now,
            last_image_at=now,
            quiet_until=now,
            complete_by=now,
            rank_at=now - self._head_start(sender, header),
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
            # The report waits for the last image: all of an urgent study are urgent.
            rank_at=now - self._head_start(sender, header, study.urgent),
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
        study.last_image_at = clock.now()
        grow(study, self._settings, sender.calling_ae_title)
        if self._is_urgent(sender, header) and not study.urgent:
            self._make_urgent(session, study, image)
        if not study.patient_id:
            # The first image that says whose study this is; the next may contradict it.
            study.patient_id, study.issuer_of_patient_id = header.patient.id, header.patient.issuer
        elif not study.issuer_of_patient_id and study.patient_id == header.patient.id:
            study.issuer_of_patient_id = header.patient.issuer
        if contradicts(session, study, image, header):
            source, sha256 = sender.calling_ae_title, image.dataset_sha256
            quarantine(session, study, image, None, OTHER_PATIENT, sha256, source=source, by=self._actor)

    def _is_urgent(self, sender: Sender, header: SourceHeader) -> bool:
        asked = header.urgent and self._settings.study.trust_header_priority
        return asked or self._settings.is_urgent(sender.calling_ae_title)

    def _head_start(self, sender: Sender, header: SourceHeader, of_urgent_study: bool = False) -> timedelta:
        urgent = of_urgent_study or self._is_urgent(sender, header)
        return timedelta(seconds=self._settings.study.urgent_head_start if urgent else 0)

    def _make_urgent(self, session: Session, study: Study, newest: Image) -> None:
        """Let a study and those of its images that wait already have the head start of urgent ones."""
        head_start = timedelta(seconds=self._settings.study.urgent_head_start)
        waiting = select(Image).where(
            Image.study_id == study.id, Image.state == ImageState.RECEIVED, Image.id != newest.id
        )
        study.urgent = True
        for row in (study, *session.scalars(waiting)):
            row.rank_at -= head_start


_RECEIPTS = {
    ResendState.WAITING: Receipt.TO_BE_EXAMINED,
    ResendState.REVISION: Receipt.REVISED,
    ResendState.CONFLICT: Receipt.QUARANTINED,
}


def _current(sop_instance_uid: str) -> ColumnElement[bool]:
    """The image that this UID belongs to, if any."""
    return and_(Image.sop_instance_uid == sop_instance_uid, Image.replaced_at.is_(None))


def _known(session: Session, sop_instance_uid: str, sha256: str) -> Receipt | None:
    """What an instance is whose UID is on record: its bytes decide, also those that a person replaced or excluded."""
    of_uid = select(Image.id, Image.dataset_sha256, Image.replaced_at).where(Image.sop_instance_uid == sop_instance_uid)
    # In two halves: each has an index of its own.
    replaced = of_uid.where(Image.replaced_at.is_not(None))
    images = session.execute(union_all(of_uid.where(Image.replaced_at.is_(None)), replaced)).all()
    if not images:
        return None
    if any(image.dataset_sha256 == sha256 for image in images):
        return Receipt.DUPLICATE
    ids = [image.id for image in images]
    state = session.scalar(select(Resend.state).where(Resend.image_id.in_(ids), Resend.dataset_sha256 == sha256))
    if state is not None:
        taken = state in (ResendState.CONFLICT, ResendState.FAILED)
        return Receipt.QUARANTINED_BEFORE if taken else Receipt.DUPLICATE
    # The first version kept no row of resends.
    quarantined = exists().where(Quarantine.image_id.in_(ids), Quarantine.dataset_sha256 == sha256)
    if session.scalar(select(quarantined)):
        return Receipt.QUARANTINED_BEFORE
    return Receipt.AGAIN if any(image.replaced_at is None for image in images) else None


def _missing(sop_instance_uid: str, sha256: str) -> Select[File]:
    """Return the query for the row of an image's file that reconciliation found to be gone."""
    return (
        select(File)
        .join(Image, Image.id == File.image_id)
        .where(
            _current(sop_instance_uid),
            Image.dataset_sha256 == sha256,
            File.kind == FileKind.INSTANCE,
            File.missing_at.is_not(None),
            File.removed_at.is_(None),
        )
    )


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


def _insert_unless_there(session: Session, table: type[Association] | type[Study], **values: object) -> None:
    """INSERT … ON CONFLICT DO NOTHING: two associations may bring the first image of one study at the same moment."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**values).on_conflict_do_nothing())
