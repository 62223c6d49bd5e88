"""A reader that only memorises: it looks a picture up among those it was shown and says what was said there.

It knows nothing of bones. What it scores on a split is what the split gives away; a network that scores the same has
shown no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.entries import Entry, labels

THUMBNAIL = 16
"""Rows and columns of what it remembers of a picture."""

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Answers:
    """What it said of n pictures.

    Attributes
    ----------
    said
        float64, (n,): 1 is fractured.
    exact
        bool, (n,): it had been shown the very same file.
    nearest
        intp, (n,): which of the pictures it had been shown it took for the same.
    """

    said: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]
    nearest: npt.NDArray[np.intp]


def answers(shown: Sequence[Entry], asked: Sequence[Entry]) -> Answers:
    """Answer for each entry `asked` with the label of the same file among those `shown`, else of the one most like it.

    Raises ValueError when nothing was shown.
    """
    if not shown:
        raise ValueError("It was shown nothing.")
    first: dict[str, int] = {}
    for place, entry in enumerate(shown):
        first.setdefault(entry.picture, place)
    exact = np.array([entry.picture in first for entry in asked], dtype=np.bool_)
    nearest = np.array([first.get(entry.picture, -1) for entry in asked], dtype=np.intp)
    unknown = np.flatnonzero(~exact)
    if len(unknown):
        distinct = list(first.values())
        like = _nearest(
            _thumbnails([shown[place] for place in distinct]), _thumbnails([asked[at] for at in unknown.tolist()])
        )
        nearest[unknown] = np.array(distinct, dtype=np.intp)[like]
    return Answers(labels(shown)[nearest], exact, nearest)


def _thumbnails(entries: Sequence[Entry]) -> npt.NDArray[np.float32]:
    """Return grey thumbnails of mean 0 and length 1, float32 (n, THUMBNAIL²), so that brightness does not matter."""
    thumbnails = np.zeros((len(entries), THUMBNAIL**2), dtype=np.float32)
    for place, entry in enumerate(entries):
        with Image.open(entry.path) as picture:
            small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnails[place] = np.asarray(small, dtype=np.float32).ravel()
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    unit: npt.NDArray[np.float32] = thumbnails / lengths
    return unit


def _nearest(shown: npt.NDArray[np.float32], asked: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Return for each row `asked` the row `shown` at the smallest distance, the first of several."""
    starts = range(0, len(asked), _ROWS_AT_ONCE)
    return np.concatenate([(asked[start : start + _ROWS_AT_ONCE] @ shown.T).argmax(axis=1) for start in starts])
