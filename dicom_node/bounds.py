"""Bounds on the connections that we open: no PDU is read or written for longer than its time, however slow the peer.

pynetdicom collects whatever length a peer announces, in pieces of 4 kB, for as long as single bytes drip in, and writes
for as long as single bytes are taken. The sender puts these in the place of `AssociationSocket.recv` and
`AssociationSocket.send`; `tests/unit/test_sender.py` fails when pynetdicom goes round. What others open is read by
`dicom_node.network`.

And no connection outlives its association: pynetdicom does not close the socket of one that could not be made.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

MOST_OF_A_PDU = 1_048_576
"""Bytes of the longest PDU that a peer we call may send: its answers are a few hundred."""


def bound_reading(association: Association, *, largest_pdu: int, seconds: float) -> None:
    """Read from this association's connection with bounds: no PDU longer than `largest_pdu` bytes or `seconds`."""
    dul: Any = association.dul
    dul.socket.recv = _BoundedReader(dul.socket.socket, largest_pdu, seconds)


def bound_writing(association: Association, *, seconds: float) -> None:
    """Write to this association's connection with a bound: no PDU for longer than `seconds`."""
    dul: Any = association.dul
    dul.socket.send = _BoundedWriter(dul.socket.socket, dul.socket.event_queue, seconds)


def close_what_failed() -> None:
    """Make pynetdicom close every connection that it is done with, in the whole process, from now on.

    Its own way closes a socket only after a shutdown that succeeds. There is none of what is not connected, such as a
    connection that was refused: that socket stays open until the garbage is collected (pynetdicom 3.0.4).
    """
    AssociationSocket._shutdown_socket = _shut_down_and_close  # type: ignore[method-assign, assignment]


def _shut_down_and_close(connection: AssociationSocket) -> None:
    if connection.socket is not None:
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            connection.socket.close()


class _BoundedReader:
    """Takes the place of `AssociationSocket.recv`. Its OSError ends the association like a broken connection."""

    def __init__(self, connection: socket.socket, largest: int, seconds: float) -> None:
        self._connection = connection
        self._largest = largest
        self._seconds = seconds

    def __call__(self, length: int) -> bytearray:
        """Return `length` bytes, or fewer where the peer hung up."""
        if length > self._largest:
            raise OSError("a longer PDU than this node offers to take")
        buffer, done = bytearray(length), 0
        until = time.monotonic() + self._seconds
        with memoryview(buffer) as view:
            while done < length:
                count = self._connection.recv_into(view[done:])
                if count == 0:
                    break
                done += count
                if done < length and time.monotonic() > until:
                    raise TimeoutError("the peer sends too slowly")
        return buffer if done == length else buffer[:done]


class _BoundedWriter:
    """Takes the place of `AssociationSocket.send`. What cannot be written closes the association (Evt17, PS3.8 9.2)."""

    def __init__(self, connection: socket.socket, events: Any, seconds: float) -> None:
        self._connection = connection
        self._events = events
        self._seconds = seconds

    def __call__(self, pdu: bytes) -> None:
        """Write a PDU, or report the connection as closed."""
        until = time.monotonic() + self._seconds
        done = 0
        try:
            with memoryview(pdu) as view:
                while done < len(pdu):
                    done += self._connection.send(view[done:])
                    if done < len(pdu) and time.monotonic() > until:
                        raise TimeoutError("the peer takes too slowly")
        except OSError:
            self._events.put("Evt17")
