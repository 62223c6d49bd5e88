"""The list of commands, for --help and for a shell that completes, without importing what each command needs.

What a command says of itself stands in its source: the docstring of its function, or `help` of its group. It is read
from there, so that it is written in one place, and nobody waits seconds for a list.
"""

from __future__ import annotations

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup


class ListedGroup(TyperGroup):
    """A group whose commands, where they are only listed, may be stand-ins (`stand_in`)."""

    only_listed = False
    names: tuple[str, ...] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """List the commands."""
        self.only_listed = True
        super().format_help(ctx, formatter)
        self.only_listed = False

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the name of a command."""
        self.only_listed = True
        found = super().shell_complete(ctx, incomplete)
        self.only_listed = False
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; for one that is mistyped, a similar one is looked for among these names."""
        self.commands = dict.fromkeys(self.names)  # type: ignore[assignment]  # its values are asked of get_command
        return super().resolve_command(ctx, args)


def reflow(command: Any) -> None:
    """Let the paragraphs of a command's help be as wide as the terminal: only the first of a docstring is, else."""
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    for inner in getattr(command, "commands", {}).values():
        reflow(inner)


def stand_in(name: str, target: str) -> TyperCommand:
    """Return a command that can be listed, and not run."""
    return TyperCommand(name, help=said_of(target))


def said_of(target: str) -> str:
    """Return what a command, named as MODULE:NAME, says of itself in its source."""
    module, name = target.split(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(module)
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            targets = [found.id for found in node.targets if isinstance(found, ast.Name)]
            words = [keyword.value for keyword in node.value.keywords if keyword.arg == "help"]
            if name in targets and words:
                return inspect.cleandoc(str(ast.literal_eval(words[0])))
    raise LookupError(target)
