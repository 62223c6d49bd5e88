"""The sender meets peers that stand still and files that are none: neither holds up what can be sent."""

from __future__ import annotations

import gc
import inspect
import io
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE, _config, evt
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from console.pacs import StorageScp
from console.ports import free_port
from dicom_node.bounds import _BoundedWriter
from dicom_node.objects.report import build_report
from dicom_node.sender import Destination, Link, Outcome, Result, echo, kind_of, send
from tests.black_hole import black_hole
from tests.reports import content, image
from tests.servers import shut_down, wait_until

TIMEOUT = 1.0
LONGEST = 30 * TIMEOUT
# An A-ASSOCIATE-AC (PS3.8 9.3.3) that announces 200 bytes and has fewer.
CUT_OFF = b"\x02\x00\x00\x00\x00\xc8\x00\x01\x00\x00" + b"OSTEON".ljust(16)


@contextmanager
def standing_still(said: bytes, drip: bytes = b"") -> Iterator[Destination]:
    """A peer that accepts a connection, says this much, and then nothing, or `drip` byte by byte, until it is over."""
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(30)

        def serve() -> None:
            peer, _ = server.accept()
            with closing(peer):
                peer.recv(4096)
                peer.sendall(said)
                while drip and not over.wait(0.05):
                    with suppress(OSError):
                        peer.sendall(drip)
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


def test_a_peer_that_drips_its_acceptance_byte_by_byte_is_let_go_of(tmp_path: Path) -> None:
    path = report(tmp_path / "report.dcm", 1)
    found: list[Outcome] = []

    def ask(peer: Destination) -> None:
        found.extend(outcome for _, outcome in send(peer, [path], calling_ae_title="OSTEON", timeout=TIMEOUT))

    with standing_still(CUT_OFF[:6].replace(b"\xc8", b"\xff\xff"), drip=b"\x00") as peer:
        (outcome,) = in_time(found, threading.Thread(target=ask, args=(peer,), daemon=True))
    assert outcome == Outcome(Result.FAILED, "no_association")


def test_a_peer_that_drips_its_answer_byte_by_byte_loses_the_association_and_the_rest_is_not_sent(
    tmp_path: Path,
) -> None:
    over = threading.Event()

    def drip(event: evt.Event) -> int:
        """Announce a long PDU, and send it a byte at a time."""
        connection: socket.socket = event.assoc.dul.socket.socket
        with suppress(OSError):
            connection.sendall(b"\x04\x00\x00\x00\xff\xff")
            while not over.wait(0.05):
                connection.sendall(b"\x00")
        return 0x0000

    found: list[Outcome] = []
    paths = [report(tmp_path / f"{number}.dcm", number) for number in (1, 2)]
    with serving([(Comprehensive3DSRStorage, drip)]) as peer:
        thread = threading.Thread(
            target=lambda: found.extend(
                outcome for _, outcome in send(peer, paths, calling_ae_title="OSTEON", timeout=TIMEOUT)
            ),
            daemon=True,
        )
        in_time(found, thread)
        over.set()
    assert found == [Outcome(Result.FAILED, "no_answer"), Outcome(Result.FAILED, "connection_lost")]


def test_a_peer_that_takes_byte_by_byte_loses_the_association() -> None:
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.settimeout(30)
        ours, theirs = socket.create_connection(server.getsockname()), server.accept()[0]
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.settimeout(TIMEOUT)
        events: queue.Queue[str] = queue.Queue()

        def take() -> None:
            while not over.wait(0.05):
                theirs.recv(1000)

        taking = threading.Thread(target=take)
        taking.start()
        began = time.monotonic()
        _BoundedWriter(ours, events, TIMEOUT)(bytes(50_000_000))
        assert TIMEOUT <= time.monotonic() - began < LONGEST
        over.set()
        taking.join()
        ours.close()
        theirs.close()
    assert events.get_nowait() == "Evt17"


def of_class(path: Path, sop_class: UID, number: int) -> Path:
    """A small file that says it is of this SOP class."""
    dataset = pydicom.dcmread(io.BytesIO(build_report(content(image(1)))), specific_tags=["SOPClassUID"])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number}"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_files_of_more_kinds_than_an_association_has_contexts_go_over_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = [UID(f"1.2.826.0.1.3680043.10.9999.{number}") for number in range(100, 229)]
    first = of_class(tmp_path / "100.dcm", classes[0], 1)
    paths = [tmp_path / f"{sop_class}.dcm" for sop_class in classes]
    for path, sop_class in zip(paths, classes, strict=True):
        path.write_bytes(first.read_bytes().replace(classes[0].encode(), sop_class.encode()))
    arrived: list[tuple[str, int]] = []

    def keep(event: evt.Event) -> int:
        arrived.append((str(event.request.AffectedSOPClassUID), id(event.assoc)))
        return 0x0000

    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", True)  # for private SOP classes, too
    with serving([(sop_class, keep) for sop_class in classes]) as peer:
        outcomes = dict(send(peer, paths, calling_ae_title="OSTEON", timeout=20))
    assert {path for path, outcome in outcomes.items() if outcome.result is Result.DELIVERED} == set(paths)
    assert sorted(uid for uid, _ in arrived) == sorted(classes)
    assert len({association for _, association in arrived}) == 2


def test_a_kind_that_is_not_taken_is_refused_and_keeps_no_other_file_from_being_sent(tmp_path: Path) -> None:
    refused = of_class(tmp_path / "refused.dcm", SecondaryCaptureImageStorage, 7)
    good = [report(tmp_path / f"{number}.dcm", number) for number in (1, 2)]
    with serving([(Comprehensive3DSRStorage, lambda _: 0x0000)]) as peer:
        outcomes = dict(send(peer, [good[0], refused, good[1]], calling_ae_title="OSTEON", timeout=20))
    assert [outcomes[path].result for path in good] == [Result.DELIVERED] * 2
    assert outcomes[refused] == Outcome(Result.REFUSED, "sop_class_or_transfer_syntax_not_accepted")


def test_a_peer_that_takes_none_of_it_refuses_each_file(tmp_path: Path) -> None:
    path = report(tmp_path / "report.dcm", 1)
    with serving([(SecondaryCaptureImageStorage, lambda _: 0x0000)]) as peer:
        assert list(send(peer, [path], calling_ae_title="OSTEON", timeout=20)) == [
            (path, Outcome(Result.REFUSED, "sop_class_or_transfer_syntax_not_accepted"))
        ]
        assert echo(peer, calling_ae_title="OSTEON", timeout=20).reason == "sop_class_or_transfer_syntax_not_accepted"


def test_a_host_whose_name_nobody_knows_is_not_reached(tmp_path: Path) -> None:
    path = report(tmp_path / "report.dcm", 1)
    nowhere = Destination("PACS", "no-such-host.invalid", 104)
    assert list(send(nowhere, [path], calling_ae_title="OSTEON", timeout=5)) == [
        (path, Outcome(Result.FAILED, "not_reached"))
    ]
    assert echo(nowhere, calling_ae_title="OSTEON", timeout=5) == Outcome(Result.FAILED, "not_reached")


@pytest.mark.parametrize(
    "moment", ["before", "while it connects", "while it asks for the association", "while it waits for an answer"]
)
def test_a_link_can_be_cut_from_another_thread_at_any_time(tmp_path: Path, moment: str) -> None:
    path = report(tmp_path / "report.dcm", 1)
    over, asked = threading.Event(), threading.Event()

    def hang(_: evt.Event) -> int:
        asked.set()
        over.wait(120)
        return 0x0000

    with ExitStack() as opened:
        if moment == "while it connects":
            peer = Destination("PACS", "127.0.0.1", opened.enter_context(black_hole()))
        elif moment == "while it asks for the association":
            peer = opened.enter_context(standing_still(b""))
        else:
            peer = opened.enter_context(serving([(Comprehensive3DSRStorage, hang)]))
        kind = kind_of(path)
        link = Link(peer, [kind], calling_ae_title="OSTEON", timeout=120)
        if moment == "before":
            link.drop()
        else:
            when = asked if moment == "while it waits for an answer" else threading.Event()
            threading.Thread(target=lambda: (when.wait(1.5), link.drop())).start()
        began = time.monotonic()
        with link:
            outcome = link.store(path, kind)
        assert time.monotonic() - began < 30
        over.set()
    assert (outcome.result, outcome.status) == (Result.FAILED, None)


@contextmanager
def serving(handlers: list[tuple[UID, Callable[[evt.Event], int]]]) -> Iterator[Destination]:
    """A storage SCP for these SOP classes."""
    ae = AE(ae_title="PACS")
    for sop_class, _ in handlers:
        ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
    by_class = dict(handlers)

    def store(event: evt.Event) -> int:
        return by_class[event.request.AffectedSOPClassUID](event)

    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield Destination("PACS", "127.0.0.1", server.server_address[1])
    finally:
        shut_down(ae)


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


def test_pynetdicom_still_reads_every_pdu_through_the_method_that_the_bounded_reader_takes_the_place_of() -> None:
    assert list(inspect.signature(AssociationSocket.recv).parameters) == ["self", "nr_bytes"]
    source = inspect.getsource(DULServiceProvider)
    assert source.count("self.socket.recv(") == 2, "six bytes of PDU header, then the rest"
    assert ".socket.socket.recv" not in source


def test_a_connection_that_cannot_be_made_is_closed_at_once() -> None:
    nowhere = Destination("PACS", "127.0.0.1", free_port())
    gc.collect()
    gc.disable()
    try:
        before = open_sockets()
        assert echo(nowhere, calling_ae_title="ROOM", timeout=5).result is Result.FAILED
        wait_until(lambda: open_sockets() == before, what="nothing of the connection is left")
    finally:
        gc.enable()


def open_sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count
