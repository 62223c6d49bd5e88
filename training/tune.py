"""`python -m training tune`: searches learning rate, batch, epochs, boxes and augmentation on one fold.

Optuna draws the recipes (TPE) and keeps its record in `search.sqlite` in the search's folder, so that a search that was
stopped goes on: a trial that was under way is taken up again under its own recipe, epoch by epoch. What a trial reaches
is a sum of two figures of the held-out fold: the area under the ROC curve, and the share of fractures that the map's
best cell points at, counted a fifth, since a reader that cannot show where is not believed. A trial that after three
epochs or more lies below the median of the trials before it is given up (Optuna's median pruner).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from training import fit
from training.recipe import Recipe

RECORD = "search.sqlite"
TABLE = "trials.csv"
POINTING = 0.2
"""What pointing counts beside the area under the ROC curve."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `tune` takes."""
    parser.add_argument("search", type=Path, help="folder of the search, e.g. runs/search")
    parser.add_argument("--trials", type=int, default=12, help="how many recipes to try in all (12)")
    parser.add_argument("--fold", type=int, default=0, help="the fold to measure on (0)")
    parser.add_argument("--size", type=int, default=384, help="rows and columns of the input (384)")
    parser.add_argument("--network", default="lite0")


def run(options: argparse.Namespace) -> None:
    """Search until the folder holds `options.trials` finished trials."""
    base = Recipe(network=options.network, rows=options.size, columns=options.size, held_out=options.fold)
    search(base, options.trials, options.data, options.search)


def search(base: Recipe, trials: int, root: Path, folder: Path) -> Recipe:
    """Return the best recipe found so far in `folder`, after searching until it holds `trials` finished trials."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / RECORD}",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=2),
    )
    # With the same seed after every stop, it would draw what it drew before.
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials), n_startup_trials=4)
    if not study.trials:
        study.enqueue_trial({name: getattr(base, name) for name in SPACE})  # the recipe as it stands comes first
    while (finished := len(_finished(study))) < trials:
        trial = _under_way(study) or study.ask()
        recipe = drawn(base, trial)
        print(f"Trial {trial.number + 1}, {finished} of {trials} finished", flush=True)
        run_folder = folder / f"trial-{trial.number:03}"
        try:
            fit.fit(recipe, root, run_folder, after_epoch=partial(_judge, trial))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value(fit.last_figures(run_folder)))
        _write_table(study, folder)
    return drawn(base, optuna.trial.FixedTrial(study.best_params))


def value(figures: Mapping[str, float]) -> float:
    """Return what a trial with these figures of the held-out fold reaches."""
    return figures["held_out_auc"] + POINTING * figures["held_out_pointing"]


def _judge(trial: optuna.Trial, epoch: int, figures: Mapping[str, float]) -> None:
    """Note what an epoch reached. Raises TrialPruned when the trials before it did better."""
    trial.report(value(figures), epoch)
    if trial.should_prune():
        raise optuna.TrialPruned


def drawn(base: Recipe, trial: optuna.trial.BaseTrial) -> Recipe:
    """Return `base` with what the trial draws from `SPACE`."""
    drawn: dict[str, Any] = {name: draw(trial, name) for name, draw in SPACE.items()}
    return replace(base, **drawn)


SPACE: dict[str, Callable[[optuna.trial.BaseTrial, str], float | int]] = {
    "learning_rate": lambda trial, name: trial.suggest_float(name, 1e-4, 2e-3, log=True),
    "batch": lambda trial, name: trial.suggest_categorical(name, (8, 16, 32)),
    "epochs": lambda trial, name: trial.suggest_int(name, 4, 8, step=2),
    "box_weight": lambda trial, name: trial.suggest_float(name, 0.25, 4.0, log=True),
    "turn": lambda trial, name: trial.suggest_float(name, 5.0, 45.0),
    "zoom": lambda trial, name: trial.suggest_float(name, 0.05, 0.35),
    "contrast": lambda trial, name: trial.suggest_float(name, 0.0, 1.0),
}


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in ended]


def _under_way(study: optuna.Study) -> optuna.trial.Trial | None:
    """Return the trial that was under way when the search was stopped; what it drew is in the record."""
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            return optuna.trial.Trial(study, trial._trial_id)
    return None


def _write_table(study: optuna.Study, folder: Path) -> None:
    names = [*SPACE, "epochs_done", "held_out_auc", "held_out_pointing", "value"]
    lines = [",".join(["trial", *names, "state"])]
    for trial in _finished(study):
        figures = fit.last_figures(folder / f"trial-{trial.number:03}")
        row = {**trial.params, **figures, "epochs_done": figures["epoch"] + 1, "value": value(figures)}
        lines.append(",".join([str(trial.number), *(f"{row[name]:.6g}" for name in names), trial.state.name.lower()]))
    fit.write(folder / TABLE, ("\n".join(lines) + "\n").encode())
