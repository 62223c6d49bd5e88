"""`python -m training fit RUN`: fits a network, epoch by epoch, so that a run that was stopped goes on where it was.

A run is a folder: `recipe.json`, `history.csv` and `curves.png`, `weights.npz` (the moving average of the weights after
the last epoch) and `held_out.npz` (what the network says about the fold it did not learn from); until the run is
complete, `checkpoint.npz` holds everything the next epoch needs. Every file is written whole or not at all.

No epoch is chosen by the held-out fold: its figures are then those of images that nothing was fitted to, and all five
folds together calibrate the release.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from training import data, networks
from training.cache import cached_inputs, cached_masks
from training.evaluate import auc
from training.feed import Examples, batches
from training.networks.augment import Augmentation
from training.networks.detector import LOGIT, SCORES
from training.plots import curves
from training.recipe import Network, Recipe

RECIPE, HISTORY, WEIGHTS, HELD_OUT, CHECKPOINT = (
    "recipe.json",
    "history.csv",
    "weights.npz",
    "held_out.npz",
    "checkpoint.npz",
)
CURVES = "curves.png"


_Floats = npt.NDArray[np.float32]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `fit` takes."""
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="folder of the run, e.g. runs/lite0; goes on where a stopped run was"
    )
    parser.add_argument("--recipe", type=Path, help="recipe.json to follow; without it the recipe as it stands")
    parser.add_argument("--network", choices=get_args(Network), help="another network than the recipe's")
    parser.add_argument("--fold", type=int, choices=range(5), help="the fold to hold out")
    parser.add_argument("--epochs", type=int)


def run(options: argparse.Namespace) -> None:
    """Fit one network."""
    recipe = Recipe() if options.recipe is None else Recipe.read(options.recipe)
    asked = {"network": options.network, "held_out": options.fold, "epochs": options.epochs}
    fit(
        replace(recipe, **{name: value for name, value in asked.items() if value is not None}),
        options.data,
        options.folder,
    )


def fit(
    recipe: Recipe, root: Path, run: Path, *, after_epoch: Callable[[int, dict[str, float]], None] | None = None
) -> None:
    """Fit a network on the FracAtlas in `root`, leaving the run in the folder `run`.

    `after_epoch` is told every epoch's number and figures; what it raises ends the run, which can go on later.

    Raises ValueError when `run` was begun with another recipe.
    """
    begin(recipe, run)
    if (run / WEIGHTS).exists():
        print(f"{run} is complete.", flush=True)
        return
    samples = [sample for sample in data.read_fracatlas(root) if sample.fold is not None]
    examples = examples_of(samples, recipe.size)
    folds = np.array([sample.fold for sample in samples])
    learnt, held_out = np.flatnonzero(folds != recipe.held_out), np.flatnonzero(folds == recipe.held_out)
    print(f"{len(learnt)} images to learn from, {len(held_out)} held out", flush=True)

    keep_freed_memory()
    use_best_precision()
    training = Training(recipe, examples.labels[learnt], len(learnt) // recipe.batch)
    done = training.resume(run / CHECKPOINT) if (run / CHECKPOINT).exists() else 0
    for epoch in range(done, recipe.epochs):
        row = training.epoch(epoch, examples, learnt)
        if len(held_out):
            with training.averaged():
                judged = judge(training.network, examples, held_out)
            row |= judged.figures(examples, held_out)
            write(run / HELD_OUT, judged.as_bytes(held_out))
        print("  ".join(f"{name} {value:.4f}" for name, value in row.items()), flush=True)
        _append(run / HISTORY, {"epoch": epoch, **row})
        write(run / CHECKPOINT, training.checkpoint(epoch + 1))
        if after_epoch is not None:
            after_epoch(epoch, row)
    with training.averaged():
        write(run / WEIGHTS, weights_of(training.network))
    curves(run / HISTORY, run / CURVES)
    (run / CHECKPOINT).unlink(missing_ok=True)


def begin(recipe: Recipe, run: Path) -> None:
    """Make the folder of a run, or check that it was begun with the same recipe. Raises ValueError when not."""
    run.mkdir(parents=True, exist_ok=True)
    kept = run / RECIPE
    if kept.exists() and Recipe.read(kept) != recipe:
        raise ValueError(f"{run} was begun with another recipe; use another folder.")
    write(kept, recipe.as_text().encode())


def load_run(run: Path) -> tuple[Recipe, keras.Model]:
    """Return a run's recipe and its network, single precision, as it is exported. Raises OSError, ValueError."""
    recipe = Recipe.read(run / RECIPE)
    network = networks.build(recipe)
    set_weights(network, (run / WEIGHTS).read_bytes())
    return recipe, network


def last_figures(run: Path) -> dict[str, float]:
    """Return the last row of a run's history. Raises OSError, and IndexError while no epoch is done."""
    with (run / HISTORY).open(newline="", encoding="utf-8") as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def examples_of(samples: list[data.Sample], size: tuple[int, int]) -> Examples:
    """Return the samples' inputs and boxes from the cache, which is made where it is missing."""
    folder = Path(os.environ.get("OSTEON_TRAINING_CACHE", "runs/cache"))
    return Examples(cached_inputs(samples, size, folder), cached_masks(samples, size, folder), data.labels(samples))


def use_best_precision() -> None:
    """Compute in bfloat16 where the machine is quicker with it and the sums stay in single precision.

    Measured on a processor with AVX-512 BF16, PyTorch: convolutions take half the time. TensorFlow gains nothing there.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if _bfloat16_is_quick() else "float32")
    networks.layout.use_quickest()


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensor instead of giving it back (glibc only, else nothing).

    Every layer frees and asks for tens of megabytes, and fresh pages are dear on virtual machines: measured there,
    PyTorch's step takes a quarter of the time with this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>


def _bfloat16_is_quick() -> bool:
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return bool(on_gpu or (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()))
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    return False


class Training:
    """A network being fitted: its optimiser, its augmentation and the moving average of its weights.

    Parameters
    ----------
    recipe
        What to do.
    labels
        Of what is learnt from: they balance the classes, since four of five images show no fracture.
    steps
        Batches in an epoch.
    """

    def __init__(self, recipe: Recipe, labels: _Floats, steps: int) -> None:
        keras.utils.set_random_seed(recipe.seed)
        self.recipe = recipe
        self.network = networks.build(recipe, for_fitting=True)
        self._augmentation = Augmentation(
            turn=recipe.turn,
            zoom=recipe.zoom,
            shift=recipe.shift,
            contrast=recipe.contrast,
            noise=recipe.noise,
            seed=recipe.seed,
            dtype="float32",
        )
        self._learner = _Learner(self.network, self._augmentation, recipe, float(labels.mean()))
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            warmup_target=recipe.learning_rate,
            warmup_steps=steps // 2,
            decay_steps=max(1, steps * recipe.epochs - steps // 2),
        )
        self._optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, clipnorm=1.0)
        self._learner.compile(optimizer=self._optimizer, jit_compile=False)
        self._optimizer.build(self.network.trainable_variables)
        self._average = [ops.copy(ops.stop_gradient(variable.value)) for variable in self.network.trainable_variables]
        self._steps_done = 0

    def epoch(self, number: int, examples: Examples, learnt: npt.NDArray[np.intp]) -> dict[str, float]:
        """Fit one epoch; return its mean losses and how many images it took a second."""
        self._reseed(number)
        order = np.random.default_rng([self.recipe.seed, number]).permutation(learnt)
        bar = keras.utils.Progbar(len(order) // self.recipe.batch, verbose=1 if sys.stdout.isatty() else 2)
        start, losses = time.monotonic(), list[float]()
        for pictures, labels in batches(examples, order, self.recipe.batch):
            losses.append(float(self._learner.train_on_batch(pictures, labels)))
            self._follow()
            bar.update(len(losses), values=[("loss", float(np.mean(losses)))])
        seconds = time.monotonic() - start
        return {"loss": float(np.mean(losses)), "images_per_second": len(losses) * self.recipe.batch / seconds}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the moving average of its weights for a while."""
        variables = self.network.trainable_variables
        kept = [ops.copy(ops.stop_gradient(variable.value)) for variable in variables]
        _assign(variables, self._average)
        try:
            yield
        finally:
            _assign(variables, kept)

    def checkpoint(self, epochs_done: int) -> bytes:
        """Return all that the next epoch needs."""
        arrays = [np.array([epochs_done, self._steps_done])]
        arrays += [ops.convert_to_numpy(value) for value in self._state()]
        return as_bytes(arrays)

    def resume(self, checkpoint: Path) -> int:
        """Go on from a checkpoint; return how many epochs are done."""
        counts, *arrays = from_bytes(checkpoint.read_bytes())
        trained, average = len(self.network.weights), len(self._average)
        _assign(self.network.weights, arrays[:trained])
        self._average = [ops.convert_to_tensor(array) for array in arrays[trained : trained + average]]
        _assign(self._optimizer.variables, arrays[trained + average :])
        epochs_done, self._steps_done = (int(count) for count in counts)
        return epochs_done

    def _state(self) -> list[keras.KerasTensor]:
        variables = [*self.network.weights], [*self._optimizer.variables]
        return [*(v.value for v in variables[0]), *self._average, *(v.value for v in variables[1])]

    def _follow(self) -> None:
        self._steps_done += 1
        # Short at first, or the average would remember the random weights it began with.
        decay = min(self.recipe.averaging, self._steps_done / (self._steps_done + 9))
        self._average = [
            average + (ops.stop_gradient(variable.value) - average) * (1 - decay)
            for average, variable in zip(self._average, self.network.trainable_variables, strict=True)
        ]

    def _reseed(self, epoch: int) -> None:
        """Let what is drawn depend on the seed and the epoch alone, not on what was drawn before a stop."""
        generators = [self._augmentation.random]
        generators += [layer.seed_generator for layer in self.network.layers if isinstance(layer, keras.layers.Dropout)]
        for number, generator in enumerate(generators):
            generator.state.assign(np.array([self.recipe.seed % 2**31 + number, epoch * 2**20], dtype=np.uint32))


class _Learner(keras.Model):  # type: ignore[misc] # keras has no types
    """The network behind its augmentation, with the loss of the label and of the map."""

    def __init__(self, network: keras.Model, augmentation: Augmentation, recipe: Recipe, positives: float) -> None:
        super().__init__(name="learner")  # of the class's own name TensorFlow would make a scope that it refuses
        self.network, self.augmentation = network, augmentation
        self._recipe = recipe
        self._weights_of_classes = (0.5 / (1 - positives), 0.5 / positives)

    def call(self, pictures: keras.KerasTensor, training: bool = False) -> dict[str, keras.KerasTensor]:
        pictures = self.augmentation(pictures, training=training)
        return {**self.network(pictures[..., :1], training=training), "mask": pictures[..., 1:]}

    def compute_loss(
        self,
        x: keras.KerasTensor = None,  # noqa: ARG002 # Keras's own names
        y: keras.KerasTensor = None,
        y_pred: dict[str, keras.KerasTensor] | None = None,
        sample_weight: keras.KerasTensor = None,  # noqa: ARG002
        training: bool = True,  # noqa: ARG002
    ) -> keras.KerasTensor:
        outputs, recipe = y_pred or {}, self._recipe
        labels = ops.cast(ops.reshape(y, (-1,)), "float32")
        without, with_fracture = self._weights_of_classes
        weights = without + (with_fracture - without) * labels
        target = labels * (1 - 2 * recipe.smoothing) + recipe.smoothing
        loss = ops.mean(weights * _cross_entropy(target, outputs[LOGIT][:, 0]))
        if SCORES not in outputs or not recipe.box_weight:
            return loss
        scores = ops.cast(outputs[SCORES], "float32")
        cell = recipe.rows // scores.shape[1]
        covered = ops.average_pool(outputs["mask"] / 255.0, cell, data_format="channels_last")
        # A cell half of which lies in a box is one that should be found.
        target = ops.minimum(covered * 2.0, 1.0)
        each = _cross_entropy(target, scores) * (1 + recipe.box_balance * target)
        # A box fills a few cells whatever the grid: a mean over all would make finer grids learn less from each.
        return loss + recipe.box_weight * 20 * ops.mean(each)


def _cross_entropy(target: keras.KerasTensor, logit: keras.KerasTensor) -> keras.KerasTensor:
    return ops.binary_crossentropy(target, ops.cast(logit, "float32"), from_logits=True)


def _assign(variables: Sequence[keras.Variable], values: Sequence[object]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


# --- what the network says of images it did not learn from ------------------------------------------------------------


class Judged:
    """Logits (n,) and, of a detector, the cells' scores (n, rows / 16, columns / 16)."""

    def __init__(self, logits: _Floats, scores: _Floats | None) -> None:
        self.logits, self.scores = logits, scores

    def figures(self, examples: Examples, rows: npt.NDArray[np.intp]) -> dict[str, float]:
        """Return the area under the ROC curve and how often the best cell's centre lies in a box."""
        labels = examples.labels[rows].astype(np.float64)
        figures = {"held_out_auc": auc(self.logits.astype(np.float64), labels)}
        if self.scores is None:
            return figures
        hits = []
        for row, scores in zip(rows, self.scores, strict=True):
            mask = examples.masks[row, :, :, 0]
            if mask.any():
                cell = mask.shape[0] // scores.shape[0]
                down, across = np.unravel_index(int(scores.argmax()), scores.shape)
                hits.append(bool(mask[down * cell + cell // 2, across * cell + cell // 2]))
        return {**figures, "held_out_pointing": float(np.mean(hits))}

    def as_bytes(self, rows: npt.NDArray[np.intp]) -> bytes:
        return as_bytes([rows, self.logits, *([] if self.scores is None else [self.scores.astype(np.float16)])])


def judge(network: keras.Model, examples: Examples, rows: npt.NDArray[np.intp], batch: int = 32) -> Judged:
    """Return what the network says of some of the examples."""
    logits, scores = [], []
    for start in range(0, len(rows), batch):
        outputs = network.predict_on_batch(examples.inputs[rows[start : start + batch]].astype(np.float32))
        logits.append(np.asarray(outputs[LOGIT], dtype=np.float32)[:, 0])
        if SCORES in outputs:
            scores.append(np.asarray(outputs[SCORES], dtype=np.float32)[..., 0])
    return Judged(np.concatenate(logits), np.concatenate(scores) if scores else None)


# --- weights ----------------------------------------------------------------------------------------------------------


def weights_of(network: keras.Model) -> bytes:
    """Return the weights by the names of their layers: a network built in another way, or backend, can take them."""
    file = io.BytesIO()
    np.savez(file, **{variable.path: ops.convert_to_numpy(variable.value) for variable in network.weights})
    return file.getvalue()


def set_weights(network: keras.Model, content: bytes) -> None:
    """Give the network the weights of `weights_of`. Raises ValueError when they are another network's."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        if set(file.files) != {variable.path for variable in network.weights}:
            raise ValueError("These are weights of another network.")
        for variable in network.weights:
            variable.assign(file[variable.path])


# --- files ------------------------------------------------------------------------------------------------------------


def as_bytes(arrays: list[npt.NDArray[np.generic]]) -> bytes:
    """Return arrays as the bytes of an .npz file, in their order."""
    file = io.BytesIO()
    np.savez(file, **{f"{at:05}": array for at, array in enumerate(arrays)})  # type: ignore[arg-type] # names, no options
    return file.getvalue()


def from_bytes(content: bytes) -> list[npt.NDArray[np.generic]]:
    """Return the arrays of `as_bytes`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return [file[name] for name in sorted(file.files)]


def _append(path: Path, row: dict[str, float]) -> None:
    before: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            before = [kept for kept in csv.DictReader(file) if int(kept["epoch"]) < row["epoch"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(row))
    writer.writeheader()
    writer.writerows([*before, row])
    write(path, text.getvalue().encode())


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the machine stops meanwhile."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
