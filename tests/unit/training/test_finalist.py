"""A reader's members are fitted on every fold and on everything, and differ in their seeds only."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("keras")

from training import finalist, fit
from training.recipe import Recipe

RECIPE = Recipe(rows=64, columns=64, seed=40)


def test_every_member_holds_out_each_fold_once_and_then_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: dict[str, Recipe] = {}

    def fake(recipe: Recipe, _: Path, run: Path) -> None:
        fitted[run.relative_to(tmp_path).as_posix()] = recipe
        run.mkdir(parents=True)
        (run / fit.HISTORY).write_text("epoch,held_out_auc\n0,0.8\n")

    monkeypatch.setattr(fit, "fit", fake)
    (tmp_path / fit.RECIPE).write_text(RECIPE.as_text())
    finalist.run(argparse.Namespace(folder=tmp_path, members=2, data=tmp_path))
    assert list(fitted) == [
        f"member-{member}/{fold}" for member in (0, 1) for fold in (*(f"fold-{at}" for at in range(5)), "all")
    ]
    assert fitted["member-1/fold-3"] == replace(RECIPE, held_out=3, seed=41)
    assert fitted["member-0/all"] == replace(RECIPE, held_out=None)


def test_only_members_that_are_fitted_whole_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no member"):
        finalist.members_of(tmp_path)
    for member, fold in list(finalist.runs(2))[:-1]:
        folder = finalist.run_folder(tmp_path, member, fold)
        folder.mkdir(parents=True)
        (folder / fit.WEIGHTS).touch()
    assert finalist.members_of(tmp_path) == 1
