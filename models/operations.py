"""How the node stands: what waits and for how long, how much it does, what failed and why, and who was heard of.

Everything here is asked again and again by open pages, so that every question has a bound: what is counted is counted
up to a limit, and found by an index or by the newest rows alone. Rows, codes and AE titles; no patient data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import clock
from models.database import database_now, unindexed
from models.tables import (
    AuditEvent,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    DestinationState,
    Image,
    ImageState,
    Quarantine,
    Resend,
    ResendState,
    Study,
    StudyState,
)

MOST_COUNTED = 10_000
"""Rows of one stage that are counted; of more it is said that there are so many, or more."""
AT_THE_HEAD = 1000
"""Rows at the head of a queue among which the oldest and those that are held are looked for."""
MOST_FAILURES = 20_000
LONGEST_HEAD_START = timedelta(days=1)
"""Of urgent work, that the settings allow."""
NEWEST_ATTEMPTS = 500
NEWEST_QUARANTINED = 5000
HOURS = 24
ARRIVED = ("stored", "already_there", "stored_with_remark", "acknowledged")
"""Outcomes of a try with which a result arrived (`dicom_node.outcome`, and that of HL7)."""
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Stage:
    """What is unfinished of one kind of work."""

    name: str
    """receive, analyse, examine, report, deliver, committed or commit."""
    waiting: int
    """Counted up to `MOST_COUNTED`."""
    oldest_at: datetime | None
    """When the oldest came; of more than a thousand, the oldest of those that are next."""
    in_hand: int
    """Held by a lease now, of those that are next."""


@dataclass(frozen=True)
class Holder:
    """A process that holds work by a lease that has not run out: it lives."""

    name: str
    """Host and process id."""
    rows: int


@dataclass(frozen=True)
class Hour:
    """What was done in one hour."""

    began_at: datetime
    received: int
    """Instances that were new."""
    read: int
    """Images with a prediction."""
    delivered: int
    """Objects that arrived at a destination."""


@dataclass(frozen=True)
class Failures:
    """How often something went wrong for one reason."""

    what: str
    """image, quarantine, study, delivery or request."""
    reason: str
    count: int
    still_open: bool
    """Whether these wait for a person."""


@dataclass(frozen=True)
class Contact:
    """When a destination was last tried, and when it last took something."""

    destination: str
    reached_at: datetime | None
    """It accepted an association or a connection."""
    delivered_at: datetime | None
    tried_at: datetime | None
    """Among the newest tries of all."""
    failures: int
    """Associations that failed since the last that did not."""
    reason: str | None
    due_at: datetime | None
    """It is left in peace until then."""


# --- what waits -------------------------------------------------------------------------------------------------------


def queue(session: Session) -> list[Stage]:
    """Return every stage, in the order of a study's way."""
    by_database = database_now(session)
    return [
        _being_received(session),
        _stage(session, by_database, "analyse", Image, Image.state == ImageState.RECEIVED, Image.received_at),
        _stage(session, by_database, "examine", Resend, Resend.state == ResendState.WAITING, Resend.received_at),
        _to_report(session, by_database),
        _stage(session, by_database, "deliver", Delivery, Delivery.state == DeliveryState.DUE, Delivery.created_at),
        _to_be_committed(session),
        _stage(
            session,
            by_database,
            "commit",
            CommitmentRequest,
            CommitmentRequest.state == CommitmentRequestState.DUE,
            CommitmentRequest.received_at,
        ),
    ]


def holders(session: Session) -> list[Holder]:
    """Return who holds work now, among what is next; whoever has nothing to do holds nothing."""
    by_database = database_now(session)
    held: Counter[str] = Counter()
    for head in (
        _head(Image, Image.state == ImageState.RECEIVED),
        _head(Resend, Resend.state == ResendState.WAITING),
        _head(Study, and_(Study.state == StudyState.COMPLETE, Study.held_up.is_(False))),
        _head(Delivery, Delivery.state == DeliveryState.DUE),
        _head(CommitmentRequest, CommitmentRequest.state == CommitmentRequestState.DUE),
        select(DestinationState.lease_holder, DestinationState.lease_until),
    ):
        found = head.subquery()
        alive = select(found.c.lease_holder).where(found.c.lease_until > by_database, found.c.lease_holder.is_not(None))
        held.update(session.scalars(alive))
    return [Holder(name, rows) for name, rows in sorted(held.items())]


_Claimable = type[Image] | type[Resend] | type[Study] | type[Delivery] | type[CommitmentRequest]


def _head(table: _Claimable, waits: ColumnElement[bool], *more: InstrumentedAttribute[Any]) -> Select[Any]:
    """The rows that are next, in the order of the claims, which is that of an index."""
    chosen = select(table.lease_holder, table.lease_until, *more).where(waits)
    return chosen.order_by(table.rank_at, table.id).limit(AT_THE_HEAD)


def _stage(
    session: Session,
    by_database: datetime,
    name: str,
    table: _Claimable,
    waits: ColumnElement[bool],
    came: InstrumentedAttribute[datetime],
) -> Stage:
    head = _head(table, waits, came).subquery()
    oldest = select(func.min(head.c[came.key])).scalar_subquery()
    in_hand = select(func.count()).select_from(head).where(head.c.lease_until > by_database).scalar_subquery()
    # In the order of the claims, of which nothing is seen: so it goes the way of their index.
    waiting = select(table.id).where(waits).order_by(table.rank_at, table.id)
    return Stage(name, _count(session, waiting), *session.execute(select(oldest, in_hand)).one())


def _to_report(session: Session, by_database: datetime) -> Stage:
    """Complete studies: those that can be claimed, and those of which images wait."""
    ready = and_(Study.state == StudyState.COMPLETE, Study.held_up.is_(False))
    held_up = and_(Study.state == StudyState.COMPLETE, Study.held_up.is_(True))
    stages = [
        _stage(session, by_database, "report", Study, waits, Study.completed_at)  # type: ignore[arg-type]
        for waits in (ready, held_up)
    ]
    oldest = min((stage.oldest_at for stage in stages if stage.oldest_at is not None), default=None)
    waiting = min(MOST_COUNTED, sum(stage.waiting for stage in stages))
    return Stage("report", waiting, oldest, sum(stage.in_hand for stage in stages))


def _being_received(session: Session) -> Stage:
    receiving = Study.state == StudyState.RECEIVING
    by_age = select(Study.first_image_at).where(receiving).order_by(Study.first_image_at, Study.id)
    return Stage("receive", _count(session, by_age), session.scalar(by_age.limit(1)), 0)


def _to_be_committed(session: Session) -> Stage:
    """What arrived, and its destination has yet to say that it keeps it."""
    asked = and_(unindexed(Delivery.state) == DeliveryState.DELIVERED, Delivery.commit_due_at.is_not(None))
    found = select(Delivery.delivered_at).where(asked).order_by(Delivery.commit_due_at)
    head = found.limit(AT_THE_HEAD).subquery()
    return Stage("committed", _count(session, found), session.scalar(select(func.min(head.c.delivered_at))), 0)


def _count(session: Session, found: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(found.limit(MOST_COUNTED).subquery())) or 0


# --- what was done ----------------------------------------------------------------------------------------------------


def throughput(session: Session) -> list[Hour]:
    """Return the last 24 hours, the oldest first; the last is the one that runs. From the audit trail's index by time,
    which holds what is counted, but for the outcomes of the tries to deliver."""
    current = clock.now().replace(minute=0, second=0, microsecond=0)
    begins = [current - back * _HOUR for back in reversed(range(HOURS))]
    arrived = AuditEvent.details["outcome"].as_string().in_(ARRIVED)
    counted = [
        session.execute(select(*(_events(action, begin, *more) for begin in begins))).one()
        for action, more in (("image.received", ()), ("image.analysed", ()), ("report.delivery", (arrived,)))
    ]
    return [Hour(begin, *(of_kind[place] for of_kind in counted)) for place, begin in enumerate(begins)]


def _events(action: str, begin: datetime, *more: ColumnElement[bool]) -> ColumnElement[int]:
    chosen = and_(AuditEvent.action == action, AuditEvent.at >= begin, AuditEvent.at < begin + _HOUR, *more)
    return select(func.count()).where(chosen).scalar_subquery()


# --- what failed ------------------------------------------------------------------------------------------------------


def failures(session: Session, since: datetime) -> list[Failures]:
    """Return what went wrong with what came since then, by reason, the most frequent of each kind first."""
    # Of most rows the index holds the rank, and none was ranked earlier than this where it came since then.
    ranked = since - LONGEST_HEAD_START
    found = [
        *_by_reason(session, "image", Image, Image.state == ImageState.NOT_ANALYSED, Image.received_at, since, ranked),
        *_by_reason(session, "image", Image, Image.state == ImageState.FAILED, Image.received_at, since, ranked),
        *_quarantined(session, since),
        *_by_reason(session, "study", Study, Study.state == StudyState.NEEDS_ATTENTION, Study.first_image_at, since),
        *_by_reason(
            session,
            "delivery",
            Delivery,
            Delivery.state == DeliveryState.NEEDS_ATTENTION,
            Delivery.created_at,
            since,
            ranked,
        ),
        *_by_reason(
            session,
            "request",
            CommitmentRequest,
            CommitmentRequest.state == CommitmentRequestState.NEEDS_ATTENTION,
            CommitmentRequest.received_at,
            since,
            ranked,
        ),
    ]
    kinds = list(dict.fromkeys(one.what for one in found))
    return sorted(found, key=lambda one: (kinds.index(one.what), -one.count, one.reason))


def _by_reason(
    session: Session,
    what: str,
    table: type[Image] | type[Study] | type[Delivery] | type[CommitmentRequest],
    failed: ColumnElement[bool],
    came: InstrumentedAttribute[datetime],
    since: datetime,
    ranked: datetime | None = None,
) -> Iterator[Failures]:
    """Count by reason; of very many, the newest. Those found by their rank are looked for from `ranked` on."""
    order, from_here = (came, since) if ranked is None else (table.rank_at, ranked)
    newest = (
        select(table.reason.label("reason"), came.label("came"))
        .where(failed, order >= from_here)
        .order_by(order.desc(), table.id.desc())
        .limit(MOST_FAILURES)
        .subquery()
    )
    counted = select(newest.c.reason, func.count()).where(newest.c.came >= since).group_by(newest.c.reason)
    for reason, count in session.execute(counted):
        yield Failures(what, reason or "unknown", count, table is not Image)


def _quarantined(session: Session, since: datetime) -> Iterator[Failures]:
    newest = (session.scalar(select(func.max(Quarantine.id))) or 0) - NEWEST_QUARANTINED
    for still_open in (True, False):
        is_open = Quarantine.resolved_at.is_(None)
        chosen = (Quarantine.id > newest, Quarantine.received_at >= since, is_open if still_open else ~is_open)
        for reason, count in session.execute(
            select(Quarantine.reason, func.count()).where(*chosen).group_by(Quarantine.reason)
        ):
            yield Failures("quarantine", reason, count, still_open)


# --- who was heard of -------------------------------------------------------------------------------------------------


def contacts(session: Session, destinations: Sequence[str]) -> list[Contact]:
    """Return how it stands with these destinations, in their order."""
    states = {row.name: row for row in session.scalars(select(DestinationState))}
    tried = _tried(session)
    found = []
    for name in destinations:
        state = states.get(name)
        found.append(
            Contact(
                name,
                None if state is None else state.reached_at,
                _delivered_at(session, name),
                tried.get(name),
                0 if state is None else state.failures,
                None if state is None else state.reason,
                None if state is None else state.due_at,
            )
        )
    return found


def _tried(session: Session) -> dict[str, datetime]:
    # Each is looked up: a join may well read all deliveries for them.
    to = select(Delivery.destination).where(Delivery.id == DeliveryAttempt.delivery_id).scalar_subquery()
    newest = select(to, DeliveryAttempt.ended_at).order_by(DeliveryAttempt.id.desc()).limit(NEWEST_ATTEMPTS)
    found: dict[str, datetime] = {}
    for name, at in session.execute(newest):
        found[name] = max(at, found.get(name, at))
    return found


def _delivered_at(session: Session, destination: str) -> datetime | None:
    """When something last arrived, among what was last made of each state."""
    newest = [
        select(Delivery.delivered_at)
        .where(Delivery.destination == destination, Delivery.state == state)
        .order_by(Delivery.rank_at.desc(), Delivery.id.desc())
        .limit(50)
        .subquery()
        for state in (DeliveryState.DELIVERED, DeliveryState.COMMITTED)
    ]
    either = union_all(*(select(some.c.delivered_at) for some in newest)).subquery()
    last: datetime | None = session.scalar(select(func.max(either.c.delivered_at)))
    return last
