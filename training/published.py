"""Fits the published CNN as it was published, so that a run that was stopped goes on where it was.

Adam and binary cross-entropy, 30 epochs of batches of 32 at 150 × 150, every entry of the training part once an epoch;
what is kept is the epoch with the best accuracy on the validation part. A run is a folder: `settings.json`,
`history.csv` and, when it is complete, `weights.npz`; until then `checkpoint.npz` holds everything the next epoch
needs, and is the one truth that the others are written from. Every file is written whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from training.entries import Entry, Pictures, decoded
from training.fit import as_bytes, from_bytes, keep_freed_memory, set_weights, use_best_precision, weights_of, write
from training.networks import augmented, published_cnn

SETTINGS, HISTORY, WEIGHTS, CHECKPOINT = "settings.json", "history.csv", "weights.npz", "checkpoint.npz"
COLUMNS = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy")

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a run; the defaults are what was published (and Keras's own learning rate of Adam)."""

    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3
    rows: int = 150
    columns: int = 150
    seed: int = 1

    @property
    def size(self) -> tuple[int, int]:
        return self.rows, self.columns


def fit(settings: Settings, train: Sequence[Entry], validation: Sequence[Entry], run: Path) -> None:
    """Fit the published CNN on `train`, choosing its epoch on `validation`, and leave the run in the folder `run`.

    Raises ValueError when `run` was begun with other settings.
    """
    _begin(settings, run)
    if (run / WEIGHTS).exists():
        (run / CHECKPOINT).unlink(missing_ok=True)
        return
    learnt, held_out = decoded(train, settings.size), decoded(validation, settings.size)
    print(
        f"{len(learnt)} entries to learn from ({len(learnt.distinct)} files), {len(held_out)} to choose on", flush=True
    )
    keep_freed_memory()
    with quickest_precision():
        fitting = _Fitting(settings)
        if (run / CHECKPOINT).exists():
            fitting.resume((run / CHECKPOINT).read_bytes())
        while len(fitting.history) < settings.epochs:
            fitting.epoch(learnt, held_out)
            print("  ".join(f"{name} {value:.4g}" for name, value in fitting.history[-1].items()), flush=True)
            write(run / CHECKPOINT, fitting.checkpoint())
            write(run / HISTORY, _as_csv(fitting.history))
        write(run / WEIGHTS, fitting.best_weights())
    (run / CHECKPOINT).unlink()


def load(run: Path) -> keras.Model:
    """Return the network of a complete run, in single precision. Raises OSError."""
    settings = Settings(**json.loads((run / SETTINGS).read_bytes()))
    with _precision("float32"):
        network = published_cnn(settings.size, channels=3)
    set_weights(network, (run / WEIGHTS).read_bytes())
    return network


def history(run: Path) -> list[dict[str, float]]:
    """Return a row of COLUMNS for each epoch; epochs count from 1. Raises OSError."""
    with (run / HISTORY).open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def best(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the epoch that is kept: the best validation accuracy; of several, the lowest validation loss."""
    return max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))


def logits(network: keras.Model, pictures: Pictures, batch: int = 32) -> _Floats:
    """Return what the network says of each entry, (n,): above 0 is fractured."""
    shown = np.arange(len(pictures.distinct))
    said = np.zeros(len(shown), dtype=np.float64)
    for start in range(0, len(shown), batch):
        rows = shown[start : start + batch]
        outputs = network.predict_on_batch(pictures.distinct[rows].astype(np.float32))
        said[rows] = np.asarray(outputs, dtype=np.float64)[:, 0]
    return said[pictures.of_entry]


def losses(logit: _Floats, label: _Floats) -> _Floats:
    """Return the binary cross-entropy of each, in nats."""
    return np.asarray(np.logaddexp(0.0, logit) - logit * label, dtype=np.float64)


@contextmanager
def quickest_precision() -> Iterator[None]:
    """Compute as this machine is quickest for a while, see `training.fit.use_best_precision`."""
    policy, order = keras.config.dtype_policy(), keras.config.image_data_format()
    use_best_precision()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(order)


@contextmanager
def _precision(name: str) -> Iterator[None]:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _begin(settings: Settings, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    kept = run / SETTINGS
    if kept.exists() and Settings(**json.loads(kept.read_bytes())) != settings:
        raise ValueError(f"{run} was begun with other settings; use another folder.")
    write(kept, (json.dumps(asdict(settings), indent=2) + "\n").encode())


class _Fitting:
    """The network, its optimiser, the figures so far and the weights that were best."""

    def __init__(self, settings: Settings) -> None:
        keras.utils.set_random_seed(settings.seed)
        self.history: list[dict[str, float]] = []
        self._settings = settings
        self._network = published_cnn(settings.size, channels=3)
        self._learner = augmented(self._network, seed=settings.seed)
        self._optimizer = keras.optimizers.Adam(settings.learning_rate)
        self._learner.compile(
            optimizer=self._optimizer,
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
            jit_compile=False,
        )
        self._optimizer.build(self._network.trainable_variables)
        self._best = self._weights()

    def epoch(self, train: Pictures, validation: Pictures) -> None:
        """Learn from every entry of `train` once, then measure on `validation`."""
        number = len(self.history)
        self._reseed(number)
        order = np.random.default_rng([self._settings.seed, number]).permutation(len(train))
        starts = range(0, len(order), self._settings.batch)
        bar = keras.utils.Progbar(len(starts))
        sums = np.zeros(2)
        for step, start in enumerate(starts, 1):
            pictures, labels = train.batch(order[start : start + self._settings.batch])
            figures = self._learner.train_on_batch(pictures, labels[:, np.newaxis], return_dict=True)
            bar.update(step, values=[(name, float(value)) for name, value in figures.items()])
            sums += len(labels) * np.array([float(figures["loss"]), float(figures["accuracy"])])
        loss, accuracy = sums / len(order)
        said = logits(self._network, validation)
        row = {
            "epoch": number + 1.0,
            "loss": float(loss),
            "accuracy": float(accuracy),
            "validation_loss": float(losses(said, validation.labels).mean()),
            "validation_accuracy": float(((said > 0) == validation.labels).mean()),
        }
        self.history.append(row)
        if best(self.history) is row:
            self._best = self._weights()

    def best_weights(self) -> bytes:
        """Return the weights of the best epoch, as `training.fit.weights_of`."""
        for variable, value in zip(self._network.weights, self._best, strict=True):
            variable.assign(value)
        return weights_of(self._network)

    def checkpoint(self) -> bytes:
        """Return all that the next epoch needs."""
        rows = np.array([[row[name] for name in COLUMNS] for row in self.history], dtype=np.float64)
        optimizer = [ops.convert_to_numpy(variable.value) for variable in self._optimizer.variables]
        return as_bytes([rows, *self._weights(), *self._best, *optimizer])

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint."""
        rows, *arrays = from_bytes(checkpoint)
        self.history = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]
        count = len(self._network.weights)
        self._best = [np.asarray(array) for array in arrays[count : 2 * count]]
        variables = [*self._network.weights, *self._optimizer.variables]
        for variable, value in zip(variables, [*arrays[:count], *arrays[2 * count :]], strict=True):
            variable.assign(value)

    def _weights(self) -> list[npt.NDArray[np.generic]]:
        return [np.array(ops.convert_to_numpy(variable.value)) for variable in self._network.weights]

    def _reseed(self, epoch: int) -> None:
        """Let what is drawn depend on the seed and the epoch alone, not on what was drawn before a stop."""
        generators = [self._learner.get_layer("moved").random]
        generators += [
            layer.seed_generator for layer in self._network.layers if isinstance(layer, keras.layers.Dropout)
        ]
        for number, generator in enumerate(generators):
            generator.state.assign(np.array([self._settings.seed % 2**31 + number, epoch * 2**20], dtype=np.uint32))


def _as_csv(rows: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows({**row, "epoch": int(row["epoch"])} for row in rows)
    return text.getvalue().encode()
