"""The node's own trouble is nobody's failed try: a spool out of reach, a full disk, a database that is away.

Work that met it is given back without counting, and the process that met it claims nothing for a while: the wait grows
with each time in a row, so that thousands of waiting rows are not claimed in vain one after the other. Another host,
which may be well, can take the row meanwhile. What cannot be given back, since the database is what is away, is given
back first thing when this process claims again; should its lease have run out and another have claimed it before, one
try was lost.

What only looks like trouble is told apart by asking: an error of a file counts as the image's own where the spool as a
whole is well, so that one bad sector does not keep a study waiting for ever.
"""

from __future__ import annotations

import errno
import sys
from datetime import datetime

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

from dicom_node.spool import Spool, SpoolError
from models import clock, logs
from models.database import Database
from worker.claims import Claim, give_back
from worker.retries import RetryPolicy

_ALWAYS = (SpoolError, OperationalError, InterfaceError, InternalError, NoConnection)
# Of the machine, whatever file they arose at.
_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN}
)
log = logs.get("troubles")


def is_the_nodes(error: BaseException, spool: Spool | None = None) -> bool:
    """Whether the error says something of the node or its surroundings, and nothing of the row that was worked on."""
    if isinstance(error, _ALWAYS):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _MACHINE or (spool is not None and not spool.is_well())
    return False


class Troubles:
    """The trouble that one process has had, and what it still has to give back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waits = RetryPolicy(first=1, longest=60, most=sys.maxsize)
        self._in_a_row = 0
        self._until: datetime | None = None
        self._owed: list[Claim] = []

    @property
    def owes(self) -> bool:
        """Whether something could not be given back yet."""
        return bool(self._owed)

    def hold_back(self) -> bool:
        """Whether it is too early to claim again; else give back what is owed. Raises what the database raises."""
        if self._until is not None and clock.now() < self._until:
            return True
        while self._owed:
            with self._database.write() as session:
                give_back(session, self._owed[-1])
            self._owed.pop()
        return False

    def met(self, claim: Claim, error: str) -> None:
        """Give this back without counting the try, and hold back for a while; `error` without any text of a file."""
        self._in_a_row += 1
        wait = self._waits.next_wait(self._in_a_row)
        assert wait is not None  # noqa: S101 (this policy never gives up)
        self._until = clock.now() + wait
        log.error("trouble of the node's", work=claim.work, row=claim.row_id, error=error, wait=wait.total_seconds())
        try:
            with self._database.write() as session:
                give_back(session, claim, wait=wait)
        except SQLAlchemyError as away:
            log.warning("given back later", work=claim.work, row=claim.row_id, exc_info=away)
            self._owed.append(claim)

    def passed(self) -> None:
        """Say that something was done without trouble."""
        self._in_a_row = 0
