"""What a compressed frame claims about itself, read from its first markers, before any decoder sees it.

A decoder allocates what the codestream claims, whatever Rows and Columns say. So the claim is read here, in a few
microseconds, and compared with the header and with a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class Family(Enum):
    """Which decoder a codestream needs."""

    JPEG = "JPEG: baseline, extended and lossless (ISO/IEC 10918-1)"
    JPEG_LS = "JPEG-LS (ISO/IEC 14495-1)"
    JPEG_2000 = "JPEG 2000 (ISO/IEC 15444-1), high-throughput too (ISO/IEC 15444-15)"


class Claim(NamedTuple):
    """What the codestream says it holds; `precision` in bits a sample, the largest of its components."""

    family: Family
    rows: int
    columns: int
    components: int
    precision: int
    lossless_jpeg: bool = False
    stated_colours: bool = False
    """Whether a JPEG says if its components are RGB or YCbCr: by a JFIF or Adobe marker, or by components of fewer
    samples, as only chroma has them."""
    begins: int = 0
    """Where in the frame the codestream begins. Nothing before it was looked at, and no decoder may believe it."""


class Unreadable(ValueError):
    """It is no codestream that DICOM allows, or it was cut off."""


MAX_TILES = 2048
"""A JPEG 2000 codestream of more tiles is a bomb: each costs tens of kilobytes of memory before it costs a byte."""
MAX_CODE_BLOCKS = 1 << 18
"""So is one of more code-blocks (OpenJPEG: 300 bytes each). The largest radiographs have 33,000 of 32 × 32."""
MAX_PACKETS = 2_000_000
"""So is one of more packets (OpenJPEG: 8 bytes and 0.1 µs each)."""
MAX_MARKERS = 65_536
"""So many markers are looked at, a few hundred milliseconds of them."""

# Start of frame: C0 and C1 sequential, C3 lossless, F7 JPEG-LS. The progressive, hierarchical and arithmetic ones are
# in no transfer syntax that this node accepts; a progressive one may have a thousand scans of the whole image.
_SEQUENTIAL, _LOSSLESS, _JPEG_LS = (0xC0, 0xC1), 0xC3, 0xF7
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC0, 0xC1, 0xC3, 0xC4, 0xC8, 0xCC}  # C4, C8, CC: DHT, JPG, DAC
# JFIF and Adobe: marker, name, and the least length with which libjpeg believes it.
_STATING = ((0xE0, b"JFIF\0", 16), (0xEE, b"Adobe", 14))


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
    return _jpeg_2000(frame[start:])._replace(begins=start)


def _jpeg(frame: bytes) -> Claim:
    at, stated = 2, False
    for _ in range(MAX_MARKERS):
        if at + 10 > len(frame) or frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _SEQUENTIAL or marker in (_LOSSLESS, _JPEG_LS):
            if at + 10 + 3 * frame[at + 9] > len(frame):
                break
            # libjpeg goes through the whole image again for every scan, of which each component needs one.
            if marker != _JPEG_LS and 1 < frame[at + 9] < frame.count(b"\xff\xda", at):
                raise Unreadable("more scans than components")
            return Claim(
                Family.JPEG_LS if marker == _JPEG_LS else Family.JPEG,
                rows=int.from_bytes(frame[at + 5 : at + 7], "big"),
                columns=int.from_bytes(frame[at + 7 : at + 9], "big"),
                components=frame[at + 9],
                precision=frame[at + 4],
                lossless_jpeg=marker == _LOSSLESS,
                stated_colours=stated or len({frame[at + 11 + 3 * one] for one in range(frame[at + 9])}) > 1,
            )
        if marker in _OTHER_FRAMES:
            raise Unreadable("a coding process that DICOM does not allow")
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if length < 2:
            raise Unreadable("a marker segment without a length")
        stated |= any(
            marker == app and length >= least and frame[at + 4 : at + 9] == name for app, name, least in _STATING
        )
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
    # The first tile holds the first pixel (ISO/IEC 15444-1 B.3); there are decoders that never end where it does not.
    if not (tile_x_offset <= x_offset < tile_x_offset + tile_x and tile_y_offset <= y_offset < tile_y_offset + tile_y):
        raise Unreadable("a first tile without the image's first pixel")
    tiles = -(-(x_size - tile_x_offset) // tile_x) * -(-(y_size - tile_y_offset) // tile_y)
    if tiles > MAX_TILES:
        raise Unreadable("too many tiles")
    components = [fields[at : at + 3] for at in range(34, len(fields), 3)]
    if any(component[1:] != b"\1\1" for component in components):
        raise Unreadable("subsampled components")
    segments = list(_segments(stream, 4 + length))
    _check_size(segments, tiles, (min(tile_x, x_size - x_offset), min(tile_y, y_size - y_offset)), len(components))
    return Claim(
        Family.JPEG_2000,
        rows=y_size - y_offset,
        columns=x_size - x_offset,
        components=len(components),
        precision=max((component[0] & 0x7F) + 1 for component in components),
    )


# --- what the parts of a JPEG 2000 codestream cost --------------------------------------------------------------------

_COD, _COC, _SOT, _SOD = 0x52, 0x53, 0x90, 0x93


class _Segment(NamedTuple):
    """A marker segment that says how subbands are coded; COD is for all components, COC for one."""

    marker: int
    body: bytes

    def coding(self, components: int) -> bytes:
        """What it says, without the number of its component."""
        if self.marker == _COD:
            return self.body
        return self.body[1 if components < 257 else 2 :]


def _segments(stream: bytes, at: int) -> Iterator[_Segment]:
    """COD and COC from the marker at `at` on: of the main header, then of every tile-part's (A.2, A.4.2)."""
    tile_part = 0
    for _ in range(MAX_MARKERS):
        if at + 4 > len(stream) or stream[at] != 0xFF:
            return
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == _SOD:
            # Packets, then the next tile-part or the end. A length of 0 stands for all that is left.
            part = int.from_bytes(stream[tile_part + 6 : tile_part + 10], "big")
            if not tile_part or tile_part + part <= at or not stream.startswith(b"\xff\x90", tile_part + part):
                return
            at = tile_part + part
            continue
        if length < 2:
            raise Unreadable("a marker segment without a length")
        if marker == _SOT:
            tile_part = at
        elif marker in (_COD, _COC):
            yield _Segment(marker, stream[at + 4 : at + 2 + length])
        at += 2 + length
    raise Unreadable("too many markers")


def _check_size(segments: list[_Segment], tiles: int, tile: tuple[int, int], components: int) -> None:
    """Raise Unreadable for a codestream that a decoder needs much memory or time for, however small the image."""
    layers, precincts = 1, 1
    for segment in segments:
        body = segment.coding(components)
        if segment.marker == _COD and len(body) >= 10:
            layers = max(layers, int.from_bytes(body[2:4], "big"))
            body = body[:1] + body[5:]
        elif segment.marker != _COC or len(body) < 6:
            continue
        # Scod or Scoc; levels, code-block width and height, style, transformation; precinct sizes (tables A.13, A.20).
        blocks, those = _parts(tile, body[1], (body[2] & 15, body[3] & 15), body[6:] if body[0] & 1 else b"")
        precincts = max(precincts, those)
        if blocks * tiles * components > MAX_CODE_BLOCKS:
            raise Unreadable("too many code-blocks")
    if precincts * layers * tiles * components > MAX_PACKETS:
        raise Unreadable("too many packets")


def _parts(tile: tuple[int, int], levels: int, block: tuple[int, int], sizes: bytes) -> tuple[int, int]:
    """Return how many code-blocks and precincts a component has in one tile (B.5 to B.7), but for a few at edges."""
    if levels > 32:
        raise Unreadable("more decompositions than there may be")
    blocks = precincts = 0
    for resolution in range(levels + 1):
        size = sizes[resolution] if resolution < len(sizes) else 0xFF
        in_subbands, in_precincts = 3 if resolution else 1, 1
        for length, exponent, precinct in zip(tile, block, (size & 15, size >> 4), strict=True):
            drawn = -(-length >> (levels - resolution))
            in_precincts *= -(-drawn >> precinct)
            # From the second resolution on a precinct lies on three subbands of half the size.
            half = 1 if resolution else 0
            in_subbands *= -(-drawn >> (half + min(exponent + 2, max(0, precinct - half))))
        blocks, precincts = blocks + in_subbands, precincts + in_precincts
    return blocks, precincts
