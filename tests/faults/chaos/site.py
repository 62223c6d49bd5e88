"""A node and its neighbours, each a process of its own, and what keeps them running as a supervisor would."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import select

from models.database import Database
from models.settings import Peer, Settings, environment_of
from models.tables import ModelActivation
from tests.faults.chaos import pacs
from tests.faults.chaos.instances import Instance, dealt
from tests.faults.chaos.pacs import Journal
from tests.faults.chaos.postgresql import OwnPostgreSQL
from tests.faults.chaos.sender import Modality
from tests.faults.chaos.verify import acknowledged
from tests.faults.chaos.wire import Wire
from tests.servers import Valkey, given, wait_until
from worker.lifeline import die_with_parent

LANES = (("ROOM1", 2), ("ROOM2", 2))
"""Modalities, and over how many associations each sends."""
PARTS = {
    "listener": ["listen"],
    "worker": ["work", "--only", "analyse"],
    "courier": ["work", "--only", "report,deliver"],
    "sweeper": ["sweep"],
}
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 1.0
"""Seconds after which what died is started again."""


@dataclass
class Part:
    """A process that is started again when it died."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    start_at: float = 0.0
    killed: int = 0
    deaths: list[int] = field(default_factory=list)
    """Exit statuses of those that nobody killed."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it. Call it from the thread that lives as long as it shall."""
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )

    def kill(self) -> bool:
        """Kill -9; return whether there was something to kill."""
        if self.process is None or not self.alive:
            return False
        self.process.kill()
        self.process.wait()
        self.killed += 1
        return True

    def kill_child(self, chance: random.Random) -> bool:
        """Kill -9 one of its children; return whether there was one."""
        if self.process is None or not self.alive:
            return False
        children = psutil.Process(self.process.pid).children()
        if not children:
            return False
        chance.choice(children).kill()
        return True

    def stop(self) -> None:
        """End it in order, by force after a while."""
        if self.process is None or not self.alive:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


class Site:
    """Everything that takes part in one run."""

    def __init__(
        self, folder: Path, server: OwnPostgreSQL, bundle: Path, instances: list[Instance], *, seed: int, disk: Path
    ) -> None:
        self.folder, self.postgresql, self.instances, self.disk = folder, server, instances, disk
        self.chance = random.Random(seed)
        self.valkey = Valkey(folder)
        self.journal = Journal(folder / "pacs")
        pacs_port, port = _two_ports()
        self._ports = (pacs_port, port)
        self.to_pacs, self.to_listener = Wire(pacs_port), Wire(port)
        self.settings = settings(disk / "node", server, self.valkey, bundle, port=port, pacs_port=self.to_pacs.port)
        self.database = Database(server.url)
        self.parts = {name: self._part(name, ["-m", "console", *arguments]) for name, arguments in PARTS.items()}
        scp = ["-m", "tests.faults.chaos.pacs", "127.0.0.1", str(pacs_port), str(folder / "pacs")]
        self.parts["pacs"] = self._part("pacs", scp)
        self.once = {instance.sop_instance_uid for instance in self.chance.sample(instances, len(instances) // 20)}
        self.senders = self._senders()
        self.longest_stop = 4.0
        """Most seconds that a broker or database stands still."""
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._begun = time.monotonic()

    def start(self) -> None:
        """Start everything but the senders, and wait until it works."""
        self.postgresql.start()
        self.valkey.start()
        self.postgresql.wait()
        for part in self.parts.values():
            part.start()
        wait_until(self.works, seconds=120, what=f"every part works; their logs are in {self.folder}")
        self._begun = time.monotonic()

    def works(self) -> bool:
        """Whether the ports are open, the worker has its model, and the sweeper has swept."""
        for port in self._ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    return False
        with self.database.read() as session:
            model = session.scalars(select(ModelActivation.id)).first()
        return model is not None and any((self.settings.data_dir / "run").glob("sweeper-*"))

    def look_after(self) -> None:
        """Start again what died, and do what was put off until now. Call it often."""
        now = time.monotonic()
        for part in self.parts.values():
            if part.alive:
                continue
            if not part.start_at:
                if part.process is not None and part.process.returncode != -signal.SIGKILL:
                    part.deaths.append(part.process.returncode)
                    self.say(f"the {part.name} ended with status {part.process.returncode}")
                part.start_at = now + self.pause()
            elif part.start_at <= now:
                part.start_at = 0.0
                part.start()
        due = [put_off for put_off in self._later if put_off[0] <= now]
        self._later = [put_off for put_off in self._later if put_off[0] > now]
        for _, action in due:
            action()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self._later.append((time.monotonic() + seconds, action))

    @property
    def calm(self) -> bool:
        """Whether nothing is put off, and all parts run."""
        return not self._later and all(part.alive for part in self.parts.values())

    def pause(self) -> float:
        """Seconds until what died is started again."""
        return self.chance.uniform(SHORTEST_PAUSE, LONGEST_PAUSE)

    def acknowledged(self) -> set[str]:
        """SOP Instance UIDs that were answered with success."""
        return acknowledged(self.senders)

    def progress(self) -> float:
        """How far it is: 0 to 1 while the instances are acknowledged, 1 to 2 while each study's report arrives."""
        studies = len({instance.study_uid for instance in self.instances})
        sent = len(self.acknowledged()) / len(self.instances)
        if any(sender.is_alive() for sender in self.senders):
            return min(sent, 0.999)
        return 1 + min(len({arrival.sop_instance_uid for arrival in self.journal.arrivals()}) / studies, 1)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `osteon ARGUMENTS` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "console", *arguments],
            env=self.parts["listener"].environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def say(self, what: str) -> None:
        """Write a line into the run's own log."""
        with (self.folder / "chaos.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._begun:7.2f} {what}\n")

    def stop(self) -> None:
        """End everything, whatever state it is in."""
        for sender in self.senders:
            sender.stop()
        self.postgresql.resume()
        for part in self.parts.values():
            part.stop()
        self.valkey.resume()
        self.valkey.kill()
        for sender in self.senders:
            if sender.ident is not None:
                sender.join(150)
        self.to_listener.close()
        self.to_pacs.close()
        self.database.close()
        self.postgresql.kill()

    def _part(self, name: str, arguments: list[str]) -> Part:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
        environment = {**ours, **environment_of(self.settings)}
        return Part(name, [sys.executable, *arguments], environment, self.folder / f"{name}.log")

    def _senders(self) -> list[Modality]:
        titles = [title for title, lanes in LANES for _ in range(lanes)]
        queues = dealt(self.instances, len(titles), self.chance)
        log = self.folder / "senders.log"
        return [
            Modality(title, self.to_listener.port, queue, once=self.once, log=log)
            for title, queue in zip(titles, queues, strict=True)
        ]


def settings(
    data_dir: Path, server: OwnPostgreSQL, valkey: Valkey, bundle: Path, *, port: int, pacs_port: int
) -> Settings:
    """Return settings under which a study takes seconds, not minutes."""
    return given(
        data_dir,
        port=port,
        database_url=server.url,
        broker_url=valkey.url,
        model_bundle=bundle,
        study={"quiet_time": 1.0, "max_wait": 6.0},
        analysis={"time_limit": 5, "max_tries": 20, "first_wait": 0.5, "longest_wait": 2},
        delivery={"timeout": 3, "first_wait": 0.3, "longest_wait": 2, "max_tries": 1000},
        peers=[
            *(Peer(name=title.lower(), ae_title=title, role="source") for title, _ in LANES),
            Peer(name="pacs", ae_title=pacs.AE_TITLE, host="127.0.0.1", port=pacs_port, role="destination"),
        ],
    )


def _two_ports() -> tuple[int, int]:
    """Two free ports, certainly not the same one."""
    wires = Wire(1), Wire(1)
    for wire in wires:
        wire.close()
    return wires[0].port, wires[1].port
