"""The networks. Each takes float32 grey 0 to 255 and ends in one logit for each finding; scaling is in the graph."""

from __future__ import annotations

import keras


def published_cnn(size: tuple[int, int]) -> keras.Model:
    """Return the small CNN that published fracture detectors use: three convolutions, one dense layer, one logit.

    The published network ends in a sigmoid. Here it ends before it: the loss takes logits, and the sigmoid comes with
    the calibration, so that the released graph gives what calibration needs. The trained weights are the same.

    Parameters
    ----------
    size
        (rows, columns) of the input; published with 150 × 150.
    """
    inputs = keras.Input((*size, 1), name="grey")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64, 128):
        x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(128, activation="relu")(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x), name="published_cnn")


def augmented(network: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Return `network` behind random turning and flipping, which act in training only and are never released."""
    inputs = keras.Input((*size, 1))
    x = keras.layers.RandomFlip("horizontal", seed=1)(inputs)
    x = keras.layers.RandomRotation(15 / 360, fill_mode="constant", fill_value=0.0, seed=2)(x)
    return keras.Model(inputs, network(x), name=f"augmented_{network.name}")
