"""The model's maps: kept small, and drawn where the model looked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node.pixels import ModelInput, model_input_from_picture
from worker.score_maps import geometry, keep, kept, laid_over

pytest.importorskip("ai_edge_litert")


def read(picture: Image.Image, folder: Path) -> tuple[ModelInput, np.ndarray]:
    from tests import litert

    predictor = litert.predictor(folder / "bundle")
    source = model_input_from_picture(picture, predictor.size)
    return source, predictor.read(source).heatmaps[0]


def limb(rows: int, columns: int, mark: tuple[int, int, int, int]) -> Image.Image:
    from tests.phantom import limb

    picture = Image.fromarray(limb(rows, columns, highest=40))
    picture.paste(255, mark)
    return picture


def test_a_kept_map_comes_back_to_within_half_a_step_of_its_eight_bits() -> None:
    scores = np.random.default_rng(1).random((14, 9), dtype=np.float32)
    assert np.abs(kept(keep(scores)) - scores).max() <= 0.5 / 255 + 1e-6


def test_a_kept_map_takes_less_than_a_kilobyte_at_the_size_of_the_released_model() -> None:
    assert len(keep(np.random.default_rng(1).random((24, 24), dtype=np.float32))) < 1024


@pytest.mark.parametrize("wrong", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_kept_map_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="kept map"):
        kept(wrong)


@pytest.mark.parametrize(
    ("rows", "columns", "mark"),
    [(480, 240, (120, 200, 160, 240)), (240, 480, (300, 80, 340, 120)), (301, 299, (200, 220, 230, 250))],
    ids=["tall", "wide", "square"],
)
@pytest.mark.parametrize("shrink", [1.0, 0.37])
def test_a_map_is_brightest_over_the_mark_that_the_model_saw(
    rows: int, columns: int, mark: tuple[int, int, int, int], shrink: float, tmp_path: Path
) -> None:
    source, scores = read(limb(rows, columns, mark), tmp_path)
    size = (round(rows * shrink), round(columns * shrink))
    over = laid_over(scores, geometry(source), (rows, columns), size)
    assert over.shape == size
    y, x = np.unravel_index(over.argmax(), over.shape)
    left, top, right, bottom = mark
    cell = 1 / source.scale * 8
    assert left - cell / 2 <= (x + 0.5) / shrink <= right + cell / 2
    assert top - cell / 2 <= (y + 0.5) / shrink <= bottom + cell / 2


def test_the_letterbox_of_the_map_is_not_drawn_into_the_picture(tmp_path: Path) -> None:
    source, _ = read(limb(480, 240, (120, 200, 160, 240)), tmp_path)
    only_letterbox = np.zeros((12, 12), dtype=np.float32)
    only_letterbox[:, :3] = only_letterbox[:, 9:] = 1
    over = laid_over(only_letterbox, geometry(source), (480, 240), (480, 240))
    assert over[:, 20:220].max() == 0


def test_nothing_is_drawn_where_the_model_did_not_look() -> None:
    where = {"input": [100, 0, 200, 100], "drawn": [100, 0, 200, 80]}
    over = laid_over(np.ones((4, 4), dtype=np.float32), where, (100, 300), (50, 150))
    assert over[:, :50].max() == 0
    assert over[:, 100:].max() == 0
    assert over[40:].max() == 0
    assert over[:40, 50:100].min() == 1
