"""Storage commitment with Orthanc: it commits our reports, and is told what we keep of what it sent us."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import select, update

from console.ports import free_port
from models import clock
from models.settings import Peer
from models.tables import Commitment, CommitmentRequest, CommitmentRequestState, Delivery, DeliveryState, Report
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.servers import Node, given, orthanc, renewed, wait_until


@dataclass(frozen=True)
class Pacs:
    """Orthanc, asked over its REST API."""

    http: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=content, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 (Orthanc's address, made above)
            return json.loads(answer.read())

    def delete(self, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    def ask(self, *instances: tuple[str, str]) -> str:
        """Ask the node to commit; return where Orthanc says what became of it."""
        asked = {"DicomInstances": [list(instance) for instance in instances]}
        path: str = self.post("/modalities/osteon/storage-commitment", json.dumps(asked).encode())["Path"]
        return path


@dataclass(frozen=True)
class Road:
    """A running node, and Orthanc, which has asked for commitment, been told, and got a report."""

    node: Node
    pacs: Pacs
    kept: tuple[str, str]
    all_there: str
    some_missing: str


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Iterator[Road]:
    """Orthanc stores an image and asks twice to commit; the listener is killed before anybody answers; `up` follows."""
    require_peer("Orthanc")
    folder, port = tmp_path_factory.mktemp("commitment"), free_port()
    pacs = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, commitment=True, provide_commitment=True)
    settings = given(folder / "node", study={"quiet_time": 1}, peers=[pacs])
    upgrade(settings)
    node = Node(settings, folder / "node.log")
    image = renewed(test_data / "dicom" / "WG04_RG2_J2KR.dcm", folder / "image.dcm", study=True)
    header = pydicom.dcmread(image, stop_before_pixels=True)
    kept = (str(header.SOPClassUID), str(header.SOPInstanceUID))
    try:
        with orthanc(folder / "orthanc", port=port, modalities={"osteon": node.address}) as (_, http):
            orthancs = Pacs(http)
            listener = node.start("listen")
            node.wait_until_listening(90)
            sent = orthancs.post("/instances", image.read_bytes())["ID"]
            orthancs.post("/modalities/osteon/store", sent.encode())
            all_there = orthancs.ask(kept)
            some_missing = orthancs.ask(kept, (kept[0], "1.2.3.4"), ("1.2.840.10008.5.1.4.1.1.2", kept[1]))
            os.kill(listener.pid, signal.SIGKILL)
            listener.wait()
            assert {orthancs.get(path)["Status"] for path in (all_there, some_missing)} == {"Pending"}
            assert [request.state for request in rows(node, CommitmentRequest)] == [CommitmentRequestState.DUE] * 2
            node.start("up")
            node.wait_until_listening(90)
            yield Road(node, orthancs, kept, all_there, some_missing)
    finally:
        node.stop()


def test_orthanc_is_told_that_we_keep_what_it_sent_by_a_node_that_was_killed_meanwhile(road: Road) -> None:
    wait_until(lambda: road.pacs.get(road.all_there)["Status"] == "Success", seconds=90, what="Orthanc is told")
    told = road.pacs.get(road.all_there)
    assert [(instance["SOPClassUID"], instance["SOPInstanceUID"]) for instance in told["Success"]] == [road.kept]
    assert told["Failures"] == []


def test_orthanc_is_told_of_each_instance_why_it_is_not_committed(road: Road) -> None:
    wait_until(lambda: road.pacs.get(road.some_missing)["Status"] == "Failure", seconds=90, what="Orthanc is told")
    told = road.pacs.get(road.some_missing)
    assert [instance["SOPInstanceUID"] for instance in told["Success"]] == [road.kept[1]]
    assert [(failure["SOPInstanceUID"], failure["FailureReason"]) for failure in told["Failures"]] == [
        ("1.2.3.4", 0x0112),
        (road.kept[1], 0x0119),
    ]
    wait_until(
        lambda: all(row.state is CommitmentRequestState.ANSWERED for row in rows(road.node, CommitmentRequest)),
        what="both requests are answered",
    )


def test_orthanc_commits_our_report_on_an_association_of_its_own(road: Road) -> None:
    wait_until_committed(road)
    # The association of the request stays open for a while, and what became of it is written down after that.
    wait_until(lambda: rows(road.node, Commitment)[0].accepted_at, what="it is known that the request was accepted")
    (commitment,) = rows(road.node, Commitment)
    assert (commitment.answered_at is not None, commitment.failure_reason) == (True, None)


def test_a_report_that_orthanc_lost_is_sent_again_and_then_committed(road: Road) -> None:
    wait_until_committed(road)
    before = max(row.id for row in rows(road.node, Commitment))
    (report,) = [found for found in road.pacs.get("/instances?expand") if is_report(road, found)]
    road.pacs.delete(f"/instances/{report['ID']}")
    with road.node.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.DELIVERED, commit_due_at=clock.now()))
    wait_until(
        lambda: len([row for row in rows(road.node, Commitment) if row.id > before and row.answered_at]) == 2,
        seconds=90,
        what="Orthanc was asked twice",
    )
    wait_until_committed(road)
    lost, again = (row.failure_reason for row in rows(road.node, Commitment) if row.id > before)
    assert (lost, again) == (0x0112, None)
    assert len([found for found in road.pacs.get("/instances?expand") if is_report(road, found)]) == 1


def is_report(road: Road, instance: Any) -> bool:
    (report,) = rows(road.node, Report)
    return bool(instance["MainDicomTags"]["SOPInstanceUID"] == report.sop_instance_uid)


def wait_until_committed(road: Road) -> None:
    wait_until(
        lambda: [delivery.state for delivery in rows(road.node, Delivery)] == [DeliveryState.COMMITTED],
        seconds=90,
        what="Orthanc has committed the report",
    )


def rows(node: Node, table: type[Any]) -> list[Any]:
    with node.database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))
