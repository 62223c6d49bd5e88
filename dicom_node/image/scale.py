"""Resampling: averages over the area of each new pixel, and where the old pixels come to lie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_node.image.grey import Levels

Grey = npt.NDArray[np.float32]

# Sums are taken of so many rows of blocks at a time: those of the whole image would be larger than the image.
_BAND = 32


def drawn_length(length: int, scale: float, room: int) -> int:
    """Return how many of `room` model pixels `length` source pixels take up at `scale`.

    It is even where the room is even and odd where it is odd: the image then lies exactly in the middle, and one that
    is flipped or turned gives the flipped or turned input.
    """
    half = (length * scale - room % 2) / 2
    return min(room, max(2 - room % 2, 2 * round(half) + room % 2))


def resampled(levels: Levels, rows: int, columns: int) -> Grey:
    """Return the image at the size `rows` × `columns`, antialiased, as float32 on the same scale.

    Shrinking averages over the area of an output pixel: Pillow's HAMMING, whose weights taper, because its BOX takes
    each source pixel wholly or not at all and so jumps at fractional scales. Enlarging is bilinear.
    """
    shrinks = rows < levels.shape[0] or columns < levels.shape[1]
    method = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    drawn = Image.fromarray(levels).resize((columns, rows), method)
    return np.asarray(drawn, dtype=np.float32)


def overview(levels: Levels, longest: int) -> Grey:
    """Return the image with its longest side at `longest` or a little less, by plain averages; never enlarged.

    For looking at, not for measuring: up to a few rows and columns at the far edges are left out.
    """
    rows, columns = levels.shape
    factor = max(1, max(rows, columns) // longest)
    blocks = _block_means(levels, min(factor, rows, columns))
    shrink = min(1.0, longest / max(blocks.shape))
    size = (max(1, round(blocks.shape[1] * shrink)), max(1, round(blocks.shape[0] * shrink)))
    if size == (blocks.shape[1], blocks.shape[0]):
        return blocks
    return np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BOX), dtype=np.float32)


def shrunk(grey: Grey, longest: int) -> Grey:
    """Return an overview at a smaller size still."""
    shrink = min(1.0, longest / max(grey.shape))
    size = (max(1, round(grey.shape[1] * shrink)), max(1, round(grey.shape[0] * shrink)))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), dtype=np.float32)


def _block_means(levels: Levels, factor: int) -> Grey:
    if factor == 1:
        return levels.astype(np.float32)
    rows, columns = (length // factor for length in levels.shape)
    means = np.empty((rows, columns), dtype=np.float32)
    for start in range(0, rows, _BAND):
        band = levels[start * factor : min(start + _BAND, rows) * factor, : columns * factor]
        # Sums of whole rows first, then of columns: adding strided views is ten times as fast as reshaping and summing.
        down = band[0::factor].astype(np.uint32)
        for at in range(1, factor):
            down += band[at::factor]
        across = down[:, 0::factor].copy()
        for at in range(1, factor):
            across += down[:, at::factor]
        means[start : start + _BAND] = across.astype(np.float32) / np.float32(factor * factor)
    return means
