"""The quarantine: what contradicts what is on record. A study with an open row is not reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import audit, clock
from models.settings import Settings
from models.tables import File, FileKind, Image, Quarantine, Study, StudyState

OTHER_BYTES = "same_uid_other_bytes"
"""Written by the first version, which did not compare pixels."""
OTHER_PIXELS = "same_uid_other_pixels"
OTHER_UIDS = "same_uid_other_study_or_series"
NOT_COMPARED = "same_uid_not_comparable"
OTHER_PATIENT = "contradicting_patient"
NEWCOMERS = (OTHER_BYTES, OTHER_PIXELS, OTHER_UIDS, NOT_COMPARED)
"""Reasons of an instance that came under a UID that was taken; its file is kept."""


def quarantine(
    session: Session,
    study: Study,
    image: Image,
    file: File | None,
    reason: str,
    sha256: str,
    *,
    source: str,
    by: str,
) -> None:
    """Put on record what contradicts `image`, and stop its study until it is resolved."""
    if file is not None:
        file.kind = FileKind.QUARANTINED
    row = Quarantine(
        study_id=study.id,
        image_id=image.id,
        file_id=None if file is None else file.id,
        reason=reason,
        dataset_sha256=sha256,
        calling_ae_title=source,
        received_at=clock.now(),
    )
    session.add(row)
    session.flush()
    study.state, study.reason = StudyState.NEEDS_ATTENTION, reason
    audit.record(
        session,
        actor=by,
        action="image.quarantined",
        subject="image",
        subject_id=image.id,
        quarantine=row.id,
        reason=reason,
        sha256=sha256,
    )


def open_rows(
    session: Session, study: Study, reason: str | None = None, image: Image | None = None
) -> Sequence[Quarantine]:
    """Return what is open about a study, or about one of its images."""
    rows = select(Quarantine).where(Quarantine.study_id == study.id, Quarantine.resolved_at.is_(None))
    if reason is not None:
        rows = rows.where(Quarantine.reason == reason)
    if image is not None:
        rows = rows.where(Quarantine.image_id == image.id)
    return session.scalars(rows.order_by(Quarantine.id)).all()


def resolve_rows(session: Session, rows: Iterable[Quarantine], resolution: str, *, by: str) -> None:
    """Close rows, and say so in the audit trail."""
    for row in rows:
        row.resolved_at, row.resolution, row.resolved_by = clock.now(), resolution, by[:128]
        audit.record(
            session,
            actor=by[:128],
            action="quarantine.resolved",
            subject="quarantine",
            subject_id=row.id,
            study=row.study_id,
            image=row.image_id,
            resolution=resolution,
            sha256=row.dataset_sha256,
        )
    session.flush()


def growth(state: StudyState, generation: int, settings: Settings, source: str) -> dict[str, Any]:
    """There is something new to say of a study: what its row becomes, its next generation after a new quiet time."""
    now = clock.now()
    complete_by = now + timedelta(seconds=settings.study.max_wait)
    grown = {
        "generation": generation + 1,
        "complete_by": complete_by,
        "quiet_until": min(now + timedelta(seconds=settings.quiet_time_of(source)), complete_by),
    }
    if state is not StudyState.NEEDS_ATTENTION:
        grown |= {"state": StudyState.RECEIVING, "tries": 0, "lease_until": None}
    return grown


def grow(study: Study, settings: Settings, source: str) -> None:
    """Let a study grow."""
    for column, value in growth(study.state, study.generation, settings, source).items():
        setattr(study, column, value)


def go_on(session: Session, study: Study) -> None:
    """Let a study go on that the quarantine held up, if nothing is open any more."""
    if study.state is not StudyState.NEEDS_ATTENTION or study.reason not in (*NEWCOMERS, OTHER_PATIENT):
        return
    left = open_rows(session, study)
    if left:
        study.reason = left[0].reason
    else:
        study.state, study.reason, study.tries, study.lease_until = StudyState.RECEIVING, None, 0, None
