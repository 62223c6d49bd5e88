"""A glance at the record: whether there is anything for the sweeper, in one statement.

Most of a node's day nothing waits, and asking for each kind of work in turn costs the sweeper's process many times what
one question costs. A glance may say yes where a closer look finds nothing to do yet; it never says no where there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session

from models import clock
from models.tables import (
    AuditEvent,
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
from models.tables.base import Utc


@dataclass(frozen=True)
class Glance:
    """What the record looked like."""

    work: bool
    """Whether something is, or may soon be, to be closed, claimed or asked for."""
    next_quiet: datetime | None
    """When the next study will have been quiet for long enough, if nothing comes for it before."""
    newest_event: int
    """The audit event with the highest id; 0 without any."""


def glance(record: Connection | Session) -> Glance:
    """Look at the record as it is now."""
    work, next_quiet, newest_event = record.execute(_STATEMENT, {"now": clock.now()}).one()
    return Glance(bool(work), next_quiet, newest_event or 0)


_now = bindparam("now", type_=Utc())
# Made once: it is asked several times a second. Leases are left out, since a lease that has run out is work too.
_STATEMENT = select(
    or_(
        exists().where(and_(Study.state == StudyState.RECEIVING, Study.quiet_until <= _now)),
        exists().where(Study.state == StudyState.COMPLETE),
        exists().where(Image.state == ImageState.RECEIVED),
        exists().where(Resend.state == ResendState.WAITING),
        exists().where(and_(Delivery.state == DeliveryState.DUE, Delivery.due_at <= _now)),
        exists().where(and_(Delivery.state == DeliveryState.DELIVERED, Delivery.commit_due_at <= _now)),
        exists().where(CommitmentRequest.state == CommitmentRequestState.DUE),
    ),
    select(func.min(Study.quiet_until))
    .where(and_(Study.state == StudyState.RECEIVING, Study.quiet_until > _now))
    .scalar_subquery(),
    select(func.max(AuditEvent.id)).scalar_subquery(),
)
