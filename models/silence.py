"""A source that has gone silent: nothing came from it, although by its own habit something should have come.

A modality that fails, is moved to another port, or loses its route sends nothing, and nothing is what nobody sees. How
long a pause may be is either said (`silent_after` of the peer), or known from the source's own last weeks:

    It is silent when nothing came for an hour and more, although in the same stretch of the week at least fifteen
    studies came in three or more of its last four weeks.

At night and at the weekend nothing came in those weeks either, so that a night and a weekend alarm nobody, and a room
that works is missed after about as long as it takes to make fifteen studies. One week of the four may have been out of
the ordinary: a holiday, a repair. Without three weeks of history nothing is known, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from models import clock
from models.settings import Peer, Settings
from models.tables import Association, Study

WEEK = timedelta(days=7)
WEEKS = 4
WEEKS_THAT_AGREE = 3
ENOUGH = 15
"""Studies that came in a week's stretch. Simulated sources of 50 to 1,000 studies a week, with days, nights and
weekends, were called silent for no reason once in twenty years at most; with ten, up to four times a year."""
LEAST_PAUSE = timedelta(hours=1)
MOST_COUNTED = 100
MOST_SOURCES = 500
# Of all that ever were; and studies of one source: a late image came to one of them.
NEWEST_ASSOCIATIONS = 1000
NEWEST_STUDIES = 5


@dataclass(frozen=True)
class Source:
    """A calling AE title, and how it stands with it."""

    ae_title: str
    peer: str | None
    """Its name in the settings; None for one that is let in unknown."""
    heard_at: datetime | None
    """When something last came from it that we did not have; None where nothing ever did."""
    silent_after: timedelta | None
    """The longest pause, where the settings say it."""
    weeks: tuple[int, ...]
    """How many studies came in the same stretch of the week, the last week first; at most `MOST_COUNTED` are counted.
    Empty where the pause is too short to look."""
    is_known: bool
    """Whether anything can be said: there is a setting, or history enough."""
    is_silent: bool

    @property
    def why(self) -> str:
        """In plain words, why it is silent, or what that is known by. Times are UTC."""
        if self.heard_at is None:
            return "nothing ever came from it"
        if self.silent_after is not None:
            allowed = in_words(self.silent_after)
            if not self.is_silent:
                return f"after {allowed}, as the settings say"
            return f"nothing since {self.heard_at:%a %d %b %H:%M}; silent_after is {allowed}"
        if not self.is_known:
            return f"known for less than {WEEKS_THAT_AGREE} weeks, which is too little to tell"
        if not self.is_silent:
            return "by its own last weeks"
        *counts, last = ("100 or more" if count >= MOST_COUNTED else str(count) for count in self.weeks)
        return (
            f"nothing since {self.heard_at:%a %d %b %H:%M}; "
            f"in the same stretch of its last weeks came {', '.join(counts)} and {last} studies"
        )


def sources(session: Session, settings: Settings) -> list[Source]:
    """Return all sources of the settings and, where strangers are let in, those of the last weeks; by their names."""
    now = clock.now()
    contacts = _contacts(session)
    peers = {peer.ae_title: peer for peer in settings.sources if peer.ae_title is not None}
    found = [_source(session, peer.ae_title or "", peer, now, contacts) for peer in peers.values()]
    if settings.listener.accept_unknown_callers:
        strangers = [title for title in ae_titles(session) if title not in peers]
        known = (_source(session, title, None, now, contacts) for title in strangers)
        found += [source for source in known if source.heard_at and now - source.heard_at < WEEKS * WEEK]
    return found


def is_missed(weeks: Sequence[int]) -> bool:
    """Whether so many studies in the same stretch of the last weeks say that something should have come in this one."""
    return sum(count >= ENOUGH for count in weeks) >= WEEKS_THAT_AGREE


def ae_titles(session: Session) -> list[str]:
    """Return the calling AE titles that ever began a study, in their order: one step through the index for each."""
    first = select(func.min(Study.calling_ae_title).label("title")).cte("titles", recursive=True)
    before = aliased(first)
    following = select(func.min(Study.calling_ae_title)).where(Study.calling_ae_title > before.c.title)
    steps = first.union_all(select(following.correlate(before).scalar_subquery()).where(before.c.title.is_not(None)))
    found = session.scalars(select(steps.c.title).where(steps.c.title.is_not(None)).limit(MOST_SOURCES))
    return list(found)


def in_words(span: timedelta) -> str:
    """Return a time as people say it: "3 h 8 min", "2 d 5 h"."""
    minutes = max(0, int(span.total_seconds() // 60))
    days, hours, left = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {left} min" if left else f"{hours} h"
    return f"{left} min" if left else f"{max(0, int(span.total_seconds()))} s"


def _source(session: Session, ae_title: str, peer: Peer | None, now: datetime, contacts: dict[str, datetime]) -> Source:
    newest = (
        select(Study.last_image_at)
        .where(Study.calling_ae_title == ae_title)
        .order_by(Study.first_image_at.desc(), Study.id.desc())
        .limit(NEWEST_STUDIES)
    )
    heard = [*session.scalars(newest), *([contacts[ae_title]] if ae_title in contacts else [])]
    heard_at = max(heard, default=None)
    after = None if peer is None or peer.silent_after is None else timedelta(hours=peer.silent_after)
    weeks: tuple[int, ...] = ()
    is_known = after is not None
    is_silent = heard_at is not None and after is not None and now - heard_at > after
    if after is None and heard_at is not None:
        first = select(func.min(Study.first_image_at)).where(Study.calling_ae_title == ae_title)
        began_at = session.scalar(first)
        is_known = began_at is not None and began_at <= now - WEEKS_THAT_AGREE * WEEK
        if is_known and now - heard_at >= LEAST_PAUSE:
            weeks = _weeks(session, ae_title, heard_at, now)
            is_silent = is_missed(weeks)
    return Source(ae_title, None if peer is None else peer.name, heard_at, after, weeks, is_known, is_silent)


def _weeks(session: Session, ae_title: str, heard_at: datetime, now: datetime) -> tuple[int, ...]:
    """Count the studies of the same stretch in the last weeks. That of a pause of more than a week has one whole."""
    counts = []
    for back in range(1, WEEKS + 1):
        came = (
            select(Study.id)
            .where(
                Study.calling_ae_title == ae_title,
                Study.first_image_at > heard_at - back * WEEK,
                Study.first_image_at <= now - back * WEEK,
            )
            .order_by(Study.first_image_at)
            .limit(MOST_COUNTED)
            .subquery()
        )
        counts.append(select(func.count()).select_from(came).scalar_subquery())
    return tuple(session.execute(select(*counts)).one())


def _contacts(session: Session) -> dict[str, datetime]:
    """Return when each of those was last there that came lately: also those who brought what belongs to old studies."""
    newest = (
        select(Association.calling_ae_title, Association.seen_at)
        .order_by(Association.id.desc())
        .limit(NEWEST_ASSOCIATIONS)
        .subquery()
    )
    last = select(newest.c.calling_ae_title, func.max(newest.c.seen_at)).group_by(newest.c.calling_ae_title)
    return {name: at for name, at in session.execute(last)}  # noqa: C416 (a row is no pair to mypy)
