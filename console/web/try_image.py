"""Try an image: drop a file, see what the model says of it. Nothing is stored but that it was tried, and by whom."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import streamlit as st
from sqlalchemy import select

from console.access import Action, Person
from console.web import look, state, who
from console.web.reading import Answer, FoundOne, Unread, read
from models import audit
from models.tables import Installation
from worker.bundle import Bundle, Card, default_bundle_path

SAMPLES = {
    "RG3_UNCR.dcm": "Distal tibia (CR)",
    "RG1_UNCR.dcm": "Chest (CR), outside the intended use",
}
"""Radiographs of the `pydicom-data` package (NEMA WG04)."""
_SHOWN = "tried"


def page() -> None:
    """Draw the page."""
    person = who.require(Action.TRY_IMAGE)
    content = _chosen()
    if content is None:
        _model_card(_bundle().card)
        return
    answer = _answer(person, content)
    if isinstance(answer, Unread):
        st.error(answer.sentence, icon=":material/error:")
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        _films(answer)
    with right:
        _findings(answer)
        _report(answer)
        _model_card(_bundle().card)


def _chosen() -> bytes | None:
    """Draw where a file is chosen; return it."""
    limit = state.settings().web.max_upload_mb
    left, right = st.columns([3, 2], gap="large", vertical_alignment="bottom")
    uploaded = left.file_uploader(
        f"A PNG, JPEG or DICOM file of at most {limit} MB. Nothing that you try is stored or sent.",
        max_upload_size=limit,
    )
    sample = right.selectbox(
        "Or a sample", [None, *SAMPLES], format_func=lambda name: "None" if name is None else SAMPLES[name]
    )
    if uploaded is not None:
        return uploaded.getvalue()
    if sample is not None:
        return Path(str(files("data_store").joinpath("data", sample))).read_bytes()
    return None


def _answer(person: Person, content: bytes) -> Answer | Unread:
    """Have the file read, once: what is drawn anew for a slider is not read anew."""
    digest = hashlib.sha256(content).hexdigest()
    shown: tuple[str, Answer | Unread] | None = st.session_state.get(_SHOWN)
    if shown is not None and shown[0] == digest:
        return shown[1]
    with state.database().read() as session:
        installation = session.scalars(select(Installation.uid)).one()
    with st.spinner("Reading"):
        answer = read(content, state.settings(), installation)
    with state.database().write() as session:
        audit.record(
            session,
            actor=person.actor,
            action="image.tried",
            subject="console",
            subject_id=None,
            file_sha256=digest,
            decision=None if isinstance(answer, Unread) else answer.decision,
            bundle_sha256=_bundle().sha256,
        )
    st.session_state[_SHOWN] = digest, answer
    return answer


def _films(answer: Answer) -> None:
    radiograph, heat = answer.bytes_of("radiograph"), answer.bytes_of("heat")
    if radiograph is None:
        st.html(look.block(look.paragraph("There is no picture to show.", "notice")))
        return
    if heat is not None:
        share = st.slider("Heatmap opacity", 0, 100, 45, 5, format="%d %%")
        st.html(look.opacity(share / 100))
    st.html(look.block(look.films(radiograph, heat, "The radiograph that was tried")))
    if heat is not None:
        sentence = "The lighter, the more this place speaks for a fracture. The map has a highest place on every image."
        st.html(look.block(look.paragraph(sentence, "quiet")))


def _findings(answer: Answer) -> None:
    parts = [look.decision(answer.decision, large=True)]
    if answer.reason is not None:
        parts.append(look.paragraph(answer.reason.sentence, "notice"))
        parts.append(look.paragraph("That is no statement about a fracture.", "quiet"))
    for finding in answer.findings:
        parts += [
            look.heading(finding.meaning),
            look.scale(finding.probability, finding.absent_below, finding.present_from),
        ]
    parts.append(look.facts(_facts(answer)))
    st.html(look.block(*parts))


def _facts(answer: Answer) -> list[tuple[str, look.Cell]]:
    bundle = _bundle()
    size = f"{answer.columns} × {answer.rows} pixels" if answer.rows and answer.columns else None
    region = [
        ("Region", _box(finding)) for finding in answer.findings if finding.decision == "fracture" and finding.box
    ]
    took = None if answer.milliseconds is None else f"{answer.milliseconds:.0f} ms"
    return [
        ("Image", f"{answer.kind}, {size}" if size else answer.kind),
        *region,
        ("Model", f"{bundle.card.name} {bundle.card.version}"),
        ("Bundle SHA-256", bundle.sha256),
        ("Network", took),
    ]


def _box(finding: FoundOne) -> str:
    assert finding.box is not None  # noqa: S101 (asked before)
    left, top, right, bottom = (round(edge) for edge in finding.box)
    return f"columns {left} to {right}, rows {top} to {bottom}"


def _report(answer: Answer) -> None:
    report = answer.bytes_of("report")
    if report is not None:
        st.download_button(
            "Download the report (DICOM SR)",
            report,
            file_name="osteon-report.dcm",
            mime="application/dicom",
            icon=":material/download:",
            help="The Structured Report that would have been sent",
            on_click="ignore",
        )


def _model_card(card: Card) -> None:
    """What the model was made for, and what not."""
    use = card.intended_use
    ages = "any" if use.ages is None else f"from {use.ages.from_years:g} years"
    parts = ", ".join(part.capitalize() for part in use.body_parts)
    with st.expander("What the model was made for", expanded=True):
        facts: list[tuple[str, look.Cell]] = [
            ("Modality", ", ".join(card.image_modalities)),
            ("Ages", ages),
            ("Body parts", parts),
        ]
        st.html(look.block(look.paragraph(use.statement), look.facts(facts)))
    with st.expander("What it was not made for, and its limits"):
        st.html(look.block(look.items(use.limits)))
    with st.expander("How well it does"):
        shown = {
            "auc": "Area under the ROC curve",
            "sensitivity_at_present_from": "Sensitivity, fracture",
            "specificity_at_present_from": "Specificity, fracture",
            "sensitivity_at_absent_below": "Sensitivity, not “no fracture”",
            "share_undetermined": "Share undetermined",
        }
        rows = [
            (name, f"{metric.value:.1%}", f"{metric.low:.1%} to {metric.high:.1%}")
            for key, name in shown.items()
            if (metric := card.metrics.values.get(key)) is not None
        ]
        st.html(
            look.block(
                look.table("How well the model does", ("Figure", "Value", "Interval"), rows),
                look.paragraph(f"On {card.metrics.images} images, {card.metrics.positives} with a fracture.", "quiet"),
            )
        )


@st.cache_resource(show_spinner=False)
def _bundle() -> Bundle:
    return Bundle.load(state.settings().model_bundle or default_bundle_path())
