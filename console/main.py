"""The `osteon` command line. Each command's work lies in a file of its own; this one names them."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from console import database, demo, health, parts, predict, send, settings, up
from models.settings import SettingsMistakes
from models.version import VERSION

app = typer.Typer(
    name="osteon",
    help="A DICOM node that reads bone X-rays. AI results, not for primary diagnosis.",
    no_args_is_help=True,
    # Typer's own tracebacks print local variables, and with them patient data.
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("predict")(predict.predict)
app.command("send")(send.send_files)
app.command("listen")(parts.listen)
app.command("work")(parts.work)
app.command("sweep")(parts.sweep)
app.command("health")(health.health)
app.add_typer(settings.app, name="settings")
app.add_typer(database.app, name="db")


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(f"osteon {VERSION}")
        raise typer.Exit


def run() -> None:
    """Run the command line; mistakes in the settings are listed, not raised."""
    try:
        app()
    except SettingsMistakes as error:
        settings.print_mistakes(Console(stderr=True), error.mistakes)
        sys.exit(2)
