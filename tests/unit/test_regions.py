"""Where a finding is said to be: within the picture, around the best cell, and no farther than the map says."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from dicom_node.image.exposed import Box
from dicom_node.pixels import ModelInput
from worker.regions import Point, Region, locate


def drawn(size: tuple[int, int], box: Box, source: tuple[int, int] | None = None) -> ModelInput:
    """An input of `size` (rows, columns) whose `box` of the source lies letterboxed in its middle."""
    height, width = box.bottom - box.top, box.right - box.left
    scale = min(size[0] / height, size[1] / width)
    rows, columns = source or (box.bottom, box.right)
    left, top = (size[1] - width * scale) / 2, (size[0] - height * scale) / 2
    pixels = np.zeros(size, np.uint8)
    return ModelInput(pixels, rows, columns, box, scale, left, top, "")


PLAIN = drawn((80, 80), Box(0, 0, 80, 80))
"""A model of 80 × 80 pixels that draws a source of the same size: in a map of 8 × 8, a cell is 10 pixels."""


def scores(cells: dict[tuple[int, int], float], shape: tuple[int, int] = (8, 8)) -> NDArray[np.float32]:
    made = np.zeros(shape, np.float32)
    for cell, score in cells.items():
        made[cell] = score
    return made


def area(region: Region) -> float:
    """The shoelace formula; positive where the outline runs clockwise, y pointing down."""
    turns = zip(region.outline, region.outline[1:] + region.outline[:1], strict=True)
    return sum(here.x * there.y - there.x * here.y for here, there in turns) / 2


def corners(region: Region) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in region.outline]


def test_a_single_cell_has_its_peak_in_its_middle_and_its_edges_as_its_region() -> None:
    peak, region = locate(scores({(2, 3): 0.9}), PLAIN, 0.5)
    assert peak == Point(35, 25)
    assert corners(region) == [(30, 20), (40, 20), (40, 30), (30, 30)]
    assert region.box == (30, 20, 40, 30)


def test_the_peak_is_drawn_towards_its_neighbours_by_their_scores() -> None:
    peak, _ = locate(scores({(2, 3): 0.8, (2, 4): 0.8 - 1e-6, (4, 3): 0.7}), PLAIN, 0.5)
    assert peak.x == pytest.approx(40, abs=0.01)  # half way to a neighbour that scores as much
    assert peak.y == pytest.approx(25)  # two cells away is too far


def test_the_region_has_the_joined_cells_from_the_share_of_the_best_score_on() -> None:
    found = {(2, 3): 0.8, (2, 4): 0.4, (2, 5): 0.39, (3, 4): 0.6, (4, 5): 0.7, (6, 6): 0.7}
    _, region = locate(scores(found), PLAIN, 0.5)
    assert area(region) == 3 * 100
    assert region.box == (30, 20, 50, 40)
    # (2, 5) scores too little, (4, 5) touches at a corner only, and (6, 6) lies apart.


def test_a_region_follows_the_edges_of_its_cells() -> None:
    _, region = locate(scores({(1, 1): 0.9, (1, 2): 0.9, (2, 1): 0.9}), PLAIN, 0.5)
    assert corners(region) == [(10, 10), (30, 10), (30, 20), (20, 20), (20, 30), (10, 30)]


def test_a_hole_is_not_left_out_of_a_region() -> None:
    ring = {(i, j): 0.9 for i in range(1, 4) for j in range(1, 4) if (i, j) != (2, 2)}
    _, region = locate(scores(ring), PLAIN, 0.5)
    assert corners(region) == [(10, 10), (40, 10), (40, 40), (10, 40)]


def test_a_share_of_one_takes_the_best_cell_alone() -> None:
    _, region = locate(scores({(2, 3): 0.8, (2, 4): 0.799}), PLAIN, 1.0)
    assert region.box == (30, 20, 40, 30)


def test_of_equal_scores_the_first_is_taken_every_time() -> None:
    assert locate(scores({(6, 6): 0.5, (1, 2): 0.5}), PLAIN, 0.9)[1].box == (20, 10, 30, 20)


def test_a_map_without_any_score_points_at_no_place_in_particular() -> None:
    peak, region = locate(scores({}), PLAIN, 0.5)
    assert region.box == (0, 0, 80, 80)
    assert peak == Point(5, 5)


def test_a_map_is_placed_by_the_box_that_was_drawn_and_its_scale() -> None:
    # 400 × 200 source pixels from (30, 50) on fill a model of 80 × 80 in its middle: 5 source pixels to one.
    image = drawn((80, 80), Box(30, 50, 230, 450), (500, 300))
    peak, region = locate(scores({(2, 3): 0.9}), image, 0.5)
    assert region.box == (30 + 50, 50 + 100, 30 + 100, 50 + 150)
    assert peak == Point(30 + 75, 50 + 125)


def test_what_the_letterbox_scores_is_not_looked_at() -> None:
    image = drawn((80, 80), Box(30, 50, 230, 450), (500, 300))  # model columns 20 to 60
    found = {(2, 0): 1.0, (2, 1): 1.0, (2, 2): 0.4, (2, 7): 1.0}
    peak, region = locate(scores(found), image, 0.5)
    assert region.box == (30, 150, 80, 200)
    assert peak == Point(55, 175)


def test_a_cell_half_in_the_letterbox_is_cut_at_the_edge_of_the_picture() -> None:
    image = drawn((80, 80), Box(0, 0, 100, 160))  # model columns 15 to 65, two source pixels to one
    peak, region = locate(scores({(2, 1): 0.9}), image, 0.5)
    assert region.box == (0, 40, 10, 60)
    assert peak == Point(5, 50)


def test_a_map_of_another_shape_than_square_is_placed_alike() -> None:
    image = drawn((80, 60), Box(0, 0, 60, 80))
    _, region = locate(scores({(1, 2): 0.9}, (4, 3)), image, 0.5)
    assert region.box == (40, 20, 60, 40)


boxes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 4000), st.integers(1, 4000))
maps = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(0, 1, width=32)
)


@settings(deadline=None)
@given(boxes, maps, st.floats(0.01, 1), st.tuples(st.integers(9, 70), st.integers(9, 70)))
def test_peak_and_region_lie_within_what_was_drawn_and_the_region_has_an_area(
    at: tuple[int, int, int, int], found: NDArray[np.float32], share: float, size: tuple[int, int]
) -> None:
    left, top, width, height = at
    box = Box(left, top, left + width, top + height)
    peak, region = locate(found, drawn(size, box, (top + height + 3, left + width + 3)), share)
    for x, y in [peak, *region.outline]:
        assert box.left <= x <= box.right
        assert box.top <= y <= box.bottom
    xmin, ymin, xmax, ymax = region.box
    assert xmin < xmax
    assert ymin < ymax
    assert area(region) > 0
    assert all(x == there.x or y == there.y for (x, y), there in edges(region))  # upright edges only


def edges(region: Region) -> Iterable[tuple[Point, Point]]:
    return zip(region.outline, region.outline[1:] + region.outline[:1], strict=True)


@settings(deadline=None)
@given(arrays.arrays(np.bool_, (6, 6)))
def test_the_outline_holds_the_region_s_cells_and_its_holes_and_nothing_else(cells: NDArray[np.bool_]) -> None:
    cells[2, 2] = True
    _, region = locate(np.where(cells, np.float32(1), 0).astype(np.float32) / 2, drawn((6, 6), Box(0, 0, 6, 6)), 1.0)
    first = (int(cells.any(axis=1).argmax()), int(cells[cells.any(axis=1).argmax()].argmax()))
    outside = ~reached(cells, [first], corners_too=False)
    padded = np.pad(outside, 1, constant_values=True)
    filled = ~reached(padded, [(0, 0)], corners_too=True)[1:-1, 1:-1]
    assert area(region) == filled.sum()


def reached(cells: NDArray[np.bool_], start: list[tuple[int, int]], *, corners_too: bool) -> NDArray[np.bool_]:
    """The cells that can be reached from `start`, by another way than the code's."""
    found, waiting = np.zeros_like(cells), start
    while waiting:
        i, j = waiting.pop()
        if 0 <= i < cells.shape[0] and 0 <= j < cells.shape[1] and cells[i, j] and not found[i, j]:
            found[i, j] = True
            near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if corners_too or abs(a) + abs(b) == 1]
            waiting += [(i + a, j + b) for a, b in near]
    return found
