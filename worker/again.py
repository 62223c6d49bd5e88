"""What a person asks for again: reports to be sent, reports to be committed, senders to be answered.

========================================  ==========================================================================
what came to nothing                      what is done again
========================================  ==========================================================================
it was not delivered, or waits            it is sent, at once and with all its tries before it
delivered, but not committed              the destination is asked to commit it, under a new Transaction UID
… since the destination does not have it  it is sent, and then the destination is asked
a sender was not told what we committed   it is told, under the Transaction UID with which it asked
========================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from models import audit, clock
from models.tables import (
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    DestinationState,
)
from worker.commit import NOT_THERE, REASONS_BEGIN


def ask_again(
    session: Session, *, actor: str, ids: Iterable[int] = (), destination: str | None = None
) -> dict[int, DeliveryState]:
    """Make deliveries due now, with all their tries before them; return what they are, by their ids.

    Those of `ids` that are due or need attention; without `ids`, those that need attention or wait for their next try,
    at `destination` or at all. Their destinations are asked at once, however long they were to rest. What was
    superseded meanwhile is cancelled by the courier.
    """
    now = clock.now()
    needing = Delivery.state == DeliveryState.NEEDS_ATTENTION
    either = Delivery.state.in_((DeliveryState.NEEDS_ATTENTION, DeliveryState.DUE))
    wanted = and_(Delivery.id.in_(list(ids)), either) if ids else and_(either, or_(needing, Delivery.due_at > now))
    if destination is not None:
        wanted = and_(wanted, Delivery.destination == destination)
    # In the order in which a courier locks rows: the destination first.
    resting = update(DestinationState).where(DestinationState.due_at > now).values(due_at=now)
    if ids:
        names = session.scalars(select(Delivery.destination).where(wanted).distinct()).all()
        resting = resting.where(DestinationState.name.in_(names))
    elif destination is not None:
        resting = resting.where(DestinationState.name == destination)
    session.execute(resting.execution_options(synchronize_session=False))
    found = session.scalars(select(Delivery).where(wanted).order_by(Delivery.id).with_for_update()).all()
    for row in found:
        _ask_again(session, row, actor, now)
    return {row.id: row.state for row in found}


def _ask_again(session: Session, row: Delivery, actor: str, now: datetime) -> None:
    reason = row.reason or ""
    only_commit = (
        row.state is DeliveryState.NEEDS_ATTENTION and reason.startswith(REASONS_BEGIN) and reason != NOT_THERE
    )
    if only_commit:
        row.state, row.commit_due_at, row.commit_tries = DeliveryState.DELIVERED, now, 0
    else:
        row.state, row.due_at, row.tries = DeliveryState.DUE, now, 0
    audit.record(
        session,
        actor=actor,
        action="report.commitment.retry" if only_commit else "report.delivery.retry",
        subject="delivery",
        subject_id=row.id,
        reason=row.reason,
    )


def answer_again(session: Session, *, actor: str, ids: Iterable[int] = (), sender: str | None = None) -> list[int]:
    """Make senders' commitment requests due to be answered now, with all tries before them; return their ids.

    Which ones: as for `ask_again`. An answer that the sender took is not given a second time unless it asks again.
    """
    now = clock.now()
    needing = CommitmentRequest.state == CommitmentRequestState.NEEDS_ATTENTION
    due = CommitmentRequest.state == CommitmentRequestState.DUE
    named = and_(CommitmentRequest.id.in_(list(ids)), or_(needing, due))
    wanted = named if ids else or_(needing, due & (CommitmentRequest.due_at > now))
    if sender is not None:
        wanted = and_(wanted, CommitmentRequest.peer == sender)
    found = session.scalars(
        select(CommitmentRequest).where(wanted).order_by(CommitmentRequest.id).with_for_update()
    ).all()
    for row in found:
        row.state, row.due_at, row.tries = CommitmentRequestState.DUE, now, 0
        audit.record(
            session,
            actor=actor,
            action="commitment.answer.retry",
            subject="commitment_request",
            subject_id=row.id,
            reason=row.reason,
        )
    return [row.id for row in found]
