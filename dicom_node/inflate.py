"""Deflated data sets (PS3.5 A.5) unpack to a thousand times their size: how much is looked at has a bound.

pydicom inflates such a file whole before it reads the first attribute.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import DeflatedExplicitVRLittleEndian

HEADER_LIMIT = 4 * 1024 * 1024
"""How many bytes of a deflated data set are looked at, packed and unpacked, to find its header."""
DATA_SET_LIMIT = 512 * 1024 * 1024
"""The largest deflated data set that is analysed, unpacked, in bytes."""
_PIECE = 1024 * 1024
# Preamble and prefix (132 bytes), then (0002,0000) UL, four bytes long: the length of what follows (PS3.10 7.1).
_META_BEGINS = 144


class TooLarge(Exception):
    """The data set unpacks to more than the limit."""


def beginning(file: BinaryIO) -> BinaryIO:
    """Return `file` itself, or of a deflated data set a file that holds its beginning, unpacked to `HEADER_LIMIT`.

    The returned beginning is packed again, so that file meta information and data set still fit each other.
    Raises zlib.error where it cannot be unpacked.
    """
    start = _deflated_from(file)
    if start is None:
        return file
    meta = file.read(start)
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(HEADER_LIMIT), HEADER_LIMIT)
    packing = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    return BytesIO(meta + packing.compress(unpacked) + packing.flush())


def check_inflated_size(source: Path | BinaryIO, limit: int = DATA_SET_LIMIT) -> None:
    """Raise TooLarge for a deflated data set that unpacks to more than `limit` bytes. A file is left at its start."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            check_inflated_size(file, limit)
        return
    start = _deflated_from(source)
    if start is None:
        return
    source.seek(start)
    unpacking, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not unpacking.eof and size <= limit:
        piece = unpacking.unconsumed_tail or source.read(_PIECE)
        if not piece:
            break
        size += len(unpacking.decompress(piece, _PIECE))
    source.seek(0)
    if size > limit:
        raise TooLarge


def _deflated_from(file: BinaryIO) -> int | None:
    """Return where the deflated data set begins; None where the file is no such one. Leaves the file at its start."""
    file.seek(0)
    head = file.read(_META_BEGINS)
    if len(head) < _META_BEGINS or head[128:136] != b"DICM\x02\x00\x00\x00":
        file.seek(0)
        return None
    length = int.from_bytes(head[-4:], "little")
    meta = file.read(min(length, _PIECE))
    file.seek(0)
    # The other deflated syntax, of JPIP, begins with other digits.
    return _META_BEGINS + length if DeflatedExplicitVRLittleEndian.encode() in meta else None
