"""From a radiograph to the model's input. Training, evaluation and the worker all call this one file.

What is served is what was measured only while nobody prepares pixels anywhere else. A change here that alters a single
output value needs a new `PIPELINE_VERSION`, and a bundle trained with the old one is then refused.

The order is the one of PS3.3 and PS3.4 N.2: check, decode, mask to Bits Stored, sign, modality LUT, VOI LUT or window,
MONOCHROME1 turned over once; then antialiased resampling and letterboxing to the model's fixed size. A grey image has
at most 65,536 different stored values, so all up to the inversion is worked out once for each of them, not each pixel.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, RLELossless

from models.reasons import Reason

PIPELINE_VERSION = 1
"""Recorded with every prediction and every bundle; raised when any output value changes."""

MAX_PIXELS = 64_000_000
"""Rows × Columns above which nothing is decoded (the largest radiographs have about 25 million)."""

_WHITE = 65_535
"""Grey is kept as whole numbers, 0 (black) to 65,535 (white): sums of them are exact and the same on every machine."""

_TAIL = 0.005
"""Without a window, this share of the pixels may saturate at either end: markers and dead pixels set no contrast."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Array = npt.NDArray[np.generic]
_Grey = npt.NDArray[np.float32]
_Raw = npt.NDArray[np.uint16]
_Values = npt.NDArray[np.float64]


class NotAnalysable(Exception):
    """The image cannot be read. Its text is the reason's code and nothing else: no header value, no decoder message."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ModelInput:
    """What the model sees, and where it came from.

    Attributes
    ----------
    pixels
        uint8, shape (rows, columns) of the model, C-contiguous, read-only; 0 black to 255 white, letterboxed with 0.
    source_rows, source_columns
        Size of the source image in pixels.
    scale
        Model pixels per source pixel, the same in both directions (but for the rounding to whole pixels).
    left, top
        Where the source's top left corner lies, in model pixels.
    pixel_digest
        See `source_pixels_digest`.
    """

    pixels: npt.NDArray[np.uint8]
    source_rows: int
    source_columns: int
    scale: float
    left: float
    top: float
    pixel_digest: str

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the model's input to the source image, clipped to it.

        Both are continuous: 0.0, 0.0 is the top left corner of the top left pixel and Columns, Rows the bottom right
        corner of the bottom right one (PS3.3 C.18.6).
        """
        across = self.source_columns / _drawn(self.source_columns, self.scale)
        down = self.source_rows / _drawn(self.source_rows, self.scale)
        return (
            min(max((x - self.left) * across, 0.0), float(self.source_columns)),
            min(max((y - self.top) * down, 0.0), float(self.source_rows)),
        )


def model_input(dataset: pydicom.Dataset, size: tuple[int, int]) -> ModelInput:
    """Turn a DICOM image into the model's input.

    Parameters
    ----------
    dataset
        A single-frame image with its `file_meta` (the transfer syntax is read from there). It is not changed.
    size
        (rows, columns) of the model's input.

    Raises
    ------
    NotAnalysable
        With the coded reason, whatever is wrong with the dataset. No other exception comes from a dataset.
    """
    _check_size(size)
    return _attempt(Reason.UNSUPPORTED_PIXELS, _from_dataset, dataset, size)


def model_input_from_picture(image: Image.Image, size: tuple[int, int]) -> ModelInput:
    """Turn a PNG or JPEG picture into the model's input, exactly as a DICOM image with these grey values.

    Pictures of 8 bits are taken as they are; those of 16 bits have no window, so their contrast is set as for a DICOM
    image without one. Raises `NotAnalysable` as `model_input` does.
    """
    _check_size(size)
    return _attempt(Reason.UNSUPPORTED_PIXELS, _from_picture, image, size)


def source_pixels_digest(dataset: pydicom.Dataset) -> str:
    """Return the SHA-256 (hex) of the decoded stored pixel values, before any LUT, with their shape.

    The same pixels in another lossless transfer syntax, or under another header, have the same digest. Raises
    `NotAnalysable` as `model_input` does.
    """
    return _attempt(Reason.UNSUPPORTED_PIXELS, lambda: _digest(*_decoded(dataset, _checked(dataset))))


# --- one function for everything that can fail ------------------------------------------------------------------------


def _attempt(otherwise: Reason, step: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `step`; whatever it raises comes out as NotAnalysable, `otherwise` for what has no reason of its own.

    The exception is raised outside the handler, so that the original, whose text may quote the header, hangs on
    neither `__cause__` nor `__context__`. pydicom's warnings quote values too and are dropped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step(*args, **kwargs)
    except NotAnalysable as refused:
        reason = refused.reason
    except MemoryError:
        # Says nothing about the image: another try may have the memory.
        raise
    except Exception:
        reason = otherwise
    raise NotAnalysable(reason)


def _check_size(size: tuple[int, int]) -> None:
    """The size comes from a bundle, not from a patient's file: a wrong one is our own mistake."""
    if min(size) < 1:
        raise ValueError(f"The model's input size must be positive, not {size}.")


# --- DICOM ------------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """The Image Pixel Module (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    transfer_syntax: UID


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


def _from_dataset(dataset: pydicom.Dataset, size: tuple[int, int]) -> ModelInput:
    layout = _checked(dataset)
    stored, signed = _decoded(dataset, layout)
    digest = _digest(stored, signed)
    if layout.photometric == "PALETTE COLOR":
        grey = _luminance(apply_color_lut(stored, dataset))
    elif layout.samples == 3:
        grey = _luminance(stored, bits=layout.bits_stored)
    else:
        grey = _grey(dataset, stored.astype(np.uint16, copy=False), layout)
    return _placed(grey, size, digest)


def _checked(dataset: pydicom.Dataset) -> _Layout:
    """Refuse, before anything is decoded, what cannot be decoded safely into one grey image."""
    if "PixelData" not in dataset or not dataset.PixelData:
        raise NotAnalysable(Reason.NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise NotAnalysable(Reason.MULTI_FRAME)
    layout = _attempt(Reason.UNSUPPORTED_PIXELS, _layout, dataset)
    if layout.rows * layout.columns > MAX_PIXELS:
        raise NotAnalysable(Reason.TOO_LARGE)
    if layout.transfer_syntax.is_compressed and not layout.transfer_syntax.is_deflated:
        _attempt(Reason.UNDECODABLE, _check_codestream, dataset, layout)
    else:
        _check_length(dataset, layout)
    return layout


def _layout(dataset: pydicom.Dataset) -> _Layout:
    rows, columns = (int(dataset.get(name) or 0) for name in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not UID(syntax).is_transfer_syntax:
        raise NotAnalysable(Reason.UNDECODABLE)
    layout = _Layout(
        rows=rows,
        columns=columns,
        samples=int(dataset.get("SamplesPerPixel") or 1),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsStored),
        signed=int(dataset.PixelRepresentation) == 1,
        photometric=str(dataset.PhotometricInterpretation),
        transfer_syntax=UID(syntax),
    )
    high_bit = dataset.get("HighBit")
    supported = (
        _SAMPLES.get(layout.photometric) == layout.samples
        and layout.bits_allocated in (8, 16)
        and 1 <= layout.bits_stored <= layout.bits_allocated
        and (high_bit is None or int(high_bit) == layout.bits_stored - 1)
        and not (layout.signed and not layout.photometric.startswith("MONOCHROME"))
    )
    if not supported:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return layout


def _check_length(dataset: pydicom.Dataset, layout: _Layout) -> None:
    """Uncompressed pixels fill Rows × Columns exactly; an odd length has one byte of padding (PS3.5 8.1.1, 7.1.1)."""
    expected = layout.rows * layout.columns * layout.samples * layout.bits_allocated // 8
    if layout.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    if len(dataset.PixelData) not in (expected, expected + expected % 2):
        raise NotAnalysable(Reason.SIZE_MISMATCH)


def _check_codestream(dataset: pydicom.Dataset, layout: _Layout) -> None:
    """Believe neither header alone: a decoder allocates what the codestream claims, whatever Rows and Columns say."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if layout.transfer_syntax == RLELossless:
        _check_rle(frame, layout)
        return
    # Decoders forgive a codestream that was cut off and make the rest up. Encoders pad behind its end with 00 or FF.
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise NotAnalysable(Reason.UNDECODABLE)
    rows, columns, components = _codestream_size(frame)
    if (rows, columns) != (layout.rows, layout.columns):
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    if components != layout.samples:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)


def _check_rle(frame: bytes, layout: _Layout) -> None:
    """RLE has no dimensions of its own, but its runs say how long each byte plane becomes (PS3.5 G.3, G.4)."""
    header = [int.from_bytes(frame[at : at + 4], "little") for at in range(0, 64, 4)]
    planes = layout.samples * layout.bits_allocated // 8
    if header[0] != planes:
        raise NotAnalysable(Reason.UNDECODABLE)
    bounds = [*header[1 : planes + 1], len(frame)]
    for start, end in pairwise(bounds):
        length, at = 0, start
        while at < end - 1:  # a last byte alone is padding
            run = frame[at]
            length += run + 1 if run < 128 else 257 - run if run > 128 else 0
            at += run + 2 if run < 128 else 2 if run > 128 else 1
        if not 0 <= length - layout.rows * layout.columns <= 1:
            raise NotAnalysable(Reason.SIZE_MISMATCH)


def _codestream_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG, JPEG-LS (SOF marker) or JPEG 2000 (SIZ marker) codestream."""
    if frame.startswith(b"\xff\xd8"):
        return _jpeg_size(frame)
    start = frame.find(b"\xff\x4f\xff\x51")  # SOC, SIZ; some put a JP2 header before it, which PS3.5 A.4.4 forbids
    if start < 0:
        raise NotAnalysable(Reason.UNDECODABLE)
    # ISO/IEC 15444-1 A.5.1: Lsiz, Rsiz (2 bytes each), then Xsiz, Ysiz, XOsiz, YOsiz, four tile sizes, Csiz.
    fields = frame[start + 8 :]
    x_size, y_size, x_offset, y_offset = (int.from_bytes(fields[at : at + 4], "big") for at in (0, 4, 8, 12))
    return y_size - y_offset, x_size - x_offset, int.from_bytes(fields[32:34], "big")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # Start of frame: C0 to CF but for DHT, JPG, DAC (ISO/IEC 10918-1 B.1.1.3); F7 in JPEG-LS (ISO/IEC 14495-1 C.1).
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return (
                int.from_bytes(frame[at + 5 : at + 7], "big"),
                int.from_bytes(frame[at + 7 : at + 9], "big"),
                frame[at + 9],
            )
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise NotAnalysable(Reason.UNDECODABLE)


def _decoded(dataset: pydicom.Dataset, layout: _Layout) -> tuple[_Array, int]:
    """Return the stored values as unsigned integers masked to Bits Stored (colour as RGB), and the sign bit or 0."""
    # pylibjpeg-rle panics, which is no Exception, on a plane that is too long; pydicom's own decoder is as fast.
    plugin = "pydicom" if layout.transfer_syntax == RLELossless else ""
    stored = _attempt(Reason.UNDECODABLE, pixel_array, dataset, decoding_plugin=plugin)
    shape = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, 3)
    if stored.shape != shape:
        raise NotAnalysable(Reason.SIZE_MISMATCH)
    unsigned = stored.view(np.dtype(f"u{stored.dtype.itemsize}"))
    # What lies above Bits Stored may be an overlay (retired, PS3.5 8.1.2), garbage, or a sign the decoder extended.
    masked = unsigned & unsigned.dtype.type((1 << layout.bits_stored) - 1)
    return masked, 1 << (layout.bits_stored - 1) if layout.signed else 0


def _digest(stored: _Array, sign_bit: int) -> str:
    """Hash values, not bytes: always 16 bits, little endian, so that Bits Allocated does not matter."""
    if sign_bit:
        values = ((stored.astype(np.int32) ^ sign_bit) - sign_bit).astype("<i2")
    else:
        values = stored.astype("<u2", copy=False)
    digest = hashlib.sha256(f"{values.dtype.str}{list(values.shape)}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


# --- stored values to grey --------------------------------------------------------------------------------------------


def _grey(dataset: pydicom.Dataset, stored: _Raw, layout: _Layout) -> _Grey:
    """Grey 0 (black) to 65,535 (white), float32, of a MONOCHROME image, through one table for all stored values."""
    raw = np.arange(1 << layout.bits_stored, dtype=np.int64)
    sign_bit = 1 << (layout.bits_stored - 1) if layout.signed else 0
    values = ((raw ^ sign_bit) - sign_bit).astype(np.float64)
    padding = _padding(dataset, values)
    counts = np.bincount(stored.ravel(), minlength=raw.size)
    counts[padding] = 0
    if np.count_nonzero(counts) < 2:
        raise NotAnalysable(Reason.BLANK)

    grey = _voi(dataset, _modality(dataset, values), counts)
    # PS3.3 C.7.6.3.1.2 and C.11.6. pydicom's apply_presentation_lut leaves MONOCHROME1 alone when the shape is missing.
    if layout.photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        grey = 1.0 - grey
    grey[padding] = 0.0
    levels: _Grey = _levels(grey)[stored]
    return levels


def _padding(dataset: pydicom.Dataset, values: _Values) -> npt.NDArray[np.bool_]:
    """Which stored values are padding and not image (PS3.3 C.7.5.1.1.2)."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(values.shape, dtype=np.bool_)
    ends = [float(value), float(value if limit is None else limit)]
    return (values >= min(ends)) & (values <= max(ends))


def _modality(dataset: pydicom.Dataset, values: _Values) -> _Values:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(dataset.ModalityLUTSequence[0], values)[0]
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi(dataset: pydicom.Dataset, values: _Values, counts: npt.NDArray[np.int64]) -> _Values:
    """VOI LUT, else the first window, else the image's own range (PS3.3 C.11.2); the result is 0 to 1."""
    if dataset.get("VOILUTSequence"):
        looked_up, highest = _looked_up(dataset.VOILUTSequence[0], values)
        return np.clip(looked_up / highest, 0.0, 1.0)
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None or width is None:
        return _own_range(values, counts)
    return _windowed(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))


def _windowed(values: _Values, centre: float, width: float, function: str) -> _Values:
    """PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID) and C.11.2.1.3.2 (LINEAR_EXACT)."""
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID" and width > 0:
        exponent = np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)
        grey: _Values = 1.0 / (1.0 + np.exp(exponent))
        return grey
    raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)


def _own_range(values: _Values, counts: npt.NDArray[np.int64]) -> _Values:
    """Stretch over the values the image has, but for the tails; padding is not in `counts`."""
    order = np.argsort(values, kind="stable")
    tail = _TAIL * counts.sum()
    low = values[order[int(np.argmax(np.cumsum(counts[order]) > tail))]]
    high = values[order[::-1][int(np.argmax(np.cumsum(counts[order][::-1]) > tail))]]
    if low == high:  # one value fills nearly the whole image: what little differs is all there is to show
        low, high = values[counts > 0].min(), values[counts > 0].max()
    grey: _Values = np.clip((values - low) / (high - low), 0.0, 1.0)
    return grey


def _looked_up(lut: pydicom.Dataset, values: _Values) -> tuple[_Values, int]:
    """Values through a LUT item, and the highest output its descriptor allows (PS3.3 C.11.1.1, C.11.2.1.1)."""
    entries, first, bits = (int(number) for number in lut.LUTDescriptor)
    entries = entries or 65_536
    data = lut.LUTData
    if isinstance(data, bytes):  # OW; with 8 bits, some pack two entries to a word
        data = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * entries else np.dtype("<u2"))
    table = np.asarray(data, dtype=np.float64)
    if table.size < entries or not 8 <= bits <= 16:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    at = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[at], (1 << bits) - 1


def _number(dataset: pydicom.Dataset, name: str) -> float | None:
    """The first value of a decimal attribute; None when it is absent or empty."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return None
    number = float(value)
    if not math.isfinite(number):
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return number


def _luminance(rgb: _Array, bits: int | None = None) -> _Grey:
    """Grey of an RGB array: the luminance of ITU-R BT.601, which PS3.3 C.7.6.3.1.2 uses for YBR too."""
    highest = (1 << (bits or 8 * rgb.dtype.itemsize)) - 1
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float64)
    return _levels(np.clip((rgb.astype(np.float64) * weights).sum(axis=2) / highest, 0.0, 1.0))


def _levels(grey: _Values) -> _Grey:
    return np.rint(grey * _WHITE).astype(np.float32)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _from_picture(image: Image.Image, size: tuple[int, int]) -> ModelInput:
    if getattr(image, "n_frames", 1) > 1:
        raise NotAnalysable(Reason.MULTI_FRAME)
    if image.width < 1 or image.height < 1:
        raise NotAnalysable(Reason.NO_PIXELS)
    if image.width * image.height > MAX_PIXELS:
        raise NotAnalysable(Reason.TOO_LARGE)
    _attempt(Reason.UNDECODABLE, image.load)
    if image.mode in ("L", "1"):
        stored = np.asarray(image.convert("L"))
        grey = _levels(np.arange(256) / 255.0)[stored]
    elif image.mode == "I" or image.mode.startswith("I;16"):
        stored = np.asarray(image)
        if stored.min() < 0 or stored.max() > _WHITE:
            raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
        counts = np.bincount(stored.ravel(), minlength=_WHITE + 1)
        if np.count_nonzero(counts) < 2:
            raise NotAnalysable(Reason.BLANK)
        grey = _levels(_own_range(np.arange(_WHITE + 1, dtype=np.float64), counts))[stored]
    elif image.mode == "F":
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    else:
        stored = np.asarray(image.convert("RGB"))
        grey = _luminance(stored)
    return _placed(grey, size, _digest(stored, 0))


# --- grey to the model's size -----------------------------------------------------------------------------------------


def _placed(grey: _Grey, size: tuple[int, int], digest: str) -> ModelInput:
    """Resample with antialiasing so that the whole image fits, centre it on black.

    Shrinking averages over the area of an output pixel: Pillow's HAMMING, whose weights taper, because its BOX takes
    each source pixel wholly or not at all and so jumps at fractional scales. Enlarging is bilinear.
    """
    rows, columns = grey.shape
    scale = min(size[0] / rows, size[1] / columns)
    drawn_size = (_drawn(columns, scale), _drawn(rows, scale))
    method = Image.Resampling.HAMMING if scale < 1 else Image.Resampling.BILINEAR
    drawn = np.asarray(Image.fromarray(grey).resize(drawn_size, method), dtype=np.float64)
    drawn_grey = np.rint(drawn * (255 / _WHITE)).clip(0, 255).astype(np.uint8)
    if drawn_grey.min() == drawn_grey.max():
        raise NotAnalysable(Reason.BLANK)

    top, left = (size[0] - drawn_size[1]) // 2, (size[1] - drawn_size[0]) // 2
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[top : top + drawn_size[1], left : left + drawn_size[0]] = drawn_grey
    pixels.flags.writeable = False
    return ModelInput(pixels, rows, columns, scale, float(left), float(top), digest)


def _drawn(length: int, scale: float) -> int:
    """How many model pixels `length` source pixels take up."""
    return max(1, round(length * scale))
