"""From Pixel Data to stored values: checked against header and limit first, then decoded.

imagecodecs (BSD) decodes every compressed family: libjpeg-turbo for all of JPEG, 12-bit JPEG Extended included, CharLS,
and OpenJPEG for JPEG 2000 and HTJ2K. It was chosen by measurement, see docs/decisions/0007-decoders.md.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import get_frame
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.image.codestream import Claim, Family, Unreadable, read_claim
from dicom_node.image.refusal import NotAnalysable, attempt
from models.reasons import Reason

MAX_PIXELS = 64_000_000
"""Rows × Columns above which nothing is decoded (the largest radiographs have about 25 million)."""

# OpenJPEG is the slow one: two threads halve it. More would take the cores of the worker's other children.
_JPEG_2000_THREADS = 2

Array = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_Unsigned = TypeVar("_Unsigned", np.uint8, np.uint16)


class Layout(NamedTuple):
    """The Image Pixel Module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool
    syntax: UID


class Stored(NamedTuple):
    """Decoded stored values.

    `values` is uint8 or uint16, (rows, columns) or (rows, columns, 3), with nothing above Bits Stored; negative values
    are in two's complement of `bits` bits. `colours` is "" (grey), "PALETTE", "RGB" or "YBR".
    """

    values: Array
    bits: int
    signed: bool
    colours: str


def decode(dataset: pydicom.Dataset) -> tuple[Stored, Layout]:
    """Decode the one frame of `dataset`. Raises NotAnalysable, before anything is decoded where that can be known."""
    layout = _checked(dataset)
    if _is_encapsulated(layout):
        frame = attempt(Reason.UNDECODABLE, get_frame, dataset.PixelData, 0, number_of_frames=1)
        read = _run_lengths if layout.syntax == RLELossless else _codestream
        values, colours = attempt(Reason.UNDECODABLE, read, frame, layout)
    else:
        values, colours = _uncompressed(dataset, layout)
    expected = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, 3)
    if values.shape != expected:
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    return Stored(_cleaned(values, layout), layout.bits_stored, layout.signed, colours), layout


# --- before anything is decoded ---------------------------------------------------------------------------------------

_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}


def _checked(dataset: pydicom.Dataset) -> Layout:
    if "PixelData" not in dataset or not dataset.PixelData:
        raise NotAnalysable(Reason.NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise NotAnalysable(Reason.MULTI_FRAME)
    layout = attempt(Reason.UNSUPPORTED_PIXELS, _layout, dataset)
    if layout.rows * layout.columns > MAX_PIXELS:
        raise NotAnalysable(Reason.TOO_LARGE)
    return layout


def _layout(dataset: pydicom.Dataset) -> Layout:
    rows, columns = (int(dataset.get(name) or 0) for name in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not UID(syntax).is_transfer_syntax:
        raise NotAnalysable(Reason.UNDECODABLE)
    bits_stored, high_bit = int(dataset.BitsStored), dataset.get("HighBit")
    layout = Layout(
        rows=rows,
        columns=columns,
        samples=int(dataset.get("SamplesPerPixel") or 1),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else int(high_bit),
        signed=int(dataset.PixelRepresentation) == 1,
        photometric=str(dataset.PhotometricInterpretation),
        planar=int(dataset.get("PlanarConfiguration") or 0) == 1,
        syntax=UID(syntax),
    )
    # ACR-NEMA and early DICOM kept values in the upper bits too; a codestream has no upper bits to keep them in.
    upper_bits_allowed = not _is_encapsulated(layout) and layout.samples == 1
    supported = (
        _SAMPLES.get(layout.photometric) == layout.samples
        and layout.bits_allocated in (8, 16)
        and 1 <= layout.bits_stored <= layout.bits_allocated
        and bits_stored - 1 <= layout.high_bit < layout.bits_allocated
        and (upper_bits_allowed or layout.high_bit == bits_stored - 1)
        and not (layout.signed and not layout.photometric.startswith("MONOCHROME"))
        and not (layout.photometric == "YBR_FULL_422" and (layout.bits_allocated != 8 or layout.columns % 2))
    )
    if not supported:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return layout


def _is_encapsulated(layout: Layout) -> bool:
    return layout.syntax.is_compressed and not layout.syntax.is_deflated


# --- uncompressed -----------------------------------------------------------------------------------------------------


def _uncompressed(dataset: pydicom.Dataset, layout: Layout) -> tuple[Array, str]:
    """Uncompressed pixels fill Rows × Columns exactly; an odd length has one byte of padding (PS3.5 8.1.1, 7.1.1)."""
    data: bytes = dataset.PixelData
    subsampled = layout.photometric == "YBR_FULL_422"
    count = layout.rows * layout.columns * (2 if subsampled else layout.samples)
    expected = count * layout.bits_allocated // 8
    if len(data) not in (expected, expected + expected % 2):
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    order = "<" if layout.syntax.is_little_endian else ">"
    if layout.bits_allocated == 8 and order == ">" and dataset["PixelData"].VR == "OW":
        # Words of two pixels, the second first (PS3.5 8.1.2 and figure D.1-3).
        data = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2").byteswap().tobytes()
    values = np.frombuffer(data, dtype=f"{order}u{layout.bits_allocated // 8}", count=count)
    if subsampled:
        return _spread_chroma(values, layout), "YBR"
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns), _colours(layout)
    if layout.planar:
        return np.moveaxis(values.reshape(3, layout.rows, layout.columns), 0, -1), _colours(layout)
    return values.reshape(layout.rows, layout.columns, 3), _colours(layout)


def _spread_chroma(values: Array, layout: Layout) -> Array:
    """Two luminances share a pair of chrominances: Y1 Y2 CB CR (PS3.3 C.7.6.3.1.2)."""
    pairs = values.reshape(layout.rows, layout.columns // 2, 4)
    full = np.empty((layout.rows, layout.columns, 3), dtype=values.dtype)
    full[:, 0::2, 0], full[:, 1::2, 0] = pairs[:, :, 0], pairs[:, :, 1]
    for at in (0, 1):
        full[:, at::2, 1:] = pairs[:, :, 2:]
    return full


def _colours(layout: Layout) -> str:
    if layout.photometric == "PALETTE COLOR":
        return "PALETTE"
    if layout.samples == 1:
        return ""
    return "YBR" if layout.photometric.startswith("YBR_FULL") else "RGB"


_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)

# --- compressed -------------------------------------------------------------------------------------------------------


def _run_lengths(frame: bytes, layout: Layout) -> tuple[Array, str]:
    """PS3.5 G.3 to G.5: a header of segment offsets, then one segment a byte plane, the most significant first."""
    from imagecodecs import packbits_decode

    planes = layout.samples * layout.bits_allocated // 8
    header = np.frombuffer(frame[:64], dtype="<u4")
    bounds = [*(int(offset) for offset in header[1 : planes + 1]), len(frame)]
    if header[0] != planes or bounds[0] != 64 or any(start >= end for start, end in pairwise(bounds)):
        raise NotAnalysable(Reason.UNDECODABLE)
    size = layout.rows * layout.columns
    width = layout.bits_allocated // 8
    interleaved = np.empty((size, layout.samples, width), dtype=np.uint8)
    plane = np.empty(size + 1, dtype=np.uint8)
    for at, (start, end) in enumerate(pairwise(bounds)):
        # A plane of its own length: the decoder stops where a run goes beyond it, whatever the runs claim.
        decoded = _exactly(size, packbits_decode, frame[start:end], plane)
        interleaved[:, at // width, width - 1 - at % width] = decoded
    values = interleaved.reshape(-1).view(f"<u{width}")
    shape = (layout.rows, layout.columns, 3)[: 2 if layout.samples == 1 else 3]
    return values.reshape(shape), _colours(layout)


def _exactly(size: int, decoder: Callable[..., Any], segment: bytes, plane: npt.NDArray[np.uint8]) -> Any:
    try:
        decoded = decoder(segment, out=plane)
    except RuntimeError:
        raise NotAnalysable(Reason.SIZE_MISMATCH) from None
    if not size <= len(decoded) <= size + 1:
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    return decoded[:size]


def _codestream(frame: bytes, layout: Layout) -> tuple[Array, str]:
    claim = _believable(frame, layout)
    decoded = np.asarray(_DECODERS[claim.family](frame[claim.begins :], claim, layout))
    if decoded.dtype.itemsize > 2:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    if layout.syntax in _LOSSY and (decoded.dtype.kind == "i") == layout.signed:
        decoded = _clipped(decoded, layout)
    values = decoded.view(f"u{decoded.dtype.itemsize}")
    colours = _colours(layout)
    # libjpeg turns YCbCr into RGB, OpenJPEG undoes the multiple component transformation.
    if colours == "YBR" and claim.family is Family.JPEG and not claim.lossless_jpeg:
        colours = "RGB"
    return values, colours


def _clipped(decoded: npt.NDArray[np.generic], layout: Layout) -> npt.NDArray[np.generic]:
    """Where something is lost, white overshoots Bits Stored by a little: to mask that would turn it into black."""
    low, high = (0, (1 << layout.bits_stored) - 1)
    if layout.signed:
        low, high = -(1 << (layout.bits_stored - 1)), (1 << (layout.bits_stored - 1)) - 1
    return decoded if low <= decoded.min() and decoded.max() <= high else np.clip(decoded, low, high)


def _believable(frame: bytes, layout: Layout) -> Claim:
    """Believe neither header nor codestream alone."""
    try:
        claim = read_claim(frame)
    except Unreadable:
        raise NotAnalysable(Reason.UNDECODABLE) from None
    if (claim.rows, claim.columns) != (layout.rows, layout.columns):
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    if claim.components != layout.samples or not 2 <= claim.precision <= layout.bits_allocated:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return claim


def _jpeg(frame: bytes, claim: Claim, layout: Layout) -> Array:
    from imagecodecs import jpeg8_decode

    decoded: Array
    if layout.samples == 3 and (claim.lossless_jpeg or (layout.photometric == "RGB" and not claim.stated_colours)):
        # No marker says what the components are: then the header does, and nothing is converted.
        decoded = jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
    else:
        decoded = jpeg8_decode(frame)
    return decoded


def _jpeg_ls(frame: bytes, claim: Claim, layout: Layout) -> Array:
    from imagecodecs import jpegls_decode

    del claim, layout
    decoded: Array = jpegls_decode(frame)
    return decoded


def _jpeg_2000(frame: bytes, claim: Claim, layout: Layout) -> Array:
    from imagecodecs import jpeg2k_decode

    del claim, layout
    decoded: Array = jpeg2k_decode(frame, numthreads=_JPEG_2000_THREADS)
    return decoded


_DECODERS: dict[Family, Callable[[bytes, Claim, Layout], Array]] = {
    Family.JPEG: _jpeg,
    Family.JPEG_LS: _jpeg_ls,
    Family.JPEG_2000: _jpeg_2000,
}


# --- after --------------------------------------------------------------------------------------------------------


def _cleaned(values: Array, layout: Layout) -> Array:
    """Drop what lies outside Bits Stored: an overlay (retired, PS3.5 8.1.2), garbage, or a sign that was extended."""
    if values.dtype.itemsize == 1:
        return _within_bits(values.astype(np.uint8, copy=False), layout)
    return _within_bits(values.astype(np.uint16, copy=False), layout)


def _within_bits(values: npt.NDArray[_Unsigned], layout: Layout) -> npt.NDArray[_Unsigned]:
    kind = values.dtype.type
    if layout.high_bit != layout.bits_stored - 1:
        values = values >> kind(layout.high_bit + 1 - layout.bits_stored)
    if int(values.max()) >> layout.bits_stored:
        values = values & kind((1 << layout.bits_stored) - 1)
    return values
