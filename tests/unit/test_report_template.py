"""The template check finds nothing in our reports, and every mutation of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node.objects.content import Predecessor
from dicom_node.objects.report import build_report
from dicom_node.objects.template import check_report
from models.reasons import Reason
from tests.reports import ORDERS, REGION, content, image, unread, variants

VARIANTS = variants() | {f"{name}, comprehensive": report for name, report in variants("comprehensive").items()}
REPORT = build_report(
    content(
        image(region=REGION, requests=ORDERS[:1]),
        image(2, "no_fracture"),
        image(3, "undetermined"),
        unread(4, Reason.BLANK),
        predecessor=Predecessor("2.25.111", "2.25.112"),
    )
)
OPTIONAL = {
    "Modality",
    "Image Laterality",
    "Image View",
    "Study Date",
    "Finding Site",
    "Laterality",
    # One of three, and of the library's entry what the Qualitative Evaluations say as well.
    "Algorithm Parameters",
    "Comment",
    # Without them a region is bounded by nothing.
    "Pixel Data Rows",
    "Pixel Data Columns",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_of_our_report_has_a_problem(name: str) -> None:
    assert check_report(build_report(VARIANTS[name])) == []


def items(item: Dataset, place: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Return the place of every content item below `item`."""
    for number, child in enumerate(item.get("ContentSequence", ())):
        yield (*place, number)
        yield from items(child, (*place, number))


def at(root: Dataset, place: tuple[int, ...]) -> Dataset:
    for number in place:
        root = root.ContentSequence[number]
    return root


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def parsed() -> Dataset:
    return pydicom.dcmread(BytesIO(REPORT))


PLACES = list(items(parsed()))


def problems(root: Dataset) -> list[str]:
    buffer = BytesIO()
    root.save_as(buffer)
    return [str(problem) for problem in check_report(buffer.getvalue())]


def named(root: Dataset, name: str, number: int = 0) -> Dataset:
    return [at(root, place) for place in items(root) if meaning(at(root, place)) == name][number]


def without(name: str, number: int = 0) -> Callable[[Dataset], None]:
    def mutate(root: Dataset) -> None:
        place = [place for place in items(root) if meaning(at(root, place)) == name][number]
        del at(root, place[:-1]).ContentSequence[place[-1]]

    return mutate


def put(item: Dataset, **values: object) -> None:
    for keyword, value in values.items():
        setattr(item, keyword, value)


def predecessor(root: Dataset) -> Dataset:
    found: Dataset = root.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    return found


MUTATIONS: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "no observer type": (without("Observer Type"), "Observer Type (121005, DCM) is missing"),
    "no procedure": (without("Procedure reported"), "Procedure reported (121058, DCM) is missing"),
    "no tracking identifier": (without("Tracking Identifier"), "Tracking Identifier (112039, DCM) is missing"),
    "no tracking UID": (without("Tracking Unique Identifier"), "Tracking Unique Identifier (112040, DCM) is missing"),
    "no algorithm version": (without("Algorithm Version"), "Algorithm Version (111003, DCM) is missing"),
    "no language": (without("Language of Content Item and Descendants"), "(121049, DCM) is missing"),
    "the wrong template of the root": (
        lambda root: put(root.ContentTemplateSequence[0], TemplateIdentifier="1501"),
        "the template is not 1500",
    ),
    "the wrong template of a group": (
        lambda root: put(named(root, "Measurement Group").ContentTemplateSequence[0], TemplateIdentifier="300"),
        "the template is not 1410 or 1501",
    ),
    "the templates of two groups changed about": (
        lambda root: put(named(root, "Measurement Group").ContentTemplateSequence[0], TemplateIdentifier="1501"),
        "does not belong here",
    ),
    "the wrong meaning of a concept": (
        lambda root: put(named(root, "Finding").ConceptNameCodeSequence[0], CodeMeaning="Findings"),
        "the meaning of (121071, DCM) is not 'Finding'",
    ),
    "the wrong meaning of a value": (
        lambda root: put(named(root, "Fracture of bone").ConceptCodeSequence[0], CodeMeaning="Absent"),
        "the meaning of (52101004, SCT) is not 'Present'",
    ),
    "another code of presence": (
        lambda root: put(named(root, "Fracture of bone").ConceptCodeSequence[0], CodeValue="2667000"),
        "is none of (52101004, SCT), (272519000, SCT), (373068000, SCT)",
    ),
    "the wrong unit": (
        lambda root: put(
            named(root, "Certainty of Finding").MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
            CodeValue="1",
        ),
        "(1, UCUM) is none of (%, UCUM)",
    ),
    "a certainty above all": (
        lambda root: put(named(root, "Certainty of Finding").MeasuredValueSequence[0], NumericValue="183.1"),
        "not between 0 and 100",
    ),
    "a certainty without a value": (
        lambda root: put(named(root, "Certainty of Finding"), MeasuredValueSequence=[]),
        "Certainty of Finding has no value",
    ),
    "a wrong relationship": (
        lambda root: put(named(root, "Tracking Identifier"), RelationshipType="CONTAINS"),
        "the relationship is not HAS OBS CONTEXT",
    ),
    "a wrong value type": (lambda root: put(named(root, "Finding"), ValueType="TEXT"), "Finding is a TEXT"),
    "an empty text": (lambda root: put(named(root, "Algorithm Name"), TextValue=" "), "Algorithm Name is empty"),
    "an empty UID": (
        lambda root: put(named(root, "Device Observer UID"), UID=""),
        "Device Observer UID is not a UID",
    ),
    "rows in another order": (
        lambda root: root.ContentSequence.insert(0, root.ContentSequence.pop(8)),
        "stands behind Image Library",
    ),
    "an item twice": (
        lambda root: root.ContentSequence.insert(0, root.ContentSequence[0]),
        "stands here 2 times",
    ),
    "an item of another template": (
        lambda root: put(named(root, "Observer Type").ConceptNameCodeSequence[0], CodeValue="121008"),
        "(121008, DCM) does not belong here",
    ),
    "Absent with a label that says fracture found": (
        lambda root: put(named(root, "Tracking Identifier", 1), TextValue="Image 2: fracture found"),
        "could be taken for a finding",
    ),
    "Absent with a region": (
        lambda root: put(
            named(root, "Fracture of bone").ConceptCodeSequence[0], CodeValue="272519000", CodeMeaning="Absent"
        ),
        "a region although the finding is not Present",
    ),
    "Absent for the study although an image was not analysed": (
        lambda root: put(
            named(root, "Fracture of bone", -1).ConceptCodeSequence[0], CodeValue="272519000", CodeMeaning="Absent"
        ),
        "of the study is not Present",
    ),
    "an impression that does not say what it is": (
        lambda root: put(named(root, "Impression"), TextValue="Fracture found on 1 of 4 images."),
        "AI result, not for primary diagnosis",
    ),
    "two groups with one tracking UID": (
        lambda root: put(
            named(root, "Tracking Unique Identifier"), UID=named(root, "Tracking Unique Identifier", 1).UID
        ),
        "the same Tracking Unique Identifier",
    ),
    "a region beyond its image": (
        lambda root: put(named(root, "Image Region"), GraphicData=[0, 0, 1501, 0, 1501, 9, 0, 0]),
        "reaches beyond its image",
    ),
    "a region that is not closed": (
        lambda root: put(named(root, "Image Region"), GraphicData=[0, 0, 9, 0, 9, 9, 0, 9]),
        "not a closed POLYLINE",
    ),
    "a group of an image that is not in the library": (
        lambda root: put(
            named(root, "Source of Measurement").ReferencedSOPSequence[0], ReferencedSOPInstanceUID="1.2.9"
        ),
        "does not stand in the Image Library",
    ),
    "evidence that is not there": (
        lambda root: put(root, CurrentRequestedProcedureEvidenceSequence=[]),
        "4 instances of the tree are not in the evidence",
    ),
    "evidence that nothing names": (
        lambda root: put(
            root.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0],
            ReferencedSOPInstanceUID="1.2.9",
        ),
        "1 instances of the evidence are not in the tree",
    ),
    "another character set": (lambda root: put(root, SpecificCharacterSet="ISO_IR 100"), "is not ISO_IR 192"),
    "verified by nobody": (lambda root: put(root, VerificationFlag="VERIFIED"), "VerificationFlag is not UNVERIFIED"),
    "another modality": (lambda root: put(root, Modality="DX"), "Modality is not SR"),
    "no equipment that made it": (
        lambda root: put(root, ContributingEquipmentSequence=[]),
        "no Contributing Equipment is the Processing Equipment",
    ),
    "a request without its study": (
        lambda root: put(root.ReferencedRequestSequence[0], StudyInstanceUID=""),
        "a request without a Study Instance UID",
    ),
    "a request without what may be empty but not missing": (
        lambda root: root.ReferencedRequestSequence[0].pop("FillerOrderNumberImagingServiceRequest"),
        "a request without FillerOrderNumberImagingServiceRequest",
    ),
    "another accession number than that of the request": (
        lambda root: put(root, AccessionNumber="A-78"),
        "AccessionNumber is not that of the requests",
    ),
    "no accession number, not even an empty one": (
        lambda root: root.pop("AccessionNumber"),
        "AccessionNumber is missing",
    ),
    "a predecessor of another SOP class": (
        lambda root: put(predecessor(root), ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"),
        "a predecessor of another SOP class",
    ),
    "a predecessor that is the report itself": (
        lambda root: put(predecessor(root), ReferencedSOPInstanceUID=root.SOPInstanceUID),
        "a predecessor of itself",
    ),
    "a predecessor of another study": (
        lambda root: put(root.PredecessorDocumentsSequence[0], StudyInstanceUID="1.2.9"),
        "a predecessor of another study",
    ),
    "another SOP class": (
        lambda root: put(root, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22"),
        "neither Comprehensive 3D SR nor Comprehensive SR",
    ),
    "another instance's name": (
        lambda root: put(root, SOPInstanceUID=generate_uid()),
        "the file meta information names another instance",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_found_and_named(name: str) -> None:
    mutate, expected = MUTATIONS[name]
    root = parsed()
    mutate(root)
    found = problems(root)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_no_item_that_has_to_be_there_can_be_left_out_unnoticed(place: tuple[int, ...]) -> None:
    root = parsed()
    gone = meaning(at(root, place))
    del at(root, place[:-1]).ContentSequence[place[-1]]
    assert problems(root) or gone in OPTIONAL


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_no_meaning_of_a_code_can_be_changed_unnoticed(place: tuple[int, ...]) -> None:
    sequences = [
        "ConceptNameCodeSequence",
        # The words of the hospital for its own procedure are its own.
        *(["ConceptCodeSequence"] if meaning(at(parsed(), place)) != "Procedure reported" else []),
    ]
    for keyword in sequences:
        root = parsed()
        if sequence := at(root, place).get(keyword):
            sequence[0].CodeMeaning = "Something else"
            assert problems(root), keyword


def test_problems_say_where_and_never_who() -> None:
    root = parsed()
    without("Tracking Identifier", 1)(root)
    (problem,) = problems(root)[:1]
    assert problem.startswith("1.10.2: ")
    root.PatientName, root.SpecificCharacterSet, root.Modality = "Nobody^Known", "ISO_IR 100", "CT"
    assert not any("Nobody" in problem for problem in problems(root))


@pytest.mark.parametrize("data", [b"", b"no DICOM", REPORT[:200]])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"the bytes are not|no content tree"):
        check_report(data)


@settings(deadline=None)
@given(st.data())
def test_any_damage_gives_problems_or_a_refusal_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(REPORT)
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(132, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        assert all(problem.what for problem in check_report(bytes(damaged)))
