"""One labelled image, and its pixels through the worker's own pipeline: what is trained on is what will be served."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from dicom_node.pixels import ModelInput, model_input, model_input_from_picture


@dataclass(frozen=True)
class Box:
    """A rectangle around a fracture, as fractions (0 to 1) of the picture's width and height."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes
    ----------
    path
        The file: a picture, or a DICOM instance.
    sha256
        What its bytes must hash to.
    fractured
        The label.
    group
        Neighbours, or the images of one patient, that must stay on one side of every split.
    fold
        0 to 4 within FracAtlas's training split; None elsewhere.
    hardware
        Shows plates, screws or the like: nearly always with a fracture, and so a shortcut.
    split
        "train", "validation" or "test", as the source states it; "train" where it states none.
    regions
        Of "hand", "leg", "hip", "shoulder", "mixed"; empty where unknown.
    views
        Of "frontal", "lateral", "oblique"; empty where unknown.
    boxes
        The fractures, where the source marks them.
    multiscan
        The picture holds more than one exposure.
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


def is_dicom(content: bytes) -> bool:
    """Tell whether these bytes are a DICOM file, by its prefix (PS3.10 section 7.1)."""
    return content[128:132] == b"DICM"


def prepared(sample: Sample, size: tuple[int, int]) -> ModelInput:
    """Return the image as the model sees it.

    Raises ValueError when the file is not the one the sample names, NotAnalysable when the worker would refuse it.
    """
    content = sample.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sample.sha256:
        raise ValueError(f"{sample.path.name} is not the file the manifest names.")
    if is_dicom(content):
        return model_input(pydicom.dcmread(io.BytesIO(content)), size)
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
