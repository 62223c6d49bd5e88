"""Deliver a report: send its stored bytes, unchanged, to one destination, and keep what became of each try."""

from __future__ import annotations

import contextlib
import tempfile
import time
from datetime import datetime
from pathlib import Path

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from dicom_node.sender import Destination, Outcome, Result, send
from models import audit, clock, logs
from models.database import Database
from models.settings import Peer, Settings
from models.tables import Delivery, DeliveryAttempt, DeliveryState, Report
from worker.claims import Claim, LeaseLost, Work, claim, release, still_held, time_limit
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy

SUPERSEDED = "superseded"
STALE_AFTER_SECONDS = 3600
log = logs.get("deliver")


class Courier:
    """Delivers one report at a time."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._limit = time_limit(Work.DELIVER, settings)
        delivery = settings.delivery
        self._retries = RetryPolicy(first=delivery.first_wait, longest=delivery.longest_wait, most=delivery.max_tries)
        self._actor = audit.part_actor("courier")
        self._outgoing = _private_folder(settings.data_dir / "run" / "outgoing")

    def deliver_next(self) -> bool:
        """Claim the most urgent delivery and try it once. Return whether there was one."""
        held = claim(self._database, Work.DELIVER, limit=self._limit)
        if held is None:
            return False
        started = clock.now()
        try:
            outcome = self._try(held)
        except Exception as error:
            log.error("delivery failed", delivery=held.row_id, exc_info=error)
            outcome = Outcome(Result.FAILED, type(error).__name__)
        try:
            self._record(held, outcome, started)
        except LeaseLost:
            log.warning("lease lost", delivery=held.row_id)
        return True

    def _try(self, held: Claim) -> Outcome:
        if self._retries.used_up(held.tries):
            return Outcome(Result.REFUSED, ENDED_WITHOUT_A_WORD)
        with self._database.read() as session:
            delivery = session.get_one(Delivery, held.row_id)
            if _is_superseded(session, delivery):
                return Outcome(Result.FAILED, SUPERSEDED)
            content = session.scalars(select(Report.content).where(Report.id == delivery.report_id)).one()
            peer = self._settings.peer(delivery.destination)
        destination = _address(peer, self._settings)
        if destination is None:
            return Outcome(Result.REFUSED, "destination_not_in_settings")
        with tempfile.NamedTemporaryFile(dir=self._outgoing) as file:
            file.write(content)
            file.flush()
            sent = send(
                destination,
                [Path(file.name)],
                calling_ae_title=self._settings.ae_title,
                timeout=self._settings.delivery.timeout,
            )
            return next(outcome for _, outcome in sent)

    def _record(self, held: Claim, outcome: Outcome, started: datetime) -> None:
        with self._database.write() as session:
            delivery = still_held(session, held, Delivery)
            session.add(
                DeliveryAttempt(
                    delivery_id=delivery.id,
                    started_at=started,
                    ended_at=clock.now(),
                    outcome=outcome.reason[:64],
                    status=outcome.status,
                )
            )
            delivery.status, delivery.reason = outcome.status, outcome.reason[:64]
            wait = self._retries.next_wait(held.tries)
            if outcome.result is Result.DELIVERED:
                delivery.state, delivery.delivered_at = DeliveryState.DELIVERED, clock.now()
                release(delivery)
            elif _is_superseded(session, delivery):
                delivery.state, delivery.reason = DeliveryState.CANCELLED, SUPERSEDED
                release(delivery)
            elif outcome.result is Result.REFUSED or wait is None:
                delivery.state = DeliveryState.NEEDS_ATTENTION
                release(delivery)
            else:
                release(delivery, wait=wait)
            state = delivery.state
            audit.record(
                session,
                actor=self._actor,
                action="report.delivery",
                subject="delivery",
                subject_id=delivery.id,
                report=delivery.report_id,
                outcome=outcome.reason,
                status=outcome.status,
            )
        level = log.info if state is DeliveryState.DELIVERED else log.warning
        level("delivery tried", delivery=held.row_id, tries=held.tries, outcome=outcome.reason, state=state.value)


def _is_superseded(session: Session, delivery: Delivery) -> bool:
    return bool(session.scalar(select(exists().where(Report.supersedes_id == delivery.report_id))))


def _private_folder(folder: Path) -> Path:
    """Make the folder where reports lie while they are sent, and remove what a killed process left there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its sender was quicker
            if time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS:
                path.unlink()
    return folder


def _address(peer: Peer | None, settings: Settings) -> Destination | None:
    return None if peer is None else Destination.of(peer, settings)
