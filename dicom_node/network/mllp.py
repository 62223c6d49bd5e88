"""HL7 v2 messages over MLLP (Minimal Lower Layer Protocol, release 1): a message out, its acknowledgement in.

What an acknowledgement means stands in `_judged`: AA and CA are delivered, AE and CE refused for good (the message will
not become acceptable by waiting), AR and CR refused for now. An acknowledgement that is none, or of another message,
ends the connection: what comes after it could be anybody's.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass

from dicom_node.network.line import Cut, NoLine, connect
from dicom_node.outcome import CONNECTION_LOST, NO_ANSWER, NOT_REACHED, Outcome, Result
from dicom_node.tls import Expected

START, END = b"\x0b", b"\x1c\r"
MOST_OF_AN_ANSWER = 65_536
"""Bytes of the longest acknowledgement that is read; they have some hundred."""
NOT_HL7 = "not_hl7"
ACKNOWLEDGED = "acknowledged"
ERROR = "message_refused"
REJECTED_MESSAGE = "message_refused_for_now"
NOT_UNDERSTOOD = "answer_not_understood"
OTHER_MESSAGE = "answer_to_another_message"
TOO_LONG = "answer_too_long"
_CODE = re.compile(rb"[A-Z0-9]{1,10}", re.ASCII)


@dataclass(frozen=True)
class Listener:
    """An MLLP listener."""

    host: str
    port: int
    tls: Expected | None = None


class MllpLink:
    """A connection to an MLLP listener, closed at the end of the block.

    One that the listener closes after its answer, as many do, is made again for the next message. Connecting, sending
    and the answer may take `timeout` seconds each, however it is dealt out; where there is no connection, `trouble`
    says why.
    """

    def __init__(self, listener: Listener, *, timeout: float) -> None:
        self._listener = listener
        self._timeout = timeout
        self._cut = Cut()
        self._connection: socket.socket | None = None
        self.trouble: Outcome | None = None

    def __enter__(self) -> MllpLink:
        """Connect."""
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._close()

    def store(self, content: bytes) -> Outcome:
        """Send one message, and wait for its acknowledgement. Where that is none the connection is over."""
        if not content.startswith(b"MSH") or len(content) < 9 or END in content:
            return Outcome(Result.REFUSED, NOT_HL7)
        if self._has_ended():
            self._close()
            self._connect()
        if self._connection is None:
            return self.trouble or Outcome(Result.FAILED, NOT_REACHED)
        try:
            self._send(self._connection, START + content + END)
            answer = self._receive(self._connection)
        except _Unusable as unusable:
            outcome = Outcome(Result.FAILED, str(unusable))
        except TimeoutError:
            outcome = Outcome(Result.FAILED, NO_ANSWER)
        except OSError:
            outcome = Outcome(Result.FAILED, CONNECTION_LOST)
        else:
            outcome = _judged(answer, control_id_of(content))
        if not outcome.is_answer:
            self._close()
        return outcome

    def drop(self) -> None:
        """Cut the connection, at any time and from any thread: who waits for an answer has none."""
        self._cut.drop()

    def _connect(self) -> None:
        if self._cut.done:
            self.trouble = Outcome(Result.FAILED, NOT_REACHED)
            return
        to = self._listener
        try:
            self._connection = connect(to.host, to.port, to.tls, timeout=self._timeout, show=self._cut.show)
            self.trouble = None
        except NoLine as failed:
            self.trouble = failed.outcome

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _has_ended(self) -> bool:
        """Whether there is something to read although nothing was asked: the end, or what nobody asked for."""
        connection = self._connection
        if connection is None:
            return self.trouble is None
        connection.settimeout(0)
        try:
            connection.recv(1)  # not a peek: TLS has words of its own, which are then out of the way
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    def _send(self, connection: socket.socket, block: bytes) -> None:
        until = time.monotonic() + self._timeout
        with memoryview(block) as view:
            done = 0
            while done < len(block):
                _wait(connection, until)
                done += connection.send(view[done:])

    def _receive(self, connection: socket.socket) -> bytes:
        until = time.monotonic() + self._timeout
        block = bytearray()
        while (end := block.find(END)) < 0:
            _wait(connection, until)
            piece = connection.recv(4096)
            if not piece:
                raise ConnectionResetError
            block += piece
            if len(block) > MOST_OF_AN_ANSWER:
                raise _Unusable(TOO_LONG)
            if not block.startswith(START):
                raise _Unusable(NOT_UNDERSTOOD)
        if end + len(END) < len(block):
            self._close()  # what follows is no answer to anything
        return bytes(block[len(START) : end])


class _Unusable(Exception):
    """What came is no acknowledgement; the text is the reason."""


def _wait(connection: socket.socket, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def control_id_of(message: bytes) -> bytes:
    """Return MSH-10, b"" where there is none."""
    header = re.split(rb"[\r\n]", message, maxsplit=1)[0].split(message[3:4])
    return header[9] if len(header) > 9 else b""


def _judged(answer: bytes, control_id: bytes) -> Outcome:
    """Return what an acknowledgement says (HL7 v2.5.1, 2.13.8 and 2.9.2)."""
    if not answer.startswith(b"MSH") or len(answer) < 9:
        return Outcome(Result.FAILED, NOT_UNDERSTOOD)
    separator, component = answer[3:4], answer[4:5]
    segments = [segment.split(separator) for segment in re.split(rb"[\r\n]+", answer)]
    said = next((segment for segment in segments if segment[0] == b"MSA"), [])
    if len(said) < 2:
        return Outcome(Result.FAILED, NOT_UNDERSTOOD)
    if len(said) < 3 or said[2].strip() != control_id:
        return Outcome(Result.FAILED, OTHER_MESSAGE)
    code = said[1].strip()
    why = _why(segments, component)
    if code in (b"AA", b"CA"):
        return Outcome(Result.DELIVERED, ACKNOWLEDGED, said=True)
    if code in (b"AE", b"CE"):
        return Outcome(Result.REFUSED, ERROR + why, said=True)
    if code in (b"AR", b"CR"):
        return Outcome(Result.FAILED, REJECTED_MESSAGE + why, said=True)
    return Outcome(Result.FAILED, NOT_UNDERSTOOD)


def _why(segments: list[list[bytes]], component: bytes) -> str:
    """The error's code (ERR-3, table 0357) and nothing else: the texts beside it may say whose message it was."""
    error = next((segment for segment in segments if segment[0] == b"ERR"), [])
    code = error[3].split(component)[0] if len(error) > 3 else b""
    return f"_{code.decode('ascii')}" if _CODE.fullmatch(code) else ""
