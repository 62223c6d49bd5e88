"""`osteon up`: everything on this machine, as one process group.

Parts are processes of their own. One that dies is started again, and said so; all of them end when this process
ends, however it ends: on Ctrl-C and SIGTERM within ten seconds and in order, on kill -9 by the kernel.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import IO

from console.broker import broker_command
from console.start import failing_plainly
from models import logs
from models.errors import CannotStart
from models.settings import Settings, environment_of, load_settings
from models.upgrade import upgrade
from worker.broker import BrokerUnreachable, require_broker
from worker.bundle import Bundle, default_bundle_path
from worker.lifeline import die_with_parent

PARTS = {
    "listener": ["listen"],
    "worker": ["work", "--only", "analyse"],
    # Two: one that waits for a slow destination must not hold up the other reports.
    "courier": ["work", "--only", "report,deliver", "--concurrency", "2"],
    "sweeper": ["sweep"],
}
BROKER = "broker"
STOP_SECONDS = 7.0
BROKER_STOP_SECONDS = 2.0
BROKER_START_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A part that ran this long was healthy: its next restart is quick again.
STEADY_SECONDS = 60.0
log = logs.get("up")


def up() -> None:
    """Run the whole node on this machine: broker, database, listener, workers, sweeper."""
    settings = load_settings()
    logs.configure("up", level=settings.log_level)
    supervisor = Supervisor(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.ask_to_stop())
    with failing_plainly():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(settings)
        Bundle.load(settings.model_bundle or default_bundle_path())
        revision = upgrade(settings)
        log.info("starting", data=str(settings.data_dir.absolute()), revision=revision)
    try:
        with failing_plainly():
            supervisor.run()
    finally:
        supervisor.stop()
        lock.close()


def _lock(settings: Settings) -> IO[bytes]:
    """Take the data folder for this process; a second `up` would pull the broker's socket from under the first."""
    path = settings.data_dir / "run" / "up.lock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStart(f"another `osteon up` runs on {settings.data_dir.absolute()}") from None
    return lock


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
    """Starts the parts, restarts what dies, and stops all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts: dict[str, _Part] = {}
        self._stopping = False
        self._environment = {**_without_settings(os.environ), **environment_of(settings)}

    def ask_to_stop(self) -> None:
        """Make `run` return (from a signal handler)."""
        self._stopping = True

    def run(self) -> None:
        """Start everything and keep it running until asked to stop. Raises BrokerUnreachable."""
        if self._settings.broker_url is None:
            self._add(BROKER, broker_command(self._settings))
            self._wait_for_broker()
        for name, arguments in PARTS.items():
            self._add(name, [sys.executable, "-m", "console", *arguments])
        while not self._stopping:
            self._look_after_all()
            time.sleep(0.1)

    def stop(self) -> None:
        """End all parts, the broker last, and by force what does not end in time."""
        others = [part for part in self._parts.values() if part.name != BROKER]
        _end(others, STOP_SECONDS)
        _end([part for part in self._parts.values() if part.name == BROKER], BROKER_STOP_SECONDS)
        if self._parts:
            log.info("stopped")

    def _add(self, name: str, command: list[str]) -> None:
        self._parts[name] = _Part(name, command)
        self._start(self._parts[name])

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
        log.info("part started", part_name=part.name, pid=part.process.pid)

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
        log.error(
            "part died, starting it again",
            part_name=part.name,
            status=process.returncode if process else None,
            restarts=part.restarts,
            pause=part.pause,
        )
        part.pause = min(part.pause * 2, LONGEST_PAUSE_SECONDS)

    def _wait_for_broker(self) -> None:
        until = time.monotonic() + BROKER_START_SECONDS
        while not self._stopping:
            try:
                require_broker(self._settings)
            except BrokerUnreachable:
                process = self._parts[BROKER].process
                if time.monotonic() > until or (process is not None and process.poll() is not None):
                    raise
                time.sleep(0.05)
            else:
                return


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
