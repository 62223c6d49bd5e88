"""TLS: the contexts of the listener and the sender, their files read again when they change, certificates that end.

The profile is PS3.15 B.12, Non-Downgrading BCP 195: TLS 1.2 and 1.3 and nothing older, in 1.2 only suites with an
ephemeral key exchange (ECDHE) and authenticated encryption, no compression, no renegotiation. Both sides show a
certificate. That a chain leads to `tls.ca` is only half of it: `dicom_node.policy` asks whether a certificate belongs
to the AE title that is claimed, and here the sender asks whether it belongs to the destination.
"""

from __future__ import annotations

import re
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from models import clock, logs
from models.errors import CannotStart
from models.settings import Peer, TlsSettings

SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 only: all suites of 1.3 are of this kind."""
SECURITY_LEVEL = 2
"""OpenSSL's: no key of less than 112 bits of security (RSA 2048), no SHA-1 signature."""
WARN_AGAIN = timedelta(days=1)
MOST_REMEMBERED = 1000
log = logs.get("tls")

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _VERSION = 0x17, 0xA0


class TlsError(CannotStart):
    """Certificate, private key or CA file cannot be used."""


@dataclass(frozen=True)
class Certificate:
    """The certificate that a peer has shown and that its CA vouches for."""

    sha256: str
    names: frozenset[str]
    """Alternative names (DNS, IP address, URI) and the subject's common name, in small letters."""
    expires: datetime

    def fits(self, peer: Peer) -> bool:
        """Return whether it belongs to `peer`: by its pins, where there are any, else by its name."""
        if peer.certificate_sha256:
            return self.sha256 in peer.certificate_sha256
        name = peer.certificate_name or peer.host
        return name is not None and _plain(name) in self.names


@dataclass(frozen=True)
class Expected:
    """What the certificate of a destination is to be: one of `pins`, where there are any, else that of `name`."""

    settings: TlsSettings
    name: str
    pins: tuple[str, ...] = ()


def expected_of(peer: Peer, settings: TlsSettings, host: str | None = None) -> Expected:
    """Return what the certificate of `peer` is to be, as a destination; `host` where it is not that of its address."""
    own = settings if peer.ca is None else settings.model_copy(update={"ca": peer.ca})
    return Expected(own, peer.certificate_name or host or peer.host or "", tuple(peer.certificate_sha256))


def certificate_of(connection: socket.socket | None) -> Certificate | None:
    """Return the verified certificate of the other side; None without TLS, and where it has shown none.

    Nor is it one that has ended since, as it may in a session of TLS 1.2 that is taken up again.
    """
    if not isinstance(connection, ssl.SSLSocket):
        return None
    # The stubs of the standard library know less of its fields than is there.
    content, parts = connection.getpeercert(binary_form=True), cast(dict[str, Any] | None, connection.getpeercert())
    if not content or not parts:
        return None
    expires = not_after(content)
    if expires <= clock.now():
        return None
    alternatives = [str(value) for _, value in parts.get("subjectAltName", ())]
    common = [str(value) for part in parts.get("subject", ()) for key, value in part if key == "commonName"]
    return Certificate(
        sha256=sha256(content).hexdigest(),
        names=frozenset(_plain(name) for name in (*alternatives, *common)),
        expires=expires,
    )


@cache
def credentials_of(settings: TlsSettings) -> Credentials:
    """Return the one `Credentials` of this process for these settings."""
    return Credentials(settings)


class Credentials:
    """Our certificate and the CAs that we trust, as they are in the files now. Threads may share one.

    Files that have changed are read again at the next handshake or `look`. Where they cannot be used, the old ones
    stay in force and the log says so.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._server = _Current(settings, self._make_server)
        self._client = _Current(settings, self._make_client)
        self._unnamed_client = _Current(settings, self._make_unnamed_client)
        self._warned: dict[str, datetime] = {}

    def server(self) -> ssl.SSLContext:
        """Return the listener's context. Raises TlsError where there never was a usable one."""
        return self._server.context()

    def client(self, expected: Expected) -> ClientHandshake:
        """Return what one connection to a destination begins with. Raises TlsError as `server` does."""
        current = self._unnamed_client if expected.pins else self._client
        return ClientHandshake(current.context(), expected.pins)

    def look(self) -> None:
        """Read again what has changed, and warn, once a day, of certificates in the files that end soon."""
        self._server.context()
        for what, path in (("ours", self._settings.certificate), ("a CA's", self._settings.ca)):
            try:
                ends = {sha256(content).hexdigest(): not_after(content) for content in _certificates_in(path)}
            except (OSError, ValueError) as error:
                # Half-way through a change, of which the next look knows more; the contexts in force stay.
                log.debug("certificates not looked at", whose=what, exc_info=error)
                continue
            for digest, end in ends.items():
                self._warn(what, digest, end)

    def note(self, certificate: Certificate, calling_ae_title: str) -> None:
        """Warn, once a day, of a peer's certificate that ends soon."""
        self._warn(f"that of {calling_ae_title}", certificate.sha256, certificate.expires)

    def _warn(self, whose: str, digest: str, expires: datetime) -> None:
        now = clock.now()
        days = (expires - now) / timedelta(days=1)
        if days > self._settings.warn_days or now - self._warned.get(digest, now - WARN_AGAIN) < WARN_AGAIN:
            return
        if len(self._warned) >= MOST_REMEMBERED:
            self._warned.clear()
        self._warned[digest] = now
        level, event = (log.error, "certificate has expired") if days < 0 else (log.warning, "certificate expires soon")
        level(event, whose=whose, sha256=digest, expires=expires.isoformat(), days=int(days))

    def _make_server(self) -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER, self._settings)
        context.verify_mode = ssl.CERT_REQUIRED if self._settings.require_certificates else ssl.CERT_OPTIONAL
        # A session taken up again is not verified again. TLS 1.2 cannot be kept from it here; its tickets, at least,
        # end with this context, that is when a file changes, and take no memory as sessions without one would.
        context.num_tickets = 0
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        return context

    def _make_client(self) -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_CLIENT, self._settings)
        context.sslsocket_class = _CheckedSocket
        return context

    def _make_unnamed_client(self) -> ssl.SSLContext:
        context = self._make_client()
        context.check_hostname = False
        return context


DISTRUSTED = "certificate_not_trusted"
TLS_FAILED = "tls_failed"
NOT_PINNED = "it is not the certificate with that fingerprint"


def why_failed(error: OSError) -> str:
    """Return what went wrong with a handshake, in OpenSSL's words, which name no file and no person."""
    if NOT_PINNED in error.args:
        return NOT_PINNED
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return getattr(error, "verify_message", "") or reason or type(error).__name__


class ClientHandshake:
    """Takes the place of the context in `AE.associate(tls_args=…)`, and knows afterwards why there is no connection."""

    def __init__(self, context: ssl.SSLContext, pins: tuple[str, ...]) -> None:
        self._context = context
        self._pins = pins
        self.failure: str | None = None
        self.why = ""

    def wrap_socket(self, connection: socket.socket, **options: Any) -> ssl.SSLSocket:
        """Do as `SSLContext.wrap_socket` does."""
        wrapped = cast(_CheckedSocket, self._context.wrap_socket(connection, **options))
        wrapped.handshake = self
        return wrapped

    def check(self, content: bytes | None) -> None:
        """Raise SSLCertVerificationError unless the certificate is one that was pinned, where any was."""
        if self._pins and sha256(content or b"").hexdigest() not in self._pins:
            raise ssl.SSLCertVerificationError(NOT_PINNED)


class _CheckedSocket(ssl.SSLSocket):
    """Ends a handshake whose certificate is not the expected one before a byte of DICOM is sent."""

    handshake: ClientHandshake

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
            self.handshake.check(self.getpeercert(binary_form=True))
        except OSError as error:
            distrusted = isinstance(error, ssl.SSLCertVerificationError)
            self.handshake.failure = DISTRUSTED if distrusted else TLS_FAILED
            self.handshake.why = why_failed(error)
            # pynetdicom leaves it to the garbage collector.
            self.close()
            raise


class _Current:
    """A context, made again when one of its files has changed."""

    def __init__(self, settings: TlsSettings, make: Callable[[], ssl.SSLContext]) -> None:
        self._files = [path for path in (settings.certificate, settings.private_key, settings.ca) if path]
        self._make = make
        self._seen: list[tuple[int, ...]] = []
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def context(self) -> ssl.SSLContext:
        with self._lock:
            seen = [_traits(path) for path in self._files]
            if self._context is None or seen != self._seen:
                self._context = self._made_anew(self._context)
                self._seen = seen
            return self._context

    def _made_anew(self, old: ssl.SSLContext | None) -> ssl.SSLContext:
        try:
            made = self._make()
        except (OSError, ValueError) as error:
            why = _told(error)
            if old is None:
                raise TlsError(f"TLS cannot be used: {why}") from None
            log.error("certificate files cannot be used, the old ones stay in force", why=why)
            return old
        if old is not None:
            log.info("certificate files read again")
        return made


def _context(protocol: ssl._SSLMethod, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{SUITES}:@SECLEVEL={SECURITY_LEVEL}")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # So that the CA file may hold an intermediate CA, or the one certificate of a peer without a CA.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.ca is not None:
        context.load_verify_locations(settings.ca)
    if settings.certificate is not None and settings.private_key is not None:
        # An encrypted key would have the node wait at a terminal.
        context.load_cert_chain(settings.certificate, settings.private_key, password=lambda: b"")
        # Ourselves, for `osteon health`; not those above us, whose other certificates nobody asked us to trust.
        context.load_verify_locations(cadata=_first_in(settings.certificate))
        _warn_of_readers(settings.private_key)
    return context


def own_pin(settings: TlsSettings) -> str:
    """Return the sha256 of our own certificate. Raises TlsError."""
    try:
        return sha256(_first_in(settings.certificate)).hexdigest()
    except (OSError, ValueError):
        raise TlsError("TLS cannot be used: there is no certificate") from None


def not_after(certificate: bytes) -> datetime:
    """Return when a DER certificate ends (RFC 5280 4.1.2.5). Raises ValueError where it is none."""
    try:
        ((_, whole),) = _elements(certificate)
        _, fields = next(_elements(whole))
        parts = [content for tag, content in _elements(fields) if tag != _VERSION]
        # Serial number, signature, issuer, validity, …
        _, (tag, end) = _elements(parts[3])
        text = end.decode("ascii")
        if tag == _UTC_TIME:
            text = ("19" if text[:2] >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, StopIteration, ValueError):
        raise ValueError("not a certificate") from None


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Split DER into tags and contents."""
    start = 0
    while start < len(content):
        tag, length, start = content[start], content[start + 1], start + 2
        if length & 0x80:
            size = length & 0x7F
            length, start = int.from_bytes(content[start : start + size], "big"), start + size
        if start + length > len(content):
            raise ValueError("not DER")
        yield tag, content[start : start + length]
        start += length


def _certificates_in(path: Path | None) -> list[bytes]:
    """Return the certificates of a PEM file as DER."""
    if path is None:
        return []
    return [ssl.PEM_cert_to_DER_cert(block.decode("ascii")) for block in _PEM.findall(path.read_bytes())]


def _first_in(path: Path | None) -> bytes:
    """Return the first certificate of a PEM file, which is the one that the others vouch for."""
    found = _certificates_in(path)
    if not found:
        raise ValueError("no certificate")
    return found[0]


def _warn_of_readers(private_key: Path) -> None:
    if private_key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("the private key is open to others than its owner", file=private_key.name)


def _traits(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _told(error: OSError | ValueError) -> str:
    """An error's cause in a word; the texts of OpenSSL name its source files."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "a file is not what it should be"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return "a file is not in PEM format"


def _plain(name: str) -> str:
    """Write a name in the one way in which it is compared."""
    try:
        return str(ip_address(name.strip()))
    except ValueError:
        return name.strip().lower()
