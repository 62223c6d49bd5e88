"""A residual network from scratch: what the same head reaches without ImageNet.

Pre-activated blocks of two 3 × 3 convolutions (He et al., ECCV 2016), two at each stride from 4 to 32, as wide as keeps
its cost near that of EfficientNet-Lite0 (1.2 thousand million multiplications at 384 × 384, 2.8 million weights).
"""

from __future__ import annotations

import keras

from training.networks import layout

WIDTHS = (32, 64, 128, 256)
"""Channels at strides 4, 8, 16 and 32."""


def residual_features(grey: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return the features at strides 16 and 32 of grey values 0 to 255, shape (n, rows, columns, 1)."""
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="scaling")(grey)
    x = layout.InterleavedInMemory()(_convolution("stem", 24, stride=2)(layout.inward(x)))
    at_16 = x
    for at, width in enumerate(WIDTHS):
        x = _block(x, f"stage{at}_first", width, stride=2)
        x = _block(x, f"stage{at}_second", width, stride=1)
        if at == 2:
            at_16 = x
    return _normalised(at_16, "at_16"), _normalised(x, "at_32")


def _block(x: keras.KerasTensor, name: str, width: int, *, stride: int) -> keras.KerasTensor:
    y = _normalised(x, f"{name}_1")
    before = x if stride == 1 else _convolution(f"{name}_shortcut", width, kernel=1, stride=stride)(y)
    y = _convolution(f"{name}_1", width, stride=stride)(y)
    y = _convolution(f"{name}_2", width)(_normalised(y, f"{name}_2"))
    return keras.layers.Add()([before, y])


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(axis=layout.channel_axis(), momentum=0.95, name=f"{name}_normalisation")(x)
    return keras.layers.ReLU()(x)


def _convolution(name: str, width: int, *, kernel: int = 3, stride: int = 1) -> keras.layers.Layer:
    return layout.Convolution(
        width, kernel, strides=stride, padding="same", kernel_initializer="he_normal", name=f"{name}_convolution"
    )
