"""Radiographs for tests: any picture as a DICOM image of any kind, storage, presentation and transfer syntax.

However it is stored, what a viewer shows first is the picture's grey, as closely as the stored values allow: what
Osteon reads of two of them can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

from dicom_node.objects.encode import Effort
from dicom_node.objects.radiograph import (
    NOMINAL_ORIENTATION,
    Identity,
    Kind,
    LookupTable,
    Origin,
    Photometric,
    Pixels,
    Shape,
    Shutter,
    VoiFunction,
    build_radiograph,
)

Picture = Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | str | os.PathLike[str]
Window = Literal["full"] | tuple[float, float]
Colour = Literal["RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE"]
Side = Literal["left", "right", "top", "bottom"]


@dataclass(frozen=True)
class Border:
    """The collimator's shadow: no X-rays reach it, so it is as bright as the densest bone, or brighter.

    Attributes
    ----------
    fraction
        Width of the band, as a share of the picture's side.
    slant
        So much wider (or narrower, below 0) the band is at its lower or right end.
    grey
        0 (black) to 1 (white).
    """

    fraction: float = 0.1
    sides: tuple[Side, ...] = ("left", "right", "top", "bottom")
    slant: float = 0.0
    grey: float = 1.0

    def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether a pixel of a picture of `shape` lies in the border."""
        down, across = ((np.arange(length) + 0.5) / length for length in shape[:2])
        along = {
            "left": across[None, :],
            "right": 1 - across[None, :],
            "top": down[:, None],
            "bottom": 1 - down[:, None],
        }
        width = {
            side: self.fraction + self.slant * (down[:, None] if side in ("left", "right") else across[None, :])
            for side in self.sides
        }
        covered = np.zeros(shape[:2], dtype=np.bool_)
        for side in self.sides:
            covered |= along[side] < width[side]
        return covered


def radiograph(
    picture: Picture,
    *,
    kind: Kind = "DX",
    bits: int | None = None,
    allocated: int | None = None,
    signed: bool = False,
    monochrome1: bool = False,
    lut_shape: Shape | None = "auto",
    window: Window | Sequence[Window] | None = "full",
    voi_function: VoiFunction | None = None,
    voi_lut: bool = False,
    modality_lut: bool = False,
    rescale: tuple[float, float] | None = None,
    padding: int | tuple[int, int] | None = None,
    padded: NDArray[np.bool_] | None = None,
    shutter: Shutter | Sequence[Shutter] = (),
    border: Border | float | None = None,
    overlay: NDArray[np.bool_] | bool | None = None,
    rotate: Literal[0, 90, 180, 270] = 0,
    flip: bool = False,
    size: int | None = None,
    noise: float = 0,
    colour: Colour | None = None,
    frames: int = 1,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    effort: Effort | None = None,
    omit: Sequence[str] = (),
    empty: Sequence[str] = (),
    attributes: dict[str, Any] | None = None,
    body_part: str = "WRIST",
    laterality: str = "L",
    view_position: str = "AP",
    patient_orientation: Sequence[str] | None = None,
    modality: str = "",
    manufacturer: str = "ACME",
    made_at: datetime | None = datetime(2026, 1, 2, 10, 15),
    origin: Origin | None = None,
    **identity: Any,
) -> FileDataset:
    """Make a radiograph of a picture; its stored values are chosen so that its shown grey is the picture's.

    Parameters
    ----------
    picture
        Grey, uint8 or uint16 (0 black to the type's highest value, white), a Pillow image or a file.
    bits
        Bits Stored; 12 by default, 8 where the transfer syntax or the colour wants it.
    lut_shape
        "auto" is correct. INVERSE with MONOCHROME2 is taken for an inversion, as MONOCHROME1 always is.
    window
        "full" spans all stored values; For Processing has none by default. Of several the first decides.
    voi_function
        How the first window is to be read.
    voi_lut, modality_lut
        Whether there is such a table: a parabola, so that a reader that leaves it out shows something else.
    padding, padded
        Pixel Padding Value, or (value, range limit), and where it is stored; by default in the border, if there is
        one. No other pixel has a value of the padding's.
    border
        Drawn over the picture before it is turned; a number stands for `Border(number)`.
    overlay
        True for a diagonal line.
    rotate, flip
        Clockwise; then left and right are exchanged. Patient Orientation follows.
    size
        The longest side, to which the picture is scaled first.
    noise
        Standard deviation of what is added, in greys of 255; always the same noise.
    omit, empty, attributes
        Keywords to delete, to empty, and to set, after all else.
    **identity
        Fields of `Identity`.
    """
    grey, covered = _drawn(picture, size, noise, border, rotate, flip)
    if padded is None and padding is not None and border is not None:
        padded = covered
    photometric: Photometric = "PALETTE COLOR" if colour == "PALETTE" else colour or "MONOCHROME2"
    if monochrome1:
        photometric = "MONOCHROME1"
    eight = colour is not None or transfer_syntax == JPEGBaseline8Bit or allocated == 8
    bits = bits or (8 if eight else 12)
    pixels = Pixels(bits, allocated, signed, photometric, lut_shape, rescale, padding=padding, frames=frames)
    line = np.eye(*grey.shape, dtype=np.bool_) if overlay is True else overlay
    pixels = replace(pixels, overlay=None if line is None or line is False else line)
    if colour is None:
        pixels = _presented(pixels, kind, window, voi_function, voi_lut, modality_lut)
        stored = _stored(grey, pixels)
        if padded is not None and padding is not None:
            stored[padded] = padding if isinstance(padding, int) else padding[0]
    else:
        stored, pixels = _coloured(grey, pixels)
    dataset = build_radiograph(
        stored,
        kind=kind,
        pixels=pixels,
        identity=Identity(**({"patient_id": "P1", "patient_name": "Doe^Jane"} | identity)),
        origin=origin,
        shutter=shutter,
        body_part=body_part,
        laterality=laterality,
        view_position=view_position,
        patient_orientation=_oriented(rotate, flip) if patient_orientation is None else patient_orientation,
        modality=modality,
        manufacturer=manufacturer,
        made_at=made_at,
        transfer_syntax=transfer_syntax,
        effort=effort,
    )
    for keyword in omit:
        dataset.pop(keyword, None)
    for keyword in empty:
        setattr(dataset, keyword, None)
    for keyword, value in (attributes or {}).items():
        setattr(dataset, keyword, value)
    return dataset


def shown(pixels: Pixels) -> NDArray[np.float64]:
    """Grey, 0 (black) to 1 (white), of every value from the lowest to the highest (PS3.3, C.11.1, C.11.2, C.11.6).

    Written for these tests, and checked against pydicom's: no reader of Osteon's is used to judge Osteon.
    """
    low, high = pixels.range
    values = np.arange(low, high + 1, dtype=np.float64)
    first, last = _unpadded(pixels)
    if pixels.modality_lut is not None:
        values = _looked_up(pixels.modality_lut, values)
    elif pixels.rescale is not None:
        values = values * pixels.rescale[0] + pixels.rescale[1]
    if pixels.voi_lut is not None:
        grey = _looked_up(pixels.voi_lut, values) / ((1 << pixels.voi_lut.bits) - 1)
    elif pixels.windows:
        grey = _windowed(values, *pixels.windows[0], pixels.voi_function)
    else:
        ends = values[[first - low, last - low]]
        grey = (values - ends.min()) / max(np.ptp(ends), 1)
    inverted = pixels.photometric == "MONOCHROME1" or pixels.presentation_lut_shape == "INVERSE"
    return 1 - grey if inverted else grey


# --- the picture ------------------------------------------------------------------------------------------------------


def _drawn(
    picture: Picture,
    size: int | None,
    noise: float,
    border: Border | float | None,
    rotate: int,
    flip: bool,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Grey from 0 to 1, and where the border covers it."""
    grey = _grey(picture)
    if size is not None:
        scale = size / max(grey.shape)
        rows, columns = (max(1, round(length * scale)) for length in grey.shape)
        image = Image.fromarray(grey.astype(np.float32)).resize((columns, rows), Image.Resampling.HAMMING)
        grey = np.asarray(image, dtype=np.float64)
    if noise:
        grey = grey + np.random.default_rng(1).normal(0, noise / 255, grey.shape)
    grey = grey.clip(0, 1)
    edge = Border(border) if isinstance(border, float | int) else border
    covered = np.zeros(grey.shape, dtype=np.bool_) if edge is None else edge.mask(grey.shape)
    if edge is not None:
        grey = np.where(covered, edge.grey, grey)
    grey, covered = np.rot90(grey, -rotate // 90), np.rot90(covered, -rotate // 90)
    if flip:
        grey, covered = grey[:, ::-1], covered[:, ::-1]
    return grey, covered


def _grey(picture: Picture) -> NDArray[np.float64]:
    if isinstance(picture, str | os.PathLike):
        with Image.open(Path(picture)) as image:
            return _grey(image.copy())
    if isinstance(picture, Image.Image):
        wide = picture.mode.startswith("I")
        array = np.asarray(picture if wide else picture.convert("L"))
        return _grey(array.astype(np.uint16) if wide else array.astype(np.uint8))
    if picture.dtype not in (np.uint8, np.uint16):
        raise ValueError("a picture is uint8 or uint16")
    return np.asarray(picture, dtype=np.float64) / np.iinfo(picture.dtype).max


def _oriented(rotate: int, flip: bool) -> tuple[str, ...]:
    """Turn the nominal Patient Orientation, the direction of rows and of columns, with the picture."""
    other = {"L": "R", "R": "L", "F": "H", "H": "F"}
    rows, columns = NOMINAL_ORIENTATION
    for _ in range(rotate // 90):  # clockwise: what ran down the columns now runs against the rows
        rows, columns = other[columns], rows
    return (other[rows] if flip else rows), columns


# --- grey to stored values --------------------------------------------------------------------------------------------


def _presented(
    pixels: Pixels,
    kind: Kind,
    window: Window | Sequence[Window] | None,
    voi_function: VoiFunction | None,
    voi_lut: bool,
    modality_lut: bool,
) -> Pixels:
    low, high = _unpadded(pixels)
    if modality_lut:
        pixels = replace(pixels, modality_lut=_parabola(low, high - low + 1))
        values = (0.0, 65535.0)
    else:
        slope, intercept = pixels.rescale or (1, 0)
        ends = sorted((low * slope + intercept, high * slope + intercept))
        values = (ends[0], ends[1])
    if voi_lut:
        first = max(round(values[0]), -32768)  # what the table's descriptor can say; below it all is black
        length = min(round(values[1]) - first + 1, 65536)
        pixels = replace(pixels, voi_lut=_parabola(first, length))
    if window == "full" and kind == "DX_PROCESSING":
        window = None
    wanted: list[Window] = []
    if window is not None:
        wanted = [window] if window == "full" or isinstance(window[0], float | int) else list(window)  # type: ignore[list-item, arg-type]
    windows = tuple(_full_window(*values, voi_function) if one == "full" else one for one in wanted)
    return replace(pixels, windows=windows, voi_function=voi_function if windows else None)


def _unpadded(pixels: Pixels) -> tuple[int, int]:
    """Lowest and highest value without padding at either end, so that the whole of the grey is left to the picture."""
    low, high = pixels.range
    first, last = _padding(pixels) or (high + 1, low - 1)
    return (last + 1 if first <= low <= last else low), (first - 1 if first <= high <= last else high)


def _padding(pixels: Pixels) -> tuple[int, int] | None:
    if pixels.padding is None:
        return None
    ends = pixels.padding if isinstance(pixels.padding, tuple) else (pixels.padding, pixels.padding)
    return min(ends), max(ends)


def _full_window(low: float, high: float, function: VoiFunction | None) -> tuple[float, float]:
    middle, width = (low + high) / 2, high - low
    if function == "SIGMOID":  # reaches 0.02 % and 99.98 % at the ends
        return middle, width / 4.25
    if function == "LINEAR_EXACT":
        return middle, width
    return middle + 0.5, width + 1  # PS3.3, C.11.2.1.2.1


def _parabola(first: int, length: int) -> LookupTable:
    return LookupTable(np.rint(np.linspace(0, 1, length) ** 2 * 65535).astype(np.uint16), first)


def _stored(grey: NDArray[np.float64], pixels: Pixels) -> NDArray[np.int32]:
    """For each grey the stored value that is shown most like it."""
    low, high = pixels.range
    values = np.arange(low, high + 1)
    greys = shown(pixels)
    padding = _padding(pixels)
    if padding is not None:
        kept = (values < padding[0]) | (values > padding[1])
        values, greys = values[kept], greys[kept]
    # Of values that are shown alike, as all beyond a window are, the one nearest to the middle.
    nearest = np.argsort(np.abs(np.arange(greys.size) - np.abs(greys - 0.5).argmin()), kind="stable")
    greys, first = np.unique(greys[nearest], return_index=True)
    values = values[nearest][first]
    above = np.searchsorted(greys, grey).clip(1, max(greys.size - 1, 1))
    nearer = np.where(grey - greys[above - 1] <= greys[above] - grey, above - 1, above)
    return values[nearer].astype(np.int32)


def _coloured(grey: NDArray[np.float64], pixels: Pixels) -> tuple[NDArray[np.int32], Pixels]:
    highest = (1 << pixels.bits_stored) - 1
    levels = np.rint(grey * highest).astype(np.int32)
    if pixels.photometric == "PALETTE COLOR":
        # The palette runs from white to black, so that a reader that leaves it out shows a negative.
        ramp = LookupTable(np.rint(np.linspace(65535, 0, highest + 1)).astype(np.uint16))
        return highest - levels, replace(pixels, palette=(ramp, ramp, ramp))
    neutral = np.full_like(levels, 1 << (pixels.bits_stored - 1))  # PS3.3, C.7.6.3.1.2: no colour in Cb and Cr
    chroma = levels if pixels.photometric == "RGB" else neutral
    return np.stack([levels, chroma, chroma], axis=2), pixels


def _looked_up(table: LookupTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    at = np.clip(np.rint(values) - table.first, 0, table.entries.size - 1).astype(np.int64)
    found: NDArray[np.float64] = table.entries[at].astype(np.float64)
    return found


def _windowed(
    values: NDArray[np.float64], centre: float, width: float, function: VoiFunction | None
) -> NDArray[np.float64]:
    if function == "SIGMOID":
        grey: NDArray[np.float64] = 1 / (1 + np.exp(-4 * (values - centre) / width))
        return grey
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
