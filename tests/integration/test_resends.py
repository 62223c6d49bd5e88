"""Instances that come again, on both databases: one node without its processes, from the bytes to the report."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import structlog
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSNearLossless,
    RLELossless,
)
from sqlalchemy import select, update
from typer.testing import CliRunner

from console.main import app
from dicom_node.headers import SourceHeader
from dicom_node.intake import Receipt
from dicom_node.objects.template import check_report
from dicom_node.resolve import CannotResolve, Decision
from models import clock
from models.settings import Peer, Settings, environment_of
from models.tables import (
    Attempt,
    AuditEvent,
    File,
    FileKind,
    HeaderRevision,
    Image,
    ImageState,
    Prediction,
    Quarantine,
    Report,
    ReportInput,
    Resend,
    ResendState,
    StudyState,
)
from models.upgrade import upgrade
from tests.phantom import limb
from tests.radiographs import radiograph
from worker.claims import Work, claim
from worker.predictor import Predictor
from worker.sweeper import close_quiet_studies

pytest.importorskip("ai_edge_litert")

from tests import shipped
from tests.site import ROOM, Site, until_idle

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WRONG, RIGHT = "PLANTED^WRONG", "PLANTED^RIGHT"
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(shipped.with_open_gate())


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


def image(
    number: int = 1,
    *,
    seed: int | None = None,
    name: str = WRONG,
    patient: str = "PID-1",
    syntax: UID = ExplicitVRLittleEndian,
    **changes: Any,
) -> FileDataset:
    """The number-th image of one study; its pixels are told apart by `seed`."""
    return radiograph(
        np.roll(limb(), seed or number, axis=1),
        transfer_syntax=syntax,
        patient_name=name,
        patient_id=patient,
        study_uid="1.2.3",
        series_uid="1.2.3.3",
        sop_instance_uid=f"1.2.3.4.{number}",
        instance_number=number,
        **changes,
    )


@pytest.fixture
def make_site(make_settings: Callable[..., Settings], predictor: Predictor) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        made = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")], **settings)
        upgrade(made)
        sites.append(Site(made, predictor))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def said(report: Report) -> tuple[str, str, set[str]]:
    """The patient's name and ID in a report, and the images it names."""
    dataset = pydicom.dcmread(io.BytesIO(report.content))
    text = json.dumps(dataset.to_json_dict())
    return (
        str(dataset.PatientName),
        str(dataset.PatientID),
        {f"1.2.3.4.{number}" for number in range(1, 9) if f'"1.2.3.4.{number}"' in text},
    )


def states(rows: Sequence[Image]) -> list[tuple[ImageState, str | None]]:
    return [(row.state, row.reason) for row in rows]


# --- the same pixels ------------------------------------------------------------------------------------------------


def test_a_resend_of_a_whole_study_with_the_right_name_brings_one_report_more_and_it_has_that_name(site: Site) -> None:
    for number in (1, 2, 3):
        site.receive(image(number))
    (first,) = site.settle()
    receipts = []
    for number in (1, 2, 3):
        receipts.append(site.receive(image(number, name=RIGHT)))
        clock.advance(timedelta(seconds=40))
        close_quiet_studies(site.database)
        assert not site.reporter.report_next(), "each revision begins a new quiet time"
    assert receipts == [Receipt.REVISED] * 3
    reports = site.settle()
    assert [report.revision for report in reports] == [1, 2]
    assert [said(report)[0] for report in reports] == [WRONG, RIGHT]
    assert said(reports[1])[2] == {"1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"}
    assert reports[1].supersedes_id == first.id
    assert (site.study.patient_name, site.study.state) == (RIGHT, StudyState.REPORTED)
    assert [revision.changed for revision in site.all(HeaderRevision)] == [["PatientName"]] * 3
    assert len(site.all(Prediction)) == 3, "the pixels are the same, and so is what was predicted of them"
    assert site.all(Quarantine) == []
    assert site.actions().count("image.revised") == 3
    assert "PLANTED" not in str([event.details for event in site.all(AuditEvent)])
    assert [site.receive(image(number, name=RIGHT)) for number in (1, 2, 3)] == [Receipt.DUPLICATE] * 3
    assert len(site.settle()) == 2


def test_a_study_that_is_sent_again_is_not_complete_while_that_association_is_open(site: Site) -> None:
    site.receive(image(1))
    site.settle()
    again = replace(ROOM, uid="again")
    site.receive(image(1, name=RIGHT), again)
    clock.advance(timedelta(seconds=70))
    site.intake.touch([again.uid])
    assert close_quiet_studies(site.database) == []
    site.intake.close(again.uid, "released")
    assert close_quiet_studies(site.database) == [site.study.id]


def test_recompressed_copies_are_examined_and_bring_no_new_report(site: Site) -> None:
    syntaxes = (JPEG2000Lossless, RLELossless, DeflatedExplicitVRLittleEndian)
    for number, _ in enumerate(syntaxes):
        site.receive(image(number))
    site.settle()
    for number, syntax in enumerate(syntaxes):
        assert site.receive(image(number, syntax=syntax)) is Receipt.TO_BE_EXAMINED
    assert site.study.state is StudyState.REPORTED
    assert len(site.settle()) == 1
    revisions = site.all(HeaderRevision)
    assert [(revision.changed, revision.transfer_syntax_uid) for revision in revisions] == [([], s) for s in syntaxes]
    assert [resend.state for resend in site.all(Resend)] == [ResendState.REVISION] * 3
    assert (site.study.generation, site.study.state) == (3, StudyState.REPORTED)
    kept = {file.id: file.kind for file in site.all(File)}
    assert [kept[revision.file_id] for revision in revisions] == [FileKind.RESEND] * 3
    assert site.receive(image(0, syntax=JPEG2000Lossless)) is Receipt.DUPLICATE


def test_a_study_is_not_reported_before_what_came_again_was_examined(site: Site) -> None:
    site.receive(image())
    until_idle(site.analyst.analyse_next)
    site.receive(image(name=RIGHT, syntax=JPEG2000Lossless))
    clock.advance(timedelta(seconds=60))
    site.intake.close(ROOM.uid, "released")
    assert close_quiet_studies(site.database)
    assert not site.reporter.report_next()
    assert site.examiner.examine_next()
    (report,) = site.settle()
    assert said(report)[0] == RIGHT
    assert (report.revision, report.generation) == (1, 2)


@sqlite_alone
def test_whatever_is_corrected_of_patient_or_order_stands_in_the_next_report_which_says_that_it_replaces(
    site: Site,
) -> None:
    order = pydicom.Dataset()
    order.RequestedProcedureID, order.RequestedProcedureDescription = "P-2", "Hand"
    corrections: dict[str, Any] = {
        "PatientBirthDate": "19800229",
        "PatientSex": "O",
        "IssuerOfPatientID": "HOSPITAL",
        "AccessionNumber": "A-2",
        "RequestAttributesSequence": [order],
    }
    site.receive(image())
    site.settle()
    told: dict[str, Any] = {}
    for keyword, value in corrections.items():
        told[keyword] = value
        assert site.receive(image(attributes=dict(told))) is Receipt.REVISED
        *earlier, newest = site.settle()
        assert newest.supersedes_id == earlier[-1].id, keyword
        report = pydicom.dcmread(io.BytesIO(newest.content))
        for known, expected in told.items():
            if known != "RequestAttributesSequence":
                assert report[known].value == expected
        previous = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert previous.ReferencedSOPInstanceUID == earlier[-1].sop_instance_uid
        assert "This report replaces an earlier one." in json.dumps(report.to_json_dict())
        assert check_report(newest.content) == []
    (request,) = report.ReferencedRequestSequence
    assert (request.RequestedProcedureID, request.AccessionNumber) == ("P-2", "A-2")
    assert len(site.all(Prediction)) == 1


@sqlite_alone
def test_what_changes_neither_patient_nor_side_is_kept_and_brings_no_new_report(site: Site) -> None:
    site.receive(image())
    site.settle()
    again = image(attributes={"StationName": "X", "InstitutionName": "Y", "ViewPosition": "PA", "Manufacturer": "Z"})
    assert site.receive(again) is Receipt.REVISED
    assert len(site.settle()) == 1
    assert site.only(HeaderRevision).changed == ["Manufacturer", "StationName", "ViewPosition"]
    assert site.only(Image).view == "PA"
    assert SourceHeader.from_json(site.only(Image).header).view_position == "AP", "what came first stays as it came"


def test_a_corrected_side_brings_a_new_report_and_the_prediction_stands(site: Site) -> None:
    site.receive(image())
    site.settle()
    assert site.receive(image(laterality="R")) is Receipt.REVISED
    assert site.only(Image).state is ImageState.RECEIVED
    first, second = site.settle()
    assert len(site.all(Prediction)) == 1
    assert site.only(Image).state is ImageState.ANALYSED
    assert "Left" in json.dumps(pydicom.dcmread(io.BytesIO(first.content)).to_json_dict())
    assert "Right" in json.dumps(pydicom.dcmread(io.BytesIO(second.content)).to_json_dict())
    assert "image.prediction_stands" in site.actions()


@sqlite_alone
def test_an_image_that_contradicted_itself_is_read_once_it_is_corrected_and_refused_once_it_is_spoilt(
    site: Site,
) -> None:
    wrong = {"SeriesDescription": "right wrist"}
    site.receive(image(attributes=wrong))
    site.settle()
    assert states(site.all(Image)) == [(ImageState.NOT_ANALYSED, "laterality_conflict")]
    site.receive(image())
    site.settle()
    assert states(site.all(Image)) == [(ImageState.ANALYSED, None)]
    site.receive(image(attributes=wrong | {"StationName": "again"}))
    reports = site.settle()
    assert states(site.all(Image)) == [(ImageState.NOT_ANALYSED, "laterality_conflict")]
    with site.database.read() as session:
        reasons = session.scalars(select(ReportInput.reason).order_by(ReportInput.report_id)).all()
    assert (len(reports), list(reasons)) == (3, ["laterality_conflict", None, "laterality_conflict"])
    assert reports[-1].impression == "undetermined"


@sqlite_alone
def test_who_reads_an_image_while_its_header_is_corrected_writes_nothing(site: Site) -> None:
    site.receive(image())
    held = claim(site.database, Work.ANALYSE, limit=timedelta(minutes=1))
    assert held is not None
    site.receive(image(laterality="R"))
    assert site.only(Image).lease_token == held.token + 1
    assert len(site.settle()) == 1


# --- other pixels ---------------------------------------------------------------------------------------------------


def in_conflict(site: Site) -> None:
    """A reported study of two images; the first's UID came again with other pixels, and under the right name."""
    for number in (1, 2):
        site.receive(image(number))
    site.settle()
    assert site.receive(image(1, seed=7, name=RIGHT)) is Receipt.QUARANTINED
    assert (site.study.state, site.study.reason) == (StudyState.NEEDS_ATTENTION, "same_uid_other_pixels")
    assert len(site.settle()) == 1


def test_other_pixels_that_the_first_stands_against_change_nothing(site: Site) -> None:
    in_conflict(site)
    site.resolve(Decision.KEEP)
    assert len(site.settle()) == 1
    assert (site.study.state, site.study.reason) == (StudyState.REPORTED, None)
    row = site.only(Quarantine)
    assert (row.resolution, row.resolved_by, row.resolved_at) == ("keep", "night shift", NOON + timedelta(minutes=2))
    (event,) = [event for event in site.all(AuditEvent) if event.action == "quarantine.resolved"]
    assert (event.actor, event.subject_id, event.details["resolution"]) == ("night shift", row.id, "keep")
    assert site.receive(image(1, seed=7, name=RIGHT)) is Receipt.QUARANTINED_BEFORE
    assert site.study.state is StudyState.REPORTED
    with pytest.raises(CannotResolve, match="resolved already"):
        site.resolve(Decision.KEEP, row.id)


def test_other_pixels_that_take_the_place_of_the_first_are_analysed_and_reported(site: Site) -> None:
    in_conflict(site)
    site.resolve(Decision.REPLACE)
    first, second = site.settle()
    old, other, new = site.all(Image)
    assert states([old, other, new]) == [
        (ImageState.NOT_ANALYSED, "replaced"),
        (ImageState.ANALYSED, None),
        (ImageState.ANALYSED, None),
    ]
    assert old.sop_instance_uid == new.sop_instance_uid
    assert old.scanner == new.scanner != ""
    assert (old.replaced_at, new.replaced_at) == (NOON + timedelta(minutes=2), None)
    with site.database.read() as session:
        inputs = session.scalars(select(ReportInput.image_id).where(ReportInput.report_id == second.id)).all()
    assert list(inputs) == [other.id, new.id]
    assert said(second) == (RIGHT, "PID-1", {"1.2.3.4.1", "1.2.3.4.2"})
    assert (second.generation, second.supersedes_id) == (3, first.id)
    assert len(site.all(Prediction)) == 3, "what was predicted of the first stays on record"
    # Neither comes as anything new again, and of the one that stands a header may be corrected.
    assert site.receive(image(1)) is site.receive(image(1, seed=7, name=RIGHT)) is Receipt.DUPLICATE
    assert site.receive(image(1, seed=7, name="PLANTED^THIRD")) is Receipt.REVISED
    assert said(site.settle()[-1])[0] == "PLANTED^THIRD"


@sqlite_alone
def test_what_was_compressed_with_loss_has_other_pixels(site: Site) -> None:
    site.receive(image())
    assert site.receive(image(syntax=JPEGLSNearLossless)) is Receipt.TO_BE_EXAMINED
    site.work()
    assert (site.only(Resend).state, site.only(Quarantine).reason) == (ResendState.CONFLICT, "same_uid_other_pixels")
    assert site.study.state is StudyState.NEEDS_ATTENTION
    site.resolve(Decision.REPLACE)
    site.settle()
    assert states(site.all(Image)) == [(ImageState.NOT_ANALYSED, "replaced"), (ImageState.ANALYSED, None)]


@sqlite_alone
def test_the_same_values_in_which_white_is_low_are_other_pixels(site: Site) -> None:
    site.receive(image())
    site.receive(image(attributes={"PhotometricInterpretation": "MONOCHROME1"}))
    site.work()
    assert (site.only(Resend).state, site.only(Quarantine).reason) == (ResendState.CONFLICT, "same_uid_other_pixels")


# --- what cannot be compared ----------------------------------------------------------------------------------------


def broken(dataset: FileDataset) -> FileDataset:
    dataset.PixelData = dataset.PixelData[:200] + b"\x00" * 200
    return dataset


def test_what_cannot_be_decoded_is_quarantined_with_a_reason_of_its_own(site: Site) -> None:
    site.receive(image())
    assert site.receive(broken(image(syntax=JPEG2000Lossless))) is Receipt.TO_BE_EXAMINED
    site.work()
    assert (site.only(Resend).state, site.only(Quarantine).reason) == (ResendState.CONFLICT, "same_uid_not_comparable")
    assert (site.study.state, site.study.reason) == (StudyState.NEEDS_ATTENTION, "same_uid_not_comparable")


@sqlite_alone
@pytest.mark.parametrize(("analysed", "state"), [(True, ResendState.REVISION), (False, ResendState.CONFLICT)])
def test_of_a_first_file_that_retention_removed_the_digest_on_record_stands(
    site: Site, analysed: bool, state: ResendState
) -> None:
    site.receive(image())
    if analysed:
        site.work()
    with site.database.write() as session:
        first = session.scalars(select(File).where(File.kind == FileKind.INSTANCE)).one()
        first.removed_at = clock.now()
        site.spool.delete(first.key)
    assert site.receive(image(name=RIGHT)) is Receipt.TO_BE_EXAMINED
    until_idle(site.examiner.examine_next)
    assert site.only(Resend).state is state
    reasons = [row.reason for row in site.all(Quarantine)]
    assert reasons == ([] if analysed else ["same_uid_not_comparable"])


def test_an_examination_that_always_fails_ends_and_the_instance_is_quarantined(site: Site) -> None:
    site.receive(image())
    until_idle(site.analyst.analyse_next)
    site.receive(image(syntax=JPEG2000Lossless))
    with site.database.read() as session:
        site.spool.delete(session.scalars(select(File.key).where(File.kind == FileKind.RESEND)).one())
    for tries in range(1, site.settings.analysis.max_tries + 1):
        assert site.examiner.examine_next()
        assert len(site.all(Attempt)) == tries
        assert not site.examiner.examine_next(), "not at once"
        clock.advance(timedelta(seconds=400))
    assert (site.only(Resend).state, site.only(Quarantine).reason) == (ResendState.FAILED, "same_uid_not_comparable")
    assert all(attempt.error.startswith("FileGone at ") for attempt in site.all(Attempt))
    assert site.study.state is StudyState.NEEDS_ATTENTION
    assert not site.examiner.examine_next()


def test_a_spool_that_is_out_of_reach_costs_an_examination_no_try(site: Site) -> None:
    site.receive(image())
    site.receive(image(syntax=JPEG2000Lossless))
    away = site.spool.root.with_name("away")
    site.spool.root.rename(away)
    for _ in range(site.settings.analysis.max_tries + 1):
        assert site.examiner.examine_next()
        clock.advance(timedelta(seconds=80))
    away.rename(site.spool.root)
    assert (site.only(Resend).state, site.only(Resend).tries) == (ResendState.WAITING, 0)
    assert site.all(Attempt) == []
    assert site.examiner.examine_next()
    assert site.only(Resend).state is ResendState.REVISION


@sqlite_alone
def test_an_examination_that_always_takes_its_worker_down_is_given_up(site: Site) -> None:
    site.receive(image())
    site.receive(image(syntax=JPEG2000Lossless))
    for _ in range(site.settings.analysis.max_tries):
        assert claim(site.database, Work.EXAMINE, limit=timedelta(minutes=1)) is not None  # and its process is gone
        with site.database.write() as session:
            session.execute(update(Resend).values(lease_until=NOON - timedelta(days=9)))
    assert site.examiner.examine_next()
    assert (site.only(Resend).state, site.only(Attempt).error) == (ResendState.FAILED, "no_try_came_to_an_end")


# --- another patient ------------------------------------------------------------------------------------------------


def contradicting(site: Site) -> None:
    """A study of two images, whose second is said to be of another patient."""
    site.receive(image(1))
    site.receive(image(2, patient="PID-2", name="PLANTED^OTHER"))
    assert (site.study.state, site.study.reason) == (StudyState.NEEDS_ATTENTION, "contradicting_patient")
    assert site.settle() == []


def test_a_patient_who_is_accepted_is_one_patient_and_the_report_is_of_the_newest_header(site: Site) -> None:
    contradicting(site)
    site.resolve(Decision.ACCEPT)
    (report,) = site.settle()
    assert said(report) == ("PLANTED^OTHER", "PID-2", {"1.2.3.4.1", "1.2.3.4.2"})
    assert (site.study.patient_id, site.study.state) == ("PID-2", StudyState.REPORTED)
    # What was accepted is not asked again, of further images and of corrections.
    site.receive(image(3, patient="PID-1"))
    site.receive(image(4, patient="PID-2"))
    site.receive(image(1, attributes={"PatientSex": "M"}))
    assert (site.study.state, len(site.all(Quarantine))) == (StudyState.RECEIVING, 1)
    site.receive(image(5, patient="PID-3"))
    assert site.study.state is StudyState.NEEDS_ATTENTION


def test_an_image_of_another_patient_that_is_excluded_is_not_named_in_the_report(site: Site) -> None:
    contradicting(site)
    site.resolve(Decision.EXCLUDE)
    (report,) = site.settle()
    assert said(report) == (WRONG, "PID-1", {"1.2.3.4.1"})
    assert "PLANTED^OTHER" not in json.dumps(pydicom.dcmread(io.BytesIO(report.content)).to_json_dict())
    assert states(site.all(Image)) == [(ImageState.ANALYSED, None), (ImageState.NOT_ANALYSED, "excluded")]
    assert site.receive(image(2, patient="PID-2", name="PLANTED^OTHER")) is Receipt.DUPLICATE
    assert len(site.settle()) == 1
    # Under the right patient it is a new image.
    assert site.receive(image(2)) is Receipt.NEW
    assert said(site.settle()[-1])[2] == {"1.2.3.4.1", "1.2.3.4.2"}


@pytest.mark.parametrize("which", [1, 2])
def test_a_contradiction_that_the_sender_corrects_is_resolved_without_a_person(site: Site, which: int) -> None:
    contradicting(site)
    if which == 1:
        assert site.receive(image(1, patient="PID-2", name="PLANTED^OTHER")) is Receipt.REVISED
    else:
        assert site.receive(image(2)) is Receipt.REVISED
    row = site.only(Quarantine)
    assert row.resolution == "corrected_by_the_sender"
    assert row.resolved_by.startswith("listener@")
    assert site.study.state is StudyState.RECEIVING
    (report,) = site.settle()
    assert said(report)[:2] == (("PLANTED^OTHER", "PID-2") if which == 1 else (WRONG, "PID-1"))
    assert "quarantine.resolved" in site.actions()


def test_a_whole_study_that_is_given_another_patient_id_is_held_up_only_until_its_last_image_has_it(
    site: Site,
) -> None:
    for number in (1, 2, 3):
        site.receive(image(number))
    site.settle()
    for number in (1, 2, 3):
        assert site.receive(image(number, patient="PID-9", name=RIGHT)) is Receipt.REVISED
        state = StudyState.NEEDS_ATTENTION if number < 3 else StudyState.RECEIVING
        assert (site.study.state, site.study.patient_id) == (state, "PID-1" if number < 3 else "PID-9")
    reports = site.settle()
    assert [said(report)[:2] for report in reports] == [(WRONG, "PID-1"), (RIGHT, "PID-9")]
    assert {row.resolution for row in site.all(Quarantine)} == {"corrected_by_the_sender"}


@sqlite_alone
def test_a_study_goes_on_only_when_nothing_about_it_is_open_any_more(site: Site) -> None:
    contradicting(site)
    site.receive(image(1, seed=8))
    assert [row.reason for row in site.all(Quarantine)] == ["contradicting_patient", "same_uid_other_pixels"]
    site.resolve(Decision.EXCLUDE)
    assert (site.study.state, site.study.reason) == (StudyState.NEEDS_ATTENTION, "same_uid_other_pixels")
    assert site.settle() == []
    site.resolve(Decision.KEEP)
    assert len(site.settle()) == 1


@sqlite_alone
def test_a_decision_that_does_not_fit_changes_nothing(site: Site) -> None:
    contradicting(site)
    for decision in (Decision.KEEP, Decision.REPLACE):
        with pytest.raises(CannotResolve, match="accept or exclude"):
            site.resolve(decision)
    with pytest.raises(CannotResolve, match="no row 99"):
        site.resolve(Decision.ACCEPT, 99)
    site.receive(image(2, patient="PID-2", name="PLANTED^OTHER", syntax=JPEG2000Lossless))
    with pytest.raises(CannotResolve, match="still being examined"):
        site.resolve(Decision.EXCLUDE)
    assert site.only(Quarantine).resolved_at is None
    assert "quarantine.resolved" not in site.actions()


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def osteon(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run `osteon quarantine …` with the site's settings; return what it prints."""
    for name, value in environment_of(site.settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, ["quarantine", *arguments])
        assert result.exit_code == status, result.output
        return result.output

    return run


def test_what_is_in_quarantine_is_listed_shown_and_resolved_without_patient_data(
    site: Site, osteon: Callable[..., str]
) -> None:
    assert "Nothing in quarantine" in osteon("list")
    in_conflict(site)
    (row,) = json.loads(osteon("list", "--json"))
    assert (row["id"], row["study_instance_uid"], row["reason"]) == (1, "1.2.3", "same_uid_other_pixels")
    assert (row["source"], row["resolved"]) == ("ROOM", None)
    listed = osteon("list")
    assert "same_uid_other_pixels" in listed
    shown = json.loads(osteon("show", "1", "--json"))
    assert shown["headers_differ_in"] == ["PatientName"]
    assert shown["can_be_resolved_as"] == ["keep", "replace"]
    for path in (shown["image_file"], shown["newcomer_file"]):
        assert pydicom.dcmread(Path(path)).SOPInstanceUID == "1.2.3.4.1"
    told = listed + osteon("show", "1") + json.dumps([row, shown])
    assert "PLANTED" not in told
    assert "PID-1" not in told

    assert "can be resolved as keep or replace" in osteon("resolve", "1", "--as", "accept", status=1)
    osteon("resolve", "1", "--as", "keep", "--by", "night shift")
    assert "resolved already" in osteon("resolve", "1", "--as", "keep", status=1)
    assert json.loads(osteon("list", "--json")) == []
    (row,) = json.loads(osteon("list", "--all", "--json"))
    assert (row["resolution"], row["resolved_by"]) == ("keep", "night shift")
    assert "keep by night shift" in osteon("list", "--all")
    assert "no row 7" in osteon("show", "7", status=1)


@sqlite_alone
def test_whose_images_they_are_is_shown_when_asked_for_and_that_is_on_record(
    site: Site, osteon: Callable[..., str]
) -> None:
    contradicting(site)
    shown = json.loads(osteon("show", "1", "--patient", "--json", "--by", "night shift"))
    assert "PLANTED^OTHER | PID-2" in shown["image_is_of"]
    assert f"{WRONG} | PID-1" in shown["study_is_of"]
    assert shown["headers_differ_in"] == ["PatientID", "PatientName"]
    event = site.all(AuditEvent)[-1]
    assert (event.action, event.actor, event.subject_id) == ("study.viewed", "night shift", 1)
    assert event.details == {"where": "osteon quarantine show", "quarantine": 1}
