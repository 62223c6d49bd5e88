"""What a network may do to the listener: floods, slow peers, requests and messages made to break it.

Every one of them ends within the time-outs; others are served meanwhile, and memory stays bounded.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dicom_node.network import requests
from models.settings import Peer
from models.upgrade import upgrade
from tests.dicom_bytes import (
    ABORT,
    ACCEPTED,
    ECHO,
    RELEASE,
    RELEASED,
    VERIFICATION,
    command,
    context,
    data,
    element,
    fragment,
    item,
    pdu,
    request,
    user_information,
)
from tests.servers import Node, given, wait_until

PATIENCE = 3.0
MOST, MOST_PER_ADDRESS, MOST_ASSOCIATIONS = 60, 30, 40
MEGABYTE = 1024 * 1024
MOST_GROWTH = 80 * MEGABYTE
"""Of the listener's memory under attack; a quiet one takes about 120 MB."""
STORAGE = "1.2.840.10008.5.1.4.1.1.1"
C_STORE, C_ECHO, C_FIND, C_CANCEL, N_EVENT, N_ACTION = 0x0001, 0x0030, 0x0020, 0x0FFF, 0x0100, 0x0130


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """`osteon listen` whose patience is short."""
    folder = tmp_path_factory.mktemp("node")
    made = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        listener={
            "association_timeout": PATIENCE,
            "idle_timeout": PATIENCE,
            "max_connections": MOST,
            "max_connections_per_address": MOST_PER_ADDRESS,
            "max_associations": MOST_ASSOCIATIONS,
        },
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(made)
    listener = Node(made, folder / "node.log")
    listener.start("listen")
    listener.wait_until_listening()
    yield listener
    listener.stop()


@pytest.fixture(autouse=True)
def _goes_on(node: Node) -> Iterator[None]:
    """After each test the node answers, and no thread of it has died of anything."""
    yield
    assert served(node, "127.0.0.1")
    # Its own thread removes what an association has left, when it has noticed that the peer is gone.
    wait_until(lambda: node.half_received == [], seconds=10, what="nothing half-received is left")
    assert "uncaught" not in node.log.read_text()


# --- requests -----------------------------------------------------------------------------------------------------


def asks(contexts: bytes | None = None, *, user: bytes | None = None, more: bytes = b"") -> bytes:
    return request("MODALITY", "OSTEON", contexts, user=user, more=more)


BAD_REQUESTS = {
    "255 presentation contexts": asks(b"".join(context(1 + 2 * n % 256) for n in range(255))),
    "two contexts of one ID": asks(context(1) + context(1)),
    "an even context ID": asks(context(2)),
    "a context without an ID": asks(item(0x20, b"")),
    "a context longer than the request": asks(item(0x20, b"\x01\x00\x00\x00", 500)),
    "a syntax longer than its context": asks(item(0x20, b"\x01\0\0\0" + item(0x30, b"1.2", 50))),
    "50,000 empty transfer syntaxes": asks(
        b"".join(item(0x20, bytes((n, 0, 0, 0)) + item(0x40, b"") * 12_000) for n in (1, 3, 5, 7))
    ),
    "50,000 empty items of no meaning": asks(more=item(0x77, b"") * 50_000),
    "user information that runs out": asks(user=item(0x50, item(0x51, b"\0\0\x40\0", 400))),
    "a maximum length of no bytes": asks(user=item(0x50, item(0x51, b""))),
    "a role for no class": asks(user=user_information(item(0x54, b"\0\0"))),
    "more bytes than a request may have": pdu(0x01, bytes(requests.LARGEST_REQUEST + 1)),
    "no bytes": pdu(0x01, b""),
    "four gigabytes": pdu(0x01, b"\0" * 100, 0xFFFFFFFF),
    "a PDU of no type": pdu(0x99, b"\0" * 100),
    "an answer instead of a request": pdu(0x02, asks()[6:]),
    "an AE title that is none": request("MODALITY", "OSTEON").replace(b"MODALITY", b"\xff\xfe\\\n\x00\x01\x02\x03"),
}  # fmt: skip


@pytest.mark.parametrize("sent", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_that_breaks_the_rules_is_hung_up_on_at_once(node: Node, sent: bytes) -> None:
    took = []
    # Who is only let go of for saying nothing more is so each time; a machine stands still for a moment once.
    while not took or (took[-1] >= PATIENCE / 2 and len(took) < 3):
        with dialled(node) as peer:
            send_all(peer, sent)
            began = time.monotonic()
            answer = rest_of(peer)
            took.append(time.monotonic() - began)
        assert answer[:1] != ACCEPTED
    assert min(took) < PATIENCE / 2


def test_the_largest_request_that_makes_sense_is_accepted(node: Node) -> None:
    syntaxes = [f"1.2.840.10008.1.2.4.{n}" for n in range(50, 90)]
    contexts = [context(n, f"1.2.840.10008.5.1.4.1.1.{n}", syntaxes) for n in range(1, 255, 2)]
    sent = asks(context(255) + b"".join(contexts))
    with dialled(node) as peer:
        send_all(peer, sent)
        assert peer.recv(1) == ACCEPTED


def test_a_request_that_drips_in_ends_in_the_time_of_a_silent_one(node: Node) -> None:
    with dialled(node) as peer:
        began = time.monotonic()
        peer.settimeout(0.2)
        for byte in asks():
            try:
                peer.sendall(bytes([byte]))
                if peer.recv(10) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert PATIENCE / 2 < time.monotonic() - began < 7 * PATIENCE


# --- messages -----------------------------------------------------------------------------------------------------


def whole(content: bytes, number: int = 1) -> bytes:
    return data(fragment(number, content, command=True, last=True))


STORE = command(C_STORE, uid=STORAGE, with_data_set=True)
FIND = command(C_FIND, with_data_set=True)
PIECE = bytes(16_000)

BAD_MESSAGES: dict[str, Callable[[], Iterator[bytes]]] = {
    "a context that was not accepted": lambda: once(whole(command(C_ECHO), 99)),
    "an even context": lambda: once(whole(command(C_ECHO), 0)),
    "data before a command": lambda: once(data(fragment(1, PIECE, command=False, last=False))),
    "data between command fragments": lambda: once(
        data(fragment(1, command(C_ECHO)[:20], command=True, last=False), fragment(1, PIECE, command=False, last=False))
    ),
    "a command between data": lambda: once(
        whole(STORE, 3) + data(fragment(3, PIECE, command=False, last=False)) + whole(STORE, 3)
    ),
    "data of another context": lambda: once(whole(STORE, 3) + data(fragment(1, PIECE, command=False, last=False))),
    "two messages in one PDU": lambda: once(
        data(
            fragment(3, STORE, command=True, last=True),
            fragment(3, PIECE, command=False, last=True),
            fragment(3, STORE, command=True, last=True),
        )
    ),
    "a value without a control header": lambda: once(data(struct.pack(">LB", 1, 1))),
    "a value of no length": lambda: once(data(struct.pack(">L", 0))),
    "a value longer than its PDU": lambda: once(data(struct.pack(">LBB", 5000, 1, 3))),
    "no value": lambda: once(data()),
    "40,000 values in a PDU": lambda: once(data(*[fragment(1, b"", command=True, last=False)] * 40_000)),
    "command fragments without end": lambda: many(data(fragment(1, PIECE, command=True, last=False)), 4_000),
    "empty command fragments without end": lambda: many(
        data(*[fragment(1, b"", command=True, last=False)] * 100), 2_000
    ),
    "a command set of a megabyte": lambda: once(
        b"".join(data(fragment(1, PIECE, command=True, last=n == 63)) for n in range(64))
    ),
    "a command that is noise": lambda: once(whole(random.Random(5).randbytes(300))),
    "a command without a field": lambda: once(whole(element(0x0002, b"1.2\0"))),
    "a command that there is not": lambda: once(whole(command(0x0F0F))),
    "a command whose element is longer than it": lambda: once(
        whole(command(C_ECHO) + struct.pack("<HHL", 0, 0x1000, 9_999))
    ),
    "a command with a UID that is none": lambda: once(
        whole(command(C_STORE, uid="..;DROP TABLE images;--" * 3, with_data_set=True), 3)
    ),
    "a command for no service": lambda: once(whole(command(N_ACTION, uid="1.2.3"))),
    "an answer that nobody asked for, without end": lambda: many(whole(command(0x8030)), 1_000),
    "a data set in memory without end": lambda: chain(
        whole(FIND), many(data(fragment(1, PIECE, command=False, last=False)), 4_000)
    ),
    "requests without waiting for answers": lambda: many(ECHO, 3_000),
    "notifications without waiting for answers": lambda: many(
        whole(command(N_EVENT, more=element(0x1002, b"\1\0"))), 200
    ),
    "cancellations without end": lambda: many(whole(command(C_CANCEL, more=element(0x0120, b"\7\0"))), 1_000),
    "a second request": lambda: once(asks()),
    "an acceptance": lambda: once(pdu(0x02, asks()[6:])),
    "a rejection": lambda: once(pdu(0x03, b"\0\1\1\1")),
    "a release of 200,000 bytes": lambda: once(pdu(0x05, bytes(200_000))),
    "an abort from nowhere": lambda: once(pdu(0x07, b"\0\0\x4d\x4d")),
    "data longer than agreed": lambda: once(pdu(0x04, b"\0" * 100, 300_000)),
    "releases without end": lambda: many(RELEASE, 3_000),
    "an abort in the middle of a PDU": lambda: once(whole(STORE, 3) + pdu(0x04, bytes(100), 5_000) + ABORT),
}  # fmt: skip


def once(sent: bytes) -> Iterator[bytes]:
    yield sent


def many(sent: bytes, times: int) -> Iterator[bytes]:
    for _ in range(times):
        yield sent


def chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


@pytest.mark.parametrize("sent", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_an_association_that_breaks_the_rules_ends_in_time_and_takes_little_memory(
    node: Node, sent: Callable[[], Iterator[bytes]]
) -> None:
    before = memory_of(node)
    with associated(node, "127.0.0.1") as peer:
        for piece in sent():
            if not send_all(peer, piece):
                break
        began = time.monotonic()
        rest_of(peer, seconds=6 * PATIENCE)
        assert time.monotonic() - began < 5 * PATIENCE
    assert memory_of(node) - before < MOST_GROWTH / 2


# --- floods -------------------------------------------------------------------------------------------------------


def test_a_flood_of_silent_connections_leaves_room_for_others_and_takes_little_memory(node: Node) -> None:
    before = memory_of(node)
    with ExitStack() as opened:
        flood = [opened.enter_context(dialled(node, f"127.0.1.{1 + n % 20}")) for n in range(5 * MOST)]
        began = time.monotonic()
        assert served(node, "127.0.0.1")
        assert time.monotonic() - began < 5 * PATIENCE
        assert memory_of(node) - before < MOST_GROWTH
        open_ones = [peer for peer in flood if not hung_up(peer)]
        assert len(open_ones) <= MOST
        for peer in open_ones:
            rest_of(peer, seconds=3 * PATIENCE)
            assert hung_up(peer)


def test_strangers_who_are_rejected_and_stay_take_no_place_from_others(node: Node) -> None:
    with ExitStack() as opened:
        for _ in range(MOST_PER_ADDRESS + 5):
            peer = opened.enter_context(dialled(node, "127.0.0.5"))
            send_all(peer, request("STRANGER", "OSTEON"))
            assert peer.recv(1) in (b"\x03", b"")
        assert served(node, "127.0.0.5")


def test_requests_that_break_the_rules_and_stay_take_no_place_from_others(node: Node) -> None:
    without_syntax = item(0x20, b"\1\0\0\0" + item(0x30, VERIFICATION.encode()))
    with ExitStack() as opened:
        for _ in range(MOST_PER_ADDRESS + 5):
            peer = opened.enter_context(dialled(node, "127.0.0.7"))
            send_all(peer, asks(without_syntax))
            assert peer.recv(1) in (ABORT[:1], b"")
        assert served(node, "127.0.0.7")


def test_released_associations_whose_peers_stay_connected_take_no_place_from_others(node: Node) -> None:
    with ExitStack() as opened:
        for _ in range(MOST_PER_ADDRESS + 5):
            peer = opened.enter_context(associated(node, "127.0.0.6"))
            send_all(peer, RELEASE)
            # Of the acceptance first; where it has made room already, nothing.
            while peer.recv(1) not in (RELEASED, b""):
                continue
        assert served(node, "127.0.0.6")


def test_an_address_with_all_its_places_taken_by_associations_gets_no_more_while_others_do(node: Node) -> None:
    with ExitStack() as opened:
        for _ in range(MOST_PER_ADDRESS):
            opened.enter_context(associated(node, "127.0.0.2"))
        assert not served(node, "127.0.0.2")
        assert served(node, "127.0.0.3")


def test_associations_of_many_addresses_stop_at_the_limit_and_say_so(node: Node) -> None:
    with ExitStack() as opened:
        for number in range(MOST_ASSOCIATIONS):
            opened.enter_context(associated(node, f"127.0.2.{1 + number % 4}"))
        with dialled(node, "127.0.0.4") as peer:
            send_all(peer, asks())
            assert rest_of(peer) == pdu(0x03, bytes((0, 2, 3, 2))), "rejected for now: local limit exceeded"


def test_an_attack_of_all_kinds_at_once_takes_bounded_memory_and_others_are_served(node: Node) -> None:
    before = memory_of(node)
    stop = threading.Event()
    heavy = request("STRANGER", "OSTEON", b"".join(context(n, syntaxes=["1.2"] * 60) for n in range(1, 256, 2)))
    kinds = [
        *(value for value in BAD_REQUESTS.values()),
        heavy,
        asks() + whole(STORE, 3) + data(fragment(3, PIECE, command=False, last=False)) * 50,
        random.Random(7).randbytes(50_000),
    ]

    def attack(number: int) -> None:
        drawn = random.Random(number)
        while not stop.is_set():
            try:
                with dialled(node, f"127.0.3.{1 + number}") as peer:
                    send_all(peer, drawn.choice(kinds))
                    rest_of(peer, seconds=0.05)
            except OSError:
                continue

    attackers = [threading.Thread(target=attack, args=(number,)) for number in range(8)]
    for attacker in attackers:
        attacker.start()
    try:
        growth = []
        until = time.monotonic() + 6
        while time.monotonic() < until:
            began = time.monotonic()
            assert served(node, "127.0.0.1")
            assert time.monotonic() - began < 4 * PATIENCE
            growth.append(memory_of(node) - before)
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
    assert max(growth) < MOST_GROWTH


def test_the_log_of_a_flood_is_short(node: Node) -> None:
    before = len(node.log_lines())
    for _ in range(300):
        with dialled(node) as peer:
            send_all(peer, b"GET / HTTP/1.0\r\n\r\n")
    assert len(node.log_lines()) - before < 30


# --- means --------------------------------------------------------------------------------------------------------


@contextmanager
def dialled(node: Node, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection from one of this machine's addresses."""
    with socket.create_connection(("127.0.0.1", node.settings.port), timeout=10, source_address=(source, 0)) as peer:
        yield peer


@contextmanager
def associated(node: Node, source: str) -> Iterator[socket.socket]:
    """A raw association, with Verification as context 1 and Computed Radiography as 3."""
    with dialled(node, source) as peer:
        send_all(peer, asks(context(1, VERIFICATION) + context(3, STORAGE)))
        assert peer.recv(1) == ACCEPTED
        yield peer


def served(node: Node, source: str) -> bool:
    """Whether a C-ECHO from this address is answered, and its association released."""
    try:
        with associated(node, source) as peer:
            peer.settimeout(10)
            send_all(peer, ECHO)
            header = peer.recv(4096)
            while b"\x00\x00\x00\x09" not in header:  # the status
                more = peer.recv(4096)
                if not more:
                    return False
                header += more
            send_all(peer, RELEASE)
            return RELEASED in rest_of(peer)
    except (OSError, AssertionError):
        return False


def send_all(peer: socket.socket, content: bytes) -> bool:
    """Send, as far as the other side takes it; return whether it took all."""
    try:
        peer.sendall(content)
    except OSError:
        return False
    return True


def rest_of(peer: socket.socket, seconds: float = 10) -> bytes:
    """Everything that comes until the other side hangs up, or `seconds` are over."""
    found, until = b"", time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            peer.settimeout(left)
            more = peer.recv(65_536)
            if not more:
                break
            found += more
    except OSError:
        pass
    return found


def hung_up(peer: socket.socket) -> bool:
    peer.settimeout(0.01)
    try:
        return peer.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def memory_of(node: Node) -> int:
    """Resident bytes of the listener."""
    process = node._processes["listen"]
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096
