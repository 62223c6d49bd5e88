"""Who notices what: each mutation of a report, and which of the four checks finds it. Ours has to find all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.objects.content import Predecessor
from dicom_node.objects.report import build_report
from dicom_node.objects.template import check_report
from tests.interop import judges
from tests.reports import ORDERS, REGION, STUDY, content, image

DICOM3TOOLS, DCMTK, PIXELMED = "dicom3tools", "dcmtk", "pixelmed"
NOBODY: frozenset[str] = frozenset()

# Two regions: with one alone PixelMed says what is not so (test_report_validators.py).
REPORT = build_report(
    content(
        image(region=REGION, requests=ORDERS[:1], study=replace(STUDY, procedure_codes=())),
        image(2, region=REGION, study=replace(STUDY, procedure_codes=())),
        predecessor=Predecessor("2.25.111", "2.25.112"),
    )
)
Mutation = Callable[[Dataset], object]


def items(item: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """Every content item below, with the one that it stands in."""
    for child in item.get("ContentSequence", ()):
        yield item, child
        yield from items(child)


def named(root: Dataset, name: str) -> tuple[Dataset, Dataset]:
    return next((above, item) for above, item in items(root) if item.ConceptNameCodeSequence[0].CodeMeaning == name)


def without(name: str) -> Mutation:
    def mutate(root: Dataset) -> None:
        above, item = named(root, name)
        above.ContentSequence = [child for child in above.ContentSequence if child is not item]

    return mutate


def changed(name: str, **values: object) -> Mutation:
    def mutate(root: Dataset) -> None:
        _, item = named(root, name)
        for keyword, value in values.items():
            setattr(item, keyword, value)

    return mutate


def lacking(name: str, keyword: str) -> Mutation:
    return lambda root: named(root, name)[1].pop(keyword)


def coded(name: str, sequence: str, **values: object) -> Mutation:
    def mutate(root: Dataset) -> None:
        for keyword, value in values.items():
            setattr(named(root, name)[1][sequence].value[0], keyword, value)

    return mutate


def header(**values: object) -> Mutation:
    def mutate(root: Dataset) -> None:
        for keyword, value in values.items():
            setattr(root, keyword, value)

    return mutate


def no(keyword: str) -> Mutation:
    return lambda root: root.pop(keyword)


MUTATIONS: dict[str, tuple[Mutation, set[str] | frozenset[str]]] = {
    # What none of the others sees: the seven of the design, and what makes a report unsafe to read.
    "no observer type": (without("Observer Type"), NOBODY),
    "no procedure reported": (without("Procedure reported"), NOBODY),
    "no tracking identifier": (without("Tracking Identifier"), NOBODY),
    "no tracking UID": (without("Tracking Unique Identifier"), NOBODY),
    "no algorithm version": (without("Algorithm Version"), NOBODY),
    "no language": (without("Language of Content Item and Descendants"), NOBODY),
    "another template": (lambda root: setattr(root.ContentTemplateSequence[0], "TemplateIdentifier", "1501"), NOBODY),
    "another meaning of a name": (coded("Finding", "ConceptNameCodeSequence", CodeMeaning="Findings"), NOBODY),
    "another meaning of a value": (coded("Fracture of bone", "ConceptCodeSequence", CodeMeaning="Absent"), NOBODY),
    "no image library": (without("Image Library"), NOBODY),
    "no imaging measurements": (without("Imaging Measurements"), NOBODY),
    "a region beyond the image": (changed("Image Region", GraphicData=[0, 0, 9999, 0, 9999, 9, 0, 0]), NOBODY),
    # What some of the others see.
    "no value type": (lacking("Finding", "ValueType"), {DCMTK}),
    "no relationship": (lacking("Finding", "RelationshipType"), {DICOM3TOOLS, DCMTK}),
    "a relationship that is none": (changed("Finding", RelationshipType="BELONGS TO"), {DCMTK, PIXELMED}),
    "a relationship that is not allowed": (
        changed("Image Region", RelationshipType="HAS OBS CONTEXT"),
        {DCMTK, PIXELMED},
    ),
    "no concept name": (lacking("Finding", "ConceptNameCodeSequence"), {DICOM3TOOLS, DCMTK}),
    "no code": (lacking("Finding", "ConceptCodeSequence"), {DICOM3TOOLS, DCMTK}),
    "a code without a value": (
        lambda root: named(root, "Finding")[1].ConceptCodeSequence[0].pop("CodeValue"),
        {DICOM3TOOLS, DCMTK},
    ),
    "no text": (lacking("Algorithm Name", "TextValue"), {DICOM3TOOLS, DCMTK, PIXELMED}),
    "no UID": (lacking("Device Observer UID", "UID"), {DICOM3TOOLS, DCMTK, PIXELMED}),
    "a UID that is none": (changed("Device Observer UID", UID="2.25.x"), {DICOM3TOOLS, DCMTK}),
    "no number": (changed("Certainty of Finding", MeasuredValueSequence=[]), {PIXELMED}),
    "another unit": (
        lambda root: setattr(
            named(root, "Certainty of Finding")[1].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
            "CodeValue",
            "mm",
        ),
        NOBODY,
    ),
    "half a point": (changed("Image Region", GraphicData=[0, 0, 9, 0, 9]), {DCMTK}),
    "another graphic type": (changed("Image Region", GraphicType="BOX"), {DICOM3TOOLS, DCMTK}),
    "no graphic data": (lacking("Image Region", "GraphicData"), {DICOM3TOOLS, DCMTK}),
    "a region without its image": (lacking("Image Region", "ContentSequence"), {DICOM3TOOLS, PIXELMED}),
    "a reference to nothing": (lacking("Source", "ReferencedSOPSequence"), {DICOM3TOOLS, DCMTK}),
    "no continuity": (lacking("Measurement Group", "ContinuityOfContent"), {DICOM3TOOLS, DCMTK}),
    "no finding": (without("Finding"), NOBODY),
    "no algorithm name": (without("Algorithm Name"), NOBODY),
    "no observer UID": (without("Device Observer UID"), {PIXELMED}),
    "another observer type": (coded("Observer Type", "ConceptCodeSequence", CodeValue="121006"), {PIXELMED}),
    "no completion flag": (no("CompletionFlag"), {DICOM3TOOLS, DCMTK}),
    "a completion flag that is none": (header(CompletionFlag="DONE"), {DICOM3TOOLS, DCMTK}),
    "no verification flag": (no("VerificationFlag"), {DICOM3TOOLS, DCMTK}),
    "verified by nobody": (header(VerificationFlag="VERIFIED"), {DICOM3TOOLS, DCMTK}),
    "no content date": (no("ContentDate"), {DICOM3TOOLS, DCMTK}),
    "no patient's name, not even an empty one": (no("PatientName"), {DICOM3TOOLS, DCMTK}),
    "no patient ID, not even an empty one": (no("PatientID"), {DICOM3TOOLS, DCMTK}),
    "no study ID, not even an empty one": (no("StudyID"), {DICOM3TOOLS, DCMTK}),
    "no accession number, not even an empty one": (no("AccessionNumber"), {DICOM3TOOLS, DCMTK}),
    "no performed procedure, not even an empty one": (no("PerformedProcedureCodeSequence"), {DICOM3TOOLS, DCMTK}),
    "no manufacturer": (no("Manufacturer"), {DICOM3TOOLS, DCMTK}),
    "no serial number": (no("DeviceSerialNumber"), NOBODY),
    "no series number": (no("SeriesNumber"), {DICOM3TOOLS, DCMTK}),
    "no instance number": (no("InstanceNumber"), {DICOM3TOOLS, DCMTK}),
    "a modality of its own": (header(Modality="AI"), {DICOM3TOOLS, DCMTK}),
    "no evidence": (no("CurrentRequestedProcedureEvidenceSequence"), {DICOM3TOOLS}),
    "no character set": (no("SpecificCharacterSet"), NOBODY),
    "a predecessor without its series": (
        lambda root: root.PredecessorDocumentsSequence[0].pop("ReferencedSeriesSequence"),
        {DICOM3TOOLS, DCMTK},
    ),
    "a request without its study": (
        lambda root: root.ReferencedRequestSequence[0].pop("StudyInstanceUID"),
        {DICOM3TOOLS},
    ),
    "a request without an empty ID": (
        lambda root: root.ReferencedRequestSequence[0].pop("RequestedProcedureID"),
        {DICOM3TOOLS},
    ),
    "equipment without a purpose": (
        lambda root: root.ContributingEquipmentSequence[0].pop("PurposeOfReferenceCodeSequence"),
        {DICOM3TOOLS},
    ),
}


def mutated(name: str) -> bytes:
    root = pydicom.dcmread(BytesIO(REPORT))
    MUTATIONS[name][0](root)
    buffer = BytesIO()
    root.save_as(buffer)
    return buffer.getvalue()


# PixelMed takes three seconds for each: all that it finds, and three that it does not.
ASKED_OF_PIXELMED = [name for name, (_, finders) in MUTATIONS.items() if PIXELMED in finders]
ASKED_OF_PIXELMED += ["no tracking UID", "another meaning of a name", "no completion flag"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_our_check_finds_every_mutation_and_of_the_others_those_that_the_table_names(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says what is wrong with it while it writes
        data = mutated(name)
    assert check_report(data)
    path = tmp_path / "report.dcm"
    path.write_bytes(data)
    found = {DICOM3TOOLS: judges.dicom3tools(path), DCMTK: judges.dcmtk(path)}
    assert {finder for finder, lines in found.items() if lines} == MUTATIONS[name][1] - {PIXELMED}


@pytest.mark.parametrize("part", range(2))
def test_pixelmed_finds_the_mutations_that_the_table_names(part: int, tmp_path: Path) -> None:
    names = ASKED_OF_PIXELMED[part::2]
    found = judges.pixelmed({"as it was": REPORT} | {name: mutated(name) for name in names}, tmp_path)
    assert {name for name, errors in found.items() if errors} == {n for n in names if PIXELMED in MUTATIONS[n][1]}


def test_nobody_finds_anything_in_the_report_that_was_mutated(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(REPORT)
    assert check_report(REPORT) == judges.dicom3tools(path) == judges.dcmtk(path) == []
