"""The conformance statement says what the node does, and the one in the documentation is that of the defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID

from dicom_node import commitment
from dicom_node.conformance import STORE_ANSWERS, conformance_statement
from dicom_node.network.answers import NO_SUCH_SERVICE_STATUSES, NOT_AUTHORISED_STATUSES, UNAVAILABLE_STATUSES
from dicom_node.policy import Rejection
from dicom_node.services import Status
from models.settings import GivenSettings, Peer, environment_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
ARCHIVE = Peer(name="archive", ae_title="ARCHIVE", host="10.9.8.7", port=104, role="destination", commitment=True)
WEB = Peer(name="web", protocol="dicomweb", role="destination", url="https://secret.example/dicom", ca="/etc/ca.pem")
RIS = Peer(name="ris", protocol="hl7", role="destination", host="10.9.8.7", port=2575)


def rows(settings: GivenSettings) -> list[list[str]]:
    lines = conformance_statement(settings).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_statement_in_the_documentation_is_that_of_the_defaults() -> None:
    assert DOCUMENT.read_text() == conformance_statement(GivenSettings()), (
        "run: env -u OSTEON_CONFIG .venv/bin/osteon conformance > docs/conformance.md"
    )


def test_every_status_and_every_rejection_that_there_is_stands_in_it() -> None:
    assert set(STORE_ANSWERS) == set(Status)
    first = {cells[0] for cells in rows(GivenSettings())}
    assert {f"{status:04X}" for status in (*Status, *commitment.Status, *commitment.FailureReason)} <= first
    assert {"/".join(map(str, rejection.answer)) for rejection in Rejection} <= first


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ae_title": "BONES"}, ["Called AE title", "`BONES`, nothing else"]),
        ({"listener": {"max_pdu": 65536}}, ["Largest PDU received", "65536 bytes"]),
        ({"listener": {"idle_timeout": 7}}, ["Silence of an association", "7 s, then it is aborted"]),
        ({"delivery": {"timeout": 4}}, ["Time to connect", "4 s"]),
        ({"report": {"series_number": 77}}, ["Series Number", "77"]),
        (
            {"peers": [ARCHIVE]},
            ["Storage Commitment Push Model", commitment.SOP_CLASS, "yes", "no: `provide_commitment` of a peer"],
        ),
        ({"peers": [WEB]}, ["Studies Service, Store Transaction (STOW-RS)", "yes", "no"]),
        ({"delivery": {"timeout": 4}}, ["Time for an answer", "4 s; 8 s with the request"]),
    ],
)
def test_settings_in_force_stand_in_it(changes: dict[str, Any], expected: list[str]) -> None:
    assert expected in rows(GivenSettings(**changes))


def test_what_is_accepted_and_what_becomes_of_it_follow_the_settings() -> None:
    capture = str(UID("1.2.840.10008.5.1.4.1.1.7"))
    assert [cells[3] for cells in rows(GivenSettings()) if cells[1:2] == [capture] and len(cells) == 4] == ["no", "SCU"]
    settings = GivenSettings(listener={"accept_secondary_capture": True}, analysis={"analyse_for_processing": True})
    for uid in (capture, "1.2.840.10008.5.1.4.1.1.1.1.1"):
        assert [cells for cells in rows(settings) if cells[1:2] == [uid] and cells[-1] == "stored, analysed"]
    with_archive = GivenSettings(peers=[ARCHIVE])
    roles = [cells[3] for cells in rows(with_archive) if cells[1:2] == [commitment.SOP_CLASS] and len(cells) == 5]
    assert roles == ["SCP, SCU"]


def test_what_destinations_are_sent_stands_in_it() -> None:
    def sent(**settings: Any) -> dict[str, str]:
        return {
            cells[0]: cells[2] for cells in rows(GivenSettings(**settings)) if len(cells) == 4 and cells[3] != "SCU"
        }

    assert sent()["Comprehensive 3D SR Storage"] == "yes"
    assert sent()["Secondary Capture Image Storage"] == "no: `heatmap` in `sends` of a peer"
    viewer = ARCHIVE.model_copy(update={"sends": ("comprehensive", "heatmap", "presentation_state")})
    found = sent(peers=[viewer])
    assert found["Comprehensive 3D SR Storage"] == "no: `comprehensive_3d` in `sends` of a peer"
    for name in ("Comprehensive SR", "Secondary Capture Image", "Grayscale Softcopy Presentation State"):
        assert found[f"{name} Storage"] == "yes"
    assert found["Key Object Selection Document Storage"].startswith("no: `key_objects` or `rejection_note`")


def test_every_status_that_speaks_of_a_whole_service_stands_in_it_and_hl7_where_it_is_spoken() -> None:
    listed = [cells[0] for cells in rows(GivenSettings())]
    for statuses in (NOT_AUTHORISED_STATUSES, NO_SUCH_SERVICE_STATUSES, UNAVAILABLE_STATUSES):
        assert [each for each in listed if ", ".join(map(str, statuses)) in each]
    assert "Results as HL7 v2.5.1 messages: no" in conformance_statement(GivenSettings())
    spoken = conformance_statement(GivenSettings(peers=[RIS, WEB]))
    assert "Results as HL7 v2.5.1 messages: yes" in spoken
    assert "To each destination (0 in force)" in spoken, "neither is sent to over an association"


def test_the_command_prints_it_without_hosts_and_secrets() -> None:
    settings = GivenSettings(
        peers=[ARCHIVE, WEB, RIS], database_url="postgresql+psycopg://osteon:hush@db.example/osteon"
    )
    done = subprocess.run(
        [sys.executable, "-m", "console", "conformance"],
        env=environment_of(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == conformance_statement(settings)
    assert not [
        secret for secret in ("hush", "db.example", "10.9.8.7", "secret.example", "ca.pem") if secret in done.stdout
    ]
