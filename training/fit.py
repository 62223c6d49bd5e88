"""Fits a network, epoch by epoch, so that a run that was stopped goes on where it was.

A run is a folder: `settings.json`, `history.csv`, `best.weights.h5` (the epoch with the highest area under the ROC
curve on the validation fold) and, until the run is complete, `resume/`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from training import data, networks

SETTINGS = "settings.json"
HISTORY = "history.csv"
WEIGHTS = "best.weights.h5"


@dataclass(frozen=True)
class Settings:
    """What decides a run. A run goes on only under the settings it began with."""

    rows: int = 150
    columns: int = 150
    epochs: int = 14
    batch: int = 32
    learning_rate: float = 3e-4
    validation_fold: int = 0
    seed: int = 20260101

    @property
    def size(self) -> tuple[int, int]:
        return (self.rows, self.columns)


def fit(settings: Settings, root: Path, run: Path) -> None:
    """Fit the published CNN on the FracAtlas in `root`, leaving the run in the folder `run`.

    Raises ValueError when `run` was begun with other settings.
    """
    run.mkdir(parents=True, exist_ok=True)
    _begin(settings, run)
    if epochs_done(run) >= settings.epochs:
        print(f"{run} is complete, best validation AUC {best_so_far(run):.3f}", flush=True)
        return
    keras.utils.set_random_seed(settings.seed)
    parts = data.split(data.read_fracatlas(root), validation_fold=settings.validation_fold)
    train_x, train_y = data.arrays(parts.train, settings.size)
    validation = data.arrays(parts.validation, settings.size)
    print(f"{len(train_y)} images to learn from, {len(validation[1])} to choose on", flush=True)

    network = networks.published_cnn(settings.size)
    model = networks.augmented(network, settings.size)
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(name="auc", from_logits=True)],
    )
    positives = float(train_y.mean())
    model.fit(
        train_x,
        train_y[:, np.newaxis],
        validation_data=(validation[0], validation[1][:, np.newaxis]),
        batch_size=settings.batch,
        epochs=settings.epochs,
        # Four of five images show no fracture; unweighted, the network learns little else.
        class_weight={0: 0.5 / (1 - positives), 1: 0.5 / positives},
        callbacks=[
            keras.callbacks.BackupAndRestore(str(run / "resume")),
            keras.callbacks.CSVLogger(str(run / HISTORY), append=True),
            _KeepBest(network, run),
        ],
        verbose=2,
    )


def load_run(run: Path) -> tuple[Settings, keras.Model]:
    """Return a run's settings and its network with the best epoch's weights; its output is the logit."""
    settings = Settings(**json.loads((run / SETTINGS).read_text(encoding="utf-8")))
    network = networks.published_cnn(settings.size)
    network.load_weights(run / WEIGHTS)
    return settings, network


def best_so_far(run: Path) -> float:
    """Return the highest validation AUC in the run's history, -1 when there is none yet."""
    return max((float(row["val_auc"]) for row in _history(run)), default=-1.0)


def epochs_done(run: Path) -> int:
    """Return how many epochs the run has behind it."""
    return max((int(row["epoch"]) + 1 for row in _history(run)), default=0)


def _history(run: Path) -> list[dict[str, str]]:
    if not (run / HISTORY).exists():
        return []
    with (run / HISTORY).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _begin(settings: Settings, run: Path) -> None:
    wanted = json.dumps(asdict(settings), indent=2) + "\n"
    kept = run / SETTINGS
    if kept.exists() and kept.read_text(encoding="utf-8") != wanted:
        raise ValueError(f"{run} was begun with other settings; use another folder.")
    kept.write_text(wanted, encoding="utf-8")


class _KeepBest(keras.callbacks.Callback):  # type: ignore[misc] # keras has no types
    """Keep the weights of the best epoch, of the network without its augmentation, also across a restart."""

    def __init__(self, network: keras.Model, run: Path) -> None:
        super().__init__()
        self._network, self._run, self._best = network, run, best_so_far(run)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        auc = (logs or {})["val_auc"]
        if auc > self._best:
            self._best = auc
            self._network.save_weights(self._run / WEIGHTS)
            print(f"epoch {epoch + 1}: best so far, validation AUC {auc:.3f}", flush=True)
