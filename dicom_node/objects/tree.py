"""A Structured Report's content tree as lines that a person can read, for the demo and the web console."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID


def render_tree(report: bytes) -> list[tuple[int, str]]:
    """Read the content tree from top to bottom as (depth, line), as in (2, "Certainty of Finding: 83.1 %").

    The root has depth 0. The lines hold the report's text, but nothing of its header: no name, no patient ID.

    Raises
    ------
    ValueError
        If the bytes are not a Structured Report.
    """
    try:
        root = pydicom.dcmread(BytesIO(report))
    except Exception:  # pydicom has no common class for what malformed bytes can bring about
        raise ValueError("the bytes are not a DICOM file") from None
    if "ValueType" not in root:
        raise ValueError("the object has no content tree")
    return list(_lines(root, 0))


def _lines(item: Dataset, depth: int) -> Iterator[tuple[int, str]]:
    name, value = _name(item), _value(item)
    yield depth, f"{name}: {value}" if name and value else name or value
    for child in item.get("ContentSequence", ()):
        yield from _lines(child, depth + 1)


def _name(item: Dataset) -> str:
    return _meaning(item, "ConceptNameCodeSequence")


def _meaning(item: Dataset, keyword: str) -> str:
    sequence = item.get(keyword)
    return str(sequence[0].get("CodeMeaning", "")) if sequence else ""


def _value(item: Dataset) -> str:
    """Render by Value Type (PS3.3, C.17.3.2.1); a container has no value of its own."""
    kind = item.get("ValueType", "")
    if kind == "CODE":
        return _meaning(item, "ConceptCodeSequence")
    if kind == "NUM":
        return _number(item)
    if kind == "DATE":
        text = str(item.get("Date", ""))
        return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 else text
    if kind in {"IMAGE", "COMPOSITE"}:
        referenced = item.ReferencedSOPSequence[0]
        return f"{UID(referenced.ReferencedSOPClassUID).name} {referenced.ReferencedSOPInstanceUID}"
    if kind == "SCOORD":
        return _coordinates(item)
    keyword = {"TEXT": "TextValue", "UIDREF": "UID", "PNAME": "PersonName", "TIME": "Time", "DATETIME": "DateTime"}
    return str(item.get(keyword[kind], "")) if kind in keyword else ""


def _number(item: Dataset) -> str:
    if not item.get("MeasuredValueSequence"):
        return "no value"
    measured = item.MeasuredValueSequence[0]
    unit = measured.MeasurementUnitsCodeSequence[0]
    return f"{measured.NumericValue} {'%' if unit.CodeValue == '%' else unit.CodeMeaning.lower()}"


def _coordinates(item: Dataset) -> str:
    numbers = [f"{number:g}" for number in item.GraphicData]
    points = [f"({x}, {y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    return f"{str(item.GraphicType).lower()} {' '.join(points)}"
