"""Checks the audit trail: every event against its place in the chain, and the chain against its signed heads.

What is found is said in words, in the order of the chain: an event that was changed or is missing, a place that is
missing, an event that was never chained, and a chain that ends before a head, or does not lead to it, because its tail
was cut or written anew. Rows are read some thousands at a time, so that a long trail takes time, but no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, select
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from models import clock
from models.audit import GENESIS, content_hash
from models.audit_heads import Damaged, Head
from models.database import Database
from models.signing import PublicKey
from models.tables import AuditChain, AuditEvent, Installation

AT_ONCE = 5000
LOOK_AT = 10_000
MOST_NAMED = 20
# The sweeper chains within a second, looks for forgotten events once an hour, and signs every ten minutes. Whatever is
# that much older than the newest event was left out.
OVERDUE = timedelta(hours=2)
# A node that starts signs within seconds what it left unsigned when it was stopped.
SETTLING = timedelta(minutes=2)
KEY_CREATED = "audit.key_created"
BEFORE_ALL = -(2**63)


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was recorded."""

    what: str
    place: int | None = None
    event_id: int | None = None


@dataclass
class Verdict:
    """What came of a check."""

    events: int = 0
    places: int = 0
    unchained: int = 0
    heads: int = 0
    signed_to: int = 0
    """The highest place with a good head: no later one is proved."""
    signed_at: str | None = None
    faults: list[Fault] = field(default_factory=list)
    """The first `MOST_NAMED`, in the order of the chain."""
    more_faults: int = 0
    notes: list[str] = field(default_factory=list)
    """What a person should know, although it is no fault."""

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def found(self, what: str, *, place: int | None = None, event_id: int | None = None) -> None:
        """Add a fault."""
        if len(self.faults) < MOST_NAMED:
            self.faults.append(Fault(what, place, event_id))
        else:
            self.more_faults += 1


def check(
    database: Database,
    heads: Iterator[Head | Damaged],
    keys: dict[str, PublicKey],
    *,
    where: str,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Check the whole trail against these heads, signed by these keys; `where` says where the heads were looked for.

    `progress` is told again and again how many places of how many were looked at.
    """
    verdict = Verdict()
    with database.read() as session:
        installation = session.scalars(select(Installation.uid)).first()
        overdue = _newest(session) - OVERDUE
        last = session.scalar(select(func.max(AuditChain.seq))) or 0
    # Read before the chain, which then reaches at least as far.
    about_heads = Verdict()
    good = _good_heads(about_heads, heads, keys, installation)
    verdict.heads = about_heads.heads
    trail = _Trail(verdict, good)
    for rows in _chained(database):
        trail.look_at(rows)
        if progress is not None:
            progress(rows[-1].seq, max(last, rows[-1].seq))
    trail.end(where, signs=_signs(database))
    _look_for_unchained(database, verdict, overdue)
    for fault in about_heads.faults:
        verdict.found(fault.what, place=fault.place)
    verdict.more_faults += about_heads.more_faults
    verdict.notes += about_heads.notes
    return verdict


def _newest(session: Session) -> datetime:
    """Return the time of the newest event, as far as that is possible: a node that stands still owes nothing."""
    found = readable(session, select(func.max(AuditEvent.at)))
    newest = found[0][0] if found else None
    return clock.now() if newest is None else min(newest, clock.now())


def readable(session: Session, statement: Select[Any]) -> Sequence[Row[Any]] | None:
    """Return the rows; None where one holds what was written past us: no time, no JSON, not even text."""
    try:
        return session.execute(statement).all()
    except (ValueError, TypeError, DataError):
        pass
    except OperationalError as error:
        if "decode" not in str(error.orig):
            raise
    session.rollback()
    session.expunge_all()
    return None


# --- the chain --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """A row of the chain with its event; `event` is None where that is missing or cannot be read."""

    seq: int
    event_id: int
    previous_hash: str
    hash: str
    event: Row[Any] | None
    trouble: str = "is missing"

    def hash_after(self, previous: str) -> str | None:
        """Return the hash that belongs here behind this one."""
        event = self.event
        if event is None:
            return None
        at = "" if event.at is None else event.at.isoformat()
        columns = event.actor, event.action, event.subject, event.subject_id, event.details
        try:
            return content_hash(previous, event.id, at, *columns)
        except TypeError:  # bytes, where SQLite was made to take them for text
            return ""


class _Trail:
    """Goes along the chain and remembers no more than where it is."""

    def __init__(self, verdict: Verdict, heads: list[Head]) -> None:
        self._verdict = verdict
        self._heads = heads
        self._next_head = 0
        self._seq = 0
        self._hash = GENESIS
        """What the next place has to name as the hash before it."""
        self._held_back: _Place | None = None
        self._unsigned: tuple[int, datetime] | None = None
        """The first place behind the last good head, and the time of its event."""
        self._newest: datetime | None = None
        """Of the events with a place: what chains them signs, too, but for what a node that has just started found."""
        self._settled = clock.now() - SETTLING

    def look_at(self, rows: Sequence[_Place]) -> None:
        """Look at the next places. The last one waits for its successor, which says which of two rows was changed."""
        for row in rows:
            if self._held_back is not None:
                self._look_at(self._held_back, row)
            self._held_back = row

    def end(self, where: str, *, signs: bool) -> None:
        """Look at the last place, and at the heads beyond it. `signs` says that there have to be heads."""
        verdict = self._verdict
        if self._held_back is not None:
            self._look_at(self._held_back, None)
        verdict.places = self._seq
        if self._next_head < len(self._heads):
            head = self._heads[self._next_head]
            verdict.found(
                f"the chain ends at place {self._seq}, before the head that was signed at {head.at} "
                f"(place {head.place})",
                place=head.place,
            )
        elif not verdict.heads and signs:
            verdict.found(f"the signed heads are gone: none is in {where}")
        elif not verdict.heads and self._seq:
            verdict.notes.append(f"no head was signed yet: none is in {where}. The sweeper signs the first")
        elif self._is_overdue() and verdict.signed_to:
            place = None if self._unsigned is None else self._unsigned[0]
            verdict.found(
                f"no head was signed behind place {verdict.signed_to}, although the chain went on", place=place
            )

    def _is_overdue(self) -> bool:
        if self._unsigned is None or self._newest is None:
            return False
        return self._unsigned[1] < self._newest - OVERDUE

    def _look_at(self, row: _Place, following: _Place | None) -> None:
        if row.seq < 1:
            self._found(f"place {row.seq} of the chain: there is no such place", row)
            return
        self._look_for_a_gap(row)
        self._verdict.events += row.event is not None
        carried = row.hash
        if row.event is None:
            self._found(f"event {row.event_id} {row.trouble} (place {row.seq})", row)
        elif row.previous_hash != self._hash:
            # Whose row was changed: this one's, if the event fits behind what really stands before it.
            alone = row.hash_after(self._hash) == row.hash
            what = "its row is not what was chained" if alone else f"it does not follow on place {row.seq - 1}"
            self._found(f"place {row.seq} of the chain: {what}", row)
        elif (wanted := row.hash_after(row.previous_hash)) != row.hash:
            if following is not None and following.seq == row.seq + 1 and following.previous_hash == wanted:
                self._found(f"place {row.seq} of the chain: its row is not what was chained", row)
                carried = following.previous_hash
            else:
                self._found(f"{_named(row.event)}: its row is not what was chained (place {row.seq})", row)
        self._seq, self._hash = row.seq, carried
        self._compare_heads(row)

    def _look_for_a_gap(self, row: _Place) -> None:
        first, last = self._seq + 1, row.seq - 1
        if first > last:
            return
        places = f"place {first} of the chain is" if first == last else f"places {first} to {last} of the chain are"
        self._verdict.found(f"{places} missing", place=first)
        # What stood there is not known.
        self._hash = row.previous_hash
        while self._next_head < len(self._heads) and self._heads[self._next_head].place < row.seq:
            self._next_head += 1

    def _compare_heads(self, row: _Place) -> None:
        verdict = self._verdict
        fits = False
        while self._next_head < len(self._heads) and self._heads[self._next_head].place == row.seq:
            head = self._heads[self._next_head]
            self._next_head += 1
            if head.hash == self._hash:
                fits, verdict.signed_at = True, head.at
                continue
            since = f"place {verdict.signed_to}" if verdict.signed_to else "its beginning"
            self._found(
                f"the chain was written anew behind {since}: place {row.seq} is not what was signed at {head.at}", row
            )
        at = None if row.event is None else row.event.at
        if fits:
            verdict.signed_to, self._unsigned = row.seq, None
        elif self._unsigned is None and at is not None:
            self._unsigned = row.seq, at
        if at is not None and at < self._settled:
            self._newest = at if self._newest is None else max(self._newest, at)

    def _found(self, what: str, row: _Place) -> None:
        self._verdict.found(what, place=row.seq, event_id=row.event_id)


def _named(event: Row[Any]) -> str:
    return f"event {event.id} ({event.action}, {_moment(event)})"


def _moment(event: Row[Any]) -> str:
    return "no time" if event.at is None else event.at.isoformat(timespec="seconds")


def _is_before(event: Row[Any], overdue: datetime) -> bool:
    return event.at is not None and event.at < overdue


_CHAIN = (AuditChain.seq, AuditChain.event_id, AuditChain.previous_hash, AuditChain.hash)
_EVENT = (
    AuditEvent.id,
    AuditEvent.at,
    AuditEvent.actor,
    AuditEvent.action,
    AuditEvent.subject,
    AuditEvent.subject_id,
    AuditEvent.details,
)


def _chained(database: Database) -> Iterator[list[_Place]]:
    """Yield the chain in order. Each part is a transaction of its own: a long one would hold up SQLite's log."""
    after = BEFORE_ALL
    while True:
        with database.read() as session:
            rows = _some(session, after)
        if not rows:
            return
        yield rows
        after = rows[-1].seq


def _some(session: Session, after: int) -> list[_Place]:
    together = select(*_CHAIN, *_EVENT).outerjoin(AuditEvent, AuditEvent.id == AuditChain.event_id)
    together = together.where(AuditChain.seq > after).order_by(AuditChain.seq).limit(AT_ONCE)
    rows = readable(session, together)
    if rows is not None:
        return [
            _Place(row.seq, row.event_id, row.previous_hash, row.hash, None if row.id is None else row) for row in rows
        ]
    places = select(*_CHAIN).where(AuditChain.seq > after).order_by(AuditChain.seq).limit(AT_ONCE)
    return [_one(session, *place) for place in session.execute(places).all()]


def _one(session: Session, seq: int, event_id: int, previous_hash: str, chain_hash: str) -> _Place:
    rows = readable(session, select(*_EVENT).where(AuditEvent.id == event_id))
    if rows is None:
        return _Place(seq, event_id, previous_hash, chain_hash, None, "cannot be read any more")
    return _Place(seq, event_id, previous_hash, chain_hash, rows[0] if rows else None)


def _signs(database: Database) -> bool:
    """Whether this installation has signed heads, says the trail itself."""
    with database.read() as session:
        made = readable(session, select(AuditEvent.details).where(AuditEvent.action == KEY_CREATED))
    return made is None or any(isinstance(row[0], dict) and row[0].get("used_for") == "heads" for row in made)


# --- events without a place -------------------------------------------------------------------------------------------


def _look_for_unchained(database: Database, verdict: Verdict, overdue: datetime) -> None:
    after = BEFORE_ALL
    while True:
        with database.read() as session:
            last = session.scalar(_nth_after(after, LOOK_AT)) or session.scalar(select(func.max(AuditEvent.id)))
            if last is None or last <= after:
                return
            placed = exists().where(AuditChain.event_id == AuditEvent.id)
            those = and_(AuditEvent.id > after, AuditEvent.id <= last, ~placed)
            for number, event, trouble in _events(session, those):
                verdict.unchained += 1
                verdict.events += 1
                if event is None:
                    verdict.found(f"event {number} has no place in the chain and {trouble}", event_id=number)
                elif _is_before(event, overdue):
                    verdict.found(f"{_named(event)} has no place in the chain", event_id=number)
        after = last


def _events(session: Session, those: ColumnElement[bool]) -> list[tuple[int, Row[Any] | None, str]]:
    rows = readable(session, select(*_EVENT).where(those).order_by(AuditEvent.id))
    if rows is not None:
        return [(row.id, row, "") for row in rows]
    numbers = session.scalars(select(AuditEvent.id).where(those).order_by(AuditEvent.id)).all()
    found = [_one(session, 0, number, "", "") for number in numbers]
    return [(place.event_id, place.event, place.trouble) for place in found]


def _nth_after(after: int, count: int) -> Any:
    return select(AuditEvent.id).where(AuditEvent.id > after).order_by(AuditEvent.id).offset(count - 1).limit(1)


# --- heads ------------------------------------------------------------------------------------------------------------


def _good_heads(
    verdict: Verdict, heads: Iterator[Head | Damaged], keys: dict[str, PublicKey], installation: str | None
) -> list[Head]:
    """Return the heads that hold, by place, and say what is wrong with the others and with their own chain."""
    good: list[Head] = []
    there: set[str] = set()
    for head in heads:
        if isinstance(head, Damaged):
            said = f"line {head.line} of {head.file}"
            if head.torn:
                verdict.notes.append(f"{said} was not written to its end, as a power cut leaves it")
            else:
                verdict.found(f"{said} is no signed head any more")
            continue
        verdict.heads += 1
        there.add(head.digest)
        named = f"the head that was signed at {head.at} (place {head.place})"
        if head.key not in keys:
            verdict.found(f"{named} is signed by a key that is not known: {head.key[:16]}…", place=head.place)
        elif not head.is_signed_by(keys[head.key]):
            verdict.found(f"{named}: its signature does not match", place=head.place)
        elif head.installation != installation:
            verdict.found(f"{named} is of another installation", place=head.place)
        else:
            good.append(head)
    for head in good:
        if head.previous is not None and head.previous not in there:
            verdict.found(
                f"the head before the one that was signed at {head.at} (place {head.place}) is missing or was changed",
                place=head.place,
            )
    return sorted(good, key=lambda head: head.place)
