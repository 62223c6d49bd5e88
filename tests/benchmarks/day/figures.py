"""What came of a day, in numbers: backlog, waits, answers, and when nothing waited any more."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from models.database import Database
from models.tables import Report, Study
from tests.benchmarks.day.course import Backlog, Course
from tests.benchmarks.day.instances import study_uid
from tests.benchmarks.day.schedule import AFTERNOON, MORNING, OUTAGE, Day, What
from tests.benchmarks.results import percentile

WINDOWS = {
    "night": (0, 7),
    "morning": (7, MORNING[0]),
    "morning peak": MORNING,
    "noon": (MORNING[1], OUTAGE[0]),
    "outage": OUTAGE,
    "afternoon": (OUTAGE[1], 18),
    "evening": (18, 24),
}
FEW = 2
"""So many may wait, and yet the backlog counts as empty: what just came in is being worked on."""


@dataclass(frozen=True)
class Wait:
    """How long it took from a last C-STORE answer until the report was written, and was in the PACS, in seconds."""

    hour: float
    """Of the answer."""
    what: What
    urgent: bool
    written: float
    in_the_pacs: float


def waits(database: Database, day: Day, course: Course, seed: int) -> list[Wait]:
    """Return the wait of every study for the report of what was sent, beyond the quiet time."""
    quiet = 60 / course.acceleration
    with database.read() as session:
        reports = session.execute(
            select(Study.study_instance_uid, Report.sop_instance_uid, Report.created_at)
            .join(Report, Report.study_id == Study.id)
            .order_by(Report.revision)
        ).all()
    by_study: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for study, uid, created_at in reports:
        by_study[study].append((uid, created_at.timestamp()))
    arrived: dict[str, float] = {}
    for arrival in course.arrivals:
        arrived.setdefault(arrival.sop_instance_uid, arrival.at)
    last: dict[tuple[int, str], float] = {}
    for answer in course.answers:
        # The same bytes again bring no report.
        if answer.stored and answer.what != What.AGAIN:
            key = answer.study, answer.what
            last[key] = max(last.get(key, 0.0), answer.answered)
    found = []
    for (number, what), answered in last.items():
        # Written after the answer, it speaks of what was answered.
        after = [(uid, at) for uid, at in by_study[study_uid(seed, number)] if at >= answered and uid in arrived]
        if after:
            found.append(
                Wait(
                    course.hour(answered),
                    What(what),
                    day.studies[number - 1].urgent,
                    min(at for _, at in after) - answered - quiet,
                    min(arrived[uid] for uid, _ in after) - answered - quiet,
                )
            )
    return sorted(found, key=lambda wait: wait.hour)


def of_the_day(database: Database, day: Day, course: Course, seed: int) -> dict[str, Any]:
    """Return everything that is worth keeping of a day."""
    waited = waits(database, day, course, seed)
    stored = [answer for answer in course.answers if answer.stored]
    milliseconds = {
        window: [1000 * (a.answered - a.began) for a in stored if start <= course.hour(a.answered) < end]
        for window, (start, end) in {"whole day": (0, 99), "morning peak": MORNING, "afternoon peak": AFTERNOON}.items()
    }
    return {
        "seed": seed,
        "studies": len(day.studies),
        "images": sum(study.images for study in day.studies),
        "urgent_studies": sum(study.urgent for study in day.studies),
        "sendings": {what.value: sum(s.what is what for s in day.sendings) for what in What},
        "acceleration": course.acceleration,
        "seconds_until_all_was_done": course.seconds,
        "processor_seconds": course.processor_seconds,
        "share_of_all_processors": sum(course.processor_seconds.values()) / course.seconds / (os.cpu_count() or 1),
        "share_of_the_worker": course.processor_seconds["work --only analyse"] / course.seconds,
        "seconds_waited_beyond_the_quiet_time": {
            "whole day": _by_class(waited),
            **{
                window: _by_class(wait for wait in waited if start <= wait.hour < end)
                for window, (start, end) in WINDOWS.items()
            },
        },
        "c_store_answer_milliseconds": {window: _spread(values) for window, values in milliseconds.items()},
        "not_answered_with_success": [answer for answer in course.answers if not answer.stored],
        "most_waiting": {
            name: max(getattr(one, name) for one in course.backlog) for name in Backlog._fields if name != "hour"
        },
        "empty_again_at_hour": {
            "images, after the morning's peak": _empty_again(course.backlog, "images", MORNING[1]),
            "images, after the afternoon's peak": _empty_again(course.backlog, "images", AFTERNOON[1]),
            "studies, after the afternoon's peak": _empty_again(course.backlog, "complete", AFTERNOON[1]),
            "deliveries, after the outage": _empty_again(course.backlog, "deliveries", OUTAGE[1]),
        },
        "studies_sent_by_hour": _by_hour(s.at for s in day.sendings if s.what is What.NEW),
        "images_sent_by_hour": _by_hour(s.at for s in day.sendings for _ in s.images),
        "backlog": {"fields": Backlog._fields, "samples": [list(one) for one in course.backlog]},
        "waits": {
            "fields": ("hour", "urgent", "written", "in_the_pacs"),
            "of_each": [[round(w.hour, 3), w.urgent, round(w.written, 3), round(w.in_the_pacs, 3)] for w in waited],
        },
    }


def _by_class(waited: Iterable[Wait]) -> dict[str, dict[str, dict[str, float]]]:
    found = list(waited)
    return {
        name: {
            what: _spread([getattr(wait, what) for wait in found if wait.urgent is urgent])
            for what in ("written", "in_the_pacs")
        }
        for name, urgent in (("urgent", True), ("routine", False))
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Return how many there are, and their percentiles."""
    if not values:
        return {"count": 0}
    return {"count": len(values), **{f"p{p}": percentile(values, p) for p in (50, 95, 99)}, "most": max(values)}


def _empty_again(backlog: list[Backlog], what: str, hour: float) -> float | None:
    """Return the first hour from this one on at which next to nothing waited."""
    return next((one.hour for one in backlog if one.hour >= hour and getattr(one, what) <= FEW), None)


def _by_hour(moments: Iterable[float]) -> list[int]:
    counts = [0] * 24
    for at in moments:
        counts[min(23, int(at // 3600))] += 1
    return counts
