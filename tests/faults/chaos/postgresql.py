"""A PostgreSQL server of one test's own, which may be killed, stopped and started again on the same data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg

from tests.servers import PostgreSQL, wait_until


class OwnPostgreSQL:
    """A server in a folder of its own, from the same wheel as `wheel`, which also made the user it runs as."""

    def __init__(self, wheel: PostgreSQL, log: Path, *, like: OwnPostgreSQL | None = None, address: str = "") -> None:
        self._programs, self._user = wheel.programs, wheel.user
        self._log, self._address = log, address
        # A short path that the server's user can reach: it holds the socket too.
        self.folder = Path(tempfile.mkdtemp(prefix="osteon-pg-"))
        self._data = self.folder / "data"
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        if like is None:
            self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self._data))
        else:
            subprocess.run(["cp", "-a", str(like._data), str(self._data)], check=True)

    @property
    def url(self) -> str:
        """Of the one database, by its socket."""
        return f"postgresql+psycopg://postgres@/osteon?host={self.folder}"

    @property
    def alive(self) -> bool:
        """Whether it runs, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def trust(self, network: str) -> None:
        """Let anyone on `network` in."""
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")

    def start(self, *prefix: str) -> None:
        """Start it; `prefix` is a command to start it by. It may recover for a while before it answers."""
        assert not self.alive
        command = [*prefix, *self._as_its_user(not prefix), str(self._programs / "postgres"), "-D", str(self._data)]
        command += ["-k", str(self.folder), "-h", self._address, "-c", "max_connections=200"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                user=None if prefix else self._user,
            )

    def wait(self, seconds: float = 60) -> None:
        """Wait until it answers."""
        wait_until(self.answers, seconds=seconds, what="PostgreSQL answers")

    def answers(self) -> bool:
        """Whether it answers a query."""
        try:
            with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", connect_timeout=5) as c:
                return c.execute("SELECT 1").fetchone() == (1,)
        except psycopg.Error:
            return False

    def create(self) -> None:
        """Create the one database, empty."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE osteon")

    def kill(self) -> None:
        """Kill -9 all its processes at once, as a power cut ends them."""
        if self._process is None or not self.alive:
            return
        family = self._family()
        for process in family:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(family[1:], timeout=10)
        self._process.wait(10)

    def suspend(self) -> None:
        """Stop all its processes, the first one first, so that no other begins meanwhile."""
        for process in self._family():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        for process in reversed(self._family()):
            _send(process, signal.SIGCONT)

    def stop(self) -> None:
        """Shut it down in order."""
        if self._process is not None and self.alive:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def remove(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def _family(self) -> list[psutil.Process]:
        if self._process is None or not self.alive:
            return []
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _as_its_user(self, already: bool) -> list[str]:
        return [] if already or self._user is None else ["setpriv", "--reuid", self._user, "--clear-groups"]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            check=True,
        )


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
