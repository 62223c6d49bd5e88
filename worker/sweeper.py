"""The sweeper: closes studies that have gone quiet, and asks for whatever is unfinished.

It runs every half second, and when the next study will have been quiet for long enough; works from the database alone;
and any number of sweepers do no harm: closing a study is one conditional UPDATE, a hint too many finds nothing to
claim, and a place in the audit chain is taken once. A round that finds nothing costs one statement (`worker.glance`).

==================== ============================================================================================
what it finds        what it does
==================== ============================================================================================
a quiet study        `receiving → complete`, if no association that fed it is open, or its longest wait is over
rows to be claimed   gives as many hints as the queue is short of; a lost hint costs half a second
lanes to be started  gives one hint, which starts them all
a lease run out      nothing special: the row can be claimed again
work that waits      warns once when some has waited for longer than `study.warn_after`, and says when none does again
audit events         gives them their place in the chain; once an hour it looks for forgotten ones from the beginning
==================== ============================================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from redis import Redis, RedisError
from sqlalchemy import and_, exists, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from models import audit, clock, logs
from models.database import Database
from models.settings import Settings
from models.tables import Association, Image, Resend, Study, StudyState
from worker.broker import client, queue_length
from worker.claims import Work, count_claimable, waits_since
from worker.glance import Glance, glance
from worker.hints import Hints
from worker.lanes import waiting

PERIOD_SECONDS = 0.5
# Studies that become quiet one after the other are closed together, so often at most.
SHORTEST_PERIOD_SECONDS = 0.05
MOST_HINTS = 50
LOOK_AFTER_WAITING_SECONDS = 10.0
# An event may be committed after a younger one was chained: it is then no news that there are events.
LOOK_BACK_SECONDS = 5.0
THOROUGH_SECONDS = 3600.0
# An association whose listener has not touched it for this long is not open any more, whatever its row says.
SILENT_AFTER = timedelta(seconds=20)
log = logs.get("sweeper")


class Sweeper:
    """Runs the rounds; `alive` is called after each that reached the database."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        hints: Hints,
        *,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._hints = hints
        self._alive = alive
        self._broker: Redis = client(settings)
        self._failing = False
        self._warn_after = timedelta(seconds=settings.study.warn_after)
        self._warned: set[Work] = set()
        self._look_at = 0.0
        self._thorough_at = 0.0
        self._look_back_at = 0.0
        self._chained_to = -1
        """The newest event when the last look for events without a place found none."""

    def run(self, stop: threading.Event) -> None:
        """Sweep until `stop` is set."""
        wait = PERIOD_SECONDS
        while not stop.wait(wait):
            wait = PERIOD_SECONDS
            try:
                wait = self.sweep()
            except SQLAlchemyError as error:
                if not self._failing:
                    log.error("database not reached", exc_info=error)
                self._failing = True
            else:
                self._failing = False
                self._alive()

    def sweep(self) -> float:
        """Make one round; return after how many seconds the next is due."""
        with self._database.read() as session:
            seen = glance(session)
        if seen.work or self._warned:
            self._see_to_work()
        self._see_to_events(seen)
        if seen.next_quiet is None:
            return PERIOD_SECONDS
        until_quiet = (seen.next_quiet - clock.now()).total_seconds()
        return min(PERIOD_SECONDS, max(SHORTEST_PERIOD_SECONDS, until_quiet))

    def _see_to_work(self) -> None:
        closed = close_quiet_studies(self._database)
        if closed:
            log.info("studies complete", studies=closed)
        with self._database.read() as session:
            claimable: dict[Work, int] = {
                work: count_claimable(session, work, at_most=MOST_HINTS) for work in Work if work is not Work.DELIVER
            }
            # One hint starts the lanes of all destinations.
            claimable[Work.DELIVER] = min(1, len(waiting(session)))
        self._ask_for({work: count for work, count in claimable.items() if count})
        self._look_after_waiting()

    def _see_to_events(self, seen: Glance) -> None:
        """Chain events where there are new ones; now and then, and once an hour thoroughly, look for forgotten ones."""
        now = time.monotonic()
        thorough = now >= self._thorough_at
        if seen.newest_event == self._chained_to and now < self._look_back_at and not thorough:
            return
        with self._database.read() as session:
            unchained = bool(audit.unchained(session, limit=1, thorough=thorough))
        if unchained and not self._chain(thorough=thorough):
            return
        self._chained_to, self._look_back_at = seen.newest_event, now + LOOK_BACK_SECONDS
        if thorough:
            self._thorough_at = now + THOROUGH_SECONDS

    def _look_after_waiting(self) -> None:
        """Say once when work waits for so long that it seems that nobody does it."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_AFTER_WAITING_SECONDS
        for work in Work:
            with self._database.read() as session:
                waits = waits_since(session, work, clock.now() - self._warn_after)
            if waits and work not in self._warned:
                log.warning("work waits for too long", work=work.value, longer_than=self._warn_after.total_seconds())
                self._warned.add(work)
            elif not waits and work in self._warned:
                log.info("no work waits for too long any more", work=work.value)
                self._warned.remove(work)

    def _ask_for(self, claimable: dict[Work, int]) -> None:
        """Give as many hints as the queues are short of."""
        for work, count in claimable.items():
            try:
                # In this order: one that leaves between the two is counted twice, and not forgotten.
                waiting = self._hints.unsent(work) + queue_length(self._broker, work.value)
            except RedisError:
                # Nobody can be told now, and a broker that stands still takes its time to say so: the next round asks.
                return
            for _ in range(count - waiting):
                self._hints.give(work)

    def _chain(self, *, thorough: bool) -> bool:
        """Chain what has no place yet; return whether that was everything."""
        try:
            with self._database.write() as session:
                return audit.chain(session, thorough=thorough) < audit.MOST_AT_ONCE
        except IntegrityError:
            # Another sweeper took the same places; what it left is chained in the next round.
            log.debug("another sweeper chains")
            return False


def close_quiet_studies(database: Database) -> list[int]:
    """Set every study complete that is; return their ids."""
    now = clock.now()
    is_open, is_open_again = (
        exists()
        .where(
            and_(
                fed.study_id == Study.id,
                Association.id == fed.association_id,
                Association.closed_at.is_(None),
                Association.seen_at > now - SILENT_AFTER,
            )
        )
        .correlate(Study)
        for fed in (Image, Resend)
    )
    ready = and_(
        Study.state == StudyState.RECEIVING,
        Study.quiet_until <= now,
        or_(and_(~is_open, ~is_open_again), Study.complete_by <= now),
    )
    with database.read() as session:
        # Most rounds find nothing, and then no writer has to wait for this one.
        if session.scalars(select(Study.id).where(ready).limit(1)).first() is None:
            return []
    with database.write() as session:
        return list(
            session.scalars(
                update(Study)
                .where(ready)
                .values(state=StudyState.COMPLETE, completed_at=now, due_at=now, tries=0)
                .returning(Study.id)
                .execution_options(synchronize_session=False)
            )
        )
