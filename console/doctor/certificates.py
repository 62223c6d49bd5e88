"""Our certificates: whether they can be used, how long they last, who vouches for them, and who can read the key."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from console.doctor.verdict import Finding, warning, well, wrong
from dicom_node.tls import Credentials, Expected, TlsError
from models import clock
from models.settings import Settings, TlsSettings

AREA = "tls"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def look_at_certificates(settings: Settings) -> Iterator[Finding]:
    """Look at the files of the section `tls`, where there are any."""
    tls = settings.tls
    if tls.certificate is None and tls.ca is None:
        return
    try:
        credentials = Credentials(tls)
        credentials.client(Expected(tls, settings.ae_title))
        if tls.port is not None:
            credentials.server()
    except TlsError as error:
        yield wrong(
            AREA, str(error), "correct the files of [tls]: nobody is let in over TLS, and nothing is sent over it"
        )
    if tls.private_key is not None and tls.private_key.is_file():
        yield _readers(tls.private_key)
    ours, theirs = list(_read(tls.certificate)), list(_read(tls.ca))
    for certificate in ours:
        yield _lasts(tls, certificate, "ours" if certificate is ours[0] else "one above ours")
    for certificate in theirs:
        yield _lasts(tls, certificate, "a CA's")
    if ours:
        yield _uses(ours[0])
        yield _chain(ours, theirs)
    if tls.port is not None and not tls.require_certificates:
        said = "callers need no certificate over TLS (require_certificates = false), except peers with tls"
        yield warning(AREA, said, "set require_certificates = true once every peer has one")


def _read(path: Path | None) -> Iterator[x509.Certificate]:
    try:
        yield from x509.load_pem_x509_certificates(path.read_bytes()) if path is not None else ()
    except (OSError, ValueError):
        return  # the contexts could not be made of it either, and that was said


def _readers(key: Path) -> Finding:
    if key.stat().st_mode & _OTHERS:
        return warning(AREA, f"the private key {key} is open to others than its owner", f"chmod 600 {key}")
    return well(AREA, "the private key is its owner's alone")


def _lasts(tls: TlsSettings, certificate: x509.Certificate, whose: str) -> Finding:
    ends, now = certificate.not_valid_after_utc, clock.now()
    said = f"certificate of {_name(certificate)} ({whose})"
    if certificate.not_valid_before_utc > now:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d}"
        return wrong(AREA, f"{said} is valid from {begins} on only", "wait, or look whether this host's clock is right")
    days = (ends - now) / timedelta(days=1)
    if days < 0:
        return wrong(AREA, f"{said} expired on {ends:%Y-%m-%d}", "renew it; it is read again without a restart")
    if days < tls.warn_days:
        return warning(AREA, f"{said} ends on {ends:%Y-%m-%d}, in {days:.0f} days", "renew it before that day")
    return well(AREA, f"{said} lasts until {ends:%Y-%m-%d}")


def _uses(certificate: x509.Certificate) -> Finding:
    """We are a server to those who call us, and a client to those we call."""
    try:
        named = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return well(AREA, "our certificate is one of a server and of a client")
    wanted = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}
    missing = [name for oid, name in wanted.items() if oid not in named]
    if missing and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in named:
        said = f"our certificate is none of a {' or '.join(missing)} (extended key usage)"
        return wrong(AREA, said, "have one issued with both uses, serverAuth and clientAuth")
    return well(AREA, "our certificate is one of a server and of a client")


def _chain(ours: Sequence[x509.Certificate], theirs: Sequence[x509.Certificate]) -> Finding:
    """Each in our file has to vouch for the one before, and peers have to know who vouches for the last."""
    for lower, upper in pairwise(ours):
        if not _vouches(upper, lower):
            said = f"in our file {_name(upper)} does not vouch for {_name(lower)}"
            return wrong(AREA, said, "put our certificate first, then the CAs between it and the root, in that order")
    top = ours[-1]
    if _vouches(top, top) or any(_vouches(known, top) for known in theirs):
        return well(AREA, "our chain is complete")
    said = f"our chain ends below {_name(top, issuer=True)}, which is not among the CAs that we trust"
    return warning(AREA, said, "see that peers trust that CA; if it is not the root, add it to our certificate's file")


def _vouches(upper: x509.Certificate, lower: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _name(certificate: x509.Certificate, *, issuer: bool = False) -> str:
    name = certificate.issuer if issuer else certificate.subject
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "nobody"
