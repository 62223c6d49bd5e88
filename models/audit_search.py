"""Finds audit events: by person, study, time, kind and subject, the newest first, page by page.

A page begins behind the last event of the one before (keyset paging), so that the thousandth is as quick as the first.
Every search has an index that also holds the order, or finds few events.

An event names one row, its subject, and a study is many rows: itself, its images, their files and predictions, what
people said of these, its quarantine, reports and deliveries (`rows_of_study`). What a modality asked us to commit names
instances of any studies, and belongs to none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select, tuple_
from sqlalchemy.orm import Session

from models.database import unindexed
from models.tables import (
    AuditChain,
    AuditEvent,
    Delivery,
    File,
    Image,
    Prediction,
    Quarantine,
    Report,
    Review,
    Study,
)

MOST_A_PAGE = 500
# Ids that one statement names.
AT_ONCE = 500


@dataclass(frozen=True)
class Position:
    """Where a page ended."""

    at: datetime
    event_id: int


@dataclass(frozen=True)
class Search:
    """What is looked for; what is left out is not asked."""

    actor: str | None = None
    """A person or a part of the node, as it stands in the event; one that ends in `*` stands for all that begin so."""
    person: str | None = None
    """A person, by the name they sign in with or gave to a command."""
    action: str | None = None
    """The kind: `image.analysed`; `report.*` for all that begin so."""
    study_id: int | None = None
    subject: str | None = None
    """A kind of row: `prediction`, `delivery`, …"""
    subject_id: int | None = None
    since: datetime | None = None
    """It happened at this time or later …"""
    before: datetime | None = None
    """… and before this time."""


@dataclass(frozen=True)
class Entry:
    """An event, and its place in the chain where it has one by now."""

    event: AuditEvent
    place: int | None


@dataclass(frozen=True)
class Page:
    """Some events, the newest first."""

    entries: list[Entry]
    following: Position | None
    """Where the next page begins; None where this is the last."""


def search(session: Session, wanted: Search | None = None, *, after: Position | None = None, size: int = 50) -> Page:
    """Return up to `size` (at most 500) events that are wanted, behind the position where another page ended."""
    wanted, size = wanted or Search(), max(1, min(size, MOST_A_PAGE))
    found: list[AuditEvent] = []
    for those in _parts(session, wanted):
        some = select(AuditEvent).where(*those)
        if after is not None:
            some = some.where(tuple_(AuditEvent.at, AuditEvent.id) < tuple_(after.at, after.event_id))
        newest_first = some.order_by(AuditEvent.at.desc(), AuditEvent.id.desc()).limit(size + 1)
        found += session.scalars(newest_first)
    found.sort(key=lambda event: (event.at, event.id), reverse=True)
    shown = found[:size]
    places = _places(session, [event.id for event in shown])
    last = shown[-1] if len(found) > size else None
    return Page(
        [Entry(event, places.get(event.id)) for event in shown],
        None if last is None else Position(last.at, last.id),
    )


def count(session: Session, wanted: Search, *, most: int) -> int:
    """Return how many events are wanted; more than `most` are not counted to their end."""
    found = 0
    for those in _parts(session, wanted):
        some = select(AuditEvent.id).where(*those).limit(most + 1 - found).subquery()
        found += session.scalar(select(func.count()).select_from(some)) or 0
        if found > most:
            break
    return found


def study_of(session: Session, named: str) -> int | None:
    """Return the id of the study that is named by its id or its Study Instance UID; None where there is none."""
    by = Study.study_instance_uid == named
    if named.isascii() and named.isdigit() and len(named) < 19:
        by = or_(by, Study.id == int(named))
    return session.scalars(select(Study.id).where(by).order_by(Study.study_instance_uid != named).limit(1)).first()


def rows_of_study(session: Session, study_id: int) -> dict[str, list[int]]:
    """Return the rows that events of a study may speak of, by kind of row (`AuditEvent.subject`)."""
    images = select(Image.id).where(Image.study_id == study_id)
    predictions = select(Prediction.id).where(Prediction.image_id.in_(images))
    queries = {
        "image": images,
        "file": select(File.id).where(File.image_id.in_(images)),
        "prediction": predictions,
        "review": select(Review.id).where(Review.prediction_id.in_(predictions)),
        "quarantine": select(Quarantine.id).where(Quarantine.study_id == study_id),
        "report": select(Report.id).where(Report.study_id == study_id),
        "delivery": select(Delivery.id).where(Delivery.study_id == study_id),
    }
    return {"study": [study_id], **{kind: list(session.scalars(query)) for kind, query in queries.items()}}


def _parts(session: Session, wanted: Search) -> Iterable[Sequence[ColumnElement[bool]]]:
    """Yield what events must be; several times where so many rows are looked for that one statement cannot name them.

    One column is looked up in its index: that of which fewest events are expected.
    """
    if wanted.study_id is None:
        yield list(_conditions(wanted))
        return
    others = list(_conditions(replace(wanted, study_id=None), indexed=False))
    for kind, ids in rows_of_study(session, wanted.study_id).items():
        for start in range(0, len(ids), AT_ONCE):
            some = AuditEvent.subject_id.in_(ids[start : start + AT_ONCE])
            yield [AuditEvent.subject == kind, some, *others]


def _conditions(wanted: Search, *, indexed: bool = True) -> Iterable[ColumnElement[bool]]:
    if wanted.subject_id is not None and wanted.subject is not None and indexed:
        yield and_(AuditEvent.subject == wanted.subject, AuditEvent.subject_id == wanted.subject_id)
        indexed = False
    else:
        if wanted.subject is not None:
            yield unindexed(AuditEvent.subject) == wanted.subject
        if wanted.subject_id is not None:
            yield unindexed(AuditEvent.subject_id) == wanted.subject_id
    if wanted.person is not None:
        actor = AuditEvent.actor if indexed else unindexed(AuditEvent.actor)
        yield actor.in_((wanted.person, f"person:{wanted.person}"))
        indexed = False
    for column, value in ((AuditEvent.actor, wanted.actor), (AuditEvent.action, wanted.action)):
        if value is None:
            continue
        if value.endswith("*"):
            beginning = value[:-1]
            yield func.substr(column, 1, len(beginning)) == beginning
        else:
            yield (column if indexed else unindexed(column)) == value
            indexed = False
    at = AuditEvent.at
    if wanted.since is not None:
        yield at >= wanted.since
    if wanted.before is not None:
        yield at < wanted.before


def _places(session: Session, events: list[int]) -> dict[int, int]:
    rows = session.execute(select(AuditChain.event_id, AuditChain.seq).where(AuditChain.event_id.in_(events)))
    return {row.event_id: row.seq for row in rows}
