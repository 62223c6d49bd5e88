"""Compares predictions and reports with the digests that audit events carry of them.

The chain proves the events; these prove what the events speak of. Events of older versions carry no digest of the
prediction, and say nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from models.audit_check import Verdict, readable
from models.database import Database
from models.signing import canonical
from models.tables import AuditEvent, Finding, Prediction, Region, Report

READ, REPORTED = ("image.analysed", "image.shadow_read"), "report.created"
PREDICTION_DIGEST = "prediction_sha256"
# Reports are read with their bytes.
AT_ONCE = 200
UNREADABLE = "unreadable"


@dataclass
class Compared:
    """How many rows were compared."""

    predictions: int = 0
    reports: int = 0


def prediction_digest(prediction: Prediction) -> str:
    """Return the sha256 over all that a prediction says, its findings and regions included."""
    content = {
        "image": prediction.image_id,
        "model_version": prediction.model_version_id,
        "role": prediction.role,
        "input": prediction.input_sha256,
        "pixels": prediction.pixel_sha256,
        "pipeline": prediction.pipeline_version,
        "software": prediction.software_version,
        "decision": prediction.decision,
        "geometry": prediction.geometry,
        "findings": [_finding(finding) for finding in prediction.findings],
    }
    return hashlib.sha256(canonical(content)).hexdigest()


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": [finding.code_value, finding.code_scheme, finding.code_meaning],
        "numbers": [float(n) for n in (finding.logit, finding.probability, finding.absent_below, finding.present_from)],
        "decision": finding.decision,
        "score_map": None if finding.score_map is None else hashlib.sha256(finding.score_map).hexdigest(),
        "regions": [_region(region) for region in finding.regions],
    }


def _region(region: Region) -> list[Any]:
    numbers = region.x_min, region.y_min, region.x_max, region.y_max, region.peak_x, region.peak_y
    outline = None if region.outline is None else [[float(x), float(y)] for x, y in region.outline]
    return [*(None if number is None else float(number) for number in numbers), outline]


def check_records(database: Database, verdict: Verdict) -> Compared:
    """Compare every prediction and report that an event has a digest of; add to the verdict what does not fit."""
    compared = Compared()
    for action in READ:
        for events in _events(database, action):
            with database.read() as session:
                compared.predictions += _check_predictions(session, verdict, events)
    for events in _events(database, REPORTED):
        with database.read() as session:
            compared.reports += _check_reports(session, verdict, events)
    return compared


def _events(database: Database, action: str) -> Iterator[list[AuditEvent]]:
    in_order = (
        select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.at, AuditEvent.id).limit(AT_ONCE)
    )
    found = in_order
    while True:
        with database.read() as session:
            events = list(session.scalars(found))
        if events:
            yield events
        if len(events) < AT_ONCE:
            return
        found = in_order.where(tuple_(AuditEvent.at, AuditEvent.id) > tuple_(events[-1].at, events[-1].id))


def _check_predictions(session: Session, verdict: Verdict, events: list[AuditEvent]) -> int:
    wanted = {e.subject_id: e for e in events if e.subject == "prediction" and PREDICTION_DIGEST in e.details}
    whole = select(Prediction).options(selectinload(Prediction.findings).selectinload(Finding.regions))
    there = _digests(session, whole, Prediction.id, wanted, lambda row: prediction_digest(row[0]))
    for number, event in wanted.items():
        _compare(verdict, event, there.get(number), event.details[PREDICTION_DIGEST])
    return len(wanted)


def _check_reports(session: Session, verdict: Verdict, events: list[AuditEvent]) -> int:
    wanted = {e.subject_id: e for e in events if e.subject == "report" and "sha256" in e.details}
    bytes_of = select(Report.content)
    there = _digests(session, bytes_of, Report.id, wanted, lambda row: hashlib.sha256(row[0]).hexdigest())
    for number, event in wanted.items():
        _compare(verdict, event, there.get(number), event.details["sha256"])
    return len(wanted)


def _digests(
    session: Session,
    statement: Select[Any],
    key: InstrumentedAttribute[int],
    wanted: Iterable[int | None],
    digest: Callable[[Row[Any]], str],
) -> dict[int | None, str]:
    """Return the digest of every row that is there; of one that cannot be read any more, none that anything has."""
    numbers = [number for number in wanted if number is not None]
    rows = readable(session, statement.add_columns(key).where(key.in_(numbers)))
    if rows is None and len(numbers) > 1:
        alone = [_digests(session, statement, key, [number], digest) for number in numbers]
        return {number: found for one in alone for number, found in one.items()}
    if rows is None:
        return {numbers[0]: UNREADABLE}
    found: dict[int | None, str] = {}
    for row in rows:
        try:
            found[row[-1]] = digest(row)
        except (TypeError, ValueError):
            found[row[-1]] = UNREADABLE
    return found


def _compare(verdict: Verdict, event: AuditEvent, found: str | None, recorded: object) -> None:
    if found == recorded:
        return
    what = "is missing" if found is None else f"is not what event {event.id} ({event.at:%Y-%m-%d}) recorded"
    verdict.found(f"{event.subject} {event.subject_id} {what}", event_id=event.id)
