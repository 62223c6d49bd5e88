"""A test report: sent to a peer because somebody asked for it, and looked for where the peer answers queries.

It stays there: it says in its patient, study and series that it is a test, and speaks of an image that never was.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from console.doctor.peers import area_of
from console.doctor.verdict import Finding, warning, well, wrong
from console.person import person
from console.trouble import of_database
from dicom_node.headers import Patient, SourceHeader, Study
from dicom_node.objects.content import Algorithm, Device, ImageOutcome, Kind, ReportContent
from dicom_node.objects.report import build_report, render_report_uid, render_series_uid
from dicom_node.sender import Destination, Outcome, Result, request
from models import audit, clock
from models.database import Database, DatabaseNotUpgraded
from models.reasons import Reason
from models.settings import Peer, Settings
from models.tables import DestinationState, Installation
from models.version import VERSION
from worker.ways import way_to

NAME, PATIENT_ID = "OSTEON^TEST", "OSTEON-TEST"
DESCRIPTION = "OSTEON TEST, NO PATIENT"
FOUND_WITHIN_SECONDS = 5.0
_AGAIN_SECONDS = 0.5
_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_PENDING = (0xFF00, 0xFF01)
_REPORTS: tuple[Kind, ...] = ("comprehensive_3d", "comprehensive")


def send_test(settings: Settings, peer: Peer, seconds: float) -> Iterator[Finding]:
    """Send a test report, which is put on record first, and look for it."""
    area = area_of(peer)
    kind = next((kind for kind in _REPORTS if kind in peer.sends), None)
    if kind is None or peer.protocol == "hl7":
        said = "gets no reports as DICOM objects: no test report was sent"
        yield wrong(area, said, "test a destination of comprehensive_3d or comprehensive")
        return
    try:
        content = _on_record(settings, peer, kind)
    except DatabaseNotUpgraded as error:
        yield wrong(area, f"no test report was sent: {error}", "what is sent has to be on record first")
        return
    except SQLAlchemyError as error:
        said = f"no test report was sent: the database cannot be used: {of_database(error)}"
        yield wrong(area, said, "what is sent has to be on record first")
        return
    outcome = _sent(settings, peer, content, seconds)
    status = f" ({outcome.status:04X})" if outcome.status is not None and peer.protocol == "dimse" else ""
    if outcome.result is not Result.DELIVERED:
        said = f"the test report was not taken: {outcome.reason}{status} {outcome.detail}".rstrip()
        yield wrong(area, said, "ask its administrator: its log says what it has against it")
        return
    yield well(area, f"took the test report{status}: patient {NAME}, ID {PATIENT_ID}, which stays there")
    place = Destination.of(peer, settings) if peer.protocol == "dimse" else None
    if place is None:
        yield warning(area, "is not asked whether it has the test report", f"look for patient {NAME} there by hand")
    else:
        yield _looked_for(area, settings, place, content, seconds)


def content_of(installation: str, station: str, kind: Kind) -> ReportContent:
    """Return a report of nobody, on an image that never was; another with each call, all of one study."""
    now = clock.now()
    study = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, installation).int}"
    image = SourceHeader(
        sop_class_uid=str(DigitalXRayImageStorageForPresentation),
        sop_instance_uid=f"2.25.{uuid.uuid4().int}",
        series_instance_uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, study).int}",
        study_instance_uid=study,
        patient=Patient(name=NAME, id=PATIENT_ID),
        study=Study(id="TEST", date=f"{now:%Y%m%d}", time=f"{now:%H%M%S}", description=DESCRIPTION),
        modality="DX",
        series_description=DESCRIPTION,
    )
    return ReportContent(
        installation_uid=installation,
        device=Device(serial=installation, software_version=VERSION, station_ae_title=station),
        algorithm=Algorithm("osteon-doctor", VERSION, "Osteon", hashlib.sha256(b"").hexdigest()),
        created_at=now,
        images=(ImageOutcome(image, not_analysed=Reason.NO_PIXELS),),
        series_description=DESCRIPTION,
        kind=kind,
    )


def _on_record(settings: Settings, peer: Peer, kind: Kind) -> ReportContent:
    with closing(Database.of(settings)) as database:
        database.require_upgraded()
        with database.write() as session:
            content = content_of(session.scalars(select(Installation.uid)).one(), settings.ae_title, kind)
            row = session.scalars(select(DestinationState.id).where(DestinationState.name == peer.name)).first()
            audit.record(
                session,
                actor=person(),
                action="destination.test_sent",
                subject="destination",
                subject_id=row,
                sop_instance_uid=render_report_uid(content),
                sha256=hashlib.sha256(build_report(content)).hexdigest(),
            )
            return content


def _sent(settings: Settings, peer: Peer, content: ReportContent, seconds: float) -> Outcome:
    """Send it as the courier sends reports."""
    patience = settings.delivery.model_copy(update={"timeout": seconds})
    report = build_report(content)
    with tempfile.TemporaryDirectory(prefix="osteon-doctor-") as folder:
        way = way_to(peer, settings.model_copy(update={"delivery": patience}), [report], Path(folder))
        if way is None:
            return Outcome(Result.REFUSED, "it has no address")
        with way:
            return way.trouble or way.store(report)


def _looked_for(area: str, settings: Settings, place: Destination, content: ReportContent, seconds: float) -> Finding:
    association = request(place, [build_context(_FIND)], settings.ae_title, seconds)
    if isinstance(association, Outcome) or not association.is_established or not association.accepted_contexts:
        said = "answers no queries (C-FIND): whether the test report is there cannot be asked"
        return warning(area, said, f"look for patient {NAME} there by hand")
    try:
        until = time.monotonic() + FOUND_WITHIN_SECONDS
        while True:
            answer = _found(association, content)
            if answer is None:
                said = "does not answer our query (C-FIND): whether the test report is there cannot be told"
                return warning(area, said, f"let {settings.ae_title} query there, or look for patient {NAME} by hand")
            if answer:
                return well(area, "has the test report: it is found by C-FIND")
            if time.monotonic() > until or not association.is_established:
                said = f"does not find the test report within {FOUND_WITHIN_SECONDS:g} s, although it took it"
                return wrong(area, said, f"look for patient {NAME} there: it may be filed, quarantined or thrown away")
            time.sleep(_AGAIN_SECONDS)
    finally:
        if association.is_established:
            association.release()


def _found(association: Association, content: ReportContent) -> bool | None:
    """Ask for the instance; return whether there is one, or None where that is not answered."""
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID = content.images[0].header.study_instance_uid
    asked.SeriesInstanceUID = render_series_uid(content)
    asked.SOPInstanceUID = render_report_uid(content)
    found = False
    try:
        for status, identifier in association.send_c_find(asked, _FIND):
            code = getattr(status, "Status", None)
            if code in _PENDING:
                found |= identifier is not None and identifier.get("SOPInstanceUID") == asked.SOPInstanceUID
            elif code != 0:
                return None
    except (OSError, RuntimeError, ValueError):
        return None  # the association is over
    return found
