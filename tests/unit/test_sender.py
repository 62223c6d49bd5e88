"""The sender meets peers that stand still and files that are none: neither holds up what can be sent."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pydicom
import pytest

from console.pacs import StorageScp
from dicom_node.objects.report import build_report
from dicom_node.sender import Destination, Outcome, Result, echo, send
from tests.reports import content, image

TIMEOUT = 1.0
LONGEST = 4 * TIMEOUT
# An A-ASSOCIATE-AC (PS3.8 9.3.3) that announces 200 bytes and has fewer.
CUT_OFF = b"\x02\x00\x00\x00\x00\xc8\x00\x01\x00\x00" + b"OSTEON".ljust(16)
# pynetdicom leaves the socket of a connection that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@contextmanager
def standing_still(said: bytes) -> Iterator[Destination]:
    """A peer that accepts a connection, says this much, and then nothing until its time is over."""
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(30)

        def serve() -> None:
            peer, _ = server.accept()
            with closing(peer):
                peer.recv(4096)
                peer.sendall(said)
                over.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Destination("PACS", "127.0.0.1", server.getsockname()[1])
        finally:
            over.set()
            thread.join()


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StorageScp]:
    folder = tmp_path / "pacs"
    folder.mkdir()
    scp = StorageScp(folder)
    yield scp
    scp.stop()


def report(path: Path, number: int) -> Path:
    path.write_bytes(build_report(content(image(number))))
    return path


def in_time(work: list[Outcome], thread: threading.Thread) -> list[Outcome]:
    """What the thread found, if it ended within the longest time."""
    began = time.monotonic()
    thread.start()
    thread.join(LONGEST)
    assert not thread.is_alive(), f"still held after {time.monotonic() - began:.1f} s"
    return work


@pytest.mark.parametrize("said", [b"", CUT_OFF[:3], CUT_OFF], ids=["nothing", "half a PDU header", "half a PDU"])
@pytest.mark.parametrize("service", ["send", "echo"])
def test_a_peer_that_stops_before_it_has_accepted_holds_nobody_for_longer_than_a_few_timeouts(
    tmp_path: Path, said: bytes, service: str
) -> None:
    path = report(tmp_path / "report.dcm", 1)
    found: list[Outcome] = []

    def ask(peer: Destination) -> None:
        if service == "echo":
            found.append(echo(peer, calling_ae_title="OSTEON", timeout=TIMEOUT))
        else:
            found.extend(outcome for _, outcome in send(peer, [path], calling_ae_title="OSTEON", timeout=TIMEOUT))

    with standing_still(said) as peer:
        (outcome,) = in_time(found, threading.Thread(target=ask, args=(peer,), daemon=True))
    assert outcome == Outcome(Result.FAILED, "no_association")


def test_files_that_cannot_be_sent_keep_no_good_file_behind_them_from_being_sent(
    tmp_path: Path, pacs: StorageScp
) -> None:
    nameless = pydicom.dcmread(io.BytesIO(build_report(content(image(9)))))
    del nameless.file_meta.MediaStorageSOPInstanceUID
    nameless.save_as(tmp_path / "nameless.dcm", enforce_file_format=False)
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "empty.dcm").write_bytes(b"")
    good = [report(tmp_path / f"good-{number}.dcm", number) for number in (1, 2)]
    paths = [tmp_path / name for name in ("nameless.dcm", "text.dcm", "empty.dcm", "missing.dcm", "pacs")]

    to = Destination(pacs.ae_title, "127.0.0.1", pacs.port)
    outcomes = dict(send(to, [good[0], *paths, good[1]], calling_ae_title="OSTEON", timeout=10))

    assert [outcomes[path].result for path in good] == [Result.DELIVERED] * 2
    assert len(pacs.new_reports()) == 2
    assert {path.name: outcomes[path] for path in paths} == {
        "nameless.dcm": Outcome(Result.REFUSED, "not_dicom"),
        "text.dcm": Outcome(Result.REFUSED, "not_dicom"),
        "empty.dcm": Outcome(Result.REFUSED, "not_dicom"),
        "missing.dcm": Outcome(Result.REFUSED, "unreadable"),
        "pacs": Outcome(Result.REFUSED, "unreadable"),
    }
