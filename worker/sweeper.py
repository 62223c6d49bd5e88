"""The sweeper: closes studies that have gone quiet, and asks for whatever is unfinished.

It runs every half second, works from the database alone, and any number of sweepers do no harm: closing a study is
one conditional UPDATE, a hint too many finds nothing to claim, and a place in the audit chain is taken once.

==================  =======================================================================================
what it finds       what it does
==================  =======================================================================================
a quiet study       `receiving → complete`, if no association that fed it is open, or its longest wait is over
rows to be claimed  gives as many hints as the queue is short of; a lost hint costs half a second
a lease run out     nothing special: the row can be claimed again
audit events        gives them their place in the chain
==================  =======================================================================================
"""

from __future__ import annotations

import threading
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
from worker.claims import Work, count_claimable
from worker.hints import Hints

PERIOD_SECONDS = 0.5
MOST_HINTS = 50
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

    def run(self, stop: threading.Event) -> None:
        """Sweep until `stop` is set."""
        while not stop.wait(PERIOD_SECONDS):
            try:
                self.sweep()
            except SQLAlchemyError as error:
                if not self._failing:
                    log.error("database not reached", exc_info=error)
                self._failing = True
            else:
                self._failing = False
                self._alive()

    def sweep(self) -> None:
        """Make one round."""
        closed = close_quiet_studies(self._database)
        if closed:
            log.info("studies complete", studies=closed)
        with self._database.read() as session:
            claimable = {work: count_claimable(session, work, at_most=MOST_HINTS) for work in Work}
            unchained = bool(audit.unchained(session, limit=1))
        self._ask_for({work: count for work, count in claimable.items() if count})
        if unchained:
            self._chain()

    def _ask_for(self, claimable: dict[Work, int]) -> None:
        """Give as many hints as the queues are short of."""
        for work, count in claimable.items():
            try:
                waiting = queue_length(self._broker, work.value)
            except RedisError:
                # Nobody can be told now, and a broker that stands still takes its time to say so: the next round asks.
                return
            for _ in range(count - waiting):
                self._hints.give(work)

    def _chain(self) -> None:
        try:
            with self._database.write() as session:
                audit.chain(session)
        except IntegrityError:
            # Another sweeper took the same places; what it left is chained in the next round.
            log.debug("another sweeper chains")


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
