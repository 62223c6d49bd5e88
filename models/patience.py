"""A PostgreSQL connection that does not wait for ever.

PostgreSQL's own limits (`statement_timeout`, `lock_timeout`) are kept by the server; one that stands still keeps none,
and TCP goes on acknowledging for it. So the client counts too: an answer that takes longer than the connection's
patience closes the connection, which SQLAlchemy then takes for lost.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready

_Answer = TypeVar("_Answer")
# How often psycopg wakes up while it waits; it then says that nothing has come.
_INTERVAL = 0.1


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server ends."""

    statement_seconds: ClassVar[float] = 25.0
    ping_seconds: ClassVar[float] = 5.0
    """In autocommit mode: the pool asks whether a connection still answers, and `Database.ask` what takes no time."""

    def wait(self, gen: PQGen[_Answer], interval: float = _INTERVAL, timeout: float | None = None) -> _Answer:
        """Wait for an answer. Raises OperationalError, and closes the connection, when it takes too long."""
        seconds = self.ping_seconds if self.autocommit else self.statement_seconds
        return super().wait(self._bounded(gen, seconds), interval, timeout)

    def _bounded(self, gen: PQGen[_Answer], seconds: float) -> PQGen[_Answer]:
        """Pass everything on; of what psycopg waits for, only the time is looked at."""
        until = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready == Ready.NONE and time.monotonic() > until:
                    # Whatever comes later would be the answer to another question.
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the database does not answer")
                wanted = gen.send(ready)
        except StopIteration as done:
            answer: _Answer = done.value
            return answer
