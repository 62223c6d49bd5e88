"""What goes out of a study besides the report, and to whom: what a destination asks for, once, and of what stands."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pydicom
import pytest
import structlog
from pydicom.dataset import FileDataset
from sqlalchemy import update

from console.ports import free_port
from dicom_node.headers import read_header
from dicom_node.objects.recognise import is_own_object
from dicom_node.resolve import Decision
from dicom_node.wrap import wrap_picture
from models import clock
from models.settings import Peer, Settings
from models.tables import Delivery, DeliveryState, File, FileKind, Image, Report, ReportInput, Study, StudyState
from models.upgrade import upgrade
from worker.predictor import Predictor
from worker.results import Results, plan

pytest.importorskip("ai_edge_litert")

from tests import litert
from tests.site import ROOM, Site

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STUDY = "1.2.3"
EVERYTHING = ("comprehensive_3d", "comprehensive", "heatmap", "presentation_state", "key_objects", "rejection_note")
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model that finds what is white."""
    return litert.predictor(tmp_path_factory.mktemp("by_hand"))


@pytest.fixture
def make_site(make_settings: Callable[..., Settings], by_hand: Predictor) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*peers: Peer, **settings: Any) -> Site:
        known = (
            [] if any(peer.name == "room" for peer in peers) else [Peer(name="room", ae_title="ROOM", role="source")]
        )
        made = make_settings(peers=[*known, *peers], **settings)
        upgrade(made)
        sites.append(Site(made, by_hand))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def peer(name: str, *sends: str, **more: Any) -> Peer:
    fields: dict[str, Any] = {"ae_title": name.upper(), "role": "destination", "host": "127.0.0.1", "port": free_port()}
    return Peer(name=name, **(fields | ({"sends": sends} if sends else {}) | more))


def revise(site: Site, dataset: FileDataset) -> None:
    """Receive an instance, mostly again, and report."""
    site.receive(dataset)
    site.settle()


def radiograph(number: int = 1, *, fracture: bool = True, study: str = STUDY, name: str = "Doe^Jane") -> FileDataset:
    """A limb, with or without what the model finds."""
    # What fills a quarter of a cell is no finding to it; with less than that the limb itself would become white.
    edge = 40 if fracture else 20
    return wrap_picture(
        litert.white_square((120, 200, 120 + edge, 200 + edge)),
        patient_id="PID-1",
        patient_name=name,
        study_uid=study,
        series_uid=f"{study}.3",
        sop_instance_uid=f"{study}.4.{number}",
        body_part="WRIST",
        instance_number=number,
    )


def sent_to(site: Site) -> dict[str, list[str]]:
    """The kinds of what every destination is to get, or got, in order."""
    kinds = {report.id: report.kind for report in site.all(Report)}
    found: dict[str, list[str]] = defaultdict(list)
    for delivery in site.all(Delivery):
        found[delivery.destination].append(kinds[delivery.report_id])
    return dict(found)


def of_kind(site: Site, kind: str) -> list[Report]:
    return [report for report in site.all(Report) if report.kind == kind]


def read(report: Report) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(report.content))


def mark(site: Site, state: DeliveryState, *, kind: str, destination: str = "viewer") -> None:
    """Let deliveries of a kind be in this state."""
    ids = [report.id for report in of_kind(site, kind)]
    with site.database.write() as session:
        session.execute(
            update(Delivery)
            .where(Delivery.report_id.in_(ids), Delivery.destination == destination)
            .values(state=state, delivered_at=clock.now())
        )


# --- who gets what ------------------------------------------------------------------------------------------------


def test_every_destination_gets_what_it_asks_for_the_report_first(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", *EVERYTHING), peer("old", "comprehensive"), peer("wall", "heatmap"), peer("pacs"))
    site.report(radiograph(1), radiograph(2, fracture=False))
    assert sent_to(site) == {
        "viewer": ["comprehensive_3d", "comprehensive", "key_objects", "heatmap", "presentation_state", "heatmap"],
        "old": ["comprehensive"],
        "wall": ["heatmap", "heatmap"],
        "pacs": ["comprehensive_3d"],
    }


@sqlite_alone
def test_what_nobody_asks_for_is_not_made_but_the_report_always_is(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("wall", "heatmap"))
    site.report(radiograph())
    assert [report.kind for report in site.all(Report)] == ["comprehensive_3d", "heatmap"]
    assert sent_to(site) == {"wall": ["heatmap"]}


def test_a_sender_that_wants_only_its_own_results_gets_those_and_a_fixed_destination_gets_all(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(
        peer("room", ae_title="ROOM", role="both", results="own"),
        peer("ward", ae_title="WARD", role="both", results="own"),
        peer("pacs"),
    )
    site.report(radiograph(1))
    site.receive(radiograph(1, study="1.2.9"), replace(ROOM, uid="other", calling_ae_title="WARD"))
    site.intake.close("other", "released")
    site.settle()
    studies = {study.id: study.study_instance_uid for study in site.all(Study)}
    got = sorted((row.destination, studies[row.study_id]) for row in site.all(Delivery))
    assert got == [("pacs", STUDY), ("pacs", "1.2.9"), ("room", STUDY), ("ward", "1.2.9")]


@sqlite_alone
def test_every_object_is_recognised_as_our_own_and_belongs_to_the_study(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", *EVERYTHING))
    site.report(radiograph())
    uids = set()
    for report in site.all(Report):
        header = read_header(read(report))
        assert is_own_object(header), report.kind
        assert header.study_instance_uid == STUDY
        assert (header.sop_class_uid, header.sop_instance_uid) == (report.sop_class_uid, report.sop_instance_uid)
        assert header.series_instance_uid == report.series_instance_uid
        assert header.patient.name == "Doe^Jane"
        uids |= {header.sop_instance_uid, header.series_instance_uid}
    assert len(uids) == 2 * len(site.all(Report))


@sqlite_alone
def test_a_picture_rests_on_its_image_alone_and_the_report_on_all(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", *EVERYTHING))
    site.report(radiograph(1), radiograph(2, fracture=False))
    inputs: dict[str, list[list[int]]] = defaultdict(list)
    for report in site.all(Report):
        about = [row.image_id for row in site.all(ReportInput) if row.report_id == report.id]
        inputs[report.kind].append(about)
    assert inputs["comprehensive_3d"] == [[1, 2]]
    assert inputs["heatmap"] == [[1], [2]]
    assert inputs["presentation_state"] == [[1]]
    assert inputs["key_objects"] == [[1]]


@sqlite_alone
def test_the_heatmap_has_colours_where_the_fracture_is_and_none_without_one(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("wall", "heatmap"))
    site.report(radiograph(1), radiograph(2, fracture=False))
    coloured, grey = (read(report).pixel_array.astype(int) for report in of_kind(site, "heatmap"))
    # Between the bands above and below, which are as high for both.
    high, low = coloured.shape[0] // 4, 3 * coloured.shape[0] // 4
    assert np.ptp(coloured[high:low], axis=2).max() > 100
    assert np.ptp(grey[high:low], axis=2).max() < 20


@sqlite_alone
def test_a_study_that_was_not_analysed_brings_a_picture_that_says_so(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("wall", "heatmap"), peer("viewer", *EVERYTHING))
    blank = radiograph()
    blank.PixelData = bytes(len(blank.PixelData))
    site.report(blank)
    assert sent_to(site) == {"wall": ["heatmap"], "viewer": ["comprehensive_3d", "comprehensive", "heatmap"]}
    assert site.study.decision == "undetermined"
    assert read(of_kind(site, "heatmap")[0]).SourceImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.4.1"


# --- what stands and what does not --------------------------------------------------------------------------------


def test_a_late_image_leaves_the_picture_of_the_first_as_it_is(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "heatmap"))
    site.report(radiograph(1))
    mark(site, DeliveryState.DELIVERED, kind="heatmap")
    site.report(radiograph(2, fracture=False))
    assert sent_to(site) == {"viewer": ["comprehensive_3d", "heatmap", "comprehensive_3d", "heatmap"]}
    states = [(row.state, row.superseded_at is not None) for row in site.all(Delivery)]
    assert states == [
        (DeliveryState.CANCELLED, True),
        (DeliveryState.DELIVERED, False),
        (DeliveryState.DUE, False),
        (DeliveryState.DUE, False),
    ]


def test_a_corrected_name_brings_everything_anew_and_so_does_the_correction_of_the_correction(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(peer("viewer", *EVERYTHING))
    names = ["Doe^Jane", "Roe^Jane", "Doe^Jane"]
    for number, name in enumerate(names):
        # The first version itself, sent again, would undo nothing.
        version = radiograph(name=name)
        version.ProtocolName = f"Version {number}"
        revise(site, version)
    for kind in ("comprehensive_3d", "comprehensive", "heatmap", "presentation_state", "key_objects"):
        made = of_kind(site, kind)
        assert [str(read(report).PatientName) for report in made] == names, kind
        assert [report.supersedes_id for report in made] == [None, made[0].id, made[1].id]
        assert [report.revision for report in made] == [1, 2, 3]
    open_ones = [row for row in site.all(Delivery) if row.superseded_at is None]
    assert len(open_ones) == 5
    assert {row.state for row in open_ones} == {DeliveryState.DUE}


@sqlite_alone
def test_nothing_is_made_again_where_nothing_changed(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", *EVERYTHING))
    site.report(radiograph(1))
    before = [report.sop_instance_uid for report in site.all(Report)]
    with site.database.write() as session:
        session.execute(update(Study).values(state=StudyState.COMPLETE, due_at=clock.now()))
    site.settle()
    assert [report.sop_instance_uid for report in site.all(Report)] == before


@sqlite_alone
def test_a_destination_that_is_added_gets_the_picture_that_stands(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "heatmap"))
    site.report(radiograph(1))
    added = site.settings.model_copy(update={"peers": [*site.settings.peers, peer("wall", "heatmap")]})
    again = Site(added, site.predictor)
    again.report(radiograph(2))
    assert sent_to(again)["wall"] == ["heatmap", "heatmap"]
    again.close()


# --- rejection notes ----------------------------------------------------------------------------------------------


def rejected(report: Report) -> set[str]:
    document = read(report)
    return {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in document.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    }


def test_who_asks_is_told_what_of_that_which_it_has_does_not_stand_any_more(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", *EVERYTHING), peer("other", *EVERYTHING), peer("pacs"))
    site.report(radiograph())
    for kind in ("comprehensive_3d", "heatmap"):
        mark(site, DeliveryState.DELIVERED, kind=kind)
    mark(site, DeliveryState.DELIVERED, kind="comprehensive_3d", destination="pacs")
    had = {of_kind(site, kind)[0].sop_instance_uid for kind in ("comprehensive_3d", "heatmap")}
    revise(site, radiograph(name="Roe^Jane"))
    (note,) = of_kind(site, "rejection_note")
    assert rejected(note) == had
    assert {row.destination for row in site.all(Delivery) if row.report_id == note.id} == {"viewer"}
    # What it was told once it is not told again.
    site.report(radiograph(2))
    assert len(of_kind(site, "rejection_note")) == 1


@sqlite_alone
def test_destinations_that_have_the_same_are_told_by_the_same_note(make_site: Callable[..., Site]) -> None:
    site = make_site(*(peer(name, "comprehensive_3d", "rejection_note") for name in ("one", "two")))
    site.report(radiograph())
    for name in ("one", "two"):
        mark(site, DeliveryState.DELIVERED, kind="comprehensive_3d", destination=name)
    revise(site, radiograph(name="Roe^Jane"))
    (note,) = of_kind(site, "rejection_note")
    assert sorted(row.destination for row in site.all(Delivery) if row.report_id == note.id) == ["one", "two"]


@sqlite_alone
def test_what_may_have_arrived_is_rejected_too(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "rejection_note"))
    first = site.report(radiograph())
    with site.database.write() as session:
        session.execute(update(Delivery).values(tries=1))
    revise(site, radiograph(name="Roe^Jane"))
    assert rejected(of_kind(site, "rejection_note")[0]) == {first.sop_instance_uid}


def test_what_begins_to_go_out_while_the_next_is_planned_is_rejected_too(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "rejection_note"))
    first = site.report(radiograph())
    planned: list[Results | None] = []

    def plan_and_begin(*given: Any) -> Results | None:
        planned.append(plan(*given))
        with site.database.write() as session:
            session.execute(update(Delivery).where(Delivery.report_id == first.id).values(tries=1))
        return planned[-1]

    monkeypatch.setattr("worker.report.plan", plan_and_begin)
    revise(site, radiograph(name="Roe^Jane"))
    assert len(planned) == 2
    assert rejected(of_kind(site, "rejection_note")[0]) == {first.sop_instance_uid}


def test_the_flag_of_a_fracture_that_was_taken_out_of_the_study_is_withdrawn(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "key_objects", "heatmap", "rejection_note"))
    site.report(radiograph(1, fracture=False))
    other = radiograph(2)
    other.PatientID = "SOMEBODY ELSE"
    site.receive(other)
    site.work()
    site.resolve(Decision.ACCEPT)
    site.settle()
    assert site.study.decision == "fracture"
    for kind in ("key_objects", "heatmap", "comprehensive_3d"):
        mark(site, DeliveryState.DELIVERED, kind=kind)
    (flag,), positive = of_kind(site, "key_objects"), of_kind(site, "heatmap")[-1]
    with site.database.write() as session:
        session.execute(update(Study).values(state=StudyState.COMPLETE, due_at=clock.now(), generation=9))
        session.execute(update(Image).where(Image.sop_instance_uid == f"{STUDY}.4.2").values(replaced_at=clock.now()))
    site.settle()
    assert site.study.decision == "no_fracture"
    note = of_kind(site, "rejection_note")[-1]
    assert {flag.sop_instance_uid, positive.sop_instance_uid} <= rejected(note)
    superseded = {row.report_id for row in site.all(Delivery) if row.superseded_at is not None}
    assert {flag.id, positive.id} <= superseded


# --- when the file is gone ----------------------------------------------------------------------------------------


def test_without_the_file_the_picture_is_drawn_from_the_models_input_and_no_state_is_made(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "heatmap", "presentation_state"))
    site.report(radiograph())
    first = read(of_kind(site, "heatmap")[0]).pixel_array.astype(float)
    for file in site.all(File):
        if file.kind is FileKind.INSTANCE:
            site.spool.delete(file.key)
    revise(site, radiograph(name="Roe^Jane"))
    second = read(of_kind(site, "heatmap")[-1]).pixel_array.astype(float)
    assert second.shape == first.shape
    assert np.corrcoef(first.mean(axis=2).ravel(), second.mean(axis=2).ravel())[0, 1] > 0.9
    assert len(of_kind(site, "presentation_state")) == 1


@sqlite_alone
def test_a_presentation_state_that_stands_needs_no_file(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "presentation_state"))
    site.report(radiograph(1))
    for file in site.all(File):
        site.spool.delete(file.key)
    site.report(radiograph(2, fracture=False))
    (state,) = of_kind(site, "presentation_state")
    assert [row.superseded_at for row in site.all(Delivery) if row.report_id == state.id] == [None]


@sqlite_alone
def test_without_file_and_model_input_there_is_a_card_that_says_what_was_found(make_site: Callable[..., Site]) -> None:
    site = make_site(peer("viewer", "comprehensive_3d", "heatmap"))
    site.receive(radiograph())
    site.analyse()
    for file in site.all(File):
        site.spool.delete(file.key)
    site.settle()
    assert sent_to(site) == {"viewer": ["comprehensive_3d", "heatmap"]}
    assert site.study.decision == "fracture"


# --- messages -----------------------------------------------------------------------------------------------------


def hl7_peer(name: str, application: str) -> Peer:
    address = {"host": "127.0.0.1", "port": free_port()}
    return Peer(name=name, protocol="hl7", role="destination", receiving_application=application, **address)


def fields(report: Report) -> dict[str, list[str]]:
    """The first segment of each name, by its fields."""
    segments = [line.split("|") for line in report.content.decode().split("\r") if line]
    return {segment[0]: segment for segment in reversed(segments)}


def test_whoever_reads_messages_gets_one_that_names_the_report_and_no_object(make_site: Callable[..., Site]) -> None:
    site = make_site(hl7_peer("ris", "RIS"), hl7_peer("twin", "RIS"), hl7_peer("his", "HIS"), peer("pacs"))
    report = site.report(radiograph())
    (main,) = of_kind(site, "comprehensive_3d")
    assert sent_to(site) == {"ris": ["hl7_oru"], "twin": ["hl7_oru"], "his": ["hl7_oru"], "pacs": ["comprehensive_3d"]}
    to_ris, to_his = sorted(of_kind(site, "hl7_oru"), key=lambda message: fields(message)["MSH"][4], reverse=True)
    assert (fields(to_ris)["MSH"][4], fields(to_his)["MSH"][4]) == ("RIS", "HIS")
    for message in (to_ris, to_his):
        assert main.sop_instance_uid in message.content.decode()
        assert fields(message)["OBR"][25] == "P"
    assert report.impression == "fracture"


def test_a_superseding_report_brings_a_new_message_and_the_old_one_is_not_sent_any_more(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(hl7_peer("ris", "RIS"))
    site.report(radiograph(1))
    site.report(radiograph(2))
    first, second = of_kind(site, "hl7_oru")
    assert (second.revision, second.supersedes_id) == (2, first.id)
    assert [(row.report_id, row.state) for row in site.all(Delivery)] == [
        (first.id, DeliveryState.CANCELLED),
        (second.id, DeliveryState.DUE),
    ]


# --- accession numbers --------------------------------------------------------------------------------------------


def under(number: int, accession_number: str, version: str = "1") -> FileDataset:
    dataset = radiograph(number)
    dataset.AccessionNumber, dataset.ProtocolName = accession_number, version
    return dataset


def requests(report: Report) -> list[str]:
    return [item.AccessionNumber for item in read(report).get("ReferencedRequestSequence", [])]


@sqlite_alone
def test_a_study_that_answers_two_orders_names_both_and_none_of_them_as_its_own(make_site: Callable[..., Site]) -> None:
    site = make_site()
    report = site.report(under(1, "A-1"), under(2, "A-2"))
    assert read(report).AccessionNumber == ""
    assert requests(report) == ["A-1", "A-2"]


@sqlite_alone
def test_a_corrected_accession_number_is_that_of_every_image_that_had_the_wrong_one(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    assert read(site.report(under(1, "A-1"), under(2, "A-1"))).AccessionNumber == "A-1"
    revise(site, under(1, "A-9", "2"))
    assert read(site.all(Report)[-1]).AccessionNumber == "A-9"
    revise(site, under(1, "A-1", "3"))
    assert read(site.all(Report)[-1]).AccessionNumber == "A-1"
