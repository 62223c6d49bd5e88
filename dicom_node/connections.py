"""Connections before they are associations, and how many of both there may be.

pynetdicom makes an association of every connection at once: two threads that poll a thousand times a second, and a copy
of all presentation contexts, for whoever dials the port. Here a connection is one thread that waits, until it has
asked for an association in time, at bearable length, by AE titles that are let in, and over TLS where it is that port.
Only then does pynetdicom meet it. Where the places are taken, whoever has waited longest without asking makes room.

Besides `dicom_node.receiving` and `dicom_node.guard` this is the only module that knows pynetdicom's internals;
`tests/unit/test_connections.py` fails when they change.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicom_node.guard import Titles, Violation, check_request, decode_request, read_request_header
from dicom_node.policy import Rejection
from dicom_node.tls import why_failed
from models import logs

COLLECT_SECONDS = 30.0
LOG_SECONDS = 10.0
_ABORT = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 1))
log = logs.get("listener")


@dataclass(eq=False)
class Connection:
    """A connection; an association once it has asked for one."""

    socket: socket.socket
    address: str
    asked: bool = False
    association: Association | None = None

    @property
    def ended(self) -> bool:
        """Whether it was an association and is none any more."""
        return self.association is not None and not self.association.is_alive()


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
            self._drop_ended()
            return len(self._open)

    def take_in(self, peer: socket.socket, address: str) -> Connection | None:
        """Give a place to a new connection, at need that of one that has not asked yet; None where there is none."""
        with self._lock:
            self._drop_ended()
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

    def _drop_ended(self) -> None:
        self._open = [connection for connection in self._open if not connection.ended]


@dataclass(frozen=True)
class Gate:
    """What stands between a connection and pynetdicom.

    `refuse` is asked with AE titles, address and socket whether an association is to be rejected; `context` gives the
    TLS context of the moment on the port that speaks TLS.
    """

    connections: Connections
    seconds: float
    refuse: Callable[[Titles, str, socket.socket], Rejection | None]
    context: Callable[[], ssl.SSLContext] | None = None


def start_server(ae: AE, address: tuple[str, int], gate: Gate, handlers: list[Any]) -> ConnectionServer:
    """Bind a port and serve it from threads. `ae.shutdown` ends it. Raises OSError where the port is taken."""
    made = ae.make_server(
        address, evt_handlers=handlers, server_class=ConnectionServer, request_handler=_AssociationMaker
    )
    server = cast(ConnectionServer, made)
    server.gate = gate
    ae._servers.append(server)
    threading.Thread(target=server.serve_forever, name=f"port-{server.port}", daemon=True).start()
    return server


class ConnectionServer(ThreadedAssociationServer):
    """Accepts connections and hands on those that ask for an association."""

    # pynetdicom queues five connections; beyond that Linux lets a peer wait a second and more before it asks again.
    request_queue_size = 128
    gate: Gate

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._closed = _Tally()
        self._collected = time.monotonic()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a new connection a place and a thread, or hang up."""
        connection = self.gate.connections.take_in(request, client_address[0])
        if connection is None:
            self._closed.add("too many connections", client_address[0])
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self._serve, args=(connection, client_address), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._end(connection, "too many threads")

    def service_actions(self) -> None:
        """Collect what ended associations leave, but not after every sixtieth connection: that would help a flood."""
        if time.monotonic() - self._collected > COLLECT_SECONDS:
            gc.collect()
            self._collected = time.monotonic()

    def _serve(self, connection: Connection, client_address: Any) -> None:
        until = time.monotonic() + self.gate.seconds
        try:
            self._wrap(connection, until)
            request = self._asked(connection, until)
            if request is None:
                self._end(connection, None)
            elif self.gate.connections.has_asked(connection):
                _AssociationMaker(connection, request, client_address, self)
            else:
                self._end(connection, None)
        except Violation as violation:
            self._end(connection, str(violation), answer=_ABORT)
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
        wrapped.settimeout(max(0.001, until - time.monotonic()))
        wrapped.do_handshake()

    def _asked(self, connection: Connection, until: float) -> A_ASSOCIATE_RQ | None:
        """Read the association request; None where it was rejected."""
        header = _read(connection.socket, 6, until)
        body = _read(connection.socket, read_request_header(header), until)
        titles = check_request(body)
        rejection = self.gate.refuse(titles, connection.address, connection.socket)
        if rejection is not None:
            connection.socket.sendall(bytes((0x03, 0, 0, 0, 0, 4, 0, *rejection.answer)))
            return None
        return decode_request(bytes(header + body))

    def _end(self, connection: Connection, why: str | None, *, answer: bytes = b"") -> None:
        if answer:
            with contextlib.suppress(OSError):
                connection.socket.send(answer)
        self.shutdown_request(connection.socket)
        if not self.gate.connections.drop(connection):
            why = "made room for others"
        if why is not None:
            self._closed.add(why, connection.address)


class _AssociationMaker(RequestHandler):
    """Makes an association of a connection, as if pynetdicom had just read the request."""

    def __init__(
        self, connection: Connection, request: A_ASSOCIATE_RQ, client_address: Any, server: ConnectionServer
    ) -> None:
        self._connection = connection
        self._request = request
        super().__init__(connection.socket, client_address, server)

    def handle(self) -> None:
        """Start the association."""
        association = self._create_association()
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        dul: Any = association.dul
        dul._recv_pdu.put(self._request)
        dul.event_queue.put("Evt6")
        association.start()
        self._connection.association = association


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
