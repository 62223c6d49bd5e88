"""Whether a study is of one patient: by Patient ID and its issuer. What is missing contradicts nothing."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.current import newest_headers
from dicom_node.headers import Patient, SourceHeader
from dicom_node.quarantine import OTHER_PATIENT, open_rows, quarantine, resolve_rows
from models.tables import Image, Quarantine, Study

CORRECTED = "corrected_by_the_sender"


def differs(patient_id: str, issuer: str, patient: Patient) -> bool:
    """Whether a header names another patient than a study's row: two patient IDs, or one ID of two issuers."""
    other_id = bool(patient.id) and patient_id != patient.id
    other_issuer = bool(patient.id and issuer and patient.issuer) and issuer != patient.issuer
    return bool(patient_id) and (other_id or other_issuer)


def contradicts(session: Session, study: Study, image: Image, header: SourceHeader) -> bool:
    """Whether the header of a new image names another patient than the study's row.

    Not one of those that a person accepted: an identity that an image of the study has, about which nothing is open.
    """
    if not differs(study.patient_id, study.issuer_of_patient_id, header.patient):
        return False
    disputed = _disputed(session, study)
    others = newest_headers(session, study.id).items()
    settled = (kept.header for other, kept in others if other not in disputed and other != image.id)
    return all(_pair(other.patient) != _pair(header.patient) for other in settled)


def look_again(
    session: Session, study: Study, image: Image, before: SourceHeader, after: SourceHeader, *, by: str, source: str
) -> None:
    """Compare the study's patients again: `image` now has the header `after` where it had `before`.

    Where all agree, what was open about them is resolved and the study's row follows; otherwise this image is
    quarantined if it is the one that contradicts.
    """
    disputed = _disputed(session, study)
    headers = newest_headers(session, study.id)
    if _one_patient(current.header.patient for current in headers.values()):
        resolve_rows(session, open_rows(session, study, OTHER_PATIENT), CORRECTED, by=by)
        adopt(study, after)
        return
    unchanged = _pair(before.patient) == _pair(after.patient)
    settled = [kept.header for other, kept in headers.items() if other not in disputed and other != image.id]
    if unchanged and image.id not in disputed:
        adopt(study, after)
    elif any(_agree(other.patient, after.patient) for other in settled):
        resolve_rows(session, open_rows(session, study, OTHER_PATIENT, image), CORRECTED, by=by)
    elif image.id not in disputed:
        quarantine(session, study, image, None, OTHER_PATIENT, image.dataset_sha256, source=source, by=by)


def adopt(study: Study, header: SourceHeader) -> None:
    """Let the study's row follow a header; an ID that the header lacks stays."""
    patient = header.patient
    if patient.id:
        if patient.id != study.patient_id or patient.issuer:
            study.issuer_of_patient_id = patient.issuer
        study.patient_id = patient.id
    study.patient_name, study.patient_birth_date, study.patient_sex = patient.name, patient.birth_date, patient.sex
    study.accession_number = header.study.accession_number


def _disputed(session: Session, study: Study) -> set[int | None]:
    """The images about whose patient something is open."""
    return set(
        session.scalars(
            select(Quarantine.image_id).where(
                Quarantine.study_id == study.id,
                Quarantine.reason == OTHER_PATIENT,
                Quarantine.resolved_at.is_(None),
            )
        )
    )


def _pair(patient: Patient) -> tuple[str, str]:
    return patient.id, patient.issuer


def _agree(one: Patient, other: Patient) -> bool:
    return _one_patient((one, other))


def _one_patient(patients: Iterable[Patient]) -> bool:
    named = [patient for patient in patients if patient.id]
    issuers = {patient.issuer for patient in named if patient.issuer}
    return len({patient.id for patient in named}) <= 1 and len(issuers) <= 1
