"""The listener: C-ECHO, C-STORE and storage commitment. Success means safe.

Each instance takes the same way: streamed into the spool without being decoded, its header read, file and folder
synced, its row committed, and only then answered with 0x0000. Whoever is told that something was stored is told
after that, and cannot delay or fail the answer.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from pynetdicom import AE
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.commitment import CommitmentService, support
from dicom_node.commitment_record import CommitmentRecord
from dicom_node.intake import Intake, Sender
from dicom_node.network.association import Association, Outcome, say
from dicom_node.network.connections import Connections, ConnectionServer, Gate, rejection_of
from dicom_node.network.dimse import Command, Field
from dicom_node.network.messages import Sink
from dicom_node.network.requests import APPLICATION_CONTEXT, Asked, Context, Negotiation, Violation
from dicom_node.policy import Admission, Rejection, admit
from dicom_node.services import TRANSFER_SYNTAXES, Status, accepted_sop_classes
from dicom_node.spool import Incoming, Spool
from dicom_node.storage import Storage, Stored
from dicom_node.tls import certificate_of, credentials_of
from models import logs
from models.database import Database
from models.settings import Settings

HEARTBEAT_SECONDS = 5.0
# Two missed heartbeats: the associations of a listener that was killed soon stop counting against the others.
STALE_AFTER = timedelta(seconds=2.2 * HEARTBEAT_SECONDS)
LARGEST_IN_MEMORY = 4 * 1024 * 1024
"""Bytes of a data set that is no C-STORE's and so stays in memory: storage commitment of 30,000 instances."""
STOP_SECONDS = 2.0
"""What associations get to end in when the listener stops."""
log = logs.get("listener")


def supported_contexts(settings: Settings) -> list[PresentationContext]:
    """Return what associations are accepted for under these settings."""
    ae = AE()
    ae.add_supported_context(Verification)
    for sop_class in accepted_sop_classes(settings):
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    support(ae, settings)
    return ae.supported_contexts


@dataclass(eq=False)
class _Caller:
    """What the listener knows of an open association."""

    number: int
    sender: Sender
    may_store: bool
    association: Association | None = None
    recorded: bool = False
    stored: int = 0


class Listener:
    """A storage SCP. `start` returns at once; `stop` ends every association.

    Parameters
    ----------
    on_stored
        Called, without arguments, after an instance was stored; it must return at once and never raise.
    """

    def __init__(self, settings: Settings, database: Database, spool: Spool, on_stored: Callable[[], None]) -> None:
        self._settings = settings
        self._intake = Intake(database, settings)
        self._spool = spool
        self._storage = Storage(settings, database, spool, self._intake, on_stored)
        commitments = CommitmentRecord(database, part="listener")
        self._commitment = CommitmentService(settings, on_request=commitments.requested, on_answer=commitments.answered)
        self._callers: set[_Caller] = set()
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
        self._negotiation = Negotiation(supported_contexts(settings), largest_pdu=settings.listener.max_pdu)

    @property
    def port(self) -> int:
        """The port it listens on; the plain one where there are two."""
        return self._servers[0].port

    def start(self) -> None:
        """Bind the ports and serve from threads. Raises OSError where one is taken, and TlsError."""
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
            serve=self._serve,
            context=self._credentials.server if with_tls else None,
        )
        shared = self._settings.listener.processes > 1
        server = ConnectionServer((self._settings.host, port), gate, shared=shared)
        self._servers.append(server)
        server.start()

    def stop(self) -> None:
        """Free the ports and abort what is open."""
        self._stopping.set()
        for server in self._servers:
            server.stop()
        self._connections.close_waiting()
        for caller in self._open():
            if caller.association is not None:
                caller.association.end()
        until = time.monotonic() + STOP_SECONDS
        while (self._open() or len(self._connections)) and time.monotonic() < until:
            time.sleep(0.02)

    def _open(self) -> list[_Caller]:
        with self._lock:
            return list(self._callers)

    def _refuse(self, asked: Asked, address: str, connection: socket.socket) -> Rejection | None:
        """Say why a request is rejected, before anything is made of it."""
        with self._lock:
            decision = self._decide(asked, address, connection)
        if not isinstance(decision, Rejection):
            return None
        self._log_rejected(next(self._numbers), decision, asked, address)
        return decision

    def _serve(self, request: bytes, asked: Asked, address: str, connection: socket.socket) -> bool:
        """Let an association in, unless others have come since it was not refused, and serve it.

        Its place and its record are free when this returns, also where the peer has yet to close (then True).
        """
        with self._lock:
            number = next(self._numbers)
            decision = self._decide(asked, address, connection)
            if isinstance(decision, Admission):
                sender = Sender(str(uuid.uuid4()), asked.calling, asked.called, address)
                caller = _Caller(number, sender, decision.may_store)
                self._callers.add(caller)
        if isinstance(decision, Rejection):
            self._log_rejected(number, decision, asked, address)
            say(connection, rejection_of(decision))
            return True
        outcome = Outcome.BROKEN
        try:
            outcome = self._converse(caller, request, connection)
        finally:
            self._forget(caller, outcome)
        return caller.association is not None and caller.association.said_farewell

    def _converse(self, caller: _Caller, request: bytes, connection: socket.socket) -> Outcome:
        accepted = self._negotiation.accept(request)
        log.debug(
            "association requested",
            association=caller.number,
            calling=caller.sender.calling_ae_title,
            address=caller.sender.address,
        )
        certificate = certificate_of(connection)
        if certificate is not None:
            self._credentials.note(certificate, caller.sender.calling_ae_title)
        conversation = _Conversation(caller, self._storage, self._commitment)
        listener = self._settings.listener
        association = Association(
            connection, accepted, conversation, largest_pdu=listener.max_pdu, idle_seconds=listener.idle_timeout
        )
        caller.association = association
        if self._stopping.is_set():
            association.end()
        try:
            return association.run()
        finally:
            conversation.close()

    def _decide(self, asked: Asked, address: str, connection: socket.socket | None) -> Admission | Rejection:
        if not asked.protocol_version & 1:
            return Rejection.PROTOCOL_VERSION
        if asked.application_context != APPLICATION_CONTEXT:
            return Rejection.APPLICATION_CONTEXT
        return admit(
            self._settings,
            calling=asked.calling,
            called=asked.called,
            address=address,
            open_associations=len(self._callers) + self._open_elsewhere,
            certificate=certificate_of(connection),
        )

    def _log_rejected(self, number: int, rejection: Rejection, asked: Asked, address: str) -> None:
        log.warning(
            "association rejected",
            association=number,
            calling=asked.calling,
            called=asked.called,
            address=address,
            why=rejection.name.lower(),
        )

    def _forget(self, caller: _Caller, outcome: Outcome) -> None:
        log.info("association ended", association=caller.number, outcome=outcome.value, instances=caller.stored)
        if caller.recorded:
            try:
                self._intake.close(caller.sender.uid, outcome.value)
            except SQLAlchemyError as error:
                # It counts as open until its heartbeat is old; nothing else is lost.
                log.warning("end of association not recorded", association=caller.number, exc_info=error)
        # Not before: a heartbeat in between would count its row among those of other listeners.
        with self._lock:
            self._callers.discard(caller)

    def _beat(self) -> None:
        """Keep the open associations' rows fresh, and count those of other listeners."""
        while not self._stopping.wait(HEARTBEAT_SECONDS):
            if self._settings.tls.port is not None:
                self._credentials.look()
            callers = self._open()
            ours = [caller.sender.uid for caller in callers]
            uids = [caller.sender.uid for caller in callers if caller.recorded]
            try:
                if uids:
                    self._intake.touch(uids)
                self._open_elsewhere = self._intake.open_elsewhere(ours, within=STALE_AFTER)
            except SQLAlchemyError as error:
                log.warning("heartbeat not recorded", exc_info=error)


class _Conversation:
    """What a caller asks on its association, and who answers it. One thread's."""

    def __init__(self, caller: _Caller, storage: Storage, commitment: CommitmentService) -> None:
        self._caller = caller
        self._storage = storage
        self._commitment = commitment
        self._incoming: Incoming | None = None

    def begin(self, context: Context, command: Command) -> Sink | None:
        """Return who takes the data set of a request: of one that is refused already, nobody."""
        if command.field is Field.C_STORE:
            self._incoming = self._storage.begin(context, command, may_store=self._caller.may_store)
            return self._incoming
        return _InMemory() if self._commitment.takes(context, command) else None

    def serve(self, context: Context, command: Command, sink: Sink | None) -> tuple[int, str] | None:
        """Answer a request."""
        if command.field is Field.C_CANCEL:
            return None
        if command.field is Field.C_STORE:
            return self._store(context, command)
        if command.field is Field.C_ECHO and context.abstract_syntax == Verification:
            log.debug("verified", association=self._caller.number)
            return Status.SUCCESS, ""
        if isinstance(sink, _InMemory):
            sender = self._caller.sender
            information = bytes(sink.content) if command.has_data_set else None
            return self._commitment.take(sender.calling_ae_title, sender.address, context, command, information), ""
        return Status.UNRECOGNISED_OPERATION, ""

    def close(self) -> None:
        """Remove what was received of a data set that will never be whole."""
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None

    def _store(self, context: Context, command: Command) -> tuple[int, str]:
        caller = self._caller
        try:
            stored = self._storage.store(
                caller.number, caller.sender, context, command, self._incoming, may_store=caller.may_store
            )
        except Exception as error:
            # The sender keeps what it could not hand over, and tries again.
            log.error("instance not stored", association=caller.number, exc_info=error)
            stored = Stored(Status.OUT_OF_RESOURCES, "the instance could not be stored")
        finally:
            self.close()
        caller.recorded |= stored.recorded
        caller.stored += stored.receipt is not None
        if stored.status is not Status.SUCCESS:
            log.warning("instance refused", association=caller.number, status=f"{stored.status:04X}", why=stored.why)
        return stored.status, stored.why[:64]


class _InMemory:
    """Takes a data set of a bounded length."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: memoryview) -> None:
        """Take the next piece."""
        if len(self.content) + len(data) > LARGEST_IN_MEMORY:
            raise Violation("a data set too long for its command")
        self.content += data
