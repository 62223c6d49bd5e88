"""Feeds a fit: batches in a given order, from arrays that lie on disk.

The order comes from outside, since a run that goes on after a stop has to see what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """What a fit learns from: aligned arrays, possibly memory-mapped.

    Attributes
    ----------
    inputs
        uint8, (n, rows, columns, 1): grey, as `dicom_node.pixels` makes it.
    masks
        uint8, (n, rows, columns, 1): 255 inside a fracture box, else 0.
    labels
        float32, (n,): 1 is fractured.
    """

    inputs: _Bytes
    masks: _Bytes
    labels: _Floats

    def __len__(self) -> int:
        return len(self.labels)


def batches(examples: Examples, order: npt.NDArray[np.intp], size: int) -> Iterator[tuple[_Floats, _Floats]]:
    """Yield pictures, float32 (size, rows, columns, 2: grey and mask, 0 to 255), and labels (size,), in `order`.

    What is left over at the end is not yielded. With TensorFlow a tf.data pipeline prepares the next batches meanwhile.
    """
    whole = order[: len(order) // size * size].reshape(-1, size)

    def read(rows: npt.NDArray[np.intp]) -> tuple[_Floats, _Floats]:
        near = np.sort(rows)  # one way through the file
        pictures = np.concatenate([examples.inputs[near], examples.masks[near]], axis=-1).astype(np.float32)
        return pictures, examples.labels[near]

    if keras.backend.backend() != "tensorflow":
        yield from (read(rows) for rows in whole)
        return
    import tensorflow as tf

    shape = examples.inputs.shape[1:3]
    pipeline = (
        tf.data.Dataset.from_tensor_slices(whole)
        .map(
            lambda rows: tf.numpy_function(read, [rows], (tf.float32, tf.float32)),
            num_parallel_calls=2,
            deterministic=True,
        )
        .prefetch(2)
    )
    for pictures, labels in pipeline:
        yield tf.ensure_shape(pictures, (size, *shape, 2)), labels
