"""An audit trail with a past, and what somebody can do to it who owns the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, create_engine, event, select

from models import audit, clock
from models.audit_check import Verdict, check
from models.audit_heads import head_files, heads_folder, read_heads
from models.database import Database
from models.settings import Settings
from models.signing import known_keys
from models.tables import AuditChain, AuditEvent
from worker.heads import Signer

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = timedelta(minutes=10)
TABLES = ("audit_events", "audit_chain")


class Trail:
    """A node's audit trail: an event every ten minutes, chained at once, and signed as often as asked for."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.signer = Signer(settings, database)

    def goes_on(self, events: int, *, signed_every: int | None = None, **what: Any) -> None:
        """Add so many events, from the time of the clock on, which is frozen."""
        at_once = min(events, signed_every or events)
        for start in range(1, events + 1, at_once):
            numbers = range(start, min(start + at_once, events + 1))
            with self.database.write() as session:
                for number in numbers:
                    clock.advance(EVERY)
                    columns = {"actor": "listener@host:7", "action": "image.received", "subject": "image"}
                    audit.record(session, **{**columns, "subject_id": number, "sha256": "5a" * 32, **what})
            self.chain()
            if signed_every is not None and len(numbers) == signed_every:
                self.sign()

    def chain(self) -> int:
        """Do what the sweeper does."""
        with self.database.write() as session:
            return audit.chain(session)

    def sign(self) -> None:
        """Sign, and chain what that leaves in the trail."""
        self.signer.step()
        self.chain()

    def check(self) -> Verdict:
        """Check it with what lies in the data folder."""
        folder = heads_folder(self.settings)
        return check(self.database, read_heads(head_files(folder)), known_keys(self.settings), where="the folder")

    def faults(self) -> list[str]:
        """What is found."""
        return [fault.what for fault in self.check().faults]

    def places(self) -> dict[int, AuditChain]:
        """The chain."""
        with self.database.read() as session:
            return {row.seq: row for row in session.scalars(select(AuditChain))}

    def event(self, number: int) -> AuditEvent:
        """One event."""
        with self.database.read() as session:
            return session.get_one(AuditEvent, number)

    @contextmanager
    def attacked(self, tables: Sequence[str] = TABLES) -> Iterator[Connection]:
        """Give a connection of the owner's, who has lifted every guard, foreign keys included."""
        engine = create_engine(self.database.engine.url)
        sqlite = engine.dialect.name == "sqlite"
        if sqlite:
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=OFF"))
        with engine.begin() as connection:
            if sqlite:
                named = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
                for (name,) in connection.exec_driver_sql(named).all():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
            for table in () if sqlite else tables:
                connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            yield connection
        engine.dispose()

    def attack(self, *statements: str, tables: Sequence[str] = TABLES) -> None:
        """Run statements as the owner, on these tables."""
        with self.attacked(tables) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def chain_anew(self, behind: int) -> None:
        """Write the chain anew behind a place, over the events as they are now, in the order of their ids."""
        kept = self.places()[behind]
        self.attack(f"DELETE FROM audit_chain WHERE seq > {behind}")
        assert kept.seq == behind
        while self.chain():
            pass
