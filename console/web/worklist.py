"""The worklist: studies as they arrive, the newest first, and found by what people search for."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import date, timedelta
from typing import Any

import streamlit as st

from console.access import Action, Person
from console.web import look, state, who
from models import audit, clock
from models.tables import StudyState
from models.worklist import Entry, Page, Position, Search, worklist

PAGE_SIZE = 50
LOOK_AGAIN = timedelta(seconds=5)
_COLUMNS = (
    "Received",
    "Patient ID",
    "Patient",
    "Study date",
    "Accession",
    "Description",
    "From",
    "Images",
    "State",
    "Decision",
)
_DECISIONS = [name for name in look.DECISIONS if name != "not_analysed"]


def page() -> None:
    """Draw the page."""
    person = who.require(Action.VIEW_WORKLIST)
    search = _asked()
    if st.session_state.get("worklist_search") != search:
        st.session_state["worklist_search"], st.session_state["worklist_pages"] = search, [None]
        _audit(person, search)
    _studies()


def _asked() -> Search:
    """Draw the fields of the search; return what is looked for."""
    with st.form("worklist_form", border=False):
        row = st.columns([2, 2, 1.6, 1.6, 1.8, 1.8, 1], vertical_alignment="bottom")
        patient_id = row[0].text_input("Patient ID")
        accession = row[1].text_input("Accession number")
        day = row[2].date_input("Study date", value=None, format="YYYY-MM-DD", max_value=date(2100, 1, 1))
        calling = row[3].text_input("From (AE title)", max_chars=16)
        decision = row[4].selectbox("Decision", [None, *_DECISIONS], format_func=_decision_word)
        study_state = row[5].selectbox("State", [None, *StudyState], format_func=_state_word)
        row[6].form_submit_button("Search", width="stretch")
    return Search(
        patient_id=patient_id.strip() or None,
        accession_number=accession.strip() or None,
        study_date=day.strftime("%Y%m%d") if isinstance(day, date) else None,
        calling_ae_title=calling.strip() or None,
        decision=decision,
        state=study_state,
    )


def _decision_word(name: str | None) -> str:
    return "Any" if name is None else look.DECISIONS[name][1]


def _state_word(name: StudyState | None) -> str:
    return "Any" if name is None else look.STATES[name.value]


@st.fragment(run_every=LOOK_AGAIN)
def _studies() -> None:
    """Draw one page of studies; by itself again and again, so that it shows what arrives."""
    pages: list[Position | None] = st.session_state["worklist_pages"]
    # A button is what a person did: the page then runs whole, and keeps their session alive.
    who.require(Action.VIEW_WORKLIST, by_itself=True)
    with state.database().read() as session:
        found = worklist(session, st.session_state["worklist_search"], after=pages[-1], size=PAGE_SIZE)
    st.html(look.block(_said(found, len(pages)), _table(found)))
    newer, older, rest = st.columns([1, 1, 6], vertical_alignment="center")
    if newer.button("Newer", disabled=len(pages) == 1, icon=":material/chevron_left:", width="stretch"):
        pages.pop()
        st.rerun()
    if older.button("Older", disabled=found.following is None, icon=":material/chevron_right:", width="stretch"):
        pages.append(found.following)
        st.rerun()
    rest.caption(f"Looked at {clock.now():%H:%M:%S} UTC, and again every {LOOK_AGAIN.seconds} s.")


def _said(found: Page, number: int) -> look.Safe:
    if not found.entries:
        return look.paragraph("No study is found.", "quiet")
    count = "1 study" if len(found.entries) == 1 else f"{len(found.entries)} studies"
    return look.paragraph(f"Page {number}, {count}, the newest first. Times are UTC.", "quiet")


def _table(found: Page) -> look.Safe:
    return look.table("Studies", _COLUMNS, [_row(entry) for entry in found.entries]) if found.entries else look.Safe("")


def _row(entry: Entry) -> list[look.Cell]:
    study = entry.study
    urgent = ' <span class="urgent">urgent</span>' if study.urgent else ""
    waiting = f"{entry.images - entry.waiting} of {entry.images} read" if entry.waiting else str(entry.images)
    return [
        # The row's number: no patient stands in an address.
        look.Safe(look.link(f"{study.first_image_at:%Y-%m-%d %H:%M:%S}", f"study?study={study.id}").html + urgent),
        study.patient_id,
        readable_name(study.patient_name),
        readable_date(study.study_date),
        study.accession_number,
        study.study_description,
        study.calling_ae_title,
        waiting,
        look.STATES[study.state.value],
        look.decision(study.decision),
    ]


def readable_name(name: str) -> str:
    """A person name (PS3.5, 6.2) as people write it: "Family, Given", of its first group that is not empty."""
    group = next((group for group in name.split("=") if group.strip("^ ")), "")
    parts = [part.strip() for part in group.split("^")]
    family, given = parts[0], " ".join(part for part in parts[1:3] if part)
    return ", ".join(part for part in (family, given) if part)


def readable_date(text: str) -> str:
    """A DICOM date with dashes, or what stands in its place."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _audit(person: Person, search: Search) -> None:
    """Looking at patients is an event: by which fields was searched, not for what."""
    asked: dict[str, Any] = asdict(search)
    by = ",".join(field.name for field in fields(search) if asked[field.name] is not None)
    with state.database().write() as session:
        audit.record(
            session,
            actor=person.actor,
            action="worklist.viewed",
            subject="console",
            subject_id=None,
            **({"by": by} if by else {}),
        )
