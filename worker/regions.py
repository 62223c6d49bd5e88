"""Where a finding is: from the model's score map to a point and an outline in the source image.

The map is coarse: a cell covers many source pixels. So the outline follows the edges of cells and claims no more than
the map says, and only the peak is finer than a cell. Letterbox borders are never part of either.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dicom_node.pixels import ModelInput

Scores = npt.NDArray[np.float32]
"""Shape (h, w), 0 to 1; cell (i, j) covers the model's rows i × rows / h to (i + 1) × rows / h, columns alike."""

_Grid = npt.NDArray[np.bool_]


class Point(NamedTuple):
    """In source pixels; 0.0, 0.0 is the top left corner of the top left pixel (PS3.3 C.18.6)."""

    x: float
    y: float


class Region(NamedTuple):
    """A closed outline in source pixels; its last point is joined to its first."""

    outline: tuple[Point, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The smallest upright box around it: xmin, ymin, xmax, ymax."""
        xs, ys = [point.x for point in self.outline], [point.y for point in self.outline]
        return min(xs), min(ys), max(xs), max(ys)


def locate(scores: Scores, image: ModelInput, share: float) -> tuple[Point, Region]:
    """Return the peak of a score map and the region around it.

    Both lie within the part of the source that was drawn, and the region has an area.

    Parameters
    ----------
    scores
        The map of one finding, finite.
    image
        What the map is of.
    share
        The region is made of the cells, joined by their edges, whose score is at least this share of the best one's.
    """
    xs = _lines(image, scores.shape[1], across=True)
    ys = _lines(image, scores.shape[0], across=False)
    drawn = np.logical_and.outer(np.diff(ys) > _NOTHING, np.diff(xs) > _NOTHING)
    best = np.unravel_index(np.where(drawn, scores, -np.inf).argmax(), scores.shape)
    row, column = int(best[0]), int(best[1])
    alike = drawn & (scores >= np.float32(share) * scores[row, column])
    outline = _outline(_connected(alike, row, column))
    return (
        _centroid(np.where(drawn, scores, 0), xs, ys, row, column),
        Region(tuple(Point(float(xs[j]), float(ys[i])) for j, i in outline)),
    )


_NOTHING = 1e-6
"""Source pixels; a cell with less of the drawn image in it shows none of it, but for rounding."""


def _lines(image: ModelInput, cells: int, *, across: bool) -> npt.NDArray[np.float64]:
    """Return where the cells + 1 lines between cells lie in the source, those in the letterbox at the box's edge."""
    if across:
        length, low, high = image.pixels.shape[1], image.box.left, image.box.right
        found = [image.to_source(line * length / cells, 0)[0] for line in range(cells + 1)]
    else:
        length, low, high = image.pixels.shape[0], image.box.top, image.box.bottom
        found = [image.to_source(0, line * length / cells)[1] for line in range(cells + 1)]
    return np.clip(np.array(found, dtype=np.float64), low, high)


def _centroid(scores: Scores, xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64], row: int, column: int) -> Point:
    """Return the centroid of the scores in the 3 × 3 cells around the best one: finer than a cell, and not far off."""
    rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
    weights = scores[rows, columns].astype(np.float64)
    x, y = ((xs[1:] + xs[:-1]) / 2)[columns], ((ys[1:] + ys[:-1]) / 2)[rows]
    total = weights.sum()
    if total <= 0:
        return Point(float(xs[column] + xs[column + 1]) / 2, float(ys[row] + ys[row + 1]) / 2)
    return Point(float((weights.sum(axis=0) * x).sum() / total), float((weights.sum(axis=1) * y).sum() / total))


def _connected(alike: _Grid, row: int, column: int) -> _Grid:
    """Return the cells of `alike` that are joined by edges with the given one."""
    found = np.zeros_like(alike)
    found[row, column] = True
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= alike
        if np.array_equal(grown, found):
            return found
        found = grown


# Right, down, left, up, as (columns, rows): a step that way, and the cell at its right-hand side from where it starts.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_BESIDE = ((0, 0), (-1, 0), (-1, -1), (0, -1))


def _outline(cells: _Grid) -> list[tuple[int, int]]:
    """Return the corners of the outer edge of one connected region, as (column line, row line), clockwise.

    Walks along the lines with the region on its right-hand side, from the left end of the region's top edge. Where two
    cells touch at a corner only, it turns right and so stays with the cell that it follows: a corner joins nothing.
    """
    padded = np.pad(cells, 1)

    def beside(x: int, y: int, heading: int) -> bool:
        column, row = _BESIDE[heading % 4]
        return bool(padded[y + row + 1, x + column + 1])

    def is_edge(x: int, y: int, heading: int) -> bool:
        # What lies on the left of a step lies on the right of the step one turn to the left.
        return beside(x, y, heading) and not beside(x, y, heading - 1)

    top = int(cells.any(axis=1).argmax())
    start = (int(cells[top].argmax()), top)
    corners = [start]
    (x, y), heading = start, 0
    while True:
        x, y = x + _STEPS[heading][0], y + _STEPS[heading][1]
        if (x, y) == start:
            return corners
        turn = next(turn for turn in (1, 0, -1) if is_edge(x, y, heading + turn))
        if turn:
            corners.append((x, y))
            heading = (heading + turn) % 4
