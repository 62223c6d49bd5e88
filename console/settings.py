"""`osteon settings`: what is in force, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.database import database_url
from models.settings import Mistake, Settings, config_path, hide_password, load_settings
from worker.broker import broker_url
from worker.bundle import default_bundle_path

app = typer.Typer(
    help="The settings in force, and what is wrong with them.", no_args_is_help=True, add_completion=False
)


@app.command()
def check(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Print the settings in force, secrets hidden, or name every mistake in them (exit status 2)."""
    settings = load_settings()
    shown = in_force(settings)
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    console = Console()
    path = config_path()
    console.print(f"Settings from {escape(str(path)) if path else 'no file'} and the environment:")
    table = Table("Key", "Value", box=None, pad_edge=False)
    for key, value in _flat(shown):
        table.add_row(key, escape(value))
    console.print(table)
    if not settings.sources and not settings.listener.accept_unknown_callers:
        console.print("[yellow]Note:[/] no peer is a source, so every C-STORE is refused.")
    if not settings.destinations:
        console.print("[yellow]Note:[/] no peer is a destination, so reports are kept and go nowhere.")


@app.callback()
def _group() -> None:
    """Keep `check` a subcommand although it is the only one."""


def in_force(settings: Settings) -> dict[str, Any]:
    """Return every setting by key, with what stands for the defaults, and passwords hidden."""
    shown = settings.model_dump(mode="json")
    for key in ("database_url", "database_owner_url", "broker_url"):
        value = getattr(settings, key)
        if isinstance(value, SecretStr):
            shown[key] = hide_password(value.get_secret_value())
    shown["data_dir"] = str(settings.data_dir.absolute())
    shown["database_url"] = hide_password(database_url(settings).render_as_string(hide_password=False))
    shown["broker_url"] = hide_password(broker_url(settings))
    shown["model_bundle"] = str(settings.model_bundle or default_bundle_path())
    return shown


def print_mistakes(console: Console, mistakes: list[Mistake]) -> None:
    """List mistakes: the key, the value found and what is allowed."""
    count = len(mistakes)
    console.print(f"[bold red]{count} mistake{'s' if count > 1 else ''} in the settings[/]")
    for mistake in mistakes:
        console.print(f"  [bold]{escape(mistake.key)}[/]", highlight=False)
        console.print(f"    found    {escape(mistake.found)}", highlight=False)
        console.print(f"    allowed  {escape(mistake.allowed)}", highlight=False)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                rows += _flat(item, f"{prefix}{key}[{number}].")
        else:
            rows.append((prefix + key, "–" if value is None else str(value)))
    return rows
