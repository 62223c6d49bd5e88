"""One study whole, as it is on record: what came, what was read and decided, what was made of it and where that went.

Plain dictionaries, for a program as for a person. Whose study it is is not among them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pydicom.uid import UID
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, aliased, selectinload

from console.tables import moment
from models.tables import (
    Association,
    Attempt,
    AuditEvent,
    Commitment,
    Delivery,
    DeliveryAttempt,
    File,
    FileKind,
    Finding,
    HeaderRevision,
    Image,
    Prediction,
    Quarantine,
    Report,
    ReportInput,
    Resend,
    Study,
)

MOST_EVENTS = 1000
MOST_DIGITS = 18
AT_ONCE = 500
"""Ids in one condition: SQLite takes no more than some thousands."""


def find(session: Session, which: str) -> Study | None:
    """Return a study by its row id or its Study Instance UID."""
    if which.isdecimal() and len(which) > MOST_DIGITS:
        return None
    column = Study.id == int(which) if which.isdecimal() else Study.study_instance_uid == which
    return session.scalars(select(Study).where(column)).first()


def whole(session: Session, study: Study) -> dict[str, Any]:
    """Return everything about a study but whose it is."""
    images = session.scalars(select(Image).where(Image.study_id == study.id).order_by(Image.id)).all()
    predictions = _predictions(session, study.id)
    deliveries = session.scalars(select(Delivery).where(Delivery.study_id == study.id).order_by(Delivery.id)).all()
    objects = _objects(session, study.id)
    quarantine = session.scalars(select(Quarantine).where(Quarantine.study_id == study.id).order_by(Quarantine.id))
    rows = quarantine.all()
    files = _files(session, study.id)
    subjects = {
        "study": [study.id],
        "image": [image.id for image in images],
        "prediction": [prediction.id for prediction in predictions],
        "file": [file.id for file in files],
        "report": [made["report"] for made in objects],
        "delivery": [delivery.id for delivery in deliveries],
        "quarantine": [row.id for row in rows],
    }
    events, more = _events(session, subjects)
    return {
        "study": _study(study),
        "images": _images(session, study.id, images, predictions, files),
        "models": _models(predictions),
        "objects": objects,
        "deliveries": _deliveries(session, deliveries, {made["report"]: made["kind"] for made in objects}),
        "came_again": _came_again(session, study.id),
        "quarantine": [_quarantined(row) for row in rows],
        "events": events,
        "more_events": more,
    }


def _study(study: Study) -> dict[str, Any]:
    return {
        "study": study.id,
        "study_instance_uid": study.study_instance_uid,
        "source": study.calling_ae_title,
        "study_date": study.study_date,
        "urgent": study.urgent,
        "state": study.state.value,
        "reason": study.reason,
        "decision": study.decision,
        "generation": study.generation,
        "first_image": moment(study.first_image_at),
        "last_image": moment(study.last_image_at),
        "quiet_until": moment(study.quiet_until),
        "complete_by": moment(study.complete_by),
        "completed_at": moment(study.completed_at),
        "tries": study.tries,
    }


# --- what came, and what was read -------------------------------------------------------------------------------------


def _images(
    session: Session, study_id: int, images: Sequence[Image], predictions: list[Prediction], files: list[File]
) -> list[dict[str, Any]]:
    read: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        read[prediction.image_id].append(_prediction(prediction))
    stored = {file.image_id: file for file in reversed(files) if file.kind is FileKind.INSTANCE}
    failed: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    attempts = select(Attempt).join(Image, Image.id == Attempt.image_id).where(Image.study_id == study_id)
    for attempt in session.scalars(attempts.order_by(Attempt.id)):
        tried = {"ended_at": moment(attempt.ended_at), "holder": attempt.holder, "error": attempt.error}
        failed[attempt.image_id or 0].append(tried)
    senders = {
        sender.id: sender
        for sender in session.scalars(
            select(Association)
            .where(Association.id.in_(select(Image.association_id).where(Image.study_id == study_id)))
            .order_by(Association.id)
        )
    }
    return [
        _image(image, senders[image.association_id], stored.get(image.id))
        | {"predictions": read[image.id], "failed_attempts": failed[image.id]}
        for image in images
    ]


def _image(image: Image, sender: Association, file: File | None) -> dict[str, Any]:
    return {
        "image": image.id,
        "sop_instance_uid": image.sop_instance_uid,
        "series_instance_uid": image.series_instance_uid,
        "sop_class": _name(image.sop_class_uid),
        "transfer_syntax": _name(image.transfer_syntax_uid),
        "modality": image.modality,
        "body_part": image.body_part,
        "view": image.view,
        "laterality": image.laterality,
        "is_image": image.is_image,
        "unusable": list(json.loads(image.header or "{}").get("unusable", ())),
        "received": moment(image.received_at),
        "from": f"{sender.calling_ae_title}@{sender.address}",
        "state": image.state.value,
        "reason": image.reason,
        "tries": image.tries,
        "replaced_at": moment(image.replaced_at),
        "dataset_sha256": image.dataset_sha256,
        "pixel_sha256": image.pixel_sha256,
        "file": None
        if file is None
        else {
            "file": file.id,
            "size": file.size,
            "removed_at": moment(file.removed_at),
            "missing_at": moment(file.missing_at),
        },
    }


def _predictions(session: Session, study_id: int) -> list[Prediction]:
    return list(
        session.scalars(
            select(Prediction)
            .join(Image, Image.id == Prediction.image_id)
            .where(Image.study_id == study_id)
            .order_by(Prediction.id)
            .options(
                # The maps of the scores are pictures, which nobody reads here.
                selectinload(Prediction.findings).defer(Finding.score_map),
                selectinload(Prediction.findings).selectinload(Finding.regions),
                selectinload(Prediction.model_version),
            )
        )
    )


def _prediction(prediction: Prediction) -> dict[str, Any]:
    model = prediction.model_version
    return {
        "prediction": prediction.id,
        "role": prediction.role,
        "decision": prediction.decision,
        "model": f"{model.name} {model.version}",
        "bundle_sha256": model.bundle_sha256,
        "made_at": moment(prediction.created_at),
        "milliseconds": round(prediction.milliseconds, 2),
        "software_version": prediction.software_version,
        "pipeline_version": prediction.pipeline_version,
        "input_sha256": prediction.input_sha256,
        "findings": [_finding(finding) for finding in prediction.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "finding": finding.code_meaning,
        "code": f"{finding.code_value} {finding.code_scheme}",
        "decision": finding.decision,
        "probability": finding.probability,
        "absent_below": finding.absent_below,
        "present_from": finding.present_from,
        "regions": [
            {
                "box": [region.x_min, region.y_min, region.x_max, region.y_max],
                "peak": None if region.peak_x is None else [region.peak_x, region.peak_y],
                "outline": region.outline,
            }
            for region in finding.regions
        ],
    }


def _models(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    versions = {prediction.model_version_id: prediction.model_version for prediction in predictions}
    return [
        {"name": model.name, "version": model.version, "bundle_sha256": model.bundle_sha256}
        for _, model in sorted(versions.items())
    ]


def _files(session: Session, study_id: int) -> list[File]:
    found = select(File).join(Image, Image.id == File.image_id).where(Image.study_id == study_id)
    return list(session.scalars(found.order_by(File.id)))


def _came_again(session: Session, study_id: int) -> list[dict[str, Any]]:
    """Header revisions, and what came again and is not compared yet."""
    revisions = session.scalars(
        select(HeaderRevision)
        .join(Image, Image.id == HeaderRevision.image_id)
        .where(Image.study_id == study_id)
        .order_by(HeaderRevision.id)
    )
    found = [_again(row, "header revision", row.changed) for row in revisions]
    resends = session.scalars(select(Resend).where(Resend.study_id == study_id).order_by(Resend.id))
    # What became a revision or a conflict is listed as such.
    return found + [_again(row, row.state.value, []) for row in resends if row.state.value in ("waiting", "failed")]


def _again(row: HeaderRevision | Resend, what: str, changed: list[str]) -> dict[str, Any]:
    return {
        "image": row.image_id,
        "received": moment(row.received_at),
        "source": row.calling_ae_title,
        "what": what,
        "changed": list(changed),
        "transfer_syntax": _name(row.transfer_syntax_uid),
        "dataset_sha256": row.dataset_sha256,
    }


def _quarantined(row: Quarantine) -> dict[str, Any]:
    return {
        "quarantine": row.id,
        "image": row.image_id,
        "reason": row.reason,
        "source": row.calling_ae_title,
        "received": moment(row.received_at),
        "resolution": row.resolution,
        "resolved_at": moment(row.resolved_at),
        "resolved_by": row.resolved_by,
    }


# --- what was made of it, and where it went ---------------------------------------------------------------------------


def _objects(session: Session, study_id: int) -> list[dict[str, Any]]:
    before = aliased(Report)
    rows = session.execute(
        select(
            Report.id,
            Report.kind,
            Report.revision,
            Report.generation,
            Report.sop_class_uid,
            Report.sop_instance_uid,
            Report.impression,
            func.length(Report.content).label("size"),
            Report.sha256,
            Report.created_at,
            Report.supersedes_id,
            before.sop_instance_uid.label("superseded_uid"),
        )
        .outerjoin(before, before.id == Report.supersedes_id)
        .where(Report.study_id == study_id)
        .order_by(Report.id)
    ).all()
    inputs: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for about in session.scalars(
        select(ReportInput)
        .join(Report, Report.id == ReportInput.report_id)
        .where(Report.study_id == study_id)
        .order_by(ReportInput.id)
    ):
        one = {"image": about.image_id, "prediction": about.prediction_id, "reason": about.reason}
        inputs[about.report_id].append(one)
    return [
        {
            "report": row.id,
            "kind": row.kind,
            "revision": row.revision,
            "generation": row.generation,
            "sop_class": _name(row.sop_class_uid),
            "sop_instance_uid": row.sop_instance_uid,
            "impression": row.impression,
            "size": row.size,
            "sha256": row.sha256,
            "made_at": moment(row.created_at),
            "supersedes": row.supersedes_id,
            "superseded_sop_instance_uid": row.superseded_uid,
            "rests_on": inputs[row.id],
        }
        for row in rows
    ]


def _deliveries(session: Session, deliveries: Sequence[Delivery], kinds: dict[int, str]) -> list[dict[str, Any]]:
    of_these = [delivery.id for delivery in deliveries]
    attempts: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    commitments: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for some in _in_parts(of_these):
        tried = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id.in_(some)).order_by(DeliveryAttempt.id)
        for attempt in session.scalars(tried):
            attempts[attempt.delivery_id].append(
                {
                    "started_at": moment(attempt.started_at),
                    "ended_at": moment(attempt.ended_at),
                    "outcome": attempt.outcome,
                    "status": _status(attempt.status),
                }
            )
        asked = select(Commitment).where(Commitment.delivery_id.in_(some)).order_by(Commitment.id)
        for commitment in session.scalars(asked):
            commitments[commitment.delivery_id].append(
                {
                    "transaction_uid": commitment.transaction_uid,
                    "requested_at": moment(commitment.requested_at),
                    "accepted_at": moment(commitment.accepted_at),
                    "answered_at": moment(commitment.answered_at),
                    "failure_reason": _status(commitment.failure_reason),
                }
            )
    return [
        {
            "delivery": delivery.id,
            "report": delivery.report_id,
            "kind": kinds.get(delivery.report_id),
            "destination": delivery.destination,
            "state": delivery.state.value,
            "reason": delivery.reason,
            "status": _status(delivery.status),
            "created_at": moment(delivery.created_at),
            "delivered_at": moment(delivery.delivered_at),
            "committed_at": moment(delivery.committed_at),
            "superseded_at": moment(delivery.superseded_at),
            "attempts": attempts[delivery.id],
            "commitments": commitments[delivery.id],
        }
        for delivery in deliveries
    ]


def _events(session: Session, subjects: dict[str, list[int]]) -> tuple[list[dict[str, Any]], bool]:
    """Return the newest `MOST_EVENTS` audit events about these rows, in their order, and whether there are older."""
    found: dict[int, AuditEvent] = {}
    for subject, ids in subjects.items():
        for some in _in_parts(ids):
            about = and_(AuditEvent.subject == subject, AuditEvent.subject_id.in_(some))
            events = select(AuditEvent).where(about).order_by(AuditEvent.id.desc()).limit(MOST_EVENTS + 1)
            found.update({event.id: event for event in session.scalars(events)})
    newest = [found[number] for number in sorted(found)][-MOST_EVENTS:]
    return [_event(event) for event in newest], len(found) > MOST_EVENTS


def _event(event: AuditEvent) -> dict[str, Any]:
    return {
        "event": event.id,
        "at": moment(event.at),
        "actor": event.actor,
        "action": event.action,
        "subject": f"{event.subject} {event.subject_id}",
        "details": event.details,
    }


def _in_parts(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))


def _name(uid: str) -> str:
    """Return the standard's name of a UID; a private one stays as it is."""
    return UID(uid).name if uid else ""


def _status(status: int | None) -> str | None:
    return None if status is None else f"{status:04X}"
