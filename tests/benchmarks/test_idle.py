"""What a node takes that has nothing to do, by part, and how long it takes from its start to its first image read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import select

from dicom_node.headers import read_header
from dicom_node.intake import Intake, Sender, StoredFile
from dicom_node.spool import Spool
from models.settings import Peer, StudySettings
from models.tables import Image, ImageState
from models.upgrade import upgrade
from tests.benchmarks.parts import processor_seconds
from tests.benchmarks.results import save
from tests.servers import Node, given, wait_until

SETTLED_SECONDS = 20.0
"""The first pass over the spool is over by then."""
IDLE_SECONDS = 60.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def node(tmp_path: Path, radiographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node that is not started yet, with one image that waits."""
    # As installed: its own modules compiled.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    settings = given(
        tmp_path / "node",
        study=StudySettings(quiet_time=3600),
        peers=[
            Peer(name="room", ae_title="ROOM", role="source"),
            Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=9, role="destination"),
        ],
    )
    upgrade(settings)
    node = Node(settings, tmp_path / "node.log")
    # Once in vain, so that everything is compiled and in the page cache.
    node.start("up")
    node.wait_until_listening()
    node.stop()
    dataset = pydicom.dcmread(radiographs["RG3"])
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    key, sha256 = Spool(settings.data_dir / "spool").put_bytes(buffer.getvalue())
    stored = StoredFile(key, len(buffer.getvalue()), sha256, 0, str(dataset.file_meta.TransferSyntaxUID))
    Intake(node.database, settings).record(Sender("room", "ROOM", "OSTEON", "127.0.0.1"), read_header(dataset), stored)
    yield node
    node.stop()


def test_start_to_the_first_image_read_and_what_idleness_takes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    node.start("up")
    wait_until(lambda: _is_read(node), seconds=120, what="the first image is read")
    start = time.monotonic() - began
    spent = sum(processor_seconds(node).values())
    time.sleep(SETTLED_SECONDS)
    before, at = processor_seconds(node), time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, seconds = processor_seconds(node), time.monotonic() - at
    idle = {part: 100 * (after[part] - before.get(part, 0.0)) / seconds for part in after}
    result = {
        "seconds_from_start_to_first_image_read": start,
        "processor_seconds_until_then": spent,
        "idle_percent_of_a_core": {**idle, "all": sum(idle.values())},
        "goals": {"seconds": 2, "percent": 1},
    }
    save("idle", result)
    with capsys.disabled():
        print(f"\n{result}")


def _is_read(node: Node) -> bool:
    with node.database.read() as session:
        return session.scalars(select(Image.state)).one() is not ImageState.RECEIVED
