"""What is to be said of a study, read from the record: its images, what came of each, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from dicom_node.current import newest_headers
from dicom_node.headers import Code, Patient, SourceHeader
from dicom_node.objects.content import Algorithm, Device, FindingOutcome, ImageOutcome, ReportContent
from dicom_node.objects.requests import under
from models import clock
from models.reasons import Reason
from models.settings import Settings
from models.tables import (
    Association,
    Finding,
    HeaderRevision,
    Image,
    ImageState,
    Installation,
    ModelVersion,
    Prediction,
    Study,
)
from models.version import VERSION
from worker.activation import ACTIVE, active_version


@dataclass(frozen=True)
class Input:
    """An image that something is said of, and the prediction that rests on it, or the reason why there is none."""

    image_id: int
    prediction_id: int | None
    reason: str | None


@dataclass(frozen=True)
class Draft:
    """What will be said of a study: the content of a report that replaces none, and what it rests on."""

    content: ReportContent
    inputs: dict[str, Input]
    """By the image's SOP Instance UID."""
    senders: frozenset[str]
    """The AE titles that sent its images to us."""


def draft(session: Session, settings: Settings, study_id: int) -> Draft | None:
    """Read a study; None where there is no image to speak of."""
    images = session.scalars(
        select(Image)
        .where(Image.study_id == study_id, Image.is_image.is_(True), Image.replaced_at.is_(None))
        .order_by(Image.id)
    ).all()
    if not images:
        return None
    predictions = _latest_predictions(session, study_id)
    headers = newest_headers(session, study_id)
    study = session.get_one(Study, study_id)
    corrected = _corrected_accession_numbers(session, study_id)
    versions = {prediction.model_version for prediction in predictions.values()} or {_active(session)}
    algorithms = {version.id: _algorithm(version) for version in versions}
    outcomes = []
    for image in images:
        header = _identified(headers[image.id].header, study, corrected)
        outcomes.append(_outcome(image, header, predictions.get(image.id), algorithms))
    installation = session.scalars(select(Installation.uid)).one()
    content = ReportContent(
        installation_uid=installation,
        device=Device(serial=installation, software_version=VERSION, station_ae_title=settings.ae_title),
        algorithm=algorithms[max(algorithms)],
        created_at=clock.now(),
        images=tuple(outcomes),
        series_number=settings.report.series_number,
        series_description=settings.report.series_description,
    )
    inputs = {
        image.sop_instance_uid: Input(
            image.id, predictions[image.id].id if image.id in predictions else None, image.reason
        )
        for image in images
    }
    return Draft(content, inputs, _senders(session, study_id))


def _senders(session: Session, study_id: int) -> frozenset[str]:
    return frozenset(
        session.scalars(
            select(Association.calling_ae_title)
            .join(Image, Image.association_id == Association.id)
            .where(Image.study_id == study_id)
            .distinct()
        )
    )


def _latest_predictions(session: Session, study_id: int) -> dict[int, Prediction]:
    found = session.scalars(
        select(Prediction)
        .join(Image, Image.id == Prediction.image_id)
        .where(
            Image.study_id == study_id,
            Image.state == ImageState.ANALYSED,
            Image.replaced_at.is_(None),
            Prediction.role == ACTIVE,
        )
        .order_by(Prediction.id)
        .options(
            selectinload(Prediction.findings).selectinload(Finding.regions), selectinload(Prediction.model_version)
        )
    )
    return {prediction.image_id: prediction for prediction in found}


def _active(session: Session) -> ModelVersion:
    version = active_version(session)
    assert version is not None  # noqa: S101 (a process that reports has registered one)
    return version


def _algorithm(version: ModelVersion) -> Algorithm:
    return Algorithm(
        name=version.name, version=version.version, manufacturer="Osteon", bundle_sha256=version.bundle_sha256
    )


def _corrected_accession_numbers(session: Session, study_id: int) -> dict[str, str]:
    """What became of each accession number that the header of any image was corrected from."""
    rows = session.execute(
        select(Image.id, Image.header, HeaderRevision.header)
        .join(HeaderRevision, HeaderRevision.image_id == Image.id)
        .where(Image.study_id == study_id)
        .order_by(HeaderRevision.id)
    )
    last: dict[int, str] = {}
    corrected: dict[str, str] = {}
    for image_id, first, revised in rows:
        before = last.get(image_id) or SourceHeader.from_json(first).study.accession_number
        after = SourceHeader.from_json(revised).study.accession_number
        last[image_id] = after
        if before and after and before != after:
            corrected[before] = after
            corrected.pop(after, None)  # it is in force again
    return corrected


def _identified(header: SourceHeader, study: Study, corrected: dict[str, str]) -> SourceHeader:
    """The report is of the patient of the study's row, which follows corrections, also those of one image alone.

    So do accession numbers; but images of one study may have several, which all stand.
    """
    number = header.study.accession_number
    while number in corrected:
        number = corrected[number]
    patient = Patient(
        name=study.patient_name,
        id=study.patient_id,
        issuer=study.issuer_of_patient_id,
        birth_date=study.patient_birth_date,
        sex=study.patient_sex,
    )
    return under(replace(header, patient=patient), number)


def _outcome(
    image: Image, header: SourceHeader, prediction: Prediction | None, algorithms: dict[int, Algorithm]
) -> ImageOutcome:
    if prediction is None:
        return ImageOutcome(header, not_analysed=Reason(image.reason or Reason.FAILED))
    return ImageOutcome(
        header,
        readings=tuple(_finding_outcome(finding) for finding in prediction.findings),
        algorithm=algorithms[prediction.model_version_id],
    )


def _finding_outcome(finding: Finding) -> FindingOutcome:
    region = finding.regions[0] if finding.regions else None
    return FindingOutcome(
        probability=finding.probability,
        decision=finding.decision,  # type: ignore[arg-type]  # one of the three, checked by FindingOutcome
        absent_below=finding.absent_below,
        present_from=finding.present_from,
        region=None if region is None else (region.x_min, region.y_min, region.x_max, region.y_max),
        code=Code(finding.code_value, finding.code_scheme, finding.code_meaning),
    )
