"""Deliver reports: send their stored bytes to each destination, and keep what became of each try.

For each destination that has something due and that nobody sends to, a courier starts a lane: a thread that sends what
is due there, batch by batch, one connection for each batch, and ends when nothing is due any more. So no destination
waits for another, however many of them are slow or down. A thread of its own keeps the leases of all lanes, as long as
each gets on; one that does not is cut, and what it held is free again when its lease has run out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.outcome import Outcome, Result
from models import logs
from models.database import Database
from models.settings import Settings
from models.tables import Delivery, Report
from worker.claims import Claim, LeaseLost, Work, time_limit
from worker.lanes import NOT_IN_SETTINGS, Lane, Lanes, ensure, waiting
from worker.leases import BEAT_SECONDS
from worker.ways import Way, way_to

STALE_AFTER_SECONDS = 3600
STOP_SECONDS = 4.0
"""How long a courier that is told to stop may take: half of it for the answer that is waited for."""
CUT_AGAIN_SECONDS = 0.2
"""A connection cannot be cut in the moment before it is made."""
log = logs.get("deliver")


class Courier:
    """Runs the lanes of one process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lanes = Lanes(settings, database)
        self._outgoing = _private_folder(settings.data_dir / "run" / "outgoing")
        self._lock = threading.Lock()
        self._running: set[_Run] = set()
        self._heart: threading.Thread | None = None
        self._stopping = threading.Event()
        self._known = False

    def start_lanes(self) -> int:
        """Start a lane for each destination with something due that nobody sends to; return, at once, how many."""
        if not self._known:
            with self._database.write() as session:
                ensure(session, [peer.name for peer in self._settings.destinations])
            self._known = True
        with self._database.read() as session:
            names = waiting(session)
        started = 0
        for name in names:
            lane = None if self._stopping.is_set() else self._lanes.take(name)
            if lane is not None:
                self._start(lane)
                started += 1
        return started

    def wait(self, seconds: float) -> bool:
        """Wait until no lane runs; return whether that is so."""
        until = time.monotonic() + seconds
        with self._lock:
            running = list(self._running)
        for run in running:
            run.join(max(0.0, until - time.monotonic()))
        return not any(run.is_alive() for run in running)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End all lanes: what is being sent may be answered, for half the time; then the connections are cut."""
        self._stopping.set()
        if not self.wait(seconds / 2):
            with self._lock:
                running = list(self._running)
            until = time.monotonic() + seconds / 2
            while time.monotonic() < until:
                for run in running:
                    run.cut()
                if self.wait(CUT_AGAIN_SECONDS):
                    return
            log.warning("lanes left behind: their leases run out")

    def _start(self, lane: Lane) -> None:
        run = _Run(self._settings, self._database, self._lanes, lane, self._outgoing, self._stopping)
        with self._lock:
            self._running = {run for run in self._running if run.is_alive()} | {run}
            run.start()
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._heart.start()

    def _beat(self) -> None:
        """Keep the leases of the lanes that get on, until there are none."""
        while True:
            time.sleep(BEAT_SECONDS)
            with self._lock:
                running = [run for run in self._running if run.is_alive()]
                if not running:
                    self._heart = None
                    return
            for run in running:
                if run.is_late():
                    log.error("lane does not get on: cut", destination=run.lane.name)
                    run.cut()
                    continue
                try:
                    kept = self._lanes.renew(run.lane)
                except SQLAlchemyError as error:
                    log.error("leases not renewed", destination=run.lane.name, exc_info=error)
                    continue
                if not kept and run.lane.current is not None:
                    run.cut()


class _Run(threading.Thread):
    """Sends what is due at one destination until nothing is. Daemonic: a courier that must end does not wait for it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        lanes: Lanes,
        lane: Lane,
        outgoing: Path,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=f"lane {lane.name}", daemon=True)
        self.lane = lane
        self._settings = settings
        self._database = database
        self._lanes = lanes
        self._outgoing = outgoing
        self._stopping = stopping
        self._limit = time_limit(Work.DELIVER, settings).total_seconds()
        self._until = time.monotonic() + self._limit
        self._way: Way | None = None

    def run(self) -> None:
        """Send batch after batch."""
        try:
            while self.lane.current is not None:
                if self._stopping.is_set():
                    self._lanes.abandon(self.lane, cut=False)
                    return
                self._send_batch()
        except LeaseLost:
            log.warning("lease lost", destination=self.lane.name)
        except Exception as error:
            # What it holds is free again when its lease has run out.
            log.error("lane failed", destination=self.lane.name, exc_info=error)

    def is_late(self) -> bool:
        """Whether the present step takes longer than it may."""
        return time.monotonic() > self._until

    def cut(self) -> None:
        """Cut the connection, from another thread."""
        way = self._way
        if way is not None:
            way.drop()

    def _send_batch(self) -> None:
        self._get_on()
        peer = self._settings.peer(self.lane.name)
        batch = (held for held in (self.lane.current, *self.lane.rest) if held is not None)
        contents = (self._content(held) for held in batch)
        way = None if peer is None else way_to(peer, self._settings, contents, self._outgoing)
        if way is None:
            self._lanes.record(self.lane, NOT_IN_SETTINGS, associated=False)
            return
        self._get_on()
        self._way = way
        with way:
            if way.trouble is not None:
                if not self._stopping.is_set():
                    self._lanes.away(self.lane, way.trouble)
                return
            self._send_over(way)

    def _send_over(self, way: Way) -> None:
        batch = self.lane.batch
        while self.lane.current is not None and self.lane.batch == batch and not self._stopping.is_set():
            self._get_on()
            outcome = self._store(way, self.lane.current)
            if self._stopping.is_set() and not outcome.is_answer and outcome.result is Result.FAILED:
                self._lanes.abandon(self.lane, cut=True)
                return
            if way.trouble is not None:
                self._lanes.away(self.lane, way.trouble)
                return
            self._lanes.record(self.lane, outcome)

    def _store(self, way: Way, held: Claim) -> Outcome:
        try:
            return way.store(self._content(held))
        except Exception as error:
            log.error("delivery failed", delivery=held.row_id, exc_info=error)
            way.drop()
            return Outcome(Result.FAILED, type(error).__name__)

    def _content(self, held: Claim) -> bytes:
        with self._database.read() as session:
            return session.scalars(
                select(Report.content).join(Delivery, Delivery.report_id == Report.id).where(Delivery.id == held.row_id)
            ).one()

    def _get_on(self) -> None:
        self._until = time.monotonic() + self._limit


def _private_folder(folder: Path) -> Path:
    """Make the folder where reports lie while they are sent, and remove what a killed process left there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its sender was quicker
            if time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS:
                path.unlink()
    return folder
