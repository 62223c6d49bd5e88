"""Several listeners on one database: their limit is one, and they may share a port."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from dicom_node import listener as listening
from dicom_node.listener import Listener
from dicom_node.sender import Destination, Outcome, Result, echo, kind_of, send
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import GivenSettings, Peer, Settings
from models.tables import Association
from models.upgrade import upgrade
from tests.dicom_bytes import ACCEPTED, RELEASE, RELEASED, command, context, data, fragment, request
from tests.phantom import limb
from tests.radiographs import radiograph
from tests.servers import Node, data_set_of, wait_until
from worker.sweeper import close_quiet_studies


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


def test_a_released_association_leaves_its_place_and_holds_up_no_study_although_its_peer_stays_connected(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.network.association.PARTING_SECONDS", 60.0)
    settings = make_settings(
        listener={"max_associations": 1}, peers=[Peer(name="room", ae_title="ROOM", role="source")]
    )
    upgrade(settings)
    database = Database.of(settings)
    here = Listener(settings, database, Spool(tmp_path / "node" / "spool"), lambda: None)
    here.start()
    address = Destination(settings.ae_title, "127.0.0.1", here.port)
    path = tmp_path / "instance.dcm"
    radiograph(limb(72, 60), sop_instance_uid="1.2.3.4").save_as(path, enforce_file_format=True)
    storage, syntax = kind_of(path)
    stored = data(
        fragment(1, command(0x0001, uid=storage, with_data_set=True), command=True, last=True),
        fragment(1, data_set_of(path), command=False, last=True),
    )
    try:
        with socket.create_connection((address.host, address.port), timeout=20) as peer:
            for sent, answered in (
                (request("ROOM", "OSTEON", context(1, storage, [syntax])), ACCEPTED),
                (stored, b"\x04"),
                (RELEASE, RELEASED),
            ):
                peer.sendall(sent)
                assert peer.recv(4096)[:1] == answered
            wait_until(lambda: rows(database) == [("released", True)], what="its end is on record")
            wait_until(
                lambda: echo(address, calling_ae_title="ROOM", timeout=5).result is Result.DELIVERED,
                what="its place is free",
            )
            with clock.frozen(clock.now() + timedelta(seconds=settings.study.quiet_time + 1)):
                assert len(close_quiet_studies(database)) == 1
    finally:
        here.stop()
        database.close()


def test_an_association_whose_end_is_being_recorded_is_not_counted_as_another_listeners(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HEARTBEAT_SECONDS", 0.1)
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(settings)
    database = Database.of(settings)
    here = Listener(settings, database, Spool(tmp_path / "node" / "spool"), lambda: None)
    counts: list[int] = []
    close, count = here._intake.close, here._intake.open_elsewhere

    def close_slowly(*arguments: str) -> None:
        before = len(counts)
        wait_until(lambda: len(counts) > before + 2, what="heartbeats meanwhile")
        close(*arguments)

    def note(*arguments: Any, **options: Any) -> int:
        counts.append(count(*arguments, **options))
        return counts[-1]

    monkeypatch.setattr(here._intake, "close", close_slowly)
    monkeypatch.setattr(here._intake, "open_elsewhere", note)
    here.start()
    path = tmp_path / "instance.dcm"
    radiograph(limb(72, 60)).save_as(path, enforce_file_format=True)
    try:
        address = Destination(settings.ae_title, "127.0.0.1", here.port)
        ((_, outcome),) = send(address, [path], calling_ae_title="ROOM", timeout=20)
        assert outcome.result is Result.DELIVERED
        wait_until(lambda: rows(database) == [("released", True)], what="its end is on record")
    finally:
        here.stop()
        database.close()
    assert set(counts) == {0}


def rows(database: Database) -> list[tuple[str | None, bool]]:
    """How each association on record ended, and whether it did."""
    with database.read() as session:
        return [(row.outcome, row.closed_at is not None) for row in session.scalars(select(Association))]


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_processes_share_a_port_and_when_one_is_killed_the_others_answer_and_it_comes_back(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node(
        listener={"processes": 3},
        peers=[Peer(name="room", ae_title="ROOM", role="source")],
    )
    node.start("listen")
    node.wait_until_listening()
    wait_until(lambda: said(node, "listening") == 3, what="all three listen")
    path = tmp_path / "instance.dcm"
    for number in range(12):
        radiograph(limb(72, 60), study_uid="1.2", series_uid="1.2.1", sop_instance_uid=f"1.2.1.{number + 1}").save_as(
            path, enforce_file_format=True
        )
        ((_, outcome),) = send(node.address, [path], calling_ae_title="ROOM", timeout=30)
        assert outcome.result is Result.DELIVERED
    assert len(node.spooled()) == 12
    pids = {line["pid"] for line in node.log_lines() if line["event"] == "part started"}
    assert len(pids) == 3
    os.kill(pids.pop(), signal.SIGKILL)
    wait_until(node.answers, seconds=20, what="another answers")
    wait_until(lambda: said(node, "listening") == 4, what="the killed one is back")
    node.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def said(node: Node, event: str) -> int:
    return sum(line["event"] == event for line in node.log_lines())


def test_more_than_one_process_needs_postgresql() -> None:
    with pytest.raises(ValidationError, match="need PostgreSQL"):
        GivenSettings(listener={"processes": 2})  # type: ignore[arg-type]


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
