"""A DICOM file with exactly these bytes in its values: what no toolkit would write, and scanners send."""

from __future__ import annotations

import struct
from io import BytesIO

from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

CR = b"1.2.840.10008.5.1.4.1.1.1"
UIDS = {"SOPClassUID": CR, "SOPInstanceUID": b"1.2.4", "StudyInstanceUID": b"1.2.3", "SeriesInstanceUID": b"1.2.5"}


def part10(values: dict[str, bytes], *, uids: dict[str, bytes] = UIDS) -> BytesIO:
    """A file, explicit VR little endian, with exactly these bytes as values."""
    body = b""
    for keyword in sorted({**uids, **values}, key=Tag):
        value = {**uids, **values}[keyword]
        tag, vr = Tag(keyword), dictionary_VR(keyword)
        value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
        size = struct.pack("<HL", 0, len(value)) if vr == "SQ" else struct.pack("<H", len(value))
        body += struct.pack("<HH", tag.group, tag.elem) + vr.encode() + size + value
    syntax = b"1.2.840.10008.1.2.1\0"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    return BytesIO(b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + body)
