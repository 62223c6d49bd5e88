"""What differs between two headers is told by keywords, and never by a value."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from pydicom.datadict import tag_for_keyword

from dicom_node.changes import IDENTITY, READING, changed
from dicom_node.headers import Code, Patient, Request, Sides, SourceHeader, Study
from tests.reports import PATIENT, STUDY, header


def test_equal_headers_differ_in_nothing() -> None:
    assert changed(header(), header()) == []


@pytest.mark.parametrize(
    ("after", "keywords"),
    [
        (header(patient=replace(PATIENT, name="Roe^Jane")), ["PatientName"]),
        (header(patient=replace(PATIENT, id="PID-2", issuer="CLINIC")), ["IssuerOfPatientID", "PatientID"]),
        (header(study=replace(STUDY, accession_number="")), ["AccessionNumber"]),
        (header(study=replace(STUDY, description="Hand")), ["StudyDescription"]),
        (header(laterality="R", sides=Sides(image="R")), ["Laterality", "sides.image"]),
        (header(anatomic_region=Code("1", "SCT", "Wrist")), ["AnatomicRegionSequence"]),
        (header(rows=1, manufacturer="Planted"), ["Manufacturer", "Rows"]),
        (header(unusable=("PatientSex",)), []),
        (header(requests=(Request(accession_number="A-78"),)), ["AccessionNumber"]),
        (header(requests=(Request(description="Hand"),)), ["RequestAttributesSequence"]),
    ],
)
def test_what_differs_is_named_by_its_keyword(after: SourceHeader, keywords: list[str]) -> None:
    assert changed(header(), after) == keywords


def test_every_field_has_a_keyword_of_the_dictionary_or_a_name_of_ours() -> None:
    names: set[str] = set()
    for field in dataclasses.fields(SourceHeader):
        part = getattr(header(), field.name)
        if isinstance(part, Patient | Study | Sides):
            inner = {f.name: object() for f in dataclasses.fields(part)}
            names |= set(changed(header(), replace(header(), **{field.name: replace(part, **inner)})))
        elif field.name == "requests":
            request = Request("A", "1.2", "P", "D", Code("1", "L", "Hand"), "O1", "O2")
            names |= set(changed(header(), header(requests=(request,))))
        else:
            names |= set(changed(header(), replace(header(), **{field.name: object()})))
    ours = {name for name in names if tag_for_keyword(name) is None}
    assert ours == {f"sides.{field.name}" for field in dataclasses.fields(Sides)} | {"age", "animal", "urgent"}
    assert names >= IDENTITY | READING


def test_requests_are_the_same_in_whatever_order_they_stand() -> None:
    first, second = Request(procedure_id="P1", description="Hand"), Request(procedure_id="P2", placer_order="O")
    assert changed(header(requests=(first, second)), header(requests=(second, first))) == []
    assert changed(header(requests=(first,)), header(requests=(replace(first, procedure_id="P3"),))) == [
        "RequestedProcedureID"
    ]
