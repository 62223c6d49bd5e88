"""What must hold when everything is back and has settled, from the record, the spool, the PACS and the senders."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.reconcile import Reconciler
from dicom_node.spool import STALE_AFTER_SECONDS, Spool
from models import audit
from models.database import Database
from models.settings import Settings
from models.tables import (
    AuditChain,
    AuditEvent,
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    ImageState,
    ModelVersion,
    Prediction,
    Quarantine,
    Report,
    ReportInput,
    Study,
    StudyState,
)
from tests.faults.chaos.instances import Instance
from tests.faults.chaos.pacs import Journal
from tests.faults.chaos.sender import Modality

TEMPORARY = {0x0000, 0xA700}
"""The answers that a sender may see when things break: done, and try again."""


class Site(Protocol):
    """What is judged."""

    instances: list[Instance]
    senders: list[Modality]
    settings: Settings
    database: Database
    journal: Journal


def unsettled(session: Session) -> Counter[str]:
    """Count what is still to be done, by kind and state."""
    waiting: Counter[str] = Counter()
    for table, states in (
        (Image, (ImageState.RECEIVED,)),
        (Study, (StudyState.RECEIVING, StudyState.COMPLETE)),
        (Delivery, (DeliveryState.DUE,)),
    ):
        counts = session.execute(select(table.state, func.count()).where(table.state.in_(states)).group_by(table.state))
        waiting.update({f"{table.__tablename__} {state.value}": count for state, count in counts})
    if audit.unchained(session, limit=1):
        waiting["audit events without a place"] = 1
    return waiting


def problems(site: Site) -> list[str]:
    """Return everything that is not as it must be; nothing where all is well."""
    with site.database.read() as session:
        return [
            *_senders(site),
            *_images(site, session),
            *files(site, session),
            *_studies(site, session),
            *in_the_pacs(site, session),
            *_audit(session),
        ]


def acknowledged(senders: Iterable[Modality]) -> set[str]:
    """SOP Instance UIDs that were answered with success."""
    return set().union(*(sender.acknowledged for sender in senders))


def _senders(site: Site) -> list[str]:
    found = [f"a sender failed: {sender.error!r}" for sender in site.senders if sender.error is not None]
    found += [f"{sender.name} is not done" for sender in site.senders if sender.is_alive()]
    statuses = sum((sender.statuses for sender in site.senders), Counter[int]())
    return found + [f"{count} answers {status:04X}" for status, count in statuses.items() if status not in TEMPORARY]


def _images(site: Site, session: Session) -> list[str]:
    """Every instance that got success, and every other that is there, is there whole and was read once."""
    found = []
    sent = {instance.sop_instance_uid: instance for instance in site.instances}
    images = {image.sop_instance_uid: image for image in session.scalars(select(Image))}
    found += [f"acknowledged and lost: {uid}" for uid in sorted(acknowledged(site.senders) - images.keys())]
    found += [f"on record and never sent: {uid}" for uid in sorted(images.keys() - sent.keys())]
    if session.scalar(select(func.count()).select_from(Image)) != len(images):
        found.append("an instance is on record twice")
    versions = session.scalars(select(ModelVersion.id)).all()
    if len(versions) != 1:
        found.append(f"{len(versions)} model versions")
    predictions = Counter(session.scalars(select(Prediction.image_id)))
    for uid, image in images.items():
        if uid in sent and image.dataset_sha256 != sent[uid].sha256:
            found.append(f"image {image.id}: the digest on record is not that of what was sent")
        if image.state is not ImageState.ANALYSED:
            found.append(f"image {image.id}: {image.state}, {image.reason}")
        if predictions[image.id] != 1:
            found.append(f"image {image.id}: {predictions[image.id]} predictions")
    return found


def files(site: Site, session: Session) -> list[str]:
    """Every row has its file with the right digest, every file its row, and every image one of each kind."""
    found = []
    spool = site.settings.data_dir / "spool"
    rows = session.scalars(select(File)).all()
    for row in rows:
        path = spool / row.key[:2] / row.key[2:]
        if not path.is_file():
            found.append(f"file {row.id} ({row.kind}) of image {row.image_id} is gone")
        elif sha256(path.read_bytes()[row.digest_offset :]).hexdigest() != row.sha256:
            found.append(f"file {row.id} ({row.kind}) of image {row.image_id} has another digest")
    kinds = Counter((row.image_id, row.kind) for row in rows)
    for image, digest in session.execute(select(Image.id, Image.dataset_sha256)):
        if kinds[image, FileKind.INSTANCE] != 1 or kinds[image, FileKind.MODEL_INPUT] != 1:
            found.append(f"image {image}: files {[(row.kind.value, row.id) for row in rows if row.image_id == image]}")
        kept = [row.sha256 for row in rows if row.image_id == image and row.kind is FileKind.INSTANCE]
        if kept != [digest]:
            found.append(f"image {image}: its file has not its digest")
    return found


def orphans(site: Site) -> list[Path]:
    """Return kept files that no row names."""
    spool = site.settings.data_dir / "spool"
    with site.database.read() as session:
        known = set(session.scalars(select(File.key)))
    kept = [path for path in spool.rglob("*") if path.is_file() and len(path.parent.name) == 2]
    return [path for path in kept if path.parent.name + path.name not in known]


def half_received(site: Site) -> list[Path]:
    """Return what a listener was receiving when it was killed."""
    return list((site.settings.data_dir / "spool" / "incoming").iterdir())


def tidied(site: Site, left: list[Path]) -> list[str]:
    """Compare spool and record as a sweeper does in an hour or so; nothing may be lost by that, and `left` has to go.

    A process that ended between a file and its row leaves the file behind.
    """
    for path in left:
        os.utime(path, times=(time.time() - 2 * STALE_AFTER_SECONDS,) * 2)
    reconciler = Reconciler(site.settings, site.database, Spool(site.settings.data_dir / "spool"))
    while not reconciler.passes:
        reconciler.step()
    with site.database.read() as session:
        return [*files(site, session), *(f"a file without a row: {path.name}" for path in orphans(site))]


def _studies(site: Site, session: Session) -> list[str]:
    """Every study has one current report: of its last generation, about all its images, delivered once."""
    found = []
    newest = {report.study_id: report for report in session.scalars(select(Report).order_by(Report.revision))}
    for study in session.scalars(select(Study)):
        report = newest.get(study.id)
        if study.state is not StudyState.REPORTED or report is None:
            found.append(f"study {study.id}: {study.state}, {study.reason}, {'a' if report else 'no'} report")
            continue
        images = set(session.scalars(select(Image.id).where(Image.study_id == study.id)))
        if study.generation != len(images) or report.generation != study.generation:
            found.append(
                f"study {study.id}: generation {study.generation}, {len(images)} images, report of {report.generation}"
            )
        about = session.scalars(select(ReportInput.image_id).where(ReportInput.report_id == report.id)).all()
        if sorted(about) != sorted(images):
            found.append(f"study {study.id}: its report is about {len(about)} of {len(images)} images")
        states = session.scalars(select(Delivery.state).where(Delivery.report_id == report.id)).all()
        if [*states] != [DeliveryState.DELIVERED]:
            found.append(f"study {study.id}: its report's deliveries are {states}")
    sent = {i.study_uid for i in site.instances if i.sop_instance_uid in acknowledged(site.senders)}
    missing = sent - set(session.scalars(select(Study.study_instance_uid)))
    found += [f"no study {uid}" for uid in sorted(missing)]
    quarantined = session.scalar(select(func.count()).select_from(Quarantine))
    return found + ([f"{quarantined} in quarantine"] if quarantined else [])


def in_the_pacs(site: Site, session: Session) -> list[str]:
    """The PACS has each report that was delivered once, as it is stored, and no predecessor after its successor."""
    found = []
    reports = {report.sop_instance_uid: report for report in session.scalars(select(Report))}
    arrivals = site.journal.arrivals()
    for uid in {arrival.sop_instance_uid for arrival in arrivals}:
        digests = {arrival.sha256 for arrival in arrivals if arrival.sop_instance_uid == uid}
        if uid not in reports:
            found.append(f"the PACS has what is no report of ours: {uid}")
        elif digests != {sha256(data_set_of_bytes(reports[uid].content)).hexdigest()}:
            found.append(f"report {reports[uid].id}: {len(digests)} data sets in the PACS, not all as stored")
    highest: dict[int, int] = {}
    for arrival in arrivals:
        report = reports.get(arrival.sop_instance_uid)
        if report is not None:
            if report.revision < highest.get(report.study_id, 0):
                found.append(f"report {report.id}: revision {report.revision} arrived after its successor")
            highest[report.study_id] = max(highest.get(report.study_id, 0), report.revision)
    newest: dict[int, Report] = {}
    for report in reports.values():
        if report.revision > newest.get(report.study_id, report).revision or report.study_id not in newest:
            newest[report.study_id] = report
    arrived = {arrival.sop_instance_uid for arrival in arrivals}
    return found + [f"report {r.id} is not in the PACS" for r in newest.values() if r.sop_instance_uid not in arrived]


def data_set_of_bytes(content: bytes) -> bytes:
    """Return what follows the file meta information (PS3.10 7.1)."""
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


def _audit(session: Session) -> list[str]:
    """Every event has one place in the chain, and the hashes hold."""
    events = {event.id: event for event in session.scalars(select(AuditEvent))}
    previous = audit.GENESIS
    for place in session.scalars(select(AuditChain).order_by(AuditChain.seq)):
        event = events.pop(place.event_id)
        if place.previous_hash != previous or place.hash != audit.event_hash(event, previous):
            return [f"the audit chain breaks at {place.seq}"]
        previous = place.hash
    return [f"{len(events)} audit events have no place in the chain"] if events else []
