"""The audit trail: what was done by whom to what, whether the record of it stands, and a signed copy of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from console import access
from console.access import Action, Person
from console.web import command, look, state, who
from console.web.verification import Check, Verifier
from models import audit, clock
from models.audit_search import Entry, Page, Position, Search, count, search, study_of
from models.tables import AuditEvent

PAGE_SIZE = 50
MOST_EXPORTED = 50_000
"""Events in a file that is made here; a longer one is made by the command."""
EXPORT_SECONDS = 300.0
REPLAY_SECONDS = 120.0
LOOK_AGAIN = timedelta(seconds=1)
_SEARCH, _PAGES, _EXPORT, _REPLAY = "audit_search", "audit_pages", "audit_export", "audit_replay"
_COLUMNS = ("Event", "Time (UTC)", "Who", "What", "About", "Details", "Place")
_FAR = date(2100, 1, 1)


@dataclass(frozen=True)
class Asked:
    """A search, and what of it is not on record."""

    search: Search
    no_study: bool = False


def page() -> None:
    """Draw the page."""
    person = who.require(Action.VIEW_AUDIT, subject="audit")
    left, right = st.columns(2, gap="large")
    with left:
        _verification(person)
    with right:
        _replay(person)
    asked = _asked()
    if st.session_state.get(_SEARCH) != asked:
        st.session_state[_SEARCH], st.session_state[_PAGES] = asked, [None]
        st.session_state.pop(_EXPORT, None)
        _record_that_it_was_looked_at(person, asked.search)
    _events(person, asked)


# --- searching --------------------------------------------------------------------------------------------------------


def _asked() -> Asked:
    """Draw the fields of the search; return what is looked for."""
    st.html(look.block(look.heading("Events")))
    with st.form("audit_form", border=False):
        row = st.columns([2, 2, 3, 1.4, 1.4, 1], vertical_alignment="bottom")
        by = row[0].text_input("Who", help="A person's or a part's name; worker@* for all that begin so")
        kind = row[1].text_input("What", help="image.analysed; report.* for all that begin so")
        study = row[2].text_input("Study", help="Its Study Instance UID, or its number")
        since = row[3].date_input("From", value=None, format="YYYY-MM-DD", max_value=_FAR)
        until = row[4].date_input("To", value=None, format="YYYY-MM-DD", max_value=_FAR)
        row[5].form_submit_button("Search", width="stretch")
    study_id = None
    if study.strip():
        with state.database().read() as session:
            study_id = study_of(session, study.strip())
    # A bare name is a person's; parts of the node and people at a terminal are `name@host`.
    is_person = bool(by.strip()) and not any(sign in by for sign in ":@*")
    wanted = Search(
        actor=None if is_person else by.strip() or None,
        person=by.strip() if is_person else None,
        action=kind.strip() or None,
        study_id=study_id,
        since=_day(since),
        before=None if not isinstance(until, date) else _day(until + timedelta(days=1)),
    )
    return Asked(wanted, no_study=bool(study.strip()) and study_id is None)


def _day(day: object) -> datetime | None:
    return datetime.combine(day, time(), UTC) if isinstance(day, date) else None


def _events(person: Person, asked: Asked) -> None:
    pages: list[Position | None] = st.session_state[_PAGES]
    found = Page([], None)
    if not asked.no_study:
        with state.database().read() as session:
            found = search(session, asked.search, after=pages[-1], size=PAGE_SIZE)
    st.html(look.block(_said(asked, found, len(pages)), _table(found.entries)))
    newer, older, _, export = st.columns([1, 1, 3, 3], vertical_alignment="top")
    if newer.button("Newer", disabled=len(pages) == 1, icon=":material/chevron_left:", width="stretch"):
        pages.pop()
        st.rerun()
    if older.button("Older", disabled=found.following is None, icon=":material/chevron_right:", width="stretch"):
        pages.append(found.following)
        st.rerun()
    with export:
        _export(person, asked)


def _said(asked: Asked, found: Page, number: int) -> look.Safe:
    if asked.no_study:
        return look.paragraph("There is no such study.", "notice")
    if not found.entries:
        return look.paragraph("No such event.", "quiet")
    events = "1 event" if len(found.entries) == 1 else f"{len(found.entries)} events"
    return look.paragraph(f"Page {number}, {events}, the newest first. Times are UTC.", "quiet")


def _table(entries: Sequence[Entry]) -> look.Safe:
    return look.table("Events", _COLUMNS, [_row(entry) for entry in entries]) if entries else look.Safe("")


def _row(entry: Entry) -> list[look.Cell]:
    event = entry.event
    details = ", ".join(f"{key} {_short(value)}" for key, value in event.details.items() if value is not None)
    place = look.span("not chained yet", "quiet") if entry.place is None else entry.place
    return [event.id, f"{event.at:%Y-%m-%d %H:%M:%S}", event.actor, event.action, _about(event), details, place]


def _about(event: AuditEvent) -> look.Cell:
    if event.subject_id is None:
        return event.subject
    named = f"{event.subject} {event.subject_id}"
    return look.link(named, f"study?study={event.subject_id}") if event.subject == "study" else named


def _short(value: object) -> str:
    """A digest's first digits: the whole one stands in an export."""
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 40 and " " not in text else text


def _record_that_it_was_looked_at(person: Person, wanted: Search) -> None:
    """Looking is an event: by which fields was searched, and in which study."""
    by = ",".join(field.name for field in fields(wanted) if getattr(wanted, field.name) is not None)
    with state.database().write() as session:
        audit.record(
            session,
            actor=person.actor,
            action="audit.viewed",
            subject="audit" if wanted.study_id is None else "study",
            subject_id=wanted.study_id,
            **({"by": by} if by else {}),
        )


# --- verifying --------------------------------------------------------------------------------------------------------


@cache
def verifier() -> Verifier:
    """Return what checks the trail; all sessions share it."""
    return Verifier()


def _verification(person: Person) -> None:
    st.html(look.block(look.heading("Does the record stand?")))
    if verifier().is_running:
        _progress()
        return
    check = verifier().check
    st.html(look.block(*(_outcome(check) if check is not None else [_never()])))
    if st.button("Verify the whole trail", icon=":material/fact_check:", disabled=not person.may(Action.VERIFY_AUDIT)):
        verifier().start(state.database(), state.settings(), person)
        st.rerun()


def _never() -> look.Safe:
    return look.paragraph(
        "Checks every event, the chain of hashes and its signed heads, as osteon audit verify does. A million events "
        "take one to two minutes; the page can be left meanwhile.",
        "quiet",
    )


@st.fragment(run_every=LOOK_AGAIN)
def _progress() -> None:
    """Draw how far the check is, by itself again and again."""
    who.require(Action.VIEW_AUDIT, subject="audit", by_itself=True)
    check = verifier().check
    if check is None or check.ended_at is not None:
        st.rerun()
    share = check.done / check.of if check.of else 0.0
    seconds = max((clock.now() - check.began_at).total_seconds(), 0.0)
    left = f", about {seconds * (1 - share) / share:.0f} s left" if 0.02 < share < 1 and seconds > 2 else ""
    told = f"{check.done:,} of {check.of:,} places" if check.of else "Beginning"
    st.progress(share, text=f"Verifying: {told}{left}. Asked for by {check.by}; the page can be left.")


def _outcome(check: Check) -> list[look.Safe]:
    """What came of a check; the first fault stands first."""
    assert check.ended_at is not None  # noqa: S101 (asked before)
    took = (check.ended_at - check.began_at).total_seconds()
    when = look.paragraph(f"Verified {check.ended_at:%Y-%m-%d %H:%M:%S} UTC by {check.by}, in {took:.0f} s.", "quiet")
    verdict = check.verdict
    if verdict is None:
        return [look.paragraph(f"⚠ Not verified. {check.trouble}", "broken"), when]
    if verdict.well:
        parts = [look.paragraph("✓ All is as it was recorded.", "well")]
    else:
        more = f" … and {verdict.more_faults} more." if verdict.more_faults else ""
        count_ = len(verdict.faults) + verdict.more_faults
        title = "✗ Broken: the first fault is" if count_ == 1 else f"✗ Broken in {count_} places; the first is"
        parts = [look.paragraph(f"{title}: {verdict.faults[0].what}", "broken")]
        if len(verdict.faults) > 1:
            parts.append(look.items(fault.what for fault in verdict.faults[1:]))
        if more:
            parts.append(look.paragraph(more, "quiet"))
    heads = "1 signed head" if verdict.heads == 1 else f"{verdict.heads} signed heads"
    signed = "no place is signed yet" if not verdict.signed_to else f"signed to place {verdict.signed_to}"
    counts = f"{verdict.events:,} events, {verdict.places:,} places in the chain, {heads}, {signed}."
    notes = [look.paragraph(note, "quiet") for note in verdict.notes]
    return [*parts, look.paragraph(counts), *notes, when]


# --- a signed copy ----------------------------------------------------------------------------------------------------


def _export(person: Person, asked: Asked) -> None:
    """The events of the study and the days that are searched for, as a signed file."""
    made: tuple[bytes, int] | str | None = st.session_state.get(_EXPORT)
    if isinstance(made, tuple):
        content, events = made
        st.download_button(
            f"Download {events} event{'' if events == 1 else 's'}, signed",
            content,
            file_name="osteon-audit.jsonl",
            mime="application/jsonl",
            icon=":material/download:",
            on_click="ignore",
        )
        return
    if st.button(
        "Make a signed export",
        icon=":material/signature:",
        disabled=asked.no_study or not person.may(Action.EXPORT_AUDIT),
        help="All events of the study and the days above, by whomever and of whatever kind. "
        "`osteon audit verify FILE` checks the file on any machine.",
    ):
        with st.spinner("Writing and signing"):
            st.session_state[_EXPORT] = export(person, asked.search)
        st.rerun()
    if isinstance(made, str):
        st.error(made, icon=":material/error:")


def export(person: Person, wanted: Search) -> tuple[bytes, int] | str:
    """Return a signed file of the events of a study and a time, and their number; or why not. Raises Denied."""
    about = "audit" if wanted.study_id is None else "study"
    access.authorise(state.database(), person, Action.EXPORT_AUDIT, subject=about, subject_id=wanted.study_id)
    all_of_them = Search(study_id=wanted.study_id, since=wanted.since, before=wanted.before)
    with state.database().read() as session:
        if count(session, all_of_them, most=MOST_EXPORTED) > MOST_EXPORTED:
            return f"More than {MOST_EXPORTED:,} events: choose fewer days, or use `osteon audit export`."
    options = ["--by", person.actor]
    for name, value in (("--study", wanted.study_id), ("--from", wanted.since), ("--to", wanted.before)):
        options += [] if value is None else [name, value.isoformat() if isinstance(value, datetime) else str(value)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "export.jsonl"
        arguments = ["audit", "export", str(file), "--json", *options]
        try:
            done = command.run(arguments, state.settings(), seconds=EXPORT_SECONDS)
        except command.GaveUp as error:
            return str(error)
        if done.status != 0:
            return f"It was not made: {done.complained}"
        return file.read_bytes(), int(json.loads(done.said)["events"])


# --- does a prediction come out again? --------------------------------------------------------------------------------


def _replay(person: Person) -> None:
    st.html(look.block(look.heading("Does a prediction come out again?")))
    with st.form("replay_form", border=False):
        row = st.columns([2, 1, 3], vertical_alignment="bottom")
        number = row[0].number_input("Prediction", min_value=1, max_value=10**15, value=None, step=1)
        asked = row[1].form_submit_button("Replay", width="stretch", disabled=not person.may(Action.REPLAY))
    if asked and number is not None:
        with st.spinner("Running the model on the stored image"):
            st.session_state[_REPLAY] = replay(person, int(number))
    found: dict[str, Any] | str | None = st.session_state.get(_REPLAY)
    if isinstance(found, str):
        st.html(look.block(look.paragraph(found, "broken")))
    elif found is not None:
        st.html(look.block(*_replayed(found)))
    else:
        st.html(
            look.block(
                look.paragraph(
                    "Runs it again from the stored image and the bundle with the same sha256, and compares decision, "
                    "probability and region, as osteon replay does.",
                    "quiet",
                )
            )
        )


def replay(person: Person, prediction: int) -> dict[str, Any] | str:
    """Run a prediction again; return what `osteon replay --json` says, or why nothing came of it. Raises Denied."""
    access.authorise(state.database(), person, Action.REPLAY, subject="prediction", subject_id=prediction)
    arguments = ["replay", str(prediction), "--json", "--by", person.actor]
    try:
        done = command.run(arguments, state.settings(), seconds=REPLAY_SECONDS)
    except command.GaveUp as error:
        return str(error)
    if done.status not in (0, 1, 2) or not done.said:
        return f"It was not run. {done.complained}"
    (found,) = json.loads(done.said)["replays"]
    made: dict[str, Any] = found
    return made


def _replayed(found: dict[str, Any]) -> list[look.Safe]:
    number = found["prediction"]
    sources = " and the ".join({"input": "kept input", "file": "received file"}[one] for one in found["ran_from"])
    said = {
        "same": ("well", f"✓ Prediction {number} comes out the same, from the {sources}."),
        "differs": ("broken", f"✗ Prediction {number} differs."),
        "impossible": ("notice", f"⚠ Prediction {number} cannot be run again."),
    }
    kind, sentence = said[found["outcome"]]
    rows = [(one["from"], one["what"], one["recorded"], one["now"]) for one in found["differences"]]
    differences = [look.table("What differs", ("From", "What", "Recorded", "Now"), rows)] if rows else []
    lines = [*found["notes"], *dict.fromkeys(found["compared"])]
    return [look.paragraph(sentence, kind), *differences, look.items(lines)]
