"""Places for connections: who gets one, and who makes room."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicom_node.network.connections import Connection, Connections, ConnectionServer, Gate, require_free


@pytest.fixture
def dial() -> Iterator[Any]:
    """Make a connected pair of sockets, of which the node has one."""
    with ExitStack() as opened:

        def make() -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            opened.enter_context(theirs)
            theirs.settimeout(5)
            return ours, theirs

        yield make


def test_where_all_places_are_taken_the_one_that_waited_longest_makes_room(dial: Any) -> None:
    connections = Connections(most=2, most_per_address=2)
    pairs = [dial() for _ in range(3)]
    taken = [connections.take_in(ours, f"10.0.0.{number}") for number, (ours, _) in enumerate(pairs)]
    assert None not in taken
    assert len(connections) == 2
    assert pairs[0][1].recv(1) == b"", "hung up"
    assert [connections.has_asked(connection) for connection in taken if connection] == [False, True, True]


def test_a_connection_that_has_asked_makes_no_room(dial: Any) -> None:
    connections = Connections(most=2, most_per_address=2)
    for number in range(2):
        connection = connections.take_in(dial()[0], f"10.0.0.{number}")
        assert connection is not None
        assert connections.has_asked(connection)
    assert connections.take_in(dial()[0], "10.0.0.9") is None


def test_an_address_has_only_its_own_places_to_give_away(dial: Any) -> None:
    connections = Connections(most=10, most_per_address=2)
    (first, heard), (second, _), (other, _) = dial(), dial(), dial()
    assert connections.take_in(other, "10.0.0.1") is not None
    assert connections.take_in(first, "10.0.0.2") is not None
    assert connections.take_in(second, "10.0.0.2") is not None
    third = connections.take_in(dial()[0], "10.0.0.2")
    assert third is not None
    assert heard.recv(1) == b""
    assert len(connections) == 3


def test_where_all_places_are_taken_the_address_that_waits_most_makes_room(dial: Any) -> None:
    connections = Connections(most=4, most_per_address=4)
    lonely = connections.take_in(dial()[0], "10.0.0.1")
    for _ in range(5):
        assert connections.take_in(dial()[0], "10.0.0.2") is not None
    assert lonely is not None
    assert connections.has_asked(lonely), "although it waits longest"


def test_an_association_that_has_ended_leaves_its_place(dial: Any) -> None:
    connections = Connections(most=1, most_per_address=1)
    connection = connections.take_in(dial()[0], "10.0.0.1")
    assert connection is not None
    assert connections.has_asked(connection)
    assert connections.drop(connection)
    assert len(connections) == 0
    assert isinstance(connections.take_in(dial()[0], "10.0.0.1"), Connection)


def test_at_the_end_all_that_wait_are_hung_up_on(dial: Any) -> None:
    connections = Connections(most=5, most_per_address=5)
    pairs = [dial() for _ in range(3)]
    for ours, _ in pairs:
        connections.take_in(ours, "10.0.0.1")
    connections.close_waiting()
    assert [theirs.recv(1) for _, theirs in pairs] == [b""] * 3


def gate(connections: Connections | None = None, **more: Any) -> Gate:
    """A gate that nobody gets through."""

    def never(*_: object) -> Any:
        raise AssertionError("nobody asks")

    return Gate(connections or Connections(most=1, most_per_address=1), seconds=30, refuse=never, serve=never, **more)


def test_a_connection_that_makes_room_while_tls_takes_it_over_is_not_waited_for(dial: Any) -> None:
    connections = Connections(most=1, most_per_address=1)
    (ours, theirs), (other, _) = dial(), dial()

    class Context(ssl.SSLContext):
        def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
            wrapped = super().wrap_socket(*arguments, **options)
            # Now, the listener would shut the socket down that is no more.
            assert connections.take_in(other, "10.0.0.2") is not None
            return wrapped

    connection = connections.take_in(ours, "10.0.0.1")
    assert connection is not None
    with ConnectionServer(
        ("127.0.0.1", 0), gate(connections, context=lambda: Context(ssl.PROTOCOL_TLS_SERVER))
    ) as server:
        began = time.monotonic()
        with capture_logs() as said:
            server._serve(connection)
        assert time.monotonic() - began < 10, "it could have asked for thirty seconds"
    assert theirs.recv(1) == b""
    assert len(connections) == 1
    assert [line.get("why") for line in said] == ["made room for others"]


def test_a_port_that_others_share_is_not_free() -> None:
    with ConnectionServer(("127.0.0.1", 0), gate(), shared=True) as server:
        with ConnectionServer(("127.0.0.1", server.port), gate(), shared=True):
            pass
        with pytest.raises(OSError, match="in use"):
            require_free("127.0.0.1", server.port)
        port = server.port
    require_free("127.0.0.1", port)
