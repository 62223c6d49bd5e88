"""A node's record of reports and deliveries without the reading that brings them, and destinations for them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pydicom
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from dicom_node.objects.oru import KIND as ORU
from dicom_node.objects.oru import build_oru, render_oru_uid
from dicom_node.objects.report import build_report
from models import clock
from models.database import Database, database_now
from models.settings import Peer, Settings
from models.tables import Delivery, DeliveryAttempt, DeliveryState, DestinationState, Report, Study
from models.upgrade import upgrade
from tests.recorder import Answer, Recorder
from tests.reports import content, image
from tests.rows import Rows, supersede
from worker.deliver import Courier
from worker.lanes import ensure


class Post(Rows):
    """A node's record of reports and deliveries, and the couriers that see to them."""

    def __init__(self, settings: Settings) -> None:
        upgrade(settings)
        self.settings = settings
        self.database = Database.of(settings)
        self.courier = Courier(settings, self.database)
        self._studies = 0

    def report(
        self,
        *,
        of: int | None = None,
        urgent: bool = False,
        names: list[str] | None = None,
        hl7: bool = False,
        made: bytes | None = None,
    ) -> str:
        """Put a report on record, of a new study or superseding the last of study `of`; return its SOP Instance UID.

        An HL7 message where that is asked for, which has a UID on record as well; or a DICOM file that was `made`.
        """
        now = clock.now()
        with self.database.write() as session:
            study = of if of is not None else self._study(session)
            last = session.scalars(
                select(Report).where(Report.study_id == study).order_by(Report.revision.desc()).limit(1)
            ).first()
            number = 1 + session.scalars(select(func.count()).select_from(Report)).one()
            said = content(image(number))
            if made is None:
                made = build_oru(said) if hl7 else build_report(said)
            uid = render_oru_uid(said) if hl7 else sop_instance_uid(made)
            row = Report(
                study_id=study,
                kind=ORU if hl7 else "comprehensive_3d",
                revision=last.revision + 1 if last else 1,
                generation=1,
                sop_class_uid="" if hl7 else "1.2.840.10008.5.1.4.1.1.88.34",
                sop_instance_uid=uid,
                series_instance_uid=f"2.25.{number}",
                impression="undetermined",
                content=made,
                sha256=hashlib.sha256(made).hexdigest(),
                supersedes_id=last.id if last else None,
                created_at=now,
            )
            session.add(row)
            session.flush()
            if last is not None:
                supersede(session, last.id)
            destinations = names or [peer.name for peer in self.settings.destinations]
            ensure(session, destinations)
            rank = now - timedelta(seconds=600 if urgent else 0)
            for name in destinations:
                session.add(
                    Delivery(
                        report_id=row.id, study_id=study, destination=name, created_at=now, due_at=now, rank_at=rank
                    )
                )
        return uid

    def _study(self, session: Session) -> int:
        self._studies += 1
        words = ["patient_name", "patient_id", "issuer_of_patient_id", "patient_birth_date", "accession_number"]
        words += ["patient_sex", "study_date", "study_description"]
        moments = ("first_image_at", "last_image_at", "quiet_until", "complete_by", "rank_at", "due_at")
        values: dict[str, Any] = {**dict.fromkeys(words, ""), **dict.fromkeys(moments, clock.now())}
        study = Study(study_instance_uid=f"1.2.3.{self._studies}", calling_ae_title="ROOM", **values)
        session.add(study)
        session.flush()
        return int(study.id)

    def deliver(self, courier: Courier | None = None) -> None:
        """Send until nothing is due."""
        courier = courier or self.courier
        for _ in range(50):
            if not courier.start_lanes():
                return
            assert courier.wait(60)
        raise AssertionError("it never ends")

    def states(self, name: str = "pacs") -> list[str]:
        return [row.state.value for row in self.all(Delivery) if row.destination == name]

    def tries(self) -> list[int]:
        return [row.tries for row in self.all(Delivery)]

    def attempts(self) -> list[tuple[int, str]]:
        """Place of the delivery, from 0, and outcome, in the order they were made."""
        places = {row.id: place for place, row in enumerate(self.all(Delivery))}
        return [(places[row.delivery_id], row.outcome) for row in self.all(DeliveryAttempt)]

    def destination(self, name: str = "pacs") -> DestinationState:
        (found,) = [row for row in self.all(DestinationState) if row.name == name]
        return found  # type: ignore[no-any-return]

    def digest(self, uid: str) -> str:
        """Of the data set on record."""
        (row,) = [row for row in self.all(Report) if row.sop_instance_uid == uid]
        return hashlib.sha256(data_set(row.content)).hexdigest()

    def restart_all(self) -> None:
        """Everything is due again at once, and no destination rests; what it was tried before stays."""
        with self.database.write() as session:
            session.execute(update(Delivery).values(state=DeliveryState.DUE, due_at=clock.now()))
            session.execute(update(DestinationState).values(due_at=clock.now()))

    def let_leases_run_out(self) -> None:
        """As time does where a courier died."""
        with self.database.write() as session:
            past = database_now(session) - timedelta(seconds=1)
            for table in (Delivery, DestinationState):
                session.execute(update(table).where(table.lease_until.is_not(None)).values(lease_until=past))


def data_set(content: bytes) -> bytes:
    """The bytes behind the file meta information (PS3.10 7.1), whose first element is its length."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def sop_instance_uid(made: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(made), specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def peer(name: str, port: int, **changes: Any) -> Peer:
    return Peer(name=name, ae_title="PACS", role="destination", host="127.0.0.1", port=port, **changes)


@contextmanager
def recording(answer: Callable[[str], Answer] = lambda _: 0x0000, **more: Any) -> Iterator[Recorder]:
    recorder = Recorder(answer, **more)
    try:
        yield recorder
    finally:
        recorder.stop()
