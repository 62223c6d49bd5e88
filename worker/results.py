"""What goes out of a study, and to whom: the report, and what accompanies it where a destination asks for it.

Each object has a history in the study. A new one names, in the digest that makes its UID, the one that it supersedes;
where it would say what the last one of its history says already, that one stands and is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from dicom_node.objects.content import Predecessor
from dicom_node.objects.report import SOP_CLASS_UID, build_report, render_report_uid, render_series_uid
from models.settings import ObjectKind, Peer, Settings
from models.tables import Delivery, DeliveryState, Report, ReportInput
from worker.draft import Draft, Input

MAIN: ObjectKind = "comprehensive_3d"
"""The kind that is always made, whoever is to get it: what the record says of the study."""


@dataclass(frozen=True)
class Known:
    """An object on record."""

    id: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    before: Predecessor | None
    """What it superseded."""
    images: frozenset[int]
    sent: tuple[Sent, ...]

    @property
    def is_withdrawn(self) -> bool:
        """Whether it went out, and nothing of the study says any more what it says."""
        return bool(self.sent) and all(sent.superseded for sent in self.sent)

    @property
    def as_predecessor(self) -> Predecessor:
        """Its name in what supersedes it."""
        return Predecessor(self.sop_instance_uid, self.series_instance_uid)


@dataclass(frozen=True)
class Sent:
    """One delivery of an object."""

    destination: str
    superseded: bool
    arrived: bool
    """Whether the destination has it, or may have it."""


@dataclass(frozen=True)
class Piece:
    """An object to be made."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    inputs: tuple[Input, ...]
    supersedes: int | None
    """The row that it takes the place of."""
    build: Callable[[], bytes]
    only: frozenset[str] | None = None
    """The destinations that it is for; None for all that are sent its kind."""


@dataclass(frozen=True)
class Results:
    """What goes out of a study now: objects to be made, those that stand, and who gets them."""

    new: tuple[Piece, ...]
    standing: tuple[Known, ...]
    recipients: tuple[Peer, ...]


def plan(session: Session, settings: Settings, study_id: int, draft: Draft) -> Results | None:
    """Compare what is to be said of a study with what was said; None where the report would say nothing new.

    Builds nothing yet: only UIDs are known. A report that says nothing new leaves all that accompanies it as it is.
    """
    recipients = _recipients(settings, draft.senders)
    wanted = {kind for peer in recipients for kind in peer.sends} | {MAIN}
    history = _history(session, study_id)
    new: list[Piece] = []
    standing: list[Known] = []
    for candidate in _candidates(draft, wanted):
        last = candidate.last_of(history)
        if last is not None and not last.is_withdrawn and candidate.says_the_same_as(last):
            standing.append(last)
        else:
            new.append(candidate.piece(last))
    if any(known.kind == MAIN for known in standing):
        return None
    return Results(tuple(new), tuple(standing), recipients)


def _recipients(settings: Settings, senders: Iterable[str]) -> tuple[Peer, ...]:
    """The destinations of what is said of a study that these AE titles sent to us."""
    titles = set(senders)
    return tuple(peer for peer in settings.destinations if peer.results == "all" or peer.ae_title in titles)


# --- what could be said -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rendering:
    """An object in the place of a certain predecessor."""

    sop_instance_uid: str
    series_instance_uid: str
    build: Callable[[], bytes]


@dataclass(frozen=True)
class _Candidate:
    kind: str
    sop_class_uid: str
    inputs: tuple[Input, ...]
    after: Callable[[Predecessor | None], _Rendering]
    image_id: int | None = None
    """The image that it is about, where there is one for each image."""

    def last_of(self, history: list[Known]) -> Known | None:
        """Return the last object of its history."""
        alike = (
            known
            for known in reversed(history)
            if known.kind == self.kind and (self.image_id is None or self.image_id in known.images)
        )
        return next(alike, None)

    def says_the_same_as(self, last: Known) -> bool:
        """Whether it, made anew in the place of `last`, would be `last`."""
        return self.after(last.before).sop_instance_uid == last.sop_instance_uid

    def piece(self, last: Known | None) -> Piece:
        """What follows `last`."""
        made = self.after(None if last is None else last.as_predecessor)
        return Piece(
            self.kind,
            self.sop_class_uid,
            made.sop_instance_uid,
            made.series_instance_uid,
            self.inputs,
            None if last is None else last.id,
            made.build,
        )


def _candidates(draft: Draft, wanted: set[ObjectKind]) -> Iterator[_Candidate]:
    """In the order in which they are sent."""
    if MAIN in wanted:
        yield _report(draft)


def _report(draft: Draft) -> _Candidate:
    def after(before: Predecessor | None) -> _Rendering:
        content = replace(draft.content, predecessor=before)
        return _Rendering(render_report_uid(content), render_series_uid(content), partial(build_report, content))

    return _Candidate(MAIN, SOP_CLASS_UID, tuple(draft.inputs.values()), after)


# --- what was said ----------------------------------------------------------------------------------------------------


def _history(session: Session, study_id: int) -> list[Known]:
    """All that was made of a study, the oldest first."""
    images: dict[int, set[int]] = {}
    for report_id, image_id in session.execute(
        select(ReportInput.report_id, ReportInput.image_id).join(Report).where(Report.study_id == study_id)
    ):
        images.setdefault(report_id, set()).add(image_id)
    sent: dict[int, list[Sent]] = {}
    deliveries = session.execute(
        select(Delivery.report_id, Delivery.destination, Delivery.superseded_at, Delivery.state, Delivery.tries).where(
            Delivery.study_id == study_id
        )
    )
    for report_id, destination, superseded_at, state, tries in deliveries:
        arrived = state in (DeliveryState.DELIVERED, DeliveryState.COMMITTED) or tries > 0
        sent.setdefault(report_id, []).append(Sent(destination, superseded_at is not None, arrived))
    before = aliased(Report)
    rows = session.execute(
        select(
            Report.id,
            Report.kind,
            Report.sop_class_uid,
            Report.sop_instance_uid,
            Report.series_instance_uid,
            Report.supersedes_id,
            before.sop_instance_uid,
            before.series_instance_uid,
        )
        .outerjoin(before, Report.supersedes_id == before.id)
        .where(Report.study_id == study_id)
        .order_by(Report.id)
    )
    return [
        Known(
            row_id,
            kind,
            sop_class,
            uid,
            series,
            None if supersedes_id is None else Predecessor(before_uid, before_series),
            frozenset(images.get(row_id, ())),
            tuple(sent.get(row_id, ())),
        )
        for row_id, kind, sop_class, uid, series, supersedes_id, before_uid, before_series in rows
    ]
