"""What goes out of a study, and to whom: the report, and what accompanies it where a destination asks for it.

Each object has a history in the study. A new one names, in the digest that makes its UID, the one that it supersedes;
where it would say what the last one of its history says already, that one stands and is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from dicom_node.objects import heatmap, key_objects, oru, presentation_state
from dicom_node.objects.content import ImageOutcome, Kind, Predecessor, image_name
from dicom_node.objects.report import build_report, render_report_uid, render_series_uid, sop_class_uid
from dicom_node.services import is_image
from models.settings import ObjectKind, Peer, Settings
from models.tables import Delivery, DeliveryState, Report, ReportInput
from worker.draft import Draft, Input
from worker.pictures import Pictures

MAIN: Kind = "comprehensive_3d"
"""The kind that is always made, whoever is to get it: what the record says of the study."""
_REPORTS: tuple[Kind, ...] = (MAIN, "comprehensive")
_NOT_REJECTED = ("rejection_note", oru.KIND)


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

    def is_new_to_be_rejected_at(self, destination: str) -> bool:
        """Whether the destination has it, or may have it, and was not told yet that it does not stand any more."""
        return any(sent.destination == destination and sent.arrived and not sent.superseded for sent in self.sent)

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
    predecessor: Predecessor | None = None
    """The name of that row's object."""
    only: frozenset[str] | None = None
    """The destinations that it is for; None for all that are sent its kind."""


@dataclass(frozen=True)
class Results:
    """What goes out of a study now: objects to be made, those that stand, and who gets them."""

    new: tuple[Piece, ...]
    standing: tuple[Known, ...]
    recipients: tuple[Peer, ...]
    begun: frozenset[tuple[int, str]]
    """What may have arrived when this was planned: rows of reports, each with a destination."""


def may_have_arrived(state: DeliveryState, tries: int) -> bool:
    """Whether the destination of a delivery has what it carries, or may have it."""
    return state in (DeliveryState.DELIVERED, DeliveryState.COMMITTED) or tries > 0


def plan(session: Session, settings: Settings, pictures: Pictures, study_id: int, draft: Draft) -> Results | None:
    """Compare what is to be said of a study with what was said; None where the report would say nothing new.

    Builds nothing yet: only UIDs are known. A report that says nothing new leaves all that accompanies it as it is.
    """
    recipients = _recipients(settings, draft.senders)
    wanted = {kind for peer in recipients for kind in objects_for(peer)} | {MAIN}
    history = _history(session, study_id)
    new: list[Piece] = []
    standing: list[Known] = []
    for candidate in _Candidates(session, draft, pictures).of(wanted):
        last = candidate.last_of(history)
        if last is not None and not last.is_withdrawn and candidate.says_the_same_as(last):
            standing.append(last)
        elif candidate.can_be_made():
            new.append(candidate.piece(last))
    if any(known.kind == MAIN for known in standing):
        return None
    new += _messages(draft, recipients, history, new[0])
    new += _rejections(draft, recipients, history, standing)
    begun = frozenset((known.id, sent.destination) for known in history for sent in known.sent if sent.arrived)
    return Results(tuple(new), tuple(standing), recipients, begun)


def objects_for(peer: Peer) -> tuple[ObjectKind, ...]:
    """The kinds of DICOM objects that a destination gets."""
    return () if peer.protocol == "hl7" else peer.sends


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
    can_be_made: Callable[[], bool] = lambda: True
    """Whether what it is made of is still there."""

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
            None if last is None else last.as_predecessor,
        )


class _Candidates:
    """What could be said of a study, in the order in which it is sent."""

    def __init__(self, session: Session, draft: Draft, pictures: Pictures) -> None:
        self._session = session
        self._draft = draft
        self._pictures = pictures
        self._content = draft.content

    def of(self, wanted: set[ObjectKind]) -> Iterator[_Candidate]:
        """Everything of the kinds that somebody is to get."""
        for kind in _REPORTS:
            if kind in wanted:
                yield self._report(kind)
        if "key_objects" in wanted:
            yield from self._key_objects()
        for number, image in enumerate(self._content.images, start=1):
            if "heatmap" in wanted and is_image(image.header.sop_class_uid):
                yield self._heatmap(number, image)
            if "presentation_state" in wanted and presentation_state.has_regions(image):
                yield self._presentation_state(number, image)

    def _report(self, kind: Kind) -> _Candidate:
        def after(before: Predecessor | None) -> _Rendering:
            content = replace(self._content, kind=kind, predecessor=before)
            return _Rendering(render_report_uid(content), render_series_uid(content), partial(build_report, content))

        return _Candidate(kind, sop_class_uid(kind), tuple(self._draft.inputs.values()), after)

    def _key_objects(self) -> Iterator[_Candidate]:
        positive = [image for image in self._content.images if _is_positive(image)]
        if not positive:
            return
        content = key_objects.KeyObjectContent(
            **self._common(),
            header=positive[0].header,
            use="of_interest",
            objects=tuple(key_objects.KeyObject.of(image.header) for image in positive),
        )
        yield _Candidate(
            "key_objects",
            key_objects.SOP_CLASS_UID,
            tuple(self._input(image) for image in positive),
            lambda before: _key_objects(replace(content, predecessor=before)),
        )

    def _heatmap(self, number: int, image: ImageOutcome) -> _Candidate:
        about = self._input(image)
        digest = "" if about.prediction_id is None else self._pictures.digest(self._session, about.prediction_id)
        content = heatmap.HeatmapContent(
            **self._common(),
            image=image,
            label=image_name(number, image.header),
            number=number,
            source_digest=digest,
        )

        def build(content: heatmap.HeatmapContent) -> bytes:
            if about.prediction_id is None:
                return heatmap.build_heatmap(content)
            # Of one that cannot be drawn any more there is a card with the same words.
            picture = self._pictures.picture(about.prediction_id, image.header)
            return heatmap.build_heatmap(replace(content, picture=picture))

        def after(before: Predecessor | None) -> _Rendering:
            made = replace(content, predecessor=before)
            uids = heatmap.render_heatmap_uid(made), heatmap.render_heatmap_series_uid(made)
            return _Rendering(*uids, partial(build, made))

        return _Candidate("heatmap", heatmap.SOP_CLASS_UID, (about,), after, about.image_id)

    def _presentation_state(self, number: int, image: ImageOutcome) -> _Candidate:
        about = self._input(image)
        prediction_id = about.prediction_id
        assert prediction_id is not None  # noqa: S101 (what has regions was read)
        content = presentation_state.PresentationStateContent(
            **self._common(),
            image=image,
            source_digest=self._pictures.digest(self._session, prediction_id),
            grayscale=None,
            number=number,
        )
        # Read once, and only where a new state is to be made: one that stands needs no file.
        grayscale = cache(partial(self._pictures.grayscale, prediction_id, image.header))

        def after(before: Predecessor | None) -> _Rendering:
            made = replace(content, predecessor=before)
            return _Rendering(
                presentation_state.render_presentation_state_uid(made),
                presentation_state.render_presentation_state_series_uid(made),
                lambda: presentation_state.build_presentation_state(replace(made, grayscale=grayscale())),
            )

        return _Candidate(
            "presentation_state",
            presentation_state.SOP_CLASS_UID,
            (about,),
            after,
            about.image_id,
            can_be_made=lambda: grayscale() is not None,
        )

    def _input(self, image: ImageOutcome) -> Input:
        return self._draft.inputs[image.header.sop_instance_uid]

    def _common(self) -> dict[str, Any]:
        return _common(self._draft)


def _common(draft: Draft) -> dict[str, Any]:
    """What every object that accompanies the report says as the report does."""
    content = draft.content
    return {
        "installation_uid": content.installation_uid,
        "device": content.device,
        "algorithm": content.algorithm,
        "created_at": content.created_at,
    }


def _key_objects(content: key_objects.KeyObjectContent) -> _Rendering:
    return _Rendering(
        key_objects.render_key_objects_uid(content),
        key_objects.render_key_objects_series_uid(content),
        partial(key_objects.build_key_objects, content),
    )


def _is_positive(image: ImageOutcome) -> bool:
    return any(reading.decision == "fracture" for reading in image.readings)


def _messages(draft: Draft, recipients: Iterable[Peer], history: list[Known], report: Piece) -> Iterator[Piece]:
    """The report as an HL7 message, for those who read nothing else; it names the report that says the same.

    Destinations that are addressed alike get the same one.
    """
    addressed: dict[tuple[str, str], set[str]] = {}
    for peer in recipients:
        if peer.protocol == "hl7":
            addressed.setdefault((peer.receiving_application, peer.receiving_facility), set()).add(peer.name)
    content = replace(draft.content, predecessor=report.predecessor)
    for (application, facility), names in addressed.items():
        to = {
            "receiving_application": application,
            "receiving_facility": facility,
            "report_sop_instance_uid": report.sop_instance_uid,
        }
        before = (
            known
            for known in reversed(history)
            if known.kind == oru.KIND and not names.isdisjoint(sent.destination for sent in known.sent)
        )
        last = next(before, None)
        yield Piece(
            oru.KIND,
            "",
            oru.render_oru_uid(content, **to),
            "",
            tuple(draft.inputs.values()),
            None if last is None else last.id,
            partial(oru.build_oru, content, **to),
            only=frozenset(names),
        )


def _rejections(
    draft: Draft, recipients: Iterable[Peer], history: list[Known], standing: list[Known]
) -> Iterator[Piece]:
    """For each destination that is told: a note naming what it has, or may have, and what does not stand any more.

    Destinations that have the same get the same note.
    """
    stands = {known.id for known in standing}
    outdated = [known for known in history if known.id not in stands and known.kind not in _NOT_REJECTED]
    notes: dict[tuple[Known, ...], set[str]] = {}
    for peer in recipients:
        if "rejection_note" not in objects_for(peer):
            continue
        has = tuple(known for known in outdated if known.is_new_to_be_rejected_at(peer.name))
        if has:
            notes.setdefault(has, set()).add(peer.name)
    for rejected, names in notes.items():
        content = key_objects.KeyObjectContent(
            **_common(draft),
            header=draft.content.images[0].header,
            use="rejected",
            objects=tuple(
                key_objects.KeyObject(known.sop_class_uid, known.sop_instance_uid, known.series_instance_uid)
                for known in rejected
            ),
        )
        made = _key_objects(content)
        about = tuple(draft.inputs.values())
        uids = made.sop_instance_uid, made.series_instance_uid
        yield Piece("rejection_note", key_objects.SOP_CLASS_UID, *uids, about, None, made.build, only=frozenset(names))


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
        arrived = may_have_arrived(state, tries)
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
