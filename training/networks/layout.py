"""The order of a tensor's axes within a network, as its backend is quickest with.

Inputs and outputs are always (n, rows, columns, channels). Within, TensorFlow keeps that order; PyTorch computes on
(n, channels, rows, columns), and Keras would turn every tensor twice for every layer there. Kernels have the same
shapes in both, so that weights trained with one backend serve the other.

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


@keras.saving.register_keras_serializable("osteon")
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


@keras.saving.register_keras_serializable("osteon")
class Convolution(keras.layers.Conv2D):  # type: ignore[misc] # keras has no types
    """Keras's Conv2D with its bias added within, where PyTorch can: adding it afterwards takes a third of a step."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        padding = _symmetric_padding(self)
        return super().call(x) if padding is None else _torch_convolution(self, x, padding, groups=1)


@keras.saving.register_keras_serializable("osteon")
class DepthwiseConvolution(keras.layers.DepthwiseConv2D):  # type: ignore[misc] # keras has no types
    """Keras's DepthwiseConv2D with its bias added within, where PyTorch can."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        padding = _symmetric_padding(self)
        return super().call(x) if padding is None else _torch_convolution(self, x, padding, groups=x.shape[1])


def _symmetric_padding(layer: keras.layers.Layer) -> tuple[int, int] | None:
    """Return rows and columns to add on either side; None where Keras has to do it (another backend, a stride)."""
    if channel_axis() != 1 or not _is_torch() or layer.padding != "same" or tuple(layer.strides) != (1, 1):
        return None
    rows, columns = layer.kernel_size
    return (rows // 2, columns // 2) if rows % 2 and columns % 2 else None


def _torch_convolution(
    layer: keras.layers.Layer, x: keras.KerasTensor, padding: tuple[int, int], *, groups: int
) -> keras.KerasTensor:
    import torch

    kernel, bias = ops.convert_to_tensor(layer.kernel), ops.convert_to_tensor(layer.bias)
    # (rows, columns, in, out) or, depthwise, (rows, columns, channels, 1) to (out, in, rows, columns)
    kernel = kernel.permute(3, 2, 0, 1) if groups == 1 else kernel.permute(2, 3, 0, 1)
    return layer.activation(torch.nn.functional.conv2d(x, kernel, bias, padding=padding, groups=groups))
