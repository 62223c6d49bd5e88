"""Report contents for tests: every variant that a validator has to see."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dicom_node.headers import Code, Patient, Request, SourceHeader, Study
from dicom_node.objects.content import (
    Algorithm,
    Decision,
    Device,
    FindingOutcome,
    ImageOutcome,
    Kind,
    Predecessor,
    Region,
    ReportContent,
)
from models.reasons import Reason

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
MADE = datetime(2026, 3, 29, 23, 30, 15, 250000, tzinfo=UTC)

PATIENT = Patient(name="Doe^Jane", id="PID-1", issuer="HOSPITAL", birth_date="19800229", sex="F")
STUDY = Study(
    id="S1",
    date="20260329",
    time="101500",
    accession_number="A-77",
    description="Wrist, two views",
    referring_physician="House^Gregory",
    procedure_codes=(Code("PROCEDURE", "99OSTEON", "Wrist, two views"),),
)


def header(number: int = 1, **changes: object) -> SourceHeader:
    """The header of the number-th image of one study: the left wrist, AP first."""
    base = SourceHeader(
        sop_class_uid=DX,
        sop_instance_uid=f"1.2.3.4.{number}",
        series_instance_uid="1.2.3.3",
        study_instance_uid="1.2.3",
        patient=PATIENT,
        study=STUDY,
        modality="DX",
        body_part_examined="WRIST",
        laterality="L",
        view_position="AP" if number == 1 else "LL",
        rows=1760,
        columns=1500,
        series_number=1,
        instance_number=number,
        manufacturer="ACME",
        model="X1",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def reading(decision: Decision = "fracture", *, region: Region | None = None) -> FindingOutcome:
    """One finding with a probability that fits its decision."""
    probability = {"fracture": 0.8312, "no_fracture": 0.0314, "undetermined": 0.41}[decision]
    return FindingOutcome(probability=probability, decision=decision, absent_below=0.2, present_from=0.6, region=region)


def image(
    number: int = 1, decision: Decision = "fracture", *, region: Region | None = None, **changes: object
) -> ImageOutcome:
    """One image that was read."""
    return ImageOutcome(header(number, **changes), readings=(reading(decision, region=region),))


def unread(number: int, reason: Reason, **changes: object) -> ImageOutcome:
    """One image that was not read."""
    return ImageOutcome(header(number, **changes), not_analysed=reason)


def content(*images: ImageOutcome, predecessor: Predecessor | None = None) -> ReportContent:
    """A report's content by one installation."""
    return ReportContent(
        installation_uid="2.25.330158245012",
        device=Device(serial="6f2c1d0e", software_version="0.1.0", station_ae_title="OSTEON"),
        algorithm=Algorithm("osteon-fracture", "1.0.0", "Osteon", "ab" * 32),
        created_at=MADE,
        images=images or (image(),),
        predecessor=predecessor,
    )


REGION = (310.5, 402.0, 420.25, 533.0)
DISLOCATION = Code("87642003", "SCT", "Dislocation")
ORDERS = (
    Request("A-77", procedure_id="P1", description="Wrist, two views", placer_order="O-1", filler_order="F-1"),
    Request("A-78", "1.2.7", procedure_id="P2", procedure_code=Code("HAND", "99OSTEON", "Hand, two views")),
)
BARE: dict[str, Any] = {"patient": Patient(), "study": Study()}


def variants(kind: Kind = "comprehensive_3d") -> dict[str, ReportContent]:
    """Name and content of everything that a report can be, as one of its kinds."""
    names = {
        "japanese": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "korean": "Hong^Gildong=洪^吉洞=홍^길동",
        "chinese": "Wang^XiaoDong=王^小东",
        "latin": "Buc^Jérôme",
        "greek": "Διονυσιος",
    }
    made = {
        "present without region": content(image()),
        "present with region": content(image(region=REGION)),
        "absent": content(image(decision="no_fracture")),
        "undetermined": content(image(decision="undetermined")),
        "two views, both with a region": content(image(region=REGION), image(2, region=REGION)),
        "two views, one with a region": content(image(region=REGION), image(2, "no_fracture")),
        "mixed": content(
            image(), image(2, "no_fracture"), image(3, "undetermined"), unread(4, Reason.BLANK, view_position="")
        ),
        "several findings": content(
            ImageOutcome(
                header(), readings=(reading(region=REGION), replace(reading("no_fracture"), code=DISLOCATION))
            ),
            ImageOutcome(
                header(2), readings=(reading("undetermined"), replace(reading(region=REGION), code=DISLOCATION))
            ),
        ),
        "bare": content(
            image(
                **BARE,
                body_part_examined="",
                laterality="",
                view_position="",
                modality="",
                rows=None,
                columns=None,
                series_number=None,
                instance_number=None,
            )
        ),
        "superseding": content(image(), predecessor=Predecessor("2.25.111", "2.25.112")),
        "with a presentation state": content(
            image(decision="no_fracture"), unread(2, Reason.NOT_AN_IMAGE, sop_class_uid=GSPS, modality="PR")
        ),
        "only a presentation state": content(
            unread(2, Reason.NOT_AN_IMAGE, sop_class_uid=GSPS, modality="PR", view_position="")
        ),
        "one order": content(image(requests=(ORDERS[0],)), image(2, "no_fracture", requests=(ORDERS[0],))),
        "several orders": content(
            image(requests=(ORDERS[0],)),
            image(2, study=replace(STUDY, accession_number="", procedure_codes=()), requests=ORDERS),
        ),
        "computed radiography with a time zone": content(
            image(sop_class_uid=CR, modality="CR", timezone_offset="-0430", body_part_examined="EXTREMITY")
        ),
    }
    made |= {f"name: {key}": content(image(patient=replace(PATIENT, name=name))) for key, name in names.items()}
    made |= {f"not analysed: {reason.value}": content(unread(1, reason)) for reason in Reason}
    return {name: replace(report, kind=kind) for name, report in made.items()}
