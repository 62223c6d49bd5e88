"""Pictures are small, can be read alone, and leave nothing out. They need matplotlib, which only training has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.training.test_evaluate import POINTS, outcomes
from training import evaluate

pytest.importorskip("matplotlib")

from training import plots  # it needs matplotlib

SMALL = 60_000


def colours(picture: Path) -> set[tuple[int, int, int]]:
    with Image.open(picture) as image:
        found = image.convert("RGB").getcolors(1 << 24) or []
    return {colour for _, colour in found if isinstance(colour, tuple)}


def test_every_picture_of_figures_is_written_small_enough_for_a_bundle(tmp_path: Path) -> None:
    of = outcomes()
    written = plots.write(tmp_path / "new", of, evaluate.metrics(of, POINTS), POINTS)
    assert [path.name for path in written] == [
        *("roc.png", "precision-recall.png", "reliability.png", "confusion.png"),
    ]
    assert all(1000 < path.stat().st_size < SMALL for path in written)
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) >= 300


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    of = outcomes()
    figures = evaluate.metrics(of, POINTS)
    one, other = (plots.write(tmp_path / name, of, figures, POINTS) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_titles_state_the_numbers() -> None:
    of = outcomes()
    figures = evaluate.metrics(of, POINTS)
    area, error = figures.values["auc"], figures.values["expected_calibration_error"]
    assert f"AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]" in plots.roc(of, figures, POINTS).get_suptitle()
    assert f"ECE {error.value:.3f}" in plots.reliability(of, figures).get_suptitle()
    missed = int(np.sum((of.labels == 1) & (of.probabilities < POINTS.absent_below)))
    title = plots.confusion(of, POINTS).get_suptitle()
    assert f"{missed} of {int(of.labels.sum())} fractures called absent" in title


def test_the_confusion_holds_every_image_once() -> None:
    of = outcomes()
    (axes,) = plots.confusion(of, POINTS).axes
    assert sum(int(text.get_text().split()[0]) for text in axes.texts) == len(of.labels)


def test_the_curve_passes_through_the_operating_points() -> None:
    of = outcomes()
    figures = evaluate.metrics(of, POINTS)
    (axes,) = plots.roc(of, figures, POINTS).axes
    curve = next(line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2)
    for point in ("at_absent_below", "at_present_from"):
        x, y = 1 - figures.values[f"specificity_{point}"].value, figures.values[f"sensitivity_{point}"].value
        assert np.hypot(curve[:, 0] - x, curve[:, 1] - y).min() < 1e-3


def test_images_that_were_not_read_are_not_drawn(tmp_path: Path) -> None:
    of = outcomes()
    blank = np.where(np.arange(200) < 20, np.nan, of.probabilities)
    unread = replace(of, probabilities=blank)
    plots.write(tmp_path, unread, evaluate.metrics(unread, POINTS), POINTS)
    (axes,) = plots.confusion(unread.only(unread.read), POINTS).axes
    assert sum(int(text.get_text().split()[0]) for text in axes.texts) == 180


@pytest.mark.parametrize("epochs", [1, 12])
def test_a_history_of_any_columns_becomes_one_panel_for_each_figure(tmp_path: Path, epochs: int) -> None:
    history, picture = tmp_path / "history.csv", tmp_path / "curves.png"
    rows = [f"{n},{1 / n},{0.5 / n},0.01,,9" for n in range(1, epochs + 1)]
    history.write_text("epoch,loss,val_loss,learning_rate,held_out_auc,seconds\n" + "\n".join(rows) + "\n")
    plots.curves(history, picture)
    with Image.open(picture) as image:
        assert image.width == 3 * 340  # loss with val_loss, the rate, the area
    assert picture.stat().st_size < SMALL


def test_a_run_without_an_epoch_has_no_curves(tmp_path: Path) -> None:
    history, picture = tmp_path / "history.csv", tmp_path / "curves.png"
    history.write_text("epoch,loss\n")
    plots.curves(history, picture)
    assert not picture.exists()
