"""Records what was received: association, study, image and file, in one transaction that ends before the answer.

What every instance takes is a handful of statements that are built once, without the unit of work of the ORM, which
would take three times as long (docs/speed.md); what is rare is written as plainly as it can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    exists,
    func,
    insert,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import SourceHeader
from dicom_node.objects.recognise import UID_PREFIX
from dicom_node.patients import contradicts, differs
from dicom_node.quarantine import OTHER_PATIENT, growth, quarantine
from dicom_node.resends import Compared, decide
from dicom_node.services import is_image
from models import audit, clock
from models.database import Database
from models.settings import Settings
from models.tables import (
    Association,
    AuditEvent,
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

_associations, _studies, _images, _files, _events = (
    cast(Table, table.__table__) for table in (Association, Study, Image, File, AuditEvent)
)
_ASSOCIATION = select(_associations.c.id).where(_associations.c.uid == bindparam("uid"))
_of_uid = select(_images.c.id, _images.c.dataset_sha256, _images.c.replaced_at).where(
    _images.c.sop_instance_uid == bindparam("uid")
)
# In two halves: each has an index of its own.
_SAME_UID = union_all(_of_uid.where(_images.c.replaced_at.is_(None)), _of_uid.where(_images.c.replaced_at.is_not(None)))
_STUDY = (
    select(
        *(_studies.c[name] for name in ("id", "state", "generation", "urgent", "patient_id", "issuer_of_patient_id"))
    )
    .where(_studies.c.study_instance_uid == bindparam("uid"))
    .with_for_update()
)
_GROWN = update(_studies).where(_studies.c.id == bindparam("study"))
_NEW_IMAGE, _NEW_FILE, _NEW_EVENT = insert(_images), insert(_files), insert(_events)


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
    again: bool = False
    """Whether its UID was on record, with other bytes, before it was kept."""


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
            if known is not None or not sop_instance_uid.startswith(UID_PREFIX):
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
        study = None if stored.again else _study(session, header)
        if study is None:
            again = self._again(session, sender, header, stored, association_id)
            if again is not None:
                return again
            study = self._new_study(session, sender, header)
        # Now that nobody else can add to this study.
        again = self._again(session, sender, header, stored, association_id)
        if again is not None:
            return again
        image_id = self._image(session, sender, header, stored, study, association_id)
        self._grow(session, study, image_id, header, sender)
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
        file = File(image_id=image.id, kind=FileKind.RESEND, **_file(stored))
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
        connection = session.connection()
        known: int | None = connection.scalar(_ASSOCIATION, {"uid": sender.uid})
        if known is not None:
            return known
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
        return int(connection.execute(_ASSOCIATION, {"uid": sender.uid}).scalar_one())

    def _new_study(self, session: Session, sender: Sender, header: SourceHeader) -> Row[Any]:
        """Make a study's row, unless another has just made it, and lock it."""
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
        return session.connection().execute(_STUDY, {"uid": header.study_instance_uid}).one()

    def _image(
        self,
        session: Session,
        sender: Sender,
        header: SourceHeader,
        stored: StoredFile,
        study: Row[Any],
        association_id: int,
    ) -> int:
        now = clock.now()
        reason = reason_not_to_read(header, self._settings)
        connection = session.connection()
        image = {
            "study_id": study.id,
            "association_id": association_id,
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "series_instance_uid": header.series_instance_uid,
            "transfer_syntax_uid": stored.transfer_syntax_uid,
            "modality": header.modality[:16],
            "body_part": header.body_part_examined[:64],
            "view": header.view_position[:64],
            "laterality": header.laterality[:16],
            "scanner": header.scanner(sender.calling_ae_title),
            "header": header.to_json(),
            "is_image": is_image(header.sop_class_uid),
            "received_at": now,
            "dataset_sha256": stored.sha256,
            "state": ImageState.RECEIVED if reason is None else ImageState.NOT_ANALYSED,
            "reason": reason,
            "due_at": now,
            # The report waits for the last image: all of an urgent study are urgent.
            "rank_at": now - self._head_start(sender, header, study.urgent),
        }
        image_id: int = connection.execute(_NEW_IMAGE, image).inserted_primary_key[0]  # type: ignore[index]
        connection.execute(_NEW_FILE, {"image_id": image_id, "kind": FileKind.INSTANCE, **_file(stored)})
        event = audit.event(
            actor=self._actor,
            action="image.received",
            subject="image",
            subject_id=image_id,
            sha256=stored.sha256,
            calling_ae_title=sender.calling_ae_title,
        )
        connection.execute(_NEW_EVENT, event)
        return image_id

    def _grow(self, session: Session, study: Row[Any], image_id: int, header: SourceHeader, sender: Sender) -> None:
        patient = header.patient
        grown = growth(study.state, study.generation, self._settings, sender.calling_ae_title)
        grown["last_image_at"] = clock.now()
        grown["patient_id"], grown["issuer_of_patient_id"] = study.patient_id, study.issuer_of_patient_id
        if not study.patient_id:
            # The first image that says whose study this is; the next may contradict it.
            grown["patient_id"], grown["issuer_of_patient_id"] = patient.id, patient.issuer
        elif not study.issuer_of_patient_id and study.patient_id == patient.id:
            grown["issuer_of_patient_id"] = patient.issuer
        session.connection().execute(_GROWN, {"study": study.id, **grown})
        if self._is_urgent(sender, header) and not study.urgent:
            self._make_urgent(session, study.id, image_id)
        if differs(study.patient_id, study.issuer_of_patient_id, patient):
            row, image = session.get_one(Study, study.id), session.get_one(Image, image_id)
            if contradicts(session, row, image, header):
                source, sha256 = sender.calling_ae_title, image.dataset_sha256
                quarantine(session, row, image, None, OTHER_PATIENT, sha256, source=source, by=self._actor)

    def _is_urgent(self, sender: Sender, header: SourceHeader) -> bool:
        asked = header.urgent and self._settings.study.trust_header_priority
        return asked or self._settings.is_urgent(sender.calling_ae_title)

    def _head_start(self, sender: Sender, header: SourceHeader, of_urgent_study: bool = False) -> timedelta:
        urgent = of_urgent_study or self._is_urgent(sender, header)
        return timedelta(seconds=self._settings.study.urgent_head_start if urgent else 0)

    def _make_urgent(self, session: Session, study_id: int, newest: int) -> None:
        """Let a study and those of its images that wait already have the head start of urgent ones."""
        head_start = timedelta(seconds=self._settings.study.urgent_head_start)
        waiting = select(Image).where(
            Image.study_id == study_id, Image.state == ImageState.RECEIVED, Image.id != newest
        )
        study = session.get_one(Study, study_id)
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


def _study(session: Session, header: SourceHeader) -> Row[Any] | None:
    """Return a study's row, locked until the commit; None if there is none."""
    return session.connection().execute(_STUDY, {"uid": header.study_instance_uid}).first()


def _known(session: Session, sop_instance_uid: str, sha256: str) -> Receipt | None:
    """What an instance is whose UID is on record: its bytes decide, also those that a person replaced or excluded."""
    images = session.connection().execute(_SAME_UID, {"uid": sop_instance_uid}).all()
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


def _file(stored: StoredFile) -> dict[str, Any]:
    return {
        "key": stored.key,
        "size": stored.size,
        "sha256": stored.sha256,
        "digest_offset": stored.digest_offset,
        "stored_at": clock.now(),
    }


def _insert_unless_there(session: Session, table: type[Association] | type[Study], **values: object) -> None:
    """INSERT … ON CONFLICT DO NOTHING: two associations may bring the first image of one study at the same moment."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**values).on_conflict_do_nothing())
