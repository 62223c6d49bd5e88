"""Requests and messages are measured before pynetdicom makes objects of them; whatever is drawn, the port serves on.

The properties draw the same examples every time; `make fuzz` looks for others.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import build_context
from structlog.testing import capture_logs

from dicom_node.listener import Listener
from dicom_node.network.requests import (
    MOST_CONTEXTS,
    MOST_ITEMS,
    SMALLEST_PDU,
    Asked,
    Context,
    Negotiation,
    Violation,
    check_request,
)
from dicom_node.sender import Destination, Result, echo
from dicom_node.spool import Spool
from models.database import Database
from models.settings import Peer
from models.upgrade import upgrade
from tests import dicom_bytes, servers
from tests.dicom_bytes import VERIFICATION, command, context, data, fragment, item, pdu, request, user_information

STORAGE = "1.2.840.10008.5.1.4.1.1.1"
hostile = partial(
    with_settings,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


# --- requests -----------------------------------------------------------------------------------------------------


def body(whole: bytes) -> bytes:
    return whole[6:]


def test_a_request_says_who_calls_whom() -> None:
    found = check_request(body(request("CT 1", "OSTEON")))
    assert found == Asked("OSTEON", "CT 1", 1, dicom_bytes.APPLICATION_CONTEXT)


def test_a_request_has_at_most_as_many_contexts_as_there_are_odd_bytes() -> None:
    numbers = range(1, 256, 2)
    assert len(numbers) == MOST_CONTEXTS
    check_request(body(request("A", "B", b"".join(context(n) for n in numbers))))
    with pytest.raises(Violation):
        check_request(body(request("A", "B", b"".join(context(n) for n in (*numbers, 1)))))


def test_a_request_has_at_most_so_many_items_wherever_they_are() -> None:
    many = item(0x40, b"") * MOST_ITEMS
    for sent in (
        request("A", "B", item(0x20, b"\1\0\0\0" + many)),
        request("A", "B", user=item(0x50, many)),
        request("A", "B", more=many),
    ):
        with pytest.raises(Violation, match="too many items"):
            check_request(body(sent))


def test_the_request_that_takes_most_takes_less_than_eight_megabytes() -> None:
    sent = request("A", "B", b"".join(context(n, "1.3", ["1.2"] * 61) for n in range(1, 256, 2)))
    check_request(body(sent))
    tracemalloc.start()
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(sent)
    decoded.to_primitive()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


@hostile(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=20))
@example(b"", 0, b"")
def test_whatever_a_request_holds_there_are_titles_or_a_violation(noise: bytes, at: int, patch: bytes) -> None:
    good = body(request("MODALITY", "OSTEON", context(1) + context(3, STORAGE)))
    for content in (good[:68] + noise, good[:at] + patch + good[at + len(patch) :]):
        with contextlib.suppress(Violation):
            assert isinstance(check_request(content), Asked)


# --- the port -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Listener, Destination]]:
    folder = tmp_path_factory.mktemp("guarded")
    settings = servers.given(
        folder / "node",
        listener={"association_timeout": 1, "idle_timeout": 1},
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(settings)
    database = Database.of(settings)
    started = Listener(settings, database, Spool(folder / "node" / "spool"), lambda: None)
    started.start()
    yield started, Destination(settings.ae_title, "127.0.0.1", started.port)
    started.stop()
    database.close()


def answer_to(address: Destination, sent: bytes) -> bytes:
    with socket.create_connection((address.host, address.port), timeout=5) as peer:
        peer.sendall(sent)
        return peer.recv(65_536)


CONTEXT_1 = context(1)[4:]


def asked_with(more: bytes) -> bytes:
    return request("MODALITY", "OSTEON", user=user_information(more))


@pytest.mark.parametrize(
    "sent",
    {
        "an unknown item": request("MODALITY", "OSTEON", more=item(0x99, b"whatever")),
        "an unknown sub-item": asked_with(item(0x5A, b"whatever")),
        "a version name padded with nulls": asked_with(item(0x55, b"VENDOR_1\0\0\0\0")),
        "a long version name": asked_with(item(0x55, b"A VERSION OF MORE THAN SIXTEEN CHARACTERS")),
        "a version name in Latin-1": asked_with(item(0x55, b"M\xfcnchen 2")),
        "a user identity of a kind to come": asked_with(item(0x58, b"\x06\x00\x00\x04user\x00\x00")),
        "a user identity by name": asked_with(item(0x58, b"\x01\x01\x00\x04user\x00\x00")),
        "asynchronous operations": asked_with(item(0x53, b"\0\5\0\5")),
        "extended negotiation": asked_with(item(0x56, b"\0\x111.2.840.10008.1.1\0\0\0")),
        "an unknown item in a context": request("MODALITY", "OSTEON", item(0x20, CONTEXT_1 + item(0x99, b"whatever"))),
        "a syntax that is none": request("MODALITY", "OSTEON", context(1, syntaxes=["whatever", dicom_bytes.IMPLICIT])),
        "a class that is none": request("MODALITY", "OSTEON", context(1, "whatever") + context(3)),
        "UIDs padded with spaces and nulls": request(
            "MODALITY", "OSTEON", context(1, VERIFICATION + " ", [dicom_bytes.IMPLICIT + "\0"])
        ),
        "a role that there is not": asked_with(item(0x54, struct.pack(">H5s", 5, b"1.2.3") + b"\2\7")),
        "a role for a class that is none": asked_with(item(0x54, struct.pack(">H8s", 8, b"whatever") + b"\1\1")),
        "PDUs of any length": request("MODALITY", "OSTEON", user=item(0x50, item(0x51, bytes(4)))),
        "no word of lengths": request("MODALITY", "OSTEON", user=item(0x50, item(0x52, b"1.2.3.4"))),
        "no user information": request("MODALITY", "OSTEON", user=b""),
        "AE titles padded with nulls": request("MODALITY", "OSTEON")
        .replace(b"MODALITY        ", b"MODALITY\0\0\0\0\0\0\0\0")
        .replace(b"OSTEON          ", b"OSTEON\0\0\0\0\0\0\0\0\0\0"),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_does_not_change_the_answer_keeps_nobody_out(
    listener: tuple[Listener, Destination], sent: tuple[str, bytes]
) -> None:
    assert answer_to(listener[1], sent[1])[:1] == dicom_bytes.ACCEPTED


def test_each_context_is_answered_for_itself() -> None:
    negotiation = Negotiation([build_context(VERIFICATION), build_context(STORAGE)], largest_pdu=1_000_000)
    contexts = [
        context(1, "whatever"),
        context(3, VERIFICATION + " ", ["\xff", dicom_bytes.IMPLICIT + "\0"]),
        context(5, STORAGE, ["whatever"]),
        item(0x20, bytes((7, 0, 0, 0)) + item(0x99, b"whatever") + context(7, STORAGE)[8:]),
    ]
    accepted = negotiation.accept(request("A", "B", b"".join(contexts)))
    assert accepted.contexts == {
        3: Context(VERIFICATION, UID(dicom_bytes.IMPLICIT)),
        7: Context(STORAGE, UID(dicom_bytes.IMPLICIT)),
    }
    answer = A_ASSOCIATE_AC()
    answer.decode(accepted.answer)
    results = {found.context_id: found.result for found in answer.presentation_context}
    # PS3.8 9.3.3.2: acceptance, abstract syntax not supported, transfer syntaxes not supported.
    assert results == {1: 3, 3: 0, 5: 4, 7: 0}


def test_a_role_is_agreed_to_also_where_its_class_is_padded() -> None:
    negotiation = Negotiation([build_context(STORAGE)], largest_pdu=1_000_000)
    negotiation._contexts[0].scu_role = negotiation._contexts[0].scp_role = True
    padded = STORAGE.encode() + b" "
    role = item(0x54, struct.pack(">H", len(padded)) + padded + b"\1\1")
    accepted = negotiation.accept(request("A", "B", context(1, STORAGE), user=user_information(role)))
    assert item(0x54, struct.pack(">H", len(STORAGE)) + STORAGE.encode() + b"\1\1") in accepted.answer


def test_a_peer_that_takes_no_answer_is_aborted(listener: tuple[Listener, Destination]) -> None:
    short = item(0x50, item(0x51, struct.pack(">L", SMALLEST_PDU - 1)))
    assert answer_to(listener[1], request("MODALITY", "OSTEON", user=short))[:1] == dicom_bytes.ABORTED


def test_another_protocol_or_application_is_rejected_by_its_reason(listener: tuple[Listener, Destination]) -> None:
    good = request("MODALITY", "OSTEON")
    other_version = good[:6] + b"\0\2" + good[8:]
    assert answer_to(listener[1], other_version) == pdu(0x03, bytes((0, 1, 2, 2)))
    other_application = good.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9")
    assert answer_to(listener[1], other_application) == pdu(0x03, bytes((0, 1, 1, 2)))


def test_a_context_without_a_transfer_syntax_is_answered_with_an_abort(listener: tuple[Listener, Destination]) -> None:
    bare = item(0x20, b"\1\0\0\0" + item(0x30, VERIFICATION.encode()))
    assert answer_to(listener[1], request("MODALITY", "OSTEON", bare))[:1] == b"\x07"


STORE = command(0x0001, uid=STORAGE, with_data_set=True)
DATA_SET = (
    struct.pack("<HHL", 0x0008, 0x0016, 26) + STORAGE.encode() + b"\0" + struct.pack("<HHL", 8, 0x18, 8) + b"1.2.3.4\0"
)
CONVERSATION = (
    request("MODALITY", "OSTEON", context(1) + context(3, STORAGE)),
    dicom_bytes.ECHO,
    data(fragment(3, STORE, command=True, last=True), fragment(3, DATA_SET, command=False, last=True)),
    dicom_bytes.RELEASE,
)
LENGTH = sum(map(len, CONVERSATION))
changes = st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


@hostile(max_examples=40)
@given(st.one_of(st.binary(max_size=400), changes), st.booleans())
def test_whatever_is_sent_to_the_port_no_thread_dies_of_it_and_the_next_is_served(
    listener: tuple[Listener, Destination], drawn: bytes | list[tuple[int, int, bytes]], half_closed: bool
) -> None:
    """Noise, and a conversation of which bytes are replaced, left out or put in."""
    _, address = listener
    with capture_logs() as said, socket.create_connection((address.host, address.port), timeout=5) as peer:
        try:
            peer.sendall(changed(drawn))
            if half_closed:
                peer.shutdown(socket.SHUT_WR)
            while peer.recv(65_536):
                continue
        except TimeoutError:
            pytest.fail("the connection stays open")
        except OSError:
            pass  # it is closed with bytes of ours unread
    assert [line for line in said if line["log_level"] in ("error", "critical")] == []
    assert echo(address, calling_ae_title="MODALITY", timeout=5).result is Result.DELIVERED


def changed(drawn: bytes | list[tuple[int, int, bytes]]) -> bytes:
    if isinstance(drawn, bytes):
        return drawn
    content = b"".join(CONVERSATION)
    for at, gone, put in drawn:
        content = content[:at] + put + content[at + gone :]
    return content


def test_the_conversation_that_is_changed_is_a_good_one(listener: tuple[Listener, Destination]) -> None:
    _, address = listener
    with socket.create_connection((address.host, address.port), timeout=5) as peer:
        answers = b""
        for sent in CONVERSATION:
            peer.sendall(sent)
            answers += peer.recv(65_536)
    assert answers[:1] == dicom_bytes.ACCEPTED
    for field in (0x8030, 0x8001):
        assert struct.pack("<HHLH", 0, 0x0100, 2, field) in answers
    assert answers[-10:-9] == dicom_bytes.RELEASED
