"""What differs between two headers of one instance: keywords, never values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dicom_node.headers import Patient, Request, Sides, SourceHeader, Study

# Fields whose name is not that of the attribute. What is drawn from several attributes keeps its own name.
_KEYWORDS = {
    "patient.name": "PatientName",
    "patient.id": "PatientID",
    "patient.issuer": "IssuerOfPatientID",
    "patient.birth_date": "PatientBirthDate",
    "patient.sex": "PatientSex",
    "study.id": "StudyID",
    "study.date": "StudyDate",
    "study.time": "StudyTime",
    "study.accession_number": "AccessionNumber",
    "study.description": "StudyDescription",
    "study.referring_physician": "ReferringPhysicianName",
    "study.procedure_codes": "ProcedureCodeSequence",
    "sop_class_uid": "SOPClassUID",
    "sop_instance_uid": "SOPInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "anatomic_region": "AnatomicRegionSequence",
    "view_code": "ViewCodeSequence",
    "presentation_intent": "PresentationIntentType",
    "timezone_offset": "TimezoneOffsetFromUTC",
    "model": "ManufacturerModelName",
    "station": "StationName",
    "contributing_equipment": "ContributingEquipmentSequence",
    # By these a request is found again; what else is said of it stands under the name of their sequence.
    "requests.accession_number": "AccessionNumber",
    "requests.procedure_id": "RequestedProcedureID",
    "requests.placer_order": "PlacerOrderNumberImagingServiceRequest",
    "requests.filler_order": "FillerOrderNumberImagingServiceRequest",
    "requests": "RequestAttributesSequence",
}

IDENTITY = frozenset(
    {
        *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
        *("AccessionNumber", "RequestedProcedureID"),
        *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
    }
)
"""Whose examination it is, and which order it answers."""

READING = frozenset(
    {
        "Laterality",
        *(f"sides.{field.name}" for field in dataclasses.fields(Sides)),
        *("Modality", "BodyPartExamined", "AnatomicRegionSequence", "PresentationIntentType", "age", "animal"),
    }
)
"""On which side it is, and what decides whether it may be read at all (`dicom_node.eligibility`, `worker.bundle`)."""


def changed(before: SourceHeader, after: SourceHeader) -> list[str]:
    """Return what differs, by keyword, sorted; by our own field's name where no single attribute gave it."""
    known, found = dict(_fields(before)), dict(_fields(after))
    return sorted({_keyword(path) for path in known if known[path] != found[path]})


def _fields(part: SourceHeader | Patient | Study | Sides, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(part):
        if field.name == "unusable":  # what is mended shows in the attribute itself
            continue
        value = getattr(part, field.name)
        if isinstance(value, Patient | Study | Sides):
            yield from _fields(value, f"{field.name}.")
        elif field.name == "requests":
            yield from _requests(value)
        else:
            yield prefix + field.name, value


def _requests(requests: tuple[Request, ...]) -> Iterator[tuple[str, object]]:
    """What identifies the requests, in whatever order they stand, and the rest of them."""
    for name in ("accession_number", "procedure_id", "placer_order", "filler_order"):
        yield f"requests.{name}", {getattr(request, name) for request in requests} - {""}
    rest = {(request.study_instance_uid, request.description, request.procedure_code) for request in requests}
    yield "requests", rest - {("", "", None)}


def _keyword(path: str) -> str:
    if path in _KEYWORDS:
        return _KEYWORDS[path]
    return path if path.startswith("sides.") or path in ("age", "animal", "urgent") else path.title().replace("_", "")
