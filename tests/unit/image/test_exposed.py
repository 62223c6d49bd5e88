"""What was exposed: shutters, collimator and padding as stated, bright borders as found, and no bone with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from dicom_node.image import exposed, scale
from dicom_node.image.exposed import Exposed, stated
from tests.phantom import limb
from tests.radiographs import Border

FRACATLAS = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "fracatlas"
needs_fracatlas = pytest.mark.skipif(not FRACATLAS.is_dir(), reason="OSTEON_TEST_DATA has no FracAtlas")


def header(**attributes: Any) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 3,
    "ShutterRightVerticalEdge": 8,
    "ShutterUpperHorizontalEdge": 2,
    "ShutterLowerHorizontalEdge": 5,
}


def test_a_rectangular_shutter_shows_its_edges_and_what_is_between() -> None:
    hidden = stated(header(**RECTANGLE), 10, 12, None).hidden(10, 12)
    shown = np.argwhere(~hidden) + 1
    assert (shown.min(axis=0).tolist(), shown.max(axis=0).tolist()) == ([2, 3], [5, 8])
    assert (~hidden).sum() == 4 * 6


def test_a_circular_shutter_shows_its_disc() -> None:
    attributes = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [50, 40], "RadiusOfCircularShutter": 20}
    hidden = stated(header(**attributes), 100, 80, None).hidden(100, 80)
    assert (~hidden).sum() == pytest.approx(np.pi * 400, rel=0.02)
    assert not hidden[49, 39]
    assert not hidden[30, 39]
    assert hidden[28, 39]


def test_a_polygonal_shutter_shows_its_inside() -> None:
    corners = [10, 10, 10, 71, 91, 71, 91, 10]
    attributes = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": corners}
    hidden = stated(header(**attributes), 100, 80, None).hidden(100, 80)
    assert hidden[:8].all()
    assert not hidden[12:88, 12:68].any()
    assert hidden[94:].all()
    assert hidden[:, 74:].all()


def test_of_several_shutters_all_must_be_open() -> None:
    attributes = {
        **RECTANGLE,
        "ShutterShape": ["RECTANGULAR", "CIRCULAR"],
        "CenterOfCircularShutter": [1, 1],
        "RadiusOfCircularShutter": 4,
    }
    both = stated(header(**attributes), 10, 12, None).hidden(10, 12)
    assert (both >= stated(header(**RECTANGLE), 10, 12, None).hidden(10, 12)).all()
    assert both[4, 7]


def test_a_shutter_is_drawn_at_any_scale() -> None:
    area = stated(header(**RECTANGLE), 10, 12, None)
    fine = area.hidden(100, 120)
    assert np.array_equal(fine[5::10, 5::10], area.hidden(10, 12))


@pytest.mark.parametrize(
    "attributes",
    [
        {**RECTANGLE, "ShutterRightVerticalEdge": 2},
        {**RECTANGLE, "ShutterLeftVerticalEdge": 500},
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "STAR"},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [5], "RadiusOfCircularShutter": 4},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [5, 5], "RadiusOfCircularShutter": 0},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 2, 2]},
        {"ShutterShape": "BITMAP"},
    ],
)
def test_nonsense_in_a_shutter_hides_nothing(attributes: dict[str, Any]) -> None:
    assert not stated(header(**attributes), 10, 12, None).hidden(10, 12).any()


def test_a_shutter_that_leaves_next_to_nothing_is_a_mistake() -> None:
    attributes = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [50, 50], "RadiusOfCircularShutter": 3}
    assert not stated(header(**attributes), 100, 100, None).hidden(100, 100).any()


def test_a_stated_collimator_sets_the_contrast_and_hides_nothing() -> None:
    collimator = {name.replace("Shutter", "Collimator"): value for name, value in RECTANGLE.items()}
    area = stated(header(**collimator), 10, 12, None)
    assert not area.hidden(10, 12).any()
    assert (~area.unmeasured(10, 12)).sum() == 24


def test_padding_is_hidden_where_it_covers_most_of_a_drawn_pixel() -> None:
    padding = np.zeros((100, 100), np.bool_)
    padding[:, :16] = True
    padding[30:34, 60:64] = True
    area = Exposed(100, 100, padding=padding)
    hidden = area.hidden(10, 10)
    assert hidden[:, :2].all()
    assert not hidden[:, 2:].any()
    assert area.box(10, 10) == (16, 0, 100, 100)


def test_the_box_around_what_is_shown_is_that_of_shapes_and_padding_together() -> None:
    padding = np.zeros((10, 12), np.bool_)
    padding[:3] = True
    assert stated(header(**RECTANGLE), 10, 12, padding).box(10, 12) == (2, 3, 8, 5)


# --- borders ----------------------------------------------------------------------------------------------------------


def hidden_by_borders(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    small = scale.shrunk(scale.overview(picture.astype(np.uint16) * 257, 640), exposed.BORDER_SCALE)
    shapes = exposed.borders(small, *picture.shape, np.zeros(small.shape, np.bool_))
    return Exposed(*picture.shape).without(shapes).hidden(*picture.shape)


BORDERS = [
    Border(0.05),
    Border(0.2),
    Border(0.3, ("left", "right")),
    Border(0.25, ("bottom", "left")),
    Border(0.1, ("top",), slant=0.12),
    Border(0.08, ("right",), slant=-0.04),
    Border(0.1, grey=0.85),
]


@pytest.mark.parametrize("border", BORDERS, ids=repr)
@pytest.mark.parametrize("size", [(300, 240), (1500, 1200)])
def test_a_bright_border_is_found_to_within_two_percent_of_the_side(border: Border, size: tuple[int, int]) -> None:
    picture = limb(*size)
    mask = border.mask(picture.shape)
    picture[mask] = round(255 * border.grey)
    hidden = hidden_by_borders(picture)
    assert (hidden & mask).sum() > 0.97 * mask.sum()
    assert (hidden & ~mask).sum() < 0.06 * (~mask).sum()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_limb_without_a_border_keeps_every_pixel(turns: int) -> None:
    assert not hidden_by_borders(np.rot90(limb(400, 300), turns)).any()


def test_a_bone_that_runs_out_of_the_image_is_no_border() -> None:
    picture = np.full((300, 300), 20, np.uint8)
    picture[:, 60:240] = 90
    picture[:, 110:190] = 250
    assert not hidden_by_borders(picture).any()


def test_tissue_that_fades_towards_the_edge_is_no_border() -> None:
    picture = np.repeat(np.linspace(255, 20, 300, dtype=np.uint8)[:, None], 240, axis=1)
    assert not hidden_by_borders(picture).any()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_negative_keeps_its_air(turns: int) -> None:
    assert not hidden_by_borders(255 - np.rot90(limb(400, 300), turns)).any()


@needs_fracatlas
def test_in_negatives_of_fracatlas_next_to_nothing_is_taken_for_a_border() -> None:
    found = []
    for path in sorted((FRACATLAS / "images").iterdir())[::20]:
        with Image.open(path) as picture:
            if hidden_by_borders(255 - np.asarray(picture.convert("L"))).mean() > 0.1:
                found.append(path.name)
    assert len(found) <= 1, found


def test_a_dark_frame_is_left_alone() -> None:
    picture = limb(300, 240)
    picture[:20] = picture[-20:] = 0
    assert not hidden_by_borders(picture).any()


@needs_fracatlas
def test_in_fracatlas_no_fracture_lies_in_what_is_taken_for_a_border() -> None:
    import csv

    with (FRACATLAS / "boxes.csv").open(newline="", encoding="utf-8") as file:
        boxes = list(csv.DictReader(file))[::8]
    for box in boxes:
        with Image.open(FRACATLAS / "images" / box["image_id"]) as picture:
            hidden = hidden_by_borders(np.asarray(picture.convert("L")))
        rows, columns = hidden.shape
        left, top, right, bottom = (float(box[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
        inside = hidden[int(top * rows) : int(bottom * rows) + 1, int(left * columns) : int(right * columns) + 1]
        assert inside.mean() < 0.1, box["image_id"]
