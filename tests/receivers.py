"""Receivers that no one here wrote, for results: Orthanc with its DICOMweb plugin, and DCMTK's storescp."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from console.ports import free_port
from dicom_node.sender import Destination
from models.settings import Peer
from tests.peers import require_peer
from tests.servers import dcmtk, orthanc, wait_until

PASSWORD = "planted-password"


def stored_of(http: int, password: str = "") -> list[bytes]:
    """Every instance that Orthanc has, as it gives it back."""
    base = f"http://127.0.0.1:{http}"
    opener = urllib.request.build_opener()
    if password:
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        manager.add_password(None, base, "osteon", password)
        opener.add_handler(urllib.request.HTTPBasicAuthHandler(manager))
    with opener.open(f"{base}/instances", timeout=10) as answer:
        found = json.loads(answer.read())
    contents = []
    for instance in found:
        with opener.open(f"{base}/instances/{instance}/file", timeout=10) as answer:
            contents.append(answer.read())
    return contents


@contextmanager
def dicomweb(folder: Path, http_port: int | None = None) -> Iterator[int]:
    """Run Orthanc with its DICOMweb plugin and a password; give its HTTP port."""
    require_peer("Orthanc")
    more = {
        "Plugins": [str(require_peer("orthanc-dicomweb"))],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"osteon": PASSWORD},
    }
    with orthanc(folder, http_port=http_port, more=more) as (_, http):
        yield http


def service(folder: Path, port: int, password: str = PASSWORD, **changes: Any) -> Peer:
    """The peer that `dicomweb` is, with its password in a file."""
    path = folder / "password"
    path.write_text(password + "\n")
    path.chmod(0o600)
    known = {"user": "osteon", "password_file": path, "url": f"http://127.0.0.1:{port}/dicom-web", **changes}
    return Peer(name="pacs", protocol="dicomweb", role="destination", **known)


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """Run DCMTK's storescp, which keeps what it reads in this folder; give its port."""
    folder.mkdir()
    port = free_port()
    command: list[str | Path] = [
        require_peer("storescp"),
        "-aet",
        "PACS",
        "-pm",
        "+B",
        "-uf",
        *options,
        "-od",
        folder,
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: dcmtk("echoscu", Destination("PACS", "127.0.0.1", port)).exit_status == 0, what="storescp answers"
        )
        yield port
    finally:
        process.terminate()
        process.wait(10)
