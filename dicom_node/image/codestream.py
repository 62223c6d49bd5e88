"""What a compressed frame claims about itself, read from its first markers, before any decoder sees it.

A decoder allocates what the codestream claims, whatever Rows and Columns say. So the claim is read here, in a few
microseconds, and compared with the header and with a limit.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Family(Enum):
    """Which decoder a codestream needs."""

    JPEG = "JPEG: baseline, extended and lossless (ISO/IEC 10918-1)"
    JPEG_LS = "JPEG-LS (ISO/IEC 14495-1)"
    JPEG_2000 = "JPEG 2000 (ISO/IEC 15444-1)"
    HTJ2K = "High-Throughput JPEG 2000 (ISO/IEC 15444-15)"


class Claim(NamedTuple):
    """What the codestream says it holds; `precision` in bits a sample, the largest of its components."""

    family: Family
    rows: int
    columns: int
    components: int
    precision: int
    lossless_jpeg: bool = False
    stated_colours: bool = False
    """Whether a JPEG says by a JFIF or Adobe marker whether its components are RGB or YCbCr."""


class Unreadable(ValueError):
    """It is no codestream that DICOM allows, or it was cut off."""


MAX_TILES = 65_536
"""A JPEG 2000 codestream of more tiles is a bomb: each costs memory before it costs a byte (ISO/IEC 15444-1 A.4.2)."""

# Start of frame: C0 and C1 sequential, C3 lossless, F7 JPEG-LS. The progressive, hierarchical and arithmetic ones are
# in no transfer syntax that this node accepts; a progressive one may have a thousand scans of the whole image.
_SEQUENTIAL, _LOSSLESS, _JPEG_LS = (0xC0, 0xC1), 0xC3, 0xF7
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC0, 0xC1, 0xC3, 0xC4, 0xC8, 0xCC}  # C4, C8, CC: DHT, JPG, DAC
_JFIF, _ADOBE = (0xE0, b"JFIF\0"), (0xEE, b"Adobe")


def read_claim(frame: bytes) -> Claim:
    """Read what the codestream in `frame` claims. Raises Unreadable."""
    # Decoders forgive a codestream that was cut off and make the rest up. Encoders pad behind its end with 00 or FF.
    if not frame[-64:].rstrip(b"\0\xff").endswith(b"\xff\xd9") and not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise Unreadable("the end is missing")
    if frame.startswith(b"\xff\xd8"):
        return _jpeg(frame)
    # SOC, SIZ. Some put a JP2 header of a few dozen bytes before it, which PS3.5 A.4.4 forbids.
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise Unreadable("no known beginning")
    return _jpeg_2000(frame[start:])


def _jpeg(frame: bytes) -> Claim:
    at, stated = 2, False
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _SEQUENTIAL or marker in (_LOSSLESS, _JPEG_LS):
            return Claim(
                Family.JPEG_LS if marker == _JPEG_LS else Family.JPEG,
                rows=int.from_bytes(frame[at + 5 : at + 7], "big"),
                columns=int.from_bytes(frame[at + 7 : at + 9], "big"),
                components=frame[at + 9],
                precision=frame[at + 4],
                lossless_jpeg=marker == _LOSSLESS,
                stated_colours=stated,
            )
        if marker in _OTHER_FRAMES:
            raise Unreadable("a coding process that DICOM does not allow")
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if length < 2:
            raise Unreadable("a marker segment without a length")
        stated |= any(marker == app and frame[at + 4 : at + 9] == name for app, name in (_JFIF, _ADOBE))
        at += 2 + length
    raise Unreadable("no start of frame")


def _jpeg_2000(stream: bytes) -> Claim:
    """ISO/IEC 15444-1 A.5.1: Lsiz, Rsiz (2 bytes each), sizes and offsets (4 each), Csiz, then 3 bytes a component."""
    length = int.from_bytes(stream[4:6], "big")
    fields = stream[8 : 4 + length]
    if len(fields) < 37 or length != 38 + 3 * int.from_bytes(fields[32:34], "big"):
        raise Unreadable("a SIZ marker segment of the wrong length")
    x_size, y_size, x_offset, y_offset, tile_x, tile_y, tile_x_offset, tile_y_offset = (
        int.from_bytes(fields[at : at + 4], "big") for at in range(0, 32, 4)
    )
    if not tile_x or not tile_y or x_size <= x_offset or y_size <= y_offset:
        raise Unreadable("an image or a tile of no size")
    if -(-(x_size - tile_x_offset) // tile_x) * -(-(y_size - tile_y_offset) // tile_y) > MAX_TILES:
        raise Unreadable("too many tiles")
    components = [fields[at : at + 3] for at in range(34, len(fields), 3)]
    if any(component[1:] != b"\1\1" for component in components):
        raise Unreadable("subsampled components")
    # CAP follows SIZ only where a later part of the standard is used (ISO/IEC 15444-15 A.2).
    high_throughput = stream[4 + length : 6 + length] == b"\xff\x50"
    return Claim(
        Family.HTJ2K if high_throughput else Family.JPEG_2000,
        rows=y_size - y_offset,
        columns=x_size - x_offset,
        components=len(components),
        precision=max((component[0] & 0x7F) + 1 for component in components),
    )
