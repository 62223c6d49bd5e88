"""The ways out: how stored bytes get to a destination, by the protocol that it speaks.

Each is a connection for one batch, and has the same shape (`Way`). By C-STORE and STOW-RS the bytes go out as they are
stored; only to a destination that does not take their transfer syntax a copy in another one is sent by C-STORE.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

from dicom_node.outcome import NOT_TRANSCODED, Outcome, Result
from dicom_node.sender import CannotSend, Destination, Kind, Link, kind_of
from dicom_node.transcode import PLAIN, CannotTranscode, transcode
from models import logs
from models.settings import Peer, Settings

log = logs.get("deliver")


class Way(Protocol):
    """A connection to a destination, made when the block begins and closed at its end; every wait in it is bounded."""

    trouble: Outcome | None
    """Why nothing can be stored there, where that is so: it was not reached, or it does not let us. Known when the
    block begins or, where nobody said so before, after an instance was sent; then it holds for all that was to follow.
    """

    def __enter__(self) -> Self:
        """Connect."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close the connection."""

    def store(self, content: bytes) -> Outcome:
        """Send what is stored of one report, and wait for the answer."""

    def drop(self) -> None:
        """Cut the connection, at any time and from any thread: who waits for an answer has none."""


def way_to(peer: Peer, settings: Settings, contents: Iterable[bytes], outgoing: Path) -> Way | None:
    """Return the way to a destination, which gets these contents; None where it has no address.

    The libraries of a protocol are loaded when it is first spoken.
    """
    timeout = settings.delivery.timeout
    if peer.protocol == "dicomweb" and peer.url is not None:
        from dicom_node.network.stow import Service, StowLink
        from dicom_node.tls import expected_of

        expected = expected_of(peer, settings.tls, urlsplit(peer.url).hostname) if peer.is_secured else None
        service = Service(peer.url, expected, peer.user, peer.password_file, peer.token_file)
        return StowLink(service, timeout=timeout)
    if peer.protocol == "hl7" and peer.host is not None and peer.port is not None:
        from dicom_node.network.mllp import Listener, MllpLink
        from dicom_node.tls import expected_of

        expected = expected_of(peer, settings.tls) if peer.is_secured else None
        return MllpLink(Listener(peer.host, peer.port, expected), timeout=timeout)
    destination = Destination.of(peer, settings) if peer.protocol == "dimse" else None
    if destination is None:
        return None
    return DimseWay(destination, contents, outgoing, calling_ae_title=settings.ae_title, timeout=timeout)


class DimseWay:
    """An association with a storage SCP, for what is sent over it in its own and in the plain transfer syntaxes."""

    def __init__(
        self,
        destination: Destination,
        contents: Iterable[bytes],
        outgoing: Path,
        *,
        calling_ae_title: str,
        timeout: float,
    ) -> None:
        kinds: set[Kind] = set()
        for content in contents:
            with contextlib.suppress(CannotSend):  # it is refused when its turn comes
                kinds.add(kind_of(content))
        besides = {(sop_class, syntax) for sop_class, _ in kinds for syntax in PLAIN}
        self._link = Link(destination, kinds, calling_ae_title=calling_ae_title, timeout=timeout, besides=besides)
        self._outgoing = outgoing
        self.trouble: Outcome | None = None

    def __enter__(self) -> Self:
        """Ask for the association."""
        self._link.__enter__()
        self.trouble = self._link.trouble
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self._link.__exit__()

    def store(self, content: bytes) -> Outcome:
        """Send a DICOM file by C-STORE: as it is, or in the first plain transfer syntax that is taken."""
        try:
            kind = kind_of(content)
        except CannotSend as refused:
            return Outcome(Result.REFUSED, refused.reason)
        if not self._link.takes(kind):
            sop_class, stored = kind
            other = next((syntax for syntax in PLAIN if self._link.takes((sop_class, syntax))), None)
            if other is not None:
                log.info("sent in another transfer syntax", stored=stored.name, sent=other.name)
                try:
                    content = transcode(content, other)
                except CannotTranscode as why:
                    log.error("cannot be written in another transfer syntax", why=str(why))
                    return Outcome(Result.REFUSED, NOT_TRANSCODED)
                kind = (sop_class, other)
        with tempfile.NamedTemporaryFile(dir=self._outgoing) as file:
            file.write(content)
            file.flush()
            return self._link.store(Path(file.name), kind)

    def drop(self) -> None:
        """Cut the connection."""
        self._link.drop()
