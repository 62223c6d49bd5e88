"""What is plainly no radiograph is refused, and radiographs are not."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.pixels import NotAnalysable, model_input_from_picture
from models.reasons import Reason
from tests.phantom import limb

FRACATLAS = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "fracatlas"
needs_fracatlas = pytest.mark.skipif(not FRACATLAS.is_dir(), reason="OSTEON_TEST_DATA has no FracAtlas")
SIZES = [(512, 400), (2500, 2048)]


def reason_of(picture: NDArray[np.uint8] | Image.Image) -> Reason | None:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    try:
        model_input_from_picture(image, (384, 384))
    except NotAnalysable as refused:
        return refused.reason
    return None


def flat(rows: int, columns: int, *, noise: float = 6, heel: float = 40) -> NDArray[np.uint8]:
    """A flat exposure: noise over a slow change from one side to the other."""
    random = np.random.default_rng(4)
    slope = np.linspace(0, 1, columns)[None, :] ** 2 * heel
    return (120 + slope + random.normal(0, noise, (rows, columns))).clip(0, 255).astype(np.uint8)


def page(width: int, height: int, *, size: int, lines: int, white_on_black: bool) -> Image.Image:
    paper, ink = (0, 255) if white_on_black else (255, 0)
    image = Image.new("L", (width, height), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for line in range(lines):
        text = " ".join(("Dose", "area", "product", f"{line}.{line * 7 % 10}", "Gycm2", "exposure", "index") * 3)
        draw.text((size, size * (1 + 1.5 * line)), text[: int(width / size * 1.6)], fill=ink, font=font)
    return image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [0, 9, 255])
def test_an_image_of_one_value_is_blank(size: tuple[int, int], level: int) -> None:
    assert reason_of(np.full(size, level, np.uint8)) is Reason.BLANK


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0, 2, 12])
@pytest.mark.parametrize("heel", [0, 60])
def test_a_flat_exposure_is_blank_with_its_noise_and_its_heel_effect(
    size: tuple[int, int], noise: float, heel: float
) -> None:
    assert reason_of(flat(*size, noise=noise, heel=heel)) is Reason.BLANK


def test_a_flat_exposure_with_a_marker_is_blank() -> None:
    picture = flat(1000, 800, noise=3, heel=10)
    picture[40:70, 40:60] = 255
    assert reason_of(picture) is Reason.BLANK


@pytest.mark.parametrize("white_on_black", [True, False])
@pytest.mark.parametrize(
    ("width", "height", "size", "lines"), [(640, 480, 14, 18), (1240, 1754, 24, 40), (2500, 2000, 40, 9)]
)
def test_a_page_of_text_is_text(width: int, height: int, size: int, lines: int, white_on_black: bool) -> None:
    assert reason_of(page(width, height, size=size, lines=lines, white_on_black=white_on_black)) is Reason.TEXT


def test_a_radiograph_with_a_line_of_text_on_it_is_read() -> None:
    picture = Image.fromarray(limb(1000, 800))
    ImageDraw.Draw(picture).text((20, 20), "R  HAND PA  120 kV", fill=255, font=ImageFont.load_default(28))
    assert reason_of(picture) is None


def test_a_colour_picture_is_a_photograph() -> None:
    y, x = np.mgrid[0:300, 0:400]
    picture = np.stack([x % 256, 255 - y % 256, (x * y // 300) % 256], axis=-1).astype(np.uint8)
    assert reason_of(picture) is Reason.PHOTOGRAPH


def test_a_radiograph_in_colours_with_a_coloured_line_on_it_is_read() -> None:
    picture = Image.fromarray(limb(600, 500)).convert("RGB")
    ImageDraw.Draw(picture).line([(40, 40), (460, 560)], fill=(255, 220, 0), width=6)
    assert reason_of(picture) is None


@pytest.mark.parametrize("gutter", [0, 255])
@pytest.mark.parametrize("turned", [False, True])
def test_two_radiographs_beside_each_other_with_a_gutter_are_several(gutter: int, turned: bool) -> None:
    one = limb(500, 400).clip(30)
    both = np.hstack([one, np.full((500, 12), gutter, np.uint8), one[:, ::-1]])
    assert reason_of(both.T.copy() if turned else both) is Reason.MULTI_PANEL


def test_four_radiographs_in_a_grid_are_several() -> None:
    one = np.pad(limb(400, 300), 5, constant_values=255)
    assert reason_of(np.vstack([np.hstack([one, one])] * 2)) is Reason.MULTI_PANEL


@pytest.mark.parametrize("bar", [0, 255])
def test_a_letterbox_beside_the_border_of_a_film_parts_nothing(bar: int) -> None:
    film = np.pad(limb(500, 300).clip(30), ((0, 0), (14, 0)), constant_values=255 - bar)
    assert reason_of(np.pad(film, ((0, 0), (90, 90)), constant_values=bar)) is None


def test_two_knees_on_one_film_are_one_picture() -> None:
    one = limb(500, 300)
    assert reason_of(np.hstack([one, one[:, ::-1]])) is None


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(60, 48), *SIZES])
def test_a_limb_is_read(size: tuple[int, int], turns: int) -> None:
    assert reason_of(np.rot90(limb(*size), turns)) is None


@needs_fracatlas
def test_of_fracatlas_every_tenth_radiograph_is_read() -> None:
    with (FRACATLAS / "images.csv").open(newline="", encoding="utf-8") as file:
        names = [row["image_id"] for row in csv.DictReader(file)][::10]
    refused = []
    for name in names:
        with Image.open(FRACATLAS / "images" / name) as picture:
            if reason_of(picture) is not None:
                refused.append(name)
    assert refused == []
