"""Removes the received files of studies whose answer arrived long ago. Records, reports and model inputs stay.

Off unless `retention.days` is set. A study's files go when its newest reports were delivered to every destination (and
committed, where the destination was asked to) more than so many days ago; they stay while anything about it waits for
work or for a person, and where its reports went nowhere.

First the row says that its file is removed, then the file is. A crash in between leaves a file whose row says so, which
reconciliation removes (dicom_node.reconcile); the other way round it would leave a row that promises what is gone.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select

from dicom_node.spool import Spool
from models import audit, clock, logs
from models.database import Database, unindexed
from models.settings import Settings
from models.tables import (
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    ImageState,
    Quarantine,
    Resend,
    ResendState,
    Study,
    StudyState,
)

RECEIVED = (FileKind.INSTANCE, FileKind.RESEND, FileKind.QUARANTINED)
STUDIES_A_STEP = 200
FILES_AT_ONCE = 100
log = logs.get("retention")


class Retention:
    """Goes through the studies again and again, some with each step."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._days = settings.retention.days
        self._database = database
        self._spool = spool
        self._actor = audit.part_actor("retention")
        self._after = 0

    def step(self) -> bool:
        """Look at the next studies and remove the files of those that are due; return whether there are more."""
        if self._days is None:
            return False
        before = clock.now() - timedelta(days=self._days)
        with self._database.read() as session:
            these = list(
                session.scalars(select(Study.id).where(Study.id > self._after).order_by(Study.id).limit(STUDIES_A_STEP))
            )
            due = list(session.scalars(select(Study.id).where(Study.id.in_(these), _is_due(before))))
        self._after = these[-1] if len(these) == STUDIES_A_STEP else 0
        for study_id in due:
            while self._remove_some(study_id, before):
                pass
        return self._after > 0

    def _remove_some(self, study_id: int, before: datetime) -> bool:
        """Remove some of a study's files, unless something has happened to it; return whether any were."""
        with self._database.write() as session:
            # Locked: nobody adds an image, a report or a resend to it now.
            still = select(Study.id).where(Study.id == study_id, _is_due(before)).with_for_update()
            if session.scalars(still).first() is None:
                return False
            files = list(session.scalars(_files_of(study_id).limit(FILES_AT_ONCE)))
            for file in files:
                file.removed_at = clock.now()
                audit.record(
                    session,
                    actor=self._actor,
                    action="file.removed",
                    subject="file",
                    subject_id=file.id,
                    image=file.image_id,
                    sha256=file.sha256,
                )
        for file in files:
            self._spool.delete(file.key)
        log.info("files removed", study=study_id, files=len(files))
        return bool(files)


def _files_of(study_id: int) -> Select[File]:
    return (
        select(File)
        .join(Image, Image.id == File.image_id)
        .where(Image.study_id == study_id, File.kind.in_(RECEIVED), File.removed_at.is_(None))
        .order_by(File.id)
    )


def _is_due(before: datetime) -> ColumnElement[bool]:
    """Whether a study's answer arrived before this time, nothing about it is open, and files of it are left."""
    arrived = and_(
        or_(
            Delivery.state == DeliveryState.COMMITTED,
            and_(Delivery.state == DeliveryState.DELIVERED, Delivery.commit_due_at.is_(None)),
        ),
        func.coalesce(Delivery.committed_at, Delivery.delivered_at) < before,
    )
    newest = and_(Delivery.study_id == Study.id, Delivery.superseded_at.is_(None))
    waiting = (DeliveryState.DUE, DeliveryState.NEEDS_ATTENTION)
    return and_(
        unindexed(Study.state) == StudyState.REPORTED,
        exists().where(newest, arrived),
        ~exists().where(newest, ~arrived),
        ~exists().where(Delivery.study_id == Study.id, Delivery.state.in_(waiting)),
        ~exists().where(Image.study_id == Study.id, Image.state == ImageState.RECEIVED),
        ~exists().where(Quarantine.study_id == Study.id, Quarantine.resolved_at.is_(None)),
        ~exists().where(Resend.study_id == Study.id, Resend.state == ResendState.WAITING),
        exists().where(
            Image.study_id == Study.id,
            File.image_id == Image.id,
            File.kind.in_(RECEIVED),
            File.removed_at.is_(None),
        ),
    )
