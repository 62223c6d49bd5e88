"""Signs the end of the audit chain now and then, outside the database: one of the chores (`worker.housekeeping`).

It looks every few seconds how far the chain has come, which is one statement, and signs when `audit.head_events` events
or `audit.head_every` seconds have gone by since the newest head, whoever wrote that. A head is also a line in the log,
whole, so that a log server keeps what the owner of this machine may remove.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select

from models import audit, clock, logs
from models.audit_check import KEY_CREATED
from models.audit_heads import Head, HeadWriter, heads_folder, newest
from models.database import Database
from models.settings import Settings
from models.signing import KeyUnusable, SigningKey, known_keys, signing_key
from models.tables import AuditChain, Installation

LOOK_SECONDS = 15.0
AFTER_TROUBLE_SECONDS = 60.0
log = logs.get("heads")
_END = select(AuditChain.seq, AuditChain.hash).order_by(AuditChain.seq.desc()).limit(1)


class Signer:
    """Writes the heads of one sweeper."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._every = timedelta(seconds=settings.audit.head_every)
        self._events = settings.audit.head_events
        self._look_again = min(LOOK_SECONDS, settings.audit.head_every)
        self._writer = HeadWriter(heads_folder(settings))
        self._last: Head | None = None
        self._failing = False

    def step(self) -> float:
        """Sign if it is time; return after how many seconds to look again. Raises what database and disk raise."""
        with self._database.read() as session:
            end = session.execute(_END).first()
        if end is None or not self._is_due(end.seq):
            return self._look_again
        try:
            self._sign(end.seq, end.hash)
        except KeyUnusable as error:
            # Nothing else waits for that, and it is said once.
            if not self._failing:
                log.error("audit chain not signed", why=str(error))
            self._failing = True
            return AFTER_TROUBLE_SECONDS
        self._failing = False
        return self._look_again

    def _sign(self, place: int, chain_hash: str) -> None:
        # Another sweeper may have signed meanwhile.
        self._last = newest(heads_folder(self._settings), known_keys(self._settings))
        if not self._is_due(place):
            return
        with self._database.read() as session:
            installation = session.scalars(select(Installation.uid)).one()
        self._last = self._writer.write(
            self._key(), installation=installation, place=place, chain_hash=chain_hash, before=self._last
        )
        head = self._last
        log.info(
            "audit head",
            format=head.format,
            installation=head.installation,
            place=head.place,
            hash=head.hash,
            at=head.at,
            key=head.key,
            previous=head.previous,
            signature=head.signature,
        )

    def _is_due(self, place: int) -> bool:
        last = self._last
        if last is None:
            return True
        if place == last.place:
            return False
        # Behind the last place: a database that was restored from a backup is signed again, too.
        by_events = abs(place - last.place) >= self._events
        return by_events or clock.now() - datetime.fromisoformat(last.at) >= self._every

    def _key(self) -> SigningKey:
        """Return the key in force; that one was made is put on record."""
        key = signing_key(self._settings)
        if key.created:
            with self._database.write() as session:
                audit.record(
                    session,
                    actor=audit.part_actor("sweeper"),
                    action=KEY_CREATED,
                    subject="signing_key",
                    subject_id=None,
                    key=key.public.id,
                    used_for="heads",
                )
            log.info("signing key made", key=key.public.id)
        return key
