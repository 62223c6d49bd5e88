"""`python -m training`: every command explains itself, and none imports what it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from training.__main__ import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    answer = run("-m", "training", command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert f"python -m training {command}" in answer.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["leaks", "--help"], ["evaluate", "--help"], ["reproduce", "--help"]]
)
def test_keras_is_not_loaded_where_nothing_is_fitted(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom training.__main__ import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'keras', 'tensorflow', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    assert run("-c", program).stderr.splitlines()[-1] == "[]"


def test_an_unknown_command_is_refused() -> None:
    answer = run("-m", "training", "guess")
    assert answer.returncode == 2
    assert "invalid choice" in answer.stderr
