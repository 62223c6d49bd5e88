"""Tells what kind of data set a folder holds, and reads it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from training.data import manifests
from training.data.dataset import Dataset, Problem
from training.data.dicom_folder import LABELS, read_dicom_folder
from training.data.folders import picture_fault, read_folders
from training.data.sample import Sample


def open_dataset(folder: Path) -> Dataset:
    """Read the data set in `folder`, every picture decoded once to see that it can be.

    `images.csv` is a manifest (FracAtlas with `image_id`, the Kaggle multi-region set with `radiograph`), `labels.csv`
    labels DICOM files, and without either it is a folder for each class. A manifest's copies and labels are its
    author's: they stay as they are, since what was published with them cannot be measured without them.

    Raises ValueError for a folder that is none of these, FileNotFoundError when there is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if (folder / "images.csv").is_file():
        return _by_manifest(folder)
    if (folder / LABELS).is_file():
        return read_dicom_folder(folder)
    return read_folders(folder)


def named(dataset: str, root: Path) -> Path:
    """Return the folder that a command line means: one that is there, else one below `root`."""
    return Path(dataset) if Path(dataset).is_dir() else root / dataset


def _by_manifest(folder: Path) -> Dataset:
    columns = set(next(iter(manifests.rows(folder / "images.csv")), {}))
    if "image_id" in columns:
        entries = [(sample.path.name, sample) for sample in manifests.fracatlas(folder)]
    elif "radiograph" in columns:
        entries = manifests.kaggle(folder)
    else:
        raise ValueError("images.csv is neither FracAtlas's manifest nor that of the Kaggle multi-region set.")
    faults: dict[Path, str | None] = {}
    sums: dict[Path, str] = {}
    samples: list[Sample] = []
    problems: list[Problem] = []
    for name, sample in entries:
        if sample.path not in faults:
            faults[sample.path], sums[sample.path] = _looked_at(sample)
        fault = faults[sample.path]
        if fault is None:
            samples.append(replace(sample, sha256=sums[sample.path]))
        else:
            problems.append(Problem(name, fault))
    return Dataset(folder.name, tuple(samples), tuple(problems))


def _looked_at(sample: Sample) -> tuple[str | None, str]:
    """Return what is wrong with a sample's file, or None, and its SHA-256."""
    try:
        content = sample.path.read_bytes()
    except FileNotFoundError:
        return "there is no such file", ""
    found = hashlib.sha256(content).hexdigest()
    if sample.sha256 and found != sample.sha256:
        return "not the file that the manifest names", found
    return picture_fault(content), found
