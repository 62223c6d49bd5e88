"""Storage commitment (PS3.4 Annex J), both ways: ask destinations to commit reports, and answer senders who ask us.

A delivery that is to be committed has a time at which it is looked at next, `commit_due_at`. Whoever takes a batch,
up to `MOST_ASKED` deliveries to one destination, moves that time ahead in the same transaction, so that no other takes
them, and after a crash they are due again; a lease is not needed. Each request has a new Transaction UID, and its rows
are written before it is sent, since the answer may be here before the acknowledgement.

What follows for a delivery whose time has come:

================================  ==================================================================================
what was answered last            what is done
================================  ==================================================================================
nothing was asked yet             ask
not accepted, for now             ask after growing waits
not accepted, for good            `needs_attention`
no answer in `commitment_wait`    ask again
committed                         (was done when the answer came: `committed`)
0112 no such object instance      send again, then ask again; after `MOST_ROUNDS` times `needs_attention`
0110, 0213, any other             ask again after growing waits
0119, 0122, 0131                  `needs_attention`
================================  ==================================================================================

All asking of one delivery ends after `delivery.max_commitment_tries` requests in `needs_attention`; an answer
"committed" that comes later still counts.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from dicom_node.commitment import Answer, Failure, FailureReason, Instance, Request, ask, tell
from dicom_node.commitment_record import CommitmentRecord, instances_of
from dicom_node.sender import Destination, Outcome, Result
from dicom_node.spool import Spool
from models import audit, clock, logs
from models.database import Database, database_now
from models.settings import Peer, Settings
from models.tables import (
    Commitment,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    Report,
)
from worker.claims import Claim, LeaseLost, Work, claim, claimable, is_to_be_asked, release, still_held, time_limit
from worker.leases import kept_alive
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy

MOST_ASKED = 100
"""Deliveries in one request."""
MOST_ROUNDS = 3
"""How often a report that its destination does not have is sent again."""
ANSWER_WITHIN_SECONDS = 3.0
"""How long the association of a request stays open for its answer; most archives answer on a new one."""
REASONS_BEGIN = "commitment_"
"""The reasons of deliveries that arrived, but were not committed."""
UNANSWERED = f"{REASONS_BEGIN}unanswered"
NOT_THERE = f"{REASONS_BEGIN}{FailureReason.NO_SUCH_OBJECT_INSTANCE.name.lower()}"
_LOOKED_UP_AT_ONCE = 500
_FOR_GOOD = (
    FailureReason.CLASS_INSTANCE_CONFLICT,
    FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED,
    FailureReason.DUPLICATE_TRANSACTION_UID,
)
log = logs.get("commit")


class _Next(Enum):
    """What is done about a delivery."""

    ASK = "ask"
    WAIT = "wait"
    SEND_AGAIN = "send_again"
    GIVE_UP = "give_up"


@dataclass(frozen=True)
class _Batch:
    """What one request names."""

    peer: Peer
    asked: Request
    tries: dict[int, int]
    """How often each delivery was asked about, this time included, by its id."""


class Committer:
    """Does one request or one answer at a time, of each in turn.

    Threads may share one (worker.desk): while one has to do with a peer, the others leave that peer alone.
    """

    def __init__(self, settings: Settings, database: Database, *, answer_within: float = ANSWER_WITHIN_SECONDS) -> None:
        self._settings = settings
        self._database = database
        self._answer_within = answer_within
        self._spool = Spool(settings.data_dir / "spool")
        self._limit = time_limit(Work.COMMIT, settings)
        delivery = settings.delivery
        self._asking = RetryPolicy(delivery.first_wait, delivery.longest_wait, delivery.max_commitment_tries)
        self._answering = RetryPolicy(delivery.first_wait, delivery.longest_wait, delivery.max_tries)
        self._record = CommitmentRecord(database, part="courier")
        self._actor = audit.part_actor("courier")
        self._answer_first = False
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def commit_next(self) -> bool:
        """Ask one destination, or answer one sender. Return whether there was something to do."""
        self._answer_first = not self._answer_first
        first, second = self.answer_next, self.ask_next
        return first() or second() if self._answer_first else second() or first()

    @contextmanager
    def _alone_with(self, pick: Callable[[Session, list[str]], str | None]) -> Iterator[str | None]:
        """Give the peer that is picked, among others than those that threads of this process have to do with."""
        with self._lock:
            with self._database.read() as session:
                peer = pick(session, sorted(self._busy))
            if peer is not None:
                self._busy.add(peer)
        try:
            yield peer
        finally:
            with self._lock:
                self._busy.discard(peer or "")

    # --- asking destinations --------------------------------------------------------------------------------------

    def ask_next(self) -> bool:
        """Look at what is due of one destination, and ask it. Return whether there was something."""
        with self._alone_with(_to_be_asked) as name:
            if name is None:
                return False
            found, batch = self._take(name)
            if batch is not None:
                self._asked(batch, self._ask(batch))
            return found

    def _ask(self, batch: _Batch) -> Outcome:
        try:
            return ask(
                _address(batch.peer, self._settings),
                batch.asked,
                calling_ae_title=self._settings.ae_title,
                timeout=self._settings.delivery.timeout,
                answer_within=self._answer_within,
                on_answer=lambda answer: self._record.answered([batch.peer.name], answer),
            )
        except Exception as error:
            log.error("commitment not asked for", destination=batch.peer.name, exc_info=error)
            return Outcome(Result.FAILED, type(error).__name__)

    def _take(self, name: str) -> tuple[bool, _Batch | None]:
        """Take what is due of a destination; tell whether there was something."""
        peer = self._settings.peer(name)
        if peer is None or not peer.commitment or peer.host is None:
            self._leave_in_peace(name)
            return True, None
        with self._database.write() as session:
            due = session.scalars(
                select(Delivery)
                .where(is_to_be_asked(), Delivery.destination == name)
                .order_by(Delivery.commit_due_at, Delivery.id)
                .limit(MOST_ASKED)
                .with_for_update(skip_locked=True)
            ).all()
            asked = self._decide_all(session, due)
            return bool(due), self._request(session, peer, asked) if asked else None

    def _leave_in_peace(self, name: str) -> None:
        """The settings do not want this destination asked (any more)."""
        with self._database.write() as session:
            session.execute(
                update(Delivery).where(Delivery.destination == name, is_to_be_asked()).values(commit_due_at=None)
            )
        log.info("not asked to commit any more", destination=name)

    def _decide_all(self, session: Session, due: Sequence[Delivery]) -> list[Delivery]:
        """Do what follows from the last answers; return the deliveries to ask about."""
        ids = [delivery.id for delivery in due]
        transactions = session.scalars(
            select(Commitment).where(Commitment.delivery_id.in_(ids)).order_by(Commitment.id)
        ).all()
        last = {commitment.delivery_id: commitment for commitment in transactions}
        missing = Counter(
            commitment.delivery_id
            for commitment in transactions
            if commitment.failure_reason == FailureReason.NO_SUCH_OBJECT_INSTANCE
        )
        asked = []
        for delivery in due:
            step, reason, until = self._decide(delivery, last.get(delivery.id), missing[delivery.id])
            if step is _Next.ASK:
                asked.append(delivery)
            elif step is _Next.WAIT:
                delivery.commit_due_at = until
            elif step is _Next.SEND_AGAIN:
                self._send_again(session, delivery)
            else:
                self._give_up(session, delivery, reason)
        return asked

    def _decide(self, delivery: Delivery, last: Commitment | None, missing: int) -> tuple[_Next, str, datetime | None]:
        """Return what is done about a delivery, why, and when: the table above."""
        wait = self._asking.next_wait(delivery.commit_tries)
        if last is None or delivery.commit_tries == 0:
            # Not asked since it was sent (again).
            return _Next.ASK, "", None
        if last.failure_reason is None:
            used_up = delivery.commit_tries >= self._asking.most
            return (_Next.GIVE_UP if used_up else _Next.ASK), UNANSWERED, None
        reason = _name_of(last.failure_reason)
        if last.failure_reason == FailureReason.NO_SUCH_OBJECT_INSTANCE:
            return (_Next.SEND_AGAIN if missing <= MOST_ROUNDS else _Next.GIVE_UP), reason, None
        if last.failure_reason in _FOR_GOOD or wait is None:
            return _Next.GIVE_UP, reason, None
        # The answer may have waited for a courier for longer than that.
        until = (last.answered_at or last.requested_at) + wait
        return (_Next.ASK if until <= clock.now() else _Next.WAIT), "", until

    def _request(self, session: Session, peer: Peer, asked: Sequence[Delivery]) -> _Batch:
        """Write down what is going to be asked."""
        now = clock.now()
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        named = {
            report_id: Instance(sop_class_uid, sop_instance_uid)
            for report_id, sop_class_uid, sop_instance_uid in session.execute(
                select(Report.id, Report.sop_class_uid, Report.sop_instance_uid).where(
                    Report.id.in_([delivery.report_id for delivery in asked])
                )
            )
        }
        for delivery in asked:
            session.add(Commitment(delivery_id=delivery.id, transaction_uid=transaction_uid, requested_at=now))
            delivery.commit_tries += 1
            # Should this process not live to say what became of it.
            delivery.commit_due_at = now + self._limit
        instances = tuple(dict.fromkeys(named[delivery.report_id] for delivery in asked))
        tries = {delivery.id: delivery.commit_tries for delivery in asked}
        return _Batch(peer, Request(transaction_uid, instances), tries)

    def _asked(self, batch: _Batch, outcome: Outcome) -> None:
        """Record whether the destination accepted the request. What it has answered meanwhile stays as it is."""
        now = clock.now()
        accepted = outcome.result is Result.DELIVERED
        with self._database.write() as session:
            rows = session.execute(
                select(Delivery, Commitment)
                .join(Commitment, Commitment.delivery_id == Delivery.id)
                .where(Commitment.transaction_uid == batch.asked.transaction_uid)
                .order_by(Delivery.id)
                .with_for_update(of=Delivery)
            ).all()
            newest = set(
                session.scalars(
                    select(func.max(Commitment.id))
                    .where(Commitment.delivery_id.in_(list(batch.tries)))
                    .group_by(Commitment.delivery_id)
                )
            )
            for delivery, commitment in rows:
                commitment.accepted_at = now if accepted else None
                overtaken = commitment.id not in newest or commitment.answered_at is not None
                if delivery.state is DeliveryState.DELIVERED and not overtaken:
                    self._wait_or_give_up(session, delivery, outcome)
            if not accepted:
                self._postpone_others(session, batch)
        level = log.info if accepted else log.warning
        level("commitment asked for", destination=batch.peer.name, reports=len(batch.tries), outcome=outcome.reason)

    def _wait_or_give_up(self, session: Session, delivery: Delivery, outcome: Outcome) -> None:
        if outcome.result is Result.DELIVERED:
            delivery.commit_due_at = clock.now() + timedelta(seconds=self._settings.delivery.commitment_wait)
            delivery.reason = f"{REASONS_BEGIN}requested"
            return
        delivery.reason = f"{REASONS_BEGIN}{outcome.reason}"[:64]
        wait = self._asking.next_wait(delivery.commit_tries)
        if outcome.result is Result.REFUSED or wait is None:
            self._give_up(session, delivery, delivery.reason)
        else:
            delivery.commit_due_at = clock.now() + wait

    def _postpone_others(self, session: Session, batch: _Batch) -> None:
        """What else is due at a destination that cannot be asked now waits as long as this batch."""
        longest = timedelta(seconds=self._settings.delivery.longest_wait)
        wait = self._asking.next_wait(min(batch.tries.values())) or longest
        # In no order that could close a circle with one who holds some of them.
        free = (
            select(Delivery.id)
            .where(is_to_be_asked(), Delivery.destination == batch.peer.name)
            .with_for_update(skip_locked=True)
        )
        session.execute(
            update(Delivery)
            .where(Delivery.id.in_(free))
            .values(commit_due_at=clock.now() + wait)
            .execution_options(synchronize_session=False)
        )

    def _send_again(self, session: Session, delivery: Delivery) -> None:
        delivery.state, delivery.tries = DeliveryState.DUE, 0
        delivery.commit_due_at, delivery.commit_tries = None, 0
        delivery.reason = NOT_THERE
        release(delivery)
        self._audit(session, delivery, "report.sent_again", delivery.reason)
        log.warning("sent again", delivery=delivery.id, why=delivery.reason)

    def _give_up(self, session: Session, delivery: Delivery, reason: str) -> None:
        delivery.state, delivery.reason = DeliveryState.NEEDS_ATTENTION, reason[:64]
        # Should a person ask again (worker.again), it begins anew.
        delivery.commit_due_at, delivery.commit_tries = None, 0
        self._audit(session, delivery, "report.not_committed", delivery.reason)
        log.warning("not committed", delivery=delivery.id, why=delivery.reason)

    def _audit(self, session: Session, delivery: Delivery, action: str, reason: str) -> None:
        audit.record(
            session,
            actor=self._actor,
            action=action,
            subject="delivery",
            subject_id=delivery.id,
            report=delivery.report_id,
            reason=reason,
        )

    # --- answering senders ----------------------------------------------------------------------------------------

    def answer_next(self) -> bool:
        """Claim the oldest request of a sender and answer it. Return whether there was one."""
        with self._alone_with(_to_be_answered) as name:
            if name is None:
                return False
            held = claim(self._database, Work.COMMIT, limit=self._limit, among=CommitmentRequest.peer == name)
            # Another process may have been quicker; there may be more.
            if held is not None:
                self._answer_and_record(held)
            return True

    def _answer_and_record(self, held: Claim) -> None:
        with kept_alive(self._database, held.lease):
            try:
                outcome = self._answer(held)
            except Exception as error:
                log.error("commitment not answered", request=held.row_id, exc_info=error)
                outcome = Outcome(Result.FAILED, type(error).__name__)
            try:
                self._answered(held, outcome)
            except LeaseLost:
                log.warning("lease lost", request=held.row_id)

    def _answer(self, held: Claim) -> Outcome:
        if self._answering.used_up(held.tries):
            return Outcome(Result.REFUSED, ENDED_WITHOUT_A_WORD)
        with self._database.read() as session:
            recorded = session.get_one(CommitmentRequest, held.row_id)
            peer = self._settings.peer(recorded.peer)
            if peer is None or not peer.provide_commitment:
                return Outcome(Result.REFUSED, "peer_not_in_settings")
            answer = self._judge(session, recorded)
        log.info(
            "answering", request=held.row_id, peer=peer.name, committed=len(answer.committed), failed=len(answer.failed)
        )
        return tell(
            _address(peer, self._settings),
            answer,
            calling_ae_title=self._settings.ae_title,
            timeout=self._settings.delivery.timeout,
        )

    def _judge(self, session: Session, recorded: CommitmentRequest) -> Answer:
        """Look each instance up, and whether its file is really there."""
        committed, failed = [], []
        asked = instances_of(recorded)
        for start in range(0, len(asked), _LOOKED_UP_AT_ONCE):
            part = asked[start : start + _LOOKED_UP_AT_ONCE]
            kept = _kept(session, part)
            for instance in part:
                reason = self._reason_against(instance, *kept.get(instance.sop_instance_uid, (None, [])))
                if reason is None:
                    committed.append(instance)
                else:
                    failed.append(Failure(instance, reason))
        return Answer(recorded.transaction_uid, tuple(committed), tuple(failed))

    def _reason_against(self, instance: Instance, image: Image | None, files: list[File]) -> FailureReason | None:
        if image is None:
            return FailureReason.NO_SUCH_OBJECT_INSTANCE
        if image.sop_class_uid != instance.sop_class_uid:
            return FailureReason.CLASS_INSTANCE_CONFLICT
        return None if any(self._is_there(file) for file in files) else FailureReason.PROCESSING_FAILURE

    def _is_there(self, file: File) -> bool:
        if file.removed_at is not None or file.missing_at is not None:
            return False
        try:
            with self._spool.open(file.key) as opened:
                return os.fstat(opened.fileno()).st_size == file.size
        except FileNotFoundError:
            return False

    def _answered(self, held: Claim, outcome: Outcome) -> None:
        wait = self._answering.next_wait(held.tries)
        with self._database.write() as session:
            recorded = still_held(session, held, CommitmentRequest)
            recorded.reason = outcome.reason[:64]
            if outcome.result is Result.DELIVERED:
                recorded.state, recorded.answered_at = CommitmentRequestState.ANSWERED, clock.now()
                release(recorded)
            elif outcome.result is Result.REFUSED or wait is None:
                recorded.state = CommitmentRequestState.NEEDS_ATTENTION
                release(recorded)
            else:
                release(recorded, wait=wait)
            state = recorded.state
            audit.record(
                session,
                actor=self._actor,
                action="commitment.answer",
                subject="commitment_request",
                subject_id=recorded.id,
                outcome=outcome.reason,
                status=outcome.status,
            )
        level = log.info if state is CommitmentRequestState.ANSWERED else log.warning
        level("commitment answered", request=held.row_id, tries=held.tries, outcome=outcome.reason, state=state.value)


def _to_be_asked(session: Session, busy: list[str]) -> str | None:
    """Return the destination that has waited longest."""
    due = select(Delivery.destination).where(is_to_be_asked(), Delivery.destination.not_in(busy))
    return session.scalar(due.order_by(Delivery.commit_due_at).limit(1))


def _to_be_answered(session: Session, busy: list[str]) -> str | None:
    """Return the sender that has waited longest."""
    due = claimable(Work.COMMIT, database_now(session)).with_only_columns(CommitmentRequest.peer)
    due = due.where(CommitmentRequest.peer.not_in(busy))
    return session.scalar(due.order_by(CommitmentRequest.rank_at, CommitmentRequest.id).limit(1))


def _kept(session: Session, asked: Sequence[Instance]) -> dict[str, tuple[Image, list[File]]]:
    """Return what is on record of these instances, by their UID."""
    rows = session.execute(
        select(Image, File)
        .outerjoin(File, (File.image_id == Image.id) & (File.kind == FileKind.INSTANCE))
        .where(Image.sop_instance_uid.in_([i.sop_instance_uid for i in asked]), Image.replaced_at.is_(None))
    ).all()
    kept: dict[str, tuple[Image, list[File]]] = {}
    for image, file in rows:
        files = kept.setdefault(image.sop_instance_uid, (image, []))[1]
        if file is not None:
            files.append(file)
    return kept


def _name_of(reason: int) -> str:
    known = {member.value: member.name.lower() for member in FailureReason}
    return f"{REASONS_BEGIN}{known.get(reason, f'{reason:04X}')}"


def _address(peer: Peer, settings: Settings) -> Destination:
    destination = Destination.of(peer, settings)
    if destination is None:
        raise ValueError("a peer without an address; the settings refuse that")
    return destination
