"""Leases that are kept alive by a heartbeat: short, so that what a dead holder held is taken over soon.

A lease (the columns of `models.tables.Claimable`, also those of a destination) ends by the database's time. While its
holder lives, a thread renews it every few seconds; after the time limit of the work it does not any more, so that a
holder that hangs loses its row although its heart still beats. Renewing decides nothing: whoever writes a result
proves by its token, in the same transaction, that the row was not claimed again (`worker.claims.still_held`).

    with kept_alive(database, claim.lease):
        ...  # work, and write the result

One heart renews any number of rows, of one table or of several, in one transaction: `kept_alive(database, *leases)`. A
row that was given back or claimed again meanwhile is left alone, so that those of a batch may end one by one.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import tuple_, update
from sqlalchemy.exc import SQLAlchemyError

from models import logs
from models.database import Database, database_now
from models.tables import CommitmentRequest, Delivery, DestinationState, Image, Resend, Study

Leased = type[Image] | type[Study] | type[Delivery] | type[Resend] | type[CommitmentRequest] | type[DestinationState]

LEASE = timedelta(seconds=15)
"""How long after its holder's last sign of life a row can be claimed again."""
BEAT_SECONDS = 4.0
"""Three beats may fail before the lease ends."""
STOP_SECONDS = 5.0
log = logs.get("leases")


@dataclass(frozen=True)
class Lease:
    """A row, the token under which it is held, and how long it may be held from now on."""

    table: Leased
    row_id: int
    token: int
    limit: timedelta


@contextmanager
def kept_alive(database: Database, *leases: Lease) -> Iterator[None]:
    """Renew the leases while the block runs, each of them until its own time limit is over."""
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(database, leases, stop), name="heart", daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        # It may be waiting for the database, and renews nothing that is given back: no reason to wait for it for long.
        heart.join(STOP_SECONDS)


def _beat(database: Database, leases: tuple[Lease, ...], stop: threading.Event) -> None:
    began = time.monotonic()
    failing = False
    while not stop.wait(BEAT_SECONDS):
        passed = time.monotonic() - began
        alive = [lease for lease in leases if passed < lease.limit.total_seconds()]
        if not alive:
            return
        try:
            renew(database, *alive)
        except SQLAlchemyError as error:
            if not failing:
                log.warning("leases not renewed", rows=len(alive), exc_info=error)
            failing = True
        else:
            failing = False


def renew(database: Database, *leases: Lease) -> set[Lease]:
    """Let these leases last for another `LEASE`, and return those that are still held under their tokens.

    Tables are locked in the order in which they are named first.
    """
    named: defaultdict[Leased, dict[tuple[int, int], Lease]] = defaultdict(dict)
    for lease in leases:
        named[lease.table][lease.row_id, lease.token] = lease
    kept: set[Lease] = set()
    with database.write() as session:
        until = database_now(session) + LEASE
        for table, rows in named.items():
            renewed = session.execute(
                update(table)
                .where(tuple_(table.id, table.lease_token).in_(list(rows)), table.lease_until.is_not(None))
                .values(lease_until=until)
                .returning(table.id, table.lease_token)
                .execution_options(synchronize_session=False)
            )
            kept.update(rows[row_id, token] for row_id, token in renewed)
    return kept
