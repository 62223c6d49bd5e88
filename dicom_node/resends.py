"""An instance that comes again under its UID with other bytes, and what becomes of it.

==========================================  ========================================================================
the newcomer has                            what becomes of it
==========================================  ========================================================================
the same pixels under another header        a header revision; where it says whose image it is, of which side, or
                                            whether it may be read, the study's next generation
other pixels, or another study or series    quarantined; the study needs attention
pixels of which the bytes do not tell       waits for the worker (`worker.examine`), which decodes both
==========================================  ========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.changes import IDENTITY, READING, changed
from dicom_node.current import newest_header
from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import SourceHeader
from dicom_node.patients import look_again
from dicom_node.quarantine import OTHER_PIXELS, OTHER_UIDS, go_on, grow, quarantine
from dicom_node.raw_pixels import raw_pixels
from dicom_node.spool import Spool
from models import audit, clock
from models.database import Database
from models.reasons import Reason
from models.settings import Settings
from models.tables import (
    File,
    FileKind,
    HeaderRevision,
    Image,
    ImageState,
    Resend,
    ResendState,
    Study,
)

_BY_HEADER = (
    Reason.OTHER_MODALITY,
    Reason.OUTSIDE_INTENDED_USE,
    Reason.OUTSIDE_INTENDED_AGE,
    Reason.FOR_PROCESSING,
    Reason.VETERINARY,
    Reason.LATERALITY_CONFLICT,
)
"""Reasons that another header can take away."""


@dataclass(frozen=True)
class Compared:
    """What the bytes tell of the pixels of a newcomer and of an image on record; `same` is None where they do not."""

    image_id: int
    same: bool | None


def compare(database: Database, spool: Spool, sop_instance_uid: str, newcomer: BinaryIO) -> Compared | None:
    """Compare a received file with the image on record under its UID, without decoding; None where there is none.

    Takes as long as reading both files, and holds no lock meanwhile.
    """
    with database.read() as session:
        found = session.execute(
            select(Image.id, File.key)
            .join(File, File.image_id == Image.id)
            .where(
                Image.sop_instance_uid == sop_instance_uid,
                Image.replaced_at.is_(None),
                File.kind == FileKind.INSTANCE,
            )
        ).first()
    if found is None:
        return None
    image_id, key = found
    try:
        with spool.open(key) as file:
            first = raw_pixels(file)
        other = raw_pixels(newcomer)
    except OSError:
        # Gone or out of reach: the worker tries it, more than once.
        return Compared(image_id, None)
    return Compared(image_id, None if first is None or other is None else first.same_as(other))


def decide(
    session: Session, settings: Settings, actor: str, study: Study, image: Image, resend: Resend, same: bool | None
) -> None:
    """Record what a newcomer is: `same` says whether its pixels are the image's. The study's row is locked."""
    header = SourceHeader.from_json(resend.header)
    uids = (header.study_instance_uid, header.series_instance_uid, header.sop_class_uid)
    if uids != (study.study_instance_uid, image.series_instance_uid, image.sop_class_uid):
        conflict(session, actor, study, image, resend, OTHER_UIDS)
    elif same:
        revise(session, settings, actor, study, image, resend)
    elif same is False:
        conflict(session, actor, study, image, resend, OTHER_PIXELS)


def revise(session: Session, settings: Settings, actor: str, study: Study, image: Image, resend: Resend) -> None:
    """Take the newcomer's header as the image's newest."""
    before, after = newest_header(session, image), SourceHeader.from_json(resend.header)
    keywords = changed(before, after)
    revision = HeaderRevision(
        image_id=image.id,
        received_at=resend.received_at,
        calling_ae_title=resend.calling_ae_title,
        dataset_sha256=resend.dataset_sha256,
        file_id=resend.file_id,
        transfer_syntax_uid=resend.transfer_syntax_uid,
        header=resend.header,
        changed=keywords,
    )
    session.add(revision)
    resend.state = ResendState.REVISION
    image.modality, image.body_part = after.modality[:16], after.body_part_examined[:64]
    image.view, image.laterality = after.view_position[:64], after.laterality[:16]
    session.flush()
    audit.record(
        session,
        actor=actor,
        action="image.revised",
        subject="image",
        subject_id=image.id,
        revision=revision.id,
        sha256=resend.dataset_sha256,
        changed=", ".join(keywords),
    )
    if not READING.isdisjoint(keywords):
        _read_again(session, settings, image, after)
    if not (READING | IDENTITY).isdisjoint(keywords):
        grow(study, settings, resend.calling_ae_title)
    if not IDENTITY.isdisjoint(keywords):
        look_again(session, study, image, before, after, by=actor, source=resend.calling_ae_title)
        go_on(session, study)


def conflict(
    session: Session,
    actor: str,
    study: Study,
    image: Image,
    resend: Resend,
    reason: str,
    *,
    state: ResendState = ResendState.CONFLICT,
) -> None:
    """Quarantine the newcomer; the image on record stands."""
    resend.state = state
    file = session.get_one(File, resend.file_id)
    source = resend.calling_ae_title
    quarantine(session, study, image, file, reason, resend.dataset_sha256, source=source, by=actor)


def _read_again(session: Session, settings: Settings, image: Image, header: SourceHeader) -> None:
    """Decide anew whether the image may be read. One that was read keeps its prediction (`worker.analyse`)."""
    reason = reason_not_to_read(header, settings)
    may_change = image.state in (ImageState.RECEIVED, ImageState.ANALYSED) or image.reason in _BY_HEADER
    if not may_change:
        return
    session.execute(
        update(Image)
        .where(Image.id == image.id)
        .values(
            state=ImageState.RECEIVED if reason is None else ImageState.NOT_ANALYSED,
            reason=reason,
            tries=0,
            due_at=clock.now(),
            # Who is reading it now reads it under the old header, and may not write.
            lease_until=None,
            lease_token=Image.lease_token + 1,
        )
    )
    session.refresh(image)
