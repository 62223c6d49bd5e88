"""From stored values to the grey that a viewer shows: 16-bit levels, 0 black to 65,535 white.

A grey image has at most 65,536 different stored values, so modality LUT, VOI LUT or window and the inversion are worked
out once for each of them, in one table, and not for each pixel (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pydicom

from dicom_node.image.decode import Array, Layout, Stored
from dicom_node.image.refusal import NotAnalysable
from models.reasons import Reason

WHITE = 65_535

Levels = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]
_Values = npt.NDArray[np.float64]

# So many rows are turned into grey at a time: indices and floating-point colours are several times the image.
_BAND = 256
# ITU-R BT.601, which PS3.3 C.7.6.3.1.2 uses for YBR too.
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def levels(dataset: pydicom.Dataset, stored: Stored, layout: Layout) -> Levels:
    """Return the image as a viewer shows it, uint16 of shape (rows, columns).

    Without a window, black and white are the ends of what Bits Stored can hold: contrast is set later, by what the
    image shows. A window that no image can have (PS3.3 C.11.2.1.2) counts as none. Overlays are not drawn.
    """
    if stored.colours == "PALETTE":
        return in_table(_palette_luminance(dataset, stored.bits), stored.values)
    if stored.colours:
        return luminance(stored.values, stored.colours, stored.bits)
    values = _signed_values(stored)
    grey = _voi(dataset, _modality(dataset, values))
    if is_inverted(dataset, layout):
        grey = 1.0 - grey
    padded = _padding(dataset, values)
    if padded is not None:
        grey[padded] = 0.0
    return in_table(grey, stored.values)


def is_inverted(dataset: pydicom.Dataset, layout: Layout) -> bool:
    """Whether low values are shown light (PS3.3 C.7.6.3.1.2 and C.11.6)."""
    # pydicom's apply_presentation_lut leaves MONOCHROME1 alone when the shape is missing.
    return layout.photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"


def modality_table(dataset: pydicom.Dataset, stored: Stored) -> tuple[_Values, Mask | None]:
    """Return what a window is laid over: each stored value after the modality LUT, and which of them are padding."""
    values = _signed_values(stored)
    return _modality(dataset, values), _padding(dataset, values)


def padding(dataset: pydicom.Dataset, stored: Stored) -> Mask | None:
    """Return which pixels are padding and not image (PS3.3 C.7.5.1.1.2); None where the header names no such value."""
    if stored.colours:
        return None
    padded = _padding(dataset, _signed_values(stored))
    if padded is None or not padded.any():
        return None
    mask: Mask = padded[stored.values]
    return mask


def luminance(values: Array, colours: str, bits: int) -> Levels:
    """Return the luminance of RGB or YBR values (rows, columns, 3) of `bits` bits as 16-bit levels."""
    scale = WHITE / ((1 << bits) - 1)
    grey = np.empty(values.shape[:2], dtype=np.uint16)
    for start in range(0, len(values), _BAND):
        band = values[start : start + _BAND]
        light = band[:, :, 0].astype(np.float32) if colours == "YBR" else band.astype(np.float32) @ _LUMINANCE
        grey[start : start + _BAND] = np.rint(light * scale).clip(0, WHITE)
    return grey


def chroma(dataset: pydicom.Dataset, stored: Stored, step: int) -> npt.NDArray[np.float32] | None:
    """Return how far every `step`-th pixel is from grey, 0 to 1; None for an image that has no colours at all."""
    if not stored.colours:
        return None
    if stored.colours == "PALETTE":
        table = np.stack(_palette(dataset, stored.bits), axis=-1)
        distance = (table.max(axis=-1) - table.min(axis=-1)).astype(np.float32)
        found: npt.NDArray[np.float32] = distance[stored.values[::step, ::step]]
        return found
    sampled = stored.values[::step, ::step].astype(np.float32) / ((1 << stored.bits) - 1)
    if stored.colours == "YBR":
        return np.asarray(2 * np.abs(sampled[:, :, 1:] - 0.5).max(axis=-1), dtype=np.float32)
    return np.asarray(sampled.max(axis=-1) - sampled.min(axis=-1), dtype=np.float32)


# --- the table --------------------------------------------------------------------------------------------------------


def in_table(grey: _Values, values: Array) -> Levels:
    """Return each stored value's level of a table of greys, 0 to 1."""
    table = np.rint(grey * WHITE).astype(np.uint16)
    found: Levels = np.empty(values.shape, dtype=np.uint16)
    for start in range(0, len(values), _BAND):
        # No value is clipped, as none is above Bits Stored; but without it, numpy would look first, in a copy.
        np.take(table, values[start : start + _BAND], out=found[start : start + _BAND], mode="clip")
    return found


def _signed_values(stored: Stored) -> _Values:
    """Every value that Bits Stored can hold, in the order of its bit pattern."""
    raw = np.arange(1 << stored.bits, dtype=np.int64)
    sign_bit = 1 << (stored.bits - 1) if stored.signed else 0
    return ((raw ^ sign_bit) - sign_bit).astype(np.float64)


def _padding(dataset: pydicom.Dataset, values: _Values) -> Mask | None:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None or value == "":
        return None
    ends = [float(value), float(value if limit is None or limit == "" else limit)]
    return (values >= min(ends)) & (values <= max(ends))


def _modality(dataset: pydicom.Dataset, values: _Values) -> _Values:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(dataset.ModalityLUTSequence[0], values)[0]
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = values * (1.0 if slope is None else slope) + (intercept or 0.0)
    if not np.isfinite(rescaled).all():
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return rescaled


def _voi(dataset: pydicom.Dataset, values: _Values) -> _Values:
    """VOI LUT, else the first window, else all that can be stored (PS3.3 C.11.2); the result is 0 to 1."""
    if dataset.get("VOILUTSequence"):
        looked_up, highest = _looked_up(dataset.VOILUTSequence[0], values)
        return np.clip(looked_up / highest, 0.0, 1.0)
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if centre is not None and width is not None:
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
        if width >= 1 if function == "LINEAR" else width > 0:
            return windowed(values, centre, width, function)
    low, high = values.min(), values.max()
    spread: _Values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return spread


def windowed(values: _Values, centre: float, width: float, function: str) -> _Values:
    """Values through a window, 0 to 1: PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (the rest)."""
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)
        grey: _Values = 1.0 / (1.0 + np.exp(exponent))
        return grey
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _looked_up(lut: pydicom.Dataset, values: _Values) -> tuple[_Values, int]:
    """Values through a LUT item, and the highest output its descriptor allows (PS3.3 C.11.1.1, C.11.2.1.1)."""
    table, first, bits = _table(lut.LUTDescriptor, lut.LUTData)
    # The first value's sign is that of what goes in (PS3.3 C.11.2.1.1); in Implicit VR pydicom cannot know it.
    if first >= 32_768 and values.min() < 0:
        first -= 65_536
    elif first < 0 and values.min() >= 0 and values.max() >= 32_768:
        first += 65_536
    at = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[at], (1 << bits) - 1


def _table(descriptor: object, data: object) -> tuple[_Values, int, int]:
    """Entries, first mapped value and bits of a lookup table, its data as bytes or numbers."""
    entries, first, bits = (int(part) for part in descriptor)  # type: ignore[attr-defined] # pydicom's MultiValue
    entries = entries or 65_536
    if not 8 <= bits <= 16:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    if isinstance(data, bytes):  # OW; with 8 bits, some pack two entries to a word
        data = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * entries else np.dtype("<u2"))
    table = np.asarray(data, dtype=np.float64)[:entries]
    if table.ndim != 1 or table.size < entries:
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    # US data that pydicom took for SS: the descriptor's middle value decides its VR (PS3.3 C.11.1.1).
    return np.where(table < 0, table + 65_536, table), first, bits


def number(dataset: pydicom.Dataset, name: str) -> float | None:
    """The first value of a decimal attribute; None when it is absent or empty."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return None
    found = float(value)
    if not math.isfinite(found):
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    return found


# --- palettes ---------------------------------------------------------------------------------------------------------


def _palette(dataset: pydicom.Dataset, bits: int) -> list[_Values]:
    """Red, green and blue, 0 to 1, of every stored value (PS3.3 C.7.9). Segmented palettes are not read."""
    raw = np.arange(1 << bits, dtype=np.float64)
    channels = []
    for name in ("Red", "Green", "Blue"):
        descriptor = dataset[f"{name}PaletteColorLookupTableDescriptor"].value
        table, first, depth = _table(descriptor, dataset[f"{name}PaletteColorLookupTableData"].value)
        at = np.clip(raw - first, 0, len(table) - 1).astype(np.int64)
        channels.append(np.clip(table[at] / ((1 << depth) - 1), 0.0, 1.0))
    return channels


def _palette_luminance(dataset: pydicom.Dataset, bits: int) -> _Values:
    return np.asarray(np.stack(_palette(dataset, bits), axis=-1) @ _LUMINANCE.astype(np.float64)).clip(0.0, 1.0)
