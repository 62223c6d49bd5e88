"""The order of a tensor's axes within a network, as its backend is quickest with.

Inputs and outputs are always (n, rows, columns, channels). Within, TensorFlow keeps that order; PyTorch computes on
(n, channels, rows, columns), and Keras would turn every tensor twice for every layer there. Kernels have the same shapes
in both, so that weights trained with one backend serve the other.

`use_quickest()` is called once, before a network is built.
"""

from __future__ import annotations

import keras
from keras import ops


def use_quickest() -> None:
    """Set Keras's image data format to the one that its backend computes in."""
    keras.config.set_image_data_format("channels_first" if _is_torch() else "channels_last")


def channels(x: keras.KerasTensor) -> int:
    """Return how many channels a tensor within a network has."""
    return int(x.shape[channel_axis()])


def channel_axis() -> int:
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def every_second(x: keras.KerasTensor) -> keras.KerasTensor:
    """Return the odd rows and columns of a tensor within a network."""
    return x[:, :, 1::2, 1::2] if channel_axis() == 1 else x[:, 1::2, 1::2, :]


def inward(x: keras.KerasTensor) -> keras.KerasTensor:
    """Turn (n, rows, columns, channels) into the order within."""
    return ops.transpose(x, (0, 3, 1, 2)) if channel_axis() == 1 else x


def outward(x: keras.KerasTensor) -> keras.KerasTensor:
    """Turn the order within into (n, rows, columns, channels)."""
    return ops.transpose(x, (0, 2, 3, 1)) if channel_axis() == 1 else x


class InterleavedInMemory(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Change no value, but with PyTorch on a CPU lay the channels of a pixel side by side in memory.

    Every layer that follows keeps that, and oneDNN's convolutions take about half the time with it.
    """

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if channel_axis() == 1 and _is_torch():
            import torch

            return x.contiguous(memory_format=torch.channels_last)
        return x


def _is_torch() -> bool:
    return str(keras.backend.backend()) == "torch"
