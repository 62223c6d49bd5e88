"""Records storage commitment: what senders ask us, and what archives answer us; durably, before either is answered.

An answer that says "committed" takes effect at once. One that says why not is only noted, and makes the delivery due
for the courier, which decides what follows (`worker.commit`).

========================  ==========================================================================================
an answer to              what it does
========================  ==========================================================================================
a transaction of ours     notes it; a committed delivery is `committed`, also when its transaction is an old one,
                          or was given up meanwhile
a delivery due again      is noted alone: it was to be sent again, and is asked for again after that
the same once more        nothing, except that "committed" after a failure counts
no transaction of ours    nothing; 0115 is answered
an instance not asked     nothing; the rest counts
========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import exists, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from dicom_node.commitment import Answer, Instance, Request, Status
from models import audit, clock, logs
from models.database import Database
from models.settings import Peer
from models.tables import (
    Commitment,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    Report,
)

MOST_OPEN_REQUESTS = 1000
"""As many requests of one peer may wait for their answer."""
log = logs.get("commitment")


class CommitmentRecord:
    """Writes requests and answers. Threads may share one."""

    def __init__(self, database: Database, *, part: str) -> None:
        self._database = database
        self._actor = audit.part_actor(part)

    def requested(self, peer: Peer, asked: Request) -> Status:
        """Record a sender's request. The same one again is made due again; what the database raises is passed on."""
        now = clock.now()
        with self._database.write() as session:
            known = self._request(session, peer, asked.transaction_uid)
            if known is None:
                if self._open_requests(session, peer) >= MOST_OPEN_REQUESTS:
                    return Status.RESOURCE_LIMITATION
                _insert_unless_there(
                    session,
                    peer=peer.name,
                    transaction_uid=asked.transaction_uid,
                    instances=[[instance.sop_class_uid, instance.sop_instance_uid] for instance in asked.instances],
                    received_at=now,
                    rank_at=now,
                    due_at=now,
                    tries=0,
                    lease_token=0,
                    state=CommitmentRequestState.DUE,
                )
                # Locked until the commit; another association may have brought it at the same moment.
                known = self._request(session, peer, asked.transaction_uid)
            if known is None or instances_of(known) != asked.instances:
                return Status.DUPLICATE_INVOCATION
            if known.state is not CommitmentRequestState.DUE:
                # Whoever asks again did not get the answer.
                known.state, known.due_at, known.tries, known.reason = CommitmentRequestState.DUE, now, 0, None
            audit.record(
                session,
                actor=self._actor,
                action="commitment.requested",
                subject="commitment_request",
                subject_id=known.id,
                peer=peer.name,
                instances=len(asked.instances),
            )
            request_id = known.id
        log.info("commitment requested", request=request_id, peer=peer.name, instances=len(asked.instances))
        return Status.SUCCESS

    def answered(self, destinations: Iterable[str], answer: Answer) -> Status:
        """Record what one of these destinations answered. What the database raises is passed on."""
        reasons: dict[str, int | None] = {instance.sop_instance_uid: None for instance in answer.committed}
        reasons |= {failure.instance.sop_instance_uid: failure.reason for failure in answer.failed}
        with self._database.write() as session:
            asked = session.execute(
                select(Commitment, Delivery, Report.sop_instance_uid)
                .join(Delivery, Delivery.id == Commitment.delivery_id)
                .join(Report, Report.id == Delivery.report_id)
                .where(
                    Commitment.transaction_uid == answer.transaction_uid, Delivery.destination.in_(list(destinations))
                )
                .order_by(Delivery.id)
                .with_for_update(of=Delivery)
            ).all()
            for commitment, delivery, sop_instance_uid in asked:
                if sop_instance_uid in reasons:
                    self._note(session, commitment, delivery, reasons[sop_instance_uid])
            named = {sop_instance_uid for _, _, sop_instance_uid in asked}
        if not asked:
            log.warning("commitment answered that was not asked for", instances=len(reasons))
            return Status.INVALID_ARGUMENT_VALUE
        log.info(
            "commitment answered",
            destination=asked[0][1].destination,
            asked=len(asked),
            committed=sum(1 for uid in named & reasons.keys() if reasons[uid] is None),
            failed=sum(1 for uid in named & reasons.keys() if reasons[uid] is not None),
            not_asked=len(reasons.keys() - named),
        )
        return Status.SUCCESS

    def _note(self, session: Session, commitment: Commitment, delivery: Delivery, reason: int | None) -> None:
        if commitment.answered_at is not None and (reason is not None or commitment.failure_reason is None):
            return
        now = clock.now()
        commitment.answered_at, commitment.failure_reason = now, reason
        if reason is not None:
            if delivery.state is DeliveryState.DELIVERED and _is_newest(session, commitment):
                delivery.commit_due_at = now
            return
        if delivery.state not in (DeliveryState.DELIVERED, DeliveryState.NEEDS_ATTENTION):
            return
        delivery.state, delivery.committed_at = DeliveryState.COMMITTED, now
        delivery.commit_due_at, delivery.reason = None, "committed"
        audit.record(
            session,
            actor=self._actor,
            action="report.committed",
            subject="delivery",
            subject_id=delivery.id,
            report=delivery.report_id,
            commitment=commitment.id,
        )

    @staticmethod
    def _request(session: Session, peer: Peer, transaction_uid: str) -> CommitmentRequest | None:
        return session.scalars(
            select(CommitmentRequest)
            .where(CommitmentRequest.peer == peer.name, CommitmentRequest.transaction_uid == transaction_uid)
            .with_for_update()
        ).first()

    @staticmethod
    def _open_requests(session: Session, peer: Peer) -> int:
        waiting = select(CommitmentRequest.id).where(
            CommitmentRequest.peer == peer.name, CommitmentRequest.state == CommitmentRequestState.DUE
        )
        return session.scalars(select(func.count()).select_from(waiting.limit(MOST_OPEN_REQUESTS).subquery())).one()


def instances_of(recorded: CommitmentRequest) -> tuple[Instance, ...]:
    """Return what a request on record names."""
    return tuple(Instance(sop_class_uid, sop_instance_uid) for sop_class_uid, sop_instance_uid in recorded.instances)


def _is_newest(session: Session, commitment: Commitment) -> bool:
    newer = aliased(Commitment)
    return not session.scalar(
        select(exists().where(newer.delivery_id == commitment.delivery_id, newer.id > commitment.id))
    )


def _insert_unless_there(session: Session, **values: object) -> None:
    """INSERT … ON CONFLICT DO NOTHING: two associations may bring one request at the same moment."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(CommitmentRequest).values(**values).on_conflict_do_nothing())
