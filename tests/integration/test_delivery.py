"""Lanes on both databases, to real destinations: each gets what is due to it, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from console.main import app
from console.ports import free_port
from models import clock
from models.database import database_now
from models.settings import Peer, Settings
from models.tables import AuditEvent, Delivery, DeliveryAttempt, DeliveryState, DestinationState, Report
from tests.black_hole import black_hole
from tests.post import Post, peer, recording
from tests.recorder import Answer
from tests.servers import wait_until
from worker.again import ask_again
from worker.deliver import Courier
from worker.lanes import LEASE, Lanes, waiting

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


@contextmanager
def silent(drip: bytes = b"") -> Iterator[int]:
    """A peer that takes connections and says nothing, or an endless PDU byte by byte; gives its port."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def hold(connection: socket.socket) -> None:
        with closing(connection), contextlib.suppress(OSError):
            connection.sendall(drip)
            while not over.wait(0.2):
                if drip:
                    connection.sendall(b"\x00")

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.2)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    threads.append(threading.Thread(target=hold, args=(server.accept()[0],)))
                    threads[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            for thread in (serving, *threads):
                thread.join(10)


# --- one association for what is due ------------------------------------------------------------------------------


def test_what_is_due_goes_over_one_association_the_urgent_first_and_byte_for_byte(
    make_post: Callable[..., Post],
) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port))
        routine = [post.report() for _ in range(4)]
        urgent = post.report(urgent=True)
        post.deliver()
    assert pacs.asked == [urgent, *routine]
    assert pacs.associations == 1
    assert pacs.stored == {uid: {post.digest(uid)} for uid in pacs.asked}
    assert post.states() == ["delivered"] * 5
    assert post.tries() == [1] * 5
    state = post.destination()
    assert (state.failures, state.reason, state.lease_until) == (0, None, None)
    assert state.reached_at is not None
    assert {row.lease_until for row in post.all(Delivery)} == {None}


@sqlite_alone
def test_an_association_carries_no_more_than_a_batch(make_post: Callable[..., Post]) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port), batch=3)
        sent = [post.report() for _ in range(7)]
        post.deliver()
    assert pacs.asked == sent
    assert pacs.associations == 3


@sqlite_alone
def test_a_lane_takes_along_what_becomes_due_while_it_sends(make_post: Callable[..., Post]) -> None:
    more: list[str] = []

    def answer(_: str) -> int:
        if not more:
            more.append(post.report())
        return 0x0000

    with recording(answer) as pacs:
        post = make_post(peer("pacs", pacs.port))
        first = post.report()
        assert post.courier.start_lanes() == 1
        assert post.courier.wait(60)
        assert pacs.asked == [first, *more]


@sqlite_alone
def test_a_peer_that_is_to_commit_is_asked_to_after_it_was_delivered_to(make_post: Callable[..., Post]) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port, commitment=True), peer("other", pacs.port))
        post.report()
        post.deliver()
    asked = {row.destination: row.commit_due_at for row in post.all(Delivery)}
    assert asked["pacs"] is not None
    assert asked["other"] is None


# --- each destination on its own ----------------------------------------------------------------------------------


def test_destinations_that_are_down_hang_or_drip_delay_no_other_and_their_lanes_end_when_the_courier_does(
    make_post: Callable[..., Post],
) -> None:
    drip = b"\x02\x00\x00\x00\x10\x00"  # an A-ASSOCIATE-AC of 4 kB
    with (
        silent() as hangs,
        silent(drip) as drips,
        black_hole() as nowhere,
        recording() as pacs,
        recording(lambda _: "hang") as stuck,
    ):
        bad = [("a-down", free_port()), ("b-hangs", hangs), ("c-drips", drips), ("d-stuck", stuck.port)]
        bad += [("e-nowhere", nowhere), *((f"f-hangs-{number}", hangs) for number in range(8))]
        post = make_post(*(peer(name, port) for name, port in bad), peer("pacs", pacs.port), timeout=LONG)
        sent = [post.report() for _ in range(3)]
        assert post.courier.start_lanes() == len(bad) + 1
        wait_until(lambda: post.states() == ["delivered"] * 3, seconds=LONG / 2, what="the good destination has all")
        assert pacs.asked == sent
        assert not post.courier.wait(0), "the others are still waited for"
        # What is reported now is not delayed either.
        late = post.report()
        assert post.courier.start_lanes() == 1
        wait_until(lambda: post.states() == ["delivered"] * 4, seconds=LONG / 2, what="and the next")
        assert pacs.asked[-1] == late

        began = time.monotonic()
        post.courier.stop()
        assert time.monotonic() - began < LONG / 3
        assert post.courier.wait(0)
    for row in post.all(Delivery):
        if row.destination not in ("pacs", "a-down"):
            assert (row.state, row.tries, row.lease_until) == (DeliveryState.DUE, 0, None), row.destination
    assert {row.lease_until for row in post.all(DestinationState)} == {None}
    assert post.courier.start_lanes() == 0, "a courier that stops starts nothing"


@sqlite_alone
def test_a_destination_that_is_no_longer_in_the_settings_needs_attention_and_delays_no_other(
    make_post: Callable[..., Post],
) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port))
        for _ in range(2):
            post.report(names=["gone", "pacs"])
        post.deliver()
    assert post.states() == ["delivered"] * 2
    gone = [row for row in post.all(Delivery) if row.destination == "gone"]
    assert {(row.state.value, row.reason) for row in gone} == {("needs_attention", "destination_not_in_settings")}
    assert post.destination("gone").reached_at is None


# --- the decision tree, against destinations that do it -----------------------------------------------------------


def test_each_instance_of_a_batch_is_judged_by_its_own_answer(make_post: Callable[..., Post]) -> None:
    statuses = [0x0000, 0xA700, 0x0122, 0xC000, 0xB000, 0x0111, 0xA900, 0x0110, 0x0000]
    answers = iter(statuses)
    with recording(lambda _: next(answers)) as pacs:
        post = make_post(peer("pacs", pacs.port))
        for _ in statuses:
            post.report()
        post.deliver()
    assert pacs.associations == 1
    assert [row.status for row in post.all(Delivery)] == statuses
    states = ["delivered", "due", *["needs_attention"] * 2, *["delivered"] * 2, "needs_attention", "due", "delivered"]
    assert post.states() == states
    for row in post.all(Delivery):
        assert (row.due_at > clock.now()) == (row.state is DeliveryState.DUE)
    assert post.destination().failures == 0


def test_a_connection_that_breaks_once_costs_one_new_association_at_once(make_post: Callable[..., Post]) -> None:
    def answer(uid: str) -> Answer:
        return "abort" if uid == sent[2] and pacs.asked.count(uid) == 1 else 0x0000

    with recording(answer) as pacs:
        post = make_post(peer("pacs", pacs.port))
        sent = [post.report() for _ in range(5)]
        post.deliver()
    assert pacs.associations == 2
    assert pacs.asked == [sent[0], sent[1], sent[2], *sent[2:]]
    assert post.states() == ["delivered"] * 5
    outcomes = [(0, "stored"), (1, "stored"), (2, "connection_lost"), (2, "stored"), (3, "stored"), (4, "stored")]
    assert post.attempts() == outcomes
    assert post.tries() == [1, 1, 2, 1, 1]


@sqlite_alone
def test_an_instance_at_which_every_connection_breaks_holds_up_no_other(make_post: Callable[..., Post]) -> None:
    with recording(lambda uid: "abort" if uid == sent[0] else 0x0000) as pacs:
        post = make_post(peer("pacs", pacs.port), first_wait=30, max_tries=3)
        sent = [post.report() for _ in range(3)]
        with clock.frozen(clock.now()):
            for _ in range(8):
                post.deliver()
                clock.advance(timedelta(minutes=2))
    assert post.states() == ["needs_attention", "delivered", "delivered"]
    assert [outcome for place, outcome in post.attempts() if place == 0] == ["connection_lost"] * 3


def test_a_time_out_drops_the_association_and_the_rest_goes_over_a_new_one_without_a_counted_try(
    make_post: Callable[..., Post],
) -> None:
    with recording(lambda uid: "hang" if uid == sent[1] else 0x0000) as pacs:
        post = make_post(peer("pacs", pacs.port), timeout=3)
        sent = [post.report() for _ in range(4)]
        post.deliver()
    assert pacs.associations == 2
    assert pacs.asked == sent
    assert post.states() == ["delivered", "due", "delivered", "delivered"]
    assert post.attempts() == [(0, "stored"), (1, "no_answer"), (2, "stored"), (3, "stored")]
    assert post.tries() == [1] * 4
    assert post.all(Delivery)[1].due_at > clock.now()


@sqlite_alone
def test_a_destination_that_answers_nothing_is_left_in_peace_after_two_associations(
    make_post: Callable[..., Post],
) -> None:
    with recording(lambda _: "hang") as pacs:
        post = make_post(peer("pacs", pacs.port), timeout=3)
        for _ in range(4):
            post.report()
        post.deliver()
    assert pacs.associations == 2
    assert post.tries() == [1, 1, 0, 0]
    assert post.attempts() == [(0, "no_answer"), (1, "no_answer")]
    state = post.destination()
    assert (state.failures, state.reason) == (1, "no_answer")
    assert state.due_at > clock.now()
    assert state.reached_at is not None, "it did accept associations"


@pytest.mark.parametrize(
    ("refusal", "reason", "setting"),
    [((2, 3, 2), "association_rejected_for_now", "first_wait"), ((1, 1, 7), "association_rejected", "longest_wait")],
    ids=["for now", "for good"],
)
@sqlite_alone
def test_a_rejection_concerns_the_destination_and_counts_for_all_that_it_was_asked_for(
    make_post: Callable[..., Post], refusal: tuple[int, int, int], reason: str, setting: str
) -> None:
    with recording(reject=lambda: refusal) as pacs:
        post = make_post(peer("pacs", pacs.port), batch=3)
        for _ in range(4):
            post.report()
        post.deliver()
    assert pacs.associations == 1
    assert post.states() == ["due"] * 4
    assert post.attempts() == [(place, reason) for place in range(3)]
    assert post.tries() == [1, 1, 1, 0]
    state = post.destination()
    wait = getattr(post.settings.delivery, setting)
    assert (state.failures, state.reason, state.reached_at) == (1, reason, None)
    assert wait * 0.9 < (state.due_at - clock.now()).total_seconds() < wait * 1.3


@sqlite_alone
def test_a_destination_that_takes_no_such_object_refuses_each_for_good_and_is_not_down(
    make_post: Callable[..., Post],
) -> None:
    with recording(sop_class="1.2.840.10008.5.1.4.1.1.7") as pacs:
        post = make_post(peer("pacs", pacs.port))
        for _ in range(3):
            post.report()
        post.deliver()
    assert {(row.state.value, row.reason) for row in post.all(Delivery)} == {
        ("needs_attention", "sop_class_or_transfer_syntax_not_accepted")
    }
    assert pacs.asked == []
    assert post.destination().failures == 0


def test_a_pacs_that_is_back_after_an_outage_gets_everything_at_once_also_what_was_given_up(
    make_post: Callable[..., Post],
) -> None:
    port = free_port()
    post = make_post(peer("pacs", port), batch=10, max_tries=3)
    with clock.frozen(clock.now()):
        sent = [post.report() for _ in range(25)]
        for failures in range(1, 4):
            post.deliver()
            assert post.destination().failures == failures
            assert waiting_now(post) == [], "it is left in peace"
            clock.advance(post.destination().due_at - clock.now())
        assert post.states().count("needs_attention") == 10, "nothing is tried for ever"
        with recording(port=port) as pacs:
            assert post.courier.start_lanes() == 1
            assert post.courier.wait(60)
    assert sorted(pacs.asked) == sorted(sent)
    assert len(pacs.stored) == 25
    assert post.states() == ["delivered"] * 25
    assert post.tries() == [1] * 25, "what it was tried in vain while it was away does not count"
    assert post.destination().failures == 0


def test_during_a_long_outage_a_destination_is_asked_often_and_that_uses_up_no_tries(
    make_post: Callable[..., Post],
) -> None:
    port = free_port()
    post = make_post(peer("pacs", port), first_wait=5, longest_rest=300, max_tries=9)
    with clock.frozen(clock.now()):
        began = clock.now()
        post.report()
        post.report()
        while clock.now() - began < timedelta(hours=2):
            post.deliver()
            rest = post.destination().due_at - clock.now()
            assert rest <= timedelta(seconds=300 * 1.25)
            clock.advance(rest)
        # As many as with waits of an hour, about: seven while they grow, and one in each hour.
        assert set(post.tries()) <= {8, 9}
        assert post.states() == ["due"] * 2
        assert len(post.all(DeliveryAttempt)) == sum(post.tries())
        with recording(port=port) as pacs:
            post.deliver()
    assert len(pacs.stored) == 2
    assert post.tries() == [1, 1]


def waiting_now(post: Post) -> list[str]:
    with post.database.read() as session:
        return waiting(session)


# --- order --------------------------------------------------------------------------------------------------------


def test_what_is_superseded_while_its_batch_is_sent_is_not_sent_and_its_successor_is(
    make_post: Callable[..., Post],
) -> None:
    successor: list[str] = []

    def answer(_: str) -> int:
        if not successor:
            successor.append(post.report(of=post.all(Report)[1].study_id))
        return 0x0000

    with recording(answer) as pacs:
        post = make_post(peer("pacs", pacs.port))
        sent = [post.report() for _ in range(3)]
        post.deliver()
    assert pacs.asked == [sent[0], sent[2], *successor]
    assert post.states() == ["delivered", "cancelled", "delivered", "delivered"]


@sqlite_alone
def test_a_successor_waits_for_its_predecessor_that_is_tried_again(make_post: Callable[..., Post]) -> None:
    def answer(uid: str) -> Answer:
        if uid == sent[0] and pacs.asked.count(uid) == 1:
            sent.append(post.report(of=1))
            return "abort"
        return 0x0000

    with recording(answer) as pacs:
        post = make_post(peer("pacs", pacs.port))
        sent = [post.report()]
        post.deliver()
    assert pacs.asked == [sent[0], sent[1]], "it was superseded meanwhile"
    assert post.states() == ["cancelled", "delivered"]


# --- one courier at a time ----------------------------------------------------------------------------------------


def test_a_destination_is_held_by_one_courier_and_taken_over_when_its_lease_has_run_out(
    make_post: Callable[..., Post],
) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port))
        first, second = post.report(), post.report()
        lanes = Lanes(post.settings, post.database)
        dead = lanes.take("pacs")
        assert dead is not None
        assert lanes.take("pacs") is None
        assert post.courier.start_lanes() == 0
        assert lanes.renew(dead)
        until = post.destination().lease_until
        assert until is not None
        with post.database.read() as session:
            assert timedelta(0) < until - database_now(session) <= LEASE

        post.let_leases_run_out()
        assert post.courier.start_lanes() == 1
        assert post.courier.wait(60)
        assert pacs.asked == [first, second]
        assert not lanes.renew(dead), "who was overtaken may not hold on"
    assert post.states() == ["delivered"] * 2
    assert post.tries() == [2, 1], "the one that was begun has used up a try, the rest of its batch none"


def test_who_was_overtaken_writes_nothing_more(make_post: Callable[..., Post]) -> None:
    late = threading.Event()

    def answer(_: str) -> int:
        if len(pacs.asked) == 1:
            late.wait(30)
        return 0x0000

    with recording(answer) as pacs:
        post = make_post(peer("pacs", pacs.port))
        for _ in range(3):
            post.report()
        assert post.courier.start_lanes() == 1
        wait_until(lambda: pacs.asked, what="the first is being sent")
        post.let_leases_run_out()
        other = Courier(post.settings, post.database)
        post.deliver(other)
        assert post.states() == ["delivered"] * 3
        attempts = post.attempts()
        late.set()
        assert post.courier.wait(30)
        assert post.attempts() == attempts == [(0, "stored"), (1, "stored"), (2, "stored")]
        assert len(pacs.asked) == 4, "only what was on its way came twice"
    assert all(digests == {post.digest(uid)} for uid, digests in pacs.stored.items())


def test_a_delivery_that_always_takes_its_courier_down_ends_and_the_rest_of_its_batch_is_not_burnt_with_it(
    make_post: Callable[..., Post],
) -> None:
    with recording() as pacs:
        post = make_post(peer("pacs", pacs.port), max_tries=3)
        for _ in range(3):
            post.report()
        for _ in range(3):
            assert Lanes(post.settings, post.database).take("pacs") is not None  # and its process is gone
            post.let_leases_run_out()
        post.deliver()
    assert post.states() == ["needs_attention", "delivered", "delivered"]
    assert post.all(Delivery)[0].reason == "no_try_came_to_an_end"
    assert post.tries()[1:] == [1, 1]


def test_couriers_beside_each_other_send_everything_once(make_post: Callable[..., Post]) -> None:
    with recording() as pacs, recording() as archive:
        post = make_post(peer("pacs", pacs.port), peer("archive", archive.port), batch=4)
        sent = [post.report() for _ in range(20)]
        couriers = [Courier(post.settings, post.database) for _ in range(3)]
        for _ in range(200):
            for courier in couriers:
                courier.start_lanes()
            if all(row.state is DeliveryState.DELIVERED for row in post.all(Delivery)):
                break
            time.sleep(0.05)
        for courier in couriers:
            courier.stop()
    assert pacs.asked == archive.asked == sent


# --- asked again by a person --------------------------------------------------------------------------------------


def test_what_is_asked_for_again_is_due_now_with_all_its_tries_and_on_the_audit_trail(
    make_post: Callable[..., Post],
) -> None:
    answers: list[Answer] = [0xC000, 0xA700, 0x0122]
    with recording(lambda _: answers.pop(0) if answers else 0x0000) as pacs:
        post = make_post(peer("pacs", pacs.port))
        for _ in range(3):
            post.report()
        post.deliver()
        assert post.states() == ["needs_attention", "due", "needs_attention"]
        first, second, third = (row.id for row in post.all(Delivery))
        with post.database.write() as session:
            assert list(ask_again(session, actor="person", ids=[second])) == [second]
        post.deliver()
        assert post.states() == ["needs_attention", "delivered", "needs_attention"]
        with post.database.write() as session:
            assert list(ask_again(session, actor="person", destination="elsewhere")) == []
            assert list(ask_again(session, actor="person", destination="pacs")) == [first, third]
        post.deliver()
    assert post.states() == ["delivered"] * 3
    assert post.tries() == [1] * 3
    asked = [row for row in post.all(AuditEvent) if row.action == "report.delivery.retry"]
    assert [(row.actor, row.subject_id) for row in asked] == [("person", second), ("person", first), ("person", third)]


@sqlite_alone
def test_a_destination_that_rests_is_asked_at_once_where_a_person_wants_it(make_post: Callable[..., Post]) -> None:
    port = free_port()
    post = make_post(peer("pacs", port))
    post.report()
    post.deliver()
    assert waiting_now(post) == []
    with post.database.write() as session:
        ask_again(session, actor="person", destination="pacs")
    with recording(port=port):
        post.deliver()
    assert post.states() == ["delivered"]


# --- at random ----------------------------------------------------------------------------------------------------


def test_whatever_a_destination_does_in_turn_everything_arrives_once_in_the_end(
    make_post: Callable[..., Post], record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with recording(lambda _: chance.choices([0x0000, 0xA700, "abort"], [6, 2, 2])[0]) as pacs:
        post = make_post(peer("pacs", pacs.port), max_tries=1000, batch=5)
        with clock.frozen(clock.now()):
            sent = [post.report() for _ in range(15)]
            for _ in range(60):
                post.deliver()
                if set(post.states()) == {"delivered"}:
                    break
                clock.advance(timedelta(hours=2))
    assert post.states() == ["delivered"] * 15
    assert pacs.stored == {uid: {post.digest(uid)} for uid in sent}
    delivered = [place for place, outcome in post.attempts() if outcome == "stored"]
    assert sorted(delivered) == list(range(15)), "and each was answered with success once"


# --- on the command line ------------------------------------------------------------------------------------------


def test_the_command_line_lists_what_is_not_delivered_and_asks_for_it_again(
    make_post: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = [0x0000, 0xC000, 0xA700]
    with recording(lambda _: answers.pop(0) if answers else 0x0000) as pacs:
        post = make_post(peer("pacs", pacs.port), peer("down", free_port()))
        for _ in range(3):
            post.report()
        post.deliver()
        monkeypatch.setattr("console.deliveries.load_settings", lambda: post.settings)
        osteon = CliRunner()

        def run(*arguments: str) -> str:
            done = osteon.invoke(app, list(arguments))
            assert done.exit_code == 0, done.output
            return done.output

        found = json.loads(run("deliveries", "--json"))
        (well, down) = found["destinations"]
        assert (well["destination"], well["state"], well["failures"], well["due"]) == ("pacs", "well", 0, 1)
        assert well["needs_attention"] == 1
        assert well["reached_at"] is not None
        assert (down["destination"], down["state"], down["failures"]) == ("down", "away", 1)
        assert (down["reason"], down["reached_at"], down["due"]) == ("not_reached", None, 3)
        at_pacs = [row for row in found["deliveries"] if row["destination"] == "pacs"]
        assert [(row["state"], row["tries"], row["reason"], row["status"]) for row in at_pacs] == [
            ("needs_attention", 1, "refused", "C000"),
            ("due", 1, "refused_for_now", "A700"),
        ]
        assert at_pacs[0]["next_try"] is None
        assert at_pacs[1]["next_try"] > clock.now().isoformat()
        assert {row["next_try"] for row in found["deliveries"] if row["destination"] == "down"} == {down["next_try"]}
        assert len(json.loads(run("deliveries", "--json", "--state", "delivered"))["deliveries"]) == 1
        one = json.loads(run("deliveries", "--json", "--destination", "down", "--limit", "1"))
        assert (len(one["deliveries"]), one["more"]) == (1, 2)
        shown = run("deliveries")
        assert "refused_for_now" in shown
        assert "away" in shown

        assert "1 delivery is due now" in run("retry", str(at_pacs[0]["id"]))
        post.deliver()
        assert "1 delivery is due now" in run("retry", "--destination", "pacs")
        post.deliver()
        assert post.states() == ["delivered"] * 3
        assert waiting_now(post) == []
        assert "0 deliveries are due now" in run("retry", "--all")
        assert waiting_now(post) == ["down"], "what only waits for its destination is tried at once"
        refused = osteon.invoke(app, ["retry", str(at_pacs[0]["id"])])
        assert refused.exit_code == 1
        assert osteon.invoke(app, ["retry"]).exit_code == 2
        assert osteon.invoke(app, ["retry", "1", "--all"]).exit_code == 2
    who = {row.actor for row in post.all(AuditEvent) if row.action == "report.delivery.retry"}
    assert who == {f"{getpass.getuser()}@{socket.gethostname()}"}
