"""Content items in bytes: what pydicom would have written, whatever is in them."""

from __future__ import annotations

import struct
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.objects import items
from dicom_node.objects.report import build_report
from tests.reports import variants

NAME, UNIT = Code("121106", "DCM", "Comment"), Code("%", "UCUM", "Percent")
PREAMBLE = b"\0" * 128 + b"DICM"


def parsed(*encoded: bytes) -> Dataset:
    """The items as pydicom reads them; written by it again, they are the same bytes."""
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    data = PREAMBLE + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta
    character_set = struct.pack("<HH2sH", 8, 5, b"CS", 10) + b"ISO_IR 192"
    body = character_set + items.content_sequence(encoded)
    found = pydicom.dcmread(BytesIO(data + body))
    again = BytesIO()
    pydicom.dcmwrite(again, found, implicit_vr=False, little_endian=True)
    assert again.getvalue().endswith(body)
    return found


@pytest.mark.parametrize("kind", ["comprehensive_3d", "comprehensive"])
@pytest.mark.parametrize("name", variants())
def test_every_report_has_the_bytes_that_pydicom_would_write(name: str, kind: str) -> None:
    data = build_report(variants(kind)[name])  # type: ignore[arg-type]
    again = BytesIO()
    pydicom.dcmread(BytesIO(data)).save_as(again, enforce_file_format=True)
    assert again.getvalue() == data


texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=80).map(str.strip).filter(bool)


@settings(deadline=None)
@given(texts, st.from_regex(r"[A-Z0-9]{1,24}", fullmatch=True), st.integers(0, 2**31 - 1), st.floats(0, 100))
def test_any_value_comes_back_as_it_was_put_in(text: str, value: str, whole: int, share: float) -> None:
    coded = Code(value, "99TEST", "Ménisque")
    rounded = round(share, 1)
    found = parsed(
        items.text(NAME, text, items.CONTAINS, items.uid(NAME, "1.2.3", items.HAS_OBS_CONTEXT)),
        items.code(coded, coded, items.HAS_CONCEPT_MOD),
        items.number(NAME, whole, UNIT, items.CONTAINS),
        items.number(NAME, rounded, UNIT, items.CONTAINS),
        items.container(NAME, items.date(NAME, "20260329", items.HAS_ACQ_CONTEXT), template="1501"),
    ).ContentSequence
    assert found[0].TextValue == text
    assert found[0].ContentSequence[0].UID == "1.2.3"
    code = found[1].ConceptCodeSequence[0]
    assert (code.get("CodeValue") if len(value) <= 16 else code.get("LongCodeValue")) == value
    assert found[2].MeasuredValueSequence[0].NumericValue == whole
    assert "FloatingPointValue" not in found[2].MeasuredValueSequence[0]
    measured = found[3].MeasuredValueSequence[0]
    assert float(measured.NumericValue) == measured.FloatingPointValue == rounded
    assert found[4].ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert found[4].ContentSequence[0].Date == "20260329"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 65536, width=32), st.floats(0, 65536, width=32)), min_size=1, max_size=9))
def test_an_outline_comes_back_to_the_last_bit_with_its_image(points: list[tuple[float, float]]) -> None:
    image = items.reference(NAME, "IMAGE", "1.2.840.10008.5.1.4.1.1.1", "1.2.3", items.SELECTED_FROM)
    (found,) = parsed(items.polyline(NAME, points, items.CONTAINS, image)).ContentSequence
    flat = [coordinate for point in points for coordinate in point]
    assert list(found.GraphicData) == flat
    assert found.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3"


def test_two_codes_of_one_value_keep_each_its_meaning() -> None:
    one, other = Code("W", "99TEST", "Wrist"), Code("W", "99TEST", "Handgelenk")
    assert one == other
    found = parsed(*(items.code(NAME, code, items.CONTAINS) for code in (one, other))).ContentSequence
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in found] == ["Wrist", "Handgelenk"]


def test_a_container_without_children_has_no_content_sequence() -> None:
    (found,) = parsed(items.container(NAME)).ContentSequence
    assert "ContentSequence" not in found
