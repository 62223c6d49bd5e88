"""Lanes in the database: who sends to a destination, and which deliveries go there next.

One courier at a time sends to a destination: it holds the destination's row and a batch of its deliveries by short
leases with fencing tokens, which it renews while it gets on. A try counts from the moment it begins, in the
transaction that ends the one before, so that a courier that dies has used up one try of one delivery. All writes of a
lane are here; who sends, and over what, is the courier's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.outcome import NOT_ACCEPTED, Outcome, Result
from models import audit, clock, logs
from models.database import Database, database_now
from models.settings import Settings
from models.tables import Delivery, DeliveryAttempt, DeliveryState, DestinationState
from worker.claims import Claim, LeaseLost, Work, claimable, holder, release, still_held, time_limit
from worker.leases import LEASE, Lease, renew
from worker.retries import AWAY, BROKEN_IN_A_ROW, ENDED_WITHOUT_A_WORD, Next, RestPolicy, RetryPolicy

SUPERSEDED = "superseded"
STOPPED = "stopped"
NOT_IN_SETTINGS = Outcome(Result.REFUSED, "destination_not_in_settings")
log = logs.get("deliver")


@dataclass
class Lane:
    """A destination that is held, the delivery that is being tried (`current`) and those that come next."""

    row_id: int
    name: str
    token: int
    failures: int
    """Associations that came to nothing since its last answer."""
    broken: int = 0
    """Associations of this lane that broke without one answer, in a row."""
    batch: int = 0
    """Grows with each batch: each goes over an association of its own."""
    current: Claim | None = None
    began: datetime = field(default_factory=clock.now)
    rest: list[Claim] = field(default_factory=list)
    reached: bool = False
    answered: bool = False
    """Whether the association of this batch was made, and whether it has brought an answer."""


def ensure(session: Session, names: Iterable[str]) -> None:
    """Give each of these destinations its row."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    # Only where it is missing: ON CONFLICT would wait for the courier that holds the row, who may wait for us.
    for name in set(names).difference(session.scalars(select(DestinationState.name))):
        values = {"name": name, "failures": 0, "due_at": clock.now(), "lease_token": 0}
        session.execute(insert(DestinationState).values(**values).on_conflict_do_nothing())


def waiting(session: Session) -> list[str]:
    """Return the destinations with deliveries that are due, that nobody sends to, and that are not left in peace."""
    now = database_now(session)
    due = claimable(Work.DELIVER, now).where(Delivery.destination == DestinationState.name)
    free = select(DestinationState.name).where(_is_free(now), due.correlate(DestinationState).exists())
    return list(session.scalars(free.order_by(DestinationState.name)))


class Lanes:
    """Takes lanes, and writes down what happens in them."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        delivery = settings.delivery
        self._retries = RetryPolicy(first=delivery.first_wait, longest=delivery.longest_wait, most=delivery.max_tries)
        self._rests = RestPolicy(delivery.first_wait, delivery.longest_wait, delivery.longest_rest)
        self._limit = time_limit(Work.DELIVER, settings)
        self._actor = audit.part_actor("courier")

    def take(self, name: str) -> Lane | None:
        """Hold a destination and begin the most urgent of its deliveries; None where there is nothing to do."""
        with self._database.write() as session:
            now = database_now(session)
            row = session.scalars(
                select(DestinationState)
                .where(DestinationState.name == name, _is_free(now))
                .with_for_update(skip_locked=True)
            ).first()
            if row is None:
                return None
            row.lease_token, row.lease_until, row.lease_holder = row.lease_token + 1, now + LEASE, holder()
            lane = Lane(row.id, name, row.lease_token, row.failures)
            if not self._refill(session, lane):
                self._let_go(session, lane)
        return None if lane.current is None else lane

    def renew(self, lane: Lane) -> bool:
        """Prolong the leases of a lane. Return False where it is no longer held."""
        # In the order in which a courier locks rows: the destination first.
        place = Lease(DestinationState, lane.row_id, lane.token, self._limit)
        held = [claim.lease for claim in (lane.current, *lane.rest) if claim is not None]
        return place in renew(self._database, place, *held)

    def record(self, lane: Lane, outcome: Outcome, *, associated: bool = True) -> None:
        """Keep what became of the current delivery, and begin the next one. Raises LeaseLost.

        Where the batch is done or its association is over, the next batch is taken; where nothing is due any more or
        the destination is to be left in peace, the lane is let go: it has no current delivery then.
        """
        answered = outcome.is_answer or outcome.reason == NOT_ACCEPTED
        over = associated and outcome.result is Result.FAILED and not answered
        with self._database.write() as session:
            kept = self._note(session, lane, associated=associated, answered=answered)
            row, held = self._current(session, lane)
            if answered and lane.failures:
                held = replace(held, tries=1)
                row.tries = 1
                self._forgive(session, lane, row)
            self._follow(session, row, held, outcome, lane.began)
            lane.answered, lane.reached = lane.answered or answered, True
            lane.broken = lane.broken + 1 if over and not lane.answered else 0
            lane.failures = 0 if answered else lane.failures
            if over or not kept:
                self._put_back(session, lane)
            if not kept:
                log.warning("lease lost", destination=lane.name)
                lane.current = None
            elif lane.broken >= BROKEN_IN_A_ROW:
                self._rest(session, lane, outcome)
            elif not self._begin_next(session, lane) and not self._refill(session, lane):
                self._let_go(session, lane)

    def away(self, lane: Lane, outcome: Outcome) -> None:
        """Keep that no association was made for this batch, and let the destination rest. Raises LeaseLost."""
        counts = self._rests.counts(lane.failures + 1)
        with self._database.write() as session:
            self._note(session, lane, associated=False, answered=False)
            for held in sorted([self._held(lane), *lane.rest], key=lambda held: held.row_id):
                row = still_held(session, held, Delivery)
                if counts:
                    row.tries += held is not lane.current
                    self._keep(session, row, outcome, lane.began)
                else:
                    row.tries -= held is lane.current
                release(row)
                if row.superseded_at is not None:
                    row.state, row.reason = DeliveryState.CANCELLED, SUPERSEDED
                elif counts and self._retries.next_wait(row.tries) is None:
                    row.state = DeliveryState.NEEDS_ATTENTION
                    log.error("delivery needs attention", delivery=row.id, tries=row.tries, outcome=outcome.reason)
            lane.rest.clear()
            self._rest(session, lane, outcome)

    def abandon(self, lane: Lane, *, cut: bool) -> None:
        """Let go of everything because this courier ends; a try that it cut is kept, and does not count."""
        with self._database.write() as session:
            self._note(session, lane, associated=False, answered=False)
            row, _ = self._current(session, lane)
            if cut:
                self._keep(session, row, Outcome(Result.FAILED, STOPPED), lane.began)
            row.tries -= 1
            release(row)
            self._put_back(session, lane)
            self._let_go(session, lane)

    # --- what follows a try -------------------------------------------------------------------------------------------

    def _follow(self, session: Session, row: Delivery, held: Claim, outcome: Outcome, began: datetime) -> None:
        self._keep(session, row, outcome, began)
        follows, wait = self._retries.after_try(outcome, held.tries)
        release(row, wait=wait)
        if follows is Next.DELIVERED:
            row.state, row.delivered_at = DeliveryState.DELIVERED, clock.now()
            peer = self._settings.peer(row.destination)
            if peer is not None and peer.commitment:
                row.commit_due_at, row.commit_tries = clock.now(), 0
        elif row.superseded_at is not None:
            row.state, row.reason = DeliveryState.CANCELLED, SUPERSEDED
        elif follows is Next.NEVER:
            row.state = DeliveryState.NEEDS_ATTENTION
        level = log.info if follows is Next.DELIVERED else log.warning
        level(
            "delivery tried",
            delivery=row.id,
            destination=row.destination,
            tries=held.tries,
            outcome=outcome.reason,
            status=outcome.status,
            state=row.state.value,
        )

    def _keep(self, session: Session, row: Delivery, outcome: Outcome, began: datetime) -> None:
        """Put a try on record."""
        row.status, row.reason = outcome.status, outcome.reason[:64]
        session.add(
            DeliveryAttempt(
                delivery_id=row.id,
                started_at=began,
                ended_at=clock.now(),
                outcome=outcome.reason[:64],
                status=outcome.status,
            )
        )
        audit.record(
            session,
            actor=self._actor,
            action="report.delivery",
            subject="delivery",
            subject_id=row.id,
            report=row.report_id,
            outcome=outcome.reason,
            status=outcome.status,
        )

    def _forgive(self, session: Session, lane: Lane, row: Delivery) -> None:
        """A destination that was away answers again: what only waited for it is due, with all its tries before it."""
        only_waited = (
            update(Delivery)
            .where(Delivery.destination == lane.name, Delivery.id != row.id, Delivery.reason.in_(AWAY))
            .execution_options(synchronize_session=False)
        )
        session.flush()
        session.execute(only_waited.where(Delivery.state == DeliveryState.DUE).values(tries=0))
        again = session.scalars(
            only_waited.where(Delivery.state == DeliveryState.NEEDS_ATTENTION)
            .values(state=DeliveryState.DUE, tries=0, due_at=clock.now())
            .returning(Delivery.id)
        ).all()
        session.expire_all()
        log.info("destination answers again", destination=lane.name, failures=lane.failures, due_again=len(again))
        for delivery_id in again:
            audit.record(
                session,
                actor=self._actor,
                action="report.delivery.due_again",
                subject="delivery",
                subject_id=delivery_id,
            )

    # --- the destination ----------------------------------------------------------------------------------------------

    def _note(self, session: Session, lane: Lane, *, associated: bool, answered: bool) -> bool:
        """Prolong the lease of the destination, and note whether it was reached. Return False where it is lost.

        First in every transaction of a lane: they all lock the destination before its deliveries.
        """
        values: dict[str, datetime | int | str | None] = {"lease_until": database_now(session) + LEASE}
        if associated and not lane.reached:
            values["reached_at"] = clock.now()
        if answered and not lane.answered:
            values |= {"failures": 0, "reason": None}
        return self._update(session, lane, **values)

    def _rest(self, session: Session, lane: Lane, outcome: Outcome) -> None:
        """Leave the destination in peace for a while."""
        failures = lane.failures + 1
        wait = self._rests.after_association(outcome, failures)
        self._let_go(session, lane, failures=failures, due_at=clock.now() + wait, reason=outcome.reason[:64])
        log.warning(
            "destination away",
            destination=lane.name,
            failures=failures,
            outcome=outcome.reason,
            why=outcome.detail or None,
            wait=round(wait.total_seconds(), 1),
        )

    def _let_go(self, session: Session, lane: Lane, **values: datetime | int | str) -> None:
        lane.current = None
        if not self._update(session, lane, lease_until=None, lease_holder=None, **values):
            log.warning("lease lost", destination=lane.name)

    @staticmethod
    def _update(session: Session, lane: Lane, **values: datetime | int | str | None) -> bool:
        """Change the destination's row if it is still held."""
        changed = session.scalars(
            update(DestinationState)
            .where(
                DestinationState.id == lane.row_id,
                DestinationState.lease_token == lane.token,
                DestinationState.lease_until.is_not(None),
            )
            .values(**values)
            .returning(DestinationState.id)
            .execution_options(synchronize_session=False)
        ).first()
        return changed is not None

    # --- the batch ----------------------------------------------------------------------------------------------------

    def _refill(self, session: Session, lane: Lane) -> bool:
        """Claim the next batch and begin its first delivery. Return whether there was one."""
        while True:
            session.flush()
            now = database_now(session)
            ids = session.scalars(
                claimable(Work.DELIVER, now)
                .where(Delivery.destination == lane.name)
                .order_by(Delivery.rank_at, Delivery.id)
                .limit(self._settings.delivery.batch)
                .with_for_update(skip_locked=True, of=Delivery)
            ).all()
            if not ids:
                return False
            claimed = session.execute(
                update(Delivery)
                .where(Delivery.id.in_(ids))
                .values(lease_token=Delivery.lease_token + 1, lease_until=now + LEASE, lease_holder=holder())
                .returning(Delivery.id, Delivery.lease_token, Delivery.tries)
                .execution_options(synchronize_session=False)
            ).all()
            session.expire_all()
            claims = {
                row_id: Claim(Work.DELIVER, row_id, token, tries, self._limit) for row_id, token, tries in claimed
            }
            lane.rest = [claims[row_id] for row_id in ids]
            lane.batch += 1
            lane.reached = lane.answered = False
            if self._begin_next(session, lane):
                return True

    def _begin_next(self, session: Session, lane: Lane) -> bool:
        """Begin the next delivery of the batch that is still to be sent. Return whether there was one."""
        lane.current = None
        while lane.rest:
            held = lane.rest.pop(0)
            try:
                row = still_held(session, held, Delivery)
            except LeaseLost:
                log.warning("lease lost", delivery=held.row_id)
                continue
            lane.began = clock.now()
            if row.superseded_at is not None:
                self._keep(session, row, Outcome(Result.FAILED, SUPERSEDED), lane.began)
                row.state = DeliveryState.CANCELLED
                release(row)
            elif self._retries.used_up(row.tries + 1):
                self._keep(session, row, Outcome(Result.REFUSED, ENDED_WITHOUT_A_WORD), lane.began)
                row.state = DeliveryState.NEEDS_ATTENTION
                release(row)
            else:
                row.tries += 1
                lane.current = replace(held, tries=row.tries)
                return True
        return False

    def _put_back(self, session: Session, lane: Lane) -> None:
        """Give the rest of the batch back untried."""
        for held in lane.rest:
            release(still_held(session, held, Delivery))
        lane.rest.clear()

    def _current(self, session: Session, lane: Lane) -> tuple[Delivery, Claim]:
        held = self._held(lane)
        return still_held(session, held, Delivery), held

    @staticmethod
    def _held(lane: Lane) -> Claim:
        if lane.current is None:
            raise LeaseLost(f"destination {lane.row_id}: nothing is being tried")
        return lane.current


def _is_free(now: datetime) -> ColumnElement[bool]:
    """Whether nobody sends to a destination, and it is time to; `now` by the database."""
    nobody = or_(DestinationState.lease_until.is_(None), DestinationState.lease_until < now)
    return nobody & (DestinationState.due_at <= clock.now())
