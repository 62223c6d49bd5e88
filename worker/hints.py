"""Hints: "there is work", sent through Celery from a thread of its own.

A broker that is down must not delay anyone: a refused port was seen to hold `send_task` for 1.3 s. `give` only puts
the kind of work into a bounded queue; what does not fit, or cannot be sent, is dropped, because the sweeper asks for
whatever is left undone.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter

from celery import Celery

from models import logs
from worker.claims import Work

MOST_WAITING = 1000
# With a pause: what is sent after it at the latest, and more hints than most workers have processes.
MOST_WITH_PAUSE = 8
log = logs.get("hints")


class Hints:
    """Sends hints from a background thread, which starts with the first hint of each process.

    Parameters
    ----------
    pause
        Seconds between two hints. To send one takes a millisecond of processor time, and a listener receives many times
        what a worker can read; of what is given in between, a few wait and the sweeper asks for the rest.
    """

    def __init__(self, app: Celery, *, pause: float = 0.0) -> None:
        self._app = app
        self._pause = pause
        self._most = MOST_WITH_PAUSE if pause else MOST_WAITING
        self._waiting: queue.Queue[Work] = queue.Queue(self._most)
        self._unsent: Counter[Work] = Counter()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._reached = True

    def give(self, work: Work) -> None:
        """Say that there is work. Returns at once and never raises."""
        self._start()
        with self._lock:
            try:
                self._waiting.put_nowait(work)
            except queue.Full:
                return
            self._unsent[work] += 1

    def unsent(self, work: Work) -> int:
        """Return how many hints of this kind were given and have not left yet."""
        with self._lock:
            return self._unsent[work]

    def _start(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            # Threads do not survive a fork, and neither may what another process has in its queue.
            self._pid = os.getpid()
            self._waiting = queue.Queue(self._most)
            self._unsent = Counter()
            self._thread = threading.Thread(target=self._send_all, name="hints", daemon=True)
            self._thread.start()

    def _send_all(self) -> None:
        while True:
            work = self._waiting.get()
            self._send(work)
            with self._lock:
                self._unsent[work] -= 1
            if self._pause:
                time.sleep(self._pause)

    def _send(self, work: Work) -> None:
        try:
            self._app.send_task(task_name(work), queue=work.value, retry=False)
        except Exception as error:
            # Kombu raises whatever its transport does. Nothing is lost: a hint only saves the sweeper's half second.
            if self._reached:
                log.warning("broker not reached", work=work.value, exc_info=error)
            self._reached = False
        else:
            if not self._reached:
                log.info("broker reached again")
            self._reached = True


def task_name(work: Work) -> str:
    """Return the name of the Celery task that does this kind of work."""
    return f"osteon.{work.value}"
