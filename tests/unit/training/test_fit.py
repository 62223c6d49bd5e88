"""A fit learns from its folds alone, and one that was killed goes on as if nothing had happened."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import made

keras = pytest.importorskip("keras")

from training import fit  # noqa: E402 (it needs Keras)
from training.recipe import Recipe  # noqa: E402

# Keras 3.15 asks TensorFlow for arrays in a way that numpy 2 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RECIPE = Recipe(network="residual", rows=64, columns=64, epochs=3, batch=4, head_width=8, learning_rate=3e-3)
ONE_EPOCH = replace(RECIPE, epochs=1, held_out=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_TRAINING_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data, and a run of one epoch on all of them but fold 2."""
    place = tmp_path_factory.mktemp("fitted")
    root, run = made.fracatlas(place / "data"), place / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSTEON_TRAINING_CACHE", str(place / "cache"))
        fit.fit(ONE_EPOCH, root, run)
    return root, run


def weights(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / fit.WEIGHTS) as kept:
        return {name: kept[name] for name in kept.files}


def epochs_done(run: Path) -> int:
    try:
        with (run / fit.HISTORY).open(newline="") as file:
            return len(list(csv.DictReader(file)))
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(500)
def test_a_fit_that_is_killed_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    root = made.fracatlas(tmp_path / "data")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(RECIPE.as_text())

    def begin(run: Path) -> subprocess.Popen[bytes]:
        # One thread, since the order of sums over several is not fixed.
        alone = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = ["--data", str(root), "fit", str(run), "--recipe", str(recipe)]
        with (tmp_path / f"{run.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "training", *command], env={**os.environ, **alone}, stdout=log, stderr=log
            )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole).wait() == 0
    process = begin(killed)
    while not (killed / fit.CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / fit.WEIGHTS).exists()
    assert epochs_done(killed) in (1, 2)
    assert begin(killed).wait() == 0

    # What took how long is the machine's; everything else is the same to the last bit.
    histories = [(run / fit.HISTORY).read_text().splitlines() for run in (whole, killed)]
    place = histories[0][0].split(",").index("images_per_second")
    one, other = ([line.split(",")[:place] + line.split(",")[place + 1 :] for line in lines] for lines in histories)
    assert one == other
    assert len(one) == 1 + RECIPE.epochs
    for name, values in weights(whole).items():
        assert np.array_equal(weights(killed)[name], values), name
    assert (killed / fit.HELD_OUT).read_bytes() == (whole / fit.HELD_OUT).read_bytes()
    assert (killed / fit.CURVES).exists()
    assert not (killed / fit.CHECKPOINT).exists()


def test_the_fold_that_is_held_out_teaches_nothing(tmp_path: Path, fitted: tuple[Path, Path]) -> None:
    one, two = fitted[1], tmp_path / "two"
    other = made.fracatlas(tmp_path / "other", other=range(8, 12))  # all of fold 2
    fit.fit(ONE_EPOCH, other, two)
    for name, values in weights(one).items():
        np.testing.assert_allclose(weights(two)[name], values, atol=1e-4, err_msg=name)
    rows, logits, scores = fit.from_bytes((one / fit.HELD_OUT).read_bytes())
    assert rows.tolist() == [8, 9, 10, 11]
    assert logits.shape == (4,)
    assert scores.shape == (4, 4, 4)
    assert not np.allclose(fit.from_bytes((two / fit.HELD_OUT).read_bytes())[1], logits, atol=1e-5)


def test_a_run_on_all_folds_holds_nothing_out_and_a_complete_one_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = made.fracatlas(tmp_path / "data"), tmp_path / "run"
    recipe = replace(RECIPE, network="published", epochs=1, held_out=None)
    fit.fit(recipe, root, run)
    assert set(fit.last_figures(run)) == {"epoch", "loss", "images_per_second"}
    assert sorted(path.name for path in run.iterdir()) == ["curves.png", "history.csv", "recipe.json", "weights.npz"]
    before = (run / fit.WEIGHTS).stat().st_mtime_ns
    fit.fit(recipe, root, run)
    assert "is complete" in capsys.readouterr().out
    assert (run / fit.WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another recipe"):
        fit.fit(replace(recipe, seed=2), root, run)


def test_a_network_is_loaded_as_it_was_fitted_and_weights_of_another_are_refused(fitted: tuple[Path, Path]) -> None:
    root, run = fitted
    recipe, network = fit.load_run(run)
    assert recipe == ONE_EPOCH
    samples = [sample for sample in fit.data.read_fracatlas(root) if sample.fold == 2]
    said = fit.judge(network, fit.examples_of(samples, recipe.size), np.arange(4))
    _, logits, _ = fit.from_bytes((run / fit.HELD_OUT).read_bytes())
    np.testing.assert_allclose(said.logits, logits, atol=1e-4)
    other = fit.networks.build(replace(recipe, network="published"))
    with pytest.raises(ValueError, match="another network"):
        fit.set_weights(other, (run / fit.WEIGHTS).read_bytes())


def test_the_map_learns_from_the_boxes_and_not_without_their_weight(tmp_path: Path) -> None:
    root = made.fracatlas(tmp_path / "data")
    samples = [sample for sample in fit.data.read_fracatlas(root) if sample.fold is not None]
    examples = fit.examples_of(samples, RECIPE.size)
    covered = examples.masks[::2, :, :, 0].reshape(-1, 4, 16, 4, 16).mean(axis=(2, 4)) / 255

    def contrast(box_weight: float) -> float:
        """How far cells in boxes score above the others of the same images."""
        training = fit.Training(replace(RECIPE, box_weight=box_weight), examples.labels, steps=5)
        for epoch in range(6):
            training.epoch(epoch, examples, np.arange(len(samples)))
        scores = fit.judge(training.network, examples, np.arange(0, len(samples), 2)).scores
        assert scores is not None
        return float(scores[covered > 0.2].mean() - scores[covered == 0].mean())

    assert contrast(1.0) > contrast(0.0) + 0.3


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.npz"
    fit.write(path, b"before")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fit.write(path, b"after, but only in part")
    assert path.read_bytes() == b"before"
