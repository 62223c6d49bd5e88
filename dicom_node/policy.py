"""Who may associate and what they may do (PS3.8 9.3.4). One decision, asked before an association is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address

from dicom_node.tls import Certificate
from models.settings import Peer, Settings


class Rejection(Enum):
    """An A-ASSOCIATE-RJ: result, source, reason."""

    CALLED_AE_TITLE = (1, 1, 7)
    CALLING_AE_TITLE = (1, 1, 3)
    CERTIFICATE = (1, 1, 3, "not over TLS, or not with the certificate that belongs to the calling AE title")
    TOO_MANY = (2, 3, 2)
    PROTOCOL_VERSION = (1, 2, 2)
    APPLICATION_CONTEXT = (1, 1, 2)

    @property
    def answer(self) -> tuple[int, int, int]:
        """Result, source and reason: whoever shows a wrong certificate learns no more than a stranger."""
        result, source, reason = self.value[:3]
        return result, source, reason


@dataclass(frozen=True)
class Admission:
    """An accepted caller. One that may not store may still verify (C-ECHO)."""

    may_store: bool


def admit(
    settings: Settings,
    *,
    calling: str,
    called: str,
    address: str,
    open_associations: int,
    certificate: Certificate | None = None,
) -> Admission | Rejection:
    """Decide on a requested association. AE titles without padding; `address` as the socket gives it.

    `certificate` is the verified one that the caller has shown; None where it came without TLS.
    """
    if called != settings.ae_title:
        return Rejection.CALLED_AE_TITLE
    if not _proven(settings, calling, certificate):
        return Rejection.CERTIFICATE
    admission = _caller(settings, calling, address)
    if isinstance(admission, Admission) and open_associations >= settings.listener.max_associations:
        return Rejection.TOO_MANY
    return admission


def known_peers(settings: Settings, *, calling: str, address: str) -> list[Peer]:
    """Return the peers that an accepted caller is: those of its AE title, and at its address where that is checked."""
    return [
        peer
        for peer in settings.peers
        if peer.ae_title == calling and not (peer.check_address and not _same_address(peer.host, address))
    ]


def _caller(settings: Settings, calling: str, address: str) -> Admission | Rejection:
    source = next((peer for peer in settings.sources if peer.ae_title == calling), None)
    if source is not None:
        if source.check_address and not _same_address(source.host, address):
            return Rejection.CALLING_AE_TITLE
        return Admission(may_store=True)
    if settings.listener.accept_unknown_callers:
        return Admission(may_store=True)
    if any(peer.ae_title == calling for peer in settings.destinations):
        return Admission(may_store=False)
    # The node's own health check.
    if calling == settings.ae_title and (_plain(address).is_loopback or address == settings.host):
        return Admission(may_store=False)
    return Rejection.CALLING_AE_TITLE


def _proven(settings: Settings, calling: str, certificate: Certificate | None) -> bool:
    """Whether the certificate is that of the peer with this AE title, where the peer has one."""
    claimed = [peer for peer in settings.sources if peer.ae_title == calling]
    claimed = claimed or [peer for peer in settings.destinations if peer.ae_title == calling]
    with_tls = [peer for peer in claimed if peer.tls]
    return not with_tls or (certificate is not None and any(certificate.fits(peer) for peer in with_tls))


def _same_address(host: str | None, address: str) -> bool:
    return host is not None and _plain(host) == _plain(address)


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Read an address; an IPv4 caller of an IPv6 socket appears as ::ffff:a.b.c.d (RFC 4291)."""
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return found if mapped is None else mapped
