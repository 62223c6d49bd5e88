"""The report as others read it back: highdicom, value by value, and DCMTK's dsr2xml, item by item."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.objects import anatomy
from dicom_node.objects.content import FindingOutcome, ImageOutcome, ReportContent
from dicom_node.objects.report import build_report
from tests.interop import judges
from tests.peers import require_peer
from tests.reports import variants

CASES = {
    f"{name}, {kind}": report
    for kind in ("comprehensive_3d", "comprehensive")
    for name, report in variants(kind).items()  # type: ignore[arg-type]
    if kind == "comprehensive_3d" or not name.startswith(("name: ", "not analysed: "))
}
every_case = pytest.mark.parametrize("case", CASES)
PRESENCE = {"fracture": "52101004", "no_fracture": "272519000", "undetermined": "373068000"}


def written(case: str, folder: Path) -> Path:
    path = folder / "report.dcm"
    path.write_bytes(build_report(CASES[case]))
    return path


def told(report: ReportContent) -> list[tuple[ImageOutcome, FindingOutcome]]:
    return [(image, reading) for image in report.images for reading in image.readings]


# highdicom.


@every_case
def test_highdicom_reads_back_every_group_with_all_that_was_said(case: str, tmp_path: Path) -> None:
    report = CASES[case]
    measurements = hd.sr.srread(written(case, tmp_path)).content
    if not told(report):  # highdicom 0.28 wants at least one group
        (container,) = (item for item in measurements[0].ContentSequence if item.name.value == "126010")
        assert "ContentSequence" not in container
        return
    with_region = measurements.get_planar_roi_measurement_groups()
    without = measurements.get_image_measurement_groups()
    expected = {
        shown: [(image, reading) for image, reading in told(report) if has_region(reading) is shown]
        for shown in (True, False)
    }
    assert (len(with_region), len(without)) == (len(expected[True]), len(expected[False]))
    for group, (image, reading) in zip(with_region, expected[True], strict=True):
        says_the_same(group, report, image, reading)
        assert np.array_equal(group.roi.value, outline(reading))
        assert group.reference_type.value == "111030"
        source = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == image.header.sop_instance_uid
    for group, (image, reading) in zip(without, expected[False], strict=True):
        says_the_same(group, report, image, reading)
        (source,) = group.source_images
        assert source.referenced_sop_instance_uid == image.header.sop_instance_uid


def says_the_same(
    group: hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations,
    report: ReportContent,
    image: ImageOutcome,
    reading: FindingOutcome,
) -> None:
    algorithm = image.algorithm or report.algorithm
    assert group.finding_type.value == reading.code.value
    assert group.tracking_identifier.startswith("Image ")
    assert group.tracking_uid.startswith("2.25.")
    region, side = anatomy.anatomic_region(image.header), anatomy.laterality(image.header)
    assert [site.value.value for site in group.finding_sites] == ([] if region is None else [region.value])
    for site in group.finding_sites:
        assert (None if site.laterality is None else site.laterality.value) == (side and side.value)
    (certainty,) = group.get_measurements()
    assert (certainty.name.value, certainty.unit.value) == ("111012", "%")
    assert certainty.value == round(100 * reading.probability, 1)
    (evaluation,) = group.get_qualitative_evaluations()
    assert (evaluation.name.value, evaluation.value.value) == (reading.code.value, PRESENCE[reading.decision])
    items = {item.name.value: item for item in group[0].ContentSequence if item.name.value.startswith(("111", "1224"))}
    assert (items["111001"].value, items["111003"].value) == (algorithm.name, algorithm.version)
    assert items["122405"].value == algorithm.manufacturer
    parameters = [item.value for item in group[0].ContentSequence if item.name.value == "111002"]
    assert parameters == [
        f"absent_below={reading.absent_below:g}",
        f"present_from={reading.present_from:g}",
        f"bundle_sha256={algorithm.bundle_sha256}",
    ]


def has_region(reading: FindingOutcome) -> bool:
    return reading.decision == "fracture" and reading.region is not None


def outline(reading: FindingOutcome) -> np.ndarray:
    assert reading.region is not None
    xmin, ymin, xmax, ymax = reading.region
    return np.array([(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)], dtype=np.float32)


@every_case
def test_highdicom_finds_the_evidence_that_is_the_study(case: str, tmp_path: Path) -> None:
    evidence = hd.sr.srread(written(case, tmp_path)).get_evidence()
    assert [(str(study), str(instance)) for study, _, instance, _ in evidence] == [
        (image.header.study_instance_uid, image.header.sop_instance_uid) for image in CASES[case].images
    ]


# DCMTK.

VALUES = {
    "code": lambda item: ("code", _code(item.ConceptCodeSequence[0])),
    "text": lambda item: ("text", str(item.TextValue)),
    "uidref": lambda item: ("uidref", str(item.UID)),
    "date": lambda item: ("date", f"{item.Date[:4]}-{item.Date[4:6]}-{item.Date[6:]}"),
    "num": lambda item: (
        "num",
        str(item.MeasuredValueSequence[0].NumericValue.original_string),
        _code(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]),
    ),
    "image": lambda item: _reference("image", item),
    "composite": lambda item: _reference("composite", item),
    "scoord": lambda item: ("scoord", str(item.GraphicType), [round(float(number), 3) for number in item.GraphicData]),
    "container": lambda _: ("container",),
}


def _code(code: Dataset) -> tuple[str, str, str]:
    return str(code.CodeValue), str(code.CodingSchemeDesignator), str(code.CodeMeaning)


def _reference(kind: str, item: Dataset) -> tuple[str, str, str]:
    reference = item.ReferencedSOPSequence[0]
    return kind, str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)


def by_pydicom(item: Dataset) -> Iterator[tuple[object, ...]]:
    for child in item.get("ContentSequence", ()):
        yield (
            str(child.RelationshipType),
            _code(child.ConceptNameCodeSequence[0]),
            VALUES[str(child.ValueType).lower()](child),
        )
        yield from by_pydicom(child)


def by_dcmtk(item: ET.Element) -> Iterator[tuple[object, ...]]:
    for child in item:
        if child.tag in VALUES:
            yield text(child, "relationship"), _xml_code(need(child, "concept")), _xml_value(child)
            yield from by_dcmtk(child)


def _xml_code(element: ET.Element) -> tuple[str, str, str]:
    return text(element, "value"), text(element, "scheme/designator"), text(element, "meaning")


def _xml_value(item: ET.Element) -> tuple[object, ...]:
    if item.tag == "container":
        return ("container",)
    if item.tag == "code":
        return "code", _xml_code(item)
    if item.tag == "num":
        return "num", text(item, "value"), _xml_code(need(item, "unit"))
    if item.tag in ("image", "composite"):
        value = need(item, "value")
        return item.tag, need(value, "sopclass").get("uid"), need(value, "instance").get("uid")
    if item.tag == "scoord":
        numbers = [round(float(number), 3) for pair in text(item, "data").split(",") for number in pair.split("/")]
        return "scoord", item.get("type"), numbers
    return item.tag, text(item, "value")


def need(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    assert found is not None, path
    return found


def text(element: ET.Element, path: str) -> str:
    return need(element, path).text or ""


@every_case
def test_dcmtk_translates_every_item_to_xml_with_its_value(case: str, tmp_path: Path) -> None:
    path = written(case, tmp_path)
    xml = tmp_path / "report.xml"
    assert [line for line in judges.run(require_peer("dsr2xml"), path, xml) if line.startswith(("E:", "F:"))] == []
    root = ET.parse(xml).getroot()  # noqa: S314 (DCMTK wrote it)
    document = pydicom.dcmread(BytesIO(build_report(CASES[case])))
    assert list(by_dcmtk(need(root, "document/content/container"))) == list(by_pydicom(document))
    assert need(root, "instance").get("uid") == document.SOPInstanceUID
    assert need(root, "sopclass").get("uid") == document.SOPClassUID
    patient = CASES[case].images[0].header.patient
    for place, value in {"id": patient.id, "sex": patient.sex, "issuer": patient.issuer}.items():
        found = root.find(f"patient/{place}")
        assert ("" if found is None else found.text or "") == value
    evidence = [element.get("uid") for element in root.findall("evidence/study/series/value/instance")]
    assert evidence == [image.header.sop_instance_uid for image in CASES[case].images]
