"""How the day passes: the senders send, the PACS is away for an hour, and the node's backlog is written down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import func, select

from console.ports import free_port
from models.settings import AnalysisSettings, DeliverySettings, Peer, Settings, StudySettings
from models.tables import Delivery, DeliveryState, Image, ImageState, ModelVersion, Study, StudyState
from tests.benchmarks.day.schedule import DAY, HOUR, MODALITIES, OUTAGE, Kind
from tests.benchmarks.day.senders import Answer, Journal, Specification
from tests.benchmarks.parts import processor_seconds
from tests.faults.chaos import pacs
from tests.faults.chaos.site import Part
from tests.faults.chaos.verify import unsettled
from tests.servers import Node, given, wait_until

SAMPLES = 720
"""Of the backlog: one in two minutes of the day, or in half a second where that is longer."""
SHORTEST_PAUSE = 0.5
LONGEST = 2
"""So many times as long as the day it may take, and then `SETTLING_SECONDS` more."""
SETTLING_SECONDS = 1800.0


class Backlog(NamedTuple):
    """What waits at an hour of the day."""

    hour: float
    images: int
    """Received and not read yet."""
    receiving: int
    """Studies whose quiet time is not over, as far as the sweeper has seen."""
    complete: int
    """Studies without their report."""
    deliveries: int
    """Reports that the PACS does not have."""


@dataclass
class Course:
    """What was seen of a day."""

    begin: float
    """Midnight, as `time.time()`."""
    acceleration: float
    backlog: list[Backlog] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    arrivals: list[pacs.Arrival] = field(default_factory=list)
    processor_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Until everything was done."""

    def hour(self, at: float) -> float:
        """The hour of the day of a time."""
        return (at - self.begin) * self.acceleration / HOUR


def settings(folder: Path, acceleration: float, pacs_port: int, head_start: float) -> Settings:
    """The defaults but for the head start; what waits for a hospital's time is divided, what waits for work is not."""
    study, analysis, delivery = StudySettings(), AnalysisSettings(), DeliverySettings()
    sources = [
        Peer(
            name=modality.ae_title.lower(),
            ae_title=modality.ae_title,
            role="source",
            priority="urgent" if modality.kind is Kind.EMERGENCY else "routine",
        )
        for modality in MODALITIES
        if modality.kind is not Kind.PACS
    ]
    return given(
        folder,
        study=StudySettings(
            urgent_head_start=head_start / acceleration,
            **{name: getattr(study, name) / acceleration for name in ("quiet_time", "max_wait", "warn_after")},
        ),
        analysis=AnalysisSettings(
            first_wait=analysis.first_wait / acceleration, longest_wait=analysis.longest_wait / acceleration
        ),
        delivery=DeliverySettings(
            first_wait=delivery.first_wait / acceleration, longest_wait=delivery.longest_wait / acceleration
        ),
        peers=[*sources, Peer(name="pacs", ae_title=pacs.AE_TITLE, host="127.0.0.1", port=pacs_port)],
    )


class Hall:
    """A node, its PACS and its senders, for one day."""

    def __init__(
        self, folder: Path, data: Path, *, seed: int, studies: int, acceleration: float, head_start: float
    ) -> None:
        """`head_start` is what urgent work overtakes by, in seconds of the day."""
        self._folder = folder
        self._port = free_port()
        self.node = Node(settings(folder / "node", acceleration, self._port, head_start), folder / "node.log")
        self.journal = pacs.Journal(folder / "pacs")
        self._answers = folder / "answers"
        self._specification = Specification(
            seed, studies, acceleration, self.node.settings.port, str(data), str(self._answers)
        )
        command = [sys.executable, "-m", "tests.faults.chaos.pacs", "127.0.0.1", str(self._port), str(folder / "pacs")]
        self._pacs = Part("pacs", command, self.node.environment, folder / "pacs.log")

    def live(self) -> Course:
        """Let the day pass, and wait until everything is done."""
        acceleration = self._specification.acceleration
        self._pacs.start()
        self.node.start("up")
        self.node.wait_until_listening()
        # A reader says which model it has when it is ready to read.
        wait_until(self._reads, seconds=120, what="a worker is ready")
        with self._senders() as senders:
            assert senders.stdin is not None
            assert senders.stdout is not None
            spent = processor_seconds(self.node)
            course = Course(time.time() + 1, acceleration)
            senders.stdin.write(f"{course.begin}\n")
            senders.stdin.flush()
            self._watch(course, senders)
            course.processor_seconds["senders"] = json.loads(senders.stdout.readline())["processor_seconds"]
            assert senders.wait(60) == 0
        course.seconds = time.time() - course.begin
        after = processor_seconds(self.node)
        course.processor_seconds |= {part: after[part] - spent.get(part, 0.0) for part in after}
        course.answers = Journal.read(self._answers)
        course.arrivals = self.journal.arrivals()
        return course

    def stop(self) -> None:
        """End everything."""
        self.node.stop()
        self._pacs.stop()

    def _watch(self, course: Course, senders: subprocess.Popen[str]) -> None:
        """Write the backlog down until the day is over, all is sent, and nothing waits."""
        pause = max(SHORTEST_PAUSE, DAY / course.acceleration / SAMPLES)
        until = course.begin + LONGEST * DAY / course.acceleration + SETTLING_SECONDS
        while True:
            hour = course.hour(time.time())
            self._have_pacs(away=OUTAGE[0] <= hour < OUTAGE[1])
            course.backlog.append(self._backlog(hour))
            if hour >= 24 and senders.poll() is not None and self._settled():
                return
            assert senders.poll() in (None, 0), (self._folder / "senders.log").read_text()[-3000:]
            assert time.time() < until, f"not done in time: {course.backlog[-1]}"
            time.sleep(pause)

    def _reads(self) -> bool:
        with self.node.database.read() as session:
            return session.scalar(select(ModelVersion.id)) is not None

    def _settled(self) -> bool:
        with self.node.database.read() as session:
            return not unsettled(session)

    def _have_pacs(self, *, away: bool) -> None:
        if away:
            self._pacs.stop()
        elif not self._pacs.alive:
            # From the thread that lives as long as it shall: this one.
            self._pacs.start()

    def _backlog(self, hour: float) -> Backlog:
        with self.node.database.read() as session:
            counts = [
                session.scalar(select(func.count()).select_from(table).where(table.state == state)) or 0
                for table, state in (
                    (Image, ImageState.RECEIVED),
                    (Study, StudyState.RECEIVING),
                    (Study, StudyState.COMPLETE),
                    (Delivery, DeliveryState.DUE),
                )
            ]
        return Backlog(round(hour, 3), *counts)

    @contextmanager
    def _senders(self) -> Iterator[subprocess.Popen[str]]:
        specification = self._specification.write(self._folder / "senders.json")
        with (self._folder / "senders.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.day.senders", str(specification)],
                env=self.node.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.communicate()
