"""`python -m training reproduce`: what the published CNN reaches on the published split, and what that figure is worth.

The network is fitted as it was published, its epoch chosen on the published validation part, and the test part is
measured once. Beside it stand the entries that are not in training, a reader that only memorises, and the same network
where training and test share nothing (FracAtlas). Written to the run's folder as `reproduction.md` and
`reproduction.json`, with every test entry in `test.csv` and Grad-CAM overlays in `gradcam.png`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training import entries as sets
from training import memorise
from training.entries import TEST, TRAIN, VALIDATION, Entry, Pictures
from training.metrics import draw, interval

if TYPE_CHECKING:
    from training.published import Settings

PUBLISHED_ACCURACY, PUBLISHED_LOSS = 0.99, 0.03
MARKDOWN, FIGURES, ENTRIES, GRADCAM = "reproduction.md", "reproduction.json", "test.csv", "gradcam.png"

_Floats = npt.NDArray[np.float64]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `reproduce` takes."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of the run, e.g. runs/reproduction")
    parser.add_argument("--epochs", type=int, default=30, help="as published: 30")
    parser.add_argument(
        "--without-fracatlas",
        action="store_true",
        help="leave out the same network where training and test share nothing; with it, FracAtlas test is read once",
    )


def run(options: argparse.Namespace) -> None:
    """Fit where it is not fitted yet, measure, print and write."""
    from training.published import Settings  # Keras takes seconds, and --help does without it

    settings = Settings(epochs=options.epochs)
    kaggle = sets.kaggle(options.data)
    # What takes seconds comes first: a data set that is missing is said now, not after the fit.
    memorised, elsewhere = memorised_kaggle(kaggle), memorised_fracatlas(options.data)
    rows = [published(), *published_split(kaggle, settings, options.folder), memorised]
    if not options.without_fracatlas:
        rows += fracatlas(options.data, settings, options.folder / "fracatlas")
    rows += elsewhere
    text = as_markdown(rows, kaggle)
    content = {"leaks": leaks(kaggle), "settings": asdict(settings), "rows": [asdict(row) for row in rows]}
    _write(options.folder / MARKDOWN, text.encode())
    _write(options.folder / FIGURES, (json.dumps(content, indent=2) + "\n").encode())
    print(text)


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval; without one where it was not measured here."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        beside = "" if self.low is None or self.high is None else f" ({self.low:.3f}–{self.high:.3f})"
        return f"{self.value:.3f}{beside}"


@dataclass(frozen=True)
class Row:
    """One line of the table. A figure is None where it is not known or not defined (an AUC needs both answers)."""

    reader: str
    pictures: str
    count: int
    fractured: int | None
    accuracy: Figure | None
    loss: Figure | None = None
    auc: Figure | None = None
    note: str = ""


# --- the published split ----------------------------------------------------------------------------------------------


def published() -> Row:
    """What was published."""
    accuracy, loss = Figure(PUBLISHED_ACCURACY), Figure(PUBLISHED_LOSS)
    return Row("published", "published split, test", 506, None, accuracy, loss, None, "as stated by its authors")


def published_split(entries: Sequence[Entry], settings: Settings, folder: Path) -> list[Row]:
    """Fit the network on the published split, or take the fit from `folder`; return what it reaches.

    Writes `test.csv` and `gradcam.png`.
    """
    from training import published as network_of

    train, validation, test = (sets.of_part(entries, part) for part in (TRAIN, VALIDATION, TEST))
    network_of.fit(settings, train, validation, folder)
    network, shown = network_of.load(folder), sets.decoded(test, settings.size)
    logits = network_of.logits(network, shown)
    known, known_radiographs = {entry.picture for entry in train}, {entry.group for entry in train}
    file_in_training = np.array([entry.picture in known for entry in test], dtype=np.bool_)
    radiograph_in_training = np.array([entry.group in known_radiographs for entry in test], dtype=np.bool_)
    _write(folder / ENTRIES, _listed(test, logits, file_in_training, radiograph_in_training))
    overlays(folder / GRADCAM, network, shown, logits, radiograph_in_training)

    kept = network_of.best(network_of.history(folder))
    chosen = f"epoch {kept['epoch']:.0f} of {settings.epochs}, the best on validation"
    parts = {
        "published split, test": (np.ones(len(test), dtype=np.bool_), chosen),
        "— the same file is in training": (file_in_training, ""),
        "— the file is not in training": (~file_in_training, ""),
        "— the radiograph is not in training": (~radiograph_in_training, ""),
    }
    rows = [
        _row("the published CNN", name, logits[of], [test[at] for at in np.flatnonzero(of)], note)
        for name, (of, note) in parts.items()
    ]
    accuracy, loss = Figure(kept["validation_accuracy"]), Figure(kept["validation_loss"])
    repeated = sum(entry.picture in known for entry in validation)
    note = f"chosen on it; {repeated} of its files are in training"
    fractured = sum(entry.fractured for entry in validation)
    rows.append(
        Row("the published CNN", "published split, validation", len(validation), fractured, accuracy, loss, None, note)
    )
    return rows


def leaks(entries: Sequence[Entry]) -> dict[str, int]:
    """Count the test entries of the published split whose file, and whose radiograph, is in training."""
    train, test = sets.of_part(entries, TRAIN), sets.of_part(entries, TEST)
    known, radiographs = {entry.picture for entry in train}, {entry.group for entry in train}
    return {
        "test": len(test),
        "same_file_in_training": sum(entry.picture in known for entry in test),
        "same_radiograph_in_training": sum(entry.group in radiographs for entry in test),
    }


def memorised_kaggle(entries: Sequence[Entry]) -> Row:
    """What a reader that only memorises reaches on the published split."""
    return _memorised("published split, test", sets.of_part(entries, TRAIN), sets.of_part(entries, TEST))


# --- where training and test share nothing ----------------------------------------------------------------------------


def fracatlas(root: Path, settings: Settings, folder: Path) -> list[Row]:
    """Fit the network on FracAtlas folds 1 to 4, its epoch chosen on fold 0; return what it reaches there and on test.

    Reads the FracAtlas test split.
    """
    from training import published as network_of

    entries = sets.fracatlas(root)
    train, validation, test = (sets.of_part(entries, part) for part in (TRAIN, VALIDATION, TEST))
    network_of.fit(settings, train, validation, folder)
    network = network_of.load(folder)
    parts = {
        "FracAtlas, test": (test, "no group is in training"),
        "FracAtlas, fold 0": (validation, "its epoch was chosen on it"),
    }
    return [
        _row("the same network", name, network_of.logits(network, sets.decoded(part, settings.size)), part, note)
        for name, (part, note) in parts.items()
    ]


def memorised_fracatlas(root: Path) -> list[Row]:
    """What a reader that only memorises FracAtlas folds 1 to 4 reaches on fold 0, and one that always says the same."""
    entries = sets.fracatlas(root)
    train, asked = sets.of_part(entries, TRAIN), sets.of_part(entries, VALIDATION)
    label = sets.labels(asked)
    usual = float(sets.labels(train).mean() > 0.5)
    constant = _row("always the more frequent answer", "FracAtlas, fold 0", np.full(len(label), usual - 0.5), asked, "")
    return [_memorised("FracAtlas, fold 0", train, asked), replace(constant, loss=None)]


def _memorised(pictures: str, train: Sequence[Entry], asked: Sequence[Entry]) -> Row:
    answers = memorise.answers(train, asked)
    right = answers.said == sets.labels(asked)
    note = (
        f"the same file: {right[answers.exact].sum()} of {answers.exact.sum()} right; "
        f"the one most like it: {right[~answers.exact].sum()} of {(~answers.exact).sum()}"
    )
    row = _row("a reader that only memorises", pictures, answers.said - 0.5, asked, note)
    return replace(row, loss=None)  # it says yes or no, no probability


# --- figures ----------------------------------------------------------------------------------------------------------


def _row(reader: str, pictures: str, logits: _Floats, entries: Sequence[Entry], note: str) -> Row:
    """Measure logits; intervals are those of a bootstrap over radiographs (Kaggle) or groups (FracAtlas)."""
    from training.published import losses

    label = sets.labels(entries)
    draws = draw([entry.group for entry in entries])
    if label.all():
        note = f"{note}; all are fractured: accuracy is sensitivity".removeprefix("; ")
    return Row(
        reader,
        pictures,
        len(entries),
        int(label.sum()),
        _figure(draws.mean((logits > 0) == (label == 1))),
        _figure(draws.mean(losses(logits, label))),
        _figure(draws.auc(logits, label)),
        note,
    )


def _figure(drawn: _Floats) -> Figure | None:
    found = interval(drawn)
    return None if found is None else Figure(*(round(value, 4) for value in found))


def as_markdown(rows: Sequence[Row], kaggle: Sequence[Entry]) -> str:
    """Return the table with the few sentences it needs."""
    counts = leaks(kaggle)
    head = ("reader", "pictures", "n", "fractured", "accuracy", "loss", "AUC", "")
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        figures = ["–" if one is None else str(one) for one in (row.accuracy, row.loss, row.auc)]
        fractured = "–" if row.fractured is None else str(row.fractured)
        lines.append(_line([row.reader, row.pictures, str(row.count), fractured, *figures, row.note]))
    return "\n".join(
        [
            "# The published figure, and what it is worth",
            "",
            f"Of the {counts['test']} test entries of the published split, {counts['same_file_in_training']} are files "
            f"that are in training as well, and {counts['same_radiograph_in_training']} show a radiograph that is.",
            "",
            *lines,
            "",
            "Accuracy at a probability of 0.5; loss is the mean binary cross-entropy. In brackets: 95 % intervals of a "
            "bootstrap over whole radiographs (published split) or groups of neighbouring images (FracAtlas).",
            "",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- what is written --------------------------------------------------------------------------------------------------


def overlays(
    path: Path, network: object, pictures: Pictures, logits: _Floats, in_training: npt.NDArray[np.bool_], each: int = 6
) -> None:
    """Write Grad-CAM overlays: of radiographs not in training, then of fractured and of sound ones that are."""
    from training.gradcam import grad_cam, sheet

    fractured = pictures.labels == 1
    chosen: list[int] = []
    for kind in (~in_training, in_training & fractured, in_training & ~fractured):
        # Each distinct picture once.
        _, first = np.unique(pictures.of_entry[kind], return_index=True)
        chosen += [int(at) for at in np.flatnonzero(kind)[np.sort(first)][:each]]
    rows = np.array(chosen, dtype=np.intp)
    shown = pictures.batch(rows)[0]
    titles = [
        f"{'fractured' if fractured[at] else 'no fracture'}, says {1 / (1 + np.exp(-logits[at])):.2f}\n"
        f"{'in' if in_training[at] else 'not in'} training"
        for at in chosen
    ]
    sheet(path, shown.astype(np.uint8), grad_cam(network, shown), titles, columns=each)


def _listed(
    entries: Sequence[Entry],
    logits: _Floats,
    file_in_training: npt.NDArray[np.bool_],
    radiograph_in_training: npt.NDArray[np.bool_],
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["picture", "radiograph", "fractured", "logit", "file_in_training", "radiograph_in_training"])
    for entry, logit, *known in zip(entries, logits, file_in_training, radiograph_in_training, strict=True):
        writer.writerow([entry.picture, entry.group, int(entry.fractured), f"{logit:.4f}", *map(int, known)])
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    from training.fit import write

    write(path, content)
