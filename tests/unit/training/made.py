"""Data sets in the shape of the shared ones, drawn: a fracture is a dark line across a bone, in a box."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from tests.phantom import limb

ROWS, COLUMNS = 120, 96


def picture(number: int, *, fractured: bool) -> Image.Image:
    """Return a limb that no other number gives, uint8 (ROWS, COLUMNS)."""
    random = np.random.default_rng(number)
    grey = limb(ROWS, COLUMNS).astype(np.float64) * random.uniform(0.7, 1.0) + random.normal(0, 2, (ROWS, COLUMNS))
    if fractured:
        left, top, right, bottom = corners(number)
        grey[top + 3 : bottom - 3, left:right] *= 0.2
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def corners(number: int) -> tuple[int, int, int, int]:
    """Return the box of a fracture, left, top, right, bottom in pixels."""
    top = 30 + number % 5 * 6
    return 30, top, 66, top + 12


def fracatlas(root: Path, *, in_fold: int = 4, in_test: int = 4, other: Collection[int] = ()) -> Path:
    """Write `root`/fracatlas: five folds and a test split, every second image fractured, two to a group.

    The images `other` show something else than without being named.
    """
    folder = root / "fracatlas"
    (folder / "images").mkdir(parents=True)
    homes = [("train", str(fold)) for fold in range(5) for _ in range(in_fold)] + [("test", "")] * in_test
    images, boxes = [], []
    for number, (split, fold) in enumerate(homes):
        fractured, name = number % 2 == 0, f"IMG{number:07}.jpg"
        path = folder / "images" / name
        picture(number + 1000 * (number in other), fractured=fractured).save(path, quality=95)
        images.append(
            {
                "image_id": name,
                "split": split,
                "fold": fold,
                "label": "fractured" if fractured else "non_fractured",
                "group": number // 2,
                "hand": number % 4 // 2,
                "leg": 1 - number % 4 // 2,
                "hardware": int(number % 8 == 0),
                "frontal": 1,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
        if fractured:
            left, top, right, bottom = corners(number)
            shares = (left / COLUMNS, top / ROWS, right / COLUMNS, bottom / ROWS)
            boxes.append(dict(zip(("image_id", "xmin", "ymin", "xmax", "ymax"), (name, *shares), strict=True)))
    _written(folder / "images.csv", images)
    _written(folder / "boxes.csv", boxes)
    return root


def kaggle(root: Path) -> Path:
    """Write `root`/kaggle_multiregion: of 8 entries of test, 5 are files of training, and 1 more its radiograph."""
    folder = root / "kaggle_multiregion"
    (folder / "images").mkdir(parents=True)
    train, validation = list(range(12)), [3, 20, 21, 22]
    test = [0, 1, 2, 3, 4, 30, 31, 32]
    rows = []
    for split, numbers in (("train", train), ("val", validation), ("test", test)):
        for number in numbers:
            image = f"{number:016x}.png"
            picture(number, fractured=number % 2 == 0).save(folder / "images" / image)
            rows.append(
                {
                    "split": split,
                    "label": "fractured" if number % 2 == 0 else "not_fractured",
                    "original_name": f"{number}.png",
                    "image": image,
                    "radiograph": 6 if number == 30 else number,
                }
            )
    _written(folder / "images.csv", rows)
    return root


def _written(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
