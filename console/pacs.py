"""A PACS for the demo: Orthanc where it is installed, else a storage SCP that keeps what it gets in a folder."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from console.ports import free_port
from worker.lifeline import die_with_parent

AE_TITLE = "DEMOPACS"
ORTHANC_START_SECONDS = 30.0


@dataclass(frozen=True)
class ReceivedReport:
    """A report as the PACS has it."""

    study_instance_uid: str
    sop_instance_uid: str
    content: bytes = field(repr=False)
    arrived_at: float
    """By `time.monotonic()`."""
    where: str
    """How a person finds it."""


class Pacs(Protocol):
    """A running PACS."""

    ae_title: str
    port: int
    description: str

    def new_reports(self) -> list[ReceivedReport]:
        """Return the reports that came since the last call."""


class PacsNotStarted(Exception):
    """The PACS did not come up."""


@contextmanager
def open_pacs(folder: Path) -> Iterator[Pacs]:
    """Run a PACS on a free port of 127.0.0.1 until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    program = shutil.which("Orthanc")
    if program is None:
        scp = StorageScp(folder)
        try:
            yield scp
        finally:
            scp.stop()
    else:
        orthanc = Orthanc(program, folder)
        try:
            orthanc.wait()
            yield orthanc
        finally:
            orthanc.stop()


class StorageScp:
    """pynetdicom as a small archive."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.ae_title = AE_TITLE
        self.description = f"a storage SCP that keeps files in {folder}"
        self._folder = folder
        self._new: queue.SimpleQueue[ReceivedReport] = queue.SimpleQueue()
        ae = AE(ae_title=AE_TITLE)
        ae.add_supported_context("1.2.840.10008.1.1")
        for sop_class in (Comprehensive3DSRStorage, ComprehensiveSRStorage):
            ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
        self._ae = ae
        server: Any = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.port: int = server.server_address[1]

    def new_reports(self) -> list[ReceivedReport]:
        """Return the reports that came since the last call."""
        return [self._new.get() for _ in range(self._new.qsize())]

    def stop(self) -> None:
        """Stop listening."""
        self._ae.shutdown()

    def _store(self, event: evt.Event) -> int:
        arrived_at = time.monotonic()
        content = event.encoded_dataset()
        dataset = pydicom.dcmread(BytesIO(content))
        path = self._folder / f"{dataset.SOPInstanceUID}.dcm"
        path.write_bytes(content)
        self._new.put(
            ReceivedReport(
                dataset.StudyInstanceUID, dataset.SOPInstanceUID, content, arrived_at, "kept by the demo PACS"
            )
        )
        return 0x0000


class Orthanc:
    """Orthanc, asked over its REST API on loopback."""

    def __init__(self, program: str, folder: Path) -> None:
        self.ae_title = AE_TITLE
        self.port = free_port()
        self._http_port = free_port()
        self.description = f"Orthanc, http://127.0.0.1:{self._http_port}/"
        self._last_change = 0
        configuration = folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(folder)))
        self._log = (folder / "orthanc.log").open("wb")
        parent = os.getpid()
        self._process = subprocess.Popen(
            [program, str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )

    def wait(self) -> None:
        """Wait until it answers. Raises PacsNotStarted."""
        until = time.monotonic() + ORTHANC_START_SECONDS
        while True:
            try:
                self._get("/system")
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None or time.monotonic() > until:
                    raise PacsNotStarted("Orthanc did not start") from None
                time.sleep(0.05)
            else:
                return

    def new_reports(self) -> list[ReceivedReport]:
        """Return the reports that came since the last call."""
        changes = json.loads(self._get(f"/changes?since={self._last_change}&limit=100"))
        self._last_change = changes["Last"]
        arrived_at = time.monotonic()
        reports = []
        for change in changes["Changes"]:
            if change["ChangeType"] == "NewInstance":
                content = self._get(f"{change['Path']}/file")
                dataset = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
                where = f"Orthanc {self.description.split()[-1]}app/explorer.html#instance?uuid={change['ID']}"
                reports.append(
                    ReceivedReport(dataset.StudyInstanceUID, dataset.SOPInstanceUID, content, arrived_at, where)
                )
        return reports

    def stop(self) -> None:
        """Stop it, by its own process id."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _configuration(self, folder: Path) -> dict[str, Any]:
        return {
            "Name": "Osteon demo PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "index"),
            "Plugins": [],
            "HttpServerEnabled": True,
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": True,
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
        }

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=5) as answer:
            content: bytes = answer.read()
            return content
