"""Inputs and fracture boxes as arrays on disk, made once: decoding takes longer than an epoch's worth of reading them.

A file's name is a digest of everything that decides its content (the pixel pipeline's version, the size, the pictures,
the boxes), so that a file that is there is right. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_node.image import scale
from dicom_node.pixels import PIPELINE_VERSION, ModelInput
from training.data import Sample, prepared

_Bytes = npt.NDArray[np.uint8]
Corners = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in pixels of the model's input."""


def cached_inputs(samples: Sequence[Sample], size: tuple[int, int], folder: Path) -> _Bytes:
    """Return the samples as the model sees them, uint8 (n, rows, columns, 1), mapped from a file in `folder`.

    Raises what `training.data.prepared` raises for a picture that cannot be read.
    """
    return _cached("inputs", samples, size, folder, _input)


def cached_masks(samples: Sequence[Sample], size: tuple[int, int], folder: Path) -> _Bytes:
    """Return the fracture boxes drawn in the model's input, uint8 (n, rows, columns, 1): 255 inside, else 0."""
    return _cached("masks", samples, size, folder, _mask)


def boxes_in_input(sample: Sample, image: ModelInput) -> list[Corners]:
    """Return the sample's fracture boxes in pixels of its model input; parts beyond the drawn picture are cut off."""
    rows, columns = image.pixels.shape
    width, height = image.box.right - image.box.left, image.box.bottom - image.box.top
    across = scale.drawn_length(width, image.scale, columns) / width
    down = scale.drawn_length(height, image.scale, rows) / height

    def x(share: float) -> float:
        inside = min(max(share * image.source_columns - image.box.left, 0.0), float(width))
        return image.left + inside * across

    def y(share: float) -> float:
        inside = min(max(share * image.source_rows - image.box.top, 0.0), float(height))
        return image.top + inside * down

    return [(x(box.xmin), y(box.ymin), x(box.xmax), y(box.ymax)) for box in sample.boxes]


def _input(sample: Sample, size: tuple[int, int]) -> _Bytes:
    return np.asarray(prepared(sample, size).pixels)


def _mask(sample: Sample, size: tuple[int, int]) -> _Bytes:
    mask = np.zeros(size, dtype=np.uint8)
    if sample.boxes:
        for left, top, right, bottom in boxes_in_input(sample, prepared(sample, size)):
            mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 255
    return mask


def _cached(
    kind: str,
    samples: Sequence[Sample],
    size: tuple[int, int],
    folder: Path,
    make: Callable[[Sample, tuple[int, int]], _Bytes],
) -> _Bytes:
    path = folder / f"{kind}-{_digest(samples, size)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            sizes = [size] * len(samples)
            _write(path, (len(samples), *size, 1), pool.map(make, samples, sizes, chunksize=32))
    return np.asarray(np.load(path, mmap_mode="r"))


def _write(path: Path, shape: tuple[int, ...], pictures: Iterable[_Bytes]) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    content = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
    for at, picture in enumerate(pictures):
        content[at, :, :, 0] = picture
    content.flush()
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _digest(samples: Sequence[Sample], size: tuple[int, int]) -> str:
    known = hashlib.sha256(f"{PIPELINE_VERSION} {size}".encode())
    for sample in samples:
        known.update(f"{sample.sha256} {sample.boxes}".encode())
    return known.hexdigest()[:24]
