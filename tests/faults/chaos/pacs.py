"""A PACS that keeps a journal: every data set is on disk before it is answered, so that it may be killed any time.

It is run as `python -m tests.faults.chaos.pacs ADDRESS PORT FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

AE_TITLE = "PACS"


@dataclass(frozen=True)
class Arrival:
    """A data set that was sent to the PACS."""

    sop_instance_uid: str
    sha256: str
    at: float
    """When, as `time.time()`."""


class Journal:
    """What arrived, in order, and the data sets by their digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = folder / "journal"
        self._lines.touch()

    def keep(self, sop_instance_uid: str, data_set: bytes) -> None:
        """Write it down, durably."""
        digest = sha256(data_set).hexdigest()
        with self._lock:
            _write(self._folder / digest, data_set, "wb")
            _write(self._lines, (json.dumps([sop_instance_uid, digest, time.time()]) + "\n").encode(), "ab")

    def arrivals(self) -> list[Arrival]:
        """Return what arrived; the last line may be half of one, of what was never answered."""
        lines = self._lines.read_bytes().split(b"\n")[:-1]
        return [Arrival(*json.loads(line)) for line in lines if line.startswith(b"[") and line.endswith(b"]")]

    def data_set(self, digest: str) -> bytes:
        """Return the bytes with this digest."""
        return (self._folder / digest).read_bytes()


def _write(path: Path, content: bytes, mode: str) -> None:
    with path.open(mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Serve until killed."""
    address, port, folder = sys.argv[1:]
    journal = Journal(Path(folder))

    def store(event: evt.Event) -> int:
        request: Any = event.request
        journal.keep(str(request.AffectedSOPInstanceUID), request.DataSet.getvalue())
        return 0x0000

    ae = AE(ae_title=AE_TITLE)
    ae.maximum_associations = 100
    ae.add_supported_context("1.2.840.10008.1.1")
    for sop_class in (Comprehensive3DSRStorage, ComprehensiveSRStorage):
        ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
    ae.start_server((address, int(port)), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
