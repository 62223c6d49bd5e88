"""Storage commitment (PS3.4 Annex J): its messages as plain data, and both sides of the conversation.

A storage SCU names instances in an N-ACTION; later, on the same association or on a new one from the SCP, an
N-EVENT-REPORT says which of them are committed and why others are not. Osteon is the SCU towards the archives that it
delivers to (`ask`), and the SCP towards senders (`tell`). `CommitmentService` takes what comes to the listener:
requests of senders, and answers of archives that come on an association of their own.

What a peer sends is bounded before it is decoded, is never taken for more than UIDs and numbers, and is neither
logged nor put into the text of an exception.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import Any, TypeVar

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dsutils import decode
from pynetdicom.presentation import build_context, build_role
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.checkpoint import halt_reactor
from dicom_node.network.dimse import Command, Field
from dicom_node.network.requests import Context
from dicom_node.policy import known_peers
from dicom_node.sender import CONNECTION_LOST, NO_ANSWER, Destination, Outcome, Result, request, trouble
from models import logs
from models.settings import Peer, Settings

SOP_CLASS = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model."""
SOP_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its well-known instance."""
REQUEST_COMMITMENT = 1
"""The action type of a request (PS3.4 J.3.2)."""
ALL_COMMITTED, SOME_FAILED = 1, 2
"""The event types of an answer (PS3.4 J.3.3)."""
MOST_INSTANCES = 10_000
MOST_BYTES = 4 * 1024 * 1024
MOST_AT_ONCE = 16
_TRANSFER_SYNTAXES: list[str | uid.UID] = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
log = logs.get("commitment")


class Status(IntEnum):
    """Answers to N-ACTION and N-EVENT-REPORT (PS3.7 10.1.1, 10.1.4, Annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORISED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213


class FailureReason(IntEnum):
    """Why an instance is not committed (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    REFERENCED_SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION_UID = 0x0131
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True)
class Instance:
    """A SOP instance that is spoken of."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Request:
    """What an SCU asks to be committed."""

    transaction_uid: str
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Failure:
    """An instance that is not committed. `reason` is a `FailureReason`, or what else a peer says."""

    instance: Instance
    reason: int


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    transaction_uid: str
    committed: tuple[Instance, ...]
    failed: tuple[Failure, ...] = ()


_Message = TypeVar("_Message", Request, Answer)


class Malformed(Exception):
    """A message that cannot be understood; `status` is the answer to it."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name.lower())
        self.status = status


# --- messages -----------------------------------------------------------------------------------------------------


def build_action(asked: Request) -> Dataset:
    """Return the Action Information of a request."""
    dataset = Dataset()
    dataset.TransactionUID = asked.transaction_uid
    dataset.ReferencedSOPSequence = Sequence(_reference(instance) for instance in asked.instances)
    return dataset


def parse_action(dataset: Dataset) -> Request:
    """Read the Action Information of a request. Raises Malformed, and nothing else."""
    return _parsed(lambda: Request(_transaction_uid(dataset), _instances(dataset, "ReferencedSOPSequence")))


def build_event(answer: Answer) -> tuple[int, Dataset]:
    """Return event type and Event Information of an answer."""
    dataset = Dataset()
    dataset.TransactionUID = answer.transaction_uid
    if answer.committed:
        dataset.ReferencedSOPSequence = Sequence(_reference(instance) for instance in answer.committed)
    if not answer.failed:
        return ALL_COMMITTED, dataset
    failed = [_reference(failure.instance) for failure in answer.failed]
    for item, failure in zip(failed, answer.failed, strict=True):
        item.FailureReason = failure.reason
    dataset.FailedSOPSequence = Sequence(failed)
    return SOME_FAILED, dataset


def parse_event(event_type: int | None, dataset: Dataset) -> Answer:
    """Read the Event Information of an answer. Raises Malformed, and nothing else.

    What contradicts itself is read so that nothing counts as committed that may not be: an instance in both sequences
    has failed, and a failure without a reason is a processing failure.
    """
    if event_type not in (ALL_COMMITTED, SOME_FAILED):
        raise Malformed(Status.NO_SUCH_EVENT_TYPE)
    return _parsed(lambda: _answer(event_type, dataset))


def _answer(event_type: int, dataset: Dataset) -> Answer:
    failed: tuple[Failure, ...] = ()
    if event_type == SOME_FAILED:
        failed = tuple(
            Failure(_instance(item), _number(item, "FailureReason")) for item in _items(dataset, "FailedSOPSequence")
        )
    elif "FailedSOPSequence" in dataset:
        raise Malformed(Status.INVALID_ARGUMENT_VALUE)
    may_be_missing = bool(failed) and "ReferencedSOPSequence" not in dataset
    named = () if may_be_missing else _instances(dataset, "ReferencedSOPSequence", may_be_empty=bool(failed))
    lost = {failure.instance.sop_instance_uid for failure in failed}
    committed = tuple(instance for instance in named if instance.sop_instance_uid not in lost)
    return Answer(_transaction_uid(dataset), committed, failed)


def _reference(instance: Instance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item


def _parsed(parse: Callable[[], _Message]) -> _Message:
    try:
        return parse()
    except Malformed:
        raise
    except Exception:
        # pydicom raises many kinds, whose texts may hold what was sent.
        raise Malformed(Status.MISTYPED_ARGUMENT) from None


def _transaction_uid(dataset: Dataset) -> str:
    return _uid(dataset, "TransactionUID")


def _instances(dataset: Dataset, keyword: str, *, may_be_empty: bool = False) -> tuple[Instance, ...]:
    """Return what a sequence names, each instance once."""
    named = dict.fromkeys(_instance(item) for item in _items(dataset, keyword))
    if not named and not may_be_empty:
        raise Malformed(Status.INVALID_ARGUMENT_VALUE)
    return tuple(named)


def _items(dataset: Dataset, keyword: str) -> Sequence:
    if keyword not in dataset:
        raise Malformed(Status.INVALID_ARGUMENT_VALUE)
    items = dataset[keyword].value
    if not isinstance(items, Sequence):
        raise Malformed(Status.MISTYPED_ARGUMENT)
    if len(items) > MOST_INSTANCES:
        raise Malformed(Status.RESOURCE_LIMITATION)
    return items


def _instance(item: Dataset) -> Instance:
    return Instance(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))


def _uid(dataset: Dataset, keyword: str) -> str:
    # As it was sent: pydicom's conversion warns of a wrong value with the value itself.
    value = dataset.get_item(keyword).value if keyword in dataset else ""
    text = value.decode("ascii").rstrip("\0 ") if isinstance(value, bytes) else str(value)
    if len(text) > 64 or not _UID.fullmatch(text):
        raise Malformed(Status.INVALID_ARGUMENT_VALUE)
    return text


def _number(item: Dataset, keyword: str) -> int:
    value = item.get_item(keyword).value if keyword in item else None
    if isinstance(value, bytes):
        # Both transfer syntaxes that are negotiated are little endian.
        value = int.from_bytes(value, "little") if len(value) == 2 else None
    return value if isinstance(value, int) and 0 < value <= 0xFFFF else int(FailureReason.PROCESSING_FAILURE)


# --- as a user of associations ------------------------------------------------------------------------------------


def ask(
    destination: Destination,
    asked: Request,
    *,
    calling_ae_title: str,
    timeout: float,
    answer_within: float,
    on_answer: Callable[[Answer], Status],
) -> Outcome:
    """Ask a storage SCP to commit instances. DELIVERED means that it accepted the request.

    Answers that come on this association, to this request or an earlier one, go to `on_answer`; after the request was
    accepted the association stays open for up to `answer_within` seconds for the one to it.
    """
    waiting = _Waiting(asked.transaction_uid, on_answer)
    association = request(
        destination,
        [build_context(SOP_CLASS, _TRANSFER_SYNTAXES)],
        calling_ae_title,
        timeout,
        handlers=[(evt.EVT_N_EVENT_REPORT, waiting.on_event), *waiting.sent_handlers],
    )
    if isinstance(association, Outcome) or not association.is_established:
        return trouble(association) or Outcome(Result.REFUSED, "not_supported")
    try:
        halt_reactor(association, timeout)
        answer, _ = association.send_n_action(build_action(asked), REQUEST_COMMITMENT, SOP_CLASS, SOP_INSTANCE)
        outcome = _judged(getattr(answer, "Status", None), "request_accepted")
        if outcome.result is Result.DELIVERED:
            waiting.wait(answer_within)
    except (OSError, RuntimeError, ValueError):
        outcome = Outcome(Result.FAILED, CONNECTION_LOST)
    finally:
        if association.is_established:
            association.release()
    return outcome


def tell(destination: Destination, answer: Answer, *, calling_ae_title: str, timeout: float) -> Outcome:
    """Answer a request on a new association, on which we are the SCP (PS3.4 J.3.3)."""
    association = request(
        destination,
        [build_context(SOP_CLASS, _TRANSFER_SYNTAXES)],
        calling_ae_title,
        timeout,
        roles=[build_role(SOP_CLASS, scu_role=False, scp_role=True)],
    )
    if isinstance(association, Outcome) or not association.is_established:
        return trouble(association) or Outcome(Result.REFUSED, "not_supported")
    try:
        if not any(context.as_scp for context in association.accepted_contexts):
            return Outcome(Result.REFUSED, "scp_role_not_accepted")
        event_type, information = build_event(answer)
        halt_reactor(association, timeout)
        reply, _ = association.send_n_event_report(information, event_type, SOP_CLASS, SOP_INSTANCE)
        return _judged(getattr(reply, "Status", None), "answer_taken")
    except (OSError, RuntimeError, ValueError):
        return Outcome(Result.FAILED, CONNECTION_LOST)
    finally:
        if association.is_established:
            association.release()


class _Waiting:
    """Waits on the association of a request for its answer, and until the answer is acknowledged."""

    def __init__(self, transaction_uid: str, on_answer: Callable[[Answer], Status]) -> None:
        self._transaction_uid = transaction_uid
        self._on_answer = on_answer
        self._answered = False
        self._responding = False
        self._acknowledged = threading.Event()

    @property
    def sent_handlers(self) -> list[tuple[Any, Callable[[evt.Event], None]]]:
        """Handlers that see when the acknowledgement has left."""
        return [(evt.EVT_DIMSE_SENT, self._on_message_sent), (evt.EVT_PDU_SENT, self._on_pdu_sent)]

    def wait(self, seconds: float) -> None:
        """Wait for the answer, at most this long."""
        self._acknowledged.wait(seconds)

    def on_event(self, event: evt.Event) -> tuple[int, None]:
        """Take an N-EVENT-REPORT."""
        try:
            answer = _event_of(event)
            status = self._on_answer(answer)
        except Malformed as error:
            return error.status, None
        except SQLAlchemyError as error:
            log.error("answer not recorded", exc_info=error)
            return Status.PROCESSING_FAILURE, None
        self._answered = self._answered or answer.transaction_uid == self._transaction_uid
        return status, None

    def _on_message_sent(self, event: evt.Event) -> None:
        self._responding = self._answered and isinstance(event.message, N_EVENT_REPORT_RSP)

    def _on_pdu_sent(self, event: evt.Event) -> None:  # noqa: ARG002 (pynetdicom hands it over)
        # Only now: a release that overtakes the acknowledgement would leave the archive without it.
        if self._responding:
            self._acknowledged.set()


_NOT_BY_WAITING = (0x0112, 0x0115, 0x0117, 0x0118, 0x0119, 0x0122, 0x0123, 0x0124, 0x0211, 0x0212)


def _judged(status: int | None, success: str) -> Outcome:
    if status is None:
        return Outcome(Result.FAILED, NO_ANSWER)
    if status == Status.SUCCESS:
        return Outcome(Result.DELIVERED, success, status)
    if status in _NOT_BY_WAITING:
        return Outcome(Result.REFUSED, "refused", status)
    return Outcome(Result.FAILED, "refused_for_now", status)


# --- at the listener ----------------------------------------------------------------------------------------------


def support(ae: AE, settings: Settings) -> None:
    """Negotiate storage commitment, where a peer has to do with it."""
    if any(peer.commitment or peer.provide_commitment for peer in settings.peers):
        # An archive that brings an answer proposes to be the SCP. (Assigned as a context, roles would get lost.)
        ae.add_supported_context(SOP_CLASS, _TRANSFER_SYNTAXES, scu_role=True, scp_role=True)


class CommitmentService:
    """Takes requests and answers from associations that others opened.

    Parameters
    ----------
    on_request
        Records a request of a peer, durably; its status is the answer.
    on_answer
        Records an answer of one of these destinations, durably; its status is the answer.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_request: Callable[[Peer, Request], Status],
        on_answer: Callable[[Iterable[str], Answer], Status],
    ) -> None:
        self._settings = settings
        self._on_request = on_request
        self._on_answer = on_answer
        # Each may be large, and there may be many associations.
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)

    @staticmethod
    def takes(context: Context, command: Command) -> bool:
        """Whether a request is one of storage commitment."""
        return context.abstract_syntax == SOP_CLASS and command.field in (Field.N_ACTION, Field.N_EVENT_REPORT)

    def take(self, calling: str, address: str, context: Context, command: Command, information: bytes | None) -> Status:
        """Take a request or an answer; return the status that it is answered with. Never raises."""
        peers = known_peers(self._settings, calling=calling, address=address)
        take = self._take_request if command.field is Field.N_ACTION else self._take_answer
        received = _Received(
            command.sop_instance_uid, command.type_id, information, context.transfer_syntax.is_implicit_VR
        )
        return self._answered(lambda: take(peers, received))

    def _answered(self, take: Callable[[], Status]) -> Status:
        if not self._places.acquire(blocking=False):
            return Status.RESOURCE_LIMITATION
        try:
            return take()
        except Malformed as error:
            log.warning("storage commitment message refused", status=f"{error.status:04X}")
            return error.status
        except Exception as error:
            # Not recorded, hence not accepted: the peer keeps what it wanted.
            log.error("storage commitment message not recorded", exc_info=error)
            return Status.PROCESSING_FAILURE
        finally:
            self._places.release()

    def _take_request(self, peers: list[Peer], received: _Received) -> Status:
        peer = next((peer for peer in peers if peer.provide_commitment), None)
        if peer is None:
            return Status.NOT_AUTHORISED
        return self._on_request(peer, received.request())

    def _take_answer(self, peers: list[Peer], received: _Received) -> Status:
        destinations = [peer.name for peer in peers if peer.is_destination]
        if not destinations:
            return Status.NOT_AUTHORISED
        return self._on_answer(destinations, received.answer())


@dataclass(frozen=True)
class _Received:
    """A message as it came: its instance, its action or event type, its data set, if any, and how that is encoded."""

    sop_instance_uid: str
    type_id: int | None
    information: bytes | None
    implicit_vr: bool

    def request(self) -> Request:
        """Read an N-ACTION. Raises Malformed, and nothing else."""
        self._check_instance()
        if self.type_id != REQUEST_COMMITMENT:
            raise Malformed(Status.NO_SUCH_ACTION)
        return _parsed(lambda: parse_action(self._decoded()))

    def answer(self) -> Answer:
        """Read an N-EVENT-REPORT. Raises Malformed, and nothing else."""
        self._check_instance()
        return _parsed(lambda: parse_event(self.type_id, self._decoded()))

    def _check_instance(self) -> None:
        if self.sop_instance_uid != SOP_INSTANCE:
            raise Malformed(Status.NO_SUCH_SOP_INSTANCE)

    def _decoded(self) -> Dataset:
        if self.information is None:
            raise Malformed(Status.INVALID_ARGUMENT_VALUE)
        if len(self.information) > MOST_BYTES:
            raise Malformed(Status.RESOURCE_LIMITATION)
        return decode(BytesIO(self.information), self.implicit_vr, True)


def _event_of(event: evt.Event) -> Answer:
    """Read what pynetdicom received on an association of ours."""
    message: Any = event.request
    information = message.EventInformation
    return _Received(
        str(message.AffectedSOPInstanceUID),
        message.EventTypeID,
        None if information is None else information.getvalue(),
        event.context.transfer_syntax.is_implicit_VR,
    ).answer()
