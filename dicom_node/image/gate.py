"""What is plainly no radiograph: blank, a colour picture, text, or several pictures in one.

Rules on the pixels alone, each with a wide gap between what it refuses and every one of FracAtlas' 3,333 radiographs
(docs/decisions/0008-input-gate.md has the figures). A grey photograph or a radiograph of another body part passes here:
to tell those takes the model's own features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dicom_node.image.grey import Mask
from dicom_node.image.refusal import NotAnalysable
from models.reasons import Reason

Grey = npt.NDArray[np.float32]

GATE_SCALE = 640
"""The gate looks at the image with its longest side at this many pixels or less."""

_LEAST_STRUCTURE = 0.02
"""A flat exposure, with its heel effect and noise, deviates by less than this share of its range; bones by 0.08 up."""
_BLOCKS = 32
_COLOURED = 0.2
"""Chroma, 0 to 1, from which a pixel is coloured; film and monitors are tinted less."""
_MOST_COLOURED = 0.1
_EDGE = 0.12
"""A step between neighbours of this share of the range is an edge."""
_AROUND_BACKGROUND = 0.08
_MOST_EDGES = 0.6
"""So much of what is not background may be edge. Letters are nothing else (0.9 up), radiographs have 0.3 at most."""
_LEGIBLE = 100
"""In a smaller image bones are as fine as letters."""
_GUTTER_EVEN = 0.012
_GUTTER_NEARLY_ALL = 0.985
_STEADY = 0.13
"""An even column of greys from 0 to 1 has no larger standard deviation: 1.5 % of it may be anything."""
_GUTTER_STEP = 0.03
_GUTTER_LONG = 0.45
"""Along so much of it a gutter differs from the picture on either side; one in FracAtlas has 0.38, the next 0.07."""


def refuse_what_is_no_radiograph(grey: Grey, chroma: Grey | None, unmeasured: Mask) -> None:
    """Raise NotAnalysable with BLANK, PHOTOGRAPH, TEXT or MULTI_PANEL.

    Parameters
    ----------
    grey
        The image at `GATE_SCALE`, on any linear scale of grey.
    chroma
        How far pixels are from grey, 0 to 1, any sampling; None for an image without colours.
    unmeasured
        What does not count, at the size of `grey`: padding, shutters, borders.
    """
    low, high = float(grey.min()), float(grey.max())
    if unmeasured.all() or high <= low:
        raise NotAnalysable(Reason.BLANK)
    scaled = (grey - low) / (high - low)
    if chroma is not None and (chroma > _COLOURED).mean() > _MOST_COLOURED:
        raise NotAnalysable(Reason.PHOTOGRAPH)
    if _structure(scaled, unmeasured) < _LEAST_STRUCTURE:
        raise NotAnalysable(Reason.BLANK)
    if max(grey.shape) >= _LEGIBLE and _edges(scaled) > _MOST_EDGES:
        raise NotAnalysable(Reason.TEXT)
    picture = _without_bars(scaled)
    if max(_gutter(picture), _gutter(picture.T)) > _GUTTER_LONG:
        raise NotAnalysable(Reason.MULTI_PANEL)


def _structure(grey: Grey, unmeasured: Mask) -> float:
    """Standard deviation of block means about a smooth surface of second order, of the range of what is measured.

    Block means hold no noise, the surface takes up the slow change over a flat exposure.
    """
    rows = np.arange(grey.shape[0]) * _BLOCKS // grey.shape[0]
    columns = np.arange(grey.shape[1]) * _BLOCKS // grey.shape[1]
    values, block = grey.ravel(), (rows[:, None] * _BLOCKS + columns[None, :]).ravel()
    if unmeasured.any():  # mostly not, and then nothing need be picked out
        seen = ~unmeasured.ravel()
        values, block = values[seen], block[seen]
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return 0.0
    counts = np.bincount(block, minlength=_BLOCKS**2)
    sums = np.bincount(block, weights=values, minlength=_BLOCKS**2)
    full = counts > counts.max() / 2
    means = sums[full] / counts[full]
    at = np.flatnonzero(full)
    y, x = at // _BLOCKS / _BLOCKS - 0.5, at % _BLOCKS / _BLOCKS - 0.5
    surface = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    if len(means) <= surface.shape[1]:
        return float(values.std() / (high - low))
    coefficients = np.linalg.lstsq(surface, means, rcond=None)[0]
    return float((means - surface @ coefficients).std() / (high - low))


def _edges(grey: Grey) -> float:
    """Share of edges among what is not background, the background being the commonest grey."""
    steps = np.maximum(np.abs(np.diff(grey, axis=0))[:, :-1], np.abs(np.diff(grey, axis=1))[:-1])
    commonest = (np.bincount((grey * 31.999).astype(np.int64).ravel(), minlength=32).argmax() + 0.5) / 32
    other = np.abs(grey[:-1, :-1] - commonest) >= _AROUND_BACKGROUND
    return float((steps[other] > _EDGE).mean()) if other.any() else 0.0


def _without_bars(grey: Grey) -> Grey:
    """Cut off even rows and columns at the edges: between a letterbox and a film's border nothing is parted."""
    for _ in range(2):
        rows = np.ptp(grey, axis=1) >= _GUTTER_EVEN
        if rows.any():
            grey = grey[rows.argmax() : len(rows) - rows[::-1].argmax()].T
    return grey


def _gutter(grey: Grey) -> float:
    """How much of the length of the best gutter between columns differs from the columns beside it, on both sides."""
    # Only a column that hardly varies can be even: medians are slow.
    steady = np.flatnonzero(grey.std(axis=0) < _STEADY)
    middle, even = np.zeros(grey.shape[1], np.float32), np.zeros(grey.shape[1], np.bool_)
    middle[steady] = np.median(grey[:, steady], axis=0)
    even[steady] = (np.abs(grey[:, steady] - middle[steady]) < _GUTTER_EVEN).mean(axis=0) >= _GUTTER_NEARLY_ALL
    width, best, start = grey.shape[1], 0.0, 0
    while start < width:
        end = start
        while end + 1 < width and even[start] and even[end + 1] and abs(middle[end + 1] - middle[start]) < _GUTTER_EVEN:
            end += 1
        if even[start] and 0.1 * width < start and end < 0.9 * width - 2:
            differs = [
                (np.abs(grey[:, beside] - middle[start]) > _GUTTER_STEP).mean() for beside in (start - 2, end + 2)
            ]
            best = max(best, float(min(differs)))
        start = end + 1
    return best
