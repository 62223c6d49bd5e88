"""A grey image under a window that a person chooses: read once, small, and drawn again at each move.

The window is laid over the values after the modality LUT (PS3.3 C.11.2.1.2), averaged to the size of a screen before,
so that drawing takes milliseconds. For looking; the model's input is made in `dicom_node.pixels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom

from dicom_node.image import exposed, grey, scale
from dicom_node.image.decode import decode
from dicom_node.image.grey import WHITE


@dataclass(frozen=True)
class Window:
    """Centre and width, in values after the modality LUT; the width is more than 0."""

    centre: float
    width: float


@dataclass(frozen=True, eq=False)
class Windowable:
    """What windows are laid over.

    Attributes
    ----------
    values
        float32, shape (rows, columns): after the modality LUT.
    hidden
        bool, the same shape: padding, and what a shutter hides; black under every window.
    low, high
        The ends of what the image holds, padding left out.
    inverted
        Whether low values are shown light (MONOCHROME1).
    window
        The header's first window, or all that the image holds where it has none that is usable.
    """

    values: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.bool_]
    low: float
    high: float
    inverted: bool
    window: Window

    def drawn(self, window: Window, *, inverted: bool = False) -> npt.NDArray[np.uint8]:
        """Draw it, uint8 of the shape of `values`, by the linear function of PS3.3 C.11.2.1.3.2.

        Parameters
        ----------
        inverted
            Turned over once more, as a person asks for it.
        """
        shown = grey.windowed(self.values.astype(np.float64), window.centre, window.width, "LINEAR_EXACT")
        if self.inverted != inverted:
            shown = 1.0 - shown
        shown[self.hidden] = 0.0
        drawn: npt.NDArray[np.uint8] = np.rint(shown * 255).astype(np.uint8)
        return drawn


def windowable(dataset: pydicom.Dataset, longest: int) -> Windowable | None:
    """Read an image for windows; None where it has colours, or one value only.

    Raises what `decode` and `grey` raise.
    """
    stored, layout = decode(dataset)
    if stored.colours:
        return None
    table, padded = grey.modality_table(dataset, stored)
    held = np.bincount(stored.values.ravel(), minlength=len(table)) > 0
    if padded is not None:
        held &= ~padded
    if not held.any():
        return None
    low, high = float(table[held].min()), float(table[held].max())
    if low == high:
        return None
    levels = grey.in_table(((table - low) / (high - low)).clip(0, 1), stored.values)
    shrink = min(1.0, longest / max(levels.shape))
    rows, columns = (max(1, round(length * shrink)) for length in levels.shape)
    area = exposed.stated(dataset, layout.rows, layout.columns, grey.padding(dataset, stored))
    values = low + scale.resampled(levels, rows, columns) * ((high - low) / WHITE)
    return Windowable(
        values.astype(np.float32),
        area.hidden(rows, columns),
        low,
        high,
        grey.is_inverted(dataset, layout),
        _window(dataset) or Window((low + high) / 2, high - low),
    )


def as_stated(dataset: pydicom.Dataset, longest: int) -> npt.NDArray[np.uint8]:
    """Return the whole image as its own header says that it is shown, uint8, its longer side at most `longest`."""
    stored, layout = decode(dataset)
    levels = grey.levels(dataset, stored, layout)
    area = exposed.stated(dataset, layout.rows, layout.columns, grey.padding(dataset, stored))
    area.blacken(levels)
    shrink = min(1.0, longest / max(levels.shape))
    rows, columns = (max(1, round(length * shrink)) for length in levels.shape)
    drawn: npt.NDArray[np.uint8] = np.rint(scale.resampled(levels, rows, columns) * (255 / WHITE)).astype(np.uint8)
    return drawn


def _window(dataset: pydicom.Dataset) -> Window | None:
    centre, width = grey.number(dataset, "WindowCenter"), grey.number(dataset, "WindowWidth")
    return Window(centre, width) if centre is not None and width is not None and width > 0 else None
