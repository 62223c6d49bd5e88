"""An image that takes its process with it takes nothing else: a process of its own, a time limit, a memory limit.

The first try at an image runs in the worker's child, since nearly every image is harmless. Each further one runs alone
in a process of its own (`worker.alone`): the child that started it keeps the lease's heart beating, ends it after the
time limit, and records how it ended (docs/decisions/0011).
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from models import logs
from models.settings import Settings, environment_of
from worker.claims import Claim, Work, time_limit

COMMAND = [sys.executable, "-m", "worker.alone"]
START_SECONDS = 60.0
"""How long the process may take to load its model: nothing before that is the image's fault."""
GRACE_SECONDS = 2.0
"""It ends by its own alarm; who started it waits this much longer before ending it."""
READY = b"r"
TROUBLE_STATUS = os.EX_TEMPFAIL
log = logs.get("isolation")


class Ended(Enum):
    """How it went, where no attempt is to be recorded."""

    DONE = "the image was dealt with, and whatever came of it is on record"
    TROUBLE = "the process could not begin, or could not reach the database"


@dataclass(frozen=True)
class Isolation:
    """How a worker's child keeps itself from harm by an image."""

    environment: Mapping[str, str]
    limit: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Isolation:
        """Return what these settings ask for."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
        return cls({**ours, **environment_of(settings)}, time_limit(Work.ANALYSE, settings))

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Have the kernel end this process when the block takes longer than the time limit.

        The default action of SIGALRM needs no Python: it also ends a decoder that holds the interpreter's lock.
        """
        signal.setitimer(signal.ITIMER_REAL, self.limit.total_seconds())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def longest(self) -> timedelta:
        """How long `run` takes at most."""
        return self.limit + timedelta(seconds=START_SECONDS + GRACE_SECONDS)

    def run(self, claim: Claim) -> Ended | str:
        """Analyse this image alone. Return how it went, or how the process died: an attempt that came to nothing."""
        numbers = (os.getpid(), claim.row_id, claim.token, claim.tries)
        try:
            process = subprocess.Popen(
                [*COMMAND, *map(str, numbers)], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        except OSError as error:
            log.error("no process could be started", exc_info=error)
            return Ended.TROUBLE
        with process:
            try:
                return self._wait(process)
            finally:
                process.kill()

    def _wait(self, process: subprocess.Popen[bytes]) -> Ended | str:
        assert process.stdout is not None  # noqa: S101 (it was asked for)
        if not _says_ready(process.stdout.fileno()):
            log.error("the process did not get ready", status=process.poll())
            return Ended.TROUBLE
        try:
            status = process.wait(self.limit.total_seconds() + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "time_limit"
        if status == 0:
            return Ended.DONE
        if status == TROUBLE_STATUS:
            return Ended.TROUBLE
        if status == -signal.SIGALRM:
            return "time_limit"
        return f"signal_{-status}" if status < 0 else f"exit_status_{status}"


def limit_memory(limit: int) -> None:
    """Let this process, and those that it starts, have at most `limit` bytes of data: more is a MemoryError.

    RLIMIT_DATA counts what is private and writable, and not what is merely reserved or mapped from a file.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def _says_ready(pipe: int) -> bool:
    readable, _, _ = select.select([pipe], [], [], START_SECONDS)
    return bool(readable) and os.read(pipe, 1) == READY
