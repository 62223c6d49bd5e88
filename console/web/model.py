"""The models: which reads since when, how reviewers agree with it, a shadow beside it, and the cards of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from pydantic import ValidationError
from sqlalchemy import select

from console import access
from console.access import Action, Denied, Person
from console.web import agreement, command, look, model_card, state, who
from models.tables import ModelActivation, ModelVersion
from worker import activation
from worker.activation import CannotActivate
from worker.bundle import Bundle, BundleError, Card
from worker.comparison import Compared, compare, disagreements
from worker.shares import wilson

MOST_SHOWN = 10
"""Images on which active and shadow model differ."""
LONGEST_HISTORY = 100
VERIFY_SECONDS = 120.0
_CONFIRM, _DONE = "model_confirm", "model_done"
_WHY = {
    activation.BY_SETTINGS: "the settings name it",
    activation.PROMOTED: "promoted",
    activation.ROLLED_BACK: "rolled back",
}
_ROLES = {activation.ACTIVE: "Active", activation.SHADOW: "Reads as a shadow", activation.NO_SHADOW: "Shadow no more"}


@dataclass(frozen=True)
class Known:
    """A model that is here or on record; `folder` is None where its bundle is not here, `card` where none is valid."""

    name: str
    sha256: str
    folder: Path | None
    card: Card | None
    plots: dict[str, bytes]


@dataclass(frozen=True)
class Standing:
    """Which model reads, by the record; `before` is what a roll-back makes active, `changes` the newest first."""

    active: ModelVersion | None
    shadow: ModelVersion | None
    before: ModelVersion | None
    changes: list[tuple[ModelActivation, ModelVersion]]

    def since(self, role: str) -> ModelActivation | None:
        """The last change into a role."""
        return next((change for change, _ in self.changes if change.role == role), None)


def page() -> None:
    """Draw the page."""
    person = who.require(Action.VIEW_MODELS)
    standing = _standing()
    known, faults = models_known()
    left, right = st.columns(2, gap="large")
    with left:
        _reads(standing)
    with right:
        _changes(person, standing, known)
    if standing.shadow is not None:
        _compared(standing.shadow)
    st.html(look.block(look.heading("Agreement of reviewers with the model")))
    agreement.draw()
    _cards(standing, known, faults)
    _history(standing)


def _standing() -> Standing:
    with state.database().read() as session:
        return Standing(
            activation.active_version(session),
            activation.shadow_version(session),
            activation.before_active(session),
            activation.history(session, limit=LONGEST_HISTORY),
        )


# --- which model reads ------------------------------------------------------------------------------------------------


def _reads(standing: Standing) -> None:
    parts = [look.heading("Which model reads")]
    if standing.active is None:
        parts.append(look.paragraph("No worker has run here yet: no model is active.", "notice"))
    else:
        parts.append(_one("Active: its answers are sent", standing.active, standing.since(activation.ACTIVE)))
    if standing.shadow is None:
        parts.append(look.paragraph("No shadow model reads beside it.", "quiet"))
    else:
        since = standing.since(activation.SHADOW)
        parts.append(_one("Shadow: recorded and compared, never sent", standing.shadow, since))
    st.html(look.block(*parts))


def _one(title: str, version: ModelVersion, change: ModelActivation | None) -> look.Safe:
    since = None if change is None else f"{change.at:%Y-%m-%d %H:%M:%S} UTC"
    why = None if change is None or change.reason is None else _WHY.get(change.reason, change.reason)
    by = None if change is None else change.by
    facts = look.facts(
        [
            ("Model", f"{version.name} {version.version}"),
            ("Bundle SHA-256", version.bundle_sha256),
            ("Since", since),
            ("By", by if why is None else f"{by}, {why}"),
        ]
    )
    return look.Safe(look.paragraph(title, "standing").html + facts.html)


def _history(standing: Standing) -> None:
    rows = [
        (
            f"{change.at:%Y-%m-%d %H:%M:%S}",
            f"{version.name} {version.version}",
            version.bundle_sha256[:12],
            _ROLES.get(change.role, change.role),
            None if change.reason is None else _WHY.get(change.reason, change.reason),
            change.by,
        )
        for change, version in standing.changes
    ]
    with st.expander("Which model read when"):
        columns = ("When (UTC)", "Model", "SHA-256", "Became", "Why", "By")
        st.html(look.block(look.table("Which model read when", columns, rows)))


# --- changing it ------------------------------------------------------------------------------------------------------


def _changes(person: Person, standing: Standing, known: list[Known]) -> None:
    st.html(look.block(look.heading("Change which model reads")))
    done = st.session_state.pop(_DONE, None)
    if done is not None:
        good, sentence = done
        (st.success if good else st.error)(sentence, icon=":material/check:" if good else ":material/error:")
    if not person.may(Action.CHANGE_MODEL):
        st.html(look.block(look.paragraph("Only an administrator may.", "quiet")))
        return
    waits: _Change | None = st.session_state.get(_CONFIRM)
    if waits is not None:
        _confirm(person, waits)
        return
    shadow, before = standing.shadow, standing.before
    first, second, third = st.columns(3)
    for column, change, possible in (
        (first, None if shadow is None else _promotion(shadow), "Promote the shadow"),
        (second, None if before is None else _roll_back(before), "Roll back"),
        (third, None if shadow is None else _end(shadow), "End the shadow"),
    ):
        named = possible if change is None else change.title
        pressed = column.button(named, disabled=change is None, key=f"model_{possible}", width="stretch")
        if pressed and change is not None:
            st.session_state[_CONFIRM] = change
            st.rerun()
    _offer_shadow(standing, known)


def _offer_shadow(standing: Standing, known: list[Known]) -> None:
    reading = {version.bundle_sha256 for version in (standing.active, standing.shadow) if version is not None}
    offered = [one for one in known if one.folder is not None and one.sha256 not in reading]
    if standing.active is None or not offered:
        sentence = (
            "No other bundle is on this machine to read as a shadow: osteon model shadow BUNDLE takes one from "
            "anywhere, and what lies in the folder bundles of the data folder is offered here."
        )
        st.html(look.block(look.paragraph(sentence, "quiet")))
        return
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    chosen = left.selectbox("Another model", offered, format_func=lambda one: f"{one.name} ({one.sha256[:12]})")
    if right.button("Let it read as a shadow", width="stretch") and chosen is not None:
        st.session_state[_CONFIRM] = _start(chosen)
        st.rerun()


@dataclass(frozen=True)
class _Change:
    """What an administrator is about to do."""

    title: str
    question: str
    act: Callable[[Person], str]
    """Does it; returns what was done."""


def _promotion(shadow: ModelVersion) -> _Change:
    named = _named(shadow)
    return _Change(
        f"Promote {named}",
        f"{named} becomes the active model: from now on its answers are sent. What was sent stays as it is, and images "
        "that it read as a shadow are not reported anew. Workers follow within seconds.",
        lambda person: f"{_said(promote(person, shadow.id))} is active.",
    )


def _roll_back(before: ModelVersion) -> _Change:
    named = _named(before)
    return _Change(
        f"Roll back to {named}",
        f"{named}, which was active before, becomes the active model again. What was sent stays as it is. Workers "
        "follow within seconds.",
        lambda person: f"{_said(roll_back(person, before.id))} is active again.",
    )


def _end(shadow: ModelVersion) -> _Change:
    return _Change(
        "End the shadow",
        f"{_named(shadow)} reads no more beside the active model. What it said stays on record.",
        lambda person: f"{_said(end_shadow(person))} reads no more.",
    )


def _start(chosen: Known) -> _Change:
    return _Change(
        f"Let {chosen.name} read as a shadow",
        f"{chosen.name} ({chosen.sha256[:12]}) is checked, run once, and then reads every image beside the active "
        "model: recorded and compared, never sent. Reading takes about as much longer as its network needs. A shadow "
        "that reads now reads no more.",
        lambda person: f"{_said(start_shadow(person, chosen.sha256))} reads beside the active model.",
    )


def _confirm(person: Person, change: _Change) -> None:
    st.html(look.block(look.paragraph(change.question, "notice")))
    yes, no, _ = st.columns([3, 1, 1])
    if yes.button(f"Yes: {change.title[0].lower()}{change.title[1:]}", width="stretch"):
        del st.session_state[_CONFIRM]
        st.session_state[_DONE] = _done(person, change)
        st.rerun()
    if no.button("Cancel", width="stretch"):
        del st.session_state[_CONFIRM]
        st.rerun()


def _done(person: Person, change: _Change) -> tuple[bool, str]:
    try:
        with st.spinner("One moment"):
            return True, change.act(person)
    except Denied as error:
        return False, f"Not allowed. {error}"
    except (CannotActivate, BundleError, command.GaveUp) as error:
        return False, f"Not done: {error}."
    except OSError as error:
        return False, f"Not done: the bundle cannot be kept in the data folder ({error.strerror})."


def promote(person: Person, expected: int) -> int:
    """Make the shadow active, where the person may. Raises Denied, and what `activation.promote` does."""
    _authorise(person)
    return activation.promote(state.settings(), state.database(), by=person.actor, expected=expected)


def roll_back(person: Person, expected: int) -> int:
    """Make the model active again that was so before. Raises Denied, and what `activation.roll_back` does."""
    _authorise(person)
    return activation.roll_back(state.settings(), state.database(), by=person.actor, expected=expected)


def end_shadow(person: Person) -> int:
    """Let nothing read beside the active model any more. Raises Denied, and what `activation.end_shadow` does."""
    _authorise(person)
    return activation.end_shadow(state.database(), by=person.actor)


def start_shadow(person: Person, sha256: str) -> int:
    """Let a bundle that is on this machine read beside the active model, once it was checked and run.

    The model runs in a process of its own: this one never loads any.

    Raises
    ------
    Denied, BundleError, CannotActivate, OSError
        As `activation.set_shadow` does.
    console.web.command.GaveUp
        The check took too long.
    """
    _authorise(person)
    bundle = activation.find(state.settings(), sha256)
    done = command.run(["model", "verify", str(bundle.path)], state.settings(), seconds=VERIFY_SECONDS)
    if done.status != 0:
        raise BundleError(f"the bundle cannot be used here; `osteon model verify` says why (status {done.status})")
    return activation.set_shadow(state.settings(), state.database(), bundle, by=person.actor)


def _authorise(person: Person) -> None:
    access.authorise(state.database(), person, Action.CHANGE_MODEL, subject="model_version")


def _named(version: ModelVersion) -> str:
    return f"{version.name} {version.version}"


def _said(version_id: int) -> str:
    with state.database().read() as session:
        return _named(session.get_one(ModelVersion, version_id))


# --- the shadow -------------------------------------------------------------------------------------------------------


def _compared(shadow: ModelVersion) -> None:
    """What the shadow says against what was sent, as `osteon model compare` shows it."""
    with state.database().read() as session:
        found = compare(session, shadow)
        apart = disagreements(session, shadow, limit=MOST_SHOWN)
    parts = [look.heading(f"The shadow {_named(shadow)} against what was sent")]
    if not found:
        parts.append(look.paragraph("It has read no image yet.", "quiet"))
    for one in found:
        parts += _finding(one)
    left, right = st.columns(2, gap="large")
    left.html(look.block(*parts))
    if apart:
        rows = [
            (look.link(f"Study {study}", f"study?study={study}"), image, look.decision(sent), look.decision(said))
            for study, image, sent, said in apart
        ]
        columns = ("Study", "Image", "Sent", "The shadow says")
        title = look.heading(
            f"Decided otherwise, the newest {MOST_SHOWN}" if len(rows) == MOST_SHOWN else "Decided otherwise"
        )
        right.html(look.block(title, look.table("Decided otherwise", columns, rows)))


def _finding(one: Compared) -> list[look.Safe]:
    low, high = wilson(one.alike, one.images)
    sentence = (
        f"{one.finding}: decided alike on {one.agreement:.1%} of {one.images} images (95 % interval {low:.1%} to "
        f"{high:.1%}). Probabilities differ by {one.mean_difference:.3f} on average, {one.largest_difference:.3f} at "
        "most."
    )
    decisions = ("fracture", "no_fracture", "undetermined")
    counts = {(cell.active, cell.shadow): cell.images for cell in one.cells}
    rows: list[list[look.Cell]] = [
        [look.decision(active), *(counts.get((active, beside), 0) for beside in decisions)] for active in decisions
    ]
    columns = ("Sent", *(f"Shadow: {look.DECISIONS[name][1].lower()}" for name in decisions))
    return [look.paragraph(sentence), look.table(f"{one.finding}: images by both decisions", columns, rows)]


# --- cards ------------------------------------------------------------------------------------------------------------


def _cards(standing: Standing, known: list[Known], faults: list[str]) -> None:
    st.html(look.block(look.heading("Cards of the models")))
    for fault in faults:
        st.html(look.block(look.paragraph(f"Cannot be used: {fault}", "broken")))
    if not known:
        return
    active = None if standing.active is None else standing.active.bundle_sha256
    shadow = None if standing.shadow is None else standing.shadow.bundle_sha256
    known = sorted(known, key=lambda one: (one.sha256 != active, one.sha256 != shadow, one.name))

    def named(one: Known) -> str:
        role = {active: ", active", shadow: ", shadow"}.get(one.sha256, "")
        return f"{one.name} ({one.sha256[:12]}){role}"

    chosen = st.selectbox("Model", known, format_func=named)
    if chosen.card is None:
        st.html(look.block(look.paragraph("Its bundle is not here, and its card is of another version.", "notice")))
        return
    if chosen.folder is None:
        st.html(look.block(look.paragraph("Its bundle is not on this machine: the card is the record's.", "notice")))
    model_card.draw(chosen.card, chosen.plots)


def models_known() -> tuple[list[Known], list[str]]:
    """Return every model that is here or on record, and what is wrong with bundles that cannot be used."""
    found: dict[str, Known] = {}
    faults = []
    for folder in activation.folders(state.settings()):
        sums = activation.sums_of(folder)
        if sums is None or sums in found:
            continue
        try:
            card, plots = _read(str(folder), sums)
        except BundleError as error:
            faults.append(f"{folder.name}: {error}")
        else:
            found[sums] = Known(f"{card.name} {card.version}", sums, folder, card, plots)
    with state.database().read() as session:
        for version in session.scalars(select(ModelVersion).order_by(ModelVersion.id.desc())):
            one = Known(_named(version), version.bundle_sha256, None, _card(version), {})
            found.setdefault(version.bundle_sha256, one)
    return list(found.values()), faults


@st.cache_data(max_entries=16, show_spinner="Reading the bundles")
def _read(folder: str, sums: str) -> tuple[Card, dict[str, bytes]]:
    """The card and the plots of the bundle with these sums, which never change. Raises BundleError."""
    bundle = Bundle.load(Path(folder))
    if bundle.sha256 != sums:
        raise BundleError("it is being written")
    plots = {}
    for name, sum_ in bundle.files.items():
        if name.endswith(".png"):
            content = (bundle.path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == sum_:
                plots[name] = content
    return bundle.card, plots


def _card(version: ModelVersion) -> Card | None:
    try:
        return Card.model_validate_json(json.dumps(version.card))
    except ValidationError:
        return None
