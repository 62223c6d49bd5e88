"""Which part of the image was exposed and is meant to be seen. The rest is black and sets no contrast.

Four things are not image: padding (PS3.3 C.7.5.1.1.2), what lies behind a display shutter (C.7.6.11), what lies beyond
the collimator (C.8.7.3) and, where no header tells of that, the bright border that collimation leaves along a side.
Such a border is looked for as a person sees it: bright from the edge on, and ending in one straight, sharp step across
the side. What is not found so clearly stays as it is: a white border does little harm, a blackened bone would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw

from dicom_node.image.grey import Levels, Mask

Grey = npt.NDArray[np.float32]
_Points = npt.NDArray[np.float64]
Shape = Callable[[_Points, _Points], Mask]
"""Which of the points x, y (source pixels, broadcast against each other) are inside."""


class Box(NamedTuple):
    """A part of the source image, in whole pixels; `right` and `bottom` lie outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Exposed:
    """What is shown and what sets the contrast, at any scale.

    Attributes
    ----------
    rows, columns
        Size of the source image.
    shown
        Shapes outside of which the image is black.
    measured
        Shapes outside of which nothing sets the contrast. A collimator only stated in the header is here: its numbers
        may be wrong, and they must not hide a bone.
    padding
        Padding, at the source's size.
    """

    rows: int
    columns: int
    shown: tuple[Shape, ...] = ()
    measured: tuple[Shape, ...] = ()
    padding: Mask | None = field(default=None, repr=False)

    def blacken(self, levels: Levels) -> None:
        """Make black what is not shown, at the source's size: what lies behind a shutter must not shine through it."""
        if not self.shown:
            return
        x = _centres(self.columns, self.columns)[None, :]
        for start in range(0, self.rows, _BAND):
            band = levels[start : start + _BAND]
            y = (np.arange(start, start + len(band), dtype=np.float64) + 0.5)[:, None]
            band[~_inside(self.shown, x, y)] = 0

    def hidden(self, rows: int, columns: int, box: Box | None = None) -> Mask:
        """Return which pixels of the image, or of a box of it, drawn at this size are to be black."""
        hidden = ~_inside(self.shown, *self._grid(rows, columns, box))
        if self.padding is not None:
            padding = self.padding if box is None else self.padding[box.top : box.bottom, box.left : box.right]
            covered = Image.fromarray(padding.astype(np.uint8) * np.uint8(255))
            hidden |= np.asarray(covered.resize((columns, rows), Image.Resampling.BOX)) > _HALF
        return hidden

    def unmeasured(self, rows: int, columns: int, box: Box | None = None) -> Mask:
        """Return which pixels drawn at this size set no contrast, hidden ones included."""
        return self.hidden(rows, columns, box) | ~_inside(self.measured, *self._grid(rows, columns, box))

    def box(self, rows: int, columns: int) -> Box:
        """Return the smallest box, in source pixels, around what is shown; all if nothing is.

        Shapes are judged at the size `rows` × `columns`, padding to the pixel.
        """
        box = self._box_of(_inside(self.shown, *self._grid(rows, columns, None)))
        if self.padding is None or self.padding.all():
            return box
        unpadded = self._box_of(~self.padding)
        both = Box(*map(max, box[:2], unpadded[:2]), *map(min, box[2:], unpadded[2:]))
        return both if both.left < both.right and both.top < both.bottom else box

    def _box_of(self, shown: Mask) -> Box:
        rows, columns = shown.shape
        down, across = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        if not down.size:
            return Box(0, 0, self.columns, self.rows)
        return Box(
            left=int(across[0]) * self.columns // columns,
            top=int(down[0]) * self.rows // rows,
            right=-(-(int(across[-1]) + 1) * self.columns // columns),
            bottom=-(-(int(down[-1]) + 1) * self.rows // rows),
        )

    def without(self, borders: Sequence[Shape]) -> Exposed:
        """Return the same without collimation borders that were found."""
        return Exposed(self.rows, self.columns, (*self.shown, *borders), self.measured, self.padding)

    def _grid(self, rows: int, columns: int, box: Box | None) -> tuple[_Points, _Points]:
        left, top, right, bottom = box or (0, 0, self.columns, self.rows)
        return left + _centres(columns, right - left)[None, :], top + _centres(rows, bottom - top)[:, None]


def _inside(shapes: Sequence[Shape], x: _Points, y: _Points) -> Mask:
    inside: Mask = np.ones((y.size, x.size), dtype=np.bool_)
    for shape in shapes:
        inside &= shape(x, y)
    return inside


def _centres(count: int, length: int) -> _Points:
    """Return where the middles of `count` drawn pixels lie on a side of `length` source pixels."""
    return (np.arange(count, dtype=np.float64) + 0.5) * (length / count)


_HALF = 127
"""A drawn pixel is padding where more than half of what it covers is: single values that happen to be equal are not."""
# Full-size masks are made so many rows at a time.
_BAND = 256

# --- what the header says ---------------------------------------------------------------------------------------------

_LEAST_SHOWN = 0.01
"""A shutter or collimator that leaves less than this share of the image is a mistake, and is not applied."""


def stated(dataset: pydicom.Dataset, rows: int, columns: int, padding: Mask | None) -> Exposed:
    """Return what the header says of shutters and collimator. Nonsense in them is ignored, as viewers do."""
    shutter = _shapes(dataset, "Shutter", "VerticesOfThePolygonalShutter", rows, columns)
    collimator = _shapes(dataset, "Collimator", "VerticesOfThePolygonalCollimator", rows, columns)
    return Exposed(rows, columns, shutter, collimator, padding)


def _shapes(dataset: pydicom.Dataset, kind: str, polygon: str, rows: int, columns: int) -> tuple[Shape, ...]:
    """Return the shapes of a shutter or a collimator: what is shown lies inside all of them."""
    names = dataset.get(f"{kind}Shape") or ()
    found = [
        _SHAPES[name](dataset, kind, polygon, rows, columns)
        for name in ([names] if isinstance(names, str) else names)
        if name in _SHAPES
    ]
    shapes = tuple(shape for shape in found if shape is not None)
    if shapes and Exposed(rows, columns, shapes).hidden(64, 64).mean() > 1 - _LEAST_SHOWN:
        return ()
    return shapes


def _rectangle(dataset: pydicom.Dataset, kind: str, _polygon: str, rows: int, columns: int) -> Shape | None:
    names = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
    edges = [_integer(dataset.get(f"{kind}{name}")) for name in names]
    if any(edge is None for edge in edges):
        return None
    # Columns and rows are counted from 1; the edge's own pixels are shown. A missing corner is the image's.
    left, right, upper, lower = (float(edge or 0) for edge in edges)
    if right <= left or lower <= upper or left >= columns or upper >= rows:
        return None
    return lambda x, y: (x > left - 1) & (x < right) & (y > upper - 1) & (y < lower)


def _circle(dataset: pydicom.Dataset, kind: str, _polygon: str, _rows: int, _columns: int) -> Shape | None:
    centre = _integers(dataset.get(f"CenterOfCircular{kind}"))
    radius = _integer(dataset.get(f"RadiusOfCircular{kind}"))
    if len(centre) != 2 or not radius or radius < 1:
        return None
    row, column = centre[0] - 0.5, centre[1] - 0.5
    squared = float(radius) ** 2
    return lambda x, y: (x - column) ** 2 + (y - row) ** 2 <= squared


def _polygon(dataset: pydicom.Dataset, _kind: str, polygon: str, _rows: int, _columns: int) -> Shape | None:
    corners = _integers(dataset.get(polygon))
    if not 6 <= len(corners) <= 2000 or len(corners) % 2:
        return None
    points = [(column - 0.5, row - 0.5) for row, column in zip(corners[::2], corners[1::2], strict=True)]

    def inside(x: _Points, y: _Points) -> Mask:
        across, down = _spacing(x), _spacing(y)
        corner_x, corner_y = float(x.flat[0]) - across / 2, float(y.flat[0]) - down / 2
        drawn = Image.new("1", (x.size, y.size), 0)
        outline = [((px - corner_x) / across - 0.5, (py - corner_y) / down - 0.5) for px, py in points]
        ImageDraw.Draw(drawn).polygon(outline, fill=1)
        return np.asarray(drawn, dtype=np.bool_)

    return inside


def _spacing(points: _Points) -> float:
    return float(points.flat[1] - points.flat[0]) if points.size > 1 else 1.0


_SHAPES = {"RECTANGULAR": _rectangle, "CIRCULAR": _circle, "POLYGONAL": _polygon}


def _integers(value: object) -> list[int]:
    found = [_integer(part) for part in (value if isinstance(value, pydicom.multival.MultiValue | list) else [value])]
    return [part for part in found if part is not None]


def _integer(value: object) -> int | None:
    try:
        found = int(str(value))
    except ValueError:
        return None
    return found if abs(found) < 2**31 else None


# --- what the pixels say ----------------------------------------------------------------------------------------------

BORDER_SCALE = 256
"""Borders are looked for with the image's longest side at this many pixels."""
_SHORTEST_SIDE = 48
_DEEPEST = 0.45
"""A border covers at most this share of the image from its side."""
_BRIGHT = 0.45
"""Unexposed film is at least so bright, of the image's own range; air and most soft tissue are not."""
_STEP = 0.2
"""The border ends in a step of at least this much of the range, within `_REACH` pixels on either side."""
_REACH = 3
_ALONG = 0.6
"""The step runs straight along at least this share of the side."""
_OFF_LINE = 1.5
"""So many pixels may the step be off its line."""
_STEEPEST = 0.27
"""Collimators and films are turned by up to 15 degrees."""
_NEARLY_ALL = 0.97
_EVEN, _ENDS, _ENDS_ALONG = 0.01, 0.05, 0.25
"""An even band varies by less than the first, and ends where along a quarter of it something differs by the second."""
_SEEN = 0.4
"""At least this share of a side is not covered by the borders of its neighbours."""
_NEGATIVE = 0.5
"""Where so much of the edge of what remains is bright, brightness is no sign of a border."""
_TRIED = 24


def borders(overview: Grey, rows: int, columns: int, hidden: Mask) -> list[Shape]:
    """Return, for each bright collimation border found, the half-plane that remains.

    Parameters
    ----------
    overview
        The image with its longest side at `BORDER_SCALE` or less, any linear scale of grey.
    rows, columns
        Size of the source image, whose pixels the shapes are in.
    hidden
        What is not shown anyway, at the overview's size.
    """
    if min(overview.shape) < _SHORTEST_SIDE or hidden.all():
        return []
    low, high = np.percentile(overview[~hidden], [0.5, 99.9])
    if high <= low:
        return []
    grey = np.where(hidden, 0.0, (overview - low) / (high - low)).astype(np.float64)
    dark = hidden.copy()
    found: list[Shape] = []
    # A border found on one side clears the view on its neighbours, so all four are tried twice.
    left, tried = list(_SIDES), dict[str, int]()
    for side in (*_SIDES, *_SIDES):
        if side not in left or tried.get(side) == len(found):  # nothing new since the first time
            continue
        tried[side] = len(found)
        seen = _from_edge(grey, side), _from_edge(dark, side)
        line = _straight_step(*seen) or _even_band(*seen)
        if line is None:
            continue
        left.remove(side)
        shape = _half_plane(side, line, overview.shape, rows, columns)
        found.append(shape)
        dark |= ~shape(_centres(overview.shape[1], columns)[None, :], _centres(overview.shape[0], rows)[:, None])
    # In a negative, air is bright and lies on all sides; what was found in it is the edge of a limb, and no border.
    return [] if found and _bright_around(grey, dark) else found


def _bright_around(grey: npt.NDArray[np.float64], dark: Mask) -> bool:
    """Return whether the edge of what remains between the borders is mostly bright."""
    down, across = np.flatnonzero(~dark.all(axis=1)), np.flatnonzero(~dark.all(axis=0))
    if not down.size:
        return False
    inner = slice(down[0] + _REACH, down[-1] + 1 - _REACH), slice(across[0] + _REACH, across[-1] + 1 - _REACH)
    rest, covered = grey[inner], dark[inner]
    edge = [
        np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        for image in (rest, covered)
    ]
    seen = edge[0][~edge[1].astype(np.bool_)]
    return bool(seen.size) and float((seen >= _BRIGHT).mean()) > _NEGATIVE


_SIDES = ("top", "bottom", "left", "right")


def _from_edge(image: npt.NDArray[np.generic], side: str) -> npt.NDArray[np.generic]:
    """Turn the image so that `side` comes first: row 0 is the edge, and rows run inward."""
    turned = image if side in ("top", "bottom") else image.T
    return turned if side in ("top", "left") else turned[::-1]


def _straight_step(grey: npt.NDArray[np.generic], dark: npt.NDArray[np.generic]) -> tuple[float, float] | None:
    """Return depth at position 0 and slope of the step behind which the first rows are bright, or None."""
    depth, width = grey.shape
    deepest = min(depth - _REACH - 1, int(depth * _DEEPEST))
    at = np.arange(_REACH + 1, deepest)
    if not at.size:
        return None
    # Only as deep as is looked: half of the image.
    near = np.ascontiguousarray(grey[: deepest + _REACH], dtype=np.float64)
    total = np.concatenate([np.zeros((1, width)), np.cumsum(near, axis=0)])
    middle, before, behind = (total[_REACH + 1 + by : deepest + by] for by in (0, -_REACH, _REACH))
    step = (2 * middle - before - behind) / _REACH
    # The outermost pixels are often a dark or bright rim; those at the step itself are in between.
    lowest = np.minimum.accumulate(near[2:], axis=0)[: len(at)]
    step[lowest < _BRIGHT] = -1.0
    depths = at[step.argmax(axis=0)].astype(np.float64)
    # Where a neighbouring border covers the whole depth, or all is hidden, there is no step to be seen.
    covered = dark[2:deepest].mean(axis=0) > 0.5
    seen = (step.max(axis=0) >= _STEP) & ~covered
    covered |= _ends((lowest[-1] >= _BRIGHT) & ~seen)
    long = width - int(np.count_nonzero(covered))
    if long < _SEEN * width or np.count_nonzero(seen) < _ALONG * long:
        return None
    positions = np.flatnonzero(seen).astype(np.float64)
    line = _line_through(positions, depths[seen], least=_ALONG * long)
    if line is None:
        return None
    beyond = np.arange(depth)[:, None] < line[0] + line[1] * np.arange(width)[None, :] - _OFF_LINE
    beyond[:2] = False
    beyond &= ~(covered[None, :] | dark.astype(np.bool_))
    if beyond.any() and (grey.astype(np.float64)[beyond] >= _BRIGHT).mean() < _NEARLY_ALL:
        return None
    return line


def _even_band(grey: npt.NDArray[np.generic], dark: npt.NDArray[np.generic]) -> tuple[float, float] | None:
    """Return the depth of an even, bright band, and 0; None for a thinner one.

    Where tissue is nearly as bright as the border there is no step to be seen, but rows that are all of one bright grey
    from end to end show nothing that could be lost.
    """
    deepest = int(len(grey) * _DEEPEST)
    rows = np.where(dark[:deepest], np.nan, grey[:deepest].astype(np.float64))
    if np.isnan(rows[2:3]).all() or np.nanmedian(rows[2]) < _BRIGHT:
        return None
    level = np.nanmedian(rows[2])
    known = ~np.isnan(rows)
    even = ((np.abs(rows - level) < _EVEN) & known).sum(axis=1) >= _NEARLY_ALL * np.maximum(1, known.sum(axis=1))
    even[:2] = True
    depth = int(np.logical_and.accumulate(even).sum())
    if not _REACH < depth < deepest - 2:
        return None
    # What fades slowly is even for a few rows too; a border ends.
    ends = np.abs(rows[depth + 2] - level) > _ENDS
    return (float(depth), 0.0) if ends.sum() >= _ENDS_ALONG * max(1, known[depth + 2].sum()) else None


def _ends(true: Mask) -> Mask:
    """Return where `true` holds without a gap from either end."""
    return np.logical_and.accumulate(true) | np.logical_and.accumulate(true[::-1])[::-1]


def _line_through(
    positions: npt.NDArray[np.float64], depths: npt.NDArray[np.float64], *, least: float
) -> tuple[float, float] | None:
    """Return offset and slope of the line that most points agree on (RANSAC, but over a fixed set of pairs)."""
    tried = np.linspace(0, len(positions) - 1, min(_TRIED, len(positions))).astype(np.int64)
    one, other = (of.ravel() for of in np.meshgrid(tried, tried, indexing="ij"))
    apart = positions[other] - positions[one] >= len(positions) / 3
    one, other = one[apart], other[apart]
    slopes = (depths[other] - depths[one]) / (positions[other] - positions[one])
    one, slopes = one[np.abs(slopes) <= _STEEPEST], slopes[np.abs(slopes) <= _STEEPEST]
    if not one.size:
        return None
    # One row for each pair: all at once, for a loop over 300 pairs takes longer than the rest of this file.
    off = np.abs(depths - depths[one, None] - slopes[:, None] * (positions - positions[one, None]))
    agree = off <= _OFF_LINE
    best = agree[np.count_nonzero(agree, axis=1).argmax()]
    if best.sum() < least:
        return None
    slope, offset = np.polyfit(positions[best], depths[best], 1)
    return float(offset), float(slope)


def _half_plane(side: str, line: tuple[float, float], shape: tuple[int, int], rows: int, columns: int) -> Shape:
    """Return what remains on the other side of the line, in source pixels; the blurred step itself goes too."""
    across, down = columns / shape[1], rows / shape[0]
    offset, slope = line[0] + _OFF_LINE - 0.5 * line[1], line[1]
    if side == "top":
        return lambda x, y: y / down > offset + slope * (x / across)
    if side == "bottom":
        return lambda x, y: shape[0] - y / down > offset + slope * (x / across)
    if side == "left":
        return lambda x, y: x / across > offset + slope * (y / down)
    return lambda x, y: shape[1] - x / across > offset + slope * (y / down)
