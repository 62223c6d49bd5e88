"""The sender: a storage SCU. Files go out as they lie, byte for byte, and every answer becomes an `Outcome`.

What an answer means for trying again stands in `outcome.judged`: delivered (0000; 0111, the instance is there already;
B000, B006, B007, stored with a remark), refused for good (the SOP class, the data set or the caller will not become
acceptable by waiting), or failed for now. An answer that does not come in time drops the association.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pydicom
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node.bounds import MOST_OF_A_PDU, bound_reading, bound_writing, close_what_failed
from dicom_node.checkpoint import halt_reactor, install
from dicom_node.outcome import (
    CONNECTION_LOST,
    NO_ANSWER,
    NO_ASSOCIATION,
    NO_TLS,
    NOT_ACCEPTED,
    NOT_REACHED,
    REFUSED_FOR_GOOD,
    REJECTED,
    REJECTED_FOR_NOW,
    STORED_WITH_REMARK,
    Outcome,
    Result,
    judged,
)
from dicom_node.tls import ClientHandshake, Expected, TlsError, credentials_of, expected_of
from models.settings import Peer, Settings

__all__ = [
    "CONNECTION_LOST",
    "MOST_CONTEXTS",
    "NOT_ACCEPTED",
    "NOT_REACHED",
    "NO_ANSWER",
    "NO_ASSOCIATION",
    "NO_TLS",
    "REFUSED_FOR_GOOD",
    "REJECTED",
    "REJECTED_FOR_NOW",
    "STORED_WITH_REMARK",
    "CannotSend",
    "Destination",
    "Kind",
    "Link",
    "Outcome",
    "Result",
    "echo",
    "kind_of",
    "request",
    "send",
    "trouble",
]

MOST_CONTEXTS = 128
"""Presentation contexts that one association can have (PS3.8 9.3.2.2: odd numbers to 255)."""
# To pynetdicom an association that found no listener is as aborted as one that was cut off.
_reached: WeakSet[Association] = WeakSet()
_handshakes: WeakKeyDictionary[Association, ClientHandshake] = WeakKeyDictionary()

Kind = tuple[UID, UID]
"""SOP class and transfer syntax."""


@dataclass(frozen=True)
class Destination:
    """A storage SCP."""

    ae_title: str
    host: str
    port: int
    tls: Expected | None = None

    @classmethod
    def of(cls, peer: Peer, settings: Settings) -> Destination | None:
        """Where `peer` is asked for associations; None where it has no address."""
        if peer.ae_title is None or peer.host is None or peer.port is None:
            return None
        return cls(peer.ae_title, peer.host, peer.port, expected_of(peer, settings.tls) if peer.tls else None)


class CannotSend(Exception):
    """The file is not a DICOM file with file meta information, or cannot be read; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Link:
    """An association with a storage SCP for at most MOST_CONTEXTS kinds of instances, released at the end of the block.

    Each kind is proposed in a presentation context of its own, so that what the other side takes is ours to choose
    from; those that are asked for `besides` as far as there is room. Every wait for the other side ends within
    `timeout` seconds, also where it goes along byte by byte. Where no association was made, `trouble` says why.
    """

    def __init__(
        self,
        destination: Destination,
        kinds: Iterable[Kind],
        *,
        calling_ae_title: str,
        timeout: float,
        besides: Iterable[Kind] = (),
    ) -> None:
        self._destination = destination
        wanted = sorted(set(kinds))
        more = sorted(set(besides).difference(wanted))[: max(0, MOST_CONTEXTS - len(wanted))]
        self._contexts = [build_context(sop_class, syntax) for sop_class, syntax in (*wanted, *more)]
        self._calling_ae_title = calling_ae_title
        self._timeout = timeout
        self._association: Association | None = None
        self._transport: Any = None
        self._dropped = False
        self.trouble: Outcome | None = None

    def __enter__(self) -> Link:
        """Ask for the association."""
        if self._dropped:
            self.trouble = Outcome(Result.FAILED, NOT_REACHED)
            return self
        association = request(
            self._destination,
            self._contexts,
            self._calling_ae_title,
            self._timeout,
            handlers=[(evt.EVT_REQUESTED, self._on_connection), (evt.EVT_CONN_OPEN, self._on_connection)],
        )
        self._association = None if isinstance(association, Outcome) else association
        self.trouble = trouble(association)
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        if self._association is not None and self._association.is_established:
            self._association.release()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection to send over."""
        return self._association is not None and bool(self._association.is_established)

    def takes(self, kind: Kind) -> bool:
        """Whether the other side has accepted instances of this kind."""
        sop_class, syntax = kind
        accepted = [] if self._association is None else self._association.accepted_contexts
        return any(c.abstract_syntax == sop_class and syntax in c.transfer_syntax for c in accepted)

    def store(self, path: Path, kind: Kind) -> Outcome:
        """Send one file of this kind by C-STORE, and wait for the answer. Without one the association is over."""
        association = self._association
        if association is None or self.trouble is not None:
            return self.trouble or Outcome(Result.FAILED, NOT_REACHED)
        if not self.takes(kind):
            return Outcome(Result.REFUSED, NOT_ACCEPTED)
        if not self.is_open:
            return Outcome(Result.FAILED, CONNECTION_LOST)
        began = time.monotonic()
        try:
            halt_reactor(association, self._timeout)
            answer = association.send_c_store(path)
        except (OSError, RuntimeError, ValueError):
            self.drop()
            return Outcome(Result.FAILED, CONNECTION_LOST)
        status = getattr(answer, "Status", None)
        if status is None:
            self.drop()
            late = time.monotonic() - began >= self._timeout
            return Outcome(Result.FAILED, NO_ANSWER if late else CONNECTION_LOST)
        return judged(status)

    def drop(self) -> None:
        """Cut the connection, at any time and from any thread: who waits for an answer has none.

        Also while it is being made, except in the moment before: call it again where that matters.
        """
        self._dropped = True
        connection: socket.socket | None = None if self._transport is None else self._transport.socket
        if connection is not None:
            with contextlib.suppress(OSError):  # it is closed already, or not asked for yet
                # Not as SSLSocket does it, who takes what a handshake needs from under the thread that is in it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _on_connection(self, event: evt.Event) -> None:
        """It is being made, by another thread, or it is made."""
        dul: Any = event.assoc.dul
        self._transport = dul.socket
        if self._dropped:
            self.drop()


def send(
    destination: Destination, paths: Sequence[Path], *, calling_ae_title: str, timeout: float
) -> Iterator[tuple[Path, Outcome]]:
    """Send DICOM files by C-STORE over one association; yield each file's outcome as it is known.

    Files of more kinds than one association has presentation contexts go over several. A connection that breaks or an
    answer that does not come within `timeout` seconds drops the association; what was to go over it has failed.
    """
    readable: dict[Path, Kind] = {}
    for path in paths:
        try:
            readable[path] = kind_of(path)
        except CannotSend as refused:
            yield path, Outcome(Result.REFUSED, refused.reason)
    kinds = sorted(set(readable.values()))
    for start in range(0, len(kinds), MOST_CONTEXTS):
        chosen = set(kinds[start : start + MOST_CONTEXTS])
        with Link(destination, chosen, calling_ae_title=calling_ae_title, timeout=timeout) as link:
            for path, kind in readable.items():
                if kind in chosen:
                    yield path, link.store(path, kind)


def kind_of(file: Path | bytes) -> Kind:
    """Return SOP class and transfer syntax from the file meta information. Raises CannotSend."""
    try:
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        meta = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        kind = UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)
        if not meta.MediaStorageSOPInstanceUID:
            raise CannotSend("not_dicom")
    except OSError as error:
        raise CannotSend("not_dicom" if error.errno is None else "unreadable") from None
    except Exception:
        # pydicom raises many kinds, whose texts may hold what is in the file.
        raise CannotSend("not_dicom") from None
    return kind


def echo(destination: Destination, *, calling_ae_title: str, timeout: float) -> Outcome:
    """Verify that the destination answers (C-ECHO)."""
    association = request(destination, [build_context("1.2.840.10008.1.1")], calling_ae_title, timeout)
    if isinstance(association, Outcome) or not association.is_established:
        return trouble(association) or Outcome(Result.REFUSED, NOT_ACCEPTED)
    try:
        answer = association.send_c_echo()
    finally:
        association.release()
    status = getattr(answer, "Status", None)
    return Outcome(Result.FAILED, NO_ANSWER) if status is None else judged(status)


def request(
    destination: Destination,
    contexts: list[PresentationContext],
    calling_ae_title: str,
    timeout: float,
    *,
    handlers: Sequence[tuple[Any, Callable[[evt.Event], object]]] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Association | Outcome:
    """Ask for an association, every wait bounded by `timeout`; an outcome where it could not even be asked for.

    It may not be established: see `trouble`.
    """
    # Files are read and sent piece by piece, and never decoded and encoded again.
    _config.STORE_SEND_CHUNKED_DATASET = True
    close_what_failed()
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = min(timeout, 10)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
    expected = destination.tls
    try:
        handshake = None if expected is None else credentials_of(expected.settings).client(expected)
        tls_args: Any = None if expected is None else (handshake, expected.name)
        association = ae.associate(
            destination.host,
            destination.port,
            contexts,
            destination.ae_title,
            ext_neg=list(roles),
            tls_args=tls_args,
            evt_handlers=[(evt.EVT_CONN_OPEN, _on_connection, [timeout]), *handlers],
        )
    except socket.gaierror:
        return Outcome(Result.FAILED, NOT_REACHED)
    except TlsError as error:
        return Outcome(Result.FAILED, NO_TLS, detail=str(error))
    if handshake is not None:
        _handshakes[association] = handshake
    return association


def _on_connection(event: evt.Event, timeout: float) -> None:
    _reached.add(event.assoc)
    dul: Any = event.assoc.dul
    connection: socket.socket = dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # pynetdicom sets none: a peer that stops in the middle of a PDU would hold us for ever.
    connection.settimeout(timeout)
    bound_reading(event.assoc, largest_pdu=MOST_OF_A_PDU, seconds=timeout)
    bound_writing(event.assoc, seconds=timeout)
    install(event.assoc)


def trouble(association: Association | Outcome) -> Outcome | None:
    """Return why an association was not made; None where it was, if only for nothing that was asked for."""
    if isinstance(association, Outcome):
        return association
    if association.is_established:
        return None
    if association.is_rejected:
        primitive: Any = association.acceptor.primitive
        if primitive is not None and primitive.result == 1:
            return Outcome(Result.REFUSED, REJECTED)
        return Outcome(Result.FAILED, REJECTED_FOR_NOW)
    # pynetdicom aborts what it can send nothing over.
    if association.rejected_contexts and not association.accepted_contexts:
        return None
    handshake = _handshakes.get(association)
    if handshake is not None and handshake.failure is not None:
        # Not for good: certificates are renewed, and then what waits goes out.
        return Outcome(Result.FAILED, handshake.failure, detail=handshake.why)
    return Outcome(Result.FAILED, NO_ASSOCIATION if association in _reached else NOT_REACHED)
