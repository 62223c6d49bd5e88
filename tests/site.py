"""A node without its processes: each part is called by hand, from the bytes of an instance to the delivered report."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta

from pydicom.dataset import FileDataset

from dicom_node.headers import read_header
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.resends import compare
from dicom_node.resolve import Decision, resolve
from dicom_node.spool import Spool
from models import clock
from models.database import Database
from models.settings import Settings
from models.tables import AuditEvent, DeliveryAttempt, Quarantine, Report, Study
from tests.rows import Rows
from worker.activation import follow_settings
from worker.analyse import Analyst, Reader
from worker.deliver import Courier
from worker.examine import Examiner
from worker.predictor import Predictor
from worker.report import Reporter
from worker.sweeper import close_quiet_studies

ROOM = Sender("room", "ROOM", "OSTEON", "10.0.0.1")
MOST_STEPS = 100


class Site(Rows):
    """One node, whose record has to be there already. `close` it."""

    def __init__(self, settings: Settings, predictor: Predictor) -> None:
        self.settings = settings
        self.database = Database.of(settings)
        self.spool = Spool(settings.data_dir / "spool")
        self.intake = Intake(self.database, settings)
        self.predictor = predictor
        self.analyst = Analyst(settings, self.database, self.spool, reader(self.database, predictor))
        self.examiner = Examiner(settings, self.database, self.spool)
        self.reporter = Reporter(settings, self.database, self.spool)
        self.courier = Courier(settings, self.database)

    def close(self) -> None:
        """Let go of the record."""
        self.database.close()

    def receive(self, dataset: FileDataset, sender: Sender = ROOM) -> Receipt:
        """Compare, keep and record an instance as the listener does."""
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        header = read_header(dataset)
        compared = compare(self.database, self.spool, header.sop_instance_uid, buffer)
        key, sha256 = self.spool.put_bytes(buffer.getvalue())
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        stored = StoredFile(key, len(buffer.getvalue()), sha256, 0, syntax, compared)
        receipt = self.intake.record(sender, header, stored)
        if receipt.needs_no_file:
            self.spool.delete(key)
        return receipt

    def analyse(self) -> int:
        """Analyse what is due; return how many tries that were."""
        return until_idle(self.analyst.analyse_next)

    def complete(self) -> None:
        """Let the quiet time pass, behind which something is complete."""
        assert self._be_quiet()

    def report(self, *datasets: FileDataset) -> Report:
        """Receive, analyse and report; return the newest report."""
        for dataset in datasets:
            self.receive(dataset)
        self.analyse()
        self.complete()
        assert self.reporter.report_next()
        newest: Report = self.all(Report)[-1]
        return newest

    def work(self) -> None:
        """Examine and analyse whatever is due."""
        until_idle(self.examiner.examine_next)
        self.analyse()

    def settle(self) -> list[Report]:
        """Let the quiet time pass, do all that is due; return every report there is."""
        self.work()
        self._be_quiet()
        until_idle(self.reporter.report_next)
        return self.all(Report)

    def resolve(self, decision: Decision, number: int | None = None) -> None:
        """Decide about a row in quarantine, or the first that is open."""
        if number is None:
            number = next(row.id for row in self.all(Quarantine) if row.resolved_at is None)
        resolve(self.database, self.settings, number, decision, by="night shift")

    def deliver(self) -> int:
        """Send what is due until nothing is; return how many tries that were."""
        before = len(self.all(DeliveryAttempt))
        for _ in range(MOST_STEPS):
            if not self.courier.start_lanes():
                return len(self.all(DeliveryAttempt)) - before
            assert self.courier.wait(60)
        raise AssertionError("it never ends")

    @property
    def study(self) -> Study:
        """The one study."""
        study: Study = self.only(Study)
        return study

    def actions(self) -> list[str]:
        """What stands in the audit trail."""
        return [event.action for event in self.all(AuditEvent)]

    def _be_quiet(self) -> list[int]:
        self.intake.close(ROOM.uid, "released")
        clock.advance(timedelta(seconds=60))
        return close_quiet_studies(self.database)


def reader(database: Database, predictor: Predictor) -> Reader:
    """A model that the settings name."""
    return Reader(predictor, follow_settings(database, predictor.bundle, "test"))


def until_idle(step: Callable[[], bool]) -> int:
    """Take steps until there is nothing to do; return how many there were."""
    for steps in range(MOST_STEPS):
        if not step():
            return steps
    raise AssertionError("it never ends")
