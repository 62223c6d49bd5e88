"""The sender: a storage SCU. Files go out as they lie, byte for byte, and every answer becomes an `Outcome`.

What an answer means for trying again stands in `_judged`: delivered (0000; 0111, the instance is there already;
B000, B006, B007, stored with a remark), refused for good (the SOP class, the data set or the caller will not become
acceptable by waiting), or failed for now.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pydicom
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node.tls import ClientHandshake, Expected, TlsError, credentials_of
from models.settings import Peer, Settings

_MOST_CONTEXTS = 128
_STORED_WITH_REMARK = (0xB000, 0xB006, 0xB007)
# To pynetdicom an association that found no listener is as aborted as one that was cut off.
_reached: WeakSet[Association] = WeakSet()
_handshakes: WeakKeyDictionary[Association, ClientHandshake] = WeakKeyDictionary()


class Result(StrEnum):
    """What became of an instance."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one instance, and why."""

    result: Result
    reason: str
    status: int | None = None


_NO_TLS = Outcome(Result.FAILED, "certificate_files_not_usable")


@dataclass(frozen=True)
class Destination:
    """A storage SCP."""

    ae_title: str
    host: str
    port: int
    tls: Expected | None = None

    @classmethod
    def of(cls, peer: Peer, settings: Settings) -> Destination | None:
        """Where reports for `peer` go; None where it has no address."""
        if peer.host is None or peer.port is None:
            return None
        name = peer.certificate_name or peer.host
        expected = Expected(settings.tls, name, tuple(peer.certificate_sha256)) if peer.tls else None
        return cls(peer.ae_title, peer.host, peer.port, expected)


class CannotSend(Exception):
    """The file is not a DICOM file with file meta information, or cannot be read; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def send(
    destination: Destination, paths: Sequence[Path], *, calling_ae_title: str, timeout: float
) -> Iterator[tuple[Path, Outcome]]:
    """Send DICOM files by C-STORE over one association; yield each file's outcome as it is known.

    A connection that breaks or an answer that does not come within `timeout` seconds drops the association; what was
    not sent by then has failed.
    """
    readable: dict[Path, tuple[UID, UID]] = {}
    for path in paths:
        try:
            readable[path] = _kind_of(path)
        except CannotSend as refused:
            yield path, Outcome(Result.REFUSED, refused.reason)
    if not readable:
        return
    try:
        association = _associate(destination, sorted(set(readable.values())), calling_ae_title, timeout)
    except TlsError:
        yield from ((path, _NO_TLS) for path in readable)
        return
    try:
        for path, kind in readable.items():
            yield path, _sent(association, path, kind)
    finally:
        if association.is_established:
            association.release()


def echo(destination: Destination, *, calling_ae_title: str, timeout: float) -> Outcome:
    """Verify that the destination answers (C-ECHO)."""
    try:
        association = _request(destination, [build_context("1.2.840.10008.1.1")], calling_ae_title, timeout)
    except TlsError:
        return _NO_TLS
    if not association.is_established:
        return _not_associated(association)
    try:
        answer = association.send_c_echo()
    finally:
        association.release()
    return _judged(getattr(answer, "Status", None))


def _kind_of(path: Path) -> tuple[UID, UID]:
    """Return SOP class and transfer syntax from the file meta information."""
    try:
        meta = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        kind = UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)
        if not meta.MediaStorageSOPInstanceUID:
            raise CannotSend("not_dicom")
    except OSError as error:
        raise CannotSend("not_dicom" if error.errno is None else "unreadable") from None
    except Exception:
        # pydicom raises many kinds, whose texts may hold what is in the file.
        raise CannotSend("not_dicom") from None
    return kind


def _associate(
    destination: Destination, kinds: Sequence[tuple[UID, UID]], calling_ae_title: str, timeout: float
) -> Association:
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in kinds[:_MOST_CONTEXTS]]
    return _request(destination, contexts, calling_ae_title, timeout)


def _request(
    destination: Destination, contexts: list[PresentationContext], calling_ae_title: str, timeout: float
) -> Association:
    # Files are read and sent piece by piece, and never decoded and encoded again.
    _config.STORE_SEND_CHUNKED_DATASET = True
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = min(timeout, 10)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
    expected = destination.tls
    handshake = None if expected is None else credentials_of(expected.settings).client(expected)
    tls_args: Any = None if expected is None else (handshake, expected.name)
    association = ae.associate(
        destination.host,
        destination.port,
        contexts,
        destination.ae_title,
        tls_args=tls_args,
        evt_handlers=[(evt.EVT_CONN_OPEN, _on_connection, [timeout])],
    )
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


def _sent(association: Association, path: Path, kind: tuple[UID, UID]) -> Outcome:
    if not association.is_established:
        return _not_associated(association)
    sop_class, syntax = kind
    if not any(c.abstract_syntax == sop_class and syntax in c.transfer_syntax for c in association.accepted_contexts):
        return Outcome(Result.REFUSED, "sop_class_or_transfer_syntax_not_accepted")
    try:
        answer = association.send_c_store(path)
    except (OSError, RuntimeError, ValueError):
        return Outcome(Result.FAILED, "connection_lost")
    return _judged(getattr(answer, "Status", None))


def _not_associated(association: Association) -> Outcome:
    if association.is_rejected:
        primitive: Any = association.acceptor.primitive
        permanent = primitive is not None and primitive.result == 1
        return Outcome(Result.REFUSED if permanent else Result.FAILED, "association_rejected")
    handshake = _handshakes.get(association)
    if handshake is not None and handshake.failure is not None:
        # Not for good: certificates are renewed, and then what waits goes out.
        return Outcome(Result.FAILED, handshake.failure)
    return Outcome(Result.FAILED, "connection_lost" if association in _reached else "not_reached")


def _judged(status: int | None) -> Outcome:
    if status is None:
        return Outcome(Result.FAILED, "no_answer")
    if status == 0x0000:
        return Outcome(Result.DELIVERED, "stored", status)
    if status == 0x0111:
        return Outcome(Result.DELIVERED, "already_there", status)
    if status in _STORED_WITH_REMARK:
        return Outcome(Result.DELIVERED, "stored_with_remark", status)
    if status in (0x0122, 0x0124, 0x0117) or 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF:
        return Outcome(Result.REFUSED, "refused", status)
    return Outcome(Result.FAILED, "refused_for_now", status)
