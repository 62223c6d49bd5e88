"""Report a study: build what goes out of it, store its bytes, and make it due at every destination that gets it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.objects.content import impression
from dicom_node.spool import Spool
from models import audit, clock, logs
from models.database import Database, database_now
from models.settings import Peer, Settings
from models.tables import Delivery, DeliveryState, Report, ReportInput, Study, StudyState
from worker.claims import Claim, LeaseLost, Work, claim, failed_attempt, release, still_held, time_limit
from worker.draft import draft
from worker.lanes import SUPERSEDED, ensure
from worker.leases import kept_alive
from worker.pictures import Pictures
from worker.results import Piece, Results, may_have_arrived, objects_for, plan
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy
from worker.troubles import Troubles, is_the_nodes

log = logs.get("report")


class Reporter:
    """Writes the report of one study at a time."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings
        self._database = database
        self._pictures = Pictures(database, spool)
        self._limit = time_limit(Work.REPORT, settings)
        self._troubles = Troubles(database)
        self._retries = RetryPolicy(first=5, longest=300, most=settings.analysis.max_tries)
        self._actor = audit.part_actor("worker")

    def report_next(self) -> bool:
        """Claim the most urgent complete study and report it. Return whether there was one."""
        if self._troubles.hold_back():
            return False
        held = claim(self._database, Work.REPORT, limit=self._limit)
        if held is None:
            return False
        with kept_alive(self._database, held.lease):
            self._try(held)
        return True

    def _try(self, held: Claim) -> None:
        try:
            while not self._report(held):
                log.info("a delivery began while it was reported: planned anew", study=held.row_id)
            self._troubles.passed()
        except LeaseLost:
            # A late image came meanwhile: the study is complete again later, and reported then.
            log.info("study changed while it was reported", study=held.row_id)
        except Exception as error:
            if is_the_nodes(error):
                self._troubles.met(held, logs.describe(error))
                return
            log.error("report failed", study=held.row_id, tries=held.tries, exc_info=error)
            self._failed(held, logs.describe(error))

    def _report(self, held: Claim) -> bool:
        """Report a study; return False where nothing was done, since what was planned is outdated already."""
        if self._retries.used_up(held.tries):
            self._failed(held, ENDED_WITHOUT_A_WORD)
            return True
        with self._database.read() as session:
            generation = session.scalars(select(Study.generation).where(Study.id == held.row_id)).one()
            said = draft(session, self._settings, held.row_id)
            results = None if said is None else plan(session, self._settings, self._pictures, held.row_id, said)
        if said is None or results is None:
            self._close(held, generation)
            return True
        contents = [piece.build() for piece in results.new]
        decision = impression(said.content).decision
        with self._database.write() as session:
            study = _unchanged(session, held, generation)
            # Locked, none of them begins before this is committed: a rejection note then names all that may arrive.
            deliveries = _lock_deliveries(session, study)
            if any(_has_begun(delivery, results) for delivery in deliveries):
                return False
            stored = [
                self._store(session, study, piece, content, decision)
                for piece, content in zip(results.new, contents, strict=True)
            ]
            cancelled = self._supersede(session, deliveries, results, stored)
            self._make_due(session, study, results, stored)
            study.state, study.tries = StudyState.REPORTED, 0
            study.decision = decision
            release(study)
        log.info(
            "reported",
            study=held.row_id,
            report=stored[0].id,
            revision=stored[0].revision,
            impression=decision,
            images=len(said.inputs),
            objects=len(stored),
            cancelled=cancelled,
        )
        return True

    def _store(self, session: Session, study: Study, piece: Piece, content: bytes, decision: str) -> Report:
        alike = (Report.study_id == study.id) & (Report.kind == piece.kind)
        before = session.scalar(select(func.max(Report.revision)).where(alike)) or 0
        report = Report(
            study_id=study.id,
            kind=piece.kind,
            revision=before + 1,
            generation=study.generation,
            sop_class_uid=piece.sop_class_uid,
            sop_instance_uid=piece.sop_instance_uid,
            series_instance_uid=piece.series_instance_uid,
            impression=decision,
            content=content,
            sha256=hashlib.sha256(content).hexdigest(),
            supersedes_id=piece.supersedes,
            created_at=clock.now(),
            inputs=[
                ReportInput(image_id=about.image_id, prediction_id=about.prediction_id, reason=about.reason)
                for about in piece.inputs
            ],
        )
        session.add(report)
        session.flush()
        audit.record(
            session,
            actor=self._actor,
            action="report.created",
            subject="report",
            subject_id=report.id,
            study=study.id,
            generation=report.generation,
            kind=report.kind,
            sha256=report.sha256,
        )
        return report

    def _supersede(
        self, session: Session, deliveries: Iterable[Delivery], results: Results, stored: list[Report]
    ) -> int:
        """Mark every delivery of what no longer stands, and cancel those that were not sent yet; return how many.

        One that is being sent now ends first, and is not tried again.
        """
        now = database_now(session)
        stands = {report.id for report in stored} | {known.id for known in results.standing}
        outdated = [delivery for delivery in deliveries if delivery.report_id not in stands]
        cancelled = 0
        for delivery in outdated:
            delivery.superseded_at = clock.now()
            waits = delivery.state in (DeliveryState.DUE, DeliveryState.NEEDS_ATTENTION)
            if not waits or (delivery.lease_until is not None and delivery.lease_until >= now):
                continue
            cancelled += 1
            delivery.state, delivery.reason = DeliveryState.CANCELLED, SUPERSEDED
            release(delivery)
            audit.record(
                session,
                actor=self._actor,
                action="report.cancelled",
                subject="delivery",
                subject_id=delivery.id,
                superseded_by=stored[0].id,
            )
        return cancelled

    def _make_due(self, session: Session, study: Study, results: Results, stored: list[Report]) -> None:
        now = clock.now()
        head_start = timedelta(seconds=self._settings.study.urgent_head_start if study.urgent else 0)
        if not results.recipients:
            log.warning("no destination is to get it: the report is kept and goes nowhere", report=stored[0].id)
        ensure(session, [peer.name for peer in results.recipients])
        for peer in results.recipients:
            for report_id in _for(peer, results, stored):
                session.add(
                    Delivery(
                        report_id=report_id,
                        study_id=study.id,
                        destination=peer.name,
                        created_at=now,
                        due_at=now,
                        rank_at=now - head_start,
                    )
                )

    def _close(self, held: Claim, generation: int) -> None:
        """Nothing (new) to say about this study."""
        with self._database.write() as session:
            study = _unchanged(session, held, generation)
            study.state, study.tries = StudyState.REPORTED, 0
            release(study)
        log.info("nothing new to report", study=held.row_id)

    def _failed(self, held: Claim, error: str) -> None:
        wait = self._retries.next_wait(held.tries)
        with self._database.write() as session:
            try:
                study = still_held(session, held, Study)
            except LeaseLost:
                return
            session.add(failed_attempt(held, error))
            if wait is None:
                study.state, study.reason = StudyState.NEEDS_ATTENTION, "report_failed"
                release(study)
            else:
                release(study, wait=wait)


def _unchanged(session: Session, held: Claim, generation: int) -> Study:
    """Return the study, locked, if no image came since it was read. Raises LeaseLost."""
    study = still_held(session, held, Study)
    if study.generation != generation:
        raise LeaseLost(f"study {held.row_id}")
    return study


def _lock_deliveries(session: Session, study: Study) -> Sequence[Delivery]:
    """The deliveries of what was said of a study and still stands, each of them locked."""
    return session.scalars(
        select(Delivery)
        .where(Delivery.study_id == study.id, Delivery.superseded_at.is_(None))
        .order_by(Delivery.id)
        .with_for_update()
    ).all()


def _has_begun(delivery: Delivery, results: Results) -> bool:
    """Whether it may have arrived by now, and had not begun when the results were planned."""
    known = (delivery.report_id, delivery.destination) in results.begun
    return may_have_arrived(delivery.state, delivery.tries) and not known


def _for(peer: Peer, results: Results, stored: list[Report]) -> Iterator[int]:
    """What a destination is to be sent now, in order: what it gets of the new, and what stands that it never got."""
    for known in results.standing:
        if known.kind in objects_for(peer) and all(sent.destination != peer.name for sent in known.sent):
            yield known.id
    for piece, report in zip(results.new, stored, strict=True):
        wanted = piece.kind in objects_for(peer) if piece.only is None else peer.name in piece.only
        if wanted:
            yield report.id
