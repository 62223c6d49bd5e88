"""Who it is that gives a command, for the record."""

from __future__ import annotations

import getpass

import typer


def person(by: str | None = None) -> str:
    """Return a name that was given, or that of the login."""
    if by is not None and by.strip():
        return by.strip()[:128]
    try:
        return getpass.getuser()[:128]
    except (KeyError, OSError):  # a container's user without a name
        typer.echo("say who you are: --by NAME", err=True)
        raise typer.Exit(2) from None
