"""Asks the parts of the node how they are, beside the pages: that takes a second and more, and no page waits for it.

One look serves all open pages. Every wait is bounded, and there is one thread at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from console.doctor.rounds import Check, go_round
from console.doctor.verdict import Finding, well, wrong
from console.doctor.work import look_at_parts
from console.health import broker_trouble
from models import clock
from models.settings import Settings

LOOK_AGAIN_SECONDS = 20.0
ANSWER_SECONDS = 1.5
"""For workers to answer; where some do not, they are asked once more for twice as long."""
LONGEST_SECONDS = 15.0
TOO_OLD = timedelta(seconds=90)


@dataclass(frozen=True)
class Answer:
    """How the parts were when they were asked last."""

    asked_at: datetime
    findings: list[Finding]


class PartsLook:
    """The last answer, and the thread that brings the next. Threads share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._answer: Answer | None = None
        self._asked = -LOOK_AGAIN_SECONDS

    def latest(self, settings: Settings) -> Answer | None:
        """Return the last answer, None where there is none of late; and ask again where it is old."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not running and time.monotonic() - self._asked >= LOOK_AGAIN_SECONDS:
                self._asked = time.monotonic()
                self._thread = threading.Thread(target=self._ask, args=(settings,), name="parts", daemon=True)
                self._thread.start()
            answer = self._answer
        fresh = answer is not None and clock.now() - answer.asked_at < TOO_OLD
        return answer if fresh else None

    def _ask(self, settings: Settings) -> None:
        checks = [
            Check("broker", lambda: _broker(settings)),
            Check("parts", lambda: look_at_parts(settings, ANSWER_SECONDS)),
        ]
        done = go_round(checks, seconds=LONGEST_SECONDS)
        with self._lock:
            self._answer = Answer(clock.now(), done.findings)


def _broker(settings: Settings) -> Iterator[Finding]:
    trouble = broker_trouble(settings)
    if trouble is None:
        yield well("broker", "the broker answers")
    else:
        yield wrong("broker", trouble, "start it; work goes on from the record as soon as it answers")


parts_look = PartsLook()
