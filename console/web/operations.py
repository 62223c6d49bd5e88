"""Operations: what waits, what is done, what failed, who was heard of; and what an administrator can do about it."""

from __future__ import annotations

import platform
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from html import escape
from importlib.metadata import version
from typing import Any

import streamlit as st
from sqlalchemy.orm import Session

from console import access
from console.access import Action, Denied, Person
from console.deliveries import MOST_COUNTED as MOST_COUNTED_BEYOND
from console.deliveries import listed, requested
from console.doctor.disk import GIB, space_of
from console.doctor.peers import area_of, look_at_peer
from console.doctor.rounds import Check, go_round
from console.doctor.verdict import Finding, Standing, wrong
from console.doctor.work import for_a_person, silent, waiting
from console.web import look, state, who
from console.web.bars import bars
from console.web.parts import Answer, parts_look
from models import audit, clock, operations
from models.database import Database
from models.operations import MOST_COUNTED, Contact, Failures, Hour, Stage
from models.reasons import Reason
from models.settings import Peer, Settings
from models.silence import Source, in_words, sources
from models.tables import DeliveryState
from models.version import REVISION, VERSION
from worker.activation import active_version, shadow_version
from worker.again import answer_again, ask_again

LOOK_AGAIN, LOOK_SOON = timedelta(seconds=15), timedelta(seconds=2)
MOST_SHOWN = 20
ECHO_SECONDS = 3.0
"""For each answer of a peer."""
LONGEST_ECHO_SECONDS = 12.0
ECHOES_AT_ONCE = 4
PERIODS = {"24 hours": 1, "7 days": 7, "30 days": 30}
_STAGES = {
    "receive": "Studies being received",
    "analyse": "Images to read",
    "examine": "Resends to compare",
    "report": "Studies to report",
    "deliver": "Results to deliver",
    "committed": "Deliveries to be committed by their destination",
    "commit": "Commitment requests of senders to answer",
}
_FAILED = {
    "image": "Image not analysed",
    "quarantine": "Quarantined",
    "study": "Study needs attention",
    "delivery": "Delivery needs attention",
    "request": "Commitment request needs attention",
}
_SHAPES = {Standing.OK: ("●", "Ok"), Standing.WARNING: ("▲", "Warning"), Standing.WRONG: ("■", "Wrong")}
_CHOSEN, _RETRY_ALL, _SAID = "operations_chosen", "operations_retry_all", "operations_said"
_ACTED, _ECHOED = "operations_acted", "operations_echoed"
_echoes = threading.BoundedSemaphore(ECHOES_AT_ONCE)


def page() -> None:
    """Draw the page."""
    who.require(Action.VIEW_OPERATIONS)
    soon = parts_look.latest(state.settings()) is None
    st.fragment(_standing, run_every=LOOK_SOON if soon else LOOK_AGAIN)(soon)


def _standing(soon: bool) -> None:
    """Draw everything; by itself again and again, so that it shows how things stand now.

    `soon` is where nobody had asked the parts for long, so that their first answer is on its way.
    """
    if st.session_state.pop(_ACTED, False):
        # A button is what a person did: the page then runs whole, and keeps their session alive.
        st.rerun()
    person = who.require(Action.VIEW_OPERATIONS, by_itself=True)
    settings = state.settings()
    parts = parts_look.latest(settings)
    if soon and parts is not None:
        st.rerun()
    with state.database().read() as session:
        found = sources(session, settings)
        notices = [*waiting(session, settings), *for_a_person(session), *silent(found)]
        stages, holders = operations.queue(session), operations.holders(session)
        hours = operations.throughput(session)
        contacts = operations.contacts(session, [peer.name for peer in settings.destinations])
        facts = _versions(session)
    _notices([*notices, *_disk(settings), *([] if parts is None else parts.findings)])
    left, right = st.columns([3, 2], gap="large")
    left.html(look.block(look.heading("Work that waits"), _queue(stages), _holders(holders)))
    right.html(look.block(look.heading("Parts"), _parts(parts)))
    _throughput(hours)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _needing_attention(person)
        _peers(person, settings, found, contacts)
    with right:
        _failures()
        st.html(look.block(look.heading("Versions and space"), look.facts([*facts, *_space(settings)])))
    st.caption(f"Times are UTC. Looked at {clock.now():%H:%M:%S}, and again every {LOOK_AGAIN.seconds} s.")


# --- how it stands ----------------------------------------------------------------------------------------------------


def _notices(findings: Iterable[Finding]) -> None:
    """What somebody has to look at, the worst first; or that there is nothing."""
    bad = [finding for finding in findings if finding.standing is not Standing.OK]
    if not bad:
        st.html(look.block(look.Safe(f"<p>{_standing_word(Standing.OK).html} Nothing needs attention.</p>")))
        return
    bad.sort(key=lambda finding: finding.standing is not Standing.WRONG)
    st.html(look.block(_findings("What needs attention", bad)))


def _findings(caption: str, findings: Iterable[Finding]) -> look.Safe:
    rows = [
        (_standing_word(finding.standing), _sentence(finding.said), _sentence(finding.todo)) for finding in findings
    ]
    return look.table(caption, ("Standing", "What", "What to do"), rows)


def _sentence(text: str) -> look.Safe:
    """As the doctor says it, with a capital, and commands as such."""
    pieces = (text[:1].upper() + text[1:]).split("`")
    return look.Safe(
        "".join(f"<code>{escape(piece)}</code>" if odd % 2 else escape(piece) for odd, piece in enumerate(pieces))
    )


def _standing_word(standing: Standing) -> look.Safe:
    shape, word = _SHAPES[standing]
    return look.Safe(f'<span class="standing {standing.value}"><span aria-hidden="true">{shape}</span> {word}</span>')


def _queue(stages: Sequence[Stage]) -> look.Safe:
    now = clock.now()
    rows = [
        (
            _STAGES[stage.name],
            f"{stage.waiting:,} or more" if stage.waiting >= MOST_COUNTED else f"{stage.waiting:,}",
            f"{stage.in_hand:,}" if stage.in_hand else None,
            None if stage.oldest_at is None else in_words(now - stage.oldest_at),
        )
        for stage in stages
    ]
    return look.table("Work that waits", ("Stage", "Waiting", "In hand", "Oldest"), rows)


def _holders(holders: Sequence[operations.Holder]) -> look.Safe:
    if not holders:
        return look.paragraph("Nobody holds work at this moment.", "quiet")
    held = ", ".join(f"{holder.name} ({holder.rows})" for holder in holders)
    return look.paragraph(f"Held by living processes: {held}.", "quiet")


def _parts(answer: Answer | None) -> look.Safe:
    if answer is None:
        return look.paragraph("They are being asked.", "quiet")
    rows = [(_standing_word(finding.standing), _sentence(finding.said)) for finding in answer.findings]
    asked = look.paragraph(f"Asked {in_words(clock.now() - answer.asked_at)} ago.", "quiet")
    return look.Safe(look.table("Parts", ("Standing", "How it is"), rows).html + asked.html)


def _throughput(hours: Sequence[Hour]) -> None:
    names = [f"{hour.began_at:%H}:00" for hour in hours]
    of = {
        "Instances received": [hour.received for hour in hours],
        "Images read": [hour.read for hour in hours],
        "Results delivered": [hour.delivered for hour in hours],
    }
    for column, (title, values) in zip(st.columns(3, gap="large"), of.items(), strict=True):
        column.html(look.block(bars(f"{title}, last 24 h", names, values)))
    with st.expander("Figures by the hour"):
        rows = [(f"{h.began_at:%a %H:%M}", h.received, h.read, h.delivered) for h in reversed(hours)]
        st.html(look.block(look.table("Figures by the hour", ("Hour from", *of), rows)))


def _failures() -> None:
    st.html(look.block(look.heading("Failures by reason")))
    period = st.selectbox("Of what came in the last", list(PERIODS), key="operations_period", width=220)
    with state.database().read() as session:
        found = operations.failures(session, clock.now() - timedelta(days=PERIODS[period]))
    if not found:
        st.html(look.block(look.paragraph("None.", "quiet")))
        return
    rows = [(_FAILED[one.what], _reason(one), f"{one.count:,}", "Waits" if one.still_open else None) for one in found]
    st.html(look.block(look.table("Failures by reason", ("What", "Reason", "Count", "For a person"), rows)))


def _reason(one: Failures) -> str:
    """As a sentence where there is one."""
    if one.what == "image" and one.reason in set(Reason):
        return Reason(one.reason).sentence
    return _words(one.reason)


def _words(code: str | None) -> str:
    return "" if code is None else code.replace("_", " ").capitalize().replace("Sop class", "SOP class")


def _disk(settings: Settings) -> Iterator[Finding]:
    try:
        yield space_of(settings).judged()
    except OSError as error:
        yield wrong("disk", f"the spool cannot be looked at: {error.strerror}", "is its file system mounted?")


def _space(settings: Settings) -> list[tuple[str, look.Cell]]:
    try:
        space = space_of(settings)
    except OSError:
        return [("Spool", "cannot be looked at")]
    return [
        ("Spool", f"{space.free / GIB:.1f} of {space.total / GIB:.1f} GiB are free"),
        ("Floor", f"C-STORE is refused below {space.floor / GIB:.2f} GiB"),
    ]


def _versions(session: Session) -> list[tuple[str, look.Cell]]:
    active, shadow = active_version(session), shadow_version(session)
    dialect = session.get_bind().dialect
    number = dialect.server_version_info if dialect.name == "postgresql" else sqlite3.sqlite_version_info
    database = "PostgreSQL" if dialect.name == "postgresql" else "SQLite"
    models = [("Model", active), *([("Shadow model", shadow)] if shadow is not None else [])]
    return [
        ("Osteon", VERSION),
        ("Record", f"revision {REVISION}, {database} {'.'.join(map(str, number or ()))}"),
        *((name, None if found is None else f"{found.name} {found.version}") for name, found in models),
        ("Python", platform.python_version()),
        ("pydicom, pynetdicom", f"{version('pydicom')}, {version('pynetdicom')}"),
    ]


# --- peers ------------------------------------------------------------------------------------------------------------


def _peers(person: Person, settings: Settings, found: Sequence[Source], contacts: Sequence[Contact]) -> None:
    parts = [look.heading("Peers")]
    if found:
        rows = [_source(source) for source in found]
        parts.append(look.table("Sources", ("Source", "AE title", "Last contact", "State", "Known by"), rows))
    if contacts:
        peers = {peer.name: peer for peer in settings.destinations}
        rows = [_destination(peers[contact.destination], contact) for contact in contacts]
        columns = ("Destination", "Protocol", "Reached", "Last delivered", "Last tried", "State")
        parts.append(look.table("Destinations", columns, rows))
    if not found and not contacts:
        parts.append(look.paragraph("No peer stands in the settings.", "quiet"))
    st.html(look.block(*parts))
    if person.may(Action.ECHO) and settings.peers:
        _echo_one(person, settings)


def _source(source: Source) -> list[look.Cell]:
    silent = look.Safe('<span class="standing warning"><span aria-hidden="true">▲</span> Silent</span>')
    heard = look.Safe('<span class="standing ok"><span aria-hidden="true">●</span> Heard</span>')
    unknown = look.Safe('<span class="quiet"><span aria-hidden="true">○</span> Not known</span>')
    state_of = silent if source.is_silent else heard if source.is_known and source.heard_at else unknown
    return [source.peer, source.ae_title, _ago(source.heard_at), state_of, _sentence(source.why)]


def _destination(peer: Peer, contact: Contact) -> list[look.Cell]:
    shape, word = ("○", "Not asked yet") if contact.reached_at is None else ("●", "Well")
    kind = "quiet" if contact.reached_at is None else "standing ok"
    more = ""
    if contact.failures:
        kind, shape, word = "standing warning", "▲", "Away"
        tries = f"{contact.failures} {'try' if contact.failures == 1 else 'tries'} in vain"
        more = f" {_words(contact.reason)}, {tries}" if contact.reason else f" {tries}"
    says = look.Safe(f'<span class="{kind}"><span aria-hidden="true">{shape}</span> {word}</span>')
    cell = look.Safe(says.html + look.span(more).html) if more else says
    protocol = {"dimse": "DIMSE", "dicomweb": "DICOMweb", "hl7": "HL7"}[peer.protocol]
    protocol += ", TLS" if peer.is_secured else ""
    moments = (contact.reached_at, contact.delivered_at, contact.tried_at)
    return [peer.name, protocol, *(_ago(moment) for moment in moments), cell]


def _ago(moment: datetime | None) -> look.Cell:
    return None if moment is None else look.span(f"{in_words(clock.now() - moment)} ago", "moment")


def _echo_one(person: Person, settings: Settings) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Peer", [peer.name for peer in settings.peers], key="operations_peer", width=220)
        pressed = st.button("Echo", icon=":material/network_ping:")
    if pressed:
        with st.spinner(f"Asking {name}"):
            st.session_state[_ECHOED] = (clock.now(), name, echo(person, settings, name))
        st.rerun()
    if _ECHOED in st.session_state:
        at, asked, findings = st.session_state[_ECHOED]
        st.html(
            look.block(_findings(f"Echo of {asked}", findings), look.paragraph(f"Asked at {at:%H:%M:%S}.", "quiet"))
        )


def echo(person: Person, settings: Settings, name: str) -> list[Finding]:
    """Ask a peer as `osteon doctor` does, where this person may; in bounded time. Raises Denied."""
    database = state.database()
    access.authorise(database, person, Action.ECHO, subject="peer")
    peer = settings.peer(name)
    if peer is None:
        return [wrong(f"peer {name}", "it does not stand in the settings any more", "restart the console")]
    if not _echoes.acquire(blocking=False):
        return [wrong(area_of(peer), "several peers are being asked already", "ask again shortly")]
    check = Check(area_of(peer), partial(_look_and_release, settings, peer))
    findings = go_round([check], seconds=LONGEST_ECHO_SECONDS).findings
    standings = {finding.standing for finding in findings}
    worst = next((bad for bad in (Standing.WRONG, Standing.WARNING) if bad in standings), Standing.OK)
    with database.write() as session:
        audit.record(
            session,
            actor=person.actor,
            action="peer.echoed",
            subject="peer",
            subject_id=None,
            peer=peer.name,
            standing=worst.value,
        )
    return findings


def _look_and_release(settings: Settings, peer: Peer) -> Iterator[Finding]:
    """A peer that hangs keeps its place for as long as its thread waits, so that there are never more of them."""
    try:
        yield from look_at_peer(settings, peer, ECHO_SECONDS)
    finally:
        _echoes.release()


# --- what needs attention ---------------------------------------------------------------------------------------------


def _needing_attention(person: Person) -> None:
    needing = (DeliveryState.NEEDS_ATTENTION,)
    with state.database().read() as session:
        deliveries, more = listed(session, needing, None, MOST_SHOWN)
        requests, more_requests = requested(session, needing, MOST_SHOWN)
    st.html(look.block(look.heading("Deliveries that need attention")))
    if person.may(Action.RETRY):
        if deliveries or requests:
            _retry_one(deliveries, requests)
        _say_what_was_done()
    parts = []
    if deliveries:
        columns = ("Delivery", "Study", "What", "Destination", "Reason", "Status", "Tries")
        parts.append(look.table("Deliveries that need attention", columns, [_delivery(row) for row in deliveries]))
    if more:
        beyond = " or" if more == MOST_COUNTED_BEYOND else ""
        parts.append(_sentence(f"{more:,}{beyond} more: `osteon deliveries` lists them."))
    if requests:
        named = "Commitment requests that need attention"
        of_requests = ("Request", "Sender", "Instances", "Reason", "Tries")
        parts.append(look.table(named, of_requests, [_request(row) for row in requests]))
    if more_requests:
        parts.append(look.paragraph(f"{more_requests:,} more.", "quiet"))
    if not deliveries and not requests:
        parts.append(look.paragraph("None.", "quiet"))
    st.html(look.block(*parts))


def _delivery(row: dict[str, Any]) -> list[look.Cell]:
    study = look.link(str(row["study"]), f"study?study={row['study']}")
    what = row["kind"].replace("_", " ")
    return [row["id"], study, what, row["destination"], _words(row["reason"]), row["status"], row["tries"]]


def _request(row: dict[str, Any]) -> list[look.Cell]:
    return [row["id"], row["sender"], row["instances"], _words(row["reason"]), row["tries"]]


def _retry_one(deliveries: Sequence[dict[str, Any]], requests: Sequence[dict[str, Any]]) -> None:
    offered = [f"Delivery {row['id']} to {row['destination']}" for row in deliveries]
    offered += [f"Request {row['id']} of {row['sender']}" for row in requests]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("One of them", offered, key=_CHOSEN, width=320)
        # Called before anything is drawn anew: what was chosen is what was seen, whatever the list holds by now.
        st.button("Retry", icon=":material/replay:", on_click=_retry_chosen)
        st.button("Retry all …", icon=":material/repeat:", on_click=_ask_about_all)
    if st.session_state.get(_RETRY_ALL):
        said = (
            "Retry everything that needs attention, and what waits for its next try, at once and at all destinations?"
        )
        st.html(look.block(look.paragraph(said, "notice")))
        with st.container(horizontal=True):
            st.button("Yes, retry all", on_click=_retry_all)
            st.button("Cancel", on_click=_done, args=(None,))


def _retry_chosen() -> None:
    chosen: str = st.session_state[_CHOSEN]
    kind, number, *_ = chosen.split()
    again = retry_delivery if kind == "Delivery" else retry_request
    _do(lambda person: f"{chosen}: {'due now' if again(state.database(), person, int(number)) else 'it waits no more'}")


def _ask_about_all() -> None:
    st.session_state[_RETRY_ALL] = True


def _retry_all() -> None:
    def every(person: Person) -> str:
        count = retry_all(state.database(), person)
        return f"{count} {'is' if count == 1 else 'are'} due now"

    _do(every)


def _do(action: Callable[[Person], str]) -> None:
    """Do what a button is for, as who looks at the page by now, and keep what became of it."""
    person = who.present()
    if person is not None:
        try:
            _done(action(person))
        except Denied as error:
            _done(f"Not allowed. {error}")


def _done(said: str | None) -> None:
    st.session_state.pop(_RETRY_ALL, None)
    st.session_state[_SAID] = None if said is None else f"{clock.now():%H:%M:%S} UTC. {said.rstrip('.')}."
    st.session_state[_ACTED] = True


def _say_what_was_done() -> None:
    if said := st.session_state.get(_SAID):
        st.html(look.block(look.Safe(f'<div role="status">{look.paragraph(said).html}</div>')))


def retry_delivery(database: Database, person: Person, number: int) -> bool:
    """Let one delivery be tried now, as `osteon retry` does; whether it waited. Raises Denied."""
    access.authorise(database, person, Action.RETRY, subject="delivery", subject_id=number)
    with database.write() as session:
        return bool(ask_again(session, actor=person.actor, ids=[number]))


def retry_request(database: Database, person: Person, number: int) -> bool:
    """Let one sender's request be answered now; whether it waited. Raises Denied."""
    access.authorise(database, person, Action.RETRY, subject="commitment_request", subject_id=number)
    with database.write() as session:
        return bool(answer_again(session, actor=person.actor, ids=[number]))


def retry_all(database: Database, person: Person) -> int:
    """Let all that needs attention or waits be tried now, as `osteon retry --all` does; how many. Raises Denied."""
    access.authorise(database, person, Action.RETRY, subject="delivery")
    with database.write() as session:
        return len(ask_again(session, actor=person.actor)) + len(answer_again(session, actor=person.actor))
