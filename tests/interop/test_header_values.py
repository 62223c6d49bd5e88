"""Whatever stands in an image's header, the report is one that others find no error in, and says nothing of its own.

What was sent is either in the report as it was, or empty. Only what is a text, and breaks no more than a rule of its
length or of how many there may be, is passed on all the same: the PACS has the images under it, and matches by it.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.headers import quiet, read_header_file
from dicom_node.objects.content import ImageOutcome
from dicom_node.objects.report import build_report
from dicom_node.objects.template import check_report
from tests.interop import judges
from tests.part10 import part10
from tests.reports import content, reading

TEXTS = ("PatientName", "PatientID", "IssuerOfPatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")
TEXTS += ("StudyDescription",)
TYPE_2 = (*TEXTS[:2], "PatientBirthDate", "PatientSex", *TEXTS[3:6], "StudyDate", "StudyTime")
OTHERS = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "Modality"),
    *("ImageLaterality", "Laterality", "BodyPartExamined", "ViewPosition", "SeriesNumber", "InstanceNumber"),
    *("Rows", "Columns", "PatientAge"),
)
WRONG = {
    "empty": b"",
    "spaces": b"    ",
    "nulls": b"\0\0\0\0",
    "control characters": b"A\x07\x1b\x0c\r\nB",
    "too long": b"X" * 200,
    "several": b"ONE\\TWO",
    "half a character": b"\xe3\x81",
    "bytes": bytes(range(128, 256)),
    "no date": b"20261332",
    "a date with dots": b"2026.01.31",
    "no time": b"256161",
    "words": b"N/A (unknown)",
    "only delimiters": b"^^^=^^^=",
    "another case": b"m",
    "one letter": b"U",
    "a number": b"-1",
    "a huge number": b"99999999999999999999",
    "quotes": b"\"';--<&>",
}
# What is said of a value that is the source's own; whatever is said of anything else is not let pass.
_OF_THE_SOURCE = re.compile(
    r"Error - Value invalid for this VR - .* - (Length invalid for this VR|Character invalid for this VR)"
    r"|Error - Dicom dataset contains invalid data values for Value Representations"
    r"|Error - .*[Vv]alue [Mm]ultiplicity"
    r"|W: \w+ \([0-9a-f]{4},[0-9a-f]{4}\) VM != 1 in "
)


def report(values: dict[str, bytes]) -> bytes:
    header = read_header_file(part10(values))
    return build_report(content(ImageOutcome(header, readings=(reading(),))))


def errors(data: bytes, folder: Path) -> list[str]:
    path = folder / "report.dcm"
    path.write_bytes(data)
    return judges.dicom3tools(path) + judges.dcmtk(path)


def said(found: Dataset, keyword: str) -> str:
    value = found.get(keyword, "")
    parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return "\\".join(str(part) for part in parts) if value else ""


@pytest.mark.parametrize("keyword", [*TEXTS, *OTHERS])
def test_no_value_of_an_attribute_breaks_the_report(keyword: str, tmp_path: Path) -> None:
    judged = set()
    for name, raw in WRONG.items():
        data = report({keyword: raw})
        if data in judged:
            continue
        judged.add(data)
        assert check_report(data) == [], name
        left = [line for line in errors(data, tmp_path) if keyword not in TEXTS or not _OF_THE_SOURCE.match(line)]
        assert left == [], name


def test_an_image_that_tells_nothing_at_all_has_a_valid_report(tmp_path: Path) -> None:
    data = report({})
    assert errors(data, tmp_path) == []
    found = pydicom.dcmread(BytesIO(data))
    for keyword in TYPE_2:
        assert keyword in found
        assert not found[keyword].value


@pytest.mark.parametrize("keyword", TYPE_2)
def test_what_cannot_be_a_value_is_empty_and_what_can_is_as_it_was_sent(keyword: str) -> None:
    for name, raw in WRONG.items():
        data = report({keyword: raw})
        with quiet():
            value = said(pydicom.dcmread(BytesIO(data)), keyword)
        sent = raw.decode("utf-8", "replace")
        cleaned = re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd]+", "", sent)
        allowed = {"", cleaned.strip(), cleaned.strip().rstrip("="), sent.replace(".", ""), sent.upper()}
        if name not in ("bytes", "half a character"):
            assert value in allowed, (name, value)
        assert "\ufffd" not in value
