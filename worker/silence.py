"""Says once when a source goes silent, and once when it is heard again: one of the chores (`worker.housekeeping`).

What silent means stands in `models.silence`. The log and an audit event say it, so that it can be watched without a
browser; whether it was said is read from the audit trail, so that neither a restart nor a second sweeper says it again.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import audit, clock, logs
from models.database import Database
from models.settings import Settings
from models.silence import Source, sources
from models.tables import AuditEvent

# A node that was down is sent first what its senders kept for it.
FIRST_LOOK_SECONDS = 600.0
LOOK_SECONDS = 60.0
SILENT, HEARD = "source.silent", "source.heard"
NEWEST_EVENTS = 1000
_LOCK = 7067837
log = logs.get("silence")


class Watch:
    """Looks after the sources of one node."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._began = False

    def step(self) -> float:
        """Say what changed; return after how many seconds to look again. Raises what the database raises."""
        if not self._began:
            self._began = True
            return FIRST_LOOK_SECONDS
        with self._database.read() as session:
            found = sources(session, self._settings)
            changed = _changed(session, found)
        if changed:
            with self._database.write() as session:
                _one_at_a_time(session)
                for source in _changed(session, found):
                    _say(session, source)
        return LOOK_SECONDS


def _changed(session: Session, found: list[Source]) -> list[Source]:
    """Return those of which the newest event says something else, or that went silent and have none."""
    said: dict[str, bool] = {}
    newest = [
        event
        for action in (SILENT, HEARD)
        for event in session.scalars(
            select(AuditEvent)
            .where(AuditEvent.action == action)
            .order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
            .limit(NEWEST_EVENTS)
        )
    ]
    for event in sorted(newest, key=lambda event: (event.at, event.id)):
        said[str(event.details.get("calling_ae_title"))] = event.action == SILENT
    return [source for source in found if source.is_silent != said.get(source.ae_title, False)]


def _say(session: Session, source: Source) -> None:
    heard_at = None if source.heard_at is None else source.heard_at.isoformat(timespec="seconds")
    audit.record(
        session,
        actor=audit.part_actor("sweeper"),
        action=SILENT if source.is_silent else HEARD,
        subject="source",
        subject_id=None,
        calling_ae_title=source.ae_title,
        peer=source.peer,
        heard_at=heard_at,
    )
    known = {"calling_ae_title": source.ae_title, "peer": source.peer, "heard_at": heard_at}
    if source.is_silent:
        pause = None if source.heard_at is None else round((clock.now() - source.heard_at).total_seconds())
        log.warning("a source has gone silent", seconds=pause, **known)
    else:
        log.info("a source is heard again", **known)


def _one_at_a_time(session: Session) -> None:
    # SQLite's BEGIN IMMEDIATE already lets one in at a time.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
