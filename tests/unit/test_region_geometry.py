"""Where the report says that a fracture is, in images whose mark is known: from stored pixels to Graphic Data.

The model of tests/litert.py scores how white a cell is. A white square in a dark limb is what it looks for, so the
region in the report has to lie around it, to one cell of the map, in the image's own rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

pytest.importorskip("ai_edge_litert")

from dicom_node.headers import read_header
from dicom_node.objects.content import FindingOutcome, ImageOutcome
from dicom_node.objects.report import build_report
from dicom_node.objects.template import check_report
from dicom_node.pixels import model_input
from tests import litert
from tests.phantom import limb
from tests.radiographs import Border, radiograph
from tests.reports import content
from worker.predictor import Predictor

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Case:
    """An image, and how it is stored."""

    rows: int
    columns: int
    stored: dict[str, Any] = field(default_factory=dict)
    open: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The part of it, as shares, that no border covers."""


BORDER = Border(0.15, slant=0.02)
COLLIMATED = (0.2, 0.2, 0.8, 0.8)
CASES = {
    "square": Case(480, 480),
    "tall": Case(960, 400),
    "wide": Case(400, 960),
    "very tall": Case(1250, 200),
    "very wide": Case(200, 1250),
    "odd": Case(701, 499),
    "odd and wide": Case(333, 517),
    "smaller than the model": Case(90, 61),
    "large": Case(2000, 1600),
    "white is low": Case(701, 499, {"monochrome1": True}),
    "white is low, tall": Case(960, 400, {"monochrome1": True, "bits": 16}),
    "pixels twice as high as wide": Case(480, 480, {"attributes": {"PixelAspectRatio": [2, 1]}}),
    "pixels twice as wide as high": Case(400, 960, {"attributes": {"PixelAspectRatio": [1, 2]}}),
    "collimated": Case(900, 700, {"border": BORDER}, COLLIMATED),
    "collimated, wide": Case(500, 1300, {"border": BORDER}, COLLIMATED),
    "collimated, white is low": Case(900, 700, {"border": BORDER, "monochrome1": True}, COLLIMATED),
    "collimated on one side": Case(900, 700, {"border": Border(0.3, sides=("left",))}, (0.35, 0.0, 1.0, 1.0)),
    "padded": Case(900, 700, {"border": BORDER, "padding": 0}, COLLIMATED),
}
PLACES = {"top left": (0.12, 0.1), "middle": (0.5, 0.55), "bottom right": (0.88, 0.9)}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return litert.predictor(tmp_path_factory.mktemp("bundle"))


def marked(case: Case, place: tuple[float, float]) -> tuple[NDArray[np.uint8], Box]:
    """A dark limb with a white square of two cells, or narrower than what is narrow, at `place`."""
    xmin, ymin, xmax, ymax = case.open
    left, top = round(xmin * case.columns), round(ymin * case.rows)
    right, bottom = round(xmax * case.columns), round(ymax * case.rows)
    side = round(2 * max(right - left, bottom - top) / litert.CELLS[0])
    width, height = min(side, 6 * (right - left) // 10), min(side, 6 * (bottom - top) // 10)
    x = min(max(round(left + place[0] * (right - left) - width / 2), left), right - width)
    y = min(max(round(top + place[1] * (bottom - top) - height / 2), top), bottom - height)
    grey: NDArray[np.uint8] = limb(case.rows, case.columns, highest=40)
    grey[y : y + height, x : x + width] = 255
    return grey, (x, y, x + width, y + height)


def region_in_the_report(dataset: pydicom.Dataset, predictor: Predictor) -> tuple[Box, float]:
    """The region as the report has it, and the side of a cell of the map, both in source pixels."""
    image = model_input(dataset, predictor.size)
    found = predictor.read(image).findings[0]
    assert found.decision == "fracture"
    assert found.region is not None
    outcome = FindingOutcome(
        probability=found.probability,
        decision="fracture",
        absent_below=0.1,
        present_from=0.5,
        region=found.region.box,
    )
    data = build_report(content(ImageOutcome(read_header(dataset), readings=(outcome,))))
    assert check_report(data) == []
    (outline,) = (
        item
        for container in pydicom.dcmread(BytesIO(data)).ContentSequence
        for group in container.get("ContentSequence", ())
        for item in group.get("ContentSequence", ())
        if item.ValueType == "SCOORD"
    )
    points = np.array(outline.GraphicData, dtype=np.float64).reshape(-1, 2)
    (xmin, ymin), (xmax, ymax) = points.min(axis=0), points.max(axis=0)
    return (xmin, ymin, xmax, ymax), predictor.size[0] / litert.CELLS[0] / image.scale


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_the_region_lies_around_the_mark_to_one_cell(case: str, place: str, predictor: Predictor) -> None:
    drawn = CASES[case]
    grey, mark = marked(drawn, PLACES[place])
    dataset = radiograph(grey, **drawn.stored)
    assert (dataset.Rows, dataset.Columns) == (drawn.rows, drawn.columns)
    region, cell = region_in_the_report(dataset, predictor)
    for edge, expected in zip(region, mark, strict=True):
        assert abs(edge - expected) <= cell
    xmin, ymin, xmax, ymax = region
    assert 0 <= xmin < xmax <= drawn.columns
    assert 0 <= ymin < ymax <= drawn.rows
    # Its middle is that of the mark, to half a cell: no shift by a letterbox, and rows are not columns.
    assert abs((xmin + xmax) - (mark[0] + mark[2])) <= cell
    assert abs((ymin + ymax) - (mark[1] + mark[3])) <= cell
