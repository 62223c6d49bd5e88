"""The listener: C-ECHO, C-STORE and storage commitment over pynetdicom. Success means safe.

Each instance takes the same way: streamed into the spool without being decoded, its header read, file and folder
synced, its row committed, and only then answered with 0x0000. Whoever is told that something was stored is told
after that, and cannot delay or fail the answer.
"""

from __future__ import annotations

import itertools
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.commitment import CommitmentService
from dicom_node.commitment_record import CommitmentRecord
from dicom_node.headers import HeaderError, SourceHeader, read_header_file
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.objects.recognise import is_own_object
from dicom_node.policy import Rejection, admit
from dicom_node.receiving import Receiver
from dicom_node.services import TRANSFER_SYNTAXES, Status, accepted_sop_classes
from dicom_node.spool import Incoming, Spool, SpoolError
from models import logs
from models.database import Database
from models.settings import Settings

HEARTBEAT_SECONDS = 5.0
# An A-ASSOCIATE-RQ is not bound by the PDU length that we offer; 128 contexts with many syntaxes stay far below this.
LARGEST_REQUEST = 1024 * 1024
CONNECTIONS_QUEUED = 128
log = logs.get("listener")


@dataclass
class _Caller:
    """What the listener knows of an open association."""

    number: int
    sender: Sender
    may_store: bool
    recorded: bool = False
    stored: int = 0
    outcome: str = "broken"


class Listener:
    """A storage SCP. `start` returns at once; `stop` ends every association.

    Parameters
    ----------
    on_stored
        Called, without arguments, after an instance was stored; it must return at once and never raise.
    """

    def __init__(self, settings: Settings, database: Database, spool: Spool, on_stored: Callable[[], None]) -> None:
        self._settings = settings
        self._spool = spool
        self._on_stored = on_stored
        self._intake = Intake(database, settings)
        self._receiver = Receiver(spool)
        commitments = CommitmentRecord(database, part="listener")
        self._commitment = CommitmentService(settings, on_request=commitments.requested, on_answer=commitments.answered)
        self._callers: dict[Association, _Caller] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="association-heartbeat", daemon=True)
        self._server: Any = None
        self._ae = self._make_ae()

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.server_address[1]
        return port

    def start(self) -> None:
        """Bind the port and serve from threads. Raises OSError where the port is taken."""
        self._receiver.install()
        removed = self._spool.remove_stale()
        self._server = self._ae.start_server(
            (self._settings.host, self._settings.port),
            block=False,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._on_connection),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_RELEASED, self._on_released),
                (evt.EVT_ABORTED, self._on_aborted),
                (evt.EVT_CONN_CLOSE, self._on_closed),
                *self._commitment.handlers,
            ],
        )
        # pynetdicom queues five connections; beyond that Linux lets a peer wait a second and more before it asks again.
        self._server.socket.listen(CONNECTIONS_QUEUED)
        self._heart.start()
        log.info(
            "listening",
            ae_title=self._settings.ae_title,
            address=self._settings.host,
            port=self._settings.port,
            removed=removed,
        )

    def stop(self) -> None:
        """Abort what is open and free the port."""
        self._stopping.set()
        if self._server is not None:
            self._ae.shutdown()
        for association in list(self._callers):
            self._forget(association)

    def _make_ae(self) -> AE:
        listener = self._settings.listener
        ae = AE(ae_title=self._settings.ae_title)
        # Our own policy counts; pynetdicom would also count connections that never ask for an association.
        ae.maximum_associations = 100_000
        ae.maximum_pdu_size = listener.max_pdu
        ae.acse_timeout = listener.association_timeout
        ae.dimse_timeout = listener.idle_timeout
        ae.network_timeout = listener.idle_timeout
        ae.add_supported_context(Verification)
        for sop_class in accepted_sop_classes(self._settings):
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        self._commitment.support(ae)
        return ae

    def _on_connection(self, event: evt.Event) -> None:
        dul: Any = event.assoc.dul
        connection: socket.socket = dul.socket.socket
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that stops in the middle of a PDU is let go of.
        listener = self._settings.listener
        connection.settimeout(listener.idle_timeout)
        self._receiver.bound(
            event.assoc, largest_pdu=max(listener.max_pdu, LARGEST_REQUEST), seconds=listener.idle_timeout
        )

    def _on_requested(self, event: evt.Event) -> None:
        association: Association = event.assoc
        request: Any = association.requestor.primitive
        calling, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        address = str(association.requestor.address)
        with self._lock:
            decision = admit(
                self._settings,
                calling=calling,
                called=called,
                address=address,
                open_associations=len(self._callers),
            )
            number = next(self._numbers)
            if not isinstance(decision, Rejection):
                sender = Sender(str(uuid.uuid4()), calling, called, address)
                self._callers[association] = _Caller(number, sender, decision.may_store)
        if isinstance(decision, Rejection):
            log.warning(
                "association rejected",
                association=number,
                calling=calling,
                called=called,
                address=address,
                why=decision.name.lower(),
            )
            association.acse.send_reject(*decision.value)
            association.kill()
        else:
            log.debug("association requested", association=number, calling=calling, address=address)

    def _on_echo(self, event: evt.Event) -> int:
        log.debug("verified", association=self._callers[event.assoc].number)
        return Status.SUCCESS

    def _on_store(self, event: evt.Event) -> int | Dataset:
        incoming = self._receiver.find(event.dataset_path)
        caller = self._callers.get(event.assoc)
        if caller is None:
            # The connection broke behind the last byte: there is nobody left to answer, who will send again.
            incoming.discard()
            return Status.OUT_OF_RESOURCES
        try:
            answer, why = self._store(event, caller, incoming)
        except Exception as error:
            # The sender keeps what it could not hand over, and tries again.
            log.error("instance not stored", association=caller.number, exc_info=error)
            answer, why = Status.OUT_OF_RESOURCES, "the instance could not be stored"
        finally:
            incoming.discard()
        if answer is Status.SUCCESS:
            return answer
        log.warning("instance refused", association=caller.number, status=f"{answer:04X}", why=why)
        response = Dataset()
        response.Status = int(answer)
        response.ErrorComment = why[:64]
        return response

    def _store(self, event: evt.Event, caller: _Caller, incoming: Incoming) -> tuple[Status, str]:
        request: Any = event.request
        if not caller.may_store:
            return Status.NOT_AUTHORISED, "this calling AE may not store"
        if request.AffectedSOPClassUID != event.context.abstract_syntax:
            return Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
        try:
            incoming.finish()
            header = read_header_file(incoming.path)
        except SpoolError:
            return Status.OUT_OF_RESOURCES, "no space to store the instance"
        except HeaderError:
            return Status.CANNOT_UNDERSTAND, "not a data set with its UIDs"
        if (header.sop_class_uid, header.sop_instance_uid) != (
            request.AffectedSOPClassUID,
            request.AffectedSOPInstanceUID,
        ):
            return Status.DATA_SET_MISMATCH, "UIDs of data set and command differ"
        return self._keep(event, caller, incoming, header)

    def _keep(self, event: evt.Event, caller: _Caller, incoming: Incoming, header: SourceHeader) -> tuple[Status, str]:
        try:
            receipt = self._intake.known(header.sop_instance_uid, incoming.sha256)
            if receipt is None and is_own_object(header):
                receipt = Receipt.OWN
            if receipt is None:
                receipt = self._record(event, caller, incoming, header)
        except SpoolError:
            return Status.OUT_OF_RESOURCES, "no space to store the instance"
        except SQLAlchemyError as error:
            log.error("database refused", association=caller.number, exc_info=error)
            return Status.OUT_OF_RESOURCES, "the record cannot be written"
        caller.stored += 1
        log.info("instance stored", association=caller.number, receipt=receipt.value, bytes=incoming.size)
        if receipt is Receipt.NEW:
            self._on_stored()
        return Status.SUCCESS, ""

    def _record(self, event: evt.Event, caller: _Caller, incoming: Incoming, header: SourceHeader) -> Receipt:
        key = self._spool.put_durable(incoming)
        stored = StoredFile(
            key=key,
            size=incoming.size,
            sha256=incoming.sha256,
            digest_offset=incoming.digest_offset,
            transfer_syntax_uid=str(event.context.transfer_syntax),
        )
        try:
            receipt = self._intake.record(caller.sender, header, stored)
        except SQLAlchemyError:
            self._remove_unless_on_record(key)
            raise
        caller.recorded = True
        if receipt is Receipt.DUPLICATE:
            self._spool.delete(key)
        return receipt

    def _remove_unless_on_record(self, key: str) -> None:
        """A commit that failed may have been done all the same: only a file that is certainly unknown is removed."""
        try:
            on_record = self._intake.holds_file(key)
        except SQLAlchemyError:
            return
        if not on_record:
            self._spool.delete(key)

    def _on_released(self, event: evt.Event) -> None:
        self._set_outcome(event, "released")

    def _on_aborted(self, event: evt.Event) -> None:
        self._set_outcome(event, "aborted")

    def _set_outcome(self, event: evt.Event, outcome: str) -> None:
        caller = self._callers.get(event.assoc)
        if caller is not None:
            caller.outcome = outcome
            self._forget(event.assoc)

    def _on_closed(self, event: evt.Event) -> None:
        self._forget(event.assoc)

    def _forget(self, association: Association) -> None:
        self._receiver.abandon(association)
        with self._lock:
            caller = self._callers.pop(association, None)
        if caller is None:
            return
        log.info("association ended", association=caller.number, outcome=caller.outcome, instances=caller.stored)
        if caller.recorded:
            try:
                self._intake.close(caller.sender.uid, caller.outcome)
            except SQLAlchemyError as error:
                # It counts as open until its heartbeat is old; nothing else is lost.
                log.warning("end of association not recorded", association=caller.number, exc_info=error)

    def _beat(self) -> None:
        """Keep the open associations' rows fresh, and let go of those whose thread died without an event."""
        while not self._stopping.wait(HEARTBEAT_SECONDS):
            for association in [a for a in list(self._callers) if not a.is_alive()]:
                self._forget(association)
            with self._lock:
                uids = [caller.sender.uid for caller in self._callers.values() if caller.recorded]
            if uids:
                try:
                    self._intake.touch(uids)
                except SQLAlchemyError as error:
                    log.warning("heartbeat not recorded", exc_info=error)
