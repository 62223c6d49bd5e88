"""A STOW-RS request: what each answer means, that the bytes are those on record, and that no service holds us."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from console.ports import free_port
from dicom_node.network import stow
from dicom_node.network.answers import Answer, judge
from dicom_node.network.stow import Service, StowLink
from dicom_node.objects.report import build_report
from dicom_node.outcome import Outcome, Result
from dicom_node.tls import Expected
from models.settings import TlsSettings
from tests.black_hole import black_hole
from tests.certificates import Authority
from tests.reports import content, image
from tests.talker import Talk, Talker, talking

TIMEOUT = 1.0
REPORT, OTHER = build_report(content(image(1))), build_report(content(image(2)))
STORED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}


def failed(reason: object) -> dict[str, Any]:
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


def with_warning(reason: int) -> dict[str, Any]:
    return {"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [reason]}}]}}


def whole(read: bytes) -> bool:
    """Whether this is a whole request."""
    head, separator, body = read.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(separator) and length is not None and len(body) >= int(length[1])


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answering(*answers: bytes, end: bool = False) -> Talk:
    """Answer the requests of a connection so, the last one again and again; hang up after each or go on."""

    def talk(talker: Talker, connection: socket.socket) -> None:
        given = iter(answers)
        while talker.listen(connection, whole):
            connection.sendall(next(given, answers[-1]))
            if end:
                return

    return talk


def saying(said: bytes, *, then_wait: bool = False) -> Talk:
    """Say this to a request."""

    def talk(talker: Talker, connection: socket.socket) -> None:
        talker.listen(connection, whole)
        connection.sendall(said)
        if then_wait:
            talker.over.wait(120)

    return talk


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/dicom-web"


def sent(service: Service | int, *reports: bytes) -> tuple[list[Outcome], Outcome | None]:
    """What became of each, and what is said of the service."""
    service = Service(url(service)) if isinstance(service, int) else service
    began = time.monotonic()
    with StowLink(service, timeout=TIMEOUT) as link:
        outcomes = [link.store(report) for report in reports]
    assert time.monotonic() - began < 20 * TIMEOUT
    return outcomes, link.trouble


def heard(request: bytes) -> tuple[dict[str, str], list[bytes]]:
    """Headers and parts, as the standard library's own parser of MIME sees them."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
    message = email.message_from_bytes(
        b"Content-Type: " + fields["content-type"].encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    boundary = str(message.get_param("boundary")).encode()
    parts = body.split(b"\r\n--" + boundary)
    assert parts[-1] == b"--"
    assert all(part.startswith(b"\r\nContent-Type: application/dicom\r\n\r\n") for part in parts[1:-1])
    return {"request": line, **fields}, [part.split(b"\r\n\r\n", 1)[1] for part in parts[1:-1]]


def test_the_bytes_on_record_are_what_is_posted_over_one_connection() -> None:
    with talking(answering(http(200, json.dumps(STORED).encode()))) as talker:
        outcomes, trouble = sent(talker.port, REPORT, OTHER)
    assert outcomes == [Outcome(Result.DELIVERED, "stored", 0x0000)] * 2
    assert trouble is None
    assert talker.connections == 1
    for request, report in zip(talker.heard, (REPORT, OTHER), strict=True):
        headers, parts = heard(request)
        assert parts == [report]
        assert headers["request"] == "POST /dicom-web/studies HTTP/1.1"
        assert headers["host"] == f"127.0.0.1:{talker.port}"
        assert headers["accept"] == "application/dicom+json"
        assert headers["user-agent"].startswith("Osteon/")
        assert "authorization" not in headers


def test_a_large_object_goes_in_one_piece_with_its_length() -> None:
    large = REPORT + bytes(3_000_000)
    with talking(answering(http(200))) as talker:
        assert sent(talker.port, large)[0] == [Outcome(Result.DELIVERED, "stored", 0x0000)]
    headers, parts = heard(talker.heard[0])
    assert parts == [large]
    assert "transfer-encoding" not in headers


def test_a_boundary_is_none_that_is_in_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([type("Drawn", (), {"hex": word})() for word in ("first", "second")])
    monkeypatch.setattr(stow.uuid, "uuid4", lambda: next(drawn))
    assert stow._boundary(b"... first ...") == "second"


XML = (
    '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
    '<DicomAttribute tag="{}" vr="SQ" keyword="S"><Item number="1"><DicomAttribute tag="{}" vr="US" keyword="R">'
    '<Value number="1">{}</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>'
)
LATER, NEVER = Result.FAILED, Result.REFUSED


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, STORED, Outcome(Result.DELIVERED, "stored", 0x0000)),
        (200, [STORED], Outcome(Result.DELIVERED, "stored", 0x0000)),
        (200, b"", Outcome(Result.DELIVERED, "stored", 0x0000)),
        (204, b"", Outcome(Result.DELIVERED, "stored", 0x0000)),
        (202, with_warning(0xB000), Outcome(Result.DELIVERED, "stored_with_remark", 0xB000)),
        (200, with_warning(0xB123), Outcome(Result.DELIVERED, "stored_with_remark", 0xB123)),
        (202, STORED, Outcome(Result.DELIVERED, "stored", 0x0000)),
        (202, b"", Outcome(LATER, "answer_not_understood")),
        (200, b"<html>Please sign in</html>", Outcome(LATER, "answer_not_understood")),
        (200, b"{}", Outcome(LATER, "answer_not_understood")),
        (200, b"[" * 100_000, Outcome(LATER, "answer_not_understood")),
        (200, b'{"00081199": 7}', Outcome(LATER, "answer_not_understood")),
        (200, {**STORED, **failed(0xA900)}, Outcome(NEVER, "refused", 0xA900)),
        (202, failed(0x0110), Outcome(LATER, "refused_for_now", 0x0110)),
        (409, failed(0xA700), Outcome(LATER, "refused_for_now", 0xA700)),
        (409, failed(0x0122), Outcome(NEVER, "refused", 0x0122)),
        (409, failed("49442"), Outcome(NEVER, "refused", 0xC122)),
        (409, failed(0x0111), Outcome(Result.DELIVERED, "already_there", 0x0111)),
        (409, failed(0x0000), Outcome(LATER, "refused_for_now", 0x0000)),
        (409, {"00081198": {"vr": "SQ", "Value": [{}]}}, Outcome(LATER, "refused_for_now")),
        (409, b"", Outcome(NEVER, "http_409")),
        (409, XML.format("00081198", "00081197", 272).encode(), Outcome(LATER, "refused_for_now", 0x0110)),
        (200, XML.format("00081199", "00081155", "1.2").encode(), Outcome(Result.DELIVERED, "stored", 0x0000)),
        (400, b"no", Outcome(NEVER, "http_400")),
        (411, b"", Outcome(NEVER, "http_411")),
        (413, b"", Outcome(NEVER, "http_413")),
        (415, b"", Outcome(NEVER, "http_415")),
        (408, b"", Outcome(LATER, "http_408")),
        (500, b"<html>", Outcome(LATER, "http_500")),
    ],
)
def test_an_answer_says_what_became_of_the_instance(status: int, body: object, expected: Outcome) -> None:
    said = body if isinstance(body, bytes) else json.dumps(body).encode()
    with talking(answering(http(status, said))) as talker:
        outcomes, trouble = sent(talker.port, REPORT, OTHER)
    assert outcomes == [expected] * 2, "the next one is asked for itself"
    assert outcomes[0].is_answer
    assert trouble is None


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "272", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["00081197", "00081198", "00081199", "00081196", "Value"]), inner, max_size=4),
    ),
)


@given(status=st.integers(100, 999), body=st.one_of(st.binary(max_size=200), JSON.map(json.dumps).map(str.encode)))
def test_whatever_comes_is_an_outcome_whose_status_can_be_kept(status: int, body: bytes) -> None:
    outcome, _ = judge(Answer(status, body))
    assert outcome.status is None or 0 <= outcome.status <= 0xFFFF
    assert len(outcome.reason) <= 64
    assert outcome.result is not Result.DELIVERED or 200 <= status < 300 or b"0008119" in body


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, Outcome(Result.REFUSED, "not_authorised")) for status in (401, 403)),
        *((status, Outcome(Result.REFUSED, "no_such_service")) for status in (301, 302, 303, 307, 404, 405, 410, 501)),
        *((status, Outcome(Result.FAILED, "service_unavailable")) for status in (429, 502, 503, 504)),
    ],
)
def test_an_answer_that_speaks_of_the_service_holds_for_all_that_was_to_follow(status: int, expected: Outcome) -> None:
    with talking(answering(http(status, b"", "Location: http://127.0.0.1:1/", "Retry-After: 100"))) as talker:
        outcomes, trouble = sent(talker.port, REPORT, OTHER)
    assert outcomes == [expected] * 2
    assert trouble == expected
    assert trouble.detail == f"HTTP status {status}"
    assert len(talker.heard) == 1, "nothing is sent again, and nowhere else"


def test_a_service_that_hangs_up_after_each_answer_gets_every_instance_once() -> None:
    with talking(answering(http(200, json.dumps(STORED).encode(), "Connection: close"), end=True)) as talker:
        outcomes, _ = sent(talker.port, REPORT, OTHER)
    assert [outcome.result for outcome in outcomes] == [Result.DELIVERED] * 2
    assert len(talker.heard) == talker.connections == 2


def test_a_service_that_goes_away_after_an_answer_is_away() -> None:
    with StowLink(Service(url(port := free_port())), timeout=TIMEOUT) as link:
        assert link.trouble == Outcome(Result.FAILED, "not_reached")
    with talking(answering(http(200, b"", "Connection: close"), end=True), port=port) as talker:
        link = StowLink(Service(url(talker.port)), timeout=TIMEOUT)
        link.__enter__()
        assert link.store(REPORT).result is Result.DELIVERED
    assert link.store(OTHER) == link.trouble == Outcome(Result.FAILED, "not_reached")
    link.__exit__()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "connection_lost"),
        (b"HTTP/1.1 2", "connection_lost"),
        (b"HTTP/1.1 200", "answer_not_understood"),
        (b"HTTP/1.1 200 OK\r\n", "answer_not_understood"),
        (b"\x15\x16\x17 garbage\r\n\r\n", "connection_lost"),
        (http(200, b"x" * 100)[:-40], "connection_lost"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "connection_lost"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "connection_lost"),
        (b"HTTP/1.1 200 OK\r\n\r\n{" + b" " * 2_000_000, "answer_not_understood"),
        (http(200, gzip.compress(b" " * 1000), "Content-Encoding: gzip"), "answer_not_understood"),
    ],
    ids=[
        "nothing",
        "cut in the status",
        "cut in the line",
        "cut in the headers",
        "garbage",
        "cut in the body",
        "no chunk",
        "headers",
        "oversize",
        "compressed",
    ],
)
def test_what_is_no_answer_is_named(said: bytes, reason: str) -> None:
    with talking(saying(said)) as talker:
        outcomes, trouble = sent(talker.port, REPORT)
    assert outcomes == [Outcome(Result.FAILED, reason)]
    assert trouble is None


@pytest.mark.parametrize("what", ["nothing", "headers", "body", "continue"])
def test_a_service_that_says_nothing_or_drips_is_let_go_of(what: str) -> None:
    def talk(talker: Talker, connection: socket.socket) -> None:
        talker.listen(connection, whole)
        if what == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        if what == "continue":
            talker.drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n", 0.005)
        if what != "nothing":
            talker.drip(connection, b"X" * 60_000)
        talker.over.wait(30)

    with talking(talk) as talker:
        outcomes, _ = sent(talker.port, REPORT)
    assert outcomes == [Outcome(Result.FAILED, "no_answer")]


def test_a_service_that_reads_nothing_is_let_go_of() -> None:
    with talking(lambda talker, _: talker.over.wait(30) and None) as talker:
        outcomes, _ = sent(talker.port, REPORT + bytes(20_000_000))
    assert outcomes == [Outcome(Result.FAILED, "no_answer")]


def test_where_nobody_listens_it_says_so() -> None:
    with black_hole() as hole:
        for to in (url(free_port()), url(hole), "http://no-such-host.invalid/"):
            outcomes, trouble = sent(Service(to), REPORT)
            assert outcomes == [trouble] == [Outcome(Result.FAILED, "not_reached")]


def test_what_is_no_dicom_file_is_not_sent() -> None:
    with talking(answering(http(200))) as talker:
        outcomes, _ = sent(talker.port, b"", b"MSH|^~\\&|", REPORT)
    assert [outcome.reason for outcome in outcomes] == ["not_dicom", "not_dicom", "stored"]
    assert len(talker.heard) == 1


@pytest.mark.parametrize("moment", ["before", "while it connects", "while it waits for an answer"])
def test_a_link_can_be_cut_from_another_thread(moment: str) -> None:
    with talking(saying(b"", then_wait=True)) as talker, black_hole() as hole:
        port = hole if moment == "while it connects" else talker.port
        link = StowLink(Service(url(port)), timeout=120)
        when = threading.Event() if moment == "while it connects" else talker.asked
        cutting = threading.Thread(target=lambda: (when.wait(1.5), link.drop()))
        if moment == "before":
            link.drop()
        else:
            cutting.start()
        began = time.monotonic()
        with link:
            outcome = link.store(REPORT)
        assert time.monotonic() - began < 30
        assert (outcome.result, outcome.is_answer) == (Result.FAILED, False)
        assert link.store(REPORT).result is Result.FAILED, "what is cut stays so"
        if moment != "before":
            cutting.join()


# --- who we are -------------------------------------------------------------------------------------------------------


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_or_a_password_goes_along_as_the_file_has_it_now(tmp_path: Path) -> None:
    token, password = secret(tmp_path / "token", "abc.DEF-1\n"), secret(tmp_path / "password", "pässword:x\r\nrest")
    with talking(answering(http(200))) as talker:
        for text in ("abc.DEF-1", "renewed"):
            secret(token, text)
            sent(Service(url(talker.port), token_file=token), REPORT)
        sent(Service(url(talker.port), user="osteon", password_file=password), REPORT)
    said = [heard(request)[0]["authorization"] for request in talker.heard]
    assert said == [
        "Bearer abc.DEF-1",
        "Bearer renewed",
        "Basic " + base64.b64encode("osteon:pässword:x".encode()).decode(),
    ]


@pytest.mark.parametrize("text", [None, "", "\n", "with a space", "with\tcontrol"])
def test_a_secret_that_cannot_be_read_keeps_everything_from_being_sent_and_is_told_to_nobody(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "token"
    if text is not None:
        secret(path, text)
    with talking(answering(http(200))) as talker:
        outcomes, trouble = sent(Service(url(talker.port), token_file=path), REPORT)
    assert outcomes == [trouble] == [Outcome(Result.FAILED, "secret_file_not_usable")]
    assert trouble.detail
    assert not text or not text.strip() or text not in trouble.detail
    assert talker.heard == []


def test_a_secret_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    path = secret(tmp_path / "token", "planted-token", 0o644)
    with talking(answering(http(200))) as talker, capture_logs() as logged:
        sent(Service(url(talker.port), token_file=path), REPORT)
    assert [entry["event"] for entry in logged] == ["a secret is open to others than its owner"]
    assert "planted-token" not in str(logged)


def test_neither_proxies_nor_passwords_are_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = secret(tmp_path / "netrc", "machine 127.0.0.1 login planted password planted\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    with talking(answering(http(200))) as talker:
        assert sent(talker.port, REPORT)[0][0].result is Result.DELIVERED
    assert "authorization" not in heard(talker.heard[0])[0]


# --- over TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "Test CA")


@pytest.fixture
def service(authority: Authority) -> Iterator[Talker]:
    issued = authority.issue("pacs", alternatives="DNS:pacs.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with talking(answering(http(200, json.dumps(STORED).encode())), context) as talker:
        yield talker


def test_an_object_goes_over_tls_to_the_certificate_that_is_expected_and_to_no_other(
    authority: Authority, service: Talker, tmp_path: Path
) -> None:
    to = f"https://127.0.0.1:{service.port}/"
    ours = TlsSettings(ca=authority.certificate)
    stranger = TlsSettings(ca=Authority(tmp_path / "ca", "Another CA").certificate)
    outcomes, trouble = sent(Service(to, Expected(ours, "pacs.example.org")), REPORT, OTHER)
    assert ([outcome.result for outcome in outcomes], trouble) == ([Result.DELIVERED] * 2, None)
    assert service.connections == 1
    for expected in (
        Expected(ours, "another.example.org"),
        Expected(stranger, "pacs.example.org"),
        Expected(ours, "pacs.example.org", ("ab" * 32,)),
    ):
        outcomes, trouble = sent(Service(to, expected), REPORT)
        assert outcomes == [trouble] == [Outcome(Result.FAILED, "certificate_not_trusted")]
    outcomes, trouble = sent(Service(to, Expected(TlsSettings(ca=tmp_path / "none.pem"), "x")), REPORT)
    assert outcomes == [trouble] == [Outcome(Result.FAILED, "certificate_files_not_usable")]
    assert len(service.heard) == 2


def test_nothing_goes_to_a_service_over_https_of_which_no_certificate_is_expected(authority: Authority) -> None:
    with pytest.raises(ValueError, match="which certificate"):
        Service("https://127.0.0.1/")
    with pytest.raises(ValueError, match="which certificate"):
        Service("http://127.0.0.1/", Expected(TlsSettings(ca=authority.certificate), "127.0.0.1"))


def test_requests_still_has_its_connections_made_by_the_classes_that_are_put_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *_: asked.append("past us"))
    session = stow._Session(lambda: (_ for _ in ()).throw(OSError("by us")))
    for to in ("http://127.0.0.1/", "https://127.0.0.1/"):
        with pytest.raises(requests.ConnectionError, match="by us"):
            session.post(to, data=b"")
    assert asked == []
