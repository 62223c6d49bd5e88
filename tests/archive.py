"""A storage commitment SCP for tests: records what it is asked, and answers as and when a test likes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_role

from dicom_node.commitment import SOP_CLASS, SOP_INSTANCE, Answer, Failure, Request, build_event, parse_action
from dicom_node.sender import Destination
from tests.servers import shut_down

SYNTAXES: Any = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
AE_TITLE = "DEMOPACS"
Reply = Callable[[Request], Answer | None]


def all_committed(asked: Request) -> Answer:
    """The answer that everybody hopes for."""
    return Answer(asked.transaction_uid, asked.instances)


def all_failed(reason: int) -> Reply:
    """The answer that nothing is committed, for one reason."""
    return lambda asked: Answer(asked.transaction_uid, (), tuple(Failure(i, reason) for i in asked.instances))


class Archive:
    """Stores whatever comes; is asked by N-ACTION; answers at once on the same association if `reply` says how."""

    def __init__(self, reply: Reply | None = None, *, commits: bool = True, port: int = 0) -> None:
        self.reply = reply
        self.reply_first = False
        """Answer before the request is acknowledged."""
        self.action_status = 0x0000
        self.asked: list[Request] = []
        self.stored: list[str] = []
        self.event_statuses: list[int | None] = []
        """How its answers were taken."""
        self._threads: list[threading.Thread] = []
        ae = AE(ae_title=AE_TITLE)
        ae.require_called_aet = True
        ae.add_supported_context(Comprehensive3DSRStorage, ExplicitVRLittleEndian)
        if commits:
            ae.add_supported_context(SOP_CLASS, SYNTAXES)
        self._ae = ae
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action)]
        server: Any = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port: int = server.server_address[1]

    def stop(self) -> None:
        """Stop listening."""
        for thread in self._threads:
            thread.join(10)
        shut_down(self._ae)

    def answer(self, to: Destination, *answers: Answer, calling: str = AE_TITLE, **event: Any) -> list[int | None]:
        """Bring answers to a node's listener on a new association, as the SCP; return the statuses."""
        ae = AE(ae_title=calling)
        ae.add_requested_context(SOP_CLASS, SYNTAXES)
        role = build_role(SOP_CLASS, scu_role=False, scp_role=True)
        association = ae.associate(to.host, to.port, ae_title=to.ae_title, ext_neg=[role])
        assert association.is_established
        assert [context.as_scp for context in association.accepted_contexts] == [True]
        try:
            return [report(association, answer, **event) for answer in answers]
        finally:
            association.release()

    def _on_store(self, event: evt.Event) -> int:
        request: Any = event.request
        self.stored.append(request.AffectedSOPInstanceUID)
        return 0x0000

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        asked = parse_action(event.action_information)
        self.asked.append(asked)
        answer = self.reply(asked) if self.reply and self.action_status == 0 else None
        if answer is not None:
            acknowledged = threading.Event()
            event.assoc.bind(evt.EVT_DIMSE_SENT, lambda _: acknowledged.set())
            arguments = (event.assoc, answer, None if self.reply_first else acknowledged)
            thread = threading.Thread(target=self._answer_here, args=arguments)
            self._threads.append(thread)
            thread.start()
            if self.reply_first:
                thread.join(10)
        return self.action_status, None

    def _answer_here(self, association: Association, answer: Answer, after: threading.Event | None) -> None:
        if after is not None:
            after.wait(10)
        self.event_statuses.append(report(association, answer))


def report(association: Association, answer: Answer, **event: Any) -> int | None:
    """Send an N-EVENT-REPORT; return the status of its answer."""
    event_type, information = build_event(answer)
    status, _ = association.send_n_event_report(
        event.get("information", information),
        event.get("event_type", event_type),
        SOP_CLASS,
        event.get("instance", SOP_INSTANCE),
    )
    found: int | None = getattr(status, "Status", None)
    return found


def request_commitment(
    to: Destination, information: Dataset | None, *, calling: str, action: int = 1, instance: str = SOP_INSTANCE
) -> int | None:
    """Ask a node to commit, as a sender does; return the status, or None where there is no context for it."""
    ae = AE(ae_title=calling)
    ae.add_requested_context(SOP_CLASS, SYNTAXES)
    association = ae.associate(to.host, to.port, ae_title=to.ae_title)
    assert association.is_rejected is False
    if not association.is_established:
        return None
    try:
        status, _ = association.send_n_action(information, action, SOP_CLASS, instance)
        found: int | None = getattr(status, "Status", None)
        return found
    finally:
        association.release()


class Sender:
    """A storage commitment SCU's listener: takes the answers to what it asked."""

    def __init__(self, *, ae_title: str = "ROOM", port: int = 0, status: Callable[[], int] = lambda: 0) -> None:
        self.answers: list[tuple[int, Dataset]] = []
        self.status = status
        ae = AE(ae_title=ae_title)
        ae.require_called_aet = True
        ae.add_supported_context(SOP_CLASS, SYNTAXES, scu_role=True, scp_role=True)
        self._ae = ae
        server: Any = ae.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_event)]
        )
        self.port: int = server.server_address[1]

    def stop(self) -> None:
        """Stop listening."""
        shut_down(self._ae)

    def _on_event(self, event: evt.Event) -> tuple[int, None]:
        request: Any = event.request
        self.answers.append((request.EventTypeID, event.event_information))
        return self.status(), None


def uids(instances: Iterable[Dataset]) -> list[str]:
    """The SOP Instance UIDs that a sequence names."""
    return [str(item.ReferencedSOPInstanceUID) for item in instances]
