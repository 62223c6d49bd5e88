"""What a person decides about a row of the quarantine.

=========  ====================  =====================================================================================
decision   about                 what becomes of it
=========  ====================  =====================================================================================
keep       a taken UID           the image on record stands; the newcomer's file stays on record
replace    a taken UID           the newcomer takes the image's place, and is analysed; the old one counts for nothing
accept     another patient       it is one patient; the report is of the one whom the newest header names
exclude    another patient       the image is no part of the study's report: a report of one patient does not even
                                 name an image of another
=========  ====================  =====================================================================================

Each is audited with who decided. The study goes on when nothing about it is open any more, and is then reported again
if there is something new to say.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from dicom_node.current import newest_header, newest_headers
from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import SourceHeader
from dicom_node.patients import adopt, look_again
from dicom_node.quarantine import NEWCOMERS, OTHER_PATIENT, OTHER_UIDS, go_on, grow, open_rows, resolve_rows
from dicom_node.services import is_image
from models import audit, clock
from models.database import Database
from models.settings import Settings
from models.tables import File, FileKind, Image, ImageState, Quarantine, Resend, ResendState, Study

REPLACED = "replaced"
EXCLUDED = "excluded"
"""Reasons of images that count for nothing any more: no report names them."""


class Decision(StrEnum):
    """What can be decided."""

    KEEP = "keep"
    REPLACE = "replace"
    ACCEPT = "accept"
    EXCLUDE = "exclude"


class CannotResolve(Exception):
    """The decision does not fit the row; the text says why, without patient data."""


def decisions_for(reason: str) -> tuple[Decision, ...]:
    """Return what can be decided about a row with this reason."""
    if reason == OTHER_PATIENT:
        return (Decision.ACCEPT, Decision.EXCLUDE)
    return (Decision.KEEP,) if reason == OTHER_UIDS else (Decision.KEEP, Decision.REPLACE)


def resolve(database: Database, settings: Settings, quarantine_id: int, decision: Decision, *, by: str) -> None:
    """Carry out what a person, `by`, decided. Raises CannotResolve, and then nothing is changed."""
    with database.write() as session:
        study_id = session.scalar(select(Quarantine.study_id).where(Quarantine.id == quarantine_id))
        if study_id is None:
            raise CannotResolve(f"there is no row {quarantine_id} in the quarantine")
        study = session.scalars(select(Study).where(Study.id == study_id).with_for_update()).one()
        row = session.scalars(select(Quarantine).where(Quarantine.id == quarantine_id).with_for_update()).one()
        _check(session, row, decision)
        resolve_rows(session, [row], decision.value, by=by)
        if decision is Decision.REPLACE:
            _replace(session, settings, study, row, by=by)
        elif decision is Decision.EXCLUDE:
            _take_away(session, _image(session, row), EXCLUDED, by=by)
        elif decision is Decision.ACCEPT:
            _accept(session, study)
        if decision is not Decision.KEEP:
            grow(study, settings, row.calling_ae_title)
            # A person has just looked: there is nothing to wait for.
            study.quiet_until = clock.now()
        go_on(session, study)


def _check(session: Session, row: Quarantine, decision: Decision) -> None:
    if row.resolved_at is not None:
        raise CannotResolve(f"row {row.id} is resolved already, as {row.resolution}")
    allowed = decisions_for(row.reason)
    if decision not in allowed:
        raise CannotResolve(f"row {row.id} ({row.reason}) can be resolved as {' or '.join(allowed)}")
    waiting = exists().where(Resend.image_id == row.image_id, Resend.state == ResendState.WAITING)
    if decision in (Decision.REPLACE, Decision.EXCLUDE) and session.scalar(select(waiting)):
        raise CannotResolve("an instance that came again under this UID is still being examined; try again later")


def _image(session: Session, row: Quarantine) -> Image:
    if row.image_id is None:
        raise CannotResolve(f"row {row.id} names no image")
    return session.scalars(select(Image).where(Image.id == row.image_id).with_for_update()).one()


def _take_away(session: Session, image: Image, reason: str, *, by: str) -> None:
    """Let an image count for nothing any more. Its prediction, if it has one, stays on record."""
    if image.replaced_at is not None:
        return
    image.replaced_at, image.state, image.reason = clock.now(), ImageState.NOT_ANALYSED, reason
    session.flush()
    audit.record(
        session,
        actor=by,
        action=f"image.{reason}",
        subject="image",
        subject_id=image.id,
        sha256=image.dataset_sha256,
    )


def _replace(session: Session, settings: Settings, study: Study, row: Quarantine, *, by: str) -> None:
    first = _image(session, row)
    resend = session.scalars(
        select(Resend).where(Resend.image_id == first.id, Resend.dataset_sha256 == row.dataset_sha256)
    ).first()
    file = session.get(File, row.file_id) if row.file_id is not None else None
    if resend is None or file is None or row.reason not in NEWCOMERS:
        raise CannotResolve(f"row {row.id} was written by an older version, which did not keep what this takes")
    if file.removed_at is not None:
        raise CannotResolve("the newcomer's file was removed")
    # Another newcomer may have taken the first one's place meanwhile.
    old = session.scalars(
        select(Image)
        .where(Image.sop_instance_uid == first.sop_instance_uid, Image.replaced_at.is_(None))
        .with_for_update()
    ).first()
    if old is not None and old.study_id != study.id:
        raise CannotResolve("its UID belongs to an image of another study now")
    before = SourceHeader.from_json(resend.header) if old is None else newest_header(session, old)
    if old is not None:
        _take_away(session, old, REPLACED, by=by)
    image = _newcomer(settings, study, resend)
    session.add(image)
    session.flush()
    file.image_id, file.kind = image.id, FileKind.INSTANCE
    for open_row in open_rows(session, study, OTHER_PATIENT, old) if old is not None else ():
        open_row.image_id = image.id
    session.flush()
    audit.record(
        session,
        actor=by,
        action="image.took_place",
        subject="image",
        subject_id=image.id,
        replaces=None if old is None else old.id,
        sha256=image.dataset_sha256,
    )
    header = SourceHeader.from_json(resend.header)
    look_again(session, study, image, before, header, by=by, source=resend.calling_ae_title)


def _newcomer(settings: Settings, study: Study, resend: Resend) -> Image:
    header = SourceHeader.from_json(resend.header)
    reason = reason_not_to_read(header, settings)
    return Image(
        study_id=study.id,
        association_id=resend.association_id,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        series_instance_uid=header.series_instance_uid,
        transfer_syntax_uid=resend.transfer_syntax_uid,
        modality=header.modality[:16],
        body_part=header.body_part_examined[:64],
        view=header.view_position[:64],
        laterality=header.laterality[:16],
        scanner=header.scanner(resend.calling_ae_title),
        header=resend.header,
        is_image=is_image(header.sop_class_uid),
        received_at=resend.received_at,
        dataset_sha256=resend.dataset_sha256,
        state=ImageState.RECEIVED if reason is None else ImageState.NOT_ANALYSED,
        reason=reason,
        due_at=clock.now(),
        rank_at=resend.rank_at,
    )


def _accept(session: Session, study: Study) -> None:
    """Take the identity of the newest header about which nothing is open."""
    disputed = {row.image_id for row in open_rows(session, study, OTHER_PATIENT)}
    settled = [
        (kept.received_at, kept.revision_id, image_id, kept.header)
        for image_id, kept in newest_headers(session, study.id).items()
        if image_id not in disputed
    ]
    if settled:
        adopt(study, max(settled, key=lambda kept: kept[:3])[3])
