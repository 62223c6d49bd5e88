"""Audit events: recorded in the same transaction as what they speak of, chained by one sequencer afterwards.

Writers do not queue for each other: they only insert. The sweeper calls `chain`, which gives each event its place
and a hash that covers the event and the hash before it, so that a changed or missing event is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from datetime import timedelta
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from models import clock
from models.tables import AuditChain, AuditEvent

GENESIS = "0" * 64
# An event may be committed after events with higher ids were chained: each look goes this far back for such. The older
# ones are looked at now and then, so many at a time: how long a look takes does not grow with the trail.
LOOK_BACK = 1000
LOOK_AT = 5000
MOST_AT_ONCE = 1000
VIEWED = "study.viewed"
VIEW_AGAIN_AFTER = timedelta(minutes=10)


def event(
    *, actor: str, action: str, subject: str, subject_id: int | None, **details: str | int | None
) -> dict[str, Any]:
    """Return the columns of an event that happens now. `details` are row ids and digests, never patient data."""
    return {
        "at": clock.now(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "subject_id": subject_id,
        "details": details,
    }


def record(
    session: Session, *, actor: str, action: str, subject: str, subject_id: int | None, **details: str | int | None
) -> None:
    """Add an event to the session's transaction: see `event`."""
    session.add(AuditEvent(**event(actor=actor, action=action, subject=subject, subject_id=subject_id, **details)))


def viewed(session: Session, *, actor: str, study_id: int, where: str, **details: str | int | None) -> bool:
    """Put on record that a person sees whose study this is; return whether it was not a moment ago.

    A page that is drawn again and again is one view: of the same person, study and place within `VIEW_AGAIN_AFTER`.
    Call it in a transaction that is committed before the patient's data are shown. `where` names the page or command.
    """
    before = session.execute(
        select(AuditEvent.actor, AuditEvent.details)
        .where(AuditEvent.subject == "study", AuditEvent.subject_id == study_id)
        .where(AuditEvent.action == VIEWED, AuditEvent.at > clock.now() - VIEW_AGAIN_AFTER)
    )
    details = {"where": where, **details}
    if any((row.actor, row.details) == (actor, details) for row in before):
        return False
    record(session, actor=actor, action=VIEWED, subject="study", subject_id=study_id, **details)
    return True


def part_actor(part: str) -> str:
    """Return the actor's name of a part of this node: part, host and process id."""
    return f"{part}@{socket.gethostname()}:{os.getpid()}"


def unchained(session: Session, *, limit: int, after: int | None = None) -> list[AuditEvent]:
    """Return the oldest events that have no place in the chain yet: of the newest, or of `LOOK_AT` ids `after` one."""
    first = (session.scalar(select(func.max(AuditChain.event_id))) or 0) - LOOK_BACK if after is None else after
    # The bound of the chain follows from that of the events, but no planner sees it.
    placed = exists().where(AuditChain.event_id == AuditEvent.id, AuditChain.event_id > first)
    waiting = select(AuditEvent).where(AuditEvent.id > first, ~placed).order_by(AuditEvent.id).limit(limit)
    if after is not None:
        waiting = waiting.where(AuditEvent.id <= after + LOOK_AT)
    return list(session.scalars(waiting))


def chain(session: Session, *, limit: int = MOST_AT_ONCE, after: int | None = None) -> int:
    """Chain up to `limit` events that have no place yet (see `unchained`); return how many.

    Two sequencers at once do no harm: the place is a primary key, so one of them fails and rolls back.
    """
    last = session.scalars(select(AuditChain).order_by(AuditChain.seq.desc()).limit(1)).first()
    seq, previous = (last.seq, last.hash) if last else (0, GENESIS)
    waiting = unchained(session, limit=limit, after=after)
    for audit_event in waiting:
        seq += 1
        digest = event_hash(audit_event, previous)
        session.add(AuditChain(seq=seq, event_id=audit_event.id, previous_hash=previous, hash=digest))
        previous = digest
    return len(waiting)


def event_hash(audit_event: AuditEvent, previous: str) -> str:
    """Return the hash of an event at its place in the chain."""
    return content_hash(
        previous,
        audit_event.id,
        audit_event.at.isoformat(),
        audit_event.actor,
        audit_event.action,
        audit_event.subject,
        audit_event.subject_id,
        audit_event.details,
    )


def content_hash(
    previous: str,
    number: int,
    at: str,
    actor: str,
    action: str,
    subject: str,
    subject_id: int | None,
    details: dict[str, Any],
) -> str:
    """Return the sha256 over the previous hash and every column of the event, in canonical JSON."""
    content: list[Any] = [previous, number, at, actor, action, subject, subject_id, details]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
