"""Who notices what: each mutation of a report, and which of the four checks finds it. Ours has to find all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset

from dicom_node.objects.content import Predecessor
from dicom_node.objects.report import build_report
from tests.reports import ORDERS, REGION, STUDY, content, image

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


MUTATIONS: dict[str, tuple[Mutation, set[str]]] = {
    # What none of the others sees: the seven of the design, and what makes a report unsafe to read.
    "no observer type": (without("Observer Type"), set()),
    "no procedure reported": (without("Procedure reported"), set()),
    "no tracking identifier": (without("Tracking Identifier"), set()),
    "no tracking UID": (without("Tracking Unique Identifier"), set()),
    "no algorithm version": (without("Algorithm Version"), set()),
    "no language": (without("Language of Content Item and Descendants"), set()),
    "another template": (lambda root: setattr(root.ContentTemplateSequence[0], "TemplateIdentifier", "1501"), set()),
    "another meaning of a name": (coded("Finding", "ConceptNameCodeSequence", CodeMeaning="Findings"), set()),
    "another meaning of a value": (coded("Fracture of bone", "ConceptCodeSequence", CodeMeaning="Absent"), set()),
    "no image library": (without("Image Library"), set()),
    "no imaging measurements": (without("Imaging Measurements"), set()),
    "a region beyond the image": (changed("Image Region", GraphicData=[0, 0, 9999, 0, 9999, 9, 0, 0]), set()),
    # What some of the others see.
    "no value type": (lacking("Finding", "ValueType"), set()),
    "no relationship": (lacking("Finding", "RelationshipType"), set()),
    "a relationship that is none": (changed("Finding", RelationshipType="BELONGS TO"), set()),
    "a relationship that is not allowed": (changed("Image Region", RelationshipType="HAS OBS CONTEXT"), set()),
    "no concept name": (lacking("Finding", "ConceptNameCodeSequence"), set()),
    "no code": (lacking("Finding", "ConceptCodeSequence"), set()),
    "a code without a value": (
        lambda root: named(root, "Finding")[1].ConceptCodeSequence[0].pop("CodeValue"),
        set(),
    ),
    "no text": (lacking("Algorithm Name", "TextValue"), set()),
    "no UID": (lacking("Device Observer UID", "UID"), set()),
    "a UID that is none": (changed("Device Observer UID", UID="2.25.x"), set()),
    "no number": (changed("Certainty of Finding", MeasuredValueSequence=[]), set()),
    "another unit": (
        lambda root: setattr(
            named(root, "Certainty of Finding")[1].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
            "CodeValue",
            "mm",
        ),
        set(),
    ),
    "half a point": (changed("Image Region", GraphicData=[0, 0, 9, 0, 9]), set()),
    "another graphic type": (changed("Image Region", GraphicType="BOX"), set()),
    "no graphic data": (lacking("Image Region", "GraphicData"), set()),
    "a region without its image": (lacking("Image Region", "ContentSequence"), set()),
    "a reference to nothing": (lacking("Source", "ReferencedSOPSequence"), set()),
    "no continuity": (lacking("Measurement Group", "ContinuityOfContent"), set()),
    "no finding": (without("Finding"), set()),
    "no algorithm name": (without("Algorithm Name"), set()),
    "no observer UID": (without("Device Observer UID"), set()),
    "another observer type": (coded("Observer Type", "ConceptCodeSequence", CodeValue="121006"), set()),
    "no completion flag": (no("CompletionFlag"), set()),
    "a completion flag that is none": (header(CompletionFlag="DONE"), set()),
    "no verification flag": (no("VerificationFlag"), set()),
    "verified by nobody": (header(VerificationFlag="VERIFIED"), set()),
    "no content date": (no("ContentDate"), set()),
    "no patient's name, not even an empty one": (no("PatientName"), set()),
    "no patient ID, not even an empty one": (no("PatientID"), set()),
    "no study ID, not even an empty one": (no("StudyID"), set()),
    "no accession number, not even an empty one": (no("AccessionNumber"), set()),
    "no performed procedure, not even an empty one": (no("PerformedProcedureCodeSequence"), set()),
    "no manufacturer": (no("Manufacturer"), set()),
    "no serial number": (no("DeviceSerialNumber"), set()),
    "no series number": (no("SeriesNumber"), set()),
    "no instance number": (no("InstanceNumber"), set()),
    "a modality of its own": (header(Modality="AI"), set()),
    "no evidence": (no("CurrentRequestedProcedureEvidenceSequence"), set()),
    "no character set": (no("SpecificCharacterSet"), set()),
    "a predecessor without its series": (
        lambda root: root.PredecessorDocumentsSequence[0].pop("ReferencedSeriesSequence"),
        set(),
    ),
    "a request without its study": (lambda root: root.ReferencedRequestSequence[0].pop("StudyInstanceUID"), set()),
    "a request without an empty ID": (
        lambda root: root.ReferencedRequestSequence[0].pop("RequestedProcedureID"),
        set(),
    ),
    "equipment without a purpose": (
        lambda root: root.ContributingEquipmentSequence[0].pop("PurposeOfReferenceCodeSequence"),
        set(),
    ),
}


def mutated(name: str) -> bytes:
    root = pydicom.dcmread(BytesIO(REPORT))
    MUTATIONS[name][0](root)
    buffer = BytesIO()
    root.save_as(buffer)
    return buffer.getvalue()
