"""Content items of a Structured Report (PS3.3, C.17.3), encoded as they are made: explicit VR little endian, in UTF-8.

An item is the bytes of its attributes, with all its children in it, so that a tree takes the memory of its file a few
times over. highdicom's items and pydicom's writer take eight times as long and eight times the memory (decision 18).
The tests compare every tree with what pydicom writes, and read it back with highdicom.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pydicom.datadict import tag_for_keyword
from pydicom.sr.coding import Code

CONTAINS = "CONTAINS"
HAS_OBS_CONTEXT = "HAS OBS CONTEXT"
HAS_CONCEPT_MOD = "HAS CONCEPT MOD"
HAS_ACQ_CONTEXT = "HAS ACQ CONTEXT"
INFERRED_FROM = "INFERRED FROM"
SELECTED_FROM = "SELECTED FROM"


def container(name: Code, *children: bytes, template: str | None = None) -> bytes:
    """A CONTAINER, in a CONTAINER."""
    used = _sequence("ContentTemplateSequence", _template(template)) if template else b""
    own = _element("ContinuityOfContent", "CS", b"CONTINUOUS") + used
    return _item("CONTAINER", name, CONTAINS, own, children)


def code(name: Code, value: Code, relationship: str, *children: bytes) -> bytes:
    """A CODE."""
    return _item("CODE", name, relationship, _sequence("ConceptCodeSequence", _coded(value)), children)


def text(name: Code, value: str, relationship: str, *children: bytes) -> bytes:
    """A TEXT."""
    return _item("TEXT", name, relationship, _element("TextValue", "UT", value.encode()), children)


def uid(name: Code, value: str, relationship: str) -> bytes:
    """A UIDREF."""
    return _item("UIDREF", name, relationship, _element("UID", "UI", value.encode()), ())


def date(name: Code, value: str, relationship: str) -> bytes:
    """A DATE, as YYYYMMDD."""
    return _item("DATE", name, relationship, _element("Date", "DA", value.encode()), ())


def number(name: Code, value: float, unit: Code, relationship: str) -> bytes:
    """A NUM; what is no whole number stands there as a double too (PS3.3, C.18.1)."""
    measured = _sequence("MeasurementUnitsCodeSequence", _coded(unit))
    if isinstance(value, float):
        measured += _element("FloatingPointValue", "FD", struct.pack("<d", value))
    measured += _element("NumericValue", "DS", str(value).encode())
    return _item("NUM", name, relationship, _sequence("MeasuredValueSequence", measured), ())


def reference(
    name: Code, value_type: str, sop_class_uid: str, sop_instance_uid: str, relationship: str, *children: bytes
) -> bytes:
    """An IMAGE, or a COMPOSITE for what is no image."""
    referenced = _element("ReferencedSOPClassUID", "UI", sop_class_uid.encode())
    referenced += _element("ReferencedSOPInstanceUID", "UI", sop_instance_uid.encode())
    sequence = _sequence("ReferencedSOPSequence", referenced)
    return sequence + _item(value_type, name, relationship, b"", children)


def polyline(name: Code, points: Sequence[tuple[float, float]], relationship: str, *children: bytes) -> bytes:
    """An SCOORD that is a POLYLINE: columns and rows from the top left corner (PS3.3, C.18.6)."""
    flat = [coordinate for point in points for coordinate in point]
    graphic = _element("GraphicData", "FL", struct.pack(f"<{len(flat)}f", *flat))
    graphic += _element("GraphicType", "CS", b"POLYLINE")
    return _item("SCOORD", name, relationship, b"", children) + graphic


def content_sequence(items: Iterable[bytes]) -> bytes:
    """The Content Sequence of a document's root: the last of its attributes, to be put behind the others."""
    return _sequence("ContentSequence", *items)


# Attributes stand in the order of their tags. All of an item's own are between its name and its children but for the
# reference of an image, which has the lowest tag, and the outline of a region, which has the highest.


def _item(value_type: str, name: Code, relationship: str, own: bytes, children: Iterable[bytes]) -> bytes:
    below = tuple(children)
    return b"".join(
        (
            _element("RelationshipType", "CS", relationship.encode()),
            _element("ValueType", "CS", value_type.encode()),
            _sequence("ConceptNameCodeSequence", _coded(name)),
            own,
            _sequence("ContentSequence", *below) if below else b"",
        )
    )


def _coded(value: Code) -> bytes:
    """A code (PS3.3, Table 8.8-1)."""
    # To pydicom two codes are equal whatever they say that they mean.
    return _encoded_code(value.value, value.scheme_designator, value.meaning)


@lru_cache(maxsize=512)
def _encoded_code(value: str, scheme: str, meaning: str) -> bytes:
    rest = _element("CodingSchemeDesignator", "SH", scheme.encode()) + _element("CodeMeaning", "LO", meaning.encode())
    if len(value) <= 16:
        return _element("CodeValue", "SH", value.encode()) + rest
    return rest + _element("LongCodeValue", "UC", value.encode())


def _template(identifier: str) -> bytes:
    return _element("MappingResource", "CS", b"DCMR") + _element("TemplateIdentifier", "CS", identifier.encode())


def _sequence(keyword: str, *items: bytes) -> bytes:
    """A sequence of known length, of items of known length (PS3.5, 7.5.1)."""
    framed = b"".join(part for item in items for part in (_ITEM, struct.pack("<L", len(item)), item))
    return _element(keyword, "SQ", framed)


def _element(keyword: str, vr: str, value: bytes) -> bytes:
    """PS3.5, 7.1.2; an odd length is filled up with a space, that of a UID with a null (6.2)."""
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    head = _head(keyword, vr)
    if vr in _LONG:
        return head + struct.pack("<2xL", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


@lru_cache(maxsize=64)
def _head(keyword: str, vr: str) -> bytes:
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101 (the keywords stand above)
    return struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())


_LONG = frozenset({"SQ", "UC", "UT"})
_ITEM = b"\xfe\xff\x00\xe0"
