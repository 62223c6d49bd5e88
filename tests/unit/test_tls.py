"""Certificates: which peer one belongs to, when it ends, and what is said of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import PEM_cert_to_DER_cert, cert_time_to_seconds

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dicom_node.policy import Admission, Rejection, admit
from dicom_node.tls import Certificate, Credentials, TlsError, not_after
from models import clock
from models.settings import GivenSettings, Peer, TlsSettings
from tests.certificates import Authority, Issued, openssl

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PIN = "ab" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "Test CA")


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("node")


def settings_of(authority: Authority, issued: Issued, **more: object) -> TlsSettings:
    files = {"certificate": issued.certificate, "private_key": issued.key, "ca": authority.certificate}
    return TlsSettings.model_validate({"port": 2762, **files, **more})


def shown(*names: str, digest: str = PIN) -> Certificate:
    return Certificate(digest, frozenset(names), NOW)


def peer(**more: object) -> Peer:
    return Peer.model_validate({"name": "ct", "ae_title": "CT", "role": "source", "tls": True, **more})


def test_a_pin_counts_and_then_no_name_does() -> None:
    pinned = peer(certificate_sha256=["AB:" * 31 + "AB", "cd" * 32], host="ct.example.org")
    assert shown("other").fits(pinned)
    assert shown("other", digest="cd" * 32).fits(pinned)
    assert not shown("ct.example.org", digest="ef" * 32).fits(pinned)


def test_without_a_pin_the_name_counts_and_without_a_name_the_host() -> None:
    assert shown("ct.example.org").fits(peer(certificate_name="CT.example.org", host="10.0.0.1"))
    assert not shown("10.0.0.1").fits(peer(certificate_name="ct.example.org", host="10.0.0.1"))
    assert shown("10.0.0.1", "x").fits(peer(host="10.0.0.1"))
    assert shown("2001:db8::7").fits(peer(host="2001:DB8:0:0:0:0:0:7"))


def test_a_wildcard_or_a_part_of_a_name_is_nobodys() -> None:
    for name in ("*.example.org", "example.org", "ct.example.org.evil.test"):
        assert not shown(name).fits(peer(host="ct.example.org"))


@pytest.mark.parametrize("certificate", [None, shown("archive"), shown("ct")])
def test_the_certificate_and_the_calling_ae_title_belong_together(certificate: Certificate | None) -> None:
    settings = GivenSettings(
        tls={"port": 2762, "certificate": "c", "private_key": "k", "ca": "a"},
        listener={"accept_unknown_callers": True},
        peers=[
            peer(certificate_name="ct"),
            Peer(name="pacs", ae_title="PACS", role="destination", host="pacs", port=104, tls=True),
            Peer(name="plain", ae_title="PLAIN", role="source"),
        ],
    )

    def asked(calling: str) -> Admission | Rejection:
        return admit(
            settings, calling=calling, called="OSTEON", address="10.1.1.1", open_associations=0, certificate=certificate
        )

    right = certificate is not None and "ct" in certificate.names
    assert asked("CT") == (Admission(may_store=True) if right else Rejection.CERTIFICATE)
    assert asked("PACS") is Rejection.CERTIFICATE, "also where unknown callers are let in"
    assert asked("PLAIN") == Admission(may_store=True)
    assert Rejection.CERTIFICATE.answer == Rejection.CALLING_AE_TITLE.answer


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"peers": [{"name": "a", "ae_title": "A", "role": "source", "tls": True, "host": "a"}]}, "needs tls.port"),
        ({"peers": [{"name": "a", "ae_title": "A", "role": "source", "tls": True}]}, "to tell its certificate by"),
        (
            {"peers": [{"name": "a", "ae_title": "A", "role": "destination", "host": "a", "port": 1, "tls": True}]},
            "needs tls.ca",
        ),
        (
            {"peers": [{"name": "a", "ae_title": "A", "role": "source", "certificate_sha256": [PIN]}]},
            "need tls = true",
        ),
        ({"tls": {"certificate": "a"}}, "belong together"),
        ({"tls": {"port": 2762}}, "port needs"),
        ({"tls": {"only": True}}, "only needs port"),
        ({"port": 1, "tls": {"port": 1, "certificate": "c", "private_key": "k", "ca": "a"}}, "another one than port"),
    ],
)
def test_settings_that_would_let_nobody_or_anybody_in_are_mistakes(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GivenSettings.model_validate(settings)


def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(authority: Authority, issued: Issued) -> None:
    for path in (authority.certificate, issued.certificate):
        said = openssl("x509", "-in", path, "-noout", "-enddate").strip().removeprefix("notAfter=")
        ends = not_after(PEM_cert_to_DER_cert(path.read_text()))
        assert ends.timestamp() == cert_time_to_seconds(said)
    far = authority.issue("far", days=12_000)
    assert not_after(PEM_cert_to_DER_cert(far.certificate.read_text())).year > 2050, "GeneralizedTime"


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_end(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        not_after(content)


def test_the_end_of_a_certificate_is_warned_of_once_a_day_and_an_expired_one_is_an_error(
    authority: Authority, issued: Issued
) -> None:
    credentials = Credentials(settings_of(authority, issued, warn_days=5))
    ends = not_after(PEM_cert_to_DER_cert(issued.certificate.read_text()))
    levels = []
    for days in (5.5, 4.9, 4.8, 3.8, -0.1, -0.2):
        with capture_logs() as said, clock.frozen(ends - timedelta(days=days)):
            credentials.look()
        levels.append([line["log_level"] for line in said if line.get("sha256") == issued.sha256])
    assert levels == [[], ["warning"], [], ["warning"], ["error"], []]


def test_a_peers_certificate_that_ends_soon_is_told_with_the_ae_title(authority: Authority, issued: Issued) -> None:
    credentials = Credentials(settings_of(authority, issued))
    with capture_logs() as said, clock.frozen(NOW - timedelta(days=3)):
        credentials.note(shown("ct"), "CT")
        credentials.note(shown("ct"), "CT")
    assert [(line["event"], line["whose"], line["days"]) for line in said] == [
        ("certificate expires soon", "that of CT", 3)
    ]


def test_a_key_that_others_can_read_is_told(authority: Authority) -> None:
    open_key = authority.issue("open")
    open_key.key.chmod(0o640)
    with capture_logs() as said:
        Credentials(settings_of(authority, open_key)).server()
    assert [line["event"] for line in said] == ["the private key is open to others than its owner"]


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"])
def test_files_that_never_were_usable_keep_the_listener_from_starting(
    authority: Authority, issued: Issued, tmp_path: Path, content: bytes
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_bytes(content)
    for changed in ("certificate", "private_key", "ca"):
        with pytest.raises(TlsError, match="TLS cannot be used"):
            Credentials(settings_of(authority, issued, **{changed: broken})).server()


def test_a_key_of_another_certificate_is_refused_and_the_old_pair_stays(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    credentials = Credentials(settings_of(authority, one))
    before = credentials.server()
    one.key.write_bytes(other.key.read_bytes())
    with capture_logs() as said:
        assert credentials.server() is before
        assert credentials.server() is before
    assert [line["log_level"] for line in said] == ["error"], "once for each change"
    one.certificate.write_bytes(other.certificate.read_bytes())
    assert credentials.server() is not before
