"""`osteon operations`: how the node stands, for a terminal and for programs that watch it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.orm import Session

from console.doctor.disk import space_of
from console.start import open_database, saying_plainly
from models import clock, logs, operations
from models.settings import Settings, load_settings
from models.silence import in_words, sources

WIDTH = 200


def show(
    days: Annotated[int, typer.Option(min=1, max=366, help="Count the failures of what came in so many days.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what waits, what was done in the last day, what failed, and who was heard of; without patient data.

    Sources that have gone silent are named. Exit status 0, however it stands; `osteon doctor` judges.
    """
    settings = load_settings()
    logs.configure("operations", level="error")
    with saying_plainly(), closing(open_database(settings)) as database, database.read() as session:
        found = standing(session, settings, timedelta(days=days))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    if not console.is_terminal:  # lines that are read by a program, or later, are not folded
        console = Console(width=WIDTH)
    done = found["last_24_hours"]
    _print(console, "Work that waits", found["queue"])
    console.print(
        f"[bold]Last 24 hours[/]: {done['received']} instances received, {done['read']} images read, "
        f"{done['delivered']} results delivered",
        highlight=False,
    )
    for title, key in (("Failures", "failures"), ("Sources", "sources"), ("Destinations", "destinations")):
        _print(console, title, found[key])


def standing(session: Session, settings: Settings, period: timedelta) -> dict[str, Any]:
    """Return how the node stands, as it is printed for programs: moments are ISO 8601, in UTC."""
    now = clock.now()
    hours = operations.throughput(session)
    space = space_of(settings)
    return {
        "at": _plain(now),
        "queue": [
            {**_row(stage), "oldest_seconds": None if stage.oldest_at is None else _seconds(now - stage.oldest_at)}
            for stage in operations.queue(session)
        ],
        "holders": [_row(holder) for holder in operations.holders(session)],
        "last_24_hours": {
            "received": sum(hour.received for hour in hours),
            "read": sum(hour.read for hour in hours),
            "delivered": sum(hour.delivered for hour in hours),
            "hours": [_row(hour) for hour in hours],
        },
        "failures": [_row(one) for one in operations.failures(session, now - period)],
        "sources": [
            {
                "ae_title": source.ae_title,
                "peer": source.peer,
                "heard_at": _plain(source.heard_at),
                "silent": source.is_silent,
                "why": source.why,
            }
            for source in sources(session, settings)
        ],
        "destinations": [
            _row(contact) for contact in operations.contacts(session, [peer.name for peer in settings.destinations])
        ],
        "spool": {"free_bytes": int(space.free), "total_bytes": int(space.total), "floor_bytes": int(space.floor)},
    }


def _row(found: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(found, field.name)) for field in dataclasses.fields(found)}


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def _seconds(span: timedelta) -> int:
    return max(0, int(span.total_seconds()))


def _print(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    console.print(f"[bold]{title}[/]" + ("" if rows else ": none"))
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for key in rows[0]:
        table.add_column(key.removesuffix("_seconds").replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(key, value)) for key, value in row.items()))
    console.print(table, highlight=False)


def _cell(key: str, value: Any) -> str:
    if value is None or value is False:
        return "–"
    if value is True:
        return "yes"
    return in_words(timedelta(seconds=value)) if key == "oldest_seconds" else str(value)
