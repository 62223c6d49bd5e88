"""A connection to a destination that is no DICOM application entity: TCP, with TLS or without, every wait bounded.

Another thread can cut it at any time, also while it is being made.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from dicom_node.outcome import NO_TLS, NOT_REACHED, Outcome, Result
from dicom_node.tls import ClientHandshake, Expected, TlsError, credentials_of

LONGEST_TO_CONNECT = 10.0
"""Seconds, also where answers may take longer."""


class NoLine(OSError):
    """There is no connection; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Cut:
    """What another thread cuts connections with: all that were shown to it, and all that will be."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self.done = False

    def show(self, connection: socket.socket) -> None:
        """Make this the connection that is cut."""
        self._connection = connection
        if self.done:
            self.cut()

    def drop(self) -> None:
        """Cut what there is, and what comes."""
        self.done = True
        self.cut()

    def cut(self) -> None:
        """Cut what there is now: who waits for an answer has none."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it is closed already, or not asked for yet
                # Not as SSLSocket does it, who takes what a handshake needs from under the thread that is in it.
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


def connect(
    host: str, port: int, expected: Expected | None, *, timeout: float, show: Callable[[socket.socket], object]
) -> socket.socket:
    """Return a connection to the first address of `host` that takes one; it is shown before it is asked for.

    Connecting and the TLS handshake may take `timeout` seconds each, no more than LONGEST_TO_CONNECT; after as long no
    further address is asked.

    Raises
    ------
    NoLine
        With the same outcomes as an association that is not made.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise NoLine(Outcome(Result.FAILED, NOT_REACHED)) from None
    failure = Outcome(Result.FAILED, NOT_REACHED)
    limit = min(timeout, LONGEST_TO_CONNECT)
    until = time.monotonic() + limit
    for family, kind, protocol, _, address in addresses:
        if time.monotonic() > until:
            break
        connection = socket.socket(family, kind, protocol)
        handshake = None
        try:
            connection.settimeout(limit)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if expected is not None:
                handshake = credentials_of(expected.settings).client(expected)
                # Before it is connected, so that the handshake comes with that and is checked.
                connection = handshake.wrap_socket(connection, server_hostname=expected.name)
            show(connection)
            connection.connect(address)
            connection.settimeout(timeout)
            return connection
        except OSError:
            connection.close()
            failure = _failed(handshake)
        except TlsError as error:
            connection.close()
            raise NoLine(Outcome(Result.FAILED, NO_TLS, detail=str(error))) from None
    raise NoLine(failure)


def _failed(handshake: ClientHandshake | None) -> Outcome:
    if handshake is not None and handshake.failure is not None:
        # Not for good: certificates are renewed, and then what waits goes out.
        return Outcome(Result.FAILED, handshake.failure, detail=handshake.why)
    return Outcome(Result.FAILED, NOT_REACHED)
