"""`osteon deliveries` and `osteon retry`: what is on its way to whom, and asking again for what came to nothing.

Beside the reports these are the answers that senders wait for who asked us for storage commitment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from console.arguments import row_id
from console.completion import destination_names, source_names
from console.person import person
from console.start import open_database, saying_plainly
from models import clock, logs
from models.database import database_now, unindexed
from models.settings import Settings, load_settings
from models.tables import CommitmentRequest, CommitmentRequestState, Delivery, DeliveryState, DestinationState, Report
from worker.again import answer_again, ask_again

WIDTH = 200
UNFINISHED = (DeliveryState.DUE, DeliveryState.NEEDS_ATTENTION)
# Of those that are not listed: what was ever delivered may be millions.
MOST_COUNTED = 1000


def deliveries(
    state: Annotated[
        list[DeliveryState] | None, typer.Option(help="Only these states; default: what is not finished.")
    ] = None,
    destination: Annotated[
        str | None, typer.Option(help="Only this destination.", metavar="NAME", autocompletion=destination_names)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List no more than so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the reports on their way to each destination, how it stands with the destinations, and who is not answered.

    Requests are those of senders for storage commitment, which are listed unless --destination is given.
    """
    settings = load_settings()
    logs.configure("deliveries", level="error")
    states = tuple(state) if state else UNFINISHED
    with saying_plainly(), closing(open_database(settings)) as database, database.read() as session:
        places = destinations(session, settings)
        rows, more = listed(session, states, destination, limit)
        asked, more_asked = ([], 0) if destination is not None else requested(session, states, limit)
    if as_json:
        found = {
            "destinations": places,
            "deliveries": rows,
            "more": more,
            "requests": asked,
            "more_requests": more_asked,
        }
        print(json.dumps(found, indent=2))
        return
    console = Console()
    if not console.is_terminal:  # lines that are read by a program, or later, are not folded
        console = Console(width=WIDTH)
    _print(console, "Destinations", places)
    if rows:
        _print(console, "Deliveries", rows)
    if more:
        console.print(
            f"{more}{' or' if more == MOST_COUNTED else ''} more: --limit, --state and --destination say which.",
            highlight=False,
        )
    if asked:
        _print(console, "Requests for storage commitment", asked)
    if more_asked:
        console.print(f"{more_asked} more: --limit and --state say which.", highlight=False)


def retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(parser=row_id, help="Deliveries, as `osteon deliveries` numbers them.", metavar="ID"),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            help="All that need attention or wait at this destination.",
            metavar="NAME",
            autocompletion=destination_names,
        ),
    ] = None,
    request: Annotated[
        list[int] | None,
        typer.Option(parser=row_id, help="A sender's request, as `osteon deliveries` numbers them.", metavar="ID"),
    ] = None,
    sender: Annotated[
        str | None,
        typer.Option(
            help="All requests of this sender that need attention or wait.", metavar="NAME", autocompletion=source_names
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that need attention or wait.")] = False,
) -> None:
    """Do again what needs attention or waits for its next try: at once, and with all tries before it.

    Reports are sent. Those that arrived and were not committed are asked for again, unless the destination says that it
    does not have them. Senders are told what is committed of what they asked for.
    """
    if sum((bool(ids), bool(request), destination is not None, sender is not None, everything)) != 1:
        hint = "ID…"
        raise typer.BadParameter("name deliveries, or --destination, --request, --sender or --all", param_hint=hint)
    settings = load_settings()
    logs.configure("retry", level="error")
    who = person()
    sent: dict[int, DeliveryState] = {}
    answered: list[int] = []
    with saying_plainly(), closing(open_database(settings)) as database, database.write() as session:
        if not request and sender is None:
            sent = ask_again(session, actor=who, ids=ids or (), destination=destination)
        if not ids and destination is None:
            answered = answer_again(session, actor=who, ids=request or (), sender=sender)
    to_send, to_commit = (list(sent.values()).count(state) for state in (DeliveryState.DUE, DeliveryState.DELIVERED))
    if to_send or not (to_commit or request or sender):
        print(f"{to_send} deliver{'y is' if to_send == 1 else 'ies are'} due now")
    if to_commit:
        print(f"{to_commit} commitment{' is' if to_commit == 1 else 's are'} due to be asked for now")
    if answered or request or sender:
        print(f"{len(answered)} request{' is' if len(answered) == 1 else 's are'} due to be answered now")
    if missing := sorted(set(ids or request or ()) - {*sent, *answered}):
        names = ", ".join(map(str, missing))
        typer.echo(f"neither due nor in need of attention: {names}", err=True)
        raise typer.Exit(1)


def destinations(session: Session, settings: Settings) -> list[dict[str, Any]]:
    """Return how it stands with each destination, those of the settings first."""
    now, by_database = clock.now(), database_now(session)
    known = {row.name: row for row in session.scalars(select(DestinationState).order_by(DestinationState.name))}
    counts: dict[str, dict[DeliveryState, int]] = {}
    for name, state, count in session.execute(
        select(Delivery.destination, Delivery.state, func.count())
        .where(Delivery.state.in_(UNFINISHED))
        .group_by(Delivery.destination, Delivery.state)
    ):
        counts.setdefault(name, {})[state] = count
    named = [peer.name for peer in settings.destinations]
    found = []
    for name in [*named, *(name for name in known if name not in named and name in counts)]:
        row = known.get(name)
        found.append(
            {
                "destination": name,
                "state": _state_of(row, by_database) if name in named else "not in the settings",
                "failures": row.failures if row else 0,
                "reason": row.reason if row else None,
                "next_try": _moment(row.due_at) if row and row.due_at > now else None,
                "reached_at": _moment(row.reached_at) if row else None,
                "due": counts.get(name, {}).get(DeliveryState.DUE, 0),
                "needs_attention": counts.get(name, {}).get(DeliveryState.NEEDS_ATTENTION, 0),
            }
        )
    return found


def listed(
    session: Session, states: Sequence[DeliveryState], destination: str | None, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """Return up to `limit` deliveries in these states, the oldest first, and how many more there are, up to 1000."""
    chosen = _chosen(states, destination)
    now, by_database = clock.now(), database_now(session)
    rest_until = {row.name: row.due_at for row in session.scalars(select(DestinationState))}
    # Of what is finished there is so much that the oldest are soon found, and too much to be put in order.
    in_order = chosen if set(states) <= set(UNFINISHED) else _chosen(states, destination, unindexed)
    found = (
        select(Delivery, Report.kind)
        .join(Report, Report.id == Delivery.report_id)
        .where(in_order)
        .order_by(Delivery.id)
        .limit(limit)
    )
    rows = session.execute(found).all()
    counted = select(Delivery.id).where(chosen).limit(limit + MOST_COUNTED).subquery()
    total = session.scalars(select(func.count()).select_from(counted)).one()
    return [_row(delivery, kind, rest_until, now, by_database) for delivery, kind in rows], total - len(rows)


def requested(session: Session, states: Sequence[DeliveryState], limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return what senders asked us to commit and were not told, the oldest first, and how much more there is."""
    chosen = CommitmentRequest.state.in_([state for state in CommitmentRequestState if state.value in states])
    now, by_database = clock.now(), database_now(session)
    rows = session.scalars(select(CommitmentRequest).where(chosen).order_by(CommitmentRequest.id).limit(limit)).all()
    total = session.scalars(select(func.count()).select_from(CommitmentRequest).where(chosen)).one()
    return [_request_row(request, now, by_database) for request in rows], total - len(rows)


def _request_row(request: CommitmentRequest, now: datetime, by_database: datetime) -> dict[str, Any]:
    waits = request.state is CommitmentRequestState.DUE
    return {
        "id": request.id,
        "sender": request.peer,
        "instances": len(request.instances),
        "received_at": _moment(request.received_at),
        "state": request.state.value,
        "tries": request.tries,
        "next_try": _next_try(request.due_at, request.lease_until, now, by_database) if waits else None,
        "reason": request.reason,
    }


def _chosen(
    states: Sequence[DeliveryState],
    destination: str | None,
    column: Callable[[Any], ColumnElement[Any]] = lambda column: column,
) -> ColumnElement[bool]:
    chosen = column(Delivery.state).in_(states)
    return chosen if destination is None else and_(chosen, column(Delivery.destination) == destination)


def _row(
    delivery: Delivery, kind: str, rest_until: dict[str, datetime], now: datetime, by_database: datetime
) -> dict[str, Any]:
    next_try: str | None = None
    if delivery.state is DeliveryState.DUE:
        at = max(delivery.due_at, rest_until.get(delivery.destination, delivery.due_at))
        next_try = _next_try(at, delivery.lease_until, now, by_database)
    elif delivery.state is DeliveryState.DELIVERED and delivery.commit_due_at is not None:
        next_try = _next_try(delivery.commit_due_at, None, now, by_database)
    return {
        "id": delivery.id,
        "study": delivery.study_id,
        "report": delivery.report_id,
        "kind": kind,
        "destination": delivery.destination,
        "state": delivery.state.value,
        "tries": delivery.tries,
        "next_try": next_try,
        "reason": delivery.reason,
        "status": None if delivery.status is None else f"{delivery.status:04X}",
    }


def _next_try(at: datetime, lease_until: datetime | None, now: datetime, by_database: datetime) -> str:
    if lease_until is not None and lease_until > by_database:
        return "in hand"
    return at.isoformat(timespec="seconds") if at > now else "now"


def _state_of(row: DestinationState | None, by_database: datetime) -> str:
    if row is None:
        return "not asked yet"
    if row.lease_until is not None and row.lease_until > by_database:
        return "being sent to"
    return "away" if row.failures else "well"


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def _short(value: str) -> str:
    """A moment without what a person need not read; anything else as it is."""
    try:
        return datetime.fromisoformat(value).strftime("%d %b %H:%M:%S") if "T" in value else value
    except ValueError:
        return value


def _print(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    console.print(f"[bold]{title}[/]" + ("" if rows else ": none"))
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for key in rows[0]:
        table.add_column(key.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("–" if value is None else escape(_short(str(value))) for value in row.values()))
    console.print(table, highlight=False)
