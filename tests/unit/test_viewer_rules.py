"""What a viewer relies on without looking: OHIF's reader of reports, its expectations written down and asked of ours.

They were read from OHIF's handler of structured reports (extensions/cornerstone-dicom-sr, 2023 to 2026). It finds items
by the code values of their names, takes what it has found for granted, and shows nothing of a report on which it fails.
"""

from __future__ import annotations

from io import BytesIO

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.objects.content import ReportContent
from dicom_node.objects.report import build_report
from dicom_node.services import is_image
from tests.reports import variants

LIBRARY, LIBRARY_GROUP, MEASUREMENTS, GROUP = "111028", "126200", "126010", "125007"
TRACKING_IDENTIFIER, TRACKING_UID, FINDING_SITE = "112039", "112040", "363698007"
SOP_CLASSES = {"1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"}
DRAWN = {"POINT", "MULTIPOINT", "POLYLINE", "CIRCLE", "ELLIPSE"}
CASES = {
    f"{name}, {kind}": report
    for kind in ("comprehensive_3d", "comprehensive")
    for name, report in variants(kind).items()  # type: ignore[arg-type]
}
every_case = pytest.mark.parametrize("case", CASES)


def parsed(case: str) -> Dataset:
    return pydicom.dcmread(BytesIO(build_report(CASES[case])))


def images(report: ReportContent) -> set[str]:
    headers = (image.header for image in report.images)
    return {header.sop_instance_uid for header in headers if is_image(header.sop_class_uid)}


def named(item: Dataset, value: str) -> list[Dataset]:
    """OHIF reads the name of every item before it compares it: each has to have one."""
    return [child for child in item.get("ContentSequence", ()) if child.ConceptNameCodeSequence[0].CodeValue == value]


def groups(report: Dataset) -> list[Dataset]:
    return named(named(report, MEASUREMENTS)[0], GROUP)


@every_case
def test_a_report_is_of_a_class_and_a_title_that_a_viewer_opens(case: str) -> None:
    report = parsed(case)
    assert report.SOPClassUID in SOP_CLASSES
    assert report.Modality == "SR"
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    for keyword in ("SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime"):
        assert report.get(keyword), keyword


@every_case
def test_library_and_measurements_are_always_there_and_once(case: str) -> None:
    report = parsed(case)
    assert len(named(report, LIBRARY)) == len(named(report, MEASUREMENTS)) == 1


@every_case
def test_every_image_stands_in_the_first_group_of_the_library(case: str) -> None:
    report = parsed(case)
    found = named(named(report, LIBRARY)[0], LIBRARY_GROUP)
    listed = [item for group in found[:1] for item in group.ContentSequence]
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in listed} == images(CASES[case])
    assert len(found) == bool(images(CASES[case]))
    assert all(item.ReferencedSOPSequence[0].ReferencedSOPClassUID for item in listed)


@every_case
def test_every_group_has_an_identifier_and_a_uid_of_its_own_before_any_other_uid(case: str) -> None:
    uids = []
    for group in groups(parsed(case)):
        (identifier,), (uid,) = named(group, TRACKING_IDENTIFIER), named(group, TRACKING_UID)
        assert identifier.TextValue
        # It takes the first UIDREF for the tracking UID.
        assert next(item for item in group.ContentSequence if item.ValueType == "UIDREF") == uid
        uids.append(uid.UID)
    # Groups of one tracking UID would be merged into one.
    assert len(set(uids)) == len(uids)


@every_case
def test_a_region_has_one_outline_with_one_image_of_the_study_that_is_evidence(case: str) -> None:
    report = parsed(case)
    evidence = {
        (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    shown = [item for group in groups(report) for item in group.ContentSequence if item.ValueType == "SCOORD"]
    wanted = [
        reading
        for image in CASES[case].images
        for reading in image.readings
        if reading.region is not None and reading.decision == "fracture"
    ]
    assert len(shown) == len(wanted)
    for outline in shown:
        assert outline.RelationshipType in ("CONTAINS", "INFERRED FROM")
        assert outline.GraphicType in DRAWN
        assert len(outline.GraphicData) % 2 == 0
        (source,) = outline.ContentSequence
        assert (source.ValueType, source.RelationshipType) == ("IMAGE", "SELECTED FROM")
        (reference,) = source.ReferencedSOPSequence
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) in evidence
        assert "ReferencedFrameNumber" not in reference  # then it is the first


@every_case
def test_a_group_has_one_outline_at_most_and_all_its_numbers_can_be_shown(case: str) -> None:
    for group in groups(parsed(case)):
        kinds = [item.ValueType for item in group.ContentSequence]
        assert kinds.count("SCOORD") <= 1
        assert "SCOORD3D" not in kinds
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                (measured,) = item.MeasuredValueSequence
                assert float(measured.NumericValue) >= 0
                assert measured.MeasurementUnitsCodeSequence[0].CodeValue
                assert item.ConceptNameCodeSequence[0].CodeMeaning
        for site in named(group, FINDING_SITE):
            assert site.ConceptNameCodeSequence[0].CodingSchemeDesignator == "SCT"
            assert site.ConceptCodeSequence[0].CodeMeaning
