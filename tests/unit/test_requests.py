"""Orders and accession numbers: from the images' headers, all together, to the report."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.headers import Code, Request, SourceHeader, read_header
from dicom_node.objects.content import ImageOutcome, ReportContent
from dicom_node.objects.report import build_report, render_report_uid
from dicom_node.objects.requests import orders, under
from dicom_node.objects.template import check_report
from tests.reports import STUDY, content, header, reading

WRIST, HAND = Code("W", "99L", "Wrist"), Code("H", "99L", "Hand")
FIRST = Request("A-1", procedure_id="P1", description="Wrist, two views", procedure_code=WRIST, placer_order="O1")
SECOND = Request("A-2", "1.2.7", procedure_id="P2", filler_order="F2")


def source(number: int = 1, accession: str = "", *requests: Request, codes: tuple[Code, ...] = ()) -> SourceHeader:
    study = replace(STUDY, accession_number=accession, procedure_codes=codes)
    return header(number, study=study, requests=requests)


def report(*headers: SourceHeader) -> ReportContent:
    return content(*(ImageOutcome(one, readings=(reading("no_fracture"),)) for one in headers))


def parsed(*headers: SourceHeader) -> Dataset:
    data = build_report(report(*headers))
    assert check_report(data) == []
    return pydicom.dcmread(BytesIO(data))


def test_a_study_of_one_order_has_its_accession_number_at_the_root_and_in_the_request() -> None:
    found = parsed(source(1, "A-1", FIRST), source(2, "A-1", replace(FIRST, accession_number="")))
    assert found.AccessionNumber == "A-1"
    (item,) = found.ReferencedRequestSequence
    assert (item.AccessionNumber, item.RequestedProcedureID, item.StudyInstanceUID) == ("A-1", "P1", "1.2.3")
    assert item.RequestedProcedureDescription == "Wrist, two views"
    assert item.RequestedProcedureCodeSequence[0].CodeMeaning == "Wrist"
    assert item.PlacerOrderNumberImagingServiceRequest == "O1"


def test_what_a_request_does_not_tell_is_empty_and_present() -> None:
    (item,) = parsed(source(1, "", Request(procedure_id="P1"))).ReferencedRequestSequence
    for keyword in (
        *("AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
        *("RequestedProcedureDescription", "RequestedProcedureCodeSequence", "ReferencedStudySequence"),
    ):
        assert keyword in item
        assert not item[keyword].value


def test_a_study_without_a_request_names_none() -> None:
    found = parsed(source(1, "A-1"))
    assert found.AccessionNumber == "A-1"
    assert "ReferencedRequestSequence" not in found


@pytest.mark.parametrize(
    "headers",
    [
        (source(1, "A-1", FIRST), source(2, "A-2", SECOND)),
        (source(1, "", FIRST, SECOND),),
        (source(1, "A-1", FIRST, SECOND),),
        (source(1, "A-1"), source(2, "A-2")),
        (source(1, "A-1", SECOND),),
    ],
)
def test_several_accession_numbers_stand_in_the_requests_and_none_at_the_root(headers: tuple[SourceHeader]) -> None:
    found = parsed(*headers)
    assert "AccessionNumber" in found
    assert found.AccessionNumber == ""
    assert {item.AccessionNumber for item in found.ReferencedRequestSequence} == {"A-1", "A-2"}


def test_an_image_without_an_accession_number_does_not_take_away_that_of_the_others() -> None:
    found = orders([source(1), source(2, "A-1", Request(procedure_id="P1")), source(3, "", Request(procedure_id="P3"))])
    assert found.accession_number == "A-1"
    assert [request.accession_number for request in found.requests] == ["A-1", "A-1"]


def test_a_request_stands_once_with_all_that_the_images_say_of_it() -> None:
    bare = Request("A-1", procedure_id="P1")
    found = orders([source(1, "", bare), source(2, "", FIRST), source(3, "", bare)])
    assert found.requests == (replace(FIRST, study_instance_uid="1.2.3"),)


def test_requests_without_an_id_are_kept_apart_unless_they_are_equal() -> None:
    one, other = Request("A-1", description="Wrist"), Request("A-1", description="Hand")
    assert len(orders([source(1, "", one, other), source(2, "", one)]).requests) == 2


def test_the_study_of_a_request_is_its_own_where_it_names_one() -> None:
    assert [one.study_instance_uid for one in orders([source(1, "", FIRST, SECOND)]).requests] == ["1.2.3", "1.2.7"]


def test_the_procedures_reported_are_those_of_all_images_and_those_asked_for_where_an_image_tells_none() -> None:
    found = parsed(
        source(1, codes=(WRIST,)),
        source(2, "", replace(FIRST, procedure_code=Code("N", "99L", "Not made"))),
        source(3, "", replace(FIRST, procedure_code=Code("X", "99L", "Not told")), codes=(WRIST, HAND)),
    )
    procedures = [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in found.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121058"
    ]
    assert procedures == ["Wrist", "Not made", "Hand"]


@pytest.mark.parametrize(
    "changed",
    [
        source(1, "A-2", FIRST),
        source(1, "A-1", replace(FIRST, procedure_id="P3")),
        source(1, "A-1", replace(FIRST, description="Hand")),
        source(1, "A-1", FIRST, SECOND),
        source(1, "A-1", FIRST, codes=(HAND,)),
    ],
)
def test_what_is_rendered_of_the_orders_takes_part_in_the_uid(changed: SourceHeader) -> None:
    assert render_report_uid(report(changed)) != render_report_uid(report(source(1, "A-1", FIRST)))


def test_a_corrected_accession_number_is_that_of_the_requests_too_that_had_the_old_one() -> None:
    corrected = under(source(1, "A-1", FIRST, SECOND, Request(procedure_id="P3")), "A-9")
    assert corrected.study.accession_number == "A-9"
    assert [request.accession_number for request in corrected.requests] == ["A-9", "A-2", ""]
    assert under(source(1, "", Request(procedure_id="P3")), "A-9").requests == (Request(procedure_id="P3"),)


def test_the_request_attributes_of_a_header_are_kept_and_come_back_from_its_json() -> None:
    dataset = instance()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.RequestAttributesSequence = [item("P1"), item("P1"), Dataset(), item("P2")]
    kept = read_header(dataset)
    assert [request.procedure_id for request in kept.requests] == ["P1", "P2"]
    assert kept.requests[0] == Request("A-1", "1.2.7", "P1", "Genou à face", Code("G", "99L", "Genou"), "O1", "F1")
    assert SourceHeader.from_json(kept.to_json()) == kept


def test_a_header_that_was_kept_before_there_were_requests_has_none() -> None:
    old = header().to_json().replace(',"requests":[]', "")
    assert "requests" not in old
    assert SourceHeader.from_json(old) == header()


def test_a_request_of_another_study_that_is_no_uid_belongs_to_this_one() -> None:
    dataset = instance()
    dataset.RequestAttributesSequence = [item("P1")]
    dataset.RequestAttributesSequence[0].StudyInstanceUID = ""
    assert orders([read_header(dataset)]).requests[0].study_instance_uid == dataset.StudyInstanceUID


def instance() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.3"
    return dataset


def item(procedure_id: str) -> Dataset:
    made, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "G", "99L", "Genou"
    made.AccessionNumber, made.StudyInstanceUID, made.RequestedProcedureID = "A-1", "1.2.7", procedure_id
    made.RequestedProcedureDescription, made.RequestedProcedureCodeSequence = "Genou à face", [code]
    made.PlacerOrderNumberImagingServiceRequest, made.FillerOrderNumberImagingServiceRequest = "O1", "F1"
    return made
