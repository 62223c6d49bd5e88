"""`osteon reconcile`: received = read = reported = delivered, study by study, and what is missing.

It counts images, and asks the record alone. Studies are read a thousand at a time, each thousand with a few queries
over a range of row ids, and printed as they are found: a million of them need no more memory than a thousand.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from sqlalchemy import Subquery, func, select
from sqlalchemy.orm import Session

from console.start import open_database, saying_plainly
from dicom_node.reconcile import missing_files, unknown_files
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import REPORTS, load_settings
from models.tables import (
    Delivery,
    DeliveryState,
    File,
    FileKind,
    Image,
    ImageState,
    Report,
    ReportInput,
    Study,
    StudyState,
)

AT_A_TIME = 1000
_OUTCOMES = (ImageState.ANALYSED, ImageState.NOT_ANALYSED, ImageState.FAILED)
_ARRIVED = (DeliveryState.DELIVERED, DeliveryState.COMMITTED)


def reconcile(
    missing: Annotated[bool, typer.Option("--missing", help="Print only studies where something is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    uids: Annotated[bool, typer.Option("--uids", help="Print Study Instance UIDs beside the row ids.")] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Look for every file in the spool, too: it takes a while.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0, help="Minutes that reading, reporting and delivering may take.")
    ] = 60.0,
) -> None:
    """Compare what was received, read, reported and delivered; exit status 1 where something is overdue."""
    settings = load_settings()
    with saying_plainly():
        database = open_database(settings)
        totals = Totals()
        for standing in standings(database, patience=timedelta(minutes=patience)):
            totals.add(standing)
            if standing.missing or not missing:
                print(json.dumps(standing.as_json(uids=uids)) if as_json else standing.line(uids=uids))
        print(json.dumps({"totals": totals.as_json()}) if as_json else "\n".join(totals.lines()))
        if files:
            totals.overdue += _print_files(database, Spool(settings.data_dir / "spool"), as_json=as_json)
        database.close()
        if not totals.overdue:
            return
    raise typer.Exit(1)


@dataclass(frozen=True)
class Missing:
    """Something that is not there. What is overdue will not come by itself, or should have been there by now."""

    what: str
    overdue: bool


@dataclass
class Standing:
    """How far one study is. All numbers count images; what a person replaced by another counts no more."""

    study: int
    uid: str
    state: StudyState
    reason: str | None
    generation: int
    images: Counter[ImageState] = field(default_factory=Counter)
    objects: int = 0
    """Instances that are no images, and so have no place in a report."""
    reported: int | None = None
    """Images in the study's newest report; None where there is no report."""
    deliveries: list[tuple[str, DeliveryState, str | None, bool]] = field(default_factory=list)
    """Of the newest report: destination, state, reason, and whether it was asked to commit."""
    files_missing: int = 0
    missing: list[Missing] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Images received."""
        return self.images.total()

    @property
    def read(self) -> int:
        """Images that were analysed, or of which it is known why not."""
        return self.received - self.images[ImageState.RECEIVED]

    def delivered(self) -> dict[str, int]:
        """Images whose newest report has arrived, by destination."""
        count: dict[str, int] = {}
        for destination, state, _, _ in self.deliveries:
            arrived = (self.reported or 0) if state in _ARRIVED else 0
            # Where a study has reports of several kinds, all of them have to arrive.
            count[destination] = min(count.get(destination, arrived), arrived)
        return count

    def committed(self) -> dict[str, bool]:
        """Whether it was committed, of each destination that is asked to."""
        asked: dict[str, bool] = {}
        for destination, state, _, asks in self.deliveries:
            if asks or state is DeliveryState.COMMITTED:
                asked[destination] = asked.get(destination, True) and state is DeliveryState.COMMITTED
        return asked

    def judge(self, *, late: bool) -> None:
        """Find out what is missing; `late` says that all of it should have been done by now."""
        waiting = self.images[ImageState.RECEIVED]
        attention = self.state is StudyState.NEEDS_ATTENTION
        if self.files_missing:
            self.missing.append(Missing(f"{self.files_missing} files", overdue=True))
        if waiting:
            self.missing.append(Missing(f"{waiting} not read yet", overdue=late))
        if attention:
            self.missing.append(Missing(f"report: needs attention ({self.reason})", overdue=True))
        elif self.state is not StudyState.REPORTED:
            self.missing.append(Missing(f"report: study is {self.state.value}", overdue=late))
        elif self.received and (self.reported or 0) < self.received:
            self.missing.append(Missing(f"{self.received - (self.reported or 0)} not in the report", overdue=True))
        for destination, state, reason, asks in self.deliveries:
            if state is DeliveryState.DUE:
                self.missing.append(Missing(f"{destination}: due", overdue=late))
            elif state not in _ARRIVED:
                self.missing.append(Missing(f"{destination}: {state.value} ({reason})", overdue=True))
            elif state is DeliveryState.DELIVERED and asks:
                # A destination may take a day; what it never commits ends as needs_attention.
                self.missing.append(Missing(f"{destination}: not committed yet", overdue=False))

    def line(self, *, uids: bool) -> str:
        """For people."""
        split = ", ".join(
            f"{self.images[state]} {state.value.replace('_', ' ')}" for state in _OUTCOMES if self.images[state]
        )
        committed = self.committed()
        destinations = ", ".join(
            f"{name} {count}" + (" committed" if committed.get(name) else "")
            for name, count in sorted(self.delivered().items())
        )
        parts = [
            f"study {self.study}" + (f" {self.uid}" if uids else ""),
            f"received {self.received}" + (f" and {self.objects} other objects" if self.objects else ""),
            f"read {self.read}" + (f" ({split})" if split else ""),
            f"reported {self.reported or 0}",
            f"delivered {destinations or 'nowhere'}",
        ]
        if self.missing:
            said = ", ".join(f"{item.what}{' (overdue)' if item.overdue else ''}" for item in self.missing)
            parts.append(f"missing: {said}")
        return "; ".join(parts)

    def as_json(self, *, uids: bool) -> dict[str, Any]:
        """For programs."""
        return {
            "study": self.study,
            **({"study_instance_uid": self.uid} if uids else {}),
            "state": self.state.value,
            "generation": self.generation,
            "received": self.received,
            "other_objects": self.objects,
            "read": self.read,
            "analysed": self.images[ImageState.ANALYSED],
            "not_analysed": self.images[ImageState.NOT_ANALYSED],
            "failed": self.images[ImageState.FAILED],
            "reported": self.reported or 0,
            "delivered": self.delivered(),
            "committed": self.committed(),
            "missing": [{"what": item.what, "overdue": item.overdue} for item in self.missing],
        }


@dataclass
class Totals:
    """All studies together."""

    studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    incomplete: int = 0
    overdue: int = 0

    def add(self, standing: Standing) -> None:
        """Count a study in."""
        self.studies += 1
        self.counts["received"] += standing.received
        self.counts["other_objects"] += standing.objects
        self.counts["read"] += standing.read
        for state in _OUTCOMES:
            self.counts[state.value] += standing.images[state]
        self.counts["reported"] += standing.reported or 0
        self.delivered.update(standing.delivered())
        self.incomplete += bool(standing.missing)
        self.overdue += any(item.overdue for item in standing.missing)

    def lines(self) -> list[str]:
        """For people."""
        count = self.counts
        split = ", ".join(f"{count[state.value]} {state.value.replace('_', ' ')}" for state in _OUTCOMES)
        destinations = ", ".join(f"{name} {number}" for name, number in sorted(self.delivered.items()))
        return [
            f"{self.studies} studies; received {count['received']}; read {count['read']} ({split}); "
            f"reported {count['reported']}; delivered {destinations or 'nowhere'}",
            f"{self.incomplete} studies with something missing, {self.overdue} of them overdue",
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "studies": self.studies,
            **self.counts,
            "delivered": dict(self.delivered),
            "incomplete": self.incomplete,
            "overdue": self.overdue,
        }


def _print_files(database: Database, spool: Spool, *, as_json: bool) -> int:
    """Print rows without files, and files without rows: of those no one was told success. Return how many are gone."""
    gone = 0
    for missing in missing_files(database, spool):
        gone += 1
        line = f"file {missing.file_id} ({missing.kind.value}) of image {missing.image_id} is gone"
        print(json.dumps({"file": missing.file_id, "image": missing.image_id, "gone": True}) if as_json else line)
    for unknown in unknown_files(database, spool):
        line = f"file {unknown.key} has no row{' and was set aside' if unknown.set_aside else ''}"
        print(json.dumps({"key": unknown.key, "set_aside": unknown.set_aside}) if as_json else line)
    return gone


def standings(database: Database, *, patience: timedelta) -> Iterator[Standing]:
    """Yield how far every study is, in the order of their ids.

    What is neither read nor reported nor delivered `patience` after its study had to be complete is overdue.
    """
    last = 0
    while True:
        with database.read() as session:
            found = _some_standings(session, after=last, before=clock.now() - patience)
        yield from found
        if len(found) < AT_A_TIME:
            return
        last = found[-1].study


def _some_standings(session: Session, *, after: int, before: datetime) -> list[Standing]:
    studies = session.execute(
        select(
            Study.id, Study.study_instance_uid, Study.state, Study.reason, Study.generation, Study.complete_by < before
        )
        .where(Study.id > after)
        .order_by(Study.id)
        .limit(AT_A_TIME)
    ).all()
    found = {row[0]: Standing(row[0], row[1], row[2], row[3], row[4]) for row in studies}
    if not found:
        return []
    first, last = min(found), max(found)
    _count_images(session, found, first, last)
    _count_missing_files(session, found, first, last)
    _look_at_reports(session, found, first, last)
    for row in studies:
        found[row[0]].judge(late=bool(row[5]))
    return list(found.values())


def _count_images(session: Session, found: dict[int, Standing], first: int, last: int) -> None:
    counts = session.execute(
        select(Image.study_id, Image.state, Image.is_image, func.count())
        .where(Image.study_id.between(first, last), Image.replaced_at.is_(None))
        .group_by(Image.study_id, Image.state, Image.is_image)
    )
    for study, state, is_image, count in counts:
        if study in found and is_image:
            found[study].images[state] += count
        elif study in found:
            found[study].objects += count


def _count_missing_files(session: Session, found: dict[int, Standing], first: int, last: int) -> None:
    """Count the instances whose file was found to be gone although nobody removed it."""
    counts = session.execute(
        select(Image.study_id, func.count())
        .join(File, File.image_id == Image.id)
        .where(
            Image.study_id.between(first, last),
            Image.replaced_at.is_(None),
            File.kind == FileKind.INSTANCE,
            File.missing_at.is_not(None),
            File.removed_at.is_(None),
        )
        .group_by(Image.study_id)
    )
    for study, count in counts:
        if study in found:
            found[study].files_missing = count


def _look_at_reports(session: Session, found: dict[int, Standing], first: int, last: int) -> None:
    newest = _newest_reports(first, last)
    spoken_of = session.execute(
        select(newest.c.study_id, newest.c.id, func.count(Image.id))
        .outerjoin(ReportInput, ReportInput.report_id == newest.c.id)
        .outerjoin(Image, (Image.id == ReportInput.image_id) & Image.replaced_at.is_(None) & Image.is_image.is_(True))
        .group_by(newest.c.study_id, newest.c.id)
    )
    covered: dict[int, list[int]] = defaultdict(list)
    for study, _, count in spoken_of:
        covered[study].append(count)
    for study, counts in covered.items():
        if study in found:
            found[study].reported = min(counts)
    deliveries = session.execute(
        select(
            Delivery.study_id,
            Delivery.destination,
            Delivery.state,
            Delivery.reason,
            Delivery.commit_due_at.is_not(None),
        )
        .where(Delivery.study_id.between(first, last), Delivery.superseded_at.is_(None))
        .order_by(Delivery.id)
    )
    for study, destination, state, reason, asked in deliveries:
        if study in found:
            found[study].deliveries.append((destination, state, reason, bool(asked)))


def _newest_reports(first: int, last: int) -> Subquery:
    """The newest report of each kind of these studies; not what accompanies them."""
    latest = (
        select(Report.study_id, Report.kind, func.max(Report.revision).label("revision"))
        .where(Report.study_id.between(first, last), Report.kind.in_(REPORTS))
        .group_by(Report.study_id, Report.kind)
        .subquery()
    )
    return (
        select(Report.id, Report.study_id)
        .join(
            latest,
            (Report.study_id == latest.c.study_id)
            & (Report.kind == latest.c.kind)
            & (Report.revision == latest.c.revision),
        )
        .subquery()
    )
