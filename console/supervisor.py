"""Keeps processes running: one that dies is started again, and said so, and all end when this process ends.

However it ends: on SIGTERM in time and in order, on kill -9 by the kernel.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from models.settings import Settings, environment_of
from worker.lifeline import die_with_parent

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A part that ran this long was healthy: its next restart is quick again.
STEADY_SECONDS = 60.0


@dataclass
class _Part:
    """A process that is kept running."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    start_at: float = 0.0
    restarts: int = field(default=0)


class Supervisor:
    """Starts parts, which get exactly these settings, starts again what dies, and stops all.

    Parameters
    ----------
    log
        Of whoever supervises.
    """

    def __init__(self, settings: Settings, log: Any) -> None:
        self._log = log
        self._parts: dict[str, _Part] = {}
        self.stopping = False
        self._environment = {**_without_settings(os.environ), **environment_of(settings)}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ask_to_stop())

    def ask_to_stop(self) -> None:
        """Make `run` return (from a signal handler)."""
        self.stopping = True

    def add(self, name: str, command: list[str]) -> None:
        """Start a part."""
        self._parts[name] = _Part(name, command)
        self._start(self._parts[name])

    def add_own(self, name: str, *arguments: str) -> None:
        """Start a part that is a command of ours."""
        self.add(name, [sys.executable, "-m", "console", *arguments])

    def has_died(self, name: str) -> bool:
        """Whether a part is not running."""
        process = self._parts[name].process
        return process is None or process.poll() is not None

    def run(self) -> None:
        """Keep everything running until asked to stop."""
        while not self.stopping:
            self._look_after_all()
            time.sleep(0.1)

    def stop(self, *names: str, within: float) -> None:
        """End these parts, by force what does not end in time; without names, all that are left."""
        ended = [part for part in self._parts.values() if not names or part.name in names]
        _end(ended, within)
        for part in ended:
            del self._parts[part.name]

    def _start(self, part: _Part) -> None:
        parent = os.getpid()

        def in_child() -> None:
            die_with_parent(parent)
            # Ctrl-C reaches the whole group; only this supervisor acts on it, and then in order.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

        part.process = subprocess.Popen(
            part.command, env=self._environment, stdin=subprocess.DEVNULL, preexec_fn=in_child
        )
        part.started = time.monotonic()
        self._log.info("part started", part_name=part.name, pid=part.process.pid)

    def _look_after_all(self) -> None:
        now = time.monotonic()
        for part in self._parts.values():
            if part.process is None:
                if now >= part.start_at:
                    self._start(part)
            elif part.process.poll() is not None:
                self._note_death(part, now)

    def _note_death(self, part: _Part, now: float) -> None:
        process = part.process
        if now - part.started > STEADY_SECONDS:
            part.pause = FIRST_PAUSE_SECONDS
        part.process, part.start_at = None, now + part.pause
        part.restarts += 1
        self._log.error(
            "part died, starting it again",
            part_name=part.name,
            status=process.returncode if process else None,
            restarts=part.restarts,
            pause=part.pause,
        )
        part.pause = min(part.pause * 2, LONGEST_PAUSE_SECONDS)


def _end(parts: list[_Part], seconds: float) -> None:
    running = [part.process for part in parts if part.process is not None and part.process.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _without_settings(environment: os._Environ[str]) -> dict[str, str]:
    """Drop our own variables: the parts get the settings in force, not what they were made from."""
    return {key: value for key, value in environment.items() if not key.startswith("OSTEON_")}
