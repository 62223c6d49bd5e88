"""Pictures are small, can be read alone, and leave nothing out. They need matplotlib, which only training has."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import litert
from tests.unit.training.test_evaluate import POINTS, SQUARE, box, outcomes, sample
from training import evaluate
from worker.bundle import Metrics

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


def test_the_sheet_shows_missed_fractures_and_false_alarms_with_box_and_peak(tmp_path: Path) -> None:
    predictor = litert.predictor(tmp_path / "bundle")
    pictures = [
        *(sample(tmp_path / f"m{n}.png", litert.white_square(SQUARE), box(20, 260, 44, 300)) for n in range(4)),
        *(sample(tmp_path / f"a{n}.png", litert.white_square(SQUARE)) for n in range(2)),
        sample(tmp_path / "blank.png", Image.new("L", (240, 480), 90)),
    ]
    found = evaluate.outcomes(predictor, pictures)
    points = predictor.bundle.card.findings[0].operating_points
    measured = evaluate.Evaluation(evaluate.metrics(found, points), found, tuple(pictures), points)
    plots.worst_mistakes(tmp_path / "sheet.png", predictor, measured)
    assert 10_000 < (tmp_path / "sheet.png").stat().st_size < 1_500_000
    orange, vermillion = (tuple(int(name[at : at + 2], 16) for at in (1, 3, 5)) for name in ("#E69F00", "#D55E00"))
    assert {orange, vermillion} <= colours(tmp_path / "sheet.png")


def test_the_command_prints_the_figures_and_leaves_them_with_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    litert.predictor(tmp_path / "bundle")
    pictures = [
        sample(tmp_path / f"m{n}.png", litert.white_square(SQUARE), box(*SQUARE), group=str(n)) for n in range(3)
    ]
    pictures += [sample(tmp_path / f"a{n}.png", litert.white_square((9, 9, 30, 30)), group=str(n)) for n in range(3)]
    monkeypatch.setattr(evaluate, "read_fracatlas", lambda _: pictures)
    parser = argparse.ArgumentParser()
    evaluate.configure(parser)
    options = parser.parse_args([str(tmp_path / "bundle"), "--split", "fold-0", "--output", str(tmp_path / "out")])
    options.data = tmp_path
    evaluate.run(options)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("metrics.json", "worst-mistakes.png", "roc.png", "precision-recall.png", "reliability.png", "confusion.png"),
    }
    figures = Metrics.model_validate_json((tmp_path / "out" / "metrics.json").read_bytes())
    assert figures.images == 6
    assert figures.values["pointing_inside"].value == 1
    assert "fold 0 of the training split" in figures.dataset
    printed = capsys.readouterr().out
    assert "pointing_inside" in printed
    assert "0 of 6 images refused" in printed


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
