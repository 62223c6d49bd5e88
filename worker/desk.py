"""Storage commitment beside other work: threads ask destinations and answer senders, so that none holds up reports.

Whoever does not answer keeps one thread of a process waiting, for as long as connecting and its answers may take; the
other threads leave that peer alone meanwhile (`worker.commit`), and see to what else is due. A thread ends when nothing
is due any more; what one held that came to nothing is due again, since its rows say until when it had time.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from models import logs
from worker.commit import Committer

AT_ONCE = 8
"""Threads of one process, and so peers that may keep it waiting before others wait too."""
log = logs.get("commit")


class Desk:
    """Runs the threads of one process; no piece of work should take longer than `limit`."""

    def __init__(self, committer: Committer, limit: timedelta) -> None:
        self._committer = committer
        self._limit = limit.total_seconds()
        self._lock = threading.Lock()
        self._open: set[_Counter] = set()
        self._stopping = threading.Event()

    def attend(self) -> bool:
        """Start another thread, unless enough of them run; return, at once, whether one was started."""
        with self._lock:
            self._open = {counter for counter in self._open if counter.is_alive()}
            if len(self._open) >= AT_ONCE or self._stopping.is_set():
                return False
            counter = _Counter(self._committer, self._stopping)
            self._open.add(counter)
            counter.start()
        return True

    @property
    def hangs(self) -> bool:
        """Whether a thread takes longer than it may: its waits are bounded, so that this should not happen."""
        with self._lock:
            return any(counter.is_alive() and counter.seconds > self._limit for counter in self._open)

    def wait(self, seconds: float) -> bool:
        """Wait until no thread runs; return whether that is so."""
        until = time.monotonic() + seconds
        with self._lock:
            counters = list(self._open)
        for counter in counters:
            counter.join(max(0.0, until - time.monotonic()))
        return not any(counter.is_alive() for counter in counters)

    def close(self) -> None:
        """Begin nothing more."""
        self._stopping.set()


class _Counter(threading.Thread):
    """Does one piece after the other. Daemonic: a process that must end does not wait for it."""

    def __init__(self, committer: Committer, stopping: threading.Event) -> None:
        super().__init__(name="commitment", daemon=True)
        self._committer = committer
        self._stopping = stopping
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has been at its present piece."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Do what is due, until nothing is."""
        try:
            while not self._stopping.is_set() and self._committer.commit_next():
                self._began = time.monotonic()
        except Exception as error:
            # What it had taken is due again when its time is over, and the sweeper asks for it.
            log.error("work not done", work="commit", exc_info=error)
