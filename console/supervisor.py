"""Keeps processes running: one that dies is started again, and said so, and all end when this process ends.

However it ends: on SIGTERM in time and in order, on kill -9 by the kernel. It sleeps until a signal says that something
happened: SIGCHLD, or one that asks it to stop. These are blocked and waited for, so that no handler runs anywhere else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from console.fork import BecamePart, Forked, can_fork, fork_part
from models.settings import Settings, environment_of
from worker.lifeline import die_with_parent

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A part that ran this long was healthy: its next restart is quick again.
STEADY_SECONDS = 60.0
# It looks after its parts so often without a signal too.
LOOK_SECONDS = 5.0


@dataclass
class _Part:
    """A process that is kept running: a command, or a command of ours by its arguments."""

    name: str
    command: list[str]
    own: bool = False
    process: subprocess.Popen[bytes] | Forked | None = None
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
        self._environment = {**_without_settings(os.environ), **environment_of(settings)}
        self._stopping = False
        self.became_part = False
        """Whether this process is a part now, and no supervisor any more: a copy of it (`console.fork`)."""
        ask_to_stop = {signal.SIGTERM, signal.SIGINT}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ask_to_stop, signal.SIGCHLD})
        # What was blocked already is not ours to act on: another supervisor does, who started this process.
        self._ask_to_stop = ask_to_stop - before
        # Ctrl-C reaches the whole group; only this supervisor acts on it, and then in order.
        self._mask_of_parts = {*map(signal.Signals, before), signal.SIGINT}

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        if not self._stopping and self._ask_to_stop:
            self._stopping = signal.sigtimedwait(self._ask_to_stop, 0) is not None
        return self._stopping

    def add(self, name: str, command: list[str]) -> None:
        """Start a part."""
        self._parts[name] = _Part(name, command)
        self._start(self._parts[name])

    def add_own(self, name: str, *arguments: str, after: float = 0.0) -> None:
        """Start a part that is a command of ours. Raises BecamePart in its process, as `run` may too.

        Parameters
        ----------
        after
            Seconds from now on until it is started, by `run`.
        """
        part = self._parts[name] = _Part(name, list(arguments), own=True, start_at=time.monotonic() + after)
        if not after:
            self._start(part)

    def has_died(self, name: str) -> bool:
        """Whether a part is not running."""
        process = self._parts[name].process
        return process is None or process.poll() is not None

    def run(self) -> None:
        """Keep everything running until asked to stop."""
        while not self.stopping:
            self._sleep(self._look_after_all())

    def stop(self, *names: str, within: float) -> None:
        """End these parts, by force what does not end in time; without names, all that are left."""
        ended = [part for part in self._parts.values() if not names or part.name in names]
        _end([part.process for part in ended if part.process is not None], within)
        for part in ended:
            del self._parts[part.name]

    def _sleep(self, seconds: float) -> None:
        """Sleep until a part ends, or this process is asked to stop, at most so long."""
        came = signal.sigtimedwait({signal.SIGCHLD, *self._ask_to_stop}, seconds)
        if came is not None and came.si_signo in self._ask_to_stop:
            self._stopping = True

    def _start(self, part: _Part) -> None:
        if part.own and can_fork():
            part.process = self._fork(part)
        else:
            command = [sys.executable, "-m", "console", *part.command] if part.own else part.command
            part.process = self._execute(command)
        part.started = time.monotonic()
        self._log.info("part started", part_name=part.name, pid=part.process.pid)

    def _fork(self, part: _Part) -> Forked:
        try:
            return fork_part(part.command, self._environment, self._mask_of_parts)
        except BecamePart:
            self.became_part = True
            self._parts.clear()
            raise

    def _execute(self, command: list[str]) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def in_child() -> None:
            die_with_parent(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_of_parts)

        return subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, preexec_fn=in_child)

    def _look_after_all(self) -> float:
        """Start what is to be started, note what has died; return how long to sleep then."""
        now = time.monotonic()
        for part in self._parts.values():
            if part.process is None:
                if now >= part.start_at:
                    self._start(part)
            elif part.process.poll() is not None:
                self._note_death(part, now)
        waiting = [part.start_at - now for part in self._parts.values() if part.process is None]
        return max(0.0, min([LOOK_SECONDS, *waiting]))

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


def _end(processes: Sequence[subprocess.Popen[bytes] | Forked], seconds: float) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + seconds
    while running and (left := until - time.monotonic()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, left)
        running = [process for process in running if process.poll() is None]
    for process in running:
        process.kill()
        process.wait()


def _without_settings(environment: os._Environ[str]) -> dict[str, str]:
    """Drop our own variables: the parts get the settings in force, not what they were made from."""
    return {key: value for key, value in environment.items() if not key.startswith("OSTEON_")}
