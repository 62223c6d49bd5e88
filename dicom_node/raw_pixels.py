"""Whether two instances have the same pixels, as far as that shows without decoding: for the listener, which must not.

The bytes of Pixel Data are hashed while they are read, in pieces, together with what the Image Pixel Module (PS3.3
C.7.6.3) says of them. Equal bytes under an equal description are the same pixels. Unequal ones are other pixels only
where they are not compressed: two encoders write one image differently. What is left, the worker decodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.headers import quiet

PIECE = 1024 * 1024
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # of floats, of doubles, of integers
_NO_PIXELS = "none"
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DESCRIPTION = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


@dataclass(frozen=True)
class RawPixels:
    """The pixels as they were sent.

    `description` is what the header says of them, `encoding` the transfer syntax, one for both that do not compress.
    `whole` says that uncompressed pixels fill their description exactly.
    """

    encoding: str
    description: tuple[str, ...]
    digest: str
    whole: bool

    def same_as(self, other: RawPixels) -> bool | None:
        """Whether the pixels are the same; None where only decoding can tell."""
        if (self.encoding, self.description) != (other.encoding, other.description):
            return None
        if self.digest == other.digest:
            return True
        return False if self.whole and other.whole else None


def raw_pixels(file: BinaryIO) -> RawPixels | None:
    """Read the pixels of a DICOM file without decoding them; None where that is not possible.

    Parameters
    ----------
    file
        A file that can seek. Of the header only what describes the pixels is kept in memory, of the pixels one piece
        at a time. A deflated data set would have to be unpacked whole, and is left to the worker.

    Raises
    ------
    OSError
        If the file cannot be read: that says nothing about its content.
    """
    try:
        return _read(file)
    except OSError as error:
        if error.errno is not None:
            raise
        return None
    except Exception:  # whatever malformed bytes bring about
        return None


class _NotKnown(Exception):
    """It takes more than this module to read it."""


def _read(file: BinaryIO) -> RawPixels | None:
    if _is_deflated(file):
        return None
    with quiet():
        header, begins = _header(file)
    if begins is None:
        # An object without pixels, or one that ends before them: then nothing is left to compare either.
        return RawPixels(header.encoding, header.description, _NO_PIXELS, whole=False)
    at, length = begins
    file.seek(at)
    if length == _UNDEFINED:
        return RawPixels(header.encoding, header.description, _digest_of_fragments(file), whole=False)
    whole = header.size is not None and length in (header.size, header.size + header.size % 2)
    if whole and header.size is not None:
        length = header.size  # the byte that fills an odd length up says nothing
    digest = hashlib.sha256()
    for piece in _pieces(file, length):
        digest.update(_within_bits(piece, header) if whole else piece)
    return RawPixels(header.encoding, header.description, digest.hexdigest(), whole)


@dataclass(frozen=True)
class _Header:
    encoding: str
    description: tuple[str, ...]
    size: int | None
    """How many bytes the pixels take; None where they are compressed, or not packed in whole bytes."""
    bits_allocated: int
    bits_stored: int
    high_bit: int


def _is_deflated(file: BinaryIO) -> bool:
    file.seek(0)
    return DeflatedExplicitVRLittleEndian.encode() in file.read(4096)[132:]


def _header(file: BinaryIO) -> tuple[_Header, tuple[int, int] | None]:
    """Read what describes the pixels, and where they begin and how long they are."""
    begins: list[tuple[int, int]] = []

    def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            begins.append((file.tell(), length))
        return int(tag) >= _PIXELS[0]

    file.seek(0)
    dataset = read_partial(file, at_pixels, specific_tags=[Tag(keyword) for keyword in _DESCRIPTION])
    encoding = dataset.file_meta.TransferSyntaxUID
    stored = int(dataset.get("BitsStored") or 0)
    header = _Header(
        encoding="native" if encoding in _NATIVE else str(encoding),
        description=tuple(str(dataset.get(keyword, "")) for keyword in _DESCRIPTION),
        size=_size(dataset) if encoding in _NATIVE else None,
        bits_allocated=int(dataset.get("BitsAllocated") or 0),
        bits_stored=stored,
        high_bit=int(dataset.get("HighBit", stored - 1)),
    )
    return header, begins[0] if begins else None


def _size(dataset: Dataset) -> int | None:
    allocated = int(dataset.get("BitsAllocated") or 0)
    if allocated not in (8, 16) or dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        return None
    frames = int(dataset.get("NumberOfFrames") or 1)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    return int(dataset.Rows) * int(dataset.Columns) * samples * frames * (allocated // 8)


def _within_bits(piece: bytes, header: _Header) -> bytes:
    """Drop what lies outside Bits Stored, as decoding does: an overlay, or a sign that was extended."""
    if header.bits_stored == header.bits_allocated:
        return piece
    values = np.frombuffer(piece, dtype=f"<u{header.bits_allocated // 8}")
    kind = values.dtype.type
    kept = (values >> kind(header.high_bit + 1 - header.bits_stored)) & kind((1 << header.bits_stored) - 1)
    return bytes(kept.tobytes())


def _digest_of_fragments(file: BinaryIO) -> str:
    """Hash the fragments behind the Basic Offset Table (PS3.5 A.4), however the frame was cut into them."""
    digest = hashlib.sha256()
    first = True
    while True:
        head = file.read(8)
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if tag == _END:
            return digest.hexdigest()
        if tag != _ITEM or len(head) < 8 or length == _UNDEFINED:
            raise _NotKnown
        for piece in _pieces(file, length):
            if not first:
                digest.update(piece)
        first = False


def _pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Read `length` bytes in pieces of an even size."""
    while length:
        piece = file.read(min(length, PIECE))
        if not piece or (len(piece) < min(length, PIECE)):
            raise _NotKnown
        length -= len(piece)
        yield piece
