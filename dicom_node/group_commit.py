"""Group commit: instances that arrive at the same time share one transaction, and so one wait for the disk.

Whoever finds no commit under way takes everything that waits, its own instance among it, and commits it; what comes
meanwhile waits for the next. An instance that is alone waits for nobody. One that the database refuses does not take
the others with it: the group is then written anew, each with a SAVEPOINT of its own. Each is answered after the commit
that holds it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from dicom_node.headers import SourceHeader
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from models import logs
from models.database import Database
from models.tables import Image, Study

MOST = 64
"""Instances in one transaction: what others, who want to write too, wait for."""
GROUP_SECONDS = 30.0
"""A group that takes longer is given up: its instances wait for locks or for a slow disk one after the other."""
# The group before one's own, one's own, and the longest that a database may take to say that it does not answer.
PATIENCE_SECONDS = 2 * GROUP_SECONDS + 30
log = logs.get("group_commit")


class NotRecorded(Exception):
    """The instance is certainly not on record; why is the cause."""


class Undecided(Exception):
    """The commit may have been done or may still be: the file has to stay until that is known."""


class _OneRefused(Exception):
    """An instance cannot be written, and its transaction is over; nothing of the group is on record."""


@dataclass(eq=False)
class _Waiting:
    """An instance that waits for its commit."""

    sender: Sender
    header: SourceHeader
    stored: StoredFile
    done: bool = False
    outcome: Receipt | Exception | None = None
    """What became of it; nothing, where that is not known."""


class GroupCommit:
    """Writes the record of received instances. Threads share one."""

    def __init__(self, database: Database, intake: Intake, *, patience: float = PATIENCE_SECONDS) -> None:
        self._database = database
        self._intake = intake
        self._patience = patience
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._committing = False

    def record(self, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        """Commit an instance whose file is durable, together with whatever waits.

        Raises
        ------
        NotRecorded
            The file may be removed.
        Undecided
            The file has to stay.
        """
        own = _Waiting(sender, header, stored)
        group = self._group_to_commit(own)
        if group:
            try:
                self._commit(group)
            finally:
                self._hand_back(group)
        if isinstance(own.outcome, Receipt):
            return own.outcome
        if own.outcome is None:
            raise Undecided
        raise NotRecorded from own.outcome

    def _group_to_commit(self, own: _Waiting) -> list[_Waiting]:
        """Wait until it is this thread's turn to commit a group; an empty list where another did its instance."""
        until = time.monotonic() + self._patience
        with self._changed:
            self._waiting.append(own)
            while self._committing and not own.done:
                left = until - time.monotonic()
                if left <= 0:
                    self._give_up(own)
                self._changed.wait(left)
            if own.done:
                return []
            self._committing = True
            self._waiting.remove(own)
            group = [own, *self._waiting[: MOST - 1]]
            del self._waiting[: MOST - 1]
            return group

    def _give_up(self, own: _Waiting) -> NoReturn:
        late = TimeoutError("the record was not written in time")
        if own not in self._waiting:
            raise Undecided from late
        self._waiting.remove(own)
        raise NotRecorded from late

    def _hand_back(self, group: list[_Waiting]) -> None:
        with self._changed:
            self._committing = False
            for waiting in group:
                waiting.done = True
            self._changed.notify_all()

    def _commit(self, group: list[_Waiting]) -> None:
        """Write and commit the group, and say what became of each."""
        until = time.monotonic() + GROUP_SECONDS
        try:
            self._commit_in_one(group, until, apart=False)
        except _OneRefused:
            self._commit_in_one(group, until, apart=True)

    def _commit_in_one(self, group: list[_Waiting], until: float, *, apart: bool) -> None:
        written = False
        outcomes: Sequence[Receipt | Exception | None]
        try:
            with self._database.write() as session:
                group = _in_order(session, group)
                outcomes = self._write_all(session, group, until, apart=apart)
                session.flush()
                written = True
        except _OneRefused:
            raise
        except Exception as error:
            # Without a COMMIT nothing can be on record. Of one that was sent, only the database's own no is certain.
            certain = not written or (isinstance(error, DBAPIError) and not _may_be_on_disk(error))
            outcomes = [error if certain else None for _ in group]
            if not certain:
                log.error("commit undecided", instances=len(group), exc_info=error)
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.outcome = outcome

    def _write_all(
        self, session: Session, group: list[_Waiting], until: float, *, apart: bool
    ) -> list[Receipt | Exception]:
        outcomes: list[Receipt | Exception] = []
        for waiting in group:
            if time.monotonic() > until:
                raise TimeoutError("the group was not written in time")
            outcomes.append(self._write(session, waiting, apart=apart))
        return outcomes

    def _write(self, session: Session, waiting: _Waiting, *, apart: bool) -> Receipt | Exception:
        """Write one instance; return why it could not be written. Raises what concerns the whole group."""
        try:
            with session.begin_nested() if apart else nullcontext():
                return self._intake.write(session, waiting.sender, waiting.header, waiting.stored)
        except Exception as error:
            if _concerns_all(session, error):
                raise
            if not apart:
                raise _OneRefused from error
            # What was read of rows that are gone again must not be taken for the rows of the next instance.
            session.expunge_all()
            return error


def _in_order(session: Session, group: list[_Waiting]) -> list[_Waiting]:
    """Return the group in the order of the studies that will be locked, the same for every listener.

    An instance that is on record locks the study where it is, whatever study it names now.
    """
    if len(group) == 1:
        return group
    uids = [waiting.header.sop_instance_uid for waiting in group]
    known = (
        select(Image.sop_instance_uid, Study.study_instance_uid)
        .join(Study, Study.id == Image.study_id)
        .where(Image.sop_instance_uid.in_(uids), Image.replaced_at.is_(None))
    )
    studies = dict(session.execute(known).all())
    return sorted(group, key=lambda w: studies.get(w.header.sop_instance_uid, w.header.study_instance_uid))


def _may_be_on_disk(error: DBAPIError) -> bool:
    """Whether a COMMIT that failed may have been done: the connection was lost, or SQLite could not sync its log."""
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return error.connection_invalidated or code & 0xFF == sqlite3.SQLITE_IOERR


def _concerns_all(session: Session, error: Exception) -> bool:
    """A connection that is lost; on SQLite a file that cannot be written, for which it may end the transaction."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError) and session.get_bind().dialect.name == "sqlite"
