"""`python -m training cross-validate FOLDER`: fits the chosen recipe on all five folds and on everything.

The folder holds `recipe.json` (put there by hand or by `tune`) and, for each member of the reader, `member-N/fold-K`
and `member-N/all`. Members differ in their seeds only. The folds' runs say how good the recipe is on images it never
saw, and calibrate; the runs on everything are what a release joins.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from training import fit
from training.recipe import Recipe

FOLDS = (0, 1, 2, 3, 4)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `cross-validate` takes."""
    parser.add_argument("folder", type=Path, help="folder of the reader, with recipe.json, e.g. runs/reader")
    parser.add_argument("--members", type=int, default=2, help="how many networks to join (2)")


def run(options: argparse.Namespace) -> None:
    """Fit what is not yet fitted, and print what every run reaches."""
    recipe = Recipe.read(options.folder / fit.RECIPE)
    for member, fold in runs(options.members):
        folder = run_folder(options.folder, member, fold)
        print(f"{folder}", flush=True)
        fit.fit(replace(recipe, held_out=fold, seed=recipe.seed + member), options.data, folder)
        if fold is not None:
            figures = fit.last_figures(folder)
            print("  ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)


def runs(members: int) -> Iterator[tuple[int, int | None]]:
    """Yield every member and fold to hold out (None: none), the first member whole before the second."""
    for member in range(members):
        yield from ((member, fold) for fold in (*FOLDS, None))


def run_folder(folder: Path, member: int, fold: int | None) -> Path:
    """Return the folder of the run of a member that held a fold out, or none."""
    return folder / f"member-{member}" / ("all" if fold is None else f"fold-{fold}")


def members_of(folder: Path) -> int:
    """Return how many members of the reader in `folder` are fitted on all folds and on everything.

    Raises ValueError when there is none.
    """
    count = 0
    while all((run_folder(folder, count, fold) / fit.WEIGHTS).exists() for fold in (*FOLDS, None)):
        count += 1
    if count == 0:
        raise ValueError(f"{folder} holds no member that is fitted on all folds and on everything.")
    return count
