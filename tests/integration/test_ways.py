"""Lanes over every way out: a service or listener that is stuck or busy holds up no other, and gets its own later."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from console.ports import free_port
from models import clock
from models.settings import Peer, Settings
from models.tables import AuditEvent, Delivery, DeliveryAttempt, DeliveryState, DestinationState
from tests.black_hole import black_hole
from tests.post import Post, peer, recording
from tests.servers import wait_until
from tests.talker import Talker, talking

LONG = 60.0
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Without a configured log, structlog prints tracebacks that take longer than the work."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def make_post(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., Post]]:
    posts: list[Post] = []

    def make(*peers: Peer, **delivery: Any) -> Post:
        posts.append(Post(make_settings(peers=list(peers), delivery={"timeout": 20, "first_wait": 30, **delivery})))
        return posts[-1]

    yield make
    for post in posts:
        post.courier.stop()
        post.database.close()


def web(name: str, port: int) -> Peer:
    return Peer(name=name, protocol="dicomweb", role="destination", url=f"http://127.0.0.1:{port}/dicom-web")


def ris(name: str, port: int) -> Peer:
    return Peer(name=name, protocol="hl7", role="destination", host="127.0.0.1", port=port)


def silent(talker: Talker, connection: socket.socket) -> None:
    talker.listen(connection, lambda read: len(read) > 100)
    talker.over.wait(LONG)


def dripping(talker: Talker, connection: socket.socket) -> None:
    talker.listen(connection, lambda read: len(read) > 100)
    talker.drip(connection, b"\x0bMSH" + b"|" * 60_000)


def busy(answers: list[int]) -> Callable[[Talker, socket.socket], None]:
    """Answer requests with these statuses, then with 200."""

    def talk(talker: Talker, connection: socket.socket) -> None:
        while talker.listen(connection, lambda read: read.endswith(b"--") and b"\r\n\r\n" in read):
            status = answers.pop(0) if answers else 200
            connection.sendall(f"HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n".encode())

    return talk


@sqlite_alone
def test_services_and_listeners_that_hang_or_drip_delay_no_other_and_their_lanes_end_when_the_courier_does(
    make_post: Callable[..., Post],
) -> None:
    with talking(silent) as hangs, talking(dripping) as drips, black_hole() as nowhere, recording() as pacs:
        bad = [web("web-down", free_port()), ris("ris-down", free_port())]
        for name, port in (("hangs", hangs.port), ("drips", drips.port), ("nowhere", nowhere)):
            bad += [web(f"web-{name}", port), ris(f"ris-{name}", port)]
        post = make_post(*bad, peer("pacs", pacs.port), timeout=LONG)
        post.report(names=[each.name for each in bad if each.name.startswith("web")] + ["pacs"])
        post.report(names=[each.name for each in bad if each.name.startswith("ris")], hl7=True)
        assert post.courier.start_lanes() == len(bad) + 1
        wait_until(lambda: post.states() == ["delivered"], seconds=LONG / 2, what="the good destination has it")
        assert hangs.asked.wait(30)
        assert drips.asked.wait(30)
        began = time.monotonic()
        post.courier.stop()
        assert time.monotonic() - began < LONG / 3
        assert post.courier.wait(0)
    for row in post.all(Delivery):
        if row.destination != "pacs" and not row.destination.endswith("down"):
            assert (row.state, row.tries, row.lease_until) == (DeliveryState.DUE, 0, None), row.destination
    assert {row.lease_until for row in post.all(DestinationState)} == {None}


def test_a_service_that_gets_busy_in_the_middle_is_left_in_peace_and_gets_the_rest_later(
    make_post: Callable[..., Post],
) -> None:
    with talking(busy([200, 503])) as service:
        post = make_post(web("pacs", service.port))
        for _ in range(4):
            post.report()
        post.deliver()
        assert len(service.heard) == 2
        assert post.states() == ["delivered", "due", "due", "due"]
        assert post.attempts() == [(0, "stored"), *((place, "service_unavailable") for place in (1, 2, 3))]
        state = post.destination()
        assert (state.failures, state.reason) == (1, "service_unavailable")
        assert state.due_at > clock.now()
        post.restart_all()
        post.deliver()
        assert len(service.heard) == 2 + 4, "all of them, since all are due again"
    assert post.states() == ["delivered"] * 4
    assert post.destination().failures == 0


@sqlite_alone
def test_an_instance_that_a_service_refuses_keeps_no_other_from_being_sent(make_post: Callable[..., Post]) -> None:
    with talking(busy([200, 415, 500])) as service:
        post = make_post(web("pacs", service.port))
        for _ in range(4):
            post.report()
        post.deliver()
    assert post.states() == ["delivered", "needs_attention", "due", "delivered"]
    assert [row.outcome for row in post.all(DeliveryAttempt)] == ["stored", "http_415", "http_500", "stored"]
    assert service.connections == 1


@sqlite_alone
def test_a_service_that_answers_nothing_is_left_in_peace_after_two_connections(make_post: Callable[..., Post]) -> None:
    with talking(silent) as hangs:
        post = make_post(web("pacs", hangs.port), ris("ris", hangs.port), timeout=2)
        for _ in range(3):
            post.report(names=["pacs"])
            post.report(names=["ris"], hl7=True)
        post.deliver()
    assert hangs.connections == 4
    for name in ("pacs", "ris"):
        assert post.states(name) == ["due"] * 3
        assert (post.destination(name).failures, post.destination(name).reason) == (1, "no_answer")


@sqlite_alone
def test_nothing_of_a_patient_is_in_what_is_kept_of_tries_that_come_to_nothing(
    make_post: Callable[..., Post], caplog: pytest.LogCaptureFixture
) -> None:
    """The reports are Jane Doe's."""
    caplog.set_level(logging.DEBUG)

    def echo(talker: Talker, connection: socket.socket) -> None:
        """Answer with what came, as services do that explain what they did not like."""
        read = talker.listen(connection, lambda read: b"Doe^Jane" in read)
        connection.sendall(b"HTTP/1.1 400 Doe^Jane\r\nX-Why: Doe^Jane\r\n\r\n" if b"POST" in read else read)

    with talking(echo) as talker:
        post = make_post(web("pacs", talker.port), ris("ris", talker.port))
        post.report(names=["pacs"])
        post.report(names=["ris"], hl7=True)
        post.deliver()
    kept = [str((row.outcome, row.status)) for row in post.all(DeliveryAttempt)]
    kept += [str(row.reason) for table in (Delivery, DestinationState) for row in post.all(table)]
    kept += [str(row.details) for row in post.all(AuditEvent)]
    assert "http_400" in str(kept)
    assert "answer_not_understood" in str(kept)
    assert not [text for text in (*kept, caplog.text) if "Doe" in text or "Jane" in text]
