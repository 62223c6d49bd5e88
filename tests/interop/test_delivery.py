"""The report's last step: a whole node sends it to Orthanc, by C-STORE and by STOW-RS, and to DCMTK's storescp.

They have it exactly and once.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import select

from console.ports import free_port
from dicom_node.sender import Destination
from models.settings import Peer
from models.tables import Delivery, DeliveryAttempt, DeliveryState, Report, Study
from tests.peers import require_peer
from tests.servers import Node, Valkey, data_set_of, dcmtk, given, orthanc, renewed, wait_until

# DCMTK's checker of value representations stops at UTF-8; it says so of every object in UTF-8.
UTF8_NOTE = "W: The VR checker does not support this Specific Character Set: ISO_IR 192"
STUDIES = 2
DESTINATIONS = 3


@dataclass(frozen=True)
class Road:
    """A node that has reported its studies, and what it kept of them."""

    node: Node
    archive: Path
    orthanc_port: int
    studies: list[str]

    def stored(self) -> dict[str, bytes]:
        """The bytes of every report on record, by study."""
        with self.node.database.read() as session:
            found = session.execute(
                select(Study.study_instance_uid, Report.content, Report.sha256).join(Report).order_by(Report.id)
            ).all()
        assert all(sha256(content).hexdigest() == digest for _, content, digest in found)
        assert len({uid for uid, _, _ in found}) == len(found), "more than one report of a study"
        return {uid: content for uid, content, _ in found}

    def orthanc(self, path: str) -> bytes:
        """Ask Orthanc's REST API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.orthanc_port}{path}", timeout=10) as answer:
            content: bytes = answer.read()
        return content


@pytest.fixture(scope="module", params=["sqlite and the embedded broker", "postgresql and valkey"])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Iterator[Road]:
    """A whole node that was sent two studies and has delivered their reports to both archives."""
    require_peer("Orthanc")
    folder = tmp_path_factory.mktemp("road")
    archive, scp_port = folder / "archive", free_port()
    archive.mkdir()
    where: dict[str, str] = {}
    valkey = Valkey(folder)
    if request.param != "sqlite and the embedded broker":
        valkey.start()
        url = request.getfixturevalue("postgresql").new_database()
        where = {"broker_url": valkey.url, "database_url": url.render_as_string(hide_password=False)}
    command = [require_peer("storescp"), "-aet", "STORESCP", "+B", "-uf", "-od", archive, str(scp_port)]
    storescp = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: dcmtk("echoscu", Destination("STORESCP", "127.0.0.1", scp_port)).exit_status == 0,
            what="storescp answers",
        )
        more = {"Plugins": [str(require_peer("orthanc-dicomweb"))], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
        with orthanc(folder / "orthanc", more=more) as (dicom_port, http_port):
            settings = given(
                folder / "node",
                study={"quiet_time": 1},
                peers=[
                    Peer(name="modality", ae_title="MODALITY", role="source"),
                    Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=dicom_port, role="destination"),
                    Peer(name="scp", ae_title="STORESCP", host="127.0.0.1", port=scp_port, role="destination"),
                    Peer(
                        name="web",
                        protocol="dicomweb",
                        url=f"http://127.0.0.1:{http_port}/dicom-web",
                        role="destination",
                    ),
                ],
                **where,
            )
            node = Node(settings, folder / "node.log")
            try:
                node.start("up")
                node.wait_until_listening()
                studies = [sent_study(node, test_data, folder, number) for number in range(STUDIES)]
                wait_until(lambda: all_delivered(node), seconds=60, what="both reports are delivered to both")
                yield Road(node, archive, http_port, studies)
            finally:
                node.stop()
    finally:
        storescp.terminate()
        storescp.wait()
        valkey.kill()


def sent_study(node: Node, test_data: Path, folder: Path, number: int) -> str:
    """Send two images of one new study; return its Study Instance UID."""
    first = renewed(test_data / "dicom" / "WG04_RG2_J2KR.dcm", folder / f"{number}-1.dcm", study=True)
    second = renewed(first, folder / f"{number}-2.dcm")
    assert dcmtk("storescu", node.address, "-R", "-xv", first, second).statuses == [0x0000, 0x0000]
    return str(pydicom.dcmread(first, stop_before_pixels=True).StudyInstanceUID)


def all_delivered(node: Node) -> bool:
    with node.database.read() as session:
        states = list(session.scalars(select(Delivery.state)))
    return len(states) == DESTINATIONS * STUDIES and set(states) == {DeliveryState.DELIVERED}


def test_orthanc_has_exactly_one_report_of_each_study_and_gives_back_what_is_on_record(
    road: Road, tmp_path: Path
) -> None:
    stored = road.stored()
    assert sorted(stored) == sorted(road.studies)
    instances = json.loads(road.orthanc("/instances"))
    assert len(instances) == STUDIES
    for instance in instances:
        received = tmp_path / f"{instance}.dcm"
        received.write_bytes(road.orthanc(f"/instances/{instance}/file"))
        assert data_set_of(received) == data_set_of(written(stored[study_of(received)], tmp_path))


def test_storescp_has_exactly_one_report_of_each_study_with_the_bytes_on_record(road: Road, tmp_path: Path) -> None:
    stored = road.stored()
    received = sorted(road.archive.iterdir())
    assert len(received) == STUDIES
    for path in received:
        header = pydicom.dcmread(path)
        assert data_set_of(path) == data_set_of(written(stored[str(header.StudyInstanceUID)], tmp_path))
        assert path.name.endswith(header.SOPInstanceUID)


def test_every_report_was_sent_once_to_each_destination(road: Road) -> None:
    with road.node.database.read() as session:
        tries = session.execute(
            select(Delivery.destination, Delivery.report_id, DeliveryAttempt.outcome, DeliveryAttempt.status)
            .join(DeliveryAttempt, DeliveryAttempt.delivery_id == Delivery.id)
            .order_by(Delivery.id)
        ).all()
    assert len({(destination, report) for destination, report, _, _ in tries}) == len(tries) == DESTINATIONS * STUDIES
    assert {(outcome, status) for _, _, outcome, status in tries} == {("stored", 0x0000)}


def test_the_validators_find_no_error_in_what_the_archives_have(road: Road, tmp_path: Path) -> None:
    dciodvfy, dsrdump = require_peer("dciodvfy"), require_peer("dsrdump")
    from_orthanc = tmp_path / "orthanc.dcm"
    from_orthanc.write_bytes(road.orthanc(f"/instances/{json.loads(road.orthanc('/instances'))[0]}/file"))
    for path in (from_orthanc, *road.archive.iterdir()):
        judged = run(dciodvfy, path)
        assert "Comprehensive3DSR" in judged
        assert [line for line in judged if line.startswith("Error")] == []
        dumped = run(dsrdump, "+Pu", "+Pc", "+Pt", path)
        assert any('(126000,DCM,"Imaging Measurement Report")' in line for line in dumped)
        assert [line for line in dumped if line.startswith(("E:", "W:")) and line != UTF8_NOTE] == []


def test_both_images_of_a_study_stand_in_its_one_report(road: Road) -> None:
    with road.node.database.read() as session:
        reports = list(session.scalars(select(Report)))
        assert [len(report.inputs) for report in reports] == [2] * STUDIES
        assert {report.revision for report in reports} == {1}


def study_of(path: Path) -> str:
    return str(pydicom.dcmread(path).StudyInstanceUID)


def written(content: bytes, folder: Path) -> Path:
    path = folder / "on-record.dcm"
    path.write_bytes(content)
    return path


def run(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
