"""`osteon users`: the accounts of the console in the browser, local ones and those of an OpenID provider.

A password is asked for, twice, or read from standard input: on a command line it would stand in the list of processes
and in the shell's history.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from console.access import (
    AccountError,
    Role,
    add_user,
    disable_user,
    enable_user,
    link_user,
    set_password,
    set_roles,
    users,
)
from console.start import failing_plainly, open_database
from models import logs
from models.database import Database
from models.settings import load_settings

app = typer.Typer(help="Who may sign in to the console.", no_args_is_help=True, add_completion=False)

_Name = Annotated[str, typer.Argument(help="The account's name.", metavar="NAME")]
_Roles = Annotated[list[Role], typer.Option("--role", help="Give it several times for several roles.")]


@app.command()
def add(name: _Name, role: _Roles) -> None:
    """Make a local account. From the first one on, everybody has to sign in."""
    with _opened() as database:
        add_user(database, name, _new_password(), role, by=_by())
    print(f"Account {name.strip().lower()} made.")


@app.command("list")
def list_users(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the accounts."""
    with _opened() as database:
        provider = load_settings().web.oidc
        rows: list[dict[str, Any]] = [
            {
                "name": user.name,
                "issuer": user.issuer,
                "roles": [role for role in user.roles.split(",") if role],
                "disabled": user.disabled_at is not None,
                "created_at": user.created_at.isoformat(timespec="seconds"),
                "locked_until": user.locked_until and user.locked_until.isoformat(timespec="seconds"),
            }
            for user in users(database)
        ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        none = (
            "No accounts yet" if provider is not None else "No accounts: only this machine is served, without sign-in"
        )
        print(f"{none}.")
        return
    table = Table("Name", "From", "Roles", "State", "Since", box=None)
    for row in rows:
        state = "disabled" if row["disabled"] else "active"
        table.add_row(row["name"], row["issuer"] or "here", ", ".join(row["roles"]), state, str(row["created_at"]))
    Console().print(table, markup=False, highlight=False)


@app.command()
def disable(name: _Name) -> None:
    """Let nobody in by this account any more. A new password lets it in again, or, with a provider, `enable`."""
    with _opened() as database:
        disable_user(database, name, by=_by())
    print(f"Account {name.strip().lower()} disabled.")


@app.command()
def enable(name: _Name) -> None:
    """Let an account of an OpenID provider in again."""
    with _opened() as database:
        enable_user(database, name, by=_by())
    print(f"Account {name.strip().lower()} enabled.")


@app.command()
def link(
    name: _Name,
    subject: Annotated[
        str, typer.Option("--subject", help="Who it is to the provider: `sub` of the ID token.", metavar="SUB")
    ],
) -> None:
    """Let an account's owner sign in at the OpenID provider, in place of a password or of another provider."""
    with _opened() as database:
        provider = load_settings().web.oidc
        if provider is None:
            raise AccountError("no provider is named (web.oidc)")
        link_user(database, name, provider.issuer, subject, by=_by())
    print(f"Account {name.strip().lower()} is now that of {subject} at {provider.issuer}.")


@app.command()
def password(name: _Name) -> None:
    """Give an account another password; whoever is signed in by it has to sign in again."""
    with _opened() as database:
        set_password(database, name, _new_password(), by=_by())
    print(f"Account {name.strip().lower()} has a new password.")


@app.command("role")
def role_of(name: _Name, role: _Roles) -> None:
    """Give an account these roles in place of those that it has."""
    with _opened() as database:
        set_roles(database, name, role, by=_by())
    print(f"Account {name.strip().lower()} is now {', '.join(sorted({chosen.value for chosen in role}))}.")


@contextmanager
def _opened() -> Iterator[Database]:
    """Open the record; say in a line what cannot be done (exit status 1)."""
    settings = load_settings()
    logs.configure("users", level="error")
    with failing_plainly(), closing(open_database(settings)) as database:
        try:
            yield database
        except AccountError as error:
            print(f"Not done: {error}.", file=sys.stderr)
            raise typer.Exit(1) from None


def _new_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    given = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != given:
        raise AccountError("the two passwords differ")
    return given


def _by() -> str:
    """Who does it, for the record: the login name."""
    try:
        return f"login:{getpass.getuser()}"
    except (KeyError, OSError):
        return "login:unknown"
