"""Claiming work: the most urgent row, held by a lease with a fencing token.

The database is the truth. `claim` takes one row of a kind of work in one statement: on PostgreSQL others skip it
(`FOR UPDATE SKIP LOCKED`), on SQLite they wait their turn (`BEGIN IMMEDIATE`). Each claim gives the row a new token;
`still_held` checks it inside the transaction that writes the result, so that a holder whose lease ran out, and whose
row was claimed again, cannot write. A lease is short; `worker.leases.kept_alive` renews it while the holder lives.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from models import clock
from models.database import Database, database_now, unindexed
from models.settings import Settings
from models.tables import (
    Attempt,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    Image,
    ImageState,
    Resend,
    ResendState,
    Study,
    StudyState,
)
from worker import leases
from worker.leases import Lease

Row = Image | Resend | Study | Delivery | CommitmentRequest
RowType = TypeVar("RowType", Image, Resend, Study, Delivery, CommitmentRequest)


class Work(StrEnum):
    """The kinds of work; also the names of the queues that carry the hints."""

    ANALYSE = "analyse"
    EXAMINE = "examine"
    """Whether an instance that came again has the pixels of the first; done by whoever analyses."""
    REPORT = "report"
    DELIVER = "deliver"
    COMMIT = "commit"
    """Storage commitment both ways. What is claimed is a sender's request; destinations are asked in batches, for
    which `worker.commit` has its own way to take what is due."""


class LeaseLost(Exception):
    """The row was claimed by someone else, or is no longer work."""


@dataclass(frozen=True)
class Claim:
    """A row that this process holds."""

    work: Work
    row_id: int
    token: int
    tries: int
    """How often it was claimed, this time included."""
    limit: timedelta
    """How long the work may take."""

    @property
    def lease(self) -> Lease:
        """What `worker.leases.kept_alive` renews."""
        return Lease(_TABLES[self.work], self.row_id, self.token, self.limit)


def time_limit(work: Work, settings: Settings) -> timedelta:
    """Return how long one piece of work may take before its process is killed."""
    if work in (Work.ANALYSE, Work.EXAMINE):
        return timedelta(seconds=settings.analysis.time_limit)
    if work is Work.REPORT:
        # Every picture has to be decoded and drawn, half a second each.
        pictures = any("heatmap" in peer.sends for peer in settings.destinations)
        return timedelta(minutes=5 if pictures else 1)
    if work is Work.COMMIT:
        return timedelta(seconds=4 * settings.delivery.timeout + 30)
    # Connecting, associating, sending and releasing wait for an answer each.
    return timedelta(seconds=4 * settings.delivery.timeout + 10)


def claim(
    database: Database, work: Work, *, limit: timedelta, among: ColumnElement[bool] | None = None
) -> Claim | None:
    """Take the most urgent row that is due, for work that takes at most `limit`; None where there is none.

    `among` is a condition that the row has to meet besides.
    Hold it with `worker.leases.kept_alive` while the work takes longer than a moment. Reports to deliver are claimed in
    batches, by `worker.lanes`.
    """
    if work is Work.DELIVER:
        raise ValueError("one at a time is no way to claim what is to be delivered")
    table = _TABLES[work]
    with database.write() as session:
        now = database_now(session)
        chosen = claimable(work, now).order_by(table.rank_at, table.id).limit(1).correlate(None)
        if among is not None:
            chosen = chosen.where(among)
        claimed = session.execute(
            update(table)
            .where(table.id == chosen.with_for_update(skip_locked=True, of=table).scalar_subquery())
            .values(
                lease_token=table.lease_token + 1,
                lease_until=now + leases.LEASE,
                lease_holder=holder(),
                tries=table.tries + 1,
            )
            .returning(table.id, table.lease_token, table.tries)
            .execution_options(synchronize_session=False)
        ).first()
    return None if claimed is None else Claim(work, claimed[0], claimed[1], claimed[2], limit)


def count_claimable(session: Session, work: Work, *, at_most: int) -> int:
    """Return how many rows could be claimed now, counted up to `at_most`."""
    table = _TABLES[work]
    # In the order of the claims, of which nothing is seen: so it goes the way of their index.
    free = claimable(work, database_now(session)).order_by(table.rank_at, table.id).limit(at_most)
    count = session.scalars(select(func.count()).select_from(free.subquery())).one()
    if work is Work.COMMIT:
        # One hint for each destination that has something to be asked.
        asked = select(Delivery.destination).where(is_to_be_asked()).distinct()
        count += session.scalars(select(func.count()).select_from(asked.subquery())).one()
    return min(count, at_most)


def is_to_be_asked() -> ColumnElement[bool]:
    """Return the condition of deliveries that their destination is due to be asked about (storage commitment)."""
    return and_(unindexed(Delivery.state) == DeliveryState.DELIVERED, Delivery.commit_due_at <= clock.now())


def waits_since(session: Session, work: Work, moment: datetime) -> bool:
    """Return whether something that could be claimed now could have been since before `moment`."""
    table = _TABLES[work]
    # No row is due before its rank; so what came since is not looked at.
    free = claimable(work, database_now(session)).where(table.due_at < moment, table.rank_at < moment)
    return session.scalars(free.order_by(table.rank_at, table.id).limit(1)).first() is not None


def still_held(session: Session, claim: Claim, table: type[RowType]) -> RowType:
    """Return the claimed row, locked, inside the transaction that writes its result. Raises LeaseLost."""
    row = session.scalars(
        select(table)
        .where(table.id == claim.row_id, table.lease_token == claim.token, _is_work(claim.work))
        .with_for_update()
    ).first()
    if row is None:
        raise LeaseLost(f"{claim.work} {claim.row_id}")
    return row


def release(row: Row, *, wait: timedelta = timedelta(0)) -> None:
    """Give a row back, to be claimed again after `wait`."""
    row.lease_until = None
    row.lease_holder = None
    row.due_at = clock.now() + wait


def give_back(session: Session, claim: Claim, *, wait: timedelta = timedelta(0)) -> None:
    """Give a row back without counting the try, to be claimed again after `wait`; nothing where it is lost.

    For trouble that is not the row's fault.
    """
    try:
        row = still_held(session, claim, _TABLES[claim.work])  # type: ignore[type-var]
    except LeaseLost:
        return
    row.tries = max(0, row.tries - 1)
    release(row, wait=wait)


def holder() -> str:
    """Return who this process is, for the record."""
    return f"{socket.gethostname()}:{os.getpid()}"


def failed_attempt(claim: Claim, error: str) -> Attempt:
    """Return the record of a try at an image or a study that came to nothing; `error` without any text of a file."""
    return Attempt(
        image_id=claim.row_id if claim.work is Work.ANALYSE else None,
        study_id=claim.row_id if claim.work is Work.REPORT else None,
        lease_token=claim.token,
        holder=holder(),
        ended_at=clock.now(),
        error=error,
    )


def claimable(work: Work, now: datetime) -> Select[int]:
    """Return the query of the rows that are due and that nobody holds; `now` by the database."""
    table = _TABLES[work]
    free = or_(table.lease_until.is_(None), table.lease_until < now)
    return select(table.id).where(_is_work(work), table.due_at <= clock.now(), free, *_CONDITIONS[work])


_TABLES: dict[Work, type[Image] | type[Resend] | type[Study] | type[Delivery] | type[CommitmentRequest]] = {
    Work.ANALYSE: Image,
    Work.EXAMINE: Resend,
    Work.REPORT: Study,
    Work.DELIVER: Delivery,
    Work.COMMIT: CommitmentRequest,
}


def _is_work(work: Work) -> ColumnElement[bool]:
    if work is Work.ANALYSE:
        return Image.state == ImageState.RECEIVED
    if work is Work.EXAMINE:
        return Resend.state == ResendState.WAITING
    if work is Work.REPORT:
        return Study.state == StudyState.COMPLETE
    if work is Work.COMMIT:
        return CommitmentRequest.state == CommitmentRequestState.DUE
    return Delivery.state == DeliveryState.DUE


# A report waits for the last of its images, and for what came again and may change it; at one
# destination a report waits for its predecessor.
_earlier = aliased(Delivery)
_CONDITIONS: dict[Work, list[ColumnElement[bool]]] = {
    Work.ANALYSE: [],
    Work.COMMIT: [],
    Work.EXAMINE: [],
    Work.REPORT: [
        Study.held_up == false(),
        ~exists().where(and_(Image.study_id == Study.id, Image.state == ImageState.RECEIVED)).correlate(Study),
        ~exists().where(and_(Resend.study_id == Study.id, Resend.state == ResendState.WAITING)).correlate(Study),
    ],
    Work.DELIVER: [
        ~exists()
        .where(
            and_(
                _earlier.study_id == Delivery.study_id,
                _earlier.destination == Delivery.destination,
                _earlier.state == DeliveryState.DUE,
                _earlier.id < Delivery.id,
            )
        )
        .correlate(Delivery)
    ],
}
