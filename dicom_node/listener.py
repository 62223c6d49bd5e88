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
from datetime import timedelta
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.bounds import bound_reading, close_what_failed
from dicom_node.commitment import CommitmentService
from dicom_node.commitment_record import CommitmentRecord
from dicom_node.connections import Connections, ConnectionServer, Gate, start_server
from dicom_node.group_commit import GroupCommit, NotRecorded, Undecided
from dicom_node.guard import Titles, guard
from dicom_node.headers import HeaderError, SourceHeader, read_header_file
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.objects.recognise import is_own_object
from dicom_node.policy import Admission, Rejection, admit
from dicom_node.receiving import Receiver
from dicom_node.resends import Compared, compare
from dicom_node.services import TRANSFER_SYNTAXES, Status, accepted_sop_classes
from dicom_node.spool import Incoming, Spool, SpoolError
from dicom_node.tls import certificate_of, credentials_of
from models import logs
from models.database import Database
from models.settings import Settings

HEARTBEAT_SECONDS = 5.0
# Two missed heartbeats: the associations of a listener that was killed soon stop counting against the others.
STALE_AFTER = timedelta(seconds=2.2 * HEARTBEAT_SECONDS)
# Beside two for an association and one for a connection that waits: pynetdicom starts one for an N-EVENT-REPORT.
THREADS_TO_SPARE = 200
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
        self._database = database
        self._on_stored = on_stored
        self._intake = Intake(database, settings)
        self._recorder = GroupCommit(database, self._intake)
        self._receiver = Receiver(spool)
        commitments = CommitmentRecord(database, part="listener")
        self._commitment = CommitmentService(settings, on_request=commitments.requested, on_answer=commitments.answered)
        self._callers: dict[Association, _Caller] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="association-heartbeat", daemon=True)
        self._credentials = credentials_of(settings.tls)
        self._connections = Connections(
            most=max(settings.listener.max_connections, settings.listener.max_associations),
            most_per_address=settings.listener.max_connections_per_address,
        )
        self._servers: list[ConnectionServer] = []
        self._open_elsewhere = 0
        self._ae = self._make_ae()

    @property
    def port(self) -> int:
        """The port it listens on; the plain one where there are two."""
        return self._servers[0].port

    def start(self) -> None:
        """Bind the ports and serve from threads. Raises OSError where one is taken, and TlsError."""
        close_what_failed()
        self._receiver.install()
        removed = self._spool.remove_stale()
        tls = self._settings.tls
        if tls.port is not None:
            self._credentials.look()
        if not tls.only:
            self._listen(self._settings.port, with_tls=False)
        if tls.port is not None:
            self._listen(tls.port, with_tls=True)
        self._heart.start()
        log.info(
            "listening",
            ae_title=self._settings.ae_title,
            address=self._settings.host,
            port=None if tls.only else self.port,
            tls_port=tls.port,
            removed=removed,
        )

    def _listen(self, port: int, *, with_tls: bool) -> None:
        gate = Gate(
            self._connections,
            seconds=self._settings.listener.association_timeout,
            refuse=self._refuse,
            context=self._credentials.server if with_tls else None,
        )
        handlers = [
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_RELEASED, self._on_released),
            (evt.EVT_ABORTED, self._on_aborted),
            (evt.EVT_CONN_CLOSE, self._on_closed),
            *self._commitment.handlers,
        ]
        self._servers.append(start_server(self._ae, (self._settings.host, port), gate, handlers))

    def stop(self) -> None:
        """Abort what is open and free the port."""
        self._stopping.set()
        self._ae.shutdown()
        self._connections.close_waiting()
        for association in list(self._callers):
            self._forget(association)
        self._receiver.uninstall()

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
        bound_reading(event.assoc, largest_pdu=listener.max_pdu, seconds=listener.idle_timeout)
        guard(
            event.assoc,
            abandon=self._receiver.abandon,
            most_threads=3 * max(listener.max_connections, listener.max_associations) + THREADS_TO_SPARE,
        )

    def _refuse(self, titles: Titles, address: str, connection: socket.socket) -> Rejection | None:
        """Reject a request before pynetdicom has made anything of it."""
        with self._lock:
            decision = self._decide(titles, address, connection)
            if not isinstance(decision, Rejection):
                return None
            number = next(self._numbers)
        self._log_rejected(number, decision, titles, address)
        return decision

    def _decide(self, titles: Titles, address: str, connection: socket.socket | None) -> Admission | Rejection:
        return admit(
            self._settings,
            calling=titles.calling,
            called=titles.called,
            address=address,
            open_associations=len(self._callers) + self._open_elsewhere,
            certificate=certificate_of(connection),
        )

    def _log_rejected(self, number: int, rejection: Rejection, titles: Titles, address: str) -> None:
        log.warning(
            "association rejected",
            association=number,
            calling=titles.calling,
            called=titles.called,
            address=address,
            why=rejection.name.lower(),
        )

    def _on_requested(self, event: evt.Event) -> None:
        association: Association = event.assoc
        request: Any = association.requestor.primitive
        titles = Titles(called=str(request.called_ae_title).strip(), calling=str(request.calling_ae_title).strip())
        address = str(association.requestor.address)
        dul: Any = association.dul
        connection: socket.socket | None = dul.socket.socket
        with self._lock:
            # Once more: others may have come since the connection was let in.
            decision = self._decide(titles, address, connection)
            number = next(self._numbers)
            if not isinstance(decision, Rejection):
                sender = Sender(str(uuid.uuid4()), titles.calling, titles.called, address)
                self._callers[association] = _Caller(number, sender, decision.may_store)
        if isinstance(decision, Rejection):
            self._log_rejected(number, decision, titles, address)
            association.acse.send_reject(*decision.answer)
            association.kill()
            return
        log.debug("association requested", association=number, calling=titles.calling, address=address)
        certificate = certificate_of(connection)
        if certificate is not None:
            self._credentials.note(certificate, titles.calling)

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
            if receipt is None or receipt is Receipt.AGAIN:
                compared = None if receipt is None else self._compare(header, incoming)
                receipt = self._record(event, caller, incoming, header, compared)
        except SpoolError:
            return Status.OUT_OF_RESOURCES, "no space to store the instance"
        except (SQLAlchemyError, NotRecorded, Undecided) as error:
            log.error("database refused", association=caller.number, exc_info=error.__cause__ or error)
            return Status.OUT_OF_RESOURCES, "the record cannot be written"
        caller.stored += 1
        log.info("instance stored", association=caller.number, receipt=receipt.value, bytes=incoming.size)
        if receipt is Receipt.NEW:
            self._on_stored()
        if receipt.is_conflict:
            return Status(int(self._settings.listener.other_pixels_status, 16)), "the UID is that of another instance"
        return Status.SUCCESS, ""

    def _compare(self, header: SourceHeader, incoming: Incoming) -> Compared | None:
        with incoming.path.open("rb") as file:
            return compare(self._database, self._spool, header.sop_instance_uid, file)

    def _record(
        self, event: evt.Event, caller: _Caller, incoming: Incoming, header: SourceHeader, compared: Compared | None
    ) -> Receipt:
        key = self._spool.put_durable(incoming)
        stored = StoredFile(
            key=key,
            size=incoming.size,
            sha256=incoming.sha256,
            digest_offset=incoming.digest_offset,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            compared=compared,
        )
        try:
            receipt = self._recorder.record(caller.sender, header, stored)
        except NotRecorded:
            self._spool.delete(key)
            raise
        caller.recorded = True
        if receipt.needs_no_file:
            self._spool.delete(key)
        return receipt

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
            if self._settings.tls.port is not None:
                self._credentials.look()
            for association in [a for a in list(self._callers) if not a.is_alive()]:
                self._forget(association)
            with self._lock:
                ours = [caller.sender.uid for caller in self._callers.values()]
                uids = [caller.sender.uid for caller in self._callers.values() if caller.recorded]
            try:
                if uids:
                    self._intake.touch(uids)
                self._open_elsewhere = self._intake.open_elsewhere(ours, within=STALE_AFTER)
            except SQLAlchemyError as error:
                log.warning("heartbeat not recorded", exc_info=error)
