"""`osteon doctor` and peers of others: DCMTK's storescp, Orthanc, and ports where nothing, or nobody, answers."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE

from console.doctor.peers import look_at_peer
from console.doctor.trial import DESCRIPTION, NAME, content_of, send_test
from console.doctor.verdict import Finding, Standing
from console.person import person
from console.ports import free_port
from dicom_node.headers import read_header
from dicom_node.objects.recognise import is_own_object
from dicom_node.objects.report import build_report, sop_class_uid
from dicom_node.objects.template import check_report
from dicom_node.sender import Destination
from models.database import Database
from models.settings import Peer, Settings, TlsSettings
from models.tables import AuditEvent
from models.upgrade import upgrade
from tests.black_hole import black_hole
from tests.certificates import Authority
from tests.peers import require_peer
from tests.receivers import PASSWORD, dicomweb, service, stored_of
from tests.rows import Rows
from tests.servers import Node, given, orthanc, shut_down, wait_until

SECONDS = 3.0
ECHO, SR, SR3D = "1.2.840.10008.1.1", sop_class_uid("comprehensive"), sop_class_uid("comprehensive_3d")


def peer(port: int, name: str = "pacs", **changes: Any) -> Peer:
    fields = {"ae_title": "PACS", "role": "destination", "host": "127.0.0.1", "port": port}
    return Peer(name=name, **{**fields, **changes})


def look(folder: Path, asked: Peer, seconds: float = SECONDS, **settings: Any) -> list[Finding]:
    return list(look_at_peer(given(folder, peers=[asked], **settings), asked, seconds))


def wrong(findings: list[Finding]) -> list[str]:
    found = [finding for finding in findings if finding.standing is not Standing.OK]
    assert all(finding.todo for finding in found)
    return [finding.said for finding in found]


@contextmanager
def scp(*contexts: Any, ae_title: str = "PACS", **rules: Any) -> Iterator[int]:
    """A DICOM node that takes these contexts; give its port."""
    ae = AE(ae_title=ae_title)
    for abstract, *syntaxes in contexts:
        ae.add_supported_context(abstract, syntaxes or None)
    for rule, value in rules.items():
        setattr(ae, rule, value)
    server: Any = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        yield server.server_address[1]
    finally:
        shut_down(ae)


@contextmanager
def storescp(folder: Path, *options: str | Path) -> Iterator[int]:
    port = free_port()
    folder.mkdir()
    server = subprocess.Popen(
        [require_peer("storescp"), "-aet", "PACS", "-od", folder, *options, str(port)],
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


# --- who answers ------------------------------------------------------------------------------------------------------


def test_storescp_answers_and_takes_all_that_it_is_to_be_sent(tmp_path: Path) -> None:
    sends = ("comprehensive", "heatmap", "presentation_state", "key_objects", "rejection_note")
    with storescp(tmp_path / "in", "+xa") as port:
        found = look(tmp_path, peer(port, sends=sends))
    assert wrong(found) == []
    assert f"PACS at 127.0.0.1:{port} answers C-ECHO" in [finding.said for finding in found]
    assert len(found) == 1 + len(sends)


def test_what_a_peer_does_not_take_is_named_and_what_to_do_about_it(tmp_path: Path) -> None:
    with scp((ECHO,), (SR,), (SR3D, ImplicitVRLittleEndian)) as port:
        found = look(tmp_path, peer(port, sends=("comprehensive", "comprehensive_3d", "heatmap"), commitment=True))
    assert "takes comprehensive_3d (Comprehensive 3D SR Storage), written anew as Implicit VR Little Endian" in [
        finding.said for finding in found
    ]
    assert wrong(found) == [
        "does not take heatmap (Secondary Capture Image Storage): its deliveries will need attention",
        "does not take storage commitment requests on this association, and is asked for it",
    ]


def test_a_peer_that_takes_nothing_is_not_taken_for_one_that_is_away(tmp_path: Path) -> None:
    with scp(("1.2.840.10008.5.1.4.1.1.2",)) as port:
        found = look(tmp_path, peer(port))
    said = wrong(found)
    assert f"PACS at 127.0.0.1:{port} lets us in, but does not answer C-ECHO" in said
    assert any("does not take comprehensive_3d" in words for words in said)


@pytest.mark.parametrize(
    ("rules", "said", "todo"),
    [
        ({"require_called_aet": True}, "it is not called OTHER", "correct ae_title"),
        ({"require_calling_aet": ["CT1"]}, "it does not know our AE title OSTEON", "have OSTEON registered there"),
    ],
)
def test_why_an_association_was_rejected_is_told_in_words(
    tmp_path: Path, rules: dict[str, Any], said: str, todo: str
) -> None:
    with scp((ECHO,), (SR3D,), **rules) as port:
        (finding,) = look(tmp_path, peer(port, ae_title="OTHER"))
    assert finding.standing is Standing.WRONG
    assert finding.said == f"127.0.0.1:{port} rejects the association: {said}"
    assert finding.todo.startswith(todo)


def test_a_peer_that_has_enough_associations_is_said_to_be_busy(tmp_path: Path) -> None:
    with scp((ECHO,), (SR3D,), maximum_associations=1) as port:
        ae = AE(ae_title="CT1")
        ae.add_requested_context(ECHO)
        held = ae.associate("127.0.0.1", port)
        said = wrong(look(tmp_path, peer(port)))
        held.release()
    assert said == [f"127.0.0.1:{port} rejects the association: it has as many associations as it takes"]


def test_a_port_where_nothing_listens_a_name_that_nobody_knows_and_a_host_that_hangs_are_told_apart(
    tmp_path: Path,
) -> None:
    port = free_port()
    assert wrong(look(tmp_path, peer(port))) == [f"nothing listens at 127.0.0.1:{port} (connection refused)"]
    assert wrong(look(tmp_path, peer(104, host="nowhere.invalid"))) == ["the name nowhere.invalid is not known here"]
    with black_hole() as port:
        said = wrong(look(tmp_path, peer(port), 1))
    assert said == [f"127.0.0.1:{port} does not answer, not even with a refusal"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = wrong(look(tmp_path, peer(port), 1))
    assert said == [f"127.0.0.1:{port} took the connection, and gave no answer to the request for an association"]


def test_a_source_without_an_address_is_not_asked(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, Peer(name="room", ae_title="ROOM", role="source"))
    assert finding.standing is Standing.OK
    assert "no host and port" in finding.said


def test_a_certificate_that_is_not_the_expected_one_is_said_with_its_fault(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "Hospital CA")
    ours, theirs = authority.issue("node"), authority.issue("pacs", alternatives="DNS:pacs.example.org")
    tls = TlsSettings(certificate=ours.certificate, private_key=ours.key, ca=authority.certificate)
    options = ("+tls", theirs.key, theirs.certificate, "+cf", authority.certificate)
    with storescp(tmp_path / "in", "+xa", *options) as port:
        named = peer(port, sends=("comprehensive",), tls=True, certificate_name="pacs.example.org")
        found = look(tmp_path, named, tls=tls)
        assert wrong(found) == []
        assert f"PACS at 127.0.0.1:{port}, over TLS answers C-ECHO" in [finding.said for finding in found]
        misnamed = peer(port, tls=True, certificate_name="archive.example.org")
        (finding,) = look(tmp_path, misnamed, tls=tls)
        assert f"the certificate of 127.0.0.1:{port} is not trusted" in finding.said
        assert "certificate_name" in finding.todo
        (finding,) = look(tmp_path, peer(port))
        assert "with TLS or without?" in finding.todo


def test_a_service_and_a_listener_of_other_protocols_are_connected_to_and_sent_nothing(tmp_path: Path) -> None:
    def others(port: int) -> tuple[Peer, Peer]:
        web = Peer(name="web", role="destination", protocol="dicomweb", url=f"http://127.0.0.1:{port}/dicom-web")
        return web, Peer(name="his", role="destination", protocol="hl7", host="127.0.0.1", port=port)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for other in others(port):
            (finding,) = look(tmp_path, other)
            assert finding.standing is Standing.OK
            assert "takes connections; nothing was sent to it" in finding.said
            with server.accept()[0] as connection:
                connection.settimeout(10)
                assert connection.recv(1) == b""
    for other in others(port):
        assert wrong(look(tmp_path, other)) == [f"nothing listens at 127.0.0.1:{port} (connection refused)"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web"
        token = tmp_path / "token"
        web = Peer(name="web", role="destination", protocol="dicomweb", url=url, token_file=token)
        (said,) = wrong(look(tmp_path, web))
        assert said.startswith("its password or token file cannot be used: ")


# --- the test report --------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = given(tmp_path / "node")
    upgrade(made)
    return made


def sent(settings: Settings, to: Peer) -> list[Finding]:
    return list(send_test(settings, to, 10))


def events(settings: Settings) -> list[AuditEvent]:
    rows = Rows()
    rows.database = Database.of(settings)
    found = rows.all(AuditEvent)
    rows.database.close()
    return found


@pytest.mark.parametrize("kind", ["comprehensive_3d", "comprehensive"])
def test_the_test_report_is_of_nobody_says_so_and_is_as_valid_as_any(kind: Any) -> None:
    content = build_report(content_of("2.25.1", "OSTEON", kind))
    dataset = pydicom.dcmread(BytesIO(content))
    assert check_report(content) == []
    assert (dataset.PatientName, dataset.PatientID) == (NAME, "OSTEON-TEST")
    assert dataset.StudyDescription == dataset.SeriesDescription == DESCRIPTION
    assert is_own_object(read_header(dataset))
    again = pydicom.dcmread(BytesIO(build_report(content_of("2.25.1", "OSTEON", kind))))
    assert again.StudyInstanceUID == dataset.StudyInstanceUID
    assert again.SOPInstanceUID != dataset.SOPInstanceUID


def test_orthanc_is_sent_a_test_report_has_it_and_who_sent_it_is_on_record(settings: Settings, tmp_path: Path) -> None:
    require_peer("Orthanc")
    us = Destination(settings.ae_title, "127.0.0.1", settings.port)
    with orthanc(tmp_path / "orthanc", modalities={"osteon": us}) as (port, _):
        assert wrong(look(tmp_path, peer(port, commitment=True))) == []
        found = sent(settings, peer(port))
    assert wrong(found) == []
    assert [finding.said.split(":")[0] for finding in found] == ["took the test report (0000)", "has the test report"]
    (event,) = events(settings)
    assert (event.action, event.subject, event.actor) == ("destination.test_sent", "destination", person())
    assert event.details["sop_instance_uid"].startswith("2.25.")


def test_a_dicomweb_service_is_sent_a_test_report_as_results_are(settings: Settings, tmp_path: Path) -> None:
    with dicomweb(tmp_path / "orthanc") as port:
        web = service(tmp_path, port)
        assert wrong(look(tmp_path, web)) == []
        found = sent(settings, web)
        received = [pydicom.dcmread(BytesIO(content)) for content in stored_of(port, PASSWORD)]
        refused = sent(settings, service(tmp_path, port, password="another"))
    assert [finding.standing for finding in found] == [Standing.OK, Standing.WARNING]
    assert [str(dataset.PatientName) for dataset in received] == [NAME]
    (said,) = wrong(refused)
    assert said.startswith("the test report was not taken: ")


def test_a_peer_that_answers_no_queries_is_said_to_be_looked_at_by_hand(settings: Settings, tmp_path: Path) -> None:
    with storescp(tmp_path / "in", "+xa") as port:
        found = sent(settings, peer(port, sends=("comprehensive",)))
    assert [finding.standing for finding in found] == [Standing.OK, Standing.WARNING]
    assert f"look for patient {NAME} there by hand" in found[1].todo
    (received,) = (tmp_path / "in").iterdir()
    assert pydicom.dcmread(received, force=True).PatientName == NAME


def test_an_archive_that_takes_the_test_report_and_loses_it_is_wrong(settings: Settings) -> None:
    from pynetdicom import evt

    ae = AE(ae_title="PACS")
    ae.add_supported_context(SR3D)
    ae.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")

    def nothing(_: evt.Event) -> Iterator[tuple[int, None]]:
        yield from ()

    handlers: list[Any] = [(evt.EVT_C_STORE, lambda _: 0), (evt.EVT_C_FIND, nothing)]
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        found = sent(settings, peer(server.server_address[1]))
    finally:
        shut_down(ae)
    assert found[-1].standing is Standing.WRONG
    assert "does not find the test report" in found[-1].said


def test_nothing_is_sent_where_it_is_not_on_record_or_not_taken(tmp_path: Path, settings: Settings) -> None:
    with scp((ECHO,), (SR3D,)) as port:
        (finding,) = sent(given(tmp_path / "empty"), peer(port))
    assert finding.said.startswith("no test report was sent: the tables have revision none")
    with scp((ECHO,)) as port:
        (finding,) = sent(settings, peer(port))
    assert finding.said == "the test report was not taken: sop_class_or_transfer_syntax_not_accepted"


# --- the command ------------------------------------------------------------------------------------------------------


def test_peers_that_hang_hold_up_nothing_and_are_named(tmp_path: Path) -> None:
    with black_hole() as away, socket.create_server(("127.0.0.1", 0)) as silent, scp((ECHO,), (SR3D,)) as port:
        peers = [
            peer(away, "away"),
            *(peer(silent.getsockname()[1], f"silent{number}") for number in range(5)),
            peer(port, "there"),
        ]
        node = Node(given(tmp_path / "node", peers=peers), tmp_path / "node.log")
        done = node.run("doctor", "--json", "--timeout", "1", timeout=120)
        unknown = node.run("doctor", "--send-test", "nobody", timeout=120)
        node.stop()
    found = json.loads(done.stdout)
    assert (done.returncode, found["well"]) == (1, False)
    of = {
        row["area"]: row for row in found["findings"] if row["area"].startswith("peer ") and row["standing"] == "wrong"
    }
    assert set(of) == {"peer away", *(f"peer silent{number}" for number in range(5))}
    assert all("did not end" not in row["said"] for row in of.values())
    assert unknown.returncode == 2
    assert "'nobody' is no destination; there are: away, silent0" in " ".join(unknown.stderr.replace("│", " ").split())
