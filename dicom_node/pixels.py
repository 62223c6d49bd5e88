"""From a radiograph to the model's input. Training, evaluation and the worker all call this one file.

What is served is what was measured only while nobody prepares pixels anywhere else. A change here, or in
`dicom_node/image/`, that alters a single output value needs a new `PIPELINE_VERSION`, and a bundle trained with the old
one is then refused.

The order, each step with its file in `dicom_node/image/`:

1. `decode`: compare header, codestream and limit; decode; keep Bits Stored.
2. `grey`: sign, modality LUT, VOI LUT or window, MONOCHROME1 turned over once (PS3.3 C.7.6.3, C.11); padding is black.
3. `exposed`: find what padding, shutters, collimator and collimation borders leave of the image.
4. `gate`: refuse a blank, a colour picture, text, several pictures in one.
5. Crop to the box around what is shown. `scale`: area resampling to the model's fixed size, in the middle of it.
6. Contrast: of what was exposed, the darkest 0.3 % becomes black and the brightest 0.3 % white. What is not shown is
   black.

So a radiograph gives the same input with a window or without, as 8 bits or 16, in a white border or cropped.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageOps

from dicom_node.image import exposed, gate, grey, scale
from dicom_node.image.decode import MAX_PIXELS, Stored, decode
from dicom_node.image.exposed import Box, Exposed
from dicom_node.image.grey import WHITE, Levels
from dicom_node.image.refusal import NotAnalysable, attempt
from dicom_node.image.window import Window, Windowable, as_stated, windowable
from models.reasons import Reason

__all__ = [
    "MAX_PIXELS",
    "PIPELINE_VERSION",
    "ModelInput",
    "NotAnalysable",
    "Window",
    "Windowable",
    "grey_picture",
    "model_input",
    "model_input_from_picture",
    "picture_as_stated",
    "picture_for_windows",
    "source_pixels_digest",
]

PIPELINE_VERSION = 2
"""Recorded with every prediction and every bundle; raised when any output value changes."""

_TAIL = 0.003
"""This share of the exposed pixels may saturate at either end: markers and dead pixels set no contrast."""


@dataclass(frozen=True, eq=False)
class ModelInput:
    """What the model sees, and where it came from.

    Attributes
    ----------
    pixels
        uint8, shape (rows, columns) of the model, C-contiguous, read-only; 0 black to 255 white, letterboxed with 0.
    source_rows, source_columns
        Size of the source image in pixels; of a picture that notes a camera's rotation, when upright.
    box
        The part of the source that was drawn, in source pixels.
    scale
        Model pixels per source pixel, the same in both directions (but for the rounding to whole pixels).
    left, top
        Where the box's top left corner lies, in model pixels.
    pixel_digest
        See `source_pixels_digest`.
    """

    pixels: npt.NDArray[np.uint8]
    source_rows: int
    source_columns: int
    box: Box
    scale: float
    left: float
    top: float
    pixel_digest: str

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the model's input to the source image, clipped to it.

        Both are continuous: 0.0, 0.0 is the top left corner of the top left pixel and Columns, Rows the bottom right
        corner of the bottom right one (PS3.3 C.18.6).
        """
        across, down = self._steps()
        return (
            min(max(self.box.left + (x - self.left) * across, 0.0), float(self.source_columns)),
            min(max(self.box.top + (y - self.top) * down, 0.0), float(self.source_rows)),
        )

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """All that the input covers, as (xmin, ymin, xmax, ymax) in source pixels: its letterbox reaches beyond."""
        rows, columns = self.pixels.shape
        across, down = self._steps()
        left, top = self.box.left - self.left * across, self.box.top - self.top * down
        return left, top, left + columns * across, top + rows * down

    def _steps(self) -> tuple[float, float]:
        """Source pixels to a model pixel, across and down."""
        rows, columns = self.pixels.shape
        width, height = self.box.right - self.box.left, self.box.bottom - self.box.top
        return (
            width / scale.drawn_length(width, self.scale, columns),
            height / scale.drawn_length(height, self.scale, rows),
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
    return attempt(Reason.UNSUPPORTED_PIXELS, _from_dataset, dataset, size)


def model_input_from_picture(image: Image.Image, size: tuple[int, int]) -> ModelInput:
    """Turn a PNG or JPEG picture into the model's input, exactly as a DICOM image with these grey values.

    A camera's rotation (EXIF) is undone first. Raises `NotAnalysable` as `model_input` does.
    """
    _check_size(size)
    return attempt(Reason.UNSUPPORTED_PIXELS, _from_picture, image, size)


def grey_picture(dataset: pydicom.Dataset, longest: int) -> npt.NDArray[np.uint8]:
    """Return the whole image for people to look at, in the contrast that the model sees it in.

    Parameters
    ----------
    dataset
        As for `model_input`.
    longest
        The most pixels that either side may have; an image that is smaller keeps its size.

    Returns
    -------
    uint8, shape (rows, columns), 0 black to 255 white. Raises `NotAnalysable` as `model_input` does, but for what is no
    radiograph.
    """
    return attempt(Reason.UNSUPPORTED_PIXELS, _picture, dataset, longest)


def picture_as_stated(dataset: pydicom.Dataset, longest: int) -> npt.NDArray[np.uint8]:
    """Return the whole image as its own header says: LUTs, window and inversion of the file. Else as `grey_picture`."""
    return attempt(Reason.UNSUPPORTED_PIXELS, as_stated, dataset, longest)


def picture_for_windows(dataset: pydicom.Dataset, longest: int) -> Windowable | None:
    """Read the whole image to be shown under windows that a person chooses; None where that makes no sense.

    Parameters and errors are those of `grey_picture`.
    """
    return attempt(Reason.UNSUPPORTED_PIXELS, windowable, dataset, longest)


def source_pixels_digest(dataset: pydicom.Dataset) -> str:
    """Return the SHA-256 (hex) of the decoded stored pixel values, before any LUT, with their shape.

    The same pixels in another lossless transfer syntax, or under another header, have the same digest. Raises
    `NotAnalysable` as `model_input` does.
    """
    return attempt(Reason.UNSUPPORTED_PIXELS, lambda: _digest(decode(dataset)[0]))


def _check_size(size: tuple[int, int]) -> None:
    """The size comes from a bundle, not from a patient's file: a wrong one is our own mistake."""
    if min(size) < 1:
        raise ValueError(f"The model's input size must be positive, not {size}.")


def _from_dataset(dataset: pydicom.Dataset, size: tuple[int, int]) -> ModelInput:
    stored, layout = decode(dataset)
    # hashlib lets other threads run, and hashing takes as long as the tables.
    with ThreadPoolExecutor(max_workers=1) as beside:
        digest = beside.submit(_digest, stored)
        levels = grey.levels(dataset, stored, layout)
        area = exposed.stated(dataset, layout.rows, layout.columns, grey.padding(dataset, stored))
        area.blacken(levels)
        chroma = grey.chroma(dataset, stored, step=max(1, max(levels.shape) // gate.GATE_SCALE))
    del stored  # as large as the levels, and no longer needed
    return _input(levels, area, chroma, size, digest.result())


def _picture(dataset: pydicom.Dataset, longest: int) -> npt.NDArray[np.uint8]:
    stored, layout = decode(dataset)
    levels = grey.levels(dataset, stored, layout)
    rows, columns = levels.shape
    area = exposed.stated(dataset, rows, columns, grey.padding(dataset, stored))
    del stored
    area.blacken(levels)
    small = scale.shrunk(scale.overview(levels, gate.GATE_SCALE), exposed.BORDER_SCALE)
    area = area.without(exposed.borders(small, rows, columns, area.hidden(*small.shape)))
    shrink = min(1.0, longest / max(rows, columns))
    drawn = scale.resampled(levels, max(1, round(rows * shrink)), max(1, round(columns * shrink)))
    return _contrasted(drawn, area, Box(0, 0, columns, rows))


def _from_picture(image: Image.Image, size: tuple[int, int]) -> ModelInput:
    if getattr(image, "n_frames", 1) > 1:
        raise NotAnalysable(Reason.MULTI_FRAME)
    if image.width < 1 or image.height < 1:
        raise NotAnalysable(Reason.NO_PIXELS)
    if image.width * image.height > MAX_PIXELS:
        raise NotAnalysable(Reason.TOO_LARGE)
    attempt(Reason.UNDECODABLE, image.load)
    upright = ImageOps.exif_transpose(image)
    stored = _stored(upright)
    if stored.colours:
        levels = grey.luminance(stored.values, stored.colours, stored.bits)
    else:
        levels = (np.arange(1 << stored.bits) * (WHITE // ((1 << stored.bits) - 1))).astype(np.uint16)[stored.values]
    step = max(1, max(levels.shape) // gate.GATE_SCALE)
    chroma = grey.chroma(pydicom.Dataset(), stored, step)
    return _input(levels, Exposed(*levels.shape), chroma, size, _digest(stored))


def _stored(image: Image.Image) -> Stored:
    """Return a picture's values as those of a DICOM image; what is transparent is black."""
    if image.mode in ("L", "1"):
        return Stored(np.asarray(image.convert("L")), 8, False, "")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > WHITE:
            raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
        return Stored(values.astype(np.uint16), 16, False, "")
    if image.mode == "F":
        raise NotAnalysable(Reason.UNSUPPORTED_PIXELS)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return Stored(np.asarray(image.convert("RGB")), 8, False, "RGB")


def _input(
    levels: Levels, area: Exposed, chroma: npt.NDArray[np.float32] | None, size: tuple[int, int], digest: str
) -> ModelInput:
    rows, columns = levels.shape
    seen = scale.overview(levels, gate.GATE_SCALE)
    small = scale.shrunk(seen, exposed.BORDER_SCALE)
    area = area.without(exposed.borders(small, rows, columns, area.hidden(*small.shape)))
    gate.refuse_what_is_no_radiograph(seen, chroma, area.unmeasured(*seen.shape))

    box = area.box(*seen.shape)
    height, width = box.bottom - box.top, box.right - box.left
    factor = min(size[0] / height, size[1] / width)
    drawn_size = (scale.drawn_length(height, factor, size[0]), scale.drawn_length(width, factor, size[1]))
    cropped = levels[box.top : box.bottom, box.left : box.right]
    drawn = _contrasted(scale.resampled(cropped, *drawn_size), area, box)
    top, left = (size[0] - drawn_size[0]) // 2, (size[1] - drawn_size[1]) // 2
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[top : top + drawn_size[0], left : left + drawn_size[1]] = drawn
    pixels.flags.writeable = False
    return ModelInput(pixels, rows, columns, box, factor, float(left), float(top), digest)


def _contrasted(drawn: npt.NDArray[np.float32], area: Exposed, box: Box) -> npt.NDArray[np.uint8]:
    rows, columns = drawn.shape
    measured = drawn[~area.unmeasured(rows, columns, box)]
    if not measured.size:
        raise NotAnalysable(Reason.BLANK)
    tail = int(_TAIL * measured.size)
    measured.partition(sorted({0, tail, measured.size - 1 - tail, measured.size - 1}))
    low, high = float(measured[tail]), float(measured[-1 - tail])
    if low == high:  # one value fills nearly the whole image: what little differs is all there is to show
        low, high = float(measured[0]), float(measured[-1])
    if low == high:
        raise NotAnalysable(Reason.BLANK)
    stretched: npt.NDArray[np.uint8] = np.rint((drawn - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    stretched[area.hidden(rows, columns, box)] = 0
    return stretched


def _digest(stored: Stored) -> str:
    """Hash values, not bytes: always 16 bits, little endian, so that Bits Allocated does not matter."""
    if stored.signed:
        sign_bit = 1 << (stored.bits - 1)
        values = ((stored.values.astype(np.int32) ^ sign_bit) - sign_bit).astype("<i2")
    else:
        values = stored.values.astype("<u2", copy=False)
    digest = hashlib.sha256(f"{values.dtype.str}{list(values.shape)}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
