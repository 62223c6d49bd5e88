"""Every command as a person meets it: as a process, with --help, once for real, mistyped, and completed by a shell.

Where a command is run for real elsewhere it is not run here again: `RUN_ELSEWHERE` says where.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from console.listing import said_of
from console.main import COMMANDS, app
from console.ports import free_port
from models.settings import Peer
from models.upgrade import upgrade
from tests.servers import Node, given

RUN_ELSEWHERE = {
    "up": "tests/faults/test_supervision.py",
    "demo": "tests/acceptance/test_demo.py",
    "send": "tests/acceptance/test_readme.py",
    "listen": "tests/interop/test_listener.py",
    "work": "tests/integration/test_start.py",
    "sweep": "tests/faults/test_poison.py",
    "predict": "tests/integration/test_privacy.py",
    "conformance": "tests/unit/test_conformance.py",
    "check-report": "tests/unit/test_check_report_command.py",
    "doctor": "tests/integration/test_doctor.py",
    "reconcile": "tests/integration/test_reconcile_command.py",
    "settings": "tests/acceptance/test_readme.py",
    "health": "tests/faults/test_supervision.py",
    "web": "tests/acceptance/test_web.py",
    "users": "tests/integration/test_access.py",
    "audit": "tests/integration/test_audit_trail.py",
    "replay": "tests/integration/test_replay.py",
}
RUN_HERE = ("studies", "study", "operations", "deliveries", "retry", "quarantine", "db", "model")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A record without studies, of a node that does not run."""
    folder = tmp_path_factory.mktemp("node")
    peers = [
        Peer(name="pacs", ae_title="PACS", role="destination", host="127.0.0.1", port=free_port()),
        Peer(name="paediatrics", ae_title="PAED", role="source"),
    ]
    made = Node(given(folder / "data", peers=peers), folder / "node.log")
    upgrade(made.settings)
    yield made
    made.stop()


def words(text: str) -> str:
    """What is printed, however it is wrapped and framed."""
    return " ".join(text.replace("│", " ").split())


# --- every command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(node: Node, command: str) -> None:
    done = node.run(command, "--help", timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first = words(said_of(COMMANDS[command]).split("\n\n")[0])
    assert first in words(done.stdout)


def test_every_command_has_a_test_that_runs_it_as_a_process() -> None:
    for command, path in RUN_ELSEWHERE.items():
        assert f'"{command}"' in Path(path).read_text("utf-8"), (command, path)
    assert set(COMMANDS) == {*RUN_ELSEWHERE, *RUN_HERE}


def test_the_list_says_of_each_command_what_the_command_says() -> None:
    group: Any = typer.main.get_command(app)
    for name, target in COMMANDS.items():
        listed, meant = words(said_of(target)), words(group.get_command(None, name).help or "")
        assert listed == meant
        assert listed.split(". ")[0].rstrip(".")


def test_the_list_names_every_command_and_imports_none(node: Node) -> None:
    program = "import sys; from console.main import run\ntry:\n run()\nfinally:\n print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        env=node.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    assert not {"pydicom", "celery", "numpy", "worker.bundle"}.intersection(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["deliveries"], "pacs not asked yet"),
        (["operations"], "PAED paediatrics – – nothing ever came from it"),
        (["operations", "--json"], '"destination": "pacs"'),
        (["retry", "--all"], "0 deliveries are due now"),
        (["quarantine", "list"], "Nothing in quarantine waits for a person."),
        (["db", "upgrade"], "The database has revision"),
        (["model", "list"], "shipped"),
    ],
    ids=" ".join,
)
def test_commands_do_their_work_as_processes(node: Node, arguments: list[str], printed: str) -> None:
    done = node.run(*arguments, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert printed in words(done.stdout)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["studie"], "No such command 'studie'. Did you mean 'studies', 'study'?"),
        (["study", "--tre", "1"], "No such option: --tre"),
        (["study"], "Missing argument 'STUDY'"),
        (["retry", "9" * 30], "is no number of a row"),
        (["quarantine", "show", "nothing"], "'nothing' is no number of a row"),
        (["settings", "chek"], "No such command 'chek'. Did you mean 'check'?"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_named_in_a_line_and_exits_with_2(node: Node, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, arguments, env=node.environment)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in words(done.stderr)


def test_a_mistyped_command_ends_as_a_process_without_a_traceback(node: Node) -> None:
    done = node.run("studie", timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'studies', 'study'?" in words(done.stderr)
    assert "Traceback" not in done.stderr


def test_settings_that_are_not_there_are_said_so_and_exit_with_2(node: Node) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "console", "doctor"],
        env={**node.environment, "OSTEON_CONFIG": "/nonexistent/osteon.toml"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "/nonexistent/osteon.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_is_not_there_is_said_in_one_sentence(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://osteon:S3CRET@127.0.0.1:{free_port()}/osteon"
    node = Node(given(tmp_path, database_url=url), tmp_path / "node.log")
    said = "osteon: the database cannot be used: nothing listens at its address (`osteon doctor` says more)\n"
    done = node.run("studies", timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    for command in (["study", "1"], ["deliveries"], ["retry", "--all"], ["reconcile"], ["quarantine", "list"]):
        here = CliRunner().invoke(app, command, env=node.environment)
        assert (here.exit_code, here.stdout, here.stderr) == (1, "", said), command
    node.stop()


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a shell that finds `osteon`, and has its completion installed."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    home = tmp_path_factory.mktemp("home")
    program = home / "osteon"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {os.getcwd()!r})\nfrom console.main import run\nrun()\n"
    )
    program.chmod(0o755)
    made = {**node.environment, "HOME": str(home), "PATH": f"{home}:{os.environ['PATH']}", "SHELL": "/bin/bash"}
    installed = subprocess.run(
        # Two commands: a shell that has one alone becomes it, and is no longer there to be found out as the person's.
        ["bash", "-c", "osteon --install-completion bash && true"],
        env=made,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return made


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("osteon stud", ["studies", "study"]),
        ("osteon doctor --send", ["--send-test"]),
        ("osteon doctor --send-test p", ["pacs"]),
        ("osteon studies --calling P", ["PAED"]),
        ("osteon model show osteon-r", None),
    ],
)
def test_bash_completes_commands_options_peers_and_bundles(
    shell: dict[str, str], line: str, completed: list[str] | None
) -> None:
    given_words = line.split()
    script = (
        'source "$HOME/.bashrc"; '
        f"COMP_WORDS=({line}); COMP_CWORD={len(given_words) - 1}; "
        f"$(complete -p osteon | sed 's/.*-F \\([^ ]*\\) .*/\\1/') osteon; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = done.stdout.split()
    if completed is None:
        shipped = Path("worker/bundles").iterdir()
        completed = sorted(path.name for path in shipped if path.is_dir() and path.name.startswith("osteon-r"))
    assert found == completed


def test_what_a_program_reads_is_json_whatever_the_language_of_the_terminal(node: Node) -> None:
    environment = {**node.environment, "LC_ALL": "C", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "console", "studies", "--json"],
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == {"studies": [], "following": None}
