"""Report a study: build the Structured Report once, store its bytes, and make it due at every destination."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta

from pydicom.uid import DigitalXRayImageStorageForPresentation
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from dicom_node.current import newest_headers
from dicom_node.headers import Code, Patient, SourceHeader
from dicom_node.objects.content import (
    Algorithm,
    Device,
    FindingOutcome,
    ImageOutcome,
    Predecessor,
    ReportContent,
    impression,
)
from dicom_node.objects.report import SOP_CLASS_UID, build_report, render_report_uid, render_series_uid
from models import audit, clock, logs
from models.database import Database, database_now
from models.reasons import Reason
from models.settings import Settings
from models.tables import (
    Delivery,
    DeliveryState,
    Finding,
    Image,
    ImageState,
    Installation,
    ModelActivation,
    ModelVersion,
    Prediction,
    Report,
    ReportInput,
    Study,
    StudyState,
)
from models.version import VERSION
from worker.claims import Claim, LeaseLost, Work, claim, failed_attempt, release, still_held, time_limit
from worker.lanes import ensure
from worker.leases import kept_alive
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy
from worker.troubles import Troubles, is_the_nodes

KIND = "comprehensive_3d"
log = logs.get("report")


@dataclass(frozen=True)
class _Draft:
    """What a report will say, and of what."""

    content: ReportContent
    generation: int
    inputs: list[tuple[int, int | None, str | None]]
    """Image, prediction, reason."""
    previous: Report | None


class Reporter:
    """Writes the report of one study at a time."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._limit = time_limit(Work.REPORT, settings)
        self._troubles = Troubles(database)
        self._retries = RetryPolicy(first=5, longest=300, most=settings.analysis.max_tries)
        self._actor = audit.part_actor("worker")

    def report_next(self) -> bool:
        """Claim the most urgent complete study and report it. Return whether there was one."""
        if self._troubles.hold_back():
            return False
        held = claim(self._database, Work.REPORT, limit=self._limit)
        if held is None:
            return False
        with kept_alive(self._database, held.lease):
            self._try(held)
        return True

    def _try(self, held: Claim) -> None:
        try:
            self._report(held)
            self._troubles.passed()
        except LeaseLost:
            # A late image came meanwhile: the study is complete again later, and reported then.
            log.info("study changed while it was reported", study=held.row_id)
        except Exception as error:
            if is_the_nodes(error):
                self._troubles.met(held, logs.describe(error))
                return
            log.error("report failed", study=held.row_id, tries=held.tries, exc_info=error)
            self._failed(held, logs.describe(error))

    def _report(self, held: Claim) -> None:
        if self._retries.used_up(held.tries):
            self._failed(held, ENDED_WITHOUT_A_WORD)
            return
        with self._database.read() as session:
            generation = session.scalars(select(Study.generation).where(Study.id == held.row_id)).one()
            draft = self._draft(session, held.row_id, generation)
        if draft is None or _says_nothing_new(draft):
            self._close(held, generation)
            return
        content = build_report(draft.content)
        with self._database.write() as session:
            study = _unchanged(session, held, generation)
            report = self._store(session, study, draft, content)
            cancelled = self._cancel_superseded(session, study, report)
            self._make_due(session, study, report)
            study.state, study.tries = StudyState.REPORTED, 0
            study.decision = report.impression
            release(study)
            audit.record(
                session,
                actor=self._actor,
                action="report.created",
                subject="report",
                subject_id=report.id,
                study=study.id,
                generation=report.generation,
                sha256=report.sha256,
            )
        log.info(
            "reported",
            study=held.row_id,
            report=report.id,
            revision=report.revision,
            impression=report.impression,
            images=len(draft.inputs),
            cancelled=cancelled,
        )

    def _draft(self, session: Session, study_id: int, generation: int) -> _Draft | None:
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
        versions = {prediction.model_version for prediction in predictions.values()} or {_active_version(session)}
        algorithms = {version.id: _algorithm(version) for version in versions}
        newest = algorithms[max(algorithms)]
        outcomes = []
        for image in images:
            prediction = predictions.get(image.id)
            header = _identified(headers[image.id].header, study)
            outcomes.append(_outcome(image, header, prediction, algorithms))
        previous = _latest_report(session, study_id)
        installation = session.scalars(select(Installation.uid)).one()
        content = ReportContent(
            installation_uid=installation,
            device=Device(
                serial=installation,
                software_version=VERSION,
                station_ae_title=self._settings.ae_title,
            ),
            algorithm=newest,
            created_at=clock.now(),
            images=tuple(outcomes),
            predecessor=_predecessor(previous),
            series_number=self._settings.report.series_number,
            series_description=self._settings.report.series_description,
        )
        inputs = [
            (image.id, predictions[image.id].id if image.id in predictions else None, image.reason) for image in images
        ]
        return _Draft(content, generation, inputs, previous)

    def _store(self, session: Session, study: Study, draft: _Draft, content: bytes) -> Report:
        report = Report(
            study_id=study.id,
            kind=KIND,
            revision=draft.previous.revision + 1 if draft.previous else 1,
            generation=draft.generation,
            sop_class_uid=SOP_CLASS_UID,
            sop_instance_uid=render_report_uid(draft.content),
            series_instance_uid=render_series_uid(draft.content),
            impression=impression(draft.content).decision,
            content=content,
            sha256=hashlib.sha256(content).hexdigest(),
            supersedes_id=draft.previous.id if draft.previous else None,
            created_at=clock.now(),
            inputs=[
                ReportInput(image_id=image, prediction_id=prediction, reason=reason)
                for image, prediction, reason in draft.inputs
            ],
        )
        session.add(report)
        session.flush()
        return report

    def _cancel_superseded(self, session: Session, study: Study, report: Report) -> int:
        """Cancel what was not sent yet of earlier reports. One that is being sent now ends first, and may not fail."""
        now = database_now(session)
        due = session.scalars(
            select(Delivery)
            .where(
                Delivery.study_id == study.id,
                Delivery.report_id != report.id,
                Delivery.state.in_((DeliveryState.DUE, DeliveryState.NEEDS_ATTENTION)),
            )
            .with_for_update()
        ).all()
        cancelled = [delivery for delivery in due if delivery.lease_until is None or delivery.lease_until < now]
        for delivery in cancelled:
            delivery.state, delivery.reason = DeliveryState.CANCELLED, "superseded"
            release(delivery)
            audit.record(
                session,
                actor=self._actor,
                action="report.cancelled",
                subject="delivery",
                subject_id=delivery.id,
                superseded_by=report.id,
            )
        return len(cancelled)

    def _make_due(self, session: Session, study: Study, report: Report) -> None:
        now = clock.now()
        head_start = timedelta(seconds=self._settings.study.urgent_head_start if study.urgent else 0)
        if not self._settings.destinations:
            log.warning("no destination is named: the report is kept and goes nowhere", report=report.id)
        ensure(session, [peer.name for peer in self._settings.destinations])
        for peer in self._settings.destinations:
            session.add(
                Delivery(
                    report_id=report.id,
                    study_id=study.id,
                    destination=peer.name,
                    created_at=now,
                    due_at=now,
                    rank_at=now - head_start,
                )
            )

    def _close(self, held: Claim, generation: int) -> None:
        """Nothing (new) to say about this study."""
        with self._database.write() as session:
            study = _unchanged(session, held, generation)
            study.state, study.tries = StudyState.REPORTED, 0
            release(study)
        log.info("nothing new to report", study=held.row_id)

    def _failed(self, held: Claim, error: str) -> None:
        wait = self._retries.next_wait(held.tries)
        with self._database.write() as session:
            try:
                study = still_held(session, held, Study)
            except LeaseLost:
                return
            session.add(failed_attempt(held, error))
            if wait is None:
                study.state, study.reason = StudyState.NEEDS_ATTENTION, "report_failed"
                release(study)
            else:
                release(study, wait=wait)


def warm_up() -> None:
    """Build a report of nothing: highdicom reads its tables then, some 0.2 s that a study need not wait for.

    In a process that will fork, its children share them.
    """
    nobody = SourceHeader(str(DigitalXRayImageStorageForPresentation), "2.25.1", "2.25.2", "2.25.3", modality="DX")
    build_report(
        ReportContent(
            installation_uid="2.25.4",
            device=Device(serial="", software_version=VERSION, station_ae_title=""),
            algorithm=Algorithm(name="", version="", manufacturer="", bundle_sha256=""),
            created_at=clock.now(),
            images=(ImageOutcome(nobody, not_analysed=Reason.FAILED),),
        )
    )


def _unchanged(session: Session, held: Claim, generation: int) -> Study:
    """Return the study, locked, if no image came since it was read. Raises LeaseLost."""
    study = still_held(session, held, Study)
    if study.generation != generation:
        raise LeaseLost(f"study {held.row_id}")
    return study


def _says_nothing_new(draft: _Draft) -> bool:
    """Whether the study's last report, written again now, would be the same."""
    if draft.previous is None:
        return False
    before = draft.previous.supersedes
    again = replace(draft.content, predecessor=_predecessor(before))
    return render_report_uid(again) == draft.previous.sop_instance_uid


def _latest_predictions(session: Session, study_id: int) -> dict[int, Prediction]:
    found = session.scalars(
        select(Prediction)
        .join(Image, Image.id == Prediction.image_id)
        .where(Image.study_id == study_id, Image.state == ImageState.ANALYSED, Image.replaced_at.is_(None))
        .order_by(Prediction.id)
        .options(
            selectinload(Prediction.findings).selectinload(Finding.regions), selectinload(Prediction.model_version)
        )
    )
    return {prediction.image_id: prediction for prediction in found}


def _latest_report(session: Session, study_id: int) -> Report | None:
    return session.scalars(
        select(Report)
        .where(Report.study_id == study_id, Report.kind == KIND)
        .order_by(Report.revision.desc())
        .limit(1)
        .options(selectinload(Report.supersedes))
    ).first()


def _active_version(session: Session) -> ModelVersion:
    return session.scalars(
        select(ModelVersion)
        .join(ModelActivation, ModelActivation.model_version_id == ModelVersion.id)
        .where(ModelActivation.role == "active")
        .order_by(ModelActivation.id.desc())
        .limit(1)
    ).one()


def _algorithm(version: ModelVersion) -> Algorithm:
    return Algorithm(
        name=version.name, version=version.version, manufacturer="Osteon", bundle_sha256=version.bundle_sha256
    )


def _predecessor(report: Report | None) -> Predecessor | None:
    return None if report is None else Predecessor(report.sop_instance_uid, report.series_instance_uid)


def _identified(header: SourceHeader, study: Study) -> SourceHeader:
    """The report is of the patient of the study's row, which follows corrections, also those of one image alone."""
    patient = Patient(
        name=study.patient_name,
        id=study.patient_id,
        issuer=study.issuer_of_patient_id,
        birth_date=study.patient_birth_date,
        sex=study.patient_sex,
    )
    return replace(header, patient=patient, study=replace(header.study, accession_number=study.accession_number))


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
