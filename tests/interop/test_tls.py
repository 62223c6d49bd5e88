"""TLS as DCMTK and OpenSSL meet it: who gets in with which certificate, version and suite, and whom we send to."""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom.uid import UID
from pynetdicom import AE
from typer.testing import CliRunner

from console.health import listener_trouble
from console.main import app
from console.ports import free_port
from dicom_node.listener import Listener
from dicom_node.sender import Destination, Link, Outcome, Result, echo
from dicom_node.spool import Spool
from dicom_node.tls import Expected
from models.database import Database
from models.settings import Peer, Settings, TlsSettings
from models.upgrade import upgrade
from tests import dicom_bytes
from tests.certificates import Authority, Issued
from tests.peers import require_peer
from tests.servers import Answer, Node, dcmtk, given, renewed, wait_until

PATIENCE = 3.0


@dataclass(frozen=True)
class Hospital:
    """Who has which certificate."""

    authority: Authority
    node: Issued
    modality: Issued
    """By name."""
    pinned: Issued
    """By its fingerprint."""
    expired: Issued
    foreign: Issued
    """Of another CA, with the modality's name."""
    other_ca: Path

    def tls(self, **changes: object) -> dict[str, object]:
        """The node's settings."""
        files = {"certificate": self.node.certificate, "private_key": self.node.key, "ca": self.authority.certificate}
        return {"port": free_port(), **files, **changes}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder / "ours", "Hospital CA"), Authority(folder / "other", "Other CA")
    return Hospital(
        authority,
        node=authority.issue("node", alternatives="DNS:localhost,IP:127.0.0.1"),
        modality=authority.issue("modality", alternatives="DNS:modality.example.org"),
        pinned=authority.issue("pinned"),
        expired=authority.issue("expired", alternatives="DNS:modality.example.org", days=-1),
        foreign=other.issue("foreign", alternatives="DNS:modality.example.org"),
        other_ca=other.certificate,
    )


@pytest.fixture(scope="module")
def node(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """`osteon listen` with a plain port and one for TLS."""
    folder = tmp_path_factory.mktemp("node")
    made = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        listener={"association_timeout": PATIENCE},
        tls=hospital.tls(),
        peers=[
            Peer(
                name="modality", ae_title="MODALITY", role="source", tls=True, certificate_name="Modality.example.org"
            ),
            Peer(
                name="pinned", ae_title="PINNED", role="source", tls=True, certificate_sha256=[hospital.pinned.sha256]
            ),
            Peer(name="old", ae_title="OLD", role="source"),
        ],
    )
    upgrade(made)
    listener = Node(made, folder / "node.log")
    listener.start("listen")
    listener.wait_until_listening()
    yield listener
    listener.stop()


def over_tls(node: Node) -> Destination:
    assert node.settings.tls.port is not None
    return Destination(node.settings.ae_title, "127.0.0.1", node.settings.tls.port)


def echo_by_dcmtk(node: Node, hospital: Hospital, who: Issued, calling: str) -> Answer:
    return dcmtk("echoscu", over_tls(node), *of_dcmtk(who, hospital.authority.certificate), calling=calling)


def of_dcmtk(who: Issued, ca: Path) -> tuple[str, ...]:
    return "+tls", str(who.key), str(who.certificate), "+cf", str(ca)


# --- who gets in --------------------------------------------------------------------------------------------------


def test_a_modality_with_its_certificate_stores_over_tls(
    node: Node, hospital: Hospital, test_data: Path, tmp_path: Path
) -> None:
    sample = renewed(test_data / "dicom" / "WG04_RG3_J2KR.dcm", tmp_path / "sample.dcm")
    options = of_dcmtk(hospital.modality, hospital.authority.certificate)
    assert dcmtk("storescu", over_tls(node), *options, "-R", "-xv", sample).statuses == [0x0000]
    uid = next(iter(node.spooled()))
    assert node.spooled()[uid][0].is_file()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_the_profile_are_spoken(node: Node, hospital: Hospital, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(hospital.authority.certificate))
    context.load_cert_chain(hospital.pinned.certificate, hospital.pinned.key)
    context.minimum_version = context.maximum_version = version
    ae = AE(ae_title="PINNED")
    ae.add_requested_context(dicom_bytes.VERIFICATION)
    to = over_tls(node)
    association = ae.associate(to.host, to.port, ae_title=to.ae_title, tls_args=(context, "localhost"))
    try:
        assert association.is_established
        assert association.send_c_echo().Status == 0
    finally:
        association.release()


@pytest.mark.parametrize(
    ("who", "calling"),
    [("modality", "PINNED"), ("pinned", "MODALITY"), ("node", "MODALITY")],
)
def test_a_certificate_that_belongs_to_another_ae_title_is_rejected_as_a_stranger_is(
    node: Node, hospital: Hospital, who: str, calling: str
) -> None:
    answer = echo_by_dcmtk(node, hospital, getattr(hospital, who), calling)
    assert answer.exit_status != 0
    assert "Reason: Calling AE Title Not Recognized" in answer.output
    rejected = [line for line in node.log_lines() if line["event"] == "association rejected"]
    assert (rejected[-1]["calling"], rejected[-1]["why"]) == (calling, "certificate")


def test_a_peer_with_tls_is_rejected_without_it_and_one_without_is_served_on_both_ports(
    node: Node, hospital: Hospital
) -> None:
    plain = dcmtk("echoscu", node.address, calling="PINNED")
    assert "Reason: Calling AE Title Not Recognized" in plain.output
    assert dcmtk("echoscu", node.address, calling="OLD").exit_status == 0
    assert echo_by_dcmtk(node, hospital, hospital.modality, "OLD").exit_status == 0


# --- versions, suites, certificates -------------------------------------------------------------------------------

REFUSED = {
    "TLS 1.0": ("-tls1", "-cipher", "ALL:@SECLEVEL=0"),
    "TLS 1.1": ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
    "a suite without forward secrecy": ("-tls1_2", "-cipher", "AES256-GCM-SHA384:@SECLEVEL=0"),
    "suites without authenticated encryption": (
        "-tls1_2",
        "-cipher",
        "ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0",
    ),
    "anonymous suites": ("-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"),
    "suites without encryption": ("-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"),
}


@pytest.mark.parametrize("options", [("-tls1_2",), ("-tls1_3",), ()])
def test_what_is_refused_below_is_refused_for_what_is_wrong_with_it(
    node: Node, hospital: Hospital, options: tuple[str, ...]
) -> None:
    assert answer_to_openssl(node, hospital.pinned, *options)[:1] == dicom_bytes.ACCEPTED


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_old_versions_and_weak_suites_are_refused(node: Node, hospital: Hospital, options: tuple[str, ...]) -> None:
    assert answer_to_openssl(node, hospital.pinned, *options) == b""


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("who", ["nobody", "foreign", "expired"])
def test_a_caller_without_a_valid_certificate_of_our_ca_is_refused(
    node: Node, hospital: Hospital, who: str, version: str
) -> None:
    issued = None if who == "nobody" else getattr(hospital, who)
    assert answer_to_openssl(node, issued, version, calling="MODALITY") == b""


def test_why_a_handshake_failed_stands_in_the_log(node: Node, hospital: Hospital) -> None:
    answer_to_openssl(node, hospital.expired, calling="MODALITY")
    closed = [line["why"] for line in node.log_lines() if line["event"] == "connection closed"]
    assert "TLS: certificate has expired" in closed


def test_a_client_that_asks_to_renegotiate_gets_nowhere(node: Node, hospital: Hospital) -> None:
    with s_client(node, hospital.pinned, "-tls1_2", quiet=False) as client:
        assert client.stdin is not None
        read_some(client, b"---\n", 10)
        client.stdin.write(b"R\n")
        client.stdin.flush()
        assert b"no renegotiation" in read_some(client, b"no renegotiation", 10)


def answer_to_openssl(node: Node, who: Issued | None, *options: str, calling: str = "PINNED") -> bytes:
    """What comes back to an association request over `openssl s_client`; nothing where there is no connection."""
    with s_client(node, who, *options) as client:
        assert client.stdin is not None
        try:
            client.stdin.write(dicom_bytes.request(calling, node.settings.ae_title))
            client.stdin.flush()
        except BrokenPipeError:
            return b""
        return read_some(client, None, 10)


@contextmanager
def s_client(node: Node, who: Issued | None, *options: str, quiet: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    shown = () if who is None else ("-cert", who.certificate, "-key", who.key)
    command = [require_peer("openssl"), "s_client", "-connect", f"127.0.0.1:{node.settings.tls.port}"]
    client = subprocess.Popen(
        [*command, *(["-quiet"] if quiet else []), *shown, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
    )
    with client:
        try:
            yield client
        finally:
            client.kill()


def read_some(client: subprocess.Popen[bytes], until: bytes | None, seconds: float) -> bytes:
    """Read what a process prints, at most until `until` is in it, or anything at all."""
    assert client.stdout is not None
    found, end = b"", time.monotonic() + seconds
    while (until is None and not found) or (until is not None and until not in found):
        ready, _, _ = select.select([client.stdout], [], [], max(0.0, end - time.monotonic()))
        more = os.read(client.stdout.fileno(), 65_536) if ready else b""
        if not more:
            break
        found += more
    return found


def test_handshakes_that_stall_hold_up_nobody_and_are_let_go_of(node: Node, hospital: Hospital) -> None:
    to = over_tls(node)
    with ExitStack() as opened:
        stalled = [opened.enter_context(socket.create_connection((to.host, to.port), timeout=10)) for _ in range(30)]
        for peer in stalled[::2]:
            peer.sendall(b"\x16\x03\x01\x02\x00\x01")  # as a handshake begins
        began = time.monotonic()
        assert echo_by_dcmtk(node, hospital, hospital.pinned, "PINNED").exit_status == 0
        assert time.monotonic() - began < 5 * PATIENCE, "one after another they would take thirty times that"
        for peer in stalled:
            peer.settimeout(4 * PATIENCE)
            assert hung_up(peer)


def hung_up(peer: socket.socket) -> bool:
    try:
        while peer.recv(4096):
            continue
    except ConnectionError:
        return True
    return True


# --- files that change --------------------------------------------------------------------------------------------


@pytest.fixture
def alone(hospital: Hospital, tmp_path: Path) -> Iterator[Settings]:
    """A listener in this process with TLS only, whose files may be changed."""
    own = Issued(tmp_path / "own.pem", tmp_path / "own.key")
    _install(hospital.node, own)
    settings = given(
        tmp_path / "node",
        tls=hospital.tls(certificate=own.certificate, private_key=own.key, only=True),
        peers=[Peer(name="pinned", ae_title="PINNED", role="source", tls=True, certificate_sha256=["0" * 64])],
    )
    upgrade(settings)
    database = Database.of(settings)
    listener = Listener(settings, database, Spool(tmp_path / "node" / "spool"), lambda: None)
    listener.start()
    yield settings
    listener.stop()
    database.close()


def test_a_listener_with_tls_only_is_healthy_and_its_plain_port_is_closed(alone: Settings) -> None:
    assert listener_trouble(alone) is None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", alone.port)) != 0


def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(
    alone: Settings, hospital: Hospital
) -> None:
    assert alone.tls.certificate is not None
    assert alone.tls.private_key is not None
    own = Issued(alone.tls.certificate, alone.tls.private_key)
    assert shown_by(alone) == hospital.node.sha256
    renewed_one = hospital.authority.issue("renewed", alternatives="DNS:localhost")
    _install(renewed_one, own)
    assert shown_by(alone) == renewed_one.sha256
    for broken in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\xfe"):
        own.certificate.write_bytes(broken)
        assert shown_by(alone) == renewed_one.sha256
    own.certificate.unlink()
    assert shown_by(alone) == renewed_one.sha256
    _install(hospital.node, own)
    assert shown_by(alone) == hospital.node.sha256


def _install(source: Issued, target: Issued) -> None:
    for old, new in ((source.key, target.key), (source.certificate, target.certificate)):
        fresh = new.with_suffix(".new")
        shutil.copy(old, fresh)
        fresh.rename(new)


def shown_by(settings: Settings) -> str:
    """The fingerprint of the certificate that the listener shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", settings.tls.port or 0), timeout=10) as peer,
        context.wrap_socket(peer) as wrapped,
    ):
        content = wrapped.getpeercert(binary_form=True)
    assert content is not None
    return sha256(content).hexdigest()


# --- whom we send to ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pacs(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """DCMTK's `storescp` with TLS, that asks for our certificate; gives its port."""
    port = free_port()
    certificate = hospital.node
    server = subprocess.Popen(
        [
            require_peer("storescp"),
            *("-aet", "PACS", "+xa", "-od", tmp_path_factory.mktemp("pacs")),
            *of_dcmtk(certificate, hospital.authority.certificate),
            str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(port), what="storescp listens")
        yield port
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def asked(hospital: Hospital, port: int, name: str, pins: tuple[str, ...] = (), ca: Path | None = None) -> Outcome:
    tls = TlsSettings(
        certificate=hospital.modality.certificate,
        private_key=hospital.modality.key,
        ca=ca or hospital.authority.certificate,
    )
    to = Destination("PACS", "127.0.0.1", port, Expected(tls, name, pins))
    return echo(to, calling_ae_title="OSTEON", timeout=10)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_destination_with_the_right_certificate_is_sent_to(hospital: Hospital, pacs: int, name: str) -> None:
    assert asked(hospital, pacs, name).result is Result.DELIVERED


def test_a_pinned_destination_may_have_any_name(hospital: Hospital, pacs: int) -> None:
    assert asked(hospital, pacs, "elsewhere", (hospital.node.sha256,)).result is Result.DELIVERED


def test_a_destination_of_another_name_ca_or_pin_is_not_sent_to_and_is_tried_again(
    hospital: Hospital, pacs: int
) -> None:
    not_trusted = Outcome(Result.FAILED, "certificate_not_trusted")
    assert asked(hospital, pacs, "pacs.example.org") == not_trusted
    assert asked(hospital, pacs, "127.0.0.1", ca=hospital.other_ca) == not_trusted
    assert asked(hospital, pacs, "127.0.0.1", (hospital.pinned.sha256,)) == not_trusted


def test_a_destination_that_speaks_no_tls_is_not_sent_to_in_the_clear(hospital: Hospital, node: Node) -> None:
    assert asked(hospital, node.settings.port, "127.0.0.1") == Outcome(Result.FAILED, "tls_failed")


def test_without_usable_files_nothing_is_sent(hospital: Hospital, pacs: int, tmp_path: Path) -> None:
    outcome = asked(hospital, pacs, "127.0.0.1", ca=tmp_path / "nowhere.pem")
    assert outcome == Outcome(Result.FAILED, "certificate_files_not_usable")


def test_a_handshake_that_stalls_can_be_cut(hospital: Hospital) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tls = Expected(TlsSettings(ca=hospital.authority.certificate), "localhost")
        to = Destination("PACS", "127.0.0.1", silent.getsockname()[1], tls)
        link = Link(to, [(UID(dicom_bytes.VERIFICATION), UID(dicom_bytes.IMPLICIT))], calling_ae_title="US", timeout=60)
        cutting = threading.Timer(0.5, link.drop)
        cutting.start()
        began = time.monotonic()
        with link:
            assert link.trouble == Outcome(Result.FAILED, "tls_failed")
        assert time.monotonic() - began < 30
        cutting.join()


# --- osteon send --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renewed(test_data / "dicom" / "WG04_RG3_J2KR.dcm", tmp_path_factory.mktemp("sample") / "sample.dcm")


def sent(sample: Path, port: int, *options: str | Path) -> tuple[int, str]:
    """Send by `osteon send --tls`; return the exit status and what it printed."""
    to = f"PACS@127.0.0.1:{port}"
    done = CliRunner().invoke(
        app, ["send", str(sample), "--to", to, "--tls", *map(str, options)], env={"COLUMNS": "200"}
    )
    return done.exit_code, done.output


def shows(who: Issued) -> tuple[str | Path, ...]:
    return "--certificate", who.certificate, "--private-key", who.key


def test_osteon_send_stores_over_tls_with_the_files_it_is_given(hospital: Hospital, pacs: int, sample: Path) -> None:
    ours = (*shows(hospital.modality), "--ca", hospital.authority.certificate)
    status, output = sent(sample, pacs, *ours)
    assert (status, output.split()) == (0, ["1", "delivered", "0000", "stored"])
    named = ("--certificate-name", "elsewhere")
    assert sent(sample, pacs, *ours, *named, "--certificate-sha256", hospital.node.sha256.upper())[0] == 0
    status, output = sent(sample, pacs, *ours, *named)
    assert status == 1
    assert f"The certificate of 127.0.0.1:{pacs} is not trusted, nothing was sent: Hostname mismatch" in output
    status, output = sent(sample, pacs, *ours, "--certificate-sha256", hospital.pinned.sha256)
    assert "nothing was sent: it is not the certificate with that fingerprint." in output
    status, output = sent(sample, pacs, *shows(hospital.modality), "--ca", hospital.other_ca)
    assert "is not trusted, nothing was sent: " in output


def test_osteon_send_takes_the_nodes_files_where_it_is_given_none(
    hospital: Hospital, pacs: int, sample: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = {"certificate": hospital.modality.certificate, "private_key": hospital.modality.key}
    settings = given(tmp_path, tls=hospital.tls(**own))
    monkeypatch.setattr("console.send_tls.load_settings", lambda: settings)
    assert sent(sample, pacs)[0] == 0
    assert sent(sample, pacs, "--ca", hospital.other_ca)[0] == 1


def test_osteon_send_says_what_is_wrong_where_there_is_no_handshake(
    hospital: Hospital, node: Node, pacs: int, sample: Path
) -> None:
    status, output = sent(sample, node.settings.port, "--ca", hospital.authority.certificate)
    assert status == 1
    assert f"There was no TLS handshake with 127.0.0.1:{node.settings.port}, nothing was sent" in output
    for port in (pacs, node.settings.tls.port):
        assert port is not None
        status, output = sent(sample, port, "--ca", hospital.authority.certificate)
        assert status == 1
        assert f"127.0.0.1:{port} closed the connection. It may want a certificate" in output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--certificate", "FILE", "--ca", "FILE"), "a certificate and its private key belong together"),
        ((), "who vouches for the destination?"),
        (("--ca", "FILE", "--certificate-sha256", "AB:CD"), "64 hexadecimal digits"),
        (("--ca", "nowhere.pem"), "does not exist"),
        (("--ca", "FILE"), "TLS cannot be used: "),
    ],
)
def test_osteon_send_says_what_is_missing_before_it_connects(
    sample: Path, options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("console.send_tls.load_settings", lambda: given(tmp_path))
    # A file that is no certificate.
    status, output = sent(sample, 1, *(str(sample) if option == "FILE" else option for option in options))
    assert status in (1, 2)
    assert said in output


def test_osteon_send_does_not_send_in_the_clear_where_certificates_are_named(hospital: Hospital, sample: Path) -> None:
    options = ["--to", "PACS@127.0.0.1:1", "--ca", str(hospital.authority.certificate)]
    done = CliRunner().invoke(app, ["send", str(sample), *options], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "give --tls too" in done.output
