"""A part by fork begins like a new process, has nothing of its supervisor's, and may die as often as it likes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.settings import Peer, Settings, environment_of
from tests.servers import given, wait_until


class Command:
    """A run of `tests.supervised`, and what its probes found."""

    def __init__(self, folder: Path, settings: Settings, *, environment: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, blocked: bool = False) -> subprocess.Popen[bytes]:
        """Start a command; with SIGINT `blocked`, as a supervisor's part is started."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.supervised", *arguments],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})) if blocked else None,
            )
        self.processes.append(process)
        return process

    def probes(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for what so many probes found, in the order in which they found it."""
        paths = wait_until(lambda: self._written(count), what=f"{count} probes; the log:\n{self._log()}")
        return [{"pid": int(path.stem), **json.loads(path.read_text())} for path in paths]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log that say this."""
        lines = [json.loads(line) for line in self._log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def _written(self, count: int) -> list[Path]:
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return paths if len(paths) >= count else []

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """With settings that it finds in its environment, beside one that they replace."""
    settings = given(
        tmp_path / "node",
        ae_title="SOMEWHERE",
        study={"quiet_time": 7.5},
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    settings.data_dir.mkdir()
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    made = Command(tmp_path, settings, environment={**ours, **environment_of(settings)})
    yield made
    made.stop()


def test_a_forked_part_begins_like_a_new_process(command: Command) -> None:
    executed = command.start("probe", str(command.folder))
    assert executed.wait(60) == 0
    (new,) = command.probes()
    supervisor = command.start("supervise", "--", "probe", str(command.folder), "--stay")
    forked = command.probes(2)[1]
    assert (new.pop("copy_of"), forked.pop("copy_of")) == ([], [supervisor.pid])
    # Ctrl-C reaches all of a terminal's processes, and is the supervisor's to act on.
    assert (new.pop("blocked"), forked.pop("blocked")) == ([], [signal.SIGINT])
    assert forked.pop("arguments") == [*new.pop("arguments"), "--stay"]
    assert forked.pop("command") == f"{sys.executable} -m console probe {command.folder} --stay"
    assert new.pop("command") == f"{sys.executable} -m tests.supervised probe {command.folder}"
    assert new.pop("input").startswith("pipe:")
    assert forked.pop("input") == "/dev/null"
    # The one has the pipe as its input; the lock is in neither.
    assert len(forked["files"]) == len(new.pop("files"))
    assert not [path for path in forked.pop("files") if path.endswith("lock")]
    assert forked.pop("pid") != new.pop("pid")
    assert forked.pop("environment") == {**new.pop("environment"), **environment_of(command.settings)}
    assert forked == new
    assert forked["settings"] == json.loads(command.settings.model_dump_json())
    assert [line["part"] for line in command.said("probed")] == ["probe", "probe"]


def test_the_settings_of_a_part_are_those_in_force_and_not_what_they_were_made_from(command: Command) -> None:
    given_first = command.environment.pop("OSTEON_AE_TITLE")
    (command.folder / "osteon.toml").write_text(f'ae_title = "{given_first}"\n')
    command.environment["OSTEON_CONFIG"] = str(command.folder / "osteon.toml")
    command.environment["OSTEON_STUDY__QUIET_TIME"] = "9.5"
    command.start("supervise", "--", "probe", str(command.folder), "--stay")
    (first,) = command.probes()
    (command.folder / "osteon.toml").write_text('ae_title = "ELSEWHERE"\n')
    os.kill(first["pid"], signal.SIGKILL)
    second = command.probes(2)[1]
    assert (first["settings"]["ae_title"], first["settings"]["study"]["quiet_time"]) == ("SOMEWHERE", 9.5)
    assert "OSTEON_STUDY__QUIET_TIME" not in first["environment"]
    assert (first.pop("pid"), first) != (second.pop("pid"), second), "a process of its own"
    assert first == second, "started again it begins as it did"


def test_a_part_that_dies_is_forked_again_after_growing_pauses_and_its_status_is_said(command: Command) -> None:
    supervisor = command.start("supervise", "--", "probe", str(command.folder), "--status", "3")
    command.probes(3)
    wait_until(lambda: len(command.said("part died, starting it again")) == 3, what="the third death is said")
    said = command.said("part died, starting it again")
    assert [(line["status"], line["restarts"], line["pause"]) for line in said] == [
        (3, 1, 0.5),
        (3, 2, 1.0),
        (3, 3, 2.0),
    ]
    assert [line["pid"] for line in command.said("part started")] == [probe["pid"] for probe in command.probes(3)]
    supervisor.terminate()
    assert supervisor.wait(30) == 0, "asked to stop, it does not wait for the pause's end"
    assert command.said("stopped")


def test_beside_a_thread_nothing_is_forked_and_the_part_is_a_new_process(command: Command) -> None:
    # A new process has the commands of the installed command line, and so no probe.
    command.start("supervise", "--thread", "--", "probe", str(command.folder))
    wait_until(lambda: command.said("part died, starting it again"), what="it has run")
    assert command.said("part died, starting it again")[0]["status"] == 2
    assert "No such command 'probe'" in (command.folder / "log").read_text()
    supervisor = psutil.Process(command.processes[0].pid)
    assert supervisor.num_threads() == 2


def test_a_supervisor_that_is_killed_takes_its_forked_part_with_it(command: Command) -> None:
    supervisor = command.start("supervise", "--", "probe", str(command.folder), "--stay")
    (probe,) = command.probes()
    part = psutil.Process(probe["pid"])
    part.suspend()
    supervisor.kill()
    psutil.wait_procs([part], timeout=20)
    assert not part.is_running()


@pytest.mark.parametrize("blocked", [False, True], ids=["alone", "under another"])
def test_ctrl_c_is_acted_on_by_the_outermost_supervisor_alone(command: Command, blocked: bool) -> None:
    supervisor = command.start("supervise", "--", "probe", str(command.folder), "--stay", blocked=blocked)
    (probe,) = command.probes()
    os.killpg(supervisor.pid, signal.SIGINT)
    if blocked:
        with pytest.raises(subprocess.TimeoutExpired):
            supervisor.wait(1)
        assert psutil.pid_exists(probe["pid"])
        supervisor.terminate()
    assert supervisor.wait(30) == 0
    assert not psutil.pid_exists(probe["pid"])
    assert not command.said("part died, starting it again")
