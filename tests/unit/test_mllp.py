"""A message over MLLP: what each acknowledgement means, and that no listener holds us for longer than it may."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.ports import free_port
from dicom_node.network.mllp import END, START, Listener, MllpLink, control_id_of
from dicom_node.objects.oru import build_oru
from dicom_node.outcome import Outcome, Result
from dicom_node.tls import Expected
from models.settings import TlsSettings
from tests.black_hole import black_hole
from tests.certificates import Authority
from tests.reports import content, image
from tests.talker import Talk, Talker, talking

TIMEOUT = 1.0
MESSAGE = build_oru(content(image(1)))
OTHER = build_oru(content(image(2)))


def whole(read: bytes) -> bool:
    return read.endswith(END)


def acknowledgement(code: str, to: bytes, *more: str) -> bytes:
    lines = ["MSH|^~\\&|RIS|H|OSTEON||20260101||ACK|7|P|2.5.1", f"MSA|{code}|{to.decode()}", *more]
    return START + "\r".join(lines).encode() + b"\r" + END


def answering(code: str, *more: str, end: bool = False) -> Talk:
    """Acknowledge each message so; hang up afterwards or go on."""

    def talk(talker: Talker, connection: socket.socket) -> None:
        while message := talker.listen(connection, whole):
            control_id = control_id_of(message[1:])
            connection.sendall(acknowledgement(code, control_id, *more))
            if end:
                return

    return talk


def saying(said: bytes, *, then_wait: bool = False) -> Talk:
    """Say this to each message."""

    def talk(talker: Talker, connection: socket.socket) -> None:
        while talker.listen(connection, whole):
            connection.sendall(said)
            if then_wait:
                talker.over.wait(120)
            return

    return talk


def sent(port: int, *messages: bytes, tls: Expected | None = None) -> list[Outcome]:
    began = time.monotonic()
    with MllpLink(Listener("127.0.0.1", port, tls), timeout=TIMEOUT) as link:
        outcomes = [link.store(message) for message in messages]
    assert time.monotonic() - began < 20 * TIMEOUT
    return outcomes


@pytest.mark.parametrize(
    ("code", "result", "reason"),
    [
        ("AA", Result.DELIVERED, "acknowledged"),
        ("CA", Result.DELIVERED, "acknowledged"),
        ("AE", Result.REFUSED, "message_refused"),
        ("CE", Result.REFUSED, "message_refused"),
        ("AR", Result.FAILED, "message_refused_for_now"),
        ("CR", Result.FAILED, "message_refused_for_now"),
    ],
)
def test_an_acknowledgement_says_what_became_of_the_message(code: str, result: Result, reason: str) -> None:
    with talking(answering(code)) as talker:
        outcomes = sent(talker.port, MESSAGE, OTHER)
    assert outcomes == [Outcome(result, reason)] * 2
    assert all(outcome.is_answer for outcome in outcomes)
    assert talker.heard == [START + MESSAGE + END, START + OTHER + END]
    assert talker.connections == 1


def test_an_error_code_is_kept_and_the_text_beside_it_is_not() -> None:
    with talking(answering("AE", "ERR||PID^1^5|204^Unknown key identifier^HL70357|E|||Patient Doe^Jane")) as talker:
        assert sent(talker.port, MESSAGE) == [Outcome(Result.REFUSED, "message_refused_204")]
    with talking(answering("AR", "ERR|||Doe Jane^^HL70357|E")) as talker:
        assert sent(talker.port, MESSAGE) == [Outcome(Result.FAILED, "message_refused_for_now")]


def test_a_listener_that_hangs_up_after_each_answer_gets_every_message_once() -> None:
    with (
        talking(answering("AA", end=True)) as talker,
        MllpLink(Listener("127.0.0.1", talker.port), timeout=TIMEOUT) as link,
    ):
        for message in (MESSAGE, OTHER):
            assert link.store(message).result is Result.DELIVERED
            time.sleep(0.1)
    assert talker.heard == [START + MESSAGE + END, START + OTHER + END]
    assert talker.connections == 2


GOOD = acknowledgement("AA", control_id_of(MESSAGE))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (acknowledgement("AA", b"ANOTHER"), "answer_to_another_message"),
        (START + b"MSH|^~\\&|A\rMSA|AA\r" + END, "answer_to_another_message"),
        (GOOD.replace(b"|AA|", b"|ZZ|"), "answer_not_understood"),
        (START + b"MSH|^~\\&|RIS\r" + END, "answer_not_understood"),
        (START + END, "answer_not_understood"),
        (START + b"\x00\xff" * 50 + END, "answer_not_understood"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answer_not_understood"),
        (b"\x15", "answer_not_understood"),
        (START + b"x" * 70_000, "answer_too_long"),
        (GOOD[:20], "connection_lost"),
        (b"", "connection_lost"),
    ],
    ids=["wrong id", "no id", "no code", "no MSA", "empty", "garbage", "HTTP", "NAK", "oversize", "cut", "nothing"],
)
def test_what_is_no_acknowledgement_of_this_message_is_named_and_ends_the_connection(said: bytes, reason: str) -> None:
    with talking(saying(said)) as talker:
        outcomes = sent(talker.port, MESSAGE, MESSAGE)
    assert outcomes == [Outcome(Result.FAILED, reason)] * 2
    assert not any(outcome.is_answer for outcome in outcomes)
    assert talker.connections == 2


def test_what_follows_an_acknowledgement_is_not_taken_for_the_next_one() -> None:
    with talking(saying(GOOD + acknowledgement("AA", control_id_of(OTHER)), then_wait=True)) as talker:
        assert [outcome.reason for outcome in sent(talker.port, MESSAGE, OTHER)] == [
            "acknowledged",
            "answer_to_another_message",
        ]
    assert talker.connections == 2


def test_a_listener_that_says_nothing_or_drips_is_let_go_of() -> None:
    def drip(talker: Talker, connection: socket.socket) -> None:
        talker.listen(connection, whole)
        talker.drip(connection, START + b"M" * 60_000)

    for talk in (saying(b"", then_wait=True), drip):
        with talking(talk) as talker:
            assert sent(talker.port, MESSAGE) == [Outcome(Result.FAILED, "no_answer")]


def test_a_listener_that_reads_nothing_is_let_go_of() -> None:
    with talking(lambda talker, _: talker.over.wait(30) and None) as talker:
        large = MESSAGE + b"NTE|1||" + b"x" * 20_000_000 + b"\r"
        assert sent(talker.port, large) == [Outcome(Result.FAILED, "no_answer")]


def test_where_nobody_listens_it_says_so_and_sends_nothing() -> None:
    for port in (free_port(), None):
        with black_hole() as hole, MllpLink(Listener("127.0.0.1", port or hole), timeout=TIMEOUT) as link:
            assert link.trouble == Outcome(Result.FAILED, "not_reached")
            assert link.store(MESSAGE) == link.trouble
    with MllpLink(Listener("no-such-host.invalid", 2575), timeout=TIMEOUT) as link:
        assert link.trouble == Outcome(Result.FAILED, "not_reached")


def test_what_is_no_message_is_not_sent() -> None:
    with talking(answering("AA")) as talker:
        outcomes = sent(talker.port, b"", b"DICM", b"MSH|^~", MESSAGE + END + MESSAGE)
    assert outcomes == [Outcome(Result.REFUSED, "not_hl7")] * 4
    assert talker.heard == []


@pytest.mark.parametrize("moment", ["before", "while it connects", "while it waits for an answer"])
def test_a_link_can_be_cut_from_another_thread(moment: str) -> None:
    with talking(saying(b"", then_wait=True)) as talker, black_hole() as hole:
        port = hole if moment == "while it connects" else talker.port
        link = MllpLink(Listener("127.0.0.1", port), timeout=120)
        when = threading.Event() if moment == "while it connects" else talker.asked
        cutting = threading.Thread(target=lambda: (when.wait(1.5), link.drop()))
        if moment == "before":
            link.drop()
        else:
            cutting.start()
        began = time.monotonic()
        with link:
            outcome = link.store(MESSAGE)
        assert time.monotonic() - began < 30
        assert (outcome.result, outcome.is_answer) == (Result.FAILED, False)
        assert link.store(MESSAGE).result is Result.FAILED, "what is cut stays so"
        if moment != "before":
            cutting.join()


# --- over TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "Test CA")


@pytest.fixture
def listener(authority: Authority) -> Iterator[Talker]:
    """Speaks TLS, and hangs up after each answer."""
    issued = authority.issue("ris", alternatives="DNS:ris.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with talking(answering("AA"), context) as talker:
        yield talker


def test_a_message_goes_over_tls_to_the_certificate_that_is_expected(authority: Authority, listener: Talker) -> None:
    ours = TlsSettings(ca=authority.certificate)
    outcomes = sent(listener.port, MESSAGE, OTHER, tls=Expected(ours, "ris.example.org"))
    assert [outcome.result for outcome in outcomes] == [Result.DELIVERED] * 2
    assert listener.connections == 1, "TLS's own words are not taken for the end"


def test_to_another_certificate_nothing_is_sent(authority: Authority, listener: Talker, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "ca", "Another CA")
    for expected in (
        Expected(TlsSettings(ca=authority.certificate), "another.example.org"),
        Expected(TlsSettings(ca=stranger.certificate), "ris.example.org"),
        Expected(TlsSettings(ca=authority.certificate), "ris.example.org", ("ab" * 32,)),
    ):
        with MllpLink(Listener("127.0.0.1", listener.port, expected), timeout=TIMEOUT) as link:
            assert link.trouble == Outcome(Result.FAILED, "certificate_not_trusted")
            assert link.trouble.detail
    with MllpLink(
        Listener("127.0.0.1", listener.port, Expected(TlsSettings(ca=tmp_path / "none.pem"), "x")), timeout=TIMEOUT
    ) as link:
        assert link.trouble == Outcome(Result.FAILED, "certificate_files_not_usable")
    assert listener.heard == []


def test_a_listener_without_tls_is_not_trusted_with_anything(authority: Authority) -> None:
    with talking(saying(b"")) as talker:
        expected = Expected(TlsSettings(ca=authority.certificate), "ris.example.org")
        with MllpLink(Listener("127.0.0.1", talker.port, expected), timeout=TIMEOUT) as link:
            assert link.trouble is not None
            assert link.trouble.reason in ("tls_failed", "not_reached")
    assert not any(b"PID" in heard for heard in talker.heard)
