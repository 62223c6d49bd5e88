"""The report: what it says, what it never says, and that equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.headers import Code, Equipment, Patient, Sides, SourceHeader, read_header
from dicom_node.objects.content import (
    DISCLAIMER,
    Device,
    FindingOutcome,
    ImageOutcome,
    Predecessor,
    ReportContent,
    impression,
)
from dicom_node.objects.recognise import is_own_object
from dicom_node.objects.report import build_report, render_report_uid
from dicom_node.objects.tree import render_tree
from models.reasons import Reason
from tests.reports import (
    DISLOCATION,
    GSPS,
    MADE,
    PATIENT,
    REGION,
    STUDY,
    content,
    header,
    image,
    reading,
    unread,
    variants,
)

VARIANTS = variants()
BOTH = [*VARIANTS.values(), *variants("comprehensive").values()]
UNDETERMINED = "Undetermined: a fracture is neither found nor excluded."


def parsed(report: ReportContent) -> Dataset:
    return pydicom.dcmread(BytesIO(build_report(report)))


def lines(report: ReportContent) -> list[str]:
    return [line for _, line in render_tree(build_report(report))]


def items(item: Dataset, meaning: str) -> list[Dataset]:
    """All content items below with this concept name."""
    found = []
    for child in item.get("ContentSequence", ()):
        if child.get("ConceptNameCodeSequence") and child.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(child)
        found += items(child, meaning)
    return found


def groups(report: ReportContent) -> list[Dataset]:
    return items(parsed(report), "Measurement Group")


def references(item: Dataset) -> set[str]:
    own = {str(part.ReferencedSOPInstanceUID) for part in item.get("ReferencedSOPSequence", ())}
    return own.union(*(references(child) for child in item.get("ContentSequence", ())))


# The document.


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_comprehensive_3d_report_of_its_study_in_utf_8(name: str) -> None:
    report = parsed(VARIANTS[name])
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert report.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert report.StudyInstanceUID == "1.2.3"
    assert report.SeriesInstanceUID != "1.2.3.3"
    assert (report.Modality, report.CompletionFlag, report.VerificationFlag) == ("SR", "COMPLETE", "UNVERIFIED")
    assert report.SeriesNumber >= 9900
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_comprehensive_report_says_the_same_as_a_comprehensive_3d_one(name: str) -> None:
    own, other = VARIANTS[name], replace(VARIANTS[name], kind="comprehensive")
    report = parsed(other)
    assert report.SOPClassUID == report.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    assert {report.SOPInstanceUID, report.SeriesInstanceUID}.isdisjoint(
        {parsed(own).SOPInstanceUID, parsed(own).SeriesInstanceUID}
    )
    assert render_tree(build_report(own)) == render_tree(build_report(other))
    for study in report.get("PredecessorDocumentsSequence", ()):
        assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID == report.SOPClassUID


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_names_language_observer_and_procedure(name: str) -> None:
    text = lines(VARIANTS[name])
    assert text[0] == "Imaging Measurement Report"
    assert "Observer Type: Device" in text
    assert "Device Observer UID: 2.25.330158245012" in text
    assert "Device Observer Manufacturer: Osteon" in text
    assert "Device Observer Serial Number: 6f2c1d0e" in text
    assert any(line.startswith("Procedure reported: ") for line in text)
    language = items(parsed(VARIANTS[name]), "Language of Content Item and Descendants")[0].ConceptCodeSequence[0]
    assert (language.CodeValue, language.CodingSchemeDesignator) == ("en-US", "RFC5646")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_carries_library_measurements_and_impression_as_viewers_expect(name: str) -> None:
    report = parsed(VARIANTS[name])
    for container in ("Image Library", "Imaging Measurements", "Qualitative Evaluations"):
        assert len(items(report, container)) == 1
    text = items(report, "Impression")[0].TextValue
    assert text == impression(VARIANTS[name]).text
    assert DISCLAIMER in text


@pytest.mark.parametrize("name", VARIANTS)
def test_every_image_that_is_referenced_is_evidence_and_the_other_way_round(name: str) -> None:
    report = parsed(VARIANTS[name])
    evidence = {
        str(instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    images = {one.header.sop_instance_uid for one in VARIANTS[name].images}
    assert evidence == references(report) == images


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognised_as_our_own_when_it_returns(name: str) -> None:
    assert is_own_object(read_header(parsed(VARIANTS[name])))


def test_highdicom_reads_the_report_back() -> None:
    report = hd.sr.Comprehensive3DSR.from_dataset(parsed(VARIANTS["two views, one with a region"]))
    with_region = report.content.get_planar_roi_measurement_groups()
    assert len(with_region) == 1
    box = with_region[0].roi.value
    assert np.array_equal(box.min(axis=0), [310.5, 402.0])
    assert np.array_equal(box.max(axis=0), [420.25, 533.0])
    assert len(report.content.get_image_measurement_groups()) == 1


def test_patient_and_study_are_those_of_the_source() -> None:
    report = parsed(content(image()))
    assert (report.PatientName, report.PatientID, report.IssuerOfPatientID) == ("Doe^Jane", "PID-1", "HOSPITAL")
    assert (report.PatientBirthDate, report.PatientSex) == ("19800229", "F")
    assert (report.StudyID, report.StudyDate, report.StudyTime) == ("S1", "20260329", "101500")
    assert (report.AccessionNumber, report.ReferringPhysicianName) == ("A-77", "House^Gregory")


def test_what_the_source_did_not_tell_is_empty_and_present() -> None:
    report = parsed(VARIANTS["bare"])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        assert keyword in report
        assert not report[keyword].value


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("name: ")])
def test_names_in_any_script_return_as_they_came(name: str) -> None:
    assert str(parsed(VARIANTS[name]).PatientName) == VARIANTS[name].images[0].header.patient.name


def test_values_that_break_the_rules_are_passed_on_without_a_warning_that_quotes_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    patient = Patient(name="Secret" * 20 + "^X\\Y", id="Secret" * 20, issuer="Secret" * 20)
    report = parsed(content(image(patient=patient, study=replace(STUDY, accession_number="Secret" * 5))))
    assert read_header(report).patient == patient
    assert "Secret" not in caplog.text


def test_a_new_report_names_the_one_it_replaces() -> None:
    previous = parsed(VARIANTS["superseding"]).PredecessorDocumentsSequence[0]
    assert previous.StudyInstanceUID == "1.2.3"
    series = previous.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "2.25.112"
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.111"


def test_times_are_utc_or_in_the_offset_that_the_source_declares() -> None:
    plain = parsed(content(image()))
    assert (plain.ContentDate, plain.ContentTime) == ("20260329", "233015")
    assert "TimezoneOffsetFromUTC" not in plain  # it would move the study's own date and time
    east = parsed(content(image(timezone_offset="+0200")))
    assert (east.ContentDate, east.ContentTime, east.TimezoneOffsetFromUTC) == ("20260330", "013015", "+0200")
    west = parsed(content(image(timezone_offset="-0430")))
    assert (west.ContentDate, west.ContentTime, west.TimezoneOffsetFromUTC) == ("20260329", "190015", "-0430")
    assert east.ContributingEquipmentSequence[0].ContributionDateTime == "20260330013015+0200"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), ["Imaging procedure"]),
        ((Code("A", "99L", "Wrist"), Code("B", "99L", "Hand")), ["Wrist", "Hand"]),
        ((Code("A", "", "Wrist"),), ["Imaging procedure"]),
        ((Code("A" * 17, "99L", "Wrist"), Code("B", "99L", "Hand")), ["Hand"]),
        ((Code("A", "99L", "W" * 65),), ["Imaging procedure"]),
    ],
)
def test_the_procedure_is_that_of_the_source_where_it_can_be_written(
    codes: tuple[Code, ...], expected: list[str]
) -> None:
    report = parsed(content(image(study=replace(STUDY, procedure_codes=codes))))
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in items(report, "Procedure reported")] == expected


# The groups.


@pytest.mark.parametrize(
    ("decision", "label", "presence", "certainty"),
    [
        ("fracture", "fracture found", "Present", "83.1"),
        ("no_fracture", "no fracture found", "Absent", "3.1"),
        ("undetermined", "undetermined", "Undetermined", "41.0"),
    ],
)
def test_a_group_says_what_was_decided_how_surely_and_by_what(
    decision: Any, label: str, presence: str, certainty: str
) -> None:
    text = lines(content(image(decision=decision)))
    assert f"Tracking Identifier: Image 1 (AP, left): {label}" in text
    assert "Finding: Fracture of bone" in text
    assert f"Fracture of bone: {presence}" in text
    assert f"Certainty of Finding: {certainty} %" in text
    assert {"Finding Site: Wrist joint", "Laterality: Left"} <= set(text)
    assert {"Algorithm Name: osteon-fracture", "Algorithm Version: 1.0.0"} <= set(text)
    assert {"Algorithm Parameters: absent_below=0.2", "Algorithm Parameters: present_from=0.6"} <= set(text)
    assert f"Algorithm Parameters: bundle_sha256={'ab' * 32}" in text


def test_each_image_names_the_model_that_read_it() -> None:
    other = replace(content().algorithm, name="osteon-next", version="2.0.0")
    text = lines(content(image(), replace(image(2), algorithm=other)))
    assert [line for line in text if line.startswith(("Algorithm Name", "Algorithm Version"))] == [
        "Algorithm Name: osteon-fracture",
        "Algorithm Version: 1.0.0",
        "Algorithm Name: osteon-next",
        "Algorithm Version: 2.0.0",
    ]


def test_a_region_is_an_outline_on_its_own_image() -> None:
    group = groups(content(image(), image(2, region=REGION)))[1]
    region = items(group, "Image Region")[0]
    assert (region.ValueType, region.GraphicType) == ("SCOORD", "POLYLINE")
    assert region.GraphicData[:2] == region.GraphicData[-2:] == [310.5, 402.0]
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.2"
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"


@pytest.mark.parametrize("decision", ["no_fracture", "undetermined"])
def test_only_a_fracture_ever_carries_a_region(decision: Any) -> None:
    group = groups(content(image(decision=decision, region=REGION)))[0]
    assert items(group, "Image Region") == []
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert references(group) == {"1.2.3.4.1"}


@pytest.mark.parametrize("reason", Reason)
def test_an_image_that_was_not_analysed_has_its_reason_and_no_group(reason: Reason) -> None:
    report = content(image(), unread(2, reason))
    text = "\n".join(lines(report))
    assert text.count(f"Comment: Image 2 (LL, left): not analysed ({reason.value}). {reason.sentence}") == 2
    assert len(groups(report)) == 1
    assert "Absent" not in text


def test_an_object_that_is_no_image_is_named_but_not_as_an_image() -> None:
    report = parsed(VARIANTS["with a presentation state"])
    assert len(items(report, "Image Library Group")[0].ContentSequence) == 1
    comment = items(report, "Comment")[0]
    assert comment.ContentSequence[0].ValueType == "COMPOSITE"
    assert comment.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID == GSPS


def test_an_object_of_an_unknown_sop_class_is_no_image_either() -> None:
    report = parsed(content(image(), unread(2, Reason.OTHER_SOP_CLASS, sop_class_uid="1.2.999")))
    assert items(report, "Comment")[0].ContentSequence[0].ValueType == "COMPOSITE"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"body_part_examined": "EXTREMITY"}, ["Finding Site: Extremity", "Laterality: Left"]),
        ({"body_part_examined": "HAND", "laterality": "B"}, ["Finding Site: Hand", "Laterality: Bilateral"]),
        ({"body_part_examined": "PELVIS", "laterality": "U"}, ["Finding Site: Pelvis"]),
        ({"body_part_examined": "GREAT BONE"}, []),
        ({"anatomic_region": Code("7569003", "SCT", "Finger")}, ["Finding Site: Finger", "Laterality: Left"]),
    ],
)
def test_the_finding_site_is_what_the_source_says_and_never_a_guess(
    changes: dict[str, Any], expected: list[str]
) -> None:
    group = groups(content(image(**changes)))[0]
    site = [line for line in lines(content(image(**changes))) if line.startswith(("Finding Site", "Laterality"))]
    assert site == expected
    assert len(items(group, "Finding Site")) == min(1, len(expected))


@pytest.mark.parametrize(
    ("sides", "attribute", "expected"),
    [
        (Sides(image="R", series="R"), "R", "Right"),
        (Sides(series="L"), "L", "Left"),
        (Sides(region="R"), "", "Right"),
        (Sides(series_text="L"), "", "Left"),
        (Sides(study_text="R"), "", "Right"),
        (Sides(image="B", study_text="R"), "B", "Bilateral"),
        (Sides(series="B", region="R"), "B", "Bilateral"),
        (Sides(image="U", study_text="R"), "U", None),
        (Sides(image="L", study_text="R"), "L", None),
        (Sides(series_text="L", study_text="R"), "", None),
        (Sides(), "", None),
    ],
)
def test_the_side_is_that_of_the_image_else_of_the_series_else_of_the_study_and_none_where_they_differ(
    sides: Sides, attribute: str, expected: str | None
) -> None:
    report = content(image(sides=sides, laterality=attribute))
    told = [line for line in lines(report) if line.startswith(("Laterality: ", "Image Laterality: "))]
    assert told == ([] if expected is None else [f"Image Laterality: {expected}", f"Laterality: {expected}"])


def test_each_of_several_findings_has_its_group_and_its_line_in_the_impression() -> None:
    effusion = Code("112629002", "SCT", "Effusion of joint")
    both = (reading("no_fracture"), replace(reading("fracture"), code=effusion))
    report = content(ImageOutcome(header(), readings=both))
    assert len(groups(report)) == 2
    text = lines(report)
    assert "Tracking Identifier: Image 1 (AP, left): Effusion of joint: present" in text
    assert text.count("Fracture of bone: Absent") == 2
    assert text.count("Effusion of joint: Present") == 2


# The impression.


@pytest.mark.parametrize(
    ("images", "decision", "text"),
    [
        (
            [image(), unread(2, Reason.BLANK)],
            "fracture",
            "Fracture found on 1 of 2 images: image 1 (AP, left). Not analysed: 1 image.",
        ),
        (
            [image(decision="no_fracture"), image(2, "no_fracture")],
            "no_fracture",
            "No fracture found on 2 of 2 images.",
        ),
        (
            [image(decision="no_fracture"), image(2, "undetermined")],
            "undetermined",
            f"{UNDETERMINED} No fracture found: 1 image. Undetermined: 1 image.",
        ),
        (
            [image(decision="no_fracture"), unread(2, Reason.BLANK)],
            "undetermined",
            f"{UNDETERMINED} No fracture found: 1 image. Not analysed: 1 image.",
        ),
        (
            [image(decision="no_fracture"), unread(2, Reason.NOT_AN_IMAGE)],
            "no_fracture",
            "No fracture found on 1 of 1 image.",
        ),
        (
            [unread(1, Reason.NOT_AN_IMAGE)],
            "undetermined",
            UNDETERMINED,
        ),
    ],
)
def test_the_impression_sums_up_the_study(images: list[ImageOutcome], decision: str, text: str) -> None:
    found = impression(content(*images))
    assert found.decision == decision
    assert found.text == f"{text} {DISCLAIMER}."


def test_the_impression_speaks_of_each_finding_by_itself_and_says_where_it_is() -> None:
    found = impression(VARIANTS["several findings"])
    assert found.text == (
        "Fracture found on 1 of 2 images: image 1 (AP, left). Undetermined: 1 image. "
        f"Dislocation found on 1 of 2 images: image 2 (LL, left). Dislocation not found: 1 image. {DISCLAIMER}."
    )
    only = content(ImageOutcome(header(), readings=(reading("no_fracture"), replace(reading(), code=DISLOCATION))))
    assert impression(only).text == (
        f"No fracture found on 1 of 1 image. Dislocation found on 1 of 1 image: image 1 (AP, left). {DISCLAIMER}."
    )


def test_a_finding_that_an_image_was_not_read_for_is_never_absent_from_it() -> None:
    both = (reading("no_fracture"), replace(reading("no_fracture"), code=DISLOCATION))
    text = impression(content(ImageOutcome(header(), readings=both), image(2, "no_fracture"))).text
    assert "No fracture found on 2 of 2 images." in text
    assert "Undetermined: Dislocation is neither found nor excluded." in text
    assert "Dislocation not found: 1 image. Dislocation not looked for: 1 image." in text


def test_a_report_that_replaces_another_says_so_in_words() -> None:
    assert "This report replaces an earlier one." in impression(VARIANTS["superseding"]).text
    assert "replaces" not in impression(VARIANTS["absent"]).text


outcomes = st.sampled_from(["fracture", "no_fracture", "undetermined", *Reason])


@given(st.lists(outcomes, min_size=1, max_size=6))
def test_silence_is_never_no_fracture(found: list[Any]) -> None:
    images = [
        unread(number, outcome) if isinstance(outcome, Reason) else image(number, outcome)
        for number, outcome in enumerate(found, start=1)
    ]
    decision = impression(content(*images)).decision
    eligible = [outcome for outcome in found if outcome is not Reason.NOT_AN_IMAGE]
    assert (decision == "no_fracture") == (bool(eligible) and set(eligible) == {"no_fracture"})
    assert (decision == "fracture") == ("fracture" in eligible)


# Identity.


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_content_gives_the_same_bytes(name: str) -> None:
    report = VARIANTS[name]
    data = build_report(report)
    assert data == build_report(replace(report))
    uid = pydicom.dcmread(BytesIO(data)).SOPInstanceUID
    assert uid == render_report_uid(report)
    assert uid.startswith("2.25.")
    assert len(uid) <= 64


def test_the_memory_that_a_report_takes_is_that_of_its_file_a_few_times_over() -> None:
    report = content(*(image(number, region=REGION) for number in range(1, 101)))
    build_report(content(image()))
    tracemalloc.start()
    try:
        size = len(build_report(report))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * size


def test_every_variant_has_a_uid_of_its_own_as_either_kind() -> None:
    assert len({render_report_uid(report) for report in BOTH}) == len(BOTH)


def test_the_uid_does_not_change_from_release_to_release() -> None:
    # If one of these fails, what is rendered has changed: raise BUILDER_VERSION, and then put in the new values.
    report = VARIANTS["mixed"]
    assert render_report_uid(report) == "2.25.280508915614497902388185653034999599819"
    told = "\n".join(lines(report))
    digest = "20032be05774939efdc767b4bcc9d8ddaec30749a9a766bad81f0e4f6c17958e"
    assert hashlib.sha256(told.encode()).hexdigest() == digest


def test_neither_the_time_nor_the_order_of_the_rows_takes_part_in_the_uid() -> None:
    report = content(image(), image(2, "no_fracture"))
    later = replace(report, created_at=MADE + timedelta(days=1))
    turned = replace(report, images=report.images[::-1])
    assert render_report_uid(report) == render_report_uid(later) == render_report_uid(turned)
    assert build_report(report) == build_report(turned)


@pytest.mark.parametrize(
    "changes",
    [
        {"series_description": "other"},
        {"content_time": "1200"},
        {"number_of_frames": 1},
        {"contributing_equipment": (Equipment("A", "B"),)},
    ],
)
def test_what_is_not_rendered_brings_no_new_report(changes: dict[str, Any]) -> None:
    before, after = content(image()), content(image(**changes))
    assert render_report_uid(before) == render_report_uid(after)
    assert build_report(before) == build_report(after)


@pytest.mark.parametrize(
    "changed",
    [
        content(image(patient=replace(PATIENT, name="Doe^Janet"))),
        content(image(study=replace(STUDY, accession_number="A-78"))),
        content(image(laterality="R")),
        content(image(laterality="", sides=Sides(study_text="R"))),
        content(image(region=REGION)),
        content(image(rows=1761)),
        content(image(), predecessor=Predecessor("2.25.1", "2.25.2")),
        content(ImageOutcome(header(), readings=(replace(reading(), probability=0.8313),))),
        content(ImageOutcome(header(), readings=(replace(reading(), present_from=0.61),))),
        content(replace(image(), algorithm=replace(content().algorithm, version="2.0.0"))),
        replace(content(image()), series_number=9901),
        replace(content(image()), installation_uid="2.25.9"),
        replace(content(image()), device=Device(serial="6f2c1d0e", software_version="0.1.1")),
        replace(content(image()), algorithm=replace(content(image()).algorithm, version="1.0.1")),
    ],
)
def test_whatever_is_rendered_takes_part_in_the_uid(changed: ReportContent) -> None:
    assert render_report_uid(changed) != render_report_uid(content(image()))


def test_a_finding_keeps_its_tracking_uid_in_the_report_that_follows() -> None:
    uids = [
        items(parsed(report), "Tracking Unique Identifier")[0].UID
        for report in (content(image()), VARIANTS["superseding"], content(image(decision="undetermined")))
    ]
    assert len(set(uids)) == 1


def test_series_and_instance_never_share_a_uid() -> None:
    report = parsed(content(image()))
    tracking = items(report, "Tracking Unique Identifier")[0].UID
    assert len({report.SOPInstanceUID, report.SeriesInstanceUID, tracking}) == 3


@settings(max_examples=25, deadline=None)
@given(
    st.builds(Patient, name=st.text(max_size=70), id=st.text(max_size=70), issuer=st.text(max_size=70)),
    st.floats(0, 1),
)
def test_any_header_can_be_reported(patient: Patient, probability: float) -> None:
    outcome = FindingOutcome(probability, "undetermined", 0.0, 1.0)
    source = header(patient=patient)
    kept = SourceHeader.from_json(source.to_json())
    built = build_report(content(ImageOutcome(kept, readings=(outcome,))))
    assert pydicom.dcmread(BytesIO(built)).StudyInstanceUID == "1.2.3"


# What cannot be said.


def test_an_image_is_either_read_or_not() -> None:
    with pytest.raises(ValueError, match="never both"):
        ImageOutcome(header())
    with pytest.raises(ValueError, match="never both"):
        ImageOutcome(header(), readings=(reading(),), not_analysed=Reason.BLANK)


@pytest.mark.parametrize(
    "changes",
    [
        {"probability": 1.01},
        {"probability": float("nan")},
        {"absent_below": 0.7},
        {"decision": "maybe"},
        {"region": (5.0, 5.0, 5.0, 9.0)},
        {"region": (-1.0, 0.0, 5.0, 9.0)},
        {"region": (0.0, 0.0, float("inf"), 9.0)},
    ],
)
def test_a_reading_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not|above|none"):
        replace(reading(), **changes)


def test_a_region_beyond_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        image(region=(0.0, 0.0, 1501.0, 10.0))
    image(region=(0.0, 0.0, 1500.0, 1760.0))


def test_a_report_speaks_of_one_study_and_of_each_image_once() -> None:
    with pytest.raises(ValueError, match="exactly one study"):
        content(image(), image(2, study_instance_uid="1.2.9"))
    with pytest.raises(ValueError, match="exactly one study"):
        replace(content(image()), images=())
    with pytest.raises(ValueError, match="twice"):
        content(image(), image())


@pytest.mark.parametrize(
    "moment",
    [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))],
)
def test_the_time_must_be_utc(moment: datetime) -> None:
    with pytest.raises(ValueError, match="UTC"):
        replace(content(image()), created_at=moment)
    replace(content(image()), created_at=datetime(2026, 1, 1, tzinfo=UTC))


# Our own objects, and the tree in words.


def test_only_both_marks_together_make_an_object_our_own() -> None:
    ours = (Equipment("Osteon", "Osteon"),)
    assert is_own_object(header(sop_instance_uid="2.25.1", contributing_equipment=ours))
    assert not is_own_object(header(sop_instance_uid="1.2.1", contributing_equipment=ours))
    assert not is_own_object(header(sop_instance_uid="2.25.1"))
    assert not is_own_object(header(sop_instance_uid="2.25.1", contributing_equipment=(Equipment("Osteon", "X"),)))


def test_the_tree_is_told_in_words_with_depths_and_without_the_patient() -> None:
    tree = render_tree(build_report(content(image(region=REGION))))
    assert tree[0] == (0, "Imaging Measurement Report")
    assert (3, "Certainty of Finding: 83.1 %") in tree
    assert (4, "Laterality: Left") in tree
    assert (4, "Pixel Data Rows: 1760 pixels") in tree
    assert (4, "Study Date: 2026-03-29") in tree
    assert (
        3,
        "Image Region: polyline (310.5, 402) (420.25, 402) (420.25, 533) (310.5, 533) (310.5, 402)",
    ) in tree
    assert not any("Jane" in line or "PID-1" in line for _, line in tree)


@pytest.mark.parametrize("data", [b"", b"Doe^Jane"])
def test_what_is_no_report_has_no_tree(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a DICOM file"):
        render_tree(data)
