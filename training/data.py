"""FracAtlas as arrays: the pictures of the manifest through the worker's own pixel pipeline, split by whole groups.

Neighbouring images are often of one patient, so whatever is split is split by group. The test split is for
`training.evaluate` alone; nothing is chosen on it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_node.pixels import ModelInput, model_input_from_picture


REGIONS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")


class Box(NamedTuple):
    """A fracture's box, as shares of the picture's width and height."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Sample:
    """One picture of the manifest.

    Attributes
    ----------
    path
        The picture.
    sha256
        What its bytes must hash to.
    fractured
        The label.
    group
        Neighbours that must stay on one side of every split.
    fold
        0 to 4 within the training split; None in the test split.
    hardware
        Shows plates, screws or the like: nearly always with a fracture, and so a shortcut.
    split
        "train", "validation" or "test", as the source states it.
    regions
        Of "hand", "leg", "hip", "shoulder" and "mixed", those it shows.
    views
        Of "frontal", "lateral" and "oblique", those it shows.
    boxes
        Where the fractures are.
    multiscan
        Several views on one film.
    """

    path: Path
    sha256: str
    fractured: bool
    group: str
    fold: int | None
    hardware: bool
    split: str = "train"
    regions: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()
    boxes: tuple[Box, ...] = ()
    multiscan: bool = False


def data_root() -> Path:
    """Return the folder of the data sets: OSTEON_TEST_DATA, else ../shared/data."""
    return Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data"))


def read_fracatlas(root: Path) -> list[Sample]:
    """Read the manifest in `root`/fracatlas, in its order. Raises ValueError when a group crosses splits."""
    folder = root / "fracatlas"
    with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    boxes: dict[str, list[Box]] = {}
    with (folder / "boxes.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            boxes.setdefault(row["image_id"], []).append(Box(*(float(row[name]) for name in Box._fields)))
    samples = [
        Sample(
            path=folder / "images" / row["image_id"],
            sha256=row["sha256"],
            fractured={"fractured": True, "non_fractured": False}[row["label"]],
            group=row["group"],
            fold=int(row["fold"]) if row["split"] == "train" else None,
            hardware=row["hardware"] == "1",
            split=row["split"],
            regions=frozenset(name for name in REGIONS if row[name] == "1"),
            views=frozenset(name for name in VIEWS if row[name] == "1"),
            boxes=tuple(boxes.get(row["image_id"], ())),
            multiscan=row["multiscan"] == "1",
        )
        for row in rows
    ]
    home: dict[str, int | None] = {}
    for sample in samples:
        if home.setdefault(sample.group, sample.fold) != sample.fold:
            raise ValueError(f"Group {sample.group} lies in more than one fold or split.")
    return samples


@dataclass(frozen=True)
class Split:
    """Three sets of samples that share no group."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]


def split(samples: Iterable[Sample], *, validation_fold: int) -> Split:
    """Hold one fold of the training split out for choosing, calibration and thresholds."""
    kept = list(samples)
    return Split(
        train=tuple(sample for sample in kept if sample.fold is not None and sample.fold != validation_fold),
        validation=tuple(sample for sample in kept if sample.fold == validation_fold),
        test=tuple(sample for sample in kept if sample.fold is None),
    )


def prepared(sample: Sample, size: tuple[int, int]) -> ModelInput:
    """Return the picture as the model sees it. Raises ValueError when the file is not the manifest's."""
    content = sample.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sample.sha256:
        raise ValueError(f"{sample.path.name} is not the file the manifest names.")
    with Image.open(io.BytesIO(content)) as picture:
        return model_input_from_picture(picture, size)


def arrays(
    samples: Sequence[Sample],
    size: tuple[int, int],
    read: Callable[[Sample, tuple[int, int]], ModelInput] = prepared,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the inputs, uint8 (n, rows, columns, 1), and the labels, float32 (n,): 1 is fractured."""
    inputs = np.zeros((len(samples), *size, 1), dtype=np.uint8)
    for at, sample in enumerate(samples):
        inputs[at, :, :, 0] = read(sample, size).pixels
    return inputs, labels(samples)


def labels(samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
    """Return 1 for fractured, else 0; float32, shape (n,)."""
    return np.array([sample.fractured for sample in samples], dtype=np.float32)
