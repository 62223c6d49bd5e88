"""Whether anything is missing at the end of a day: received = read = reported = delivered, each exactly once."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

from sqlalchemy import func, select

from models.database import Database
from models.tables import Image, ImageState, Prediction, Quarantine, Report, Study
from tests.benchmarks.day.course import Course, Hall
from tests.benchmarks.day.instances import sop_instance_uid
from tests.benchmarks.day.schedule import Day, What
from tests.faults.chaos.verify import in_the_pacs


def problems(hall: Hall, day: Day, course: Course, seed: int) -> list[str]:
    """Return everything that is not as it must be; nothing where all is well."""
    expected = {sop_instance_uid(seed, study.number, i + 1) for study in day.studies for i in range(study.images)}
    return [
        *_answers(day, course),
        *_record(hall.node.database, day, expected),
        *_reports(hall, day),
        *_reconciled(hall, len(day.studies), len(expected)),
    ]


def _answers(day: Day, course: Course) -> list[str]:
    """Every C-STORE was answered with success, the first time."""
    refused = Counter(answer.reason for answer in course.answers if not answer.stored)
    found = [f"{count} not stored: {reason}" for reason, count in refused.items()]
    sent = sum(len(sending.images) for sending in day.sendings)
    stored = sum(answer.stored for answer in course.answers)
    return found + ([] if stored == sent else [f"{stored} answers for {sent} images"])


def _record(database: Database, day: Day, expected: set[str]) -> list[str]:
    """Every image is on record once, was read once, and nothing else is."""
    found = []
    with database.read() as session:
        uids = Counter(session.scalars(select(Image.sop_instance_uid)))
        unread = session.scalar(select(func.count()).select_from(Image).where(Image.state != ImageState.ANALYSED))
        read = Counter(session.scalars(select(Prediction.image_id)))
        studies = session.scalar(select(func.count()).select_from(Study))
        quarantined = session.scalar(select(func.count()).select_from(Quarantine))
    if uids.keys() != expected or set(uids.values()) != {1}:
        found.append(f"{uids.total()} images of {len(uids)} UIDs on record, {len(expected)} were sent")
    if unread or set(read.values()) != {1} or len(read) != len(expected):
        found.append(f"{unread} images not analysed, {read.total()} predictions of {len(read)} images")
    if studies != len(day.studies):
        found.append(f"{studies} studies on record, {len(day.studies)} were sent")
    return found + ([f"{quarantined} in quarantine"] if quarantined else [])


def _reports(hall: Hall, day: Day) -> list[str]:
    """The PACS has each report once, as it was written, and no study has more than there were reasons for."""
    with hall.node.database.read() as session:
        found = in_the_pacs(hall, session)
        written = Counter(session.scalars(select(Study.study_instance_uid).join(Report, Report.study_id == Study.id)))
    again = Counter(arrival.sop_instance_uid for arrival in hall.journal.arrivals())
    # Whose answer was lost, when the PACS went away, is sent again: the same bytes under the same UID.
    twice = sum(count > 1 for count in again.values())
    found += [f"{twice} reports came to the PACS twice"] if twice > 1 else []
    reasons: dict[str, int] = defaultdict(lambda: 1)
    for sending in day.sendings:
        reasons[str(sending.study)] += sending.what in (What.LATE, What.CORRECTED)
    more = [uid for uid, count in written.items() if count > reasons[uid.rpartition(".")[2]]]
    return found + [f"study {uid} has {written[uid]} reports" for uid in more]


def _reconciled(hall: Hall, studies: int, images: int) -> list[str]:
    """What the node itself says."""
    done = hall.node.run("reconcile", "--missing", "--files", "--json", "--patience", "0", timeout=600)
    if done.returncode:
        return [f"osteon reconcile: {done.stdout[-2000:]}{done.stderr[-2000:]}"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    totals = next(line["totals"] for line in lines if "totals" in line)
    counted = {
        "studies": totals["studies"],
        "received": totals["received"],
        "read": totals["read"],
        "reported": totals["reported"],
        "delivered": totals["delivered"].get("pacs"),
        "incomplete": totals["incomplete"],
    }
    due = dict.fromkeys(counted, images) | {"studies": studies, "incomplete": 0}
    return [] if counted == due else [f"osteon reconcile: {counted}"]
