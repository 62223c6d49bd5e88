"""What keeps a worker's child from harm: the kernel's alarm, a limit of memory, a process of its own for an image."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from console.ports import free_port
from models.settings import Settings
from tests.servers import given
from worker import isolation
from worker.claims import Claim, Work
from worker.isolation import Ended, Isolation

READY = "import os, sys, time; os.write(1, b'r'); "


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return given(tmp_path / "node")


def run(settings: Settings, *, limit: float = 30, environment: Mapping[str, str] | None = None) -> Ended | str:
    alone = replace(Isolation.of(settings), limit=timedelta(seconds=limit))
    if environment is not None:
        alone = replace(alone, environment=environment)
    return alone.run(Claim(Work.ANALYSE, 1, 1, 2, alone.limit))


@pytest.mark.parametrize(
    ("does", "ended"),
    [
        ("sys.exit(0)", Ended.DONE),
        ("sys.exit(75)", Ended.TROUBLE),
        ("sys.exit(3)", "exit_status_3"),
        ("os.kill(os.getpid(), 11)", "signal_11"),
        ("os.kill(os.getpid(), 14)", "time_limit"),
        ("time.sleep(60)", "time_limit"),
    ],
)
def test_how_the_process_ended_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, does: str, ended: Ended | str
) -> None:
    monkeypatch.setattr(isolation, "COMMAND", [sys.executable, "-c", READY + does])
    monkeypatch.setattr(isolation, "GRACE_SECONDS", 0.1)
    assert run(settings, limit=0.5 if "sleep" in does else 30) == ended


@pytest.mark.parametrize("does", ["import sys; sys.exit(0)", "print('x')", "import time; time.sleep(60)"])
def test_a_process_that_never_says_that_it_is_ready_says_nothing_about_the_image(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr(isolation, "COMMAND", [sys.executable, "-c", does])
    monkeypatch.setattr(isolation, "START_SECONDS", 1.0)
    assert run(settings) is Ended.TROUBLE


def test_where_no_process_can_be_started_that_says_nothing_about_the_image(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "COMMAND", ["/nonexistent/python"])
    assert run(settings) is Ended.TROUBLE


def test_the_real_process_that_cannot_reach_its_database_says_nothing_about_the_image(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://nobody:secret@127.0.0.1:{free_port()}/nothing"
    assert run(given(tmp_path / "node", database_url=url)) is Ended.TROUBLE


def test_the_alarm_ends_a_process_whose_decoder_never_returns_and_holds_the_interpreter_s_lock() -> None:
    program = (
        "import ctypes, datetime, worker.isolation as i\n"
        "with i.Isolation({}, datetime.timedelta(seconds=0.2)).alarm(): ctypes.PyDLL(None).sleep(60)"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -signal.SIGALRM
    assert time.monotonic() - began < 30


def test_an_alarm_that_is_over_ends_nothing() -> None:
    program = (
        "import time, datetime, worker.isolation as i\n"
        "with i.Isolation({}, datetime.timedelta(seconds=0.2)).alarm(): pass\n"
        "time.sleep(0.5)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_more_memory_than_the_limit_is_a_memory_error_and_less_is_not() -> None:
    program = (
        "import numpy, worker.isolation as i\n"
        "i.limit_memory(1024 ** 3)\n"
        "numpy.empty(512 * 1024 ** 2, 'u1')\n"
        "try: numpy.empty(1024 ** 3, 'u1')\n"
        "except MemoryError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("refused\n", 0)
