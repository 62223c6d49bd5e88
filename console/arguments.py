"""What people type, read as what is meant."""

from __future__ import annotations

import typer

_LARGEST_ID = 2**63 - 1


def row_id(text: str) -> int:
    """Read the number of a row; one that no database has is a mistake, and no error of the database."""
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= _LARGEST_ID:
        return int(text)
    raise typer.BadParameter(f"{text!r} is no number of a row")
