"""Key object selections: a flag on what was found, and a rejection note on what was superseded."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.headers import Patient, read_header
from dicom_node.objects.content import Predecessor
from dicom_node.objects.key_objects import (
    KeyObject,
    KeyObjectContent,
    build_key_objects,
    render_key_objects_series_uid,
    render_key_objects_uid,
)
from dicom_node.objects.recognise import is_own_object
from tests.companions import selection
from tests.reports import BARE, header


def built(content: KeyObjectContent) -> Dataset:
    return pydicom.dcmread(BytesIO(build_key_objects(content)))


def references(document: Dataset) -> list[tuple[str, str]]:
    return [
        (item.ValueType, item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in document.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    ]


def evidence(document: Dataset) -> list[tuple[str, str]]:
    [study] = document.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == document.StudyInstanceUID
    return [
        (series.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def description(document: Dataset) -> str:
    [text] = [
        item.TextValue for item in document.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "113012"
    ]
    return str(text)


def test_a_flag_names_the_images_with_a_fracture() -> None:
    document = built(selection())
    title = document.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning) == ("113000", "DCM", "Of Interest")
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    assert document.Modality == "KO"
    assert references(document) == [("IMAGE", "1.2.3.4.1"), ("IMAGE", "1.2.3.4.2")]
    assert evidence(document) == [("1.2.3.3", "1.2.3.4.1"), ("1.2.3.3", "1.2.3.4.2")]
    assert description(document) == (
        "Fracture found on 2 images by osteon-fracture 1.0.0. AI result, not for primary diagnosis."
    )


def test_one_image_is_one_image() -> None:
    assert description(built(selection("of_interest", KeyObject.of(header())))).startswith(
        "Fracture found on 1 image by"
    )


def test_a_rejection_note_names_what_was_superseded_each_in_its_series() -> None:
    document = built(selection("rejected"))
    title = document.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodeMeaning) == ("113037", "Rejected for Patient Safety Reasons")
    assert sorted(references(document)) == [
        ("COMPOSITE", "2.25.1"),
        ("COMPOSITE", "2.25.4"),
        ("COMPOSITE", "2.25.5"),
        ("IMAGE", "2.25.2"),
        ("IMAGE", "2.25.3"),
    ]
    assert sorted(evidence(document)) == [
        ("2.25.10", "2.25.1"),
        ("2.25.20", "2.25.2"),
        ("2.25.20", "2.25.3"),
        ("2.25.40", "2.25.4"),
        ("2.25.50", "2.25.5"),
    ]
    assert len(document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence) == 4
    assert "no longer valid" in description(document)


@pytest.mark.parametrize("use", ["of_interest", "rejected"])
def test_the_device_speaks_and_not_a_person(use: Any) -> None:
    items = {
        item.ConceptNameCodeSequence[0].CodeValue: item
        for item in built(selection(use)).ContentSequence
        if item.RelationshipType == "HAS OBS CONTEXT"
    }
    assert items["121005"].ConceptCodeSequence[0].CodeValue == "121007"
    assert selection().installation_uid == items["121012"].UID


@pytest.mark.parametrize("use", ["of_interest", "rejected"])
@pytest.mark.parametrize("changes", [{}, BARE, {"timezone_offset": "+0100"}])
def test_it_is_known_again_when_it_comes_back(use: Any, changes: dict[str, Any]) -> None:
    assert is_own_object(read_header(built(selection(use, header=header(**changes)))))


def test_equal_content_gives_equal_bytes_in_whatever_order_the_objects_come() -> None:
    content = selection("rejected")
    assert build_key_objects(content) == build_key_objects(selection("rejected", *reversed(content.objects)))


def test_its_uids_do_not_know_the_time() -> None:
    content = selection()
    later = replace(content, created_at=content.created_at + timedelta(days=3))
    document = built(later)
    assert render_key_objects_uid(content) == document.SOPInstanceUID
    assert render_key_objects_series_uid(content) == document.SeriesInstanceUID


def test_a_change_of_what_is_said_gives_a_new_uid() -> None:
    base = selection()
    others = [
        selection("rejected", *base.objects),
        selection("of_interest", KeyObject.of(header(1))),
        selection(header=header(patient=Patient(name="Roe^Richard"))),
        *(
            replace(base, **{name: value})
            for name, value in {
                "installation_uid": "2.25.9",
                "device": replace(base.device, software_version="9"),
                "algorithm": replace(base.algorithm, version="9"),
                "series_number": 9,
                "series_description": "nine",
                "predecessor": Predecessor("2.25.9", "2.25.8"),
            }.items()
        ),
    ]
    assert len({render_key_objects_uid(content) for content in [base, *others]}) == 1 + len(others)
    assert len({render_key_objects_series_uid(content) for content in [base, *others]}) == 1 + len(others)


def test_the_uid_of_one_content_is_what_it_was() -> None:
    """If this fails, what is rendered has changed: raise BUILDER_VERSION, and then this number."""
    assert render_key_objects_uid(selection()) == "2.25.327592077179470377723267031343406920698"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"installation_uid": "x"}, "UID"),
        ({"objects": (KeyObject("1.2", "no uid", "1.3"),)}, "UID"),
        ({"created_at": selection().created_at.replace(tzinfo=None)}, "UTC"),
        ({"objects": ()}, "at least one"),
        ({"objects": (KeyObject("1.2", "1.3", "1.4"), KeyObject("1.2", "1.3", "1.5"))}, "twice"),
        ({"use": "for_fun"}, "none of the two"),
    ],
)
def test_content_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(selection(), **changes)
