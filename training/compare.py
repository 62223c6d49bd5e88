"""`python -m training compare FOLDER`: architectures side by side, all from one fold, recipe and number of epochs.

The first run fits every architecture that is not fitted yet, with either backend. With TensorFlow each is then exported
and measured as a LiteRT file: its size, its time for one image, and its figures on the fold that it did not learn from.
The table goes to `comparison.json`, from where a release takes it into its card.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.recipe import Network, Recipe
from worker.bundle import ComparedArchitecture

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt

    from training.fit import Judged

TABLE = "comparison.json"
NAMES: dict[Network, str] = {
    "lite0": "EfficientNet-Lite0, ImageNet, fine-tuned",
    "lite1": "EfficientNet-Lite1, ImageNet, fine-tuned",
    "lite2": "EfficientNet-Lite2, ImageNet, fine-tuned",
    "residual": "residual network from scratch",
    "published": "the published CNN",
}
PUBLISHED_SIZE = (150, 150)
TIMED = 30
"""Images of which the median time is taken."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `compare` takes."""
    parser.add_argument("folder", type=Path, help="folder with recipe.json; holds one run for each architecture")
    parser.add_argument("--networks", nargs="+", choices=list(NAMES), default=list(NAMES))


def run(options: argparse.Namespace) -> None:
    """Fit what is not fitted, measure where TensorFlow runs, and print the table."""
    import keras

    from training import fit

    base = Recipe.read(options.folder / fit.RECIPE)
    for network in options.networks:
        fit.fit(recipe_for(base, network), options.data, options.folder / network)
    if keras.backend.backend() != "tensorflow":
        print("All are fitted. Run this again with KERAS_BACKEND=tensorflow to measure them as LiteRT files.")
        return
    rows = [measured(options.folder / network, options.data) for network in options.networks]
    content = json.dumps([row.model_dump() for row in rows], indent=2, ensure_ascii=False) + "\n"
    fit.write(options.folder / TABLE, content.encode())
    print(table(rows))


def recipe_for(base: Recipe, network: Network) -> Recipe:
    """Return the recipe for an architecture: `base` but for the size that the published CNN was made for."""
    if network == "published":
        rows, columns = PUBLISHED_SIZE
        return replace(base, network=network, rows=rows, columns=columns)
    return replace(base, network=network)


def read(path: Path) -> tuple[ComparedArchitecture, ...]:
    """Return the rows of a comparison. Raises OSError, and ValueError for a file that is none."""
    return tuple(ComparedArchitecture.model_validate(row) for row in json.loads(path.read_text(encoding="utf-8")))


def measured(run: Path, root: Path) -> ComparedArchitecture:
    """Measure a run's network as a LiteRT file on the fold it did not learn from. Raises ValueError without such."""
    from training import data, fit
    from training.export import exported, of_one_image
    from training.metrics import auc

    recipe, network = fit.load_run(run)
    samples = [sample for sample in data.read_fracatlas(root) if sample.fold is not None]
    examples = fit.examples_of(samples, recipe.size)
    rows = np.flatnonzero([sample.fold == recipe.held_out for sample in samples])
    if not len(rows):
        raise ValueError(f"{run} held no fold out.")
    model = exported(of_one_image(network))
    judged, milliseconds = _read(model, examples.inputs[rows])
    figures = judged.figures(examples, rows)
    sound = np.array([not samples[at].hardware for at in rows])
    logits, labels = judged.logits.astype(np.float64), examples.labels[rows].astype(np.float64)
    values = {
        "auc": figures["held_out_auc"],
        "auc_without_hardware": auc(logits[sound], labels[sound]),
        **({"pointing_inside": figures["held_out_pointing"]} if "held_out_pointing" in figures else {}),
    }
    return ComparedArchitecture(
        name=NAMES[recipe.network],
        input=f"{recipe.rows} × {recipe.columns}",
        parameters=int(network.count_params()),
        megabytes=round(len(model) / 1e6, 2),
        milliseconds=round(milliseconds, 1),
        values={name: round(value, 4) for name, value in values.items()},
        note=f"fold {recipe.held_out}, {recipe.epochs} epochs, {_learnt(network)} of its weights fitted",
    )


def _learnt(network: keras.Model) -> str:
    fitted = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    return f"{fitted / network.count_params():.0%}"


def _read(model: bytes, inputs: npt.NDArray[np.uint8]) -> tuple[Judged, float]:
    """Return what a LiteRT file says of inputs (n, rows, columns, 1), and the median milliseconds for one."""
    from ai_edge_litert.interpreter import Interpreter

    from training.fit import Judged
    from training.networks.detector import LOGIT, SCORES

    interpreter = Interpreter(model_content=model, num_threads=2)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    details = interpreter.get_signature_runner("serving_default").get_output_details()
    outputs = {name: int(of["index"]) for name, of in details.items()}
    logits, scores, times = [], [], []
    for picture in inputs:
        begun = time.perf_counter()
        interpreter.set_tensor(entry["index"], picture[np.newaxis].astype(np.float32))
        interpreter.invoke()
        times.append(time.perf_counter() - begun)
        logits.append(interpreter.get_tensor(outputs[LOGIT])[0, 0])
        if SCORES in outputs:
            scores.append(interpreter.get_tensor(outputs[SCORES])[0, :, :, 0])
    judged = Judged(np.array(logits, dtype=np.float32), np.stack(scores) if scores else None)
    return judged, float(np.median(times[-TIMED:])) * 1000


def table(rows: Sequence[ComparedArchitecture]) -> str:
    """Return the rows as lines of text."""
    columns = ("auc", "auc_without_hardware", "pointing_inside")
    lines = [
        f"{'':44}{'input':>10}{'weights':>9}{'LiteRT':>9}{'1 image':>9}{'AUC':>7}{'no hardware':>13}{'pointing':>10}"
    ]
    for row in rows:
        took = "–" if row.milliseconds is None else f"{row.milliseconds:.0f} ms"
        figures = [f"{row.values[name]:.3f}" if name in row.values else "–" for name in columns]
        lines.append(
            f"{row.name:44}{row.input:>10}{row.parameters / 1e6:>7.1f} M{row.megabytes:>6.1f} MB{took:>9}"
            f"{figures[0]:>7}{figures[1]:>13}{figures[2]:>10}"
        )
    return "\n".join([*lines, *(f"{row.name}: {row.note}" for row in rows if row.note)])
