"""The manifests of FracAtlas and of the Kaggle multi-region set: `images.csv` and `boxes.csv` as samples."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from training.data.sample import Box, Sample

REGIONS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")
_LABELS = {"fractured": True, "non_fractured": False, "not_fractured": False}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read_fracatlas(root: Path) -> list[Sample]:
    """Read the manifest in `root`/fracatlas, in its order. Raises ValueError when a group crosses splits."""
    return fracatlas(root / "fracatlas")


def fracatlas(folder: Path) -> list[Sample]:
    """Read FracAtlas's manifest in `folder`. Raises ValueError when a group crosses splits."""
    boxes = _boxes(folder / "boxes.csv")
    samples = [
        Sample(
            path=folder / "images" / row["image_id"],
            sha256=row["sha256"],
            fractured=_LABELS[row["label"]],
            group=row["group"],
            fold=int(row["fold"]) if row["split"] == "train" else None,
            hardware=row["hardware"] == "1",
            split=row["split"],
            regions=frozenset(name for name in REGIONS if row.get(name) == "1"),
            views=frozenset(name for name in VIEWS if row.get(name) == "1"),
            boxes=tuple(boxes.get(row["image_id"], ())),
            multiscan=row.get("multiscan") == "1",
        )
        for row in rows(folder / "images.csv")
    ]
    home: dict[str, int | None] = {}
    for sample in samples:
        if home.setdefault(sample.group, sample.fold) != sample.fold:
            raise ValueError(f"Group {sample.group} lies in more than one fold or split.")
    return samples


def kaggle(folder: Path) -> list[tuple[str, Sample]]:
    """Read the Kaggle set's manifest in `folder`: each entry as it was published (split/label/name), and its sample.

    The group is the radiograph. The manifest gives no hash of the stored file: `sha256` is left empty.
    """
    return [
        (
            f"{row['split']}/{row['label']}/{row['original_name']}",
            Sample(
                path=folder / "images" / row["image"],
                sha256="",
                fractured=_LABELS[row["label"]],
                group=row["radiograph"],
                fold=None,
                hardware=False,
                split=_SPLITS[row["split"]],
            ),
        )
        for row in rows(folder / "images.csv")
    ]


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header line. Raises OSError."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _boxes(path: Path) -> dict[str, list[Box]]:
    """Return the boxes of each image; none where the manifest has no such file."""
    found: dict[str, list[Box]] = defaultdict(list)
    for row in rows(path) if path.is_file() else ():
        found[row["image_id"]].append(
            Box(float(row["xmin"]), float(row["ymin"]), float(row["xmax"]), float(row["ymax"]))
        )
    return found
