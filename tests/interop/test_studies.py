"""Studies as they really come: in pieces, interleaved, late, twice, cut off half-way, and by the thousand."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
import pydicom
import pytest
from sqlalchemy import func, select

from console.pacs import StorageScp
from dicom_node.sender import Destination
from models.settings import Peer
from models.tables import Association, Delivery, DeliveryState, Image, Report, ReportInput, Study, StudyState
from models.upgrade import upgrade
from tests.faults.chaos.instances import Instance, make_bundle, make_instances
from tests.faults.chaos.wire import Wire
from tests.servers import Node, dcmtk, given, wait_until

QUIET_SECONDS = 1.5
SECONDS = 90.0
LONG_SECONDS = 300.0
IMAGES = 4
SIX_STUDIES = 6

pytestmark = pytest.mark.timeout(400)
pytest.importorskip("ai_edge_litert")


@dataclass
class House:
    """A whole node, its PACS, and studies of four images that were not sent yet."""

    node: Node
    pacs: StorageScp
    studies: list[list[Instance]]

    def next_study(self) -> list[Instance]:
        """Return a study that no test has sent."""
        return self.studies.pop()

    def send(self, instances: list[Instance], calling: str = "ROOM1") -> list[int]:
        """Send over one association; return the statuses."""
        paths = [instance.path for instance in instances]
        return dcmtk("storescu", self.node.address, "-R", "-xe", *paths, calling=calling).statuses

    def reports(self, study: list[Instance]) -> list[Report]:
        """Return the study's reports, once they say what they say and the newest is delivered; else nothing."""
        with self.node.database.read() as session:
            found = session.scalars(select(Study).where(Study.study_instance_uid == study[0].study_uid)).one()
            reports = session.scalars(select(Report).where(Report.study_id == found.id).order_by(Report.id)).all()
            open_ones = session.scalars(
                select(Delivery.id).where(Delivery.study_id == found.id, Delivery.state == DeliveryState.DUE)
            ).all()
        return [] if found.state is not StudyState.REPORTED or open_ones else list(reports)

    def wait_for_reports(self, study: list[Instance], *, revisions: int = 1) -> list[Report]:
        """Wait until the study is reported, and has so many reports; return them."""
        reports: list[Report] = wait_until(
            lambda: len(found := self.reports(study)) >= revisions and found, seconds=SECONDS, what="the report arrives"
        )
        assert len(reports) == revisions
        return reports

    def about(self, report: Report) -> set[str]:
        """SOP Instance UIDs of the images that a report speaks of."""
        with self.node.database.read() as session:
            return set(
                session.scalars(
                    select(Image.sop_instance_uid).join(ReportInput).where(ReportInput.report_id == report.id)
                )
            )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """`osteon up`, two modalities and a PACS."""
    folder = tmp_path_factory.mktemp("house")
    (folder / "pacs").mkdir()
    pacs = StorageScp(folder / "pacs")
    settings = given(
        folder / "node",
        model_bundle=make_bundle(folder / "bundle"),
        study={"quiet_time": QUIET_SECONDS},
        peers=[
            Peer(name="room1", ae_title="ROOM1", role="source"),
            Peer(name="room2", ae_title="ROOM2", role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
    )
    instances = make_instances(folder / "instances", studies=SIX_STUDIES, instances=SIX_STUDIES * IMAGES)
    studies = [instances[begin : begin + IMAGES] for begin in range(0, len(instances), IMAGES)]
    node = Node(settings, folder / "node.log")
    try:
        node.start("up")
        node.wait_until_listening(150)
        yield House(node, pacs, studies)
    finally:
        node.stop()
        pacs.stop()


def test_studies_that_come_interleaved_from_two_modalities_get_one_report_each_about_all_their_images(
    house: House,
) -> None:
    one, other = house.next_study(), house.next_study()
    mixed = list(chain.from_iterable(zip(one, other, strict=True)))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(house.send, (mixed[:5], mixed[5:]), ("ROOM1", "ROOM2")))
    assert answers == [[0x0000] * 5, [0x0000] * 3]
    for study in (one, other):
        (report,) = house.wait_for_reports(study)
        assert house.about(report) == {instance.sop_instance_uid for instance in study}
    with house.node.database.read() as session:
        callers = session.scalars(select(Association.calling_ae_title).distinct()).all()
    assert set(callers) == {"ROOM1", "ROOM2"}


def test_a_late_image_brings_a_second_report_about_all_images_that_names_the_first(house: House) -> None:
    study = house.next_study()
    assert house.send(study[:3]) == [0x0000] * 3
    (first,) = house.wait_for_reports(study)
    assert house.send(study[3:], "ROOM2") == [0x0000]
    first, second = house.wait_for_reports(study, revisions=2)
    assert (second.supersedes_id, second.generation) == (first.id, IMAGES)
    assert house.about(second) == {instance.sop_instance_uid for instance in study}
    predecessors = pydicom.dcmread(io.BytesIO(second.content)).PredecessorDocumentsSequence
    named = predecessors[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.sop_instance_uid
    arrived = [report.sop_instance_uid for report in house.pacs.new_reports()]
    assert arrived[-2:] == [first.sop_instance_uid, second.sop_instance_uid]


def test_a_whole_study_that_comes_again_from_another_modality_changes_nothing(house: House) -> None:
    study = house.next_study()
    assert house.send(study) == [0x0000] * IMAGES
    before = house.wait_for_reports(study)
    house.pacs.new_reports()
    assert house.send(study, "ROOM2") == [0x0000] * IMAGES
    # Whatever this would have begun is done when a study that came after it is reported.
    other = house.next_study()
    assert house.send(other) == [0x0000] * IMAGES
    house.wait_for_reports(other)
    after = house.wait_for_reports(study)
    assert [report.sop_instance_uid for report in after] == [report.sop_instance_uid for report in before]
    assert [report.study_instance_uid for report in house.pacs.new_reports()] == [other[0].study_uid]
    with house.node.database.read() as session:
        of_study = select(func.count()).select_from(Image).join(Study)
        count = session.scalar(of_study.where(Study.study_instance_uid == study[0].study_uid))
    assert count == IMAGES


def test_a_study_cut_off_half_way_is_reported_as_far_as_it_came_and_again_when_the_rest_has_come(house: House) -> None:
    study = house.next_study()
    wire = Wire(house.node.settings.port)
    try:
        size = sum(instance.path.stat().st_size for instance in study[:2])
        wire.cut(back=False, after=size + 4_000)
        cut = Destination(house.node.settings.ae_title, "127.0.0.1", wire.port)
        paths = [instance.path for instance in study]
        answer = dcmtk("storescu", cut, "-R", "-xe", "-td", "20", *paths, calling="ROOM1")
        assert wire.done == 1
    finally:
        wire.close()
    assert answer.statuses == [0x0000] * 2
    assert answer.exit_status != 0
    (first,) = house.wait_for_reports(study)
    assert house.about(first) == {instance.sop_instance_uid for instance in study[:2]}
    assert house.node.half_received == []
    # The modality sends all of it again.
    assert house.send(study) == [0x0000] * IMAGES
    _, second = house.wait_for_reports(study, revisions=2)
    assert house.about(second) == {instance.sop_instance_uid for instance in study}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Node]:
    """A listener alone, its data in memory where that can be had: thousands of files shall not wait for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        settings = given(
            Path(folder) / "node",
            broker_url="redis+socket:///nonexistent/valkey.sock",
            peers=[Peer(name="room1", ae_title="ROOM1", role="source")],
        )
        upgrade(settings)
        node = Node(settings, tmp_path / "node.log")
        yield node
        node.stop()


def test_an_association_with_a_thousand_instances_needs_no_more_memory_than_one_with_hundreds(
    listener: Node, tmp_path: Path
) -> None:
    hundreds, thousand = 250, 1250
    process = psutil.Process(listener.start("listen").pid)
    listener.wait_until_listening()
    (template,) = make_instances(tmp_path / "template", studies=1, instances=1)
    paths = copies(template, tmp_path / "instances", thousand)

    def memory_at(stored: int) -> int:
        wait_until(lambda: counted(listener) >= stored, seconds=LONG_SECONDS, what=f"{stored} are stored")
        return process.memory_full_info().uss

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(
            dcmtk, "storescu", listener.address, "-R", "-xe", *paths, calling="ROOM1", timeout=LONG_SECONDS
        )
        before, after = memory_at(hundreds), memory_at(thousand)
        assert sending.result().statuses == [0x0000] * thousand
    # SQLite's page caches, 2 MB a connection, fill up at first, by 3.5 MB here; from the thousandth instance to the
    # seven-thousandth it was 0.3 MB. Whoever kept the instances would need 9.7 MB.
    assert after - before < 6 * 1024 * (thousand - hundreds)
    with listener.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Association)) == 1


def copies(template: Instance, folder: Path, number: int) -> list[Path]:
    """Copy an instance under UIDs of their own."""
    folder.mkdir()
    content, uid = template.path.read_bytes(), template.sop_instance_uid.encode()
    paths = []
    for one in range(number):
        path = folder / f"{one}.dcm"
        # As long as the template's, so that no length changes.
        own = uid[:-6] + b"." + str(10_000 + one).encode()
        assert len(own) == len(uid)
        path.write_bytes(content.replace(uid, own))
        paths.append(path)
    return paths


def counted(node: Node) -> int:
    """How many images are on record."""
    with node.database.read() as session:
        return session.scalar(select(func.count()).select_from(Image)) or 0
