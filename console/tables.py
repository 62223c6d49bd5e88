"""Rows as tables on a terminal, and as lines that are not folded where a program or a file takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Elsewhere than on a terminal, where a line is not folded: a row of UIDs and texts fits.
WIDTH = 240
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def console() -> Console:
    """Return the console of standard output."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def moment(at: datetime | None) -> str | None:
    """Return a moment for programs: ISO 8601, UTC, to the second."""
    return None if at is None else at.isoformat(timespec="seconds")


def print_rows(to: Console, title: str, rows: Sequence[dict[str, Any]], *, without: Sequence[str] = ()) -> None:
    """Print rows of the same keys under a title; nothing where there are none."""
    if not rows:
        return
    to.print(f"[bold]{escape(title)}[/]")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    keys = [key for key in rows[0] if key not in without]
    for key in keys:
        table.add_column(key.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(shown(row[key])) for key in keys))
    to.print(table, highlight=False)


def print_fields(to: Console, title: str, fields: dict[str, Any]) -> None:
    """Print one row, a line for each key."""
    to.print(f"[bold]{escape(title)}[/]")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in fields.items():
        table.add_row(key.replace("_", " "), escape(shown(value)))
    to.print(table, highlight=False)


def shown(value: Any) -> str:
    """Return a value as a person reads it."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(shown(part) for part in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={shown(part)}" for key, part in value.items())
    text = str(value)
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S") if _MOMENT.match(text) else text
