"""The worklist: studies as they arrived, the newest first, found by what people search for, page by page.

A page begins behind the last study of the one before (keyset paging), so that the thousandth is as quick as the first,
and studies that arrive meanwhile move nothing. Every search has an index that also holds the order; nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.database import unindexed
from models.tables import Image, ImageState, Study, StudyState

MOST_A_PAGE = 500


@dataclass(frozen=True)
class Position:
    """Where a page ended."""

    first_image_at: datetime
    study_id: int


@dataclass(frozen=True)
class Search:
    """What is looked for; what is left out is not asked. Texts are compared as a whole, as the sender wrote them."""

    patient_id: str | None = None
    accession_number: str | None = None
    study_date: str | None = None
    """A day, YYYYMMDD, by the sender's clock (Study Date, PS3.3 C.7.2.1)."""
    calling_ae_title: str | None = None
    decision: str | None = None
    """What the newest report says: fracture, no_fracture or undetermined."""
    state: StudyState | None = None
    received_from: datetime | None = None
    """The first image came at this time or later …"""
    received_before: datetime | None = None
    """… and before this time."""


@dataclass(frozen=True)
class Entry:
    """A study in the worklist."""

    study: Study
    images: int
    """Received, without those that a person replaced or excluded."""
    waiting: int
    """Not read yet, of these."""


@dataclass(frozen=True)
class Page:
    """Some studies, the newest first."""

    entries: list[Entry]
    following: Position | None
    """Where the next page begins; None where this is the last."""


def worklist(session: Session, search: Search | None = None, *, after: Position | None = None, size: int = 50) -> Page:
    """Return up to `size` (at most 500) studies that `search` finds, behind the position where another page ended."""
    size = max(1, min(size, MOST_A_PAGE))
    found = select(Study).where(*_conditions(search or Search()))
    if after is not None:
        found = found.where(tuple_(Study.first_image_at, Study.id) < tuple_(after.first_image_at, after.study_id))
    newest_first = found.order_by(Study.first_image_at.desc(), Study.id.desc())
    studies = list(session.scalars(newest_first.limit(size + 1)))
    shown = studies[:size]
    counts = _images_of(session, [study.id for study in shown])
    more = len(studies) > size
    return Page(
        [Entry(study, *counts.get(study.id, (0, 0))) for study in shown],
        Position(shown[-1].first_image_at, shown[-1].id) if more else None,
    )


def _conditions(search: Search) -> Iterable[ColumnElement[bool]]:
    """Yield what a study must be. One column is looked up in its index: that of which fewest studies are expected."""
    common_state = search.state is StudyState.REPORTED
    columns: list[tuple[InstrumentedAttribute[Any], str | None]] = [
        (Study.patient_id, search.patient_id),
        (Study.accession_number, search.accession_number),
        (Study.state, None if common_state else search.state),
        (Study.study_date, search.study_date),
        (Study.calling_ae_title, search.calling_ae_title),
        (Study.decision, search.decision),
        (Study.state, search.state if common_state else None),
    ]
    asked = [(column, value) for column, value in columns if value is not None]
    for column, value in asked:
        yield (column if column is asked[0][0] else unindexed(column)) == value
    if search.received_from is not None:
        yield Study.first_image_at >= search.received_from
    if search.received_before is not None:
        yield Study.first_image_at < search.received_before


def _images_of(session: Session, studies: list[int]) -> dict[int, tuple[int, int]]:
    """Count the images of these studies, and those that wait."""
    if not studies:
        return {}
    counts = session.execute(
        select(Image.study_id, Image.state, func.count())
        .where(Image.study_id.in_(studies), Image.replaced_at.is_(None))
        .group_by(Image.study_id, Image.state)
    )
    found: dict[int, tuple[int, int]] = {}
    for study_id, state, count in counts:
        images, waiting = found.get(study_id, (0, 0))
        found[study_id] = images + count, waiting + (count if state is ImageState.RECEIVED else 0)
    return found
