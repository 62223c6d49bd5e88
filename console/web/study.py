"""One study: its images and what was said of each, by which model; the report; where it went; who did what with it."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, selectinload
from streamlit.delta_generator import DeltaGenerator

from console import access
from console.access import Action, Person
from console.web import film, look, state, who
from console.web.worklist import readable_date, readable_name
from dicom_node.current import newest_headers
from dicom_node.headers import SourceHeader
from dicom_node.objects.tree import render_tree
from models import audit, clock
from models.reasons import Reason
from models.settings import REPORTS
from models.tables import AuditEvent, Delivery, DeliveryAttempt, Finding, Image, Prediction, Report, Review, Study
from worker.activation import ACTIVE

IN_A_ROW, MOST_IN_A_ROW = 3, 4
AT_ONCE = 12
"""Images on a page: each takes a while to draw."""
MOST_EVENTS = 200
_VIEWED = "study_viewed"
_Sides = tuple[DeltaGenerator, DeltaGenerator]


def page() -> None:
    """Draw the page."""
    asked = st.query_params.get("study", "")
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 16 else None
    person = who.require(Action.VIEW_STUDY, subject="study", subject_id=number)
    if number is None:
        st.html(look.block(look.paragraph("Choose a study in the worklist.", "quiet")))
        return
    with state.database().read() as session:
        study = session.get(Study, number)
        images = [] if study is None else _images(session, study.id)
        headers = {} if study is None else newest_headers(session, study.id)
        predictions = _predictions(session, [image.id for image in images])
    if study is None:
        st.html(look.block(look.paragraph("There is no such study.", "notice")))
        return
    _audit(person, study)
    _identity(study)
    chosen, in_a_row = _controls(
        len(images), maps=any(prediction.decision == "fracture" for prediction in predictions.values())
    )
    for first in range(0, len(chosen), in_a_row):
        row = chosen[first : first + in_a_row]
        for sides, place in zip(_columns(in_a_row), row, strict=False):
            image = images[place - 1]
            _image(sides, person, place, image, headers[image.id].header, predictions.get(image.id))
    _reports(study.id)
    _deliveries(study.id)
    _trail(study.id, images, predictions)


def _controls(images: int, *, maps: bool) -> tuple[list[int], int]:
    """Draw what concerns all images; return which are shown, from 1, and how many of them beside each other."""
    left, middle, right = st.columns([2, 2, 3], gap="large", vertical_alignment="bottom")
    if maps:
        share = left.slider("Heatmap opacity", 0, 100, 45, 5, format="%d %%")
        st.html(look.opacity(share / 100))
    if images < 2:
        return list(range(1, images + 1)), 1
    most = min(images, MOST_IN_A_ROW)
    in_a_row = middle.segmented_control(
        "Side by side", range(1, most + 1), default=min(most, IN_A_ROW), required=True, key="side_by_side"
    )
    if images <= 2:
        return [1, 2], in_a_row
    if images <= AT_ONCE:
        chosen = right.pills(
            "Images", range(1, images + 1), default=range(1, images + 1), selection_mode="multi", key="images"
        )
        return sorted(chosen), min(in_a_row, max(len(chosen), 1))
    first = right.selectbox(
        "Images",
        range(0, images, AT_ONCE),
        format_func=lambda first: f"{first + 1} to {min(first + AT_ONCE, images)} of {images}",
    )
    return list(range(first + 1, min(first + AT_ONCE, images) + 1)), in_a_row


def _columns(in_a_row: int) -> list[_Sides]:
    """Where the film and the words of each image of a row stand: beside each other where it is the only one."""
    if in_a_row == 1:
        films, words = st.columns([3, 2], gap="large")
        return [(films, words)]
    return [(column, column) for column in st.columns(in_a_row, gap="medium")]


def _images(session: Session, study_id: int) -> Sequence[Image]:
    return session.scalars(
        select(Image)
        .where(Image.study_id == study_id, Image.is_image.is_(True), Image.replaced_at.is_(None))
        .order_by(Image.id)
    ).all()


def _predictions(session: Session, images: Sequence[int]) -> dict[int, Prediction]:
    """The newest prediction of each image that counts: a shadow model's are for the page of models."""
    found = session.scalars(
        select(Prediction)
        .where(Prediction.image_id.in_(images), Prediction.role == ACTIVE)
        .order_by(Prediction.id)
        .options(
            selectinload(Prediction.findings).selectinload(Finding.regions), selectinload(Prediction.model_version)
        )
    )
    return {prediction.image_id: prediction for prediction in found}


def _audit(person: Person, study: Study) -> None:
    """Looking at a patient is an event: once, and again when the study grew."""
    seen = (study.id, study.generation)
    if st.session_state.get(_VIEWED) == seen:
        return
    with state.database().write() as session:
        audit.record(session, actor=person.actor, action="study.viewed", subject="study", subject_id=study.id)
    st.session_state[_VIEWED] = seen


def _identity(study: Study) -> None:
    left, right = st.columns(2, gap="large")
    left.html(
        look.block(
            look.facts(
                [
                    ("Patient", readable_name(study.patient_name)),
                    ("Patient ID", study.patient_id),
                    ("Born", readable_date(study.patient_birth_date)),
                    ("Accession number", study.accession_number),
                ]
            )
        )
    )
    right.html(
        look.block(
            look.facts(
                [
                    ("Study", study.study_description),
                    ("Study date", readable_date(study.study_date)),
                    ("Received", f"{study.first_image_at:%Y-%m-%d %H:%M:%S} UTC from {study.calling_ae_title}"),
                    ("State", look.STATES[study.state.value]),
                    ("Decision", look.decision(study.decision)),
                ]
            )
        )
    )


def _image(
    sides: _Sides,
    person: Person,
    place: int,
    image: Image,
    header: SourceHeader,
    prediction: Prediction | None,
) -> None:
    films, words = sides
    named = " ".join(word for word in (image.body_part, image.view, image.laterality) if word)
    title = f"Image {place}" + (f": {named}" if named else "")
    if prediction is None:
        reason = "It waits to be read." if image.reason is None else Reason(image.reason).sentence
        decision = look.Safe("") if image.reason is None else look.decision("not_analysed", large=True)
        films.html(look.block(look.heading(title), decision, look.paragraph(reason, "notice")))
        if image.reason is not None:
            with films:
                film.not_analysed(image.id, title, study_id=image.study_id)
        return
    with films:
        film.film(prediction.id, header, title, study_id=image.study_id)
    parts = [look.decision(prediction.decision, large=True)]
    for finding in prediction.findings:
        parts += [
            look.heading(finding.code_meaning),
            look.scale(finding.probability, finding.absent_below, finding.present_from),
        ]
    version = prediction.model_version
    facts: list[tuple[str, look.Cell]] = [
        *(("Region", _box(finding)) for finding in prediction.findings if finding.decision == "fracture"),
        ("Model", f"{version.name} {version.version}"),
        ("Bundle SHA-256", version.bundle_sha256),
        ("Read", f"{prediction.created_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    words.html(look.block(*parts, look.facts(facts)))
    with words:
        _reviews(person, prediction.id, place)


def _box(finding: Finding) -> str | None:
    if not finding.regions:
        return None
    region = finding.regions[0]
    return f"columns {region.x_min:.0f} to {region.x_max:.0f}, rows {region.y_min:.0f} to {region.y_max:.0f}"


def _reviews(person: Person, prediction_id: int, place: int) -> None:
    """What people said of a prediction, and for reviewers the place to say it."""
    with state.database().read() as session:
        said = session.scalars(select(Review).where(Review.prediction_id == prediction_id).order_by(Review.id)).all()
    if said:
        rows = [
            (
                f"{review.created_at:%Y-%m-%d %H:%M}",
                review.reviewer,
                "Agrees" if review.agrees else "Disagrees",
                review.why,
            )
            for review in said
        ]
        st.html(look.block(look.table(f"Reviews of image {place}", ("When", "Who", "Verdict", "Why"), rows)))
    if not person.may(Action.REVIEW):
        return
    with st.form(f"review_{prediction_id}", clear_on_submit=True):
        verdict = st.radio("Your verdict", ["Agree", "Disagree"], index=None, horizontal=True)
        why = st.text_input("Why", max_chars=1000)
        if st.form_submit_button("Record review"):
            if verdict is None or not why.strip():
                st.error("A review needs a verdict and a reason.", icon=":material/error:")
                return
            record_review(person, prediction_id, agrees=verdict == "Agree", why=why.strip())
            st.rerun()


def record_review(person: Person, prediction_id: int, *, agrees: bool, why: str) -> None:
    """Put a person's verdict on record, where they may give one. Raises Denied."""
    access.authorise(state.database(), person, Action.REVIEW, subject="prediction", subject_id=prediction_id)
    with state.database().write() as session:
        review = Review(
            prediction_id=prediction_id, reviewer=person.name, agrees=agrees, why=why, created_at=clock.now()
        )
        session.add(review)
        session.flush()
        audit.record(
            session,
            actor=person.actor,
            action="prediction.reviewed",
            subject="prediction",
            subject_id=prediction_id,
            review=review.id,
            agrees=int(agrees),
        )


def _reports(study_id: int) -> None:
    with state.database().read() as session:
        report = session.scalars(
            select(Report)
            .where(Report.study_id == study_id, Report.kind.in_(REPORTS))
            .order_by(Report.id.desc())
            .limit(1)
        ).first()
    if report is None:
        return
    with st.expander(f"The report, revision {report.revision} of {report.created_at:%Y-%m-%d %H:%M:%S} UTC"):
        try:
            lines = render_tree(report.content)
        except ValueError:
            st.html(look.block(look.paragraph("The report's bytes cannot be read.", "notice")))
            return
        st.html(look.block(look.tree(lines)))


def _deliveries(study_id: int) -> None:
    with state.database().read() as session:
        deliveries = session.scalars(
            select(Delivery)
            .where(Delivery.study_id == study_id)
            .order_by(Delivery.id)
            .options(selectinload(Delivery.report).load_only(Report.kind, Report.revision))
        ).all()
        attempts = session.scalars(
            select(DeliveryAttempt)
            .where(DeliveryAttempt.delivery_id.in_([delivery.id for delivery in deliveries]))
            .order_by(DeliveryAttempt.id)
        ).all()
    if not deliveries:
        st.html(look.block(look.paragraph("Nothing of it goes anywhere: no destination gets it.", "quiet")))
        return
    rows = []
    for delivery in deliveries:
        tries = [attempt for attempt in attempts if attempt.delivery_id == delivery.id]
        rows.append(
            (
                delivery.destination,
                f"{delivery.report.kind.replace('_', ' ')}, revision {delivery.report.revision}",
                delivery.state.value.replace("_", " ").capitalize(),
                delivery.reason,
                _moment(delivery.delivered_at),
                _moment(delivery.committed_at),
                look.items(f"{_moment(a.started_at)} {a.outcome}{_status(a.status)}" for a in tries) if tries else None,
            )
        )
    columns = ("Destination", "What", "State", "Reason", "Delivered", "Committed", "Tries")
    with st.expander("Deliveries", expanded=True):
        st.html(look.block(look.table("Deliveries", columns, rows)))


def _moment(moment: object) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def _status(status: int | None) -> str:
    return "" if status is None else f" (status {status:04X})"


def _trail(study_id: int, images: Sequence[Image], predictions: dict[int, Prediction]) -> None:
    """The study's audit events, and those of what belongs to it."""
    with state.database().read() as session:
        reports = session.scalars(select(Report.id).where(Report.study_id == study_id)).all()
        deliveries = session.scalars(select(Delivery.id).where(Delivery.study_id == study_id)).all()
        of = {
            "study": [study_id],
            "image": [image.id for image in images],
            "prediction": [prediction.id for prediction in predictions.values()],
            "report": list(reports),
            "delivery": list(deliveries),
        }
        belongs = [and_(AuditEvent.subject == kind, AuditEvent.subject_id.in_(ids)) for kind, ids in of.items() if ids]
        events = session.scalars(
            select(AuditEvent).where(or_(*belongs)).order_by(AuditEvent.id.desc()).limit(MOST_EVENTS)
        ).all()
    rows = [(_moment(e.at), e.actor, e.action, f"{e.subject} {e.subject_id}", e.id) for e in events]
    with st.expander("Audit trail"):
        st.html(look.block(look.table("Audit trail", ("When", "Who", "What", "To what", "Event"), rows)))
