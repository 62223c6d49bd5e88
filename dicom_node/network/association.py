"""An association that a peer opened: reads its messages, hands them to a service, answers, and ends in time.

One thread reads, handles and answers; nothing polls. No PDU takes longer than its time, nor any silence.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from enum import StrEnum
from typing import Protocol

from dicom_node.network.dimse import Command, response_to
from dicom_node.network.messages import End, MessageReader, Sink
from dicom_node.network.requests import Accepted, Context, Violation
from models import logs

BUFFER_BYTES = 256 * 1024
"""What is read at once, and has to come within the time of a silence; a PDU may be longer."""
PARTING_SECONDS = 2.0
"""What a peer gets to read our last words in, before the connection is closed."""

_RELEASED = bytes((0x06, 0, 0, 0, 0, 4, 0, 0, 0, 0))
ABORT = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 0))
"""An A-ABORT of the service provider, without a reason (PS3.8 9.3.8)."""
log = logs.get("listener")


class Outcome(StrEnum):
    """How an association ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    BROKEN = "broken"


class Service(Protocol):
    """What an association is for."""

    def begin(self, context: Context, command: Command, /) -> Sink | None:
        """Return who takes the data set of a request."""

    def serve(self, context: Context, command: Command, sink: Sink | None, /) -> tuple[int, str] | None:
        """Handle a request whose data set, if any, is there: status and comment of the answer, or no answer."""


class _Gone(Exception):
    """There is no connection any more."""


class _Silence(Exception):
    """The peer does not go on in time."""


class Association:
    """An accepted association. `run` returns when it has ended; `end` may be called from another thread."""

    def __init__(
        self, connection: socket.socket, accepted: Accepted, service: Service, *, largest_pdu: int, idle_seconds: float
    ) -> None:
        self._connection = connection
        self._accepted = accepted
        self._service = service
        self._idle_seconds = idle_seconds
        self._ending = threading.Event()
        self.said_farewell = False
        """Whether the peer was sent a last PDU and is expected to close: see `linger`."""
        self._reader = MessageReader(
            accepted.contexts, largest_pdu, on_command=self._on_command, on_message=self._on_message
        )

    def end(self) -> None:
        """Abort it: its thread says so to the peer."""
        self._ending.set()
        with contextlib.suppress(OSError):
            # Not the method of a TLS socket, which would take its state away from under the thread that reads. What is
            # written still goes out.
            socket.socket.shutdown(self._connection, socket.SHUT_RD)

    def run(self) -> Outcome:
        """Serve it to its end; the connection is left for the caller to close."""
        try:
            self._connection.settimeout(self._idle_seconds)
            self._send_all(self._accepted.answer)
            return self._serve()
        except Violation as violation:
            why = str(violation)
        except _Silence:
            why = "silence, or a PDU that takes too long"
        except _Gone:
            if not self._ending.is_set():
                return Outcome.BROKEN
            why = "the listener stops"
        except Exception as error:
            # Of the service: a disk that fails is not to be taken for a network that does.
            log.error("association failed", exc_info=error)
            why = "the service failed"
        log.warning("association aborted", why=why)
        self._part(ABORT)
        return Outcome.ABORTED

    def _serve(self) -> Outcome:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        reader, pdus, began = self._reader, -1, 0.0
        while True:
            count = self._receive_into(buffer)
            if self._ending.is_set():
                raise _Gone
            if not count:
                return Outcome.BROKEN
            end = reader.feed(buffer[:count])
            if end is End.RELEASE:
                self._part(_RELEASED)
                return Outcome.RELEASED
            if end is End.ABORT:
                return Outcome.ABORTED
            if not reader.in_pdu:
                pdus = -1
            elif reader.pdus != pdus:
                pdus, began = reader.pdus, time.monotonic()
            elif time.monotonic() - began > self._idle_seconds * max(1, reader.pdu_length / BUFFER_BYTES):
                raise _Silence

    def _part(self, last_words: bytes) -> None:
        self.said_farewell = True
        say(self._connection, last_words)

    def _on_command(self, number: int, command: Command) -> Sink | None:
        return self._service.begin(self._accepted.contexts[number], command)

    def _on_message(self, number: int, command: Command, sink: Sink | None) -> None:
        answer = self._service.serve(self._accepted.contexts[number], command, sink)
        if answer is not None:
            self._send(number, response_to(command, *answer))

    def _send(self, number: int, command_set: bytes) -> None:
        most = self._accepted.largest_pdu - 6
        pdus = []
        for at in range(0, len(command_set), most):
            piece = command_set[at : at + most]
            last = at + most >= len(command_set)
            pdus.append(struct.pack(">BxLLBB", 0x04, len(piece) + 6, len(piece) + 2, number, 1 | last << 1) + piece)
        # One packet: of two, the second would wait for a peer's delayed acknowledgement.
        self._send_all(b"".join(pdus))

    def _send_all(self, content: bytes) -> None:
        try:
            self._connection.sendall(content)
        except TimeoutError:
            raise _Silence from None
        except OSError:
            raise _Gone from None

    def _receive_into(self, buffer: memoryview) -> int:
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise _Silence from None
        except OSError:
            raise _Gone from None


def part(connection: socket.socket, last_words: bytes) -> None:
    """Send the last PDU, and `linger`."""
    say(connection, last_words)
    linger(connection)


def say(connection: socket.socket, last_words: bytes) -> None:
    """Send the last PDU; nothing can be sent after it."""
    with contextlib.suppress(OSError):
        connection.settimeout(PARTING_SECONDS)
        connection.sendall(last_words)
        socket.socket.shutdown(connection, socket.SHUT_WR)


def linger(connection: socket.socket) -> None:
    """Wait, not for long, until the peer closes: closed earlier, our last PDU might be lost (RFC 1122)."""
    until = time.monotonic() + PARTING_SECONDS
    with contextlib.suppress(OSError):
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65_536):
                break
