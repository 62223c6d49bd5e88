"""The work itself on both databases: an image is read, a study reported, a report delivered, each of them once."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import structlog
from PIL import Image as Picture
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, evt
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from console.pacs import StorageScp
from console.ports import free_port
from dicom_node.headers import read_header
from dicom_node.inflate import check_inflated_size
from dicom_node.intake import Intake, StoredFile
from dicom_node.pixels import ModelInput, model_input
from dicom_node.spool import Spool
from dicom_node.wrap import wrap_picture
from models import clock
from models.database import database_now
from models.reasons import Reason
from models.settings import Peer, Settings
from models.tables import (
    Attempt,
    AuditEvent,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    DestinationState,
    File,
    FileKind,
    Finding,
    Image,
    ImageState,
    ModelActivation,
    ModelVersion,
    Prediction,
    Region,
    Report,
    ReportInput,
    Study,
    StudyState,
)
from models.upgrade import upgrade
from tests.post import data_set
from tests.reports import GSPS, header
from worker.analyse import Analyst
from worker.app import Worker
from worker.bundle import Ages, Bundle, default_bundle_path
from worker.claims import Work, claim
from worker.deliver import Courier
from worker.lanes import Lanes
from worker.predictor import Predictor, Reading
from worker.queue import make_app
from worker.sweeper import close_quiet_studies
from worker.troubles import Troubles

pytest.importorskip("ai_edge_litert")

from tests import litert, shipped
from tests.servers import shut_down
from tests.site import ROOM, Site, reader

LIMIT = timedelta(minutes=2)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter
STUDY = "1.2.3"
PLANTED = "PLANTED^NAME"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(shipped.with_open_gate())


@pytest.fixture(scope="module")
def adults_only(predictor: Predictor) -> Predictor:
    """The shipped model, with a card for patients from 18 years on."""
    card, use = predictor.bundle.card, predictor.bundle.card.intended_use
    adults = use.model_copy(update={"ages": Ages(from_years=18)})
    return Predictor(replace(predictor.bundle, card=card.model_copy(update={"intended_use": adults})))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model with a heatmap and a gate: it finds what is white, and does not know what is mostly white."""
    return litert.predictor(tmp_path_factory.mktemp("by_hand"))


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Without a configured log, structlog prints tracebacks that take longer than the work."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


def radiograph(number: int = 1, body_part: str = "WRIST", study: str = STUDY) -> FileDataset:
    """A Digital X-Ray image of clouds: plain noise would pass for text."""
    noise = np.random.default_rng(number).integers(0, 256, (10, 8), dtype=np.uint8)
    return wrap_picture(
        Picture.fromarray(noise).resize((160, 200), Picture.Resampling.BICUBIC),
        patient_id="PLANTED-ID",
        patient_name=PLANTED,
        study_uid=study,
        series_uid="1.2.3.3",
        sop_instance_uid=f"{study}.4.{number}",
        body_part=body_part,
        instance_number=number,
    )


def white_square(number: int, at: tuple[int, int, int, int], body_part: str = "WRIST") -> FileDataset:
    """A Digital X-Ray image for `by_hand`."""
    return wrap_picture(
        litert.white_square(at),
        patient_id="PLANTED-ID",
        patient_name=PLANTED,
        study_uid=STUDY,
        series_uid="1.2.3.3",
        sop_instance_uid=f"{STUDY}.4.{number}",
        body_part=body_part,
        instance_number=number,
    )


@pytest.fixture
def make_site(make_settings: Callable[..., Settings], predictor: Predictor) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*peers: Peer, **settings: Any) -> Site:
        made = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source"), *peers], **settings)
        upgrade(made)
        sites.append(Site(made, predictor))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A node that reports to nobody."""
    return make_site()


def destination(name: str, port: int, ae_title: str = "DEMOPACS") -> Peer:
    return Peer(name=name, ae_title=ae_title, role="destination", host="127.0.0.1", port=port)


@contextmanager
def answering(status: Callable[[], int], ae_title: str = "DEMOPACS") -> Iterator[int]:
    """A storage SCP that answers what it is told to; gives its port."""
    ae = AE(ae_title=ae_title)
    ae.require_called_aet = True
    ae.add_supported_context(Comprehensive3DSRStorage, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_STORE, lambda _: status())]
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.server_address[1]
    finally:
        shut_down(ae)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StorageScp]:
    folder = tmp_path / "pacs"
    folder.mkdir()
    scp = StorageScp(folder)
    yield scp
    scp.stop()


def read(report: Report) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(report.content))


def highdicom_report(report: Report) -> hd.sr.Comprehensive3DSR:
    return hd.sr.Comprehensive3DSR.from_dataset(read(report))


# --- analyse ------------------------------------------------------------------------------------------------------


def test_the_bundle_that_reads_is_on_record_once_and_active(site: Site, predictor: Predictor) -> None:
    Analyst(site.settings, site.database, site.spool, reader(site.database, predictor))
    version = site.only(ModelVersion)
    assert version.bundle_sha256 == predictor.bundle.sha256
    assert version.files == predictor.bundle.files
    activation = site.only(ModelActivation)
    assert (activation.model_version_id, activation.role) == (version.id, "active")


def test_an_image_is_analysed_once_and_what_the_model_saw_is_kept(site: Site, predictor: Predictor) -> None:
    dataset = radiograph()
    site.receive(dataset)
    assert site.analyse() == 1
    image, prediction = site.only(Image), site.only(Prediction)
    source = model_input(dataset, predictor.size)
    assert (image.state, image.reason, image.lease_until) == (ImageState.ANALYSED, None, None)
    assert prediction.image_id == image.id
    assert prediction.input_sha256 == hashlib.sha256(source.pixels.tobytes()).hexdigest()
    assert prediction.pixel_sha256 == image.pixel_sha256 == source.pixel_digest
    (kept,) = [file for file in site.all(File) if file.kind is FileKind.MODEL_INPUT]
    assert prediction.input_file_id == kept.id
    with site.spool.open(kept.key) as file:
        content = file.read()
    assert hashlib.sha256(content).hexdigest() == kept.sha256
    with Picture.open(io.BytesIO(content)) as picture:
        assert np.array_equal(np.asarray(picture), source.pixels), "it is kept without loss"
        assert picture.info == {}
    assert site.analyse() == 0


@sqlite_alone
def test_a_prediction_can_be_replayed_from_what_was_kept(site: Site, predictor: Predictor) -> None:
    site.receive(radiograph())
    site.analyse()
    (kept,) = [file for file in site.all(File) if file.kind is FileKind.MODEL_INPUT]
    with site.spool.open(kept.key) as file, Picture.open(file) as picture:
        pixels = np.asarray(picture)
    # Size, place and digest of the source have no part in what the model sees.
    source = replace(model_input(radiograph(2), predictor.size), pixel_digest="")
    again = predictor.read(replace(source, pixels=pixels))
    finding = site.only(Finding)
    assert finding.probability == pytest.approx(again.findings[0].probability)
    assert (finding.decision, finding.logit) == (again.findings[0].decision, pytest.approx(again.findings[0].logit))


def test_an_image_that_cannot_be_decoded_is_not_analysed_and_says_why(site: Site) -> None:
    dataset = radiograph()
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"no codestream" * 20])
    dataset["PixelData"].is_undefined_length = True
    site.receive(dataset)
    assert site.analyse() == 1, "trying again would not help"
    image = site.only(Image)
    assert (image.state, image.reason) == (ImageState.NOT_ANALYSED, "undecodable")
    assert site.all(Prediction) == []
    assert [event.details.get("reason") for event in site.all(AuditEvent)][-1] == "undecodable"


def test_a_body_part_outside_the_intended_use_is_not_analysed(site: Site) -> None:
    site.receive(radiograph(body_part="CHEST"))
    site.analyse()
    image = site.only(Image)
    assert (image.state, image.reason) == (ImageState.NOT_ANALYSED, "outside_intended_use")
    assert site.all(Prediction) == []


def a_dog(dataset: FileDataset) -> None:
    dataset.PatientSpeciesDescription, dataset.ResponsiblePersonRole = "Canine", "OWNER"


def a_child(dataset: FileDataset) -> None:
    dataset.PatientAge = "009Y"


def for_processing(dataset: FileDataset) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.Modality, dataset.PresentationIntentType = "CR", "FOR PROCESSING"


def of_both_sides(dataset: FileDataset) -> None:
    dataset.ImageLaterality, dataset.SeriesDescription = "R", f"{PLANTED} left wrist"


def test_what_the_header_says_is_not_for_this_reader_stands_in_record_and_report_with_its_reason(
    make_site: Callable[..., Site], adults_only: Predictor
) -> None:
    reasons = [Reason.VETERINARY, Reason.OUTSIDE_INTENDED_AGE, Reason.FOR_PROCESSING, Reason.LATERALITY_CONFLICT]
    datasets = [radiograph(number) for number in range(1, 6)]
    for spoil, dataset in zip((a_dog, a_child, for_processing, of_both_sides), datasets, strict=False):
        spoil(dataset)
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, adults_only))
    report = site.report(*datasets)

    *refused, read_one = site.all(Image)
    assert [(image.state, image.reason) for image in refused] == [(ImageState.NOT_ANALYSED, why) for why in reasons]
    assert read_one.state is ImageState.ANALYSED
    assert [prediction.image_id for prediction in site.all(Prediction)] == [read_one.id]
    assert [given.reason for given in site.all(ReportInput)] == [*reasons, None]
    assert report.impression != "no_fracture"
    text = json.dumps(read(report).to_json_dict())
    for number, reason in enumerate(reasons, start=1):
        assert f"Image {number}: not analysed ({reason.value}). {reason.sentence}" in text


A_SQUARE, A_SPECK, NEARLY_EVERYTHING = (120, 200, 160, 240), (125, 205, 145, 225), (0, 10, 240, 480)


def test_where_a_fracture_is_stands_on_record_and_as_a_box_in_the_report(
    make_site: Callable[..., Site], by_hand: Predictor
) -> None:
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    report = site.report(white_square(1, A_SQUARE))
    assert report.impression == "fracture"
    region = site.only(Region)
    assert region.finding_id == site.only(Finding).id
    assert [region.x_min, region.y_min, region.x_max, region.y_max] == pytest.approx([120, 200, 160, 240])
    assert (region.peak_x, region.peak_y) == pytest.approx((140, 220), abs=10)
    assert region.outline == [pytest.approx(corner) for corner in ([120, 200], [160, 200], [160, 240], [120, 240])]
    (group,) = highdicom_report(report).content.get_planar_roi_measurement_groups()
    assert group.roi.graphic_type.value == "POLYLINE"
    drawn = [[120, 200], [160, 200], [160, 240], [120, 240], [120, 200]]
    assert np.allclose(group.roi.value, drawn)
    (source,) = group.roi.ContentSequence
    assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.4.1"


def test_where_the_map_is_highest_without_a_fracture_is_on_record_and_not_in_the_report(
    make_site: Callable[..., Site], by_hand: Predictor
) -> None:
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    report = site.report(white_square(1, A_SPECK))
    assert site.only(Finding).decision == "no_fracture"
    assert 120 < site.only(Region).peak_x < 160
    assert highdicom_report(report).content.get_planar_roi_measurement_groups() == []
    assert len(highdicom_report(report).content.get_image_measurement_groups()) == 1


@sqlite_alone
def test_a_heatmap_can_be_had_again_from_the_input_that_was_kept(site: Site, by_hand: Predictor) -> None:
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    dataset = white_square(1, A_SQUARE)
    site.receive(dataset)
    site.analyse()
    (kept,) = [file for file in site.all(File) if file.kind is FileKind.MODEL_INPUT]
    with site.spool.open(kept.key) as file, Picture.open(file) as picture:
        pixels = np.asarray(picture)
    source = model_input(dataset, by_hand.size)
    first, again = by_hand.read(source), by_hand.read(replace(source, pixels=pixels))
    assert np.array_equal(again.heatmaps[0], first.heatmaps[0])
    assert again.findings == first.findings


def test_an_image_unlike_the_model_s_training_is_not_analysed_and_the_report_says_so(
    make_site: Callable[..., Site], by_hand: Predictor
) -> None:
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    report = site.report(white_square(1, NEARLY_EVERYTHING), white_square(2, A_SPECK))
    unlike, known = site.all(Image)
    assert (unlike.state, unlike.reason) == (ImageState.NOT_ANALYSED, "unlike_training")
    assert known.state is ImageState.ANALYSED
    assert [prediction.image_id for prediction in site.all(Prediction)] == [known.id]
    assert report.impression == "undetermined", "the other image alone excludes nothing"
    text = json.dumps(read(report).to_json_dict())
    assert f"Image 1: not analysed (unlike_training). {Reason.UNLIKE_TRAINING.sentence}" in text
    assert [given.reason for given in site.all(ReportInput)] == ["unlike_training", None]


def test_who_refused_an_image_for_its_features_and_how_far_they_were_off_is_in_the_audit_trail(
    make_site: Callable[..., Site], by_hand: Predictor
) -> None:
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    site.receive(white_square(1, NEARLY_EVERYTHING))
    site.analyse()
    (event,) = [event for event in site.all(AuditEvent) if event.action == "image.not_analysed"]
    assert event.details["reason"] == "unlike_training"
    assert event.details["bundle_sha256"] == by_hand.bundle.sha256
    assert 0.3 < float(event.details["distance"]) < 1
    assert [file.kind for file in site.all(File)] == [FileKind.INSTANCE], "no input is kept without a prediction"


def test_what_the_header_excludes_is_refused_for_that_before_the_model_looks(
    make_site: Callable[..., Site], by_hand: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    site.analyst = Analyst(site.settings, site.database, site.spool, reader(site.database, by_hand))
    monkeypatch.setattr(by_hand, "read", lambda _: pytest.fail("the model was asked"))
    site.receive(white_square(1, NEARLY_EVERYTHING, body_part="CHEST"))
    site.analyse()
    assert site.only(Image).reason == "outside_intended_use"


@sqlite_alone
def test_an_image_that_names_a_character_set_with_a_null_is_read_and_reported(make_site: Callable[..., Site]) -> None:
    odd = radiograph()
    odd.add(RawDataElement(Tag("SpecificCharacterSet"), "CS", 12, b"ISO_IR\x00 100", 0, False, True))
    site = make_site()
    report = site.report(odd)
    assert site.only(Image).state is ImageState.ANALYSED
    assert str(read(report).PatientName) == PLANTED


@sqlite_alone
def test_an_image_whose_header_was_kept_by_an_older_version_is_analysed(site: Site) -> None:
    site.receive(radiograph())
    with site.database.write() as session:
        image = session.scalars(select(Image)).one()
        kept = json.loads(image.header)
        image.header = json.dumps({name: kept[name] for name in kept if name not in ("age", "animal", "sides")})
    site.analyse()
    assert site.only(Image).state is ImageState.ANALYSED


def test_an_image_whose_file_is_gone_is_tried_again_later_and_then_reported_as_not_analysed(site: Site) -> None:
    site.receive(radiograph(1))
    site.spool.delete(site.only(File).key)
    site.receive(radiograph(2))
    waits = []
    for tries in range(1, site.settings.analysis.max_tries + 1):
        assert site.analyse() >= 1
        assert len(site.all(Attempt)) == tries
        image = site.all(Image)[0]
        waits.append((image.due_at - clock.now()).total_seconds())
        clock.advance(image.due_at - clock.now())
    assert (image.state, image.reason) == (ImageState.FAILED, "file_missing")
    assert 2 <= waits[0] < waits[1]
    for attempt in site.all(Attempt):
        assert attempt.error.startswith("FileGone at ")
        assert str(site.spool.root) not in attempt.error
    report = site.report()
    failed, analysed = site.all(ReportInput)
    assert (failed.prediction_id, failed.reason) == (None, "file_missing")
    assert (analysed.prediction_id is None, analysed.reason) == (False, None)
    assert report.impression != "no_fracture"
    assert "The file of the image is missing." in json.dumps(read(report).to_json_dict())


def test_an_image_that_always_takes_its_worker_down_is_given_up(site: Site) -> None:
    site.receive(radiograph())
    for _ in range(site.settings.analysis.max_tries):
        assert claim(site.database, Work.ANALYSE, limit=LIMIT) is not None  # and its process is gone
        let_leases_run_out(site)
    assert site.analyse() == 1
    assert site.only(Image).state is ImageState.FAILED
    assert site.all(Prediction) == []


def test_a_file_that_cannot_be_read_although_the_spool_is_well_costs_the_image_a_try(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(radiograph())
    monkeypatch.setattr(site.spool, "open", lambda _: Unreadable(b"\x00" * 1000))
    analysed_at_the_second_try(site, monkeypatch, "OSError at ")


def out_of_reach(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:  # noqa: ARG001
    """As where the data folder's file system is not mounted."""
    away = site.spool.root.with_name("elsewhere")
    site.spool.root.rename(away)
    return lambda: away.rename(site.spool.root)


def not_mounted(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:  # noqa: ARG001
    """As where the spool's own file system is not mounted, and a part that was started has made its folder anew."""
    away = site.spool.root.with_name("elsewhere")
    site.spool.root.rename(away)
    Spool(site.spool.root)
    return lambda: (shutil.rmtree(site.spool.root), away.rename(site.spool.root))


def disk_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """What is there can be read, and the model's input cannot be kept."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(site.spool, "put_bytes", partial(_with_no_file_to_grow, site.spool.put_bytes))
    return monkeypatch.undo


def _with_no_file_to_grow(put_bytes: Callable[[bytes], tuple[str, str]], data: bytes) -> tuple[str, str]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        return put_bytes(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def too_many_files(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """The process can open none."""

    def open_in_vain(_: str) -> io.BytesIO:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(site.spool, "open", open_in_vain)
    return monkeypatch.undo


def unwritable_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:  # noqa: ARG001
    """The transaction that writes the result fails."""

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", None, Exception("away"))

    monkeypatch.setattr("models.audit.record", fail)
    return monkeypatch.undo


@pytest.mark.parametrize("trouble", [out_of_reach, not_mounted, disk_full, too_many_files, unwritable_record])
def test_the_node_s_own_trouble_costs_an_image_no_try_however_long_it_lasts(
    site: Site, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Site, pytest.MonkeyPatch], Callable[[], object]]
) -> None:
    site.receive(radiograph())
    repair = trouble(site, monkeypatch)
    waits = []
    for _ in range(3 * site.settings.analysis.max_tries):
        began = clock.now()
        while not site.analyst.analyse_next():
            clock.advance(timedelta(seconds=0.5))
        waits.append((clock.now() - began).total_seconds())
    repair()
    image = site.only(Image)
    assert (image.state, image.tries) == (ImageState.RECEIVED, 0)
    assert site.all(Attempt) == []
    assert waits[1] < waits[3] < waits[-1] <= 76, "it is asked less and less often, at most about once a minute"
    clock.advance(timedelta(seconds=76))
    assert site.analyse() == 1
    assert (site.only(Image).state, site.only(Image).tries) == (ImageState.ANALYSED, 1)


def test_what_could_not_be_given_back_while_the_database_was_away_is_given_back_before_anything_is_claimed(
    site: Site,
) -> None:
    site.receive(radiograph())
    held = claim(site.database, Work.ANALYSE, limit=LIMIT)
    assert held is not None
    troubles = Troubles(site.database)
    with pytest.MonkeyPatch.context() as away:
        away.setattr(site.database, "write", unreachable)
        troubles.met(held, "away")
        assert troubles.owes
        assert troubles.hold_back()
        clock.advance(timedelta(seconds=2))
        with pytest.raises(OperationalError):
            troubles.hold_back()
    assert not troubles.hold_back()
    assert not troubles.owes
    assert (site.only(Image).tries, site.only(Image).lease_until) == (0, None)


def test_what_was_claimed_by_another_meanwhile_is_not_given_back(site: Site) -> None:
    site.receive(radiograph())
    late = claim(site.database, Work.ANALYSE, limit=LIMIT)
    let_leases_run_out(site)
    new = claim(site.database, Work.ANALYSE, limit=LIMIT)
    assert late is not None
    assert new is not None
    Troubles(site.database).met(late, "away")
    assert (site.only(Image).tries, site.only(Image).lease_token) == (2, new.token)
    assert site.only(Image).lease_until is not None


@contextmanager
def unreachable() -> Iterator[Session]:
    """A database that nobody can write to."""
    raise OperationalError("BEGIN", None, Exception("away"))
    yield


class Unreadable(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, _: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "input/output error")


def test_a_decoder_that_gets_no_memory_is_no_reason_and_the_image_is_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_in_vain(*_: object, **__: object) -> None:
        raise MemoryError

    site.receive(radiograph())
    monkeypatch.setattr("dicom_node.pixels.decode", decode_in_vain)
    analysed_at_the_second_try(site, monkeypatch, "MemoryError at ")


def analysed_at_the_second_try(site: Site, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """Analyse while something is patched, then without."""
    assert site.analyse() == 1
    image = site.only(Image)
    assert (image.state, image.reason) == (ImageState.RECEIVED, None)
    assert site.only(Attempt).error.startswith(error)
    monkeypatch.undo()
    clock.advance(image.due_at - clock.now())
    assert site.analyse() == 1
    assert (site.only(Image).state, site.only(Image).reason) == (ImageState.ANALYSED, None)


@sqlite_alone
@pytest.mark.parametrize(
    ("limit", "state", "reason"),
    [(10_000, ImageState.NOT_ANALYSED, "too_large"), (100_000, ImageState.ANALYSED, None)],
)
def test_a_deflated_data_set_that_unpacks_beyond_the_limit_is_not_analysed(
    site: Site, monkeypatch: pytest.MonkeyPatch, limit: int, state: ImageState, reason: str | None
) -> None:
    monkeypatch.setattr("worker.analyse.check_inflated_size", partial(check_inflated_size, limit=limit))
    dataset = radiograph()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    site.receive(dataset)
    assert site.analyse() == 1
    assert (site.only(Image).state, site.only(Image).reason) == (state, reason)


def let_leases_run_out(site: Site) -> None:
    with site.database.write() as session:
        for table in (Image, Study, Delivery, DestinationState):
            session.execute(
                update(table)
                .where(table.lease_until.is_not(None))
                .values(lease_until=database_now(session) - timedelta(seconds=1))
            )


def test_an_analyst_whose_lease_was_taken_over_writes_nothing(site: Site) -> None:
    class Overtaken(Predictor):
        """Reads for so long that another worker claims the same image."""

        def read(self, image: ModelInput) -> Reading:
            let_leases_run_out(site)
            assert claim(site.database, Work.ANALYSE, limit=LIMIT) is not None
            return super().read(image)

    site.receive(radiograph())
    overtaken = Overtaken(shipped.with_open_gate())
    assert Analyst(site.settings, site.database, site.spool, reader(site.database, overtaken)).analyse_next()
    assert site.all(Prediction) == []
    assert site.only(Image).state is ImageState.RECEIVED
    let_leases_run_out(site)
    assert site.analyse() == 1
    assert site.only(Image).state is ImageState.ANALYSED
    assert site.only(Prediction).image_id == site.only(Image).id


# --- report -------------------------------------------------------------------------------------------------------


def test_a_report_is_stored_as_bytes_under_a_uid_made_from_what_it_says(site: Site) -> None:
    report = site.report(radiograph(1), radiograph(2))
    dataset = read(report)
    assert report.sha256 == hashlib.sha256(report.content).hexdigest()
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == report.sop_instance_uid
    assert report.sop_instance_uid.startswith("2.25.")
    assert dataset.SOPClassUID == Comprehensive3DSRStorage
    assert (dataset.StudyInstanceUID, str(dataset.PatientName)) == (STUDY, PLANTED)
    assert (report.revision, report.generation, report.supersedes_id) == (1, 2, None)
    assert [given.prediction_id for given in site.all(ReportInput)] == [made.id for made in site.all(Prediction)]
    assert site.only(Study).state is StudyState.REPORTED


def test_two_studies_with_the_same_pixels_never_share_a_report_uid(site: Site) -> None:
    first = site.report(radiograph())
    dataset = radiograph()
    dataset.StudyInstanceUID = "1.2.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.4.4.1"
    second = site.report(dataset)
    assert first.sop_instance_uid != second.sop_instance_uid


@sqlite_alone
def test_an_image_that_was_not_analysed_stands_in_the_report_with_its_reason_and_is_never_absent(site: Site) -> None:
    report = site.report(radiograph(1, "CHEST"))
    assert report.impression == "undetermined"
    assert "outside the model's intended use" in json.dumps(read(report).to_json_dict())
    assert site.only(ReportInput).reason == "outside_intended_use"


def test_what_brings_nothing_new_brings_no_second_report(site: Site) -> None:
    site.report(radiograph())
    # A presentation state is kept, and opens the study again, but there is nothing to say of it.
    note = header(9, study_instance_uid=STUDY, sop_class_uid=GSPS, patient=read_header(radiograph()).patient)
    site.intake.record(ROOM, note, StoredFile("k" * 32, 1, "another", 0, ExplicitVRLittleEndian))
    assert site.only(Study).state is StudyState.RECEIVING
    site.complete()
    assert site.reporter.report_next()
    assert len(site.all(Report)) == 1
    assert site.only(Study).state is StudyState.REPORTED
    assert not site.reporter.report_next()


@pytest.mark.parametrize("complete_again", [False, True])
def test_a_report_of_a_study_that_grew_while_it_was_written_is_not_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch, complete_again: bool
) -> None:
    import worker.results as module

    build = module.build_report

    def meanwhile(content: Any) -> bytes:
        monkeypatch.setattr(module, "build_report", build)
        site.receive(radiograph(2))
        if complete_again:
            site.analyse()
            site.complete()
        return build(content)

    site.receive(radiograph(1))
    site.analyse()
    site.complete()
    monkeypatch.setattr(module, "build_report", meanwhile)
    assert site.reporter.report_next()
    assert site.all(Report) == []
    if complete_again:
        let_leases_run_out(site)
        assert site.reporter.report_next()
        report = site.only(Report)
    else:
        assert site.only(Study).state is StudyState.RECEIVING
        report = site.report()
    assert (report.generation, report.revision, len(site.all(ReportInput))) == (2, 1, 2)


@sqlite_alone
def test_a_study_that_cannot_be_reported_is_tried_again_and_then_needs_attention(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise ValueError(f"cannot encode {PLANTED}")

    monkeypatch.setattr("worker.results.build_report", fail)
    site.receive(radiograph())
    site.analyse()
    site.complete()
    while site.reporter.report_next():
        clock.advance(timedelta(seconds=400))
    study = site.only(Study)
    assert (study.state, study.reason) == (StudyState.NEEDS_ATTENTION, "report_failed")
    attempts = site.all(Attempt)
    assert len(attempts) == site.settings.analysis.max_tries
    assert all(PLANTED not in attempt.error and attempt.study_id == study.id for attempt in attempts)


def test_a_study_that_always_takes_its_reporter_down_needs_attention(site: Site) -> None:
    site.receive(radiograph())
    site.analyse()
    site.complete()
    for _ in range(site.settings.analysis.max_tries):
        assert claim(site.database, Work.REPORT, limit=LIMIT) is not None  # and its process is gone
        let_leases_run_out(site)
    assert site.reporter.report_next()
    study, attempt = site.only(Study), site.only(Attempt)
    assert (study.state, study.reason, study.lease_until) == (StudyState.NEEDS_ATTENTION, "report_failed", None)
    assert (attempt.study_id, attempt.error) == (study.id, "no_try_came_to_an_end")
    assert site.all(Report) == []
    assert not site.reporter.report_next()


def test_a_courier_alone_reports_a_study_of_images_for_processing_as_not_analysed(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(settings)
    bundle = Bundle.load(default_bundle_path())
    worker = Worker(settings, make_app(settings), frozenset({Work.REPORT, Work.DELIVER}), bundle)
    try:
        source = header(sop_class_uid=DigitalXRayImageStorageForProcessing)
        stored = StoredFile("k" * 32, 1, "digest", 0, ExplicitVRLittleEndian)
        intake = Intake(worker.database, settings)
        intake.record(ROOM, source, stored)
        intake.close(ROOM.uid, "released")
        clock.advance(timedelta(seconds=60))
        assert close_quiet_studies(worker.database)
        assert worker.do(Work.REPORT)
        with worker.database.read() as session:
            report = session.scalars(select(Report)).one()
            given = session.scalars(select(ReportInput)).one()
            assert session.scalars(select(Study.state)).one() is StudyState.REPORTED
    finally:
        worker.database.close()
    assert (report.impression, given.prediction_id, given.reason) == ("undetermined", None, "for_processing")
    assert Reason.FOR_PROCESSING.sentence in json.dumps(read(report).to_json_dict())


# --- deliver ------------------------------------------------------------------------------------------------------


def test_a_report_goes_to_every_destination_and_the_bytes_that_arrive_are_those_that_were_stored(
    make_site: Callable[..., Site], pacs: StorageScp, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    archive = StorageScp(folder)
    try:
        site = make_site(destination("pacs", pacs.port), destination("archive", archive.port))
        report = site.report(radiograph())
        assert site.deliver() == 2
        for scp in (pacs, archive):
            (received,) = scp.new_reports()
            assert received.sop_instance_uid == report.sop_instance_uid
            assert data_set(received.content) == data_set(report.content)
    finally:
        archive.stop()
    assert {delivery.destination for delivery in site.all(Delivery)} == {"pacs", "archive"}
    for delivery in site.all(Delivery):
        assert (delivery.state, delivery.status, delivery.delivered_at) == (DeliveryState.DELIVERED, 0, clock.now())
    assert [(attempt.outcome, attempt.status) for attempt in site.all(DeliveryAttempt)] == [("stored", 0)] * 2
    assert site.deliver() == 0


def delivered_to_one_that_answers(make_site: Callable[..., Site], *statuses: int) -> list[Delivery]:
    """Deliver a report for each status that the destination answers with."""
    answers = iter(statuses)
    with answering(lambda: next(answers)) as port:
        site = make_site(destination("pacs", port))
        for number, _ in enumerate(statuses):
            site.report(radiograph(study=f"{STUDY}.{number}"))
            assert site.deliver() == 1
            clock.advance(timedelta(milliseconds=1))
    assert [attempt.status for attempt in site.all(DeliveryAttempt)] == list(statuses)
    return site.all(Delivery)


@sqlite_alone
def test_an_instance_that_is_there_already_or_was_stored_with_a_remark_is_delivered_and_keeps_its_status(
    make_site: Callable[..., Site],
) -> None:
    statuses = (0x0111, 0xB000, 0xB006, 0xB007)
    for delivery, status in zip(delivered_to_one_that_answers(make_site, *statuses), statuses, strict=True):
        assert (delivery.state, delivery.status) == (DeliveryState.DELIVERED, status)


@sqlite_alone
def test_what_a_destination_refuses_for_good_needs_attention_at_once(make_site: Callable[..., Site]) -> None:
    statuses = (0x0122, 0x0124, 0xA900, 0xC000)
    for delivery, status in zip(delivered_to_one_that_answers(make_site, *statuses), statuses, strict=True):
        assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_ATTENTION, "refused")
        assert delivery.status == status


def test_a_delivery_that_always_takes_its_courier_down_needs_attention(
    make_site: Callable[..., Site], pacs: StorageScp
) -> None:
    site = make_site(destination("pacs", pacs.port), delivery={"max_tries": 3})
    site.report(radiograph())
    for _ in range(3):
        assert Lanes(site.settings, site.database).take("pacs") is not None  # and its process is gone
        let_leases_run_out(site)
    assert site.deliver() == 1
    delivery, attempt = site.only(Delivery), site.only(DeliveryAttempt)
    assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_ATTENTION, "no_try_came_to_an_end")
    assert (attempt.delivery_id, attempt.outcome, attempt.status) == (delivery.id, "no_try_came_to_an_end", None)
    assert pacs.new_reports() == []


@sqlite_alone
def test_a_destination_that_is_full_is_tried_again(make_site: Callable[..., Site]) -> None:
    (delivery,) = delivered_to_one_that_answers(make_site, 0xA700)
    assert (delivery.state, delivery.reason, delivery.status) == (DeliveryState.DUE, "refused_for_now", 0xA700)
    assert delivery.due_at > clock.now()


@sqlite_alone
def test_a_destination_that_does_not_know_us_is_asked_again_after_the_longest_wait(
    make_site: Callable[..., Site],
) -> None:
    with answering(lambda: 0x0000, ae_title="ANOTHER") as port:
        site = make_site(destination("pacs", port))
        site.report(radiograph())
        assert site.deliver() == 1
    delivery, state = site.only(Delivery), site.only(DestinationState)
    assert (delivery.state, delivery.reason, delivery.tries) == (DeliveryState.DUE, "association_rejected", 1)
    assert (state.failures, state.reason, state.reached_at) == (1, "association_rejected", None)
    longest = timedelta(seconds=site.settings.delivery.longest_wait)
    assert longest <= state.due_at - clock.now() <= longest * 1.25


@sqlite_alone
def test_a_destination_that_is_no_longer_in_the_settings_needs_attention(make_site: Callable[..., Site]) -> None:
    site = make_site(destination("pacs", free_port()))
    site.report(radiograph())
    site.courier = Courier(make_site().settings, site.database)
    assert site.deliver() == 1
    delivery = site.only(Delivery)
    assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_ATTENTION, "destination_not_in_settings")


def test_a_destination_that_is_down_is_tried_again_after_growing_waits_and_then_needs_attention(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(destination("pacs", free_port()), delivery={"first_wait": 5, "longest_wait": 20, "max_tries": 5})
    site.report(radiograph())
    waits = []
    while site.only(Delivery).state is DeliveryState.DUE:
        assert site.deliver() == 1
        wait = site.only(DestinationState).due_at - clock.now()
        waits.append(wait.total_seconds())
        clock.advance(wait - timedelta(milliseconds=1))
        assert site.deliver() == 0, "not before its time"
        clock.advance(timedelta(milliseconds=1))
    assert len(waits) == 5
    for wait, least in zip(waits, (5, 10, 20, 20), strict=False):
        assert least <= wait <= least * 1.25
    delivery = site.only(Delivery)
    assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_ATTENTION, "not_reached")
    assert [attempt.outcome for attempt in site.all(DeliveryAttempt)] == ["not_reached"] * 5


@sqlite_alone
def test_a_destination_that_comes_back_gets_the_report_unchanged(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(destination("pacs", port := free_port()))
    report = site.report(radiograph())
    assert site.deliver() == 1
    clock.advance(timedelta(hours=1))
    ae = AE(ae_title="DEMOPACS")
    ae.add_supported_context(Comprehensive3DSRStorage, ExplicitVRLittleEndian)
    arrived: list[bytes] = []

    def keep(event: evt.Event) -> int:
        arrived.append(event.encoded_dataset(include_meta=False))
        return 0x0000

    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        assert site.deliver() == 1
    finally:
        shut_down(ae)
    assert arrived == [data_set(report.content)]
    assert site.only(Delivery).state is DeliveryState.DELIVERED


# --- late images --------------------------------------------------------------------------------------------------


def test_a_late_image_brings_a_report_that_names_its_predecessor_and_cancels_what_was_not_sent_of_it(
    make_site: Callable[..., Site], pacs: StorageScp
) -> None:
    site = make_site(destination("pacs", pacs.port), destination("down", free_port()))
    first = site.report(radiograph(1))
    assert site.deliver() == 2
    second = site.report(radiograph(2))

    assert (second.revision, second.generation, second.supersedes_id) == (2, 2, first.id)
    predecessor = read(second).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert predecessor.ReferencedSOPInstanceUID == first.sop_instance_uid
    assert second.sop_instance_uid != first.sop_instance_uid
    assert "PredecessorDocumentsSequence" not in read(first)

    states = {(row.report_id, row.destination): (row.state, row.reason) for row in site.all(Delivery)}
    assert states[first.id, "pacs"] == (DeliveryState.DELIVERED, "stored")
    assert states[first.id, "down"] == (DeliveryState.CANCELLED, "superseded")
    assert states[second.id, "pacs"][0] is states[second.id, "down"][0] is DeliveryState.DUE
    clock.advance(timedelta(hours=1))
    site.deliver()
    assert [received.sop_instance_uid for received in pacs.new_reports()] == [
        first.sop_instance_uid,
        second.sop_instance_uid,
    ]


def test_a_report_that_is_superseded_while_it_is_sent_in_vain_is_not_tried_again(
    make_site: Callable[..., Site],
) -> None:
    with answering(lambda: 0xA700) as port:
        site = make_site(destination("pacs", port))
        first = site.report(radiograph(1))
        assert Lanes(site.settings, site.database).take("pacs") is not None  # it is being sent
        second = site.report(radiograph(2))
        states = {row.report_id: row.state for row in site.all(Delivery)}
        assert states == {first.id: DeliveryState.DUE, second.id: DeliveryState.DUE}
        assert site.deliver() == 0, "its successor waits for it"
        let_leases_run_out(site)
        assert site.deliver() == 2
    states = {row.report_id: row.state for row in site.all(Delivery)}
    assert states == {first.id: DeliveryState.CANCELLED, second.id: DeliveryState.DUE}


def test_a_superseded_report_whose_courier_died_is_cancelled_and_not_sent(
    make_site: Callable[..., Site], pacs: StorageScp
) -> None:
    site = make_site(destination("pacs", pacs.port))
    first = site.report(radiograph(1))
    assert Lanes(site.settings, site.database).take("pacs") is not None  # and its process dies
    second = site.report(radiograph(2))
    let_leases_run_out(site)
    assert site.deliver() == 2
    states = {row.report_id: (row.state, row.reason) for row in site.all(Delivery)}
    assert states[first.id] == (DeliveryState.CANCELLED, "superseded")
    assert states[second.id] == (DeliveryState.DELIVERED, "stored")
    assert [received.sop_instance_uid for received in pacs.new_reports()] == [second.sop_instance_uid]


def test_the_report_of_a_late_image_speaks_of_the_earlier_ones_too(site: Site) -> None:
    site.report(radiograph(1))
    second = json.dumps(read(site.report(radiograph(2))).to_json_dict())
    assert '"1.2.3.4.1"' in second
    assert '"1.2.3.4.2"' in second
