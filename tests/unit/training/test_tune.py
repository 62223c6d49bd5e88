"""A search keeps its record, and one that was stopped goes on with the trial that was under way."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("keras")
pytest.importorskip("optuna")

from training import fit, tune
from training.recipe import Recipe


@dataclass
class Fits:
    """Stands in the place of fitting: an AUC that is better the smaller the learning rate, told epoch by epoch."""

    recipes: list[Recipe] = field(default_factory=list)
    stop_at: int = -1

    def __call__(
        self, recipe: Recipe, _: Path, run: Path, *, after_epoch: Callable[[int, dict[str, float]], None]
    ) -> None:
        fit.begin(recipe, run)
        self.recipes.append(recipe)
        done = 1 + int(fit.last_figures(run)["epoch"]) if (run / fit.HISTORY).exists() else 0
        for epoch in range(done, recipe.epochs):
            if len(self.recipes) == self.stop_at and epoch == 1:
                raise KeyboardInterrupt
            row = {"held_out_auc": 0.9 - 100 * recipe.learning_rate, "held_out_pointing": 0.5}
            fit._append(run / fit.HISTORY, {"epoch": epoch, **row})
            after_epoch(epoch, row)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    fits = Fits()
    monkeypatch.setattr(fit, "fit", fits)
    return fits


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / tune.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_recipe_as_it_stands_is_tried_first_and_every_trial_is_kept(tmp_path: Path, fits: Fits) -> None:
    base = Recipe(network="residual", learning_rate=1.5e-3)
    best = tune.search(base, 4, tmp_path, tmp_path / "search")
    assert fits.recipes[0] == base
    rates = [recipe.learning_rate for recipe in fits.recipes]
    assert len(set(rates)) == 4
    assert best == fits.recipes[rates.index(min(rates))]
    assert best.network == "residual"
    table = trials(tmp_path / "search")
    assert [row["trial"] for row in table] == ["0", "1", "2", "3"]
    for row, recipe in zip(table, fits.recipes, strict=True):
        assert float(row["learning_rate"]) == pytest.approx(recipe.learning_rate, rel=1e-4)
        assert Recipe.read(tmp_path / "search" / f"trial-{int(row['trial']):03}" / fit.RECIPE) == recipe


def test_a_search_that_was_stopped_takes_up_the_trial_that_was_under_way(tmp_path: Path, fits: Fits) -> None:
    folder = tmp_path / "search"
    fits.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        tune.search(Recipe(), 3, tmp_path, folder)
    fits.stop_at = -1
    tune.search(Recipe(), 3, tmp_path, folder)
    assert fits.recipes[2] == fits.recipes[1]  # the same recipe, in the same folder
    assert len(fits.recipes) == 4
    assert [row["trial"] for row in trials(folder)] == ["0", "1", "2"]
    tune.search(Recipe(), 3, tmp_path, folder)  # as many as were asked for are there
    assert len(fits.recipes) == 4


@pytest.mark.usefixtures("fits")
def test_a_trial_that_lags_behind_is_given_up_and_said_to_be(tmp_path: Path) -> None:
    tune.search(Recipe(learning_rate=1e-4), 8, tmp_path, tmp_path / "search")
    table = trials(tmp_path / "search")
    pruned = [row for row in table if row["state"] == "pruned"]
    assert pruned
    assert all(float(row["epochs_done"]) >= 3 for row in pruned)
    assert max(float(row["value"]) for row in pruned) < max(float(row["value"]) for row in table)


def test_pointing_counts_a_fifth_of_the_area() -> None:
    assert tune.value({"held_out_auc": 0.9, "held_out_pointing": 0.5}) == pytest.approx(1.0)
