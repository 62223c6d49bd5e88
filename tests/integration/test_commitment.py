"""Storage commitment on both databases: destinations are asked until they commit, senders are answered what is true."""

from __future__ import annotations

import functools
import getpass
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydicom.dataset import Dataset
from pynetdicom import _config
from sqlalchemy import select, update
from typer.testing import CliRunner

from console.main import app
from console.ports import free_port
from dicom_node.commitment import Answer, Failure, Instance, Request, build_action
from dicom_node.intake import Intake, StoredFile
from dicom_node.intake import Sender as Caller
from dicom_node.listener import Listener
from dicom_node.objects.report import build_report
from dicom_node.sender import Destination
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import Peer, Settings
from models.tables import (
    AuditEvent,
    Commitment,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    File,
    Image,
    Report,
    Study,
)
from models.upgrade import upgrade
from tests.archive import AE_TITLE, Archive, Sender, all_committed, all_failed, request_commitment, uids
from tests.black_hole import black_hole
from tests.reports import DX, header
from tests.reports import content as report_content
from tests.reports import image as report_image
from tests.rows import Rows
from tests.servers import Node, wait_until
from worker.app import Worker
from worker.bundle import Bundle, default_bundle_path
from worker.claims import Work, claim, count_claimable, time_limit
from worker.commit import MOST_ROUNDS, Committer
from worker.deliver import Courier
from worker.desk import Desk
from worker.queue import make_app

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SR = "1.2.840.10008.5.1.4.1.1.88.34"
messages: Any = import_module("pynetdicom.dimse_messages")
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The listener changes pynetdicom for the whole process; without a log set up, structlog prints tracebacks."""
    for owner, name in (
        (_config, "STORE_RECV_CHUNKED_DATASET"),
        (_config, "STORE_SEND_CHUNKED_DATASET"),
        (messages, "NamedTemporaryFile"),
        (messages, "write_file_meta_info"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with clock.frozen(NOON):
        yield
    structlog.reset_defaults()


@pytest.fixture
def archive() -> Iterator[Archive]:
    made = Archive()
    yield made
    made.stop()


@functools.cache
def report_bytes() -> bytes:
    return build_report(report_content(report_image()))


class Site(Rows):
    """A node's listener and courier, called by hand."""

    def __init__(self, settings: Settings, *, answer_within: float = 10.0) -> None:
        self.settings = settings
        self.database = Database.of(settings)
        self.spool = Spool(settings.data_dir / "spool")
        self.listener: Listener | None = None
        self.intake = Intake(self.database, settings)
        self.courier = Courier(settings, self.database)
        self.committer = Committer(settings, self.database, answer_within=answer_within)
        self.address = Destination(settings.ae_title, "127.0.0.1", settings.port)

    def listen(self) -> None:
        self.listener = Listener(self.settings, self.database, self.spool, lambda: None)
        self.listener.start()

    def stop(self) -> None:
        if self.listener is not None:
            self.listener.stop()
        self.database.close()

    def report(self, destination: str = "pacs") -> str:
        """Make a report that is due; return its SOP Instance UID on record (the bytes of all are the same)."""
        uid = f"2.25.{uuid.uuid4().int}"
        with self.database.write() as session:
            study = Study(
                study_instance_uid=f"1.2.{uuid.uuid4().int}"[:60],
                **dict.fromkeys(("patient_name", "patient_id", "issuer_of_patient_id", "patient_birth_date"), ""),
                **dict.fromkeys(("accession_number", "patient_sex", "study_date", "study_description"), ""),
                **dict.fromkeys(
                    ("first_image_at", "last_image_at", "quiet_until", "complete_by", "rank_at", "due_at"), clock.now()
                ),
                calling_ae_title="ROOM",
            )
            session.add(study)
            session.flush()
            made = Report(
                study_id=study.id,
                kind="comprehensive_3d",
                revision=1,
                generation=1,
                sop_class_uid=SR,
                sop_instance_uid=uid,
                series_instance_uid="2.25.9",
                impression="no_fracture",
                content=report_bytes(),
                sha256="",
                created_at=clock.now(),
            )
            session.add(made)
            session.flush()
            session.add(
                Delivery(
                    report_id=made.id,
                    study_id=study.id,
                    destination=destination,
                    created_at=clock.now(),
                    rank_at=clock.now(),
                    due_at=clock.now(),
                )
            )
        return uid

    def delivered(self, *, reports: int = 1, destination: str = "pacs") -> list[str]:
        """Make and deliver reports; return their SOP Instance UIDs."""
        made = [self.report(destination) for _ in range(reports)]
        while self.deliver():
            pass
        return made

    def deliver(self) -> bool:
        """Send what is due, to the end; return whether there was something."""
        started = self.courier.start_lanes()
        assert self.courier.wait(30)
        return started > 0

    def ask(self) -> int:
        """Ask whatever is due; return how many steps that were."""
        for steps in range(50):
            if not self.committer.ask_next():
                return steps
        raise AssertionError("it never ends")

    def answer(self) -> int:
        """Answer whatever is due."""
        for steps in range(50):
            if not self.committer.answer_next():
                return steps
        raise AssertionError("it never ends")

    @property
    def state(self) -> tuple[DeliveryState, str | None]:
        delivery = self.only(Delivery)
        return delivery.state, delivery.reason

    def receive(self, number: int, sop_class_uid: str = DX) -> Instance:
        """Keep and record an instance as the listener does."""
        source = header(number, sop_class_uid=sop_class_uid)
        key, sha256 = self.spool.put_bytes(f"instance {number}".encode())
        caller = Caller("room", "ROOM", "OSTEON", "127.0.0.1")
        self.intake.record(caller, source, StoredFile(key, len(f"instance {number}"), sha256, 0, "1.2"))
        return Instance(sop_class_uid, source.sop_instance_uid)


@pytest.fixture
def make_site(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*peers: Peer, answer_within: float = 10.0, **settings: Any) -> Site:
        made = make_settings(peers=list(peers), **settings)
        upgrade(made)
        sites.append(Site(made, answer_within=answer_within))
        return sites[-1]

    yield make
    for site in sites:
        site.stop()


def pacs(port: int, **changes: Any) -> Peer:
    values = {"name": "pacs", "ae_title": AE_TITLE, "host": "127.0.0.1", "port": port, "commitment": True}
    return Peer(**({**values, "role": "destination"} | changes))


def room(port: int, **changes: Any) -> Peer:
    values = {"name": "room", "ae_title": "ROOM", "host": "127.0.0.1", "port": port, "provide_commitment": True}
    return Peer(**({**values, "role": "source"} | changes))


# --- asking: the answer comes on the same association ---------------------------------------------------------------


def test_a_report_is_committed_by_an_answer_on_the_association_of_the_request(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    archive.reply = all_committed
    site = make_site(pacs(archive.port), answer_within=60)
    (uid,) = site.delivered()
    assert site.only(Delivery).state is DeliveryState.DELIVERED
    began = time.monotonic()
    assert site.ask() == 1
    assert time.monotonic() - began < 40, "nobody waits any longer than for the answer"
    (asked,) = archive.asked
    delivery, commitment = site.only(Delivery), site.only(Commitment)
    assert asked == Request(commitment.transaction_uid, (Instance(SR, uid),))
    assert asked.transaction_uid.startswith("2.25.")
    assert (delivery.state, delivery.committed_at) == (DeliveryState.COMMITTED, NOON)
    assert (commitment.requested_at, commitment.accepted_at, commitment.answered_at) == (NOON, NOON, NOON)
    assert (commitment.failure_reason, delivery.commit_due_at) == (None, None)
    assert archive.event_statuses == [0x0000], "the answer was acknowledged before the association was released"
    assert "report.committed" in {event.action for event in site.all(AuditEvent)}
    clock.advance(DAY)
    assert site.ask() == 0


@sqlite_alone
def test_an_answer_that_comes_before_the_request_is_acknowledged_counts(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    archive.reply, archive.reply_first = all_committed, True
    site = make_site(pacs(archive.port))
    site.delivered()
    site.ask()
    assert (site.only(Delivery).state, archive.event_statuses) == (DeliveryState.COMMITTED, [0x0000])


def test_one_request_asks_for_all_that_is_due_at_a_destination_and_each_instance_gets_its_own_answer(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    def half(asked: Request) -> Answer:
        return Answer(asked.transaction_uid, asked.instances[:2], (Failure(asked.instances[2], 0x0122),))

    archive.reply = half
    site = make_site(pacs(archive.port))
    made = site.delivered(reports=4)
    assert site.ask() == 2, "one step to ask, one to look at what was answered"
    assert [instance.sop_instance_uid for instance in archive.asked[0].instances] == made
    states = [delivery.state for delivery in site.all(Delivery)]
    assert states == [DeliveryState.COMMITTED] * 2 + [DeliveryState.NEEDS_ATTENTION, DeliveryState.DELIVERED]
    assert len(archive.asked) == 1, "the one that was not named in the answer is asked about when its time has come"
    clock.advance(HOUR)
    archive.reply = all_committed
    site.ask()
    assert [instance.sop_instance_uid for instance in archive.asked[1].instances] == made[3:]


@sqlite_alone
def test_destinations_that_do_not_commit_are_not_asked(make_site: Callable[..., Site], archive: Archive) -> None:
    site = make_site(pacs(archive.port, commitment=False))
    site.delivered()
    assert (site.only(Delivery).commit_due_at, site.ask(), archive.asked) == (None, 0, [])


@sqlite_alone
def test_a_destination_that_the_settings_do_not_want_asked_any_more_is_left_in_peace(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port, commitment=False))
    site.delivered()
    with site.database.write() as session:
        session.execute(update(Delivery).values(commit_due_at=NOON))
    site.ask()
    assert (site.only(Delivery).commit_due_at, site.state[0], archive.asked) == (None, DeliveryState.DELIVERED, [])


# --- asking: the answer comes on an association of its own ----------------------------------------------------------


def test_an_answer_on_a_new_association_is_taken_by_the_listener_also_of_one_who_may_not_store(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port), answer_within=0.0)
    site.listen()
    site.delivered()
    site.ask()
    assert site.state == (DeliveryState.DELIVERED, "commitment_requested")
    assert site.only(Delivery).commit_due_at == NOON + HOUR
    clock.advance(MINUTE)
    assert archive.answer(site.address, all_committed(archive.asked[0])) == [0x0000]
    delivery = site.only(Delivery)
    assert (delivery.state, delivery.committed_at) == (DeliveryState.COMMITTED, NOON + MINUTE)


def test_the_same_answer_twice_changes_nothing_and_committed_is_not_taken_back(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port), answer_within=0.0)
    site.listen()
    site.delivered()
    site.ask()
    (asked,) = archive.asked
    answers = (all_committed(asked), all_committed(asked), all_failed(0x0112)(asked))
    assert archive.answer(site.address, *answers) == [0x0000] * 3
    assert site.state[0] is DeliveryState.COMMITTED
    assert site.only(Commitment).failure_reason is None
    assert [event.action for event in site.all(AuditEvent)].count("report.committed") == 1
    assert site.ask() == 0


@sqlite_alone
def test_what_was_not_asked_is_answered_properly_and_does_no_harm(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(
        pacs(archive.port), pacs(archive.port, name="other", ae_title="OTHER", commitment=False), answer_within=0.0
    )
    site.listen()
    site.delivered()
    site.ask()
    (asked,) = archive.asked
    unknown = Answer("2.25.1", asked.instances)
    stranger, nameless = Instance(SR, "2.25.2"), build_action(asked)
    del nameless.TransactionUID
    assert archive.answer(site.address, unknown, Answer(asked.transaction_uid, (stranger,))) == [0x0115, 0x0000]
    assert archive.answer(site.address, all_committed(asked), calling="OTHER") == [0x0115], "it was asked of another"
    assert archive.answer(site.address, all_committed(asked), event_type=3) == [0x0113]
    assert archive.answer(site.address, all_committed(asked), instance="1.2.3") == [0x0112]
    assert archive.answer(site.address, all_committed(asked), information=nameless) == [0x0115]
    assert site.state[0] is DeliveryState.DELIVERED
    assert site.only(Commitment).answered_at is None
    assert archive.answer(site.address, all_committed(asked)) == [0x0000]
    assert site.state[0] is DeliveryState.COMMITTED


@sqlite_alone
def test_a_caller_who_is_no_destination_or_comes_from_elsewhere_cannot_answer(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    peers = [
        pacs(archive.port),
        room(1),
        pacs(1, name="far", ae_title="FAR", host="192.0.2.1", check_address=True),
    ]
    site = make_site(*peers, answer_within=0.0, listener={"accept_unknown_callers": True})
    site.listen()
    for calling in ("ROOM", "FAR", "STRANGER"):
        assert archive.answer(site.address, Answer("2.25.1", (Instance(SR, "1.2"),)), calling=calling) == [0x0124]


# --- asking: no answer, late answers, refusals ----------------------------------------------------------------------


def test_what_is_not_answered_in_time_is_asked_again_under_a_new_uid_and_ends_where_a_person_sees_it(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port), answer_within=0.0, delivery={"max_commitment_tries": 3})
    site.listen()
    site.delivered()
    for tries in range(1, 4):
        assert site.ask() == 1
        assert len(archive.asked) == tries
        clock.advance(HOUR - MINUTE)
        assert site.ask() == 0, "not before its time"
        clock.advance(MINUTE)
    assert site.state[0] is DeliveryState.DELIVERED
    site.ask()
    assert site.state == (DeliveryState.NEEDS_ATTENTION, "commitment_unanswered")
    assert len(archive.asked) == len({asked.transaction_uid for asked in archive.asked}) == 3
    # An answer that comes late, to the oldest of the transactions, still counts.
    clock.advance(DAY)
    assert archive.answer(site.address, all_committed(archive.asked[0])) == [0x0000]
    assert site.state[0] is DeliveryState.COMMITTED


@sqlite_alone
def test_a_late_failure_of_an_old_transaction_changes_nothing(make_site: Callable[..., Site], archive: Archive) -> None:
    site = make_site(pacs(archive.port), answer_within=0.0)
    site.listen()
    site.delivered()
    site.ask()
    clock.advance(HOUR)
    site.ask()
    before = site.only(Delivery).commit_due_at
    assert archive.answer(site.address, all_failed(0x0122)(archive.asked[0])) == [0x0000]
    assert site.ask() == 0
    assert (site.state[0], site.only(Delivery).commit_due_at) == (DeliveryState.DELIVERED, before)


@sqlite_alone
@pytest.mark.parametrize("reason", [0x0119, 0x0122, 0x0131])
def test_a_failure_that_does_not_pass_by_waiting_needs_attention(
    make_site: Callable[..., Site], archive: Archive, reason: int
) -> None:
    archive.reply = all_failed(reason)
    site = make_site(pacs(archive.port))
    site.delivered()
    site.ask()
    name = {0x0119: "class_instance_conflict", 0x0122: "referenced_sop_class_not_supported"}
    expected = f"commitment_{name.get(reason, 'duplicate_transaction_uid')}"
    assert site.state == (DeliveryState.NEEDS_ATTENTION, expected)
    assert site.only(Commitment).failure_reason == reason
    assert (len(archive.asked), site.ask()) == (1, 0)


@sqlite_alone
@pytest.mark.parametrize("reason", [0x0110, 0x0213, 0x4711])
def test_a_failure_that_may_pass_is_asked_about_again_after_growing_waits(
    make_site: Callable[..., Site], archive: Archive, reason: int
) -> None:
    archive.reply = all_failed(reason)
    site = make_site(pacs(archive.port), delivery={"max_commitment_tries": 4, "first_wait": 8})
    site.delivered()
    asked_at = []
    for _ in range(100):
        before = len(archive.asked)
        site.ask()
        asked_at += [clock.now()] * (len(archive.asked) - before)
        clock.advance(timedelta(seconds=2))
    waits = [(later - earlier).total_seconds() for earlier, later in pairwise(asked_at)]
    assert len(waits) == 3
    assert all(base <= wait <= base * 1.25 + 4 for wait, base in zip(waits, (8, 16, 32), strict=True)), waits
    assert site.state[0] is DeliveryState.NEEDS_ATTENTION
    assert site.state[1] == {0x0110: "commitment_processing_failure", 0x0213: "commitment_resource_limitation"}.get(
        reason, "commitment_4711"
    )


@sqlite_alone
def test_what_the_archive_does_not_have_is_sent_again_for_a_bounded_number_of_rounds(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    archive.reply = all_failed(0x0112)
    site = make_site(pacs(archive.port))
    site.delivered()
    for rounds in range(1, MOST_ROUNDS + 1):
        site.ask()
        assert site.state == (DeliveryState.DUE, "commitment_no_such_object_instance")
        assert len(archive.asked) == rounds
        assert site.deliver()
        assert (len(archive.stored), len(set(archive.stored))) == (rounds + 1, 1)
        assert site.only(Delivery).tries == 1, "it has all its tries again"
    site.ask()
    assert site.state == (DeliveryState.NEEDS_ATTENTION, "commitment_no_such_object_instance")
    assert site.ask() == 0


@sqlite_alone
def test_what_was_sent_again_is_committed_when_the_archive_has_it(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    archive.reply = all_failed(0x0112)
    site = make_site(pacs(archive.port))
    site.delivered()
    site.ask()
    archive.reply = all_committed
    assert site.deliver()
    site.ask()
    assert site.state[0] is DeliveryState.COMMITTED


@sqlite_alone
@pytest.mark.parametrize("status", [0x0124, 0x0112, 0x0122])
def test_a_request_that_is_refused_for_good_needs_attention(
    make_site: Callable[..., Site], archive: Archive, status: int
) -> None:
    archive.action_status = status
    site = make_site(pacs(archive.port))
    site.delivered()
    site.ask()
    assert site.state == (DeliveryState.NEEDS_ATTENTION, "commitment_refused")
    assert site.only(Commitment).accepted_at is None


@sqlite_alone
def test_a_destination_without_storage_commitment_needs_attention(make_site: Callable[..., Site]) -> None:
    archive = Archive(commits=False)
    try:
        site = make_site(pacs(archive.port))
        site.delivered()
        site.ask()
    finally:
        archive.stop()
    assert site.state == (DeliveryState.NEEDS_ATTENTION, "commitment_not_supported")


@sqlite_alone
def test_a_request_that_is_refused_for_now_is_made_again_after_a_wait(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    archive.action_status, archive.reply = 0x0213, all_committed
    site = make_site(pacs(archive.port))
    site.delivered()
    assert site.ask() == 1
    assert site.state == (DeliveryState.DELIVERED, "commitment_refused_for_now")
    archive.action_status = 0x0000
    clock.advance(timedelta(seconds=4))
    assert site.ask() == 0
    clock.advance(timedelta(seconds=3))
    assert site.ask() == 1
    assert site.state[0] is DeliveryState.COMMITTED
    assert len({commitment.transaction_uid for commitment in site.all(Commitment)}) == 2


def test_a_destination_that_is_down_is_asked_once_for_a_batch_and_all_else_that_is_due_there_waits(
    make_site: Callable[..., Site], archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.commit.MOST_ASKED", 2)
    port = free_port()
    site = make_site(pacs(archive.port), pacs(port, name="down", ae_title="DOWN"))
    archive.reply = all_committed
    for _ in range(5):
        site.report("down")
    with site.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.DELIVERED, commit_due_at=NOON))
    clock.advance(timedelta(seconds=1))
    site.delivered()
    assert site.ask() == 2, "one try at the destination that is down, one at the other"
    *down, other = site.all(Delivery)
    assert other.state is DeliveryState.COMMITTED
    assert [delivery.commit_tries for delivery in down] == [1, 1, 0, 0, 0]
    assert all(delivery.commit_due_at > clock.now() for delivery in down)


def test_a_courier_that_dies_after_it_asked_is_followed_by_one_that_asks_again_and_the_first_answer_counts(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port), answer_within=0.0)
    site.listen()
    site.delivered()
    _, batch = site.committer._take("pacs")
    assert batch is not None
    assert site.ask() == 0, "the batch is taken"
    clock.advance(timedelta(minutes=5))
    assert site.ask() == 1
    (asked,) = archive.asked
    assert asked.transaction_uid != batch.asked.transaction_uid
    assert archive.answer(site.address, all_committed(batch.asked)) == [0x0000]
    assert site.state[0] is DeliveryState.COMMITTED


# --- answering senders ------------------------------------------------------------------------------------------------


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.stop()


def test_a_sender_is_told_that_what_we_have_is_committed(make_site: Callable[..., Site], sender: Sender) -> None:
    site = make_site(room(sender.port))
    site.listen()
    asked = Request("2.25.77", (site.receive(1), site.receive(2)))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    recorded = site.only(CommitmentRequest)
    assert (recorded.state, recorded.peer) == (CommitmentRequestState.DUE, "room")
    assert sender.answers == []
    assert site.answer() == 1
    ((event_type, information),) = sender.answers
    assert (event_type, information.TransactionUID) == (1, "2.25.77")
    assert uids(information.ReferencedSOPSequence) == [instance.sop_instance_uid for instance in asked.instances]
    assert "FailedSOPSequence" not in information
    recorded = site.only(CommitmentRequest)
    assert (recorded.state, recorded.answered_at) == (CommitmentRequestState.ANSWERED, NOON)


def test_a_sender_is_told_of_each_instance_why_it_is_not_committed(
    make_site: Callable[..., Site], sender: Sender
) -> None:
    site = make_site(room(sender.port))
    site.listen()
    good, removed, missing, cut, replaced = (site.receive(number) for number in range(1, 6))
    with site.database.write() as session:
        keys = {
            image.sop_instance_uid: file
            for image, file in session.execute(select(Image, File).join(File, File.image_id == Image.id)).all()
        }
        keys[removed.sop_instance_uid].removed_at = NOON
        session.execute(
            update(Image).where(Image.sop_instance_uid == replaced.sop_instance_uid).values(replaced_at=NOON)
        )
    site.spool.delete(keys[missing.sop_instance_uid].key)
    key = keys[cut.sop_instance_uid].key
    (site.spool.root / key[:2] / key[2:]).write_bytes(b"in")
    other_class, unknown = Instance("1.2.3", good.sop_instance_uid), Instance(DX, "1.2.3.4.99")
    named = (removed, missing, cut, replaced, unknown, other_class)
    asked = Request("2.25.78", (site.receive(6), *named))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    site.answer()
    ((event_type, information),) = sender.answers
    assert event_type == 2
    assert uids(information.ReferencedSOPSequence) == ["1.2.3.4.6"]
    assert [item.FailureReason for item in information.FailedSOPSequence] == [
        0x0110,
        0x0110,
        0x0110,
        0x0112,
        0x0112,
        0x0119,
    ]
    assert uids(information.FailedSOPSequence) == [instance.sop_instance_uid for instance in named]


def test_the_same_request_again_is_one_and_is_answered_again_and_another_under_its_uid_is_refused(
    make_site: Callable[..., Site], sender: Sender
) -> None:
    site = make_site(room(sender.port))
    site.listen()
    asked = Request("2.25.79", (site.receive(1),))
    for _ in range(2):
        assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    assert site.answer() == 1
    other = Request(asked.transaction_uid, (site.receive(2),))
    assert request_commitment(site.address, build_action(other), calling="ROOM") == 0x0210
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    assert site.answer() == 1
    assert len(sender.answers) == 2
    assert len(site.all(CommitmentRequest)) == 1


@sqlite_alone
def test_a_request_that_is_none_is_refused_with_its_status_and_leaves_no_record(
    make_site: Callable[..., Site], sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(room(sender.port))
    site.listen()
    whole = build_action(Request("2.25.80", (Instance(DX, "1.2.3"),)))
    nameless = build_action(Request("2.25.80", (Instance(DX, "1.2.3"),)))
    del nameless.TransactionUID
    empty = Dataset()
    empty.TransactionUID = "2.25.80"
    for information, status in ((nameless, 0x0115), (empty, 0x0115), (None, 0x0115)):
        assert request_commitment(site.address, information, calling="ROOM") == status
    assert request_commitment(site.address, whole, calling="ROOM", action=2) == 0x0123
    assert request_commitment(site.address, whole, calling="ROOM", instance="1.2.3") == 0x0112
    monkeypatch.setattr("dicom_node.commitment.MOST_BYTES", 100)
    many = build_action(Request("2.25.80", tuple(Instance(DX, f"1.2.{n}") for n in range(9))))
    assert request_commitment(site.address, many, calling="ROOM") == 0x0213
    assert site.all(CommitmentRequest) == []


@sqlite_alone
@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"Planted^Person " * 4, b"\x08\x00\x95\x11UI\xff\xff1.2"])
def test_garbage_is_refused_and_the_association_after_it_is_served(
    make_site: Callable[..., Site], sender: Sender, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    site = make_site(room(sender.port))
    site.listen()
    whole = build_action(Request("2.25.86", (site.receive(1),)))
    with monkeypatch.context() as instead:
        instead.setattr("pynetdicom.association.encode", lambda *_: garbage)
        assert request_commitment(site.address, whole, calling="ROOM") in (0x0115, 0x0212)
    assert site.all(CommitmentRequest) == []
    assert request_commitment(site.address, whole, calling="ROOM") == 0x0000


@sqlite_alone
def test_what_cannot_be_recorded_is_not_accepted(
    make_site: Callable[..., Site], sender: Sender, archive: Archive
) -> None:
    site = make_site(room(sender.port), pacs(archive.port), answer_within=0.0)
    site.listen()
    site.delivered()
    site.ask()
    whole = build_action(Request("2.25.87", (site.receive(1),)))
    with hidden(site, "commitment_requests", "commitments"):
        assert request_commitment(site.address, whole, calling="ROOM") == 0x0110
        assert archive.answer(site.address, all_committed(archive.asked[0])) == [0x0110]
    assert request_commitment(site.address, whole, calling="ROOM") == 0x0000
    assert archive.answer(site.address, all_committed(archive.asked[0])) == [0x0000]
    assert (len(site.all(CommitmentRequest)), site.state[0]) == (1, DeliveryState.COMMITTED)


@contextmanager
def hidden(site: Site, *tables: str) -> Iterator[None]:
    """The database works, but not for these tables."""

    def rename(suffix: str, to: str) -> None:
        with site.database.engine.begin() as connection:
            for table in tables:
                connection.exec_driver_sql(f"ALTER TABLE {table}{suffix} RENAME TO {table}{to}")

    rename("", "_hidden")
    yield
    rename("_hidden", "")


@sqlite_alone
def test_more_messages_at_once_than_there_are_places_are_refused_for_now(
    make_site: Callable[..., Site], sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.commitment.MOST_AT_ONCE", 1)
    site = make_site(room(sender.port))
    site.listen()
    whole = build_action(Request("2.25.88", (site.receive(1),)))
    first: list[int | None] = []
    with site.database.write() as session:
        # Whoever has the one place waits for this writer.
        session.execute(update(Image).values(reason=Image.reason))
        waiting = threading.Thread(
            target=lambda: first.append(request_commitment(site.address, whole, calling="ROOM")), daemon=True
        )
        waiting.start()
        assert site.listener is not None
        places = site.listener._commitment._places
        wait_until(lambda: places._value == 0, what="the place is taken")
        assert request_commitment(site.address, whole, calling="ROOM") == 0x0213
    waiting.join(30)
    assert first == [0x0000]
    assert request_commitment(site.address, whole, calling="ROOM") == 0x0000


@sqlite_alone
def test_a_peer_that_may_not_ask_is_refused_and_where_none_may_there_is_no_context(
    make_site: Callable[..., Site], sender: Sender
) -> None:
    whole = build_action(Request("2.25.81", (Instance(DX, "1.2.3"),)))
    site = make_site(room(sender.port), Peer(name="ward", ae_title="WARD", role="source"))
    site.listen()
    assert request_commitment(site.address, whole, calling="WARD") == 0x0124
    assert site.all(CommitmentRequest) == []


@sqlite_alone
def test_without_a_peer_that_has_to_do_with_it_storage_commitment_is_not_negotiated(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(Peer(name="ward", ae_title="WARD", role="source"))
    site.listen()
    assert request_commitment(site.address, Dataset(), calling="WARD") is None


@sqlite_alone
def test_a_peer_cannot_have_more_than_its_share_of_requests_wait(
    make_site: Callable[..., Site], sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.commitment_record.MOST_OPEN_REQUESTS", 2)
    site = make_site(room(sender.port))
    site.listen()
    instance = site.receive(1)
    statuses = [
        request_commitment(site.address, build_action(Request(f"2.25.{n}", (instance,))), calling="ROOM")
        for n in (1, 2, 3, 1)
    ]
    assert statuses == [0x0000, 0x0000, 0x0213, 0x0000]
    site.answer()
    assert request_commitment(site.address, build_action(Request("2.25.3", (instance,))), calling="ROOM") == 0x0000


def test_a_sender_that_is_away_is_told_later_also_by_a_node_that_was_started_again(
    make_site: Callable[..., Site], make_settings: Callable[..., Settings]
) -> None:
    port = free_port()
    site = make_site(room(port), port=free_port())
    site.listen()
    asked = Request("2.25.82", (site.receive(1),))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    assert site.answer() == 1
    recorded = site.only(CommitmentRequest)
    assert (recorded.state, recorded.reason) == (CommitmentRequestState.DUE, "not_reached")
    assert recorded.due_at >= NOON + timedelta(seconds=5)
    assert site.listener is not None
    site.listener.stop()
    site.listener = None
    again = Site(make_settings(peers=[room(port)], port=free_port()))
    sender = Sender(port=port)
    try:
        assert again.answer() == 0
        clock.advance(timedelta(seconds=10))
        assert again.answer() == 1
        assert [event_type for event_type, _ in sender.answers] == [1]
        assert again.only(CommitmentRequest).state is CommitmentRequestState.ANSWERED
    finally:
        sender.stop()
        again.stop()


@sqlite_alone
@pytest.mark.parametrize(
    ("status", "state"),
    [(0x0115, CommitmentRequestState.NEEDS_ATTENTION), (0x0110, CommitmentRequestState.DUE)],
)
def test_a_sender_that_does_not_take_its_answer_is_tried_again_unless_it_never_will(
    make_site: Callable[..., Site], sender: Sender, status: int, state: CommitmentRequestState
) -> None:
    sender.status = lambda: status
    site = make_site(room(sender.port))
    site.listen()
    asked = Request("2.25.83", (site.receive(1),))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    site.answer()
    assert site.only(CommitmentRequest).state is state


@sqlite_alone
def test_an_answer_that_is_never_taken_ends_where_a_person_sees_it(make_site: Callable[..., Site]) -> None:
    site = make_site(room(free_port()), delivery={"max_tries": 2})
    site.listen()
    asked = Request("2.25.84", (site.receive(1),))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    for _ in range(3):
        site.answer()
        clock.advance(DAY)
    recorded = site.only(CommitmentRequest)
    assert (recorded.state, recorded.tries) == (CommitmentRequestState.NEEDS_ATTENTION, 2)


# --- asked again by a person, on the command line ---------------------------------------------------------------------


@pytest.fixture
def osteon(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command with a site's settings, and gives what it printed."""

    def run(site: Site, *arguments: str, status: int = 0) -> str:
        monkeypatch.setattr("console.deliveries.load_settings", lambda: site.settings)
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == status, done.output
        return done.output

    return run


def test_a_person_sees_what_was_not_committed_and_has_it_asked_for_again_without_sending_it_again(
    make_site: Callable[..., Site], archive: Archive, osteon: Callable[..., str]
) -> None:
    archive.reply = all_failed(0x0122)
    site = make_site(pacs(archive.port))
    site.delivered()
    (waits,) = json.loads(osteon(site, "deliveries", "--json", "--state", "delivered"))["deliveries"]
    assert waits["next_try"] == "now"
    site.ask()
    (shown,) = json.loads(osteon(site, "deliveries", "--json"))["deliveries"]
    reason = "commitment_referenced_sop_class_not_supported"
    assert (shown["state"], shown["reason"], shown["next_try"]) == ("needs_attention", reason, None)
    assert osteon(site, "retry", str(shown["id"])) == "1 commitment is due to be asked for now\n"
    archive.reply = all_committed
    assert (site.deliver(), site.ask()) == (False, 1)
    assert site.state == (DeliveryState.COMMITTED, "committed")
    assert len(archive.stored) == 1
    assert len({asked.transaction_uid for asked in archive.asked}) == len(archive.asked) == 2
    (retried,) = [event for event in site.all(AuditEvent) if event.action == "report.commitment.retry"]
    assert (retried.subject_id, retried.details["reason"]) == (shown["id"], reason)
    assert retried.actor == f"{getpass.getuser()}@{socket.gethostname()}"
    assert "neither due nor in need of attention: 1" in osteon(site, "retry", str(shown["id"]), status=1)


@sqlite_alone
def test_what_the_archive_does_not_have_is_sent_again_where_a_person_asks_again(
    make_site: Callable[..., Site], archive: Archive, osteon: Callable[..., str]
) -> None:
    archive.reply = all_failed(0x0112)
    site = make_site(pacs(archive.port))
    site.delivered()
    for _ in range(MOST_ROUNDS + 1):
        site.ask()
        site.deliver()
    assert site.state == (DeliveryState.NEEDS_ATTENTION, "commitment_no_such_object_instance")
    before = len(archive.stored)
    assert osteon(site, "retry", "--destination", "pacs") == "1 delivery is due now\n"
    archive.reply = all_committed
    assert (site.deliver(), site.ask()) == (True, 1)
    assert site.state[0] is DeliveryState.COMMITTED
    assert len(archive.stored) == before + 1


def test_a_person_sees_which_sender_was_never_told_and_has_it_told_again(
    make_site: Callable[..., Site], osteon: Callable[..., str]
) -> None:
    port = free_port()
    site = make_site(room(port), port=free_port(), delivery={"max_tries": 1})
    ask_a_site(site, 3)
    assert site.answer() == 3
    shown = json.loads(osteon(site, "deliveries", "--json"))["requests"]
    assert [(row["sender"], row["instances"], row["state"], row["reason"], row["next_try"]) for row in shown] == [
        ("room", 1, "needs_attention", "not_reached", None)
    ] * 3
    few = json.loads(osteon(site, "deliveries", "--json", "--limit", "1"))
    assert (len(few["requests"]), few["more_requests"]) == (1, 2)
    assert json.loads(osteon(site, "deliveries", "--json", "--state", "committed"))["requests"] == []
    assert osteon(site, "retry", "--request", str(shown[0]["id"])) == "1 request is due to be answered now\n"
    told = Sender(port=port)
    try:
        assert site.answer() == 1
        assert [str(answer.TransactionUID) for _, answer in told.answers] == ["2.25.1"]
        assert osteon(site, "retry", "--sender", "elsewhere") == "0 requests are due to be answered now\n"
        assert osteon(site, "retry", "--all") == "0 deliveries are due now\n2 requests are due to be answered now\n"
        assert site.answer() == 2
    finally:
        told.stop()
    assert {row.state for row in site.all(CommitmentRequest)} == {CommitmentRequestState.ANSWERED}
    retried = [event for event in site.all(AuditEvent) if event.action == "commitment.answer.retry"]
    assert [event.subject_id for event in retried] == [row["id"] for row in shown]
    assert "neither due nor in need of attention: 1" in osteon(site, "retry", "--request", "1", status=1)


@sqlite_alone
def test_as_processes_the_commands_do_the_same(
    make_site: Callable[..., Site], archive: Archive, tmp_path: Path
) -> None:
    archive.reply = all_failed(0x0119)
    site = make_site(pacs(archive.port), room(free_port()), delivery={"max_tries": 1})
    site.delivered()
    site.ask()
    ask_a_site(site, 1)
    site.answer()
    node = Node(site.settings, tmp_path / "log")
    shown = node.run("deliveries").stdout
    assert "commitment_class_instance_conflict" in shown
    assert "Requests for storage commitment" in shown
    expected = "1 commitment is due to be asked for now\n1 request is due to be answered now\n"
    assert node.run("retry", "--all").stdout == expected
    node.database.close()
    assert site.state[0] is DeliveryState.DELIVERED
    assert site.only(CommitmentRequest).state is CommitmentRequestState.DUE


def ask_a_site(site: Site, requests: int) -> None:
    """Ask it to commit one instance with each request."""
    site.listen()
    for number in range(1, requests + 1):
        asked = Request(f"2.25.{number}", (site.receive(number),))
        assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000


# --- the parts that do it ---------------------------------------------------------------------------------------------


@sqlite_alone
def test_one_step_asks_and_the_next_answers_so_that_neither_waits_for_all_of_the_other(
    make_site: Callable[..., Site], archive: Archive, sender: Sender
) -> None:
    site = make_site(pacs(archive.port), pacs(archive.port, name="second"), room(sender.port))
    site.listen()
    instance = site.receive(1)
    for number in (1, 2):
        asked = build_action(Request(f"2.25.{number}", (instance,)))
        assert request_commitment(site.address, asked, calling="ROOM") == 0x0000
    site.delivered()
    site.delivered(destination="second")
    archive.reply = all_committed
    done = []
    while site.committer.commit_next():
        done.append((len(sender.answers), len(archive.asked)))
    assert done == [(1, 0), (1, 1), (2, 1), (2, 2)]


def test_a_destination_and_a_sender_that_take_no_connection_hold_up_no_other(
    make_site: Callable[..., Site], archive: Archive, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.commit.MOST_ASKED", 1)
    with black_hole() as nowhere, black_hole() as nobody:
        site = make_site(
            pacs(nowhere, name="away", ae_title="AWAY"),
            pacs(archive.port),
            room(nobody, name="gone", ae_title="GONE"),
            room(sender.port),
            delivery={"timeout": 60},
        )
        archive.reply = all_committed
        for destination in ("away", "away", "away", "away", "pacs"):
            site.report(destination)
        with site.database.write() as session:
            session.execute(update(Delivery).values(state=DeliveryState.DELIVERED, commit_due_at=NOON))
        site.listen()
        for number, calling in enumerate(("GONE", "ROOM"), start=1):
            asked = build_action(Request(f"2.25.{number}", (site.receive(number),)))
            assert request_commitment(site.address, asked, calling=calling) == 0x0000
        desk = Desk(site.committer, MINUTE)
        for _ in range(4):
            assert desk.attend()
        wait_until(lambda: sender.answers, what="the sender that is there is answered")
        wait_until(lambda: site.all(Delivery)[-1].state is DeliveryState.COMMITTED, what="the other is committed")
        assert not desk.wait(0), "the others are still being called"
        *away, _ = site.all(Delivery)
        assert sorted(delivery.commit_tries for delivery in away) == [0, 0, 0, 1]
        assert [request.answered_at for request in site.all(CommitmentRequest)] == [None, NOON]
    assert desk.wait(30)
    *away, _ = site.all(Delivery)
    assert {delivery.reason for delivery in away} == {None, "commitment_not_reached"}
    assert all(delivery.commit_due_at > clock.now() for delivery in away)
    gone = site.all(CommitmentRequest)[0]
    assert gone.reason == "not_reached"
    assert gone.due_at > clock.now()


@sqlite_alone
def test_a_courier_goes_on_at_once_while_a_destination_takes_no_connection_and_forgets_nothing_when_it_stops(
    make_site: Callable[..., Site],
) -> None:
    with black_hole() as nowhere:
        site = make_site(pacs(nowhere), delivery={"timeout": 60})
        site.report()
        with site.database.write() as session:
            session.execute(update(Delivery).values(state=DeliveryState.DELIVERED, commit_due_at=NOON))
        with make_app(site.settings) as app:
            bundle = Bundle.load(default_bundle_path())
            worker = Worker(site.settings, app, frozenset((Work.REPORT, Work.COMMIT)), bundle)
            began = time.monotonic()
            assert worker.do(Work.COMMIT)
            assert not worker.do(Work.REPORT)
            assert time.monotonic() - began < 9, "to connect takes ten seconds"
            wait_until(lambda: site.all(Commitment), what="it is being asked")
            worker.stop()
            assert time.monotonic() - began < 9
        worker.database.close()
    assert site.ask() == 0, "not yet: the one that was left behind may still be at it"
    clock.advance(time_limit(Work.COMMIT, site.settings))
    assert site.ask() == 1
    assert len(site.all(Commitment)) == 2


@sqlite_alone
def test_no_more_threads_than_there_are_places_talk_to_peers_and_a_process_of_which_one_hangs_says_so(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.desk.AT_ONCE", 2)
    site = make_site()
    told_to_go_on = threading.Event()
    monkeypatch.setattr(site.committer, "commit_next", lambda: told_to_go_on.wait(30) and False)
    desk = Desk(site.committer, timedelta(seconds=0.2))
    assert [desk.attend() for _ in range(3)] == [True, True, False]
    assert not desk.hangs
    wait_until(lambda: desk.hangs, what="it is late")
    told_to_go_on.set()
    assert desk.wait(10)
    assert not desk.hangs
    assert desk.attend()
    desk.close()
    assert not desk.attend()


# --- hints ------------------------------------------------------------------------------------------------------------


def test_the_sweeper_asks_for_each_destination_and_each_request_that_is_due(
    make_site: Callable[..., Site], archive: Archive
) -> None:
    site = make_site(pacs(archive.port), pacs(archive.port, name="second"), room(1))

    def count(at_most: int = 50) -> int:
        with site.database.read() as session:
            return count_claimable(session, Work.COMMIT, at_most=at_most)

    assert count() == 0
    site.delivered(reports=3)
    site.delivered(destination="second")
    assert count() == 2
    site.listen()
    asked = Request("2.25.85", (site.receive(1),))
    assert request_commitment(site.address, build_action(asked), calling="ROOM") == 0x0000
    assert (count(), count(2)) == (3, 2)
    assert claim(site.database, Work.COMMIT, limit=MINUTE) is not None
    archive.reply = all_committed
    site.ask()
    assert count() == 0
