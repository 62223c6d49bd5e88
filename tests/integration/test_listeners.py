"""Several listeners on one database: their limit is one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from dicom_node import listener as listening
from dicom_node.listener import Listener
from dicom_node.sender import Destination, Outcome, Result, echo
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import Peer, Settings
from models.tables import Association
from models.upgrade import upgrade
from tests.servers import wait_until


def test_what_other_listeners_hold_open_counts_against_the_limit_until_it_is_closed_or_silent(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HEARTBEAT_SECONDS", 0.1)
    settings = make_settings(
        listener={"max_associations": 2}, peers=[Peer(name="room", ae_title="ROOM", role="source")]
    )
    upgrade(settings)
    database = Database.of(settings)
    here = Listener(settings, database, Spool(tmp_path / "node" / "spool"), lambda: None)
    here.start()
    address = Destination(settings.ae_title, "127.0.0.1", here.port)

    def answer() -> Outcome:
        return echo(address, calling_ae_title="ROOM", timeout=5)

    try:
        assert answer().result is Result.DELIVERED
        hold_open(database, "one", "two")
        wait_until(lambda: answer().result is not Result.DELIVERED, what="the limit is reached")
        with database.write() as session:
            session.execute(update(Association).where(Association.uid == "one").values(closed_at=clock.now()))
        wait_until(lambda: answer().result is Result.DELIVERED, what="one was closed")
        hold_open(database, "three")
        wait_until(lambda: answer().result is not Result.DELIVERED, what="the limit is reached again")
        silent = clock.now() - 2 * listening.STALE_AFTER
        with database.write() as session:
            session.execute(update(Association).values(seen_at=silent))
        wait_until(lambda: answer().result is Result.DELIVERED, what="their listener was killed")
    finally:
        here.stop()
        database.close()


def hold_open(database: Database, *uids: str) -> None:
    """As another listener does whose senders have brought an instance."""
    now = clock.now()
    with database.write() as session:
        session.add_all(
            Association(
                uid=uid,
                calling_ae_title="ROOM",
                called_ae_title="OSTEON",
                address="10.0.0.1",
                opened_at=now - timedelta(hours=1),
                seen_at=now,
            )
            for uid in uids
        )
