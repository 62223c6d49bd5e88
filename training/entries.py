"""Pictures as the published network was given them: every entry of a split with its repeats, resized, in colours.

Keras's `flow_from_directory`, which such networks are usually fed with, turns a picture to RGB and resizes it to a
square with the nearest pixel, whatever its shape. That is done here as well, since it belongs to the figure that is
reproduced. Nothing that is released reads pictures so: `training.data` goes through the worker's pixel pipeline, which
keeps the shape, averages when it reduces, and takes away burnt-in borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data import manifests, read_fracatlas

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class Entry:
    """One entry of a split; several may be the same picture.

    Attributes
    ----------
    picture
        The same for byte-identical files and for no others: a hash of the file as it was published.
    path
        The file.
    group
        The radiograph it shows (Kaggle), or the neighbours it lies among (FracAtlas).
    fractured
        The label.
    part
        TRAIN, VALIDATION or TEST.
    """

    picture: str
    path: Path
    group: str
    fractured: bool
    part: str


def kaggle(root: Path) -> list[Entry]:
    """Return all entries of `root`/kaggle_multiregion in the manifest's order, split as published. Raises OSError."""
    return [
        # The manifest names each file by the hash of what was published; some were reduced since.
        Entry(sample.path.name, sample.path, sample.group, sample.fractured, sample.split)
        for _, sample in manifests.kaggle(root / "kaggle_multiregion")
    ]


def fracatlas(root: Path, *, held_out: int = 0) -> list[Entry]:
    """Return FracAtlas: the fold `held_out` for choosing, the other folds to learn from, and its test split."""
    part = {None: TEST, held_out: VALIDATION}
    return [
        Entry(sample.sha256, sample.path, sample.group, sample.fractured, part.get(sample.fold, TRAIN))
        for sample in read_fracatlas(root)
    ]


def of_part(entries: Sequence[Entry], part: str) -> list[Entry]:
    """Return the entries of a part, in their order."""
    return [entry for entry in entries if entry.part == part]


def labels(entries: Sequence[Entry]) -> npt.NDArray[np.float64]:
    """Return 1 for fractured, else 0; float64, shape (n,)."""
    return np.array([entry.fractured for entry in entries], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Entries as arrays. Each distinct picture is decoded and held once.

    Attributes
    ----------
    distinct
        uint8, (m, rows, columns, 3).
    of_entry
        intp, (n,): which of them each entry shows.
    labels
        float64, (n,): 1 is fractured.
    """

    distinct: npt.NDArray[np.uint8]
    of_entry: npt.NDArray[np.intp]
    labels: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.of_entry)

    def batch(self, rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return pictures, float32 0 to 255 (len(rows), rows, columns, 3), and their labels, float32 (len(rows),)."""
        return self.distinct[self.of_entry[rows]].astype(np.float32), self.labels[rows].astype(np.float32)


def decoded(entries: Sequence[Entry], size: tuple[int, int]) -> Pictures:
    """Decode the entries' pictures at `size`, (rows, columns). Raises OSError for a file that is no picture."""
    places: dict[str, int] = {}
    of_entry = np.array([places.setdefault(entry.picture, len(places)) for entry in entries], dtype=np.intp)
    distinct = np.empty((len(places), *size, 3), dtype=np.uint8)
    paths = {entry.picture: entry.path for entry in entries}
    for picture, place in places.items():
        distinct[place] = resized(paths[picture], size)
    return Pictures(distinct, of_entry, labels(entries))


def resized(path: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return a picture as `flow_from_directory` does by default: RGB, nearest pixel; uint8, (rows, columns, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.NEAREST))
