"""Grad-CAM (Selvaraju et al., ICCV 2017): which parts of a picture spoke for a fracture, for networks without a map.

The network is cut at its last convolution. Every channel there counts by the mean gradient of the logit with respect
to it; the weighted sum, its positive part only, is the map. Keras gives no gradients of its own, so that is the one
line that each backend has a branch for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from training.networks import layout

_Floats = npt.NDArray[np.float32]


def grad_cam(network: keras.Model, pictures: _Floats, *, layer: str | None = None) -> _Floats:
    """Return the map of each picture, float32 (n, h, w), 0 to 1: h and w are those of the layer's output.

    The largest value is 1, or 0 throughout where nothing spoke for a fracture.

    Parameters
    ----------
    network
        Ends in one logit, (n, 1).
    pictures
        As the network takes them, (n, rows, columns, channels).
    layer
        Name of the convolution to look at; the last one unless told.

    Raises ValueError when the network has no such layer, NotImplementedError on a backend whose gradients are not known
    here (they are of TensorFlow, PyTorch and JAX).
    """
    features = (network.get_layer(layer) if layer is not None else _last_convolution(network)).output
    before, after = keras.Model(network.input, features), keras.Model(features, network.output)
    seen = before(ops.convert_to_tensor(pictures, dtype="float32"), training=False)
    gradient = _gradient(after, seen)
    seen, gradient = (layout.outward(ops.cast(each, "float32")) for each in (seen, gradient))
    weights = ops.mean(gradient, axis=(1, 2), keepdims=True)
    maps = ops.convert_to_numpy(ops.relu(ops.sum(ops.stop_gradient(weights * seen), axis=-1)))
    most = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(most > 0, most, 1), dtype=np.float32)


def _last_convolution(network: keras.Model) -> keras.layers.Layer:
    found = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    if not found:
        raise ValueError(f"{network.name} has no convolution.")
    return found[-1]


def _gradient(after: keras.Model, features: keras.KerasTensor) -> keras.KerasTensor:
    """Return the gradient of each picture's logit with respect to its features, of the features' shape."""
    # The pictures do not mix: the gradient of the sum holds that of each.
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(features)
            total = tf.reduce_sum(after(features, training=False))
        return tape.gradient(total, features)
    if backend == "torch":
        import torch

        features = features.detach().requires_grad_()
        with torch.enable_grad():
            total = after(features, training=False).sum()
        return torch.autograd.grad(total, features)[0]
    raise NotImplementedError(f"Gradients of {backend} are not known here.")


def sheet(
    path: Path, pictures: npt.NDArray[np.uint8], maps: _Floats, titles: Sequence[str], *, columns: int = 6
) -> None:
    """Write a PNG of pictures, uint8 (n, rows, columns, 3), each above the same with its map (n, h, w) laid over it."""
    from matplotlib.figure import Figure

    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.2 * columns, 4.7 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    height, width = pictures.shape[1:3]
    for at, (picture, spoke, title) in enumerate(zip(pictures, maps, titles, strict=True)):
        above, below = (axes[2 * (at // columns) + row, at % columns] for row in (0, 1))
        above.set_title(title, fontsize=8)
        above.imshow(picture)
        below.imshow(picture)
        below.imshow(
            spoke,
            cmap="inferno",
            # Black says nothing: where the map is 0 the picture stays as it is.
            alpha=0.65 * spoke,
            vmin=0,
            vmax=1,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
    figure.savefig(path, dpi=110)
