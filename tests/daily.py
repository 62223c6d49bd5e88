"""What a node does all day against its database, one operation at a time: for measuring and for looking at its work.

Each operation is done by the code that does it in a node. Doing one again finds the same amount of work to do.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, update

from console.deliveries import UNFINISHED, destinations, listed
from console.doctor.work import for_a_person as work_of_people
from console.doctor.work import waiting as late_work
from console.quarantine import listed as quarantined
from console.reconcile import standings
from console.study_record import whole
from dicom_node.headers import Patient, SourceHeader
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.reconcile import compare
from dicom_node.sender import Outcome, Result
from dicom_node.spool import Spool
from models import audit, audit_search, clock, operations, silence
from models.database import Database
from models.settings import Peer, Settings
from models.tables import Delivery, DeliveryState, Study, StudyState
from models.worklist import Page, Position, Search, worklist
from tests.filled import A_STUDY_EVERY, BEGINNING, PATIENTS
from tests.reports import header
from worker.again import ask_again
from worker.claims import Work, claim, count_claimable, waits_since
from worker.commit import Committer
from worker.lanes import Lanes, waiting
from worker.report import Reporter
from worker.retention import Retention
from worker.sweeper import HeldUp, close_quiet_studies

LIMIT = timedelta(minutes=2)
# Nobody listens there: what is asked over the network is refused at once.
PEERS = [
    Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, role="destination", commitment=True),
    Peer(name="room", ae_title="ROOM1", role="source"),
]
Operation = Callable[["Daily"], object]


class Daily:
    """The parts of a node over a database that `tests.filled` filled with `studies` finished ones."""

    def __init__(self, settings: Settings, database: Database, studies: int) -> None:
        self.settings = settings.model_copy(
            update={"peers": PEERS, "retention": settings.retention.model_copy(update={"days": 30})}
        )
        self.database = database
        self.studies = studies
        self.spool = Spool(self.settings.data_dir / "spool")
        self.intake = Intake(database, self.settings)
        self.committer = Committer(self.settings, database)
        self.reporter = Reporter(self.settings, database, self.spool)
        self.lanes = Lanes(self.settings, database)
        self.retention = Retention(self.settings, database, self.spool)
        self.held_up = HeldUp(database)
        self.numbers = itertools.count(1)

    def receive(self, study: int | None = None) -> Receipt:
        """Record an instance of a new study, or of a finished one."""
        new = f"2.25.{uuid.uuid4().int}"
        source = header(sop_instance_uid=new, study_instance_uid=new)
        if study is not None:
            source = header(
                sop_instance_uid=new,
                study_instance_uid=f"1.2.826.0.1.3680043.{study}",
                patient=Patient(id=f"P{study * 7919 % PATIENTS}", issuer="HOSPITAL"),
            )
        return self._record(source)

    def receive_again(self) -> Receipt | None:
        """Ask what an instance is that came long ago with other bytes, and record it."""
        number = self._some_study()
        uid = f"1.2.826.0.1.3680043.{number}.1.{2 * number}"
        return self.intake.known(uid, uuid.uuid4().hex)

    def known(self) -> Receipt | None:
        """Ask what a new instance is."""
        return self.intake.known(f"2.25.{uuid.uuid4().int}", "0" * 64)

    def late(self) -> Receipt:
        """Record an image that comes late."""
        return self.receive(self._some_study())

    def look_for_hints(self) -> list[int]:
        """Count what can be claimed, as the sweeper does twice a second."""
        with self.database.read() as session:
            counts = [count_claimable(session, work, at_most=50) for work in Work if work is not Work.DELIVER]
            return [*counts, len(waiting(session))]

    def look_for_waiting(self) -> list[bool]:
        """Look whether work has waited for too long."""
        since = clock.now() - timedelta(minutes=30)
        with self.database.read() as session:
            return [waits_since(session, work, since) for work in Work]

    def chain(self) -> int:
        """Give new audit events their places."""
        with self.database.write() as session:
            audit.record(session, actor="test", action="test", subject="study", subject_id=1)
            session.flush()
            return audit.chain(session)

    def report(self) -> bool:
        """Write a report that supersedes another."""
        with self.database.write() as session:
            number = self._some_study()
            session.execute(
                update(Study)
                .where(Study.id == number)
                .values(state=StudyState.COMPLETE, due_at=clock.now(), generation=Study.generation + 1)
            )
        return self.reporter.report_next()

    def deliver(self) -> object:
        """Take a lane, record that one report was delivered, and let go."""
        lane = self.lanes.take("pacs")
        assert lane is not None
        assert lane.current is not None
        delivered = lane.current.row_id
        self.lanes.record(lane, Outcome(Result.DELIVERED, "stored", 0))
        if lane.current is not None:
            self.lanes.abandon(lane, cut=False)
        with self.database.write() as session:
            session.execute(
                update(Delivery)
                .where(Delivery.id == delivered)
                .values(state=DeliveryState.DUE, commit_due_at=None, tries=0)
            )
        return delivered

    def retry(self) -> list[int]:
        """Ask again for what needs attention."""
        with self.database.write() as session:
            found = ask_again(session, actor="test", destination="pacs")
            session.rollback()
        return list(found)

    def reconcile_studies(self) -> object:
        """Look how far a thousand studies are, as `osteon reconcile` does for each thousand."""
        return next(standings(self.database, patience=timedelta(hours=1)))

    def search(self, search: Search | None = None, *, deep: bool = False) -> Page:
        """Show a page of the worklist: the first, or one in the middle of all finished studies."""
        middle = self.studies // 2
        at = datetime.fromtimestamp(BEGINNING + A_STUDY_EVERY * middle, UTC)
        with self.database.read() as session:
            return worklist(session, search, after=Position(at, middle) if deep else None)

    def audit(self, wanted: audit_search.Search | None = None, *, deep: bool = False) -> audit_search.Page:
        """Show a page of audit events: the first, or one in the middle of all."""
        middle = self.studies // 2
        at = datetime.fromtimestamp(BEGINNING + A_STUDY_EVERY * middle, UTC)
        after = audit_search.Position(at, 6 * middle) if deep else None
        with self.database.read() as session:
            return audit_search.search(session, wanted, after=after)

    def look_at_study(self) -> bool:
        """Show whose study it is."""
        with self.database.write() as session:
            return audit.viewed(session, actor="dr", study_id=self._some_study(), where="page: study")

    def study_date(self) -> str:
        """A day on which studies came."""
        return datetime.fromtimestamp(BEGINNING + A_STUDY_EVERY * self._some_study(), UTC).strftime("%Y%m%d")

    def received_in_a_day(self) -> Search:
        """What came on such a day."""
        day = datetime.fromtimestamp(BEGINNING + A_STUDY_EVERY * self._some_study(), UTC)
        return Search(received_from=day, received_before=day + timedelta(days=1))

    def _some_study(self) -> int:
        """A finished study, another each time."""
        return 1 + 104_729 * next(self.numbers) % self.studies

    def _record(self, source: SourceHeader) -> Receipt:
        sender = Sender(str(uuid.uuid4()), "ROOM1", "OSTEON", "10.0.0.1")
        digest = hashlib.sha256(source.sop_instance_uid.encode()).hexdigest()
        return self.intake.record(
            sender, source, StoredFile(uuid.uuid4().hex, 1000, digest, 300, "1.2.840.10008.1.2.1")
        )


def reading(look: Callable[[Any], object]) -> Operation:
    """Return an operation that only reads."""

    def operation(daily: Daily) -> object:
        with daily.database.read() as session:
            return look(session)

    return operation


OPERATIONS: dict[str, Operation] = {
    "receive: is it known?": Daily.known,
    "receive: came again": Daily.receive_again,
    "receive: new study": Daily.receive,
    "receive: late image": Daily.late,
    "claim: analyse": lambda daily: claim(daily.database, Work.ANALYSE, limit=LIMIT),
    "claim: examine": lambda daily: claim(daily.database, Work.EXAMINE, limit=LIMIT),
    "claim: report, none ready": lambda daily: claim(daily.database, Work.REPORT, limit=LIMIT),
    "claim: commit": lambda daily: claim(daily.database, Work.COMMIT, limit=LIMIT),
    "report": Daily.report,
    "deliver": Daily.deliver,
    "commit: ask": lambda daily: daily.committer.ask_next(),
    "sweep: quiet studies": lambda daily: close_quiet_studies(daily.database),
    "sweep: studies held up": lambda daily: daily.held_up.let_go_on(),
    "sweep: hints": Daily.look_for_hints,
    "sweep: work that waits": Daily.look_for_waiting,
    "sweep: audit chain": Daily.chain,
    "retention: 200 studies": lambda daily: daily.retention.step(),
    "reconcile: a step": lambda daily: next(compare(daily.database, daily.spool, "7f")),
    "worklist: newest": Daily.search,
    "worklist: half-way back": lambda daily: daily.search(deep=True),
    "worklist: patient ID": lambda daily: daily.search(Search(patient_id=f"P{7919 * daily._some_study() % PATIENTS}")),
    "worklist: accession number": lambda daily: daily.search(Search(accession_number=f"A{daily._some_study()}")),
    "worklist: study date": lambda daily: daily.search(Search(study_date=daily.study_date())),
    "worklist: received on a day": lambda daily: daily.search(daily.received_in_a_day()),
    "worklist: calling AE": lambda daily: daily.search(Search(calling_ae_title="ROOM7"), deep=True),
    "worklist: decision": lambda daily: daily.search(Search(decision="fracture"), deep=True),
    "worklist: needs attention": lambda daily: daily.search(Search(state=StudyState.NEEDS_ATTENTION)),
    "worklist: reported": lambda daily: daily.search(Search(state=StudyState.REPORTED), deep=True),
    "worklist: patient ID and all else": lambda daily: daily.search(
        Search(
            patient_id=f"P{7919 * daily._some_study() % PATIENTS}",
            study_date=daily.study_date(),
            calling_ae_title="ROOM7",
            decision="fracture",
            state=StudyState.REPORTED,
        )
    ),
    "worklist: AE, decision and state": lambda daily: daily.search(
        Search(calling_ae_title="ROOM2", decision="fracture", state=StudyState.REPORTED)
    ),
    "audit: newest": lambda daily: daily.audit(),
    "audit: half-way back": lambda daily: daily.audit(deep=True),
    "audit: a study": lambda daily: daily.audit(audit_search.Search(study_id=daily._some_study())),
    "audit: a kind": lambda daily: daily.audit(audit_search.Search(action="report.created"), deep=True),
    "audit: a person": lambda daily: daily.audit(audit_search.Search(actor="nobody")),
    "audit: a person and a kind": lambda daily: daily.audit(
        audit_search.Search(actor="listener@osteon:4711", action="report.delivery"), deep=True
    ),
    "audit: one row": lambda daily: daily.audit(audit_search.Search(subject="image", subject_id=daily._some_study())),
    "audit: a study is viewed": Daily.look_at_study,
    "osteon reconcile: 1000 studies": Daily.reconcile_studies,
    "osteon deliveries": lambda daily: reading(
        lambda session: (destinations(session, daily.settings), listed(session, UNFINISHED, None, 100))
    )(daily),
    "osteon deliveries --state delivered": reading(
        lambda session: listed(session, (DeliveryState.DELIVERED,), "pacs", 100)
    ),
    "osteon retry": Daily.retry,
    "osteon study": lambda daily: reading(lambda session: whole(session, session.get_one(Study, daily._some_study())))(
        daily
    ),
    "osteon doctor: work": lambda daily: reading(
        lambda session: [*late_work(session, daily.settings), *work_of_people(session)]
    )(daily),
    "operations: queue": reading(lambda session: (operations.queue(session), operations.holders(session))),
    "operations: throughput": reading(operations.throughput),
    "operations: failures": reading(lambda session: operations.failures(session, clock.now() - timedelta(days=30))),
    "operations: contacts": reading(lambda session: operations.contacts(session, ["pacs"])),
    "operations: sources": lambda daily: reading(
        lambda session: (silence.sources(session, daily.settings), silence.ae_titles(session))
    )(daily),
    "osteon quarantine list": reading(lambda session: quarantined(session, everything=False)),
}


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Give a list that every statement is added to, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
