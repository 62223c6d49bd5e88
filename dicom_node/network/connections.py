"""Connections before they are associations, and how many of both there may be.

A connection is one thread that waits, until it has asked for an association in time, at bearable length and over TLS
where it is that port; the same thread then serves it. Where the places are taken, whoever has waited longest without
asking makes room.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from dicom_node.network.association import linger, part
from dicom_node.network.requests import Asked, Violation, check_request, read_request_header
from dicom_node.policy import Rejection
from dicom_node.tls import why_failed
from models import logs

LOG_SECONDS = 10.0
_ABORT = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 1))
log = logs.get("listener")


@dataclass(eq=False)
class Connection:
    """A connection; an association once it has asked for one."""

    socket: socket.socket
    address: str
    asked: bool = False


class Connections:
    """The open connections of all ports of a listener, in the order they came. Threads may share one.

    Parameters
    ----------
    most, most_per_address
        How many there may be, and from one address.
    """

    def __init__(self, *, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._open: list[Connection] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def __contains__(self, connection: Connection) -> bool:
        """Whether a connection has its place still."""
        with self._lock:
            return connection in self._open

    def take_in(self, peer: socket.socket, address: str) -> Connection | None:
        """Give a place to a new connection, at need that of one that has not asked yet; None where there is none."""
        with self._lock:
            same = [connection for connection in self._open if connection.address == address]
            if len(same) >= self._most_per_address:
                if not self._close_oldest(same):
                    return None
            elif len(self._open) >= self._most and not self._close_oldest(self._of_the_busiest_address()):
                return None
            connection = Connection(peer, address)
            self._open.append(connection)
            return connection

    def has_asked(self, connection: Connection) -> bool:
        """Keep the place of a connection from now on. Return whether it still has one."""
        with self._lock:
            connection.asked = connection in self._open
            return connection.asked

    def drop(self, connection: Connection) -> bool:
        """Give the place back. Return whether it had one still."""
        with self._lock:
            had = connection in self._open
            if had:
                self._open.remove(connection)
            return had

    def close_waiting(self) -> None:
        """Hang up on all that have not asked."""
        with self._lock:
            while self._close_oldest(self._open):
                continue

    def _of_the_busiest_address(self) -> list[Connection]:
        waiting = Counter(connection.address for connection in self._open if not connection.asked)
        busiest = [address for address, _ in waiting.most_common(1)]
        return [connection for connection in self._open if connection.address in busiest]

    def _close_oldest(self, among: list[Connection]) -> bool:
        oldest = next((connection for connection in among if not connection.asked), None)
        if oldest is None:
            return False
        self._open.remove(oldest)
        with contextlib.suppress(OSError):
            # Not the method of a TLS socket, which would take its state away from under the thread that waits on it.
            socket.socket.shutdown(oldest.socket, socket.SHUT_RDWR)
        return True


@dataclass(frozen=True)
class Gate:
    """What stands between a connection and the listener.

    `refuse` says of what is asked, the address and the connection why it is rejected; `serve` gets the request too, and
    returns when the association has ended: whether the peer was sent a last PDU and has yet to close. `context` gives
    the TLS context of the moment on the port that speaks TLS.
    """

    connections: Connections
    seconds: float
    refuse: Callable[[Asked, str, socket.socket], Rejection | None]
    serve: Callable[[bytes, Asked, str, socket.socket], bool]
    context: Callable[[], ssl.SSLContext] | None = None


class ConnectionServer(TCPServer):
    """Accepts connections, each of which gets a thread. Raises OSError where the port is taken."""

    allow_reuse_address = True
    # What is not accepted yet: beyond it Linux lets a peer wait a second and more before it asks again.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], gate: Gate, *, shared: bool = False) -> None:
        # The kernel deals connections out to the processes that listen on one port (socket(7), SO_REUSEPORT).
        self.allow_reuse_port = shared
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, BaseRequestHandler)  # which is never made: see `process_request`
        self.gate = gate
        self._closed = _Tally()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Serve from a thread."""
        threading.Thread(target=self.serve_forever, name=f"port-{self.port}", daemon=True).start()

    def stop(self) -> None:
        """Accept no more, and free the port."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a new connection a place and a thread, or hang up."""
        connection = self.gate.connections.take_in(request, client_address[0])
        if connection is None:
            self._closed.add("too many connections", client_address[0])
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._end(connection, "too many threads")

    def _serve(self, connection: Connection) -> None:
        until = time.monotonic() + self.gate.seconds
        try:
            self._wrap(connection, until)
            request, asked = self._asked(connection, until)
            rejection = self.gate.refuse(asked, connection.address, connection.socket)
            if rejection is not None:
                # Whoever is let in keeps its place; this one makes room while it reads the answer.
                part(connection.socket, rejection_of(rejection))
            elif self.gate.connections.has_asked(connection):
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.gate.serve(request, asked, connection.address, connection.socket):
                    connection.asked = False  # as above
                    linger(connection.socket)
            self._end(connection, None)
        except Violation as violation:
            connection.asked = False
            part(connection.socket, _ABORT)
            self._end(connection, str(violation))
        except ssl.SSLError as error:
            self._end(connection, f"TLS: {why_failed(error)}")
        except TimeoutError:
            self._end(connection, "no association request in time")
        except OSError:
            self._end(connection, None)
        except Exception as error:
            log.error("connection not served", address=connection.address, exc_info=error)
            self._end(connection, None)

    def _wrap(self, connection: Connection, until: float) -> None:
        """Do the TLS handshake, here and not in the loop that accepts connections."""
        if self.gate.context is None:
            return
        wrapped = self.gate.context().wrap_socket(connection.socket, server_side=True, do_handshake_on_connect=False)
        connection.socket = wrapped
        if connection not in self.gate.connections:
            raise ConnectionAbortedError  # it made room while its socket was neither the one nor the other
        wrapped.settimeout(max(0.001, until - time.monotonic()))
        wrapped.do_handshake()

    def _asked(self, connection: Connection, until: float) -> tuple[bytes, Asked]:
        """Read the association request."""
        header = _read(connection.socket, 6, until)
        body = _read(connection.socket, read_request_header(header), until)
        return bytes(header + body), check_request(body)

    def _end(self, connection: Connection, why: str | None) -> None:
        self.shutdown_request(connection.socket)
        if not self.gate.connections.drop(connection):
            why = "made room for others"
        if why is not None:
            self._closed.add(why, connection.address)


def require_free(host: str, port: int) -> None:
    """Raise OSError where anything listens on a port, shared or not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def rejection_of(rejection: Rejection) -> bytes:
    """Return an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return bytes((0x03, 0, 0, 0, 0, 4, 0, *rejection.answer))


class _Tally:
    """Logs why connections were closed: a reason's first at once, then a line every ten seconds at most."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def add(self, why: str, address: str) -> None:
        """Count one, and say so."""
        now = time.monotonic()
        with self._lock:
            logged, more = self._since.get(why, (now - 2 * LOG_SECONDS, 0))
            due = now - logged > LOG_SECONDS
            self._since[why] = (now, 0) if due else (logged, more + 1)
        if due:
            log.warning("connection closed", why=why, address=address, not_logged=more)


def _read(connection: socket.socket, length: int, until: float) -> bytearray:
    """Return `length` bytes. Raises OSError: a TimeoutError where they are not there by `until`."""
    buffer, done = bytearray(length), 0
    with memoryview(buffer) as view:
        while done < length:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            count = connection.recv_into(view[done:])
            if count == 0:
                raise ConnectionError
            done += count
    return buffer
