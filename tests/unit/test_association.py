"""An association over a real pair of sockets: how long a PDU may take, and what is said of each way to end."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from pydicom.uid import UID
from structlog.testing import capture_logs

from dicom_node.network.association import BUFFER_BYTES, Association, Outcome
from dicom_node.network.dimse import Command
from dicom_node.network.messages import Sink
from dicom_node.network.requests import Accepted, Context
from tests.dicom_bytes import ABORT, ECHO, IMPLICIT, RELEASE, VERIFICATION, command, data, fragment

ANSWER = b"the acceptance"
LARGEST_PDU = 1024 * 1024
STORE = data(fragment(1, command(0x0001, with_data_set=True), command=True, last=True))


class Keeping:
    """A service that keeps the bytes of data sets, unless told to do something else."""

    def __init__(self, instead: Callable[[], None] = lambda: None) -> None:
        self.kept = bytearray()
        self._instead = instead

    def begin(self, _context: Context, _command: Command, /) -> Sink:
        return self

    def write(self, piece: memoryview, /) -> None:
        self.kept += piece

    def serve(self, _context: Context, _command: Command, _sink: Sink | None, /) -> tuple[int, str]:
        self._instead()
        return 0x0000, "a comment of a few words"


@dataclass
class Peer:
    """The other side, and what became of ours."""

    socket: socket.socket
    ours: socket.socket
    association: Association
    service: Keeping
    outcomes: list[Outcome] = field(default_factory=list)

    def outcome(self) -> Outcome:
        """How it ended."""
        self._thread.join(20)
        (outcome,) = self.outcomes
        return outcome

    def begin(self) -> None:
        """Begin it."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.socket.recv(len(ANSWER)) == ANSWER

    def _run(self) -> None:
        self.outcomes.append(self.association.run())
        self.ours.close()


@contextmanager
def associated(
    service: Keeping | None = None, *, idle_seconds: float = 10.0, largest_pdu: int = 16_384
) -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        accepted = Accepted({1: Context(VERIFICATION, UID(IMPLICIT))}, largest_pdu, ANSWER)
        kept = service or Keeping()
        association = Association(ours, accepted, kept, largest_pdu=LARGEST_PDU, idle_seconds=idle_seconds)
        peer = Peer(theirs, ours, association, kept)
        peer.begin()
        yield peer


def everything(peer: socket.socket) -> bytes:
    found = b""
    while more := peer.recv(65_536):
        found += more
    return found


# --- time ---------------------------------------------------------------------------------------------------------


def drip(peer: Peer, length: int, *, pause: float, pieces: int) -> bool:
    """Send a PDU of so many bytes in pieces, with a pause before each; return whether all of it was taken."""
    sent = data(fragment(1, bytes(length - 6), command=False, last=True))
    peer.socket.sendall(STORE)
    for number in range(pieces):
        time.sleep(pause)
        try:
            peer.socket.sendall(sent[len(sent) * number // pieces : len(sent) * (number + 1) // pieces])
        except OSError:
            return False
    return True


def test_a_long_pdu_has_the_time_in_which_its_first_256_kb_have_to_come_for_each_of_them() -> None:
    with associated(idle_seconds=2.0) as peer:
        assert drip(peer, LARGEST_PDU, pause=0.4, pieces=8), "three seconds of eight"
        assert peer.socket.recv(1) == b"\x04"
        peer.socket.sendall(RELEASE)
        assert peer.outcome() is Outcome.RELEASED
    assert len(peer.service.kept) == LARGEST_PDU - 6


@pytest.mark.parametrize("length", [1000, BUFFER_BYTES], ids=["short", "256 kB"])
def test_a_pdu_of_256_kb_or_less_has_the_time_of_a_silence(length: int) -> None:
    with associated(idle_seconds=2.0) as peer:
        drip(peer, length, pause=0.4, pieces=12)
        assert peer.outcome() is Outcome.ABORTED


def test_pdus_that_each_come_in_time_may_together_take_longer() -> None:
    with associated(idle_seconds=2.0) as peer:
        for _ in range(3):
            assert drip(peer, 1000, pause=0.4, pieces=2)
            assert peer.socket.recv(4096)[:1] == b"\x04"
        peer.socket.sendall(RELEASE)
        assert peer.outcome() is Outcome.RELEASED


def test_a_header_that_is_cut_in_two_has_its_own_time_and_not_that_of_the_pdu_before_it() -> None:
    with associated(idle_seconds=3.0) as peer:
        assert drip(peer, 1000, pause=0.8, pieces=2)
        assert peer.socket.recv(4096)[:1] == b"\x04"
        for piece in (RELEASE[:3], RELEASE[3:]):
            time.sleep(0.8)
            peer.socket.sendall(piece)
        assert peer.outcome() is Outcome.RELEASED


# --- ends ---------------------------------------------------------------------------------------------------------


def test_a_release_is_answered_and_the_peer_is_waited_for() -> None:
    with associated() as peer:
        peer.socket.sendall(RELEASE)
        assert peer.outcome() is Outcome.RELEASED, "although the peer has not closed"
        assert peer.association.said_farewell
        assert everything(peer.socket)[:1] == b"\x06"


def test_nobody_is_waited_for_who_aborts_or_hangs_up() -> None:
    for last, outcome in ((ABORT, Outcome.ABORTED), (b"", Outcome.BROKEN)):
        with associated() as peer, capture_logs() as said:
            peer.socket.sendall(last)
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.outcome() is outcome
            assert not peer.association.said_farewell
        assert said == []


def test_an_association_that_is_ended_tells_its_peer() -> None:
    with associated() as peer, capture_logs() as said:
        peer.association.end()
        assert everything(peer.socket)[:1] == ABORT[:1]
        assert peer.outcome() is Outcome.ABORTED
    assert [line["why"] for line in said] == ["the listener stops"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), TimeoutError(), RuntimeError()])
def test_a_service_that_fails_is_not_taken_for_a_network_that_does(error: Exception) -> None:
    def fail() -> None:
        raise error

    with associated(Keeping(fail)) as peer, capture_logs() as said:
        peer.socket.sendall(ECHO)
        assert everything(peer.socket)[:1] == ABORT[:1]
        assert peer.outcome() is Outcome.ABORTED
    assert [(line["log_level"], line["event"]) for line in said] == [
        ("error", "association failed"),
        ("warning", "association aborted"),
    ]
    assert said[0]["exc_info"] is error


def test_a_network_that_fails_is_no_failure_of_the_service() -> None:
    """The answer is written to a connection that the peer has reset."""
    gone = threading.Event()
    with associated(Keeping(lambda: gone.wait(10) and None)) as peer, capture_logs() as said:
        peer.socket.sendall(ECHO)
        peer.socket.close()
        gone.set()
        assert peer.outcome() is Outcome.BROKEN
    assert said == []


# --- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_comes_in_pdus_that_the_peer_takes() -> None:
    with associated(largest_pdu=64) as peer:
        peer.socket.sendall(ECHO + RELEASE)
        answers = everything(peer.socket)
    command_set, last = b"", []
    while answers[:1] == b"\x04":
        (length,) = struct.unpack_from(">L", answers, 2)
        assert length <= 64
        (value,) = struct.unpack_from(">L", answers, 6)
        assert (value, answers[10]) == (length - 4, 1)
        last.append(answers[11])
        command_set += answers[12 : 6 + length]
        answers = answers[6 + length :]
    assert answers[:1] == b"\x06"
    assert last == [1] * (len(last) - 1) + [3]
    assert len(last) > 1
    (behind,) = struct.unpack_from("<L", command_set, 8)
    assert len(command_set) == 12 + behind
