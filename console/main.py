"""The `osteon` command line. Each command lies in a file of its own and is loaded when it is asked for."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any

import typer

from console.listing import ListedGroup, reflow, stand_in
from models.version import VERSION

COMMANDS = {
    "up": "console.up:up",
    "demo": "console.demo:demo",
    "predict": "console.predict:predict",
    "model": "console.model:app",
    "send": "console.send:send_files",
    "listen": "console.listen:listen",
    "work": "console.work:work",
    "sweep": "console.sweep:sweep",
    "conformance": "console.conformance:conformance",
    "check-report": "console.check_report:check_report",
    "studies": "console.studies:studies",
    "study": "console.study:study",
    "doctor": "console.doctor.command:doctor",
    "reconcile": "console.reconcile:reconcile",
    "operations": "console.operations:show",
    "deliveries": "console.deliveries:deliveries",
    "retry": "console.deliveries:retry",
    "health": "console.health:health",
    "web": "console.web.serve:web",
    "users": "console.users:app",
    "quarantine": "console.quarantine:app",
    "audit": "console.audit:app",
    "replay": "console.replay:replay",
    "settings": "console.settings:app",
    "db": "console.database:app",
}


class _Commands(ListedGroup):
    """Loads a command when it is asked for: the listener must not wait for what only the demo needs."""

    names = tuple(COMMANDS)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        if self.only_listed:
            return stand_in(cmd_name, COMMANDS[cmd_name])
        module, name = COMMANDS[cmd_name].split(":")
        found = getattr(import_module(module), name)
        gc.enable()
        if not isinstance(found, typer.Typer):
            single = _typer()
            single.command(cmd_name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        reflow(command)
        return command


def _typer() -> typer.Typer:
    # Typer's own tracebacks print local variables, and with them patient data.
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


app = typer.Typer(
    name="osteon",
    cls=_Commands,
    help="A DICOM node that reads bone X-rays. AI results, not for primary diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(f"osteon {VERSION}")
        raise typer.Exit


def run() -> None:
    """Run the command line; mistakes in the settings are listed, not raised."""
    arguments = sys.argv[1:]
    while (part := _run(arguments)) is not None:
        arguments = part


def _run(arguments: list[str]) -> list[str] | None:
    """Run a command. Return in a process that became a part of it meanwhile: with that part's command."""
    # Until the command is imported: to look for garbage among what is there to stay takes a tenth of that time.
    gc.disable()
    from console.fork import BecamePart
    from models.settings import SettingsMistakes

    try:
        app(arguments)
    except BecamePart as part:
        return part.arguments
    except SettingsMistakes as error:
        from rich.console import Console

        from console.settings import print_mistakes

        print_mistakes(Console(stderr=True), error.mistakes)
        sys.exit(2)
    return None
