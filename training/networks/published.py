"""The small CNN of the published fracture detectors: pixels 0 to 255 in, one logit out; scaling is in the graph."""

from __future__ import annotations

import keras

from training.networks import layout
from training.networks.augment import Augmentation


def published_cnn(size: tuple[int, int], channels: int = 1) -> keras.Model:
    """Return the small CNN that published fracture detectors use: three convolutions, one dense layer, one logit.

    The published network ends in a sigmoid. Here it ends before it: the loss takes logits, and the sigmoid comes with
    the calibration, so that the released graph gives what calibration needs. The trained weights are the same.

    Parameters
    ----------
    size
        (rows, columns) of the input; published with 150 × 150.
    channels
        1 for grey, 3 for the colours it was published with.
    """
    inputs = keras.Input((*size, channels), name="grey" if channels == 1 else "colours")
    x = keras.layers.Rescaling(1 / 255)(layout.inward(inputs))
    for number, filters in enumerate((32, 64, 128), 1):
        x = keras.layers.Conv2D(filters, 3, activation="relu", name=f"convolution_{number}")(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten(data_format="channels_last")(layout.outward(x))
    x = keras.layers.Dense(128, activation="relu", name="dense")(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, keras.layers.Dense(1, dtype="float32", name="logit")(x), name="published_cnn")


def augmented(network: keras.Model, *, seed: int = 1) -> keras.Model:
    """Return `network` behind random turning by up to 15° and flipping, which act in training only.

    What was published names rotation and a horizontal flip without an angle. Both are one map here, interpolated once;
    what turns into the picture from outside is black.
    """
    inputs = keras.Input(network.input_shape[1:])
    moved = Augmentation(
        turn=15.0, zoom=0.0, shift=0.0, contrast=0.0, noise=0.0, flip=True, seed=seed, dtype="float32", name="moved"
    )
    return keras.Model(inputs, network(moved(inputs)), name=f"augmented_{network.name}")
