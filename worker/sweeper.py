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
audit events         gives them their place in the chain; once an hour it looks for forgotten ones from the beginning,
                     some with each round
a study held up      lets it be claimed when the last of its images was read; see `let_go_on`
==================== ============================================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from redis import Redis, RedisError
from sqlalchemy import and_, exists, or_, select, true, tuple_, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from models import audit, clock, logs
from models.database import Database, unindexed
from models.settings import Settings
from models.tables import Association, Image, ImageState, Resend, ResendState, Study, StudyState
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
# Of the studies that are held up, looked at in each round.
LOOK_AT_FIRST = 100
LOOK_AT_OTHERS = 300
# Rows that one statement names.
AT_ONCE = 1000
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
        self._looked_at_events = 0
        self._held_up = HeldUp(database)
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
        with self._database.ask() as connection:
            seen = glance(connection)
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
        self._held_up.let_go_on()
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
            unchained = bool(audit.unchained(session, limit=1))
            forgotten = thorough and bool(audit.unchained(session, limit=1, after=self._looked_at_events))
        if unchained and not self._chain():
            return
        self._chained_to, self._look_back_at = seen.newest_event, now + LOOK_BACK_SECONDS
        if thorough and (not forgotten or self._chain(after=self._looked_at_events)):
            self._look_further(seen.newest_event)

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

    def _look_further(self, newest: int) -> None:
        """Go on to the next events; behind the newest, begin again in an hour."""
        self._looked_at_events += audit.LOOK_AT
        if self._looked_at_events >= newest:
            self._looked_at_events = 0
            self._thorough_at = time.monotonic() + THOROUGH_SECONDS

    def _chain(self, *, after: int | None = None) -> bool:
        """Chain what has no place yet; return whether that was everything."""
        try:
            with self._database.write() as session:
                return audit.chain(session, after=after) < audit.MOST_AT_ONCE
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
        closed = list(
            session.scalars(
                update(Study)
                .where(ready)
                .values(state=StudyState.COMPLETE, completed_at=now, due_at=now, tries=0, held_up=False)
                .returning(Study.id)
                .execution_options(synchronize_session=False)
            )
        )
        waiting = sorted(_waiting(session, closed))
        for start in range(0, len(waiting), AT_ONCE):
            held_up = Study.id.in_(waiting[start : start + AT_ONCE])
            session.execute(update(Study).where(held_up).values(held_up=True))
    return closed


class HeldUp:
    """Looks after complete studies of which images or resends wait.

    A hundred thousand waiting images hold up fifty thousand studies. Claims would go through all of them to find one
    that is ready, so the sweeper marks them (`Study.held_up`) and goes through them itself, some with each round: the
    first, since images are read in the same order, and some of the others in turn. Nothing rests on the mark: claims
    look at the images too, and one mark too many is taken off when its turn comes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._after: tuple[datetime, int] | None = None

    def let_go_on(self) -> list[int]:
        """Take the mark off studies of which nothing waits any more; return their ids."""
        marked = and_(Study.state == StudyState.COMPLETE, Study.held_up == true())
        looked_at = select(Study.rank_at, Study.id).where(marked).order_by(Study.rank_at, Study.id)
        following = looked_at
        if self._after is not None:
            following = looked_at.where(tuple_(Study.rank_at, Study.id) > tuple_(*self._after))
        with self._database.read() as session:
            first = session.execute(looked_at.limit(LOOK_AT_FIRST)).all()
            others = session.execute(following.limit(LOOK_AT_OTHERS)).all() if len(first) == LOOK_AT_FIRST else []
            self._after = (others[-1].rank_at, others[-1].id) if len(others) == LOOK_AT_OTHERS else None
            ids = {row.id for row in (*first, *others)}
            ready = ids - _waiting(session, sorted(ids))
        if not ready:
            return []
        with self._database.write() as session:
            return list(
                session.scalars(
                    update(Study)
                    .where(Study.id.in_(ready), unindexed(Study.state) == StudyState.COMPLETE)
                    .values(held_up=False, due_at=clock.now())
                    .returning(Study.id)
                    .execution_options(synchronize_session=False)
                )
            )


def _waiting(session: Session, studies: Sequence[int]) -> set[int]:
    """Return those of these studies of which images wait to be read, or resends to be examined."""
    waiting: set[int] = set()
    for start in range(0, len(studies), AT_ONCE):
        some = studies[start : start + AT_ONCE]
        images = select(Image.study_id).where(Image.study_id.in_(some), Image.state == ImageState.RECEIVED)
        resends = select(Resend.study_id).where(
            Resend.study_id.in_(some), unindexed(Resend.state) == ResendState.WAITING
        )
        for query in (images, resends):
            waiting.update(session.scalars(query.distinct()))
    return waiting
