"""The detector: one pass gives the probability of a fracture and the map of where it would be.

A backbone is followed by a small head. The head joins the features at stride 32 (what kind of bone, what position) with
those at stride 16 (fine lines), and scores every cell of the finer grid; the image's logit rests on the best-scoring
cells and on the whole image's features. The map learns from the fracture boxes as well as from the labels: without
boxes, maps of such networks point next to the fracture as often as at it.
"""

from __future__ import annotations

import keras
from keras import ops

from training.networks import layout
from training.networks.efficientnet_lite import STRIDE_8, STRIDE_16, STRIDE_32, EfficientNetLite
from training.networks.residual import residual_features

LOGIT, SCORES = "logit", "scores"
"""Outputs of every detector: the image's logit (n, 1), the cells' logits (n, rows / 16, columns / 16, 1)."""


def lite_detector(
    size: tuple[int, int],
    variant: int = 0,
    *,
    frozen_until: int = STRIDE_8,
    quick_backward: bool = False,
    width: int = 96,
    dropout: float = 0.3,
) -> keras.Model:
    """Return a detector on EfficientNet-Lite, with random weights: see `efficientnet_lite.load_imagenet`.

    Parameters
    ----------
    size
        (rows, columns) of the input, multiples of 32; grey 0 to 255.
    variant, frozen_until, quick_backward
        See `EfficientNetLite`.
    width
        Channels of the head.
    dropout
        Share of the image's features that is hidden in training.
    """
    grey = keras.Input((*size, 1), name="grey")
    backbone = EfficientNetLite(variant, frozen_until=frozen_until, quick_backward=quick_backward)
    outputs = lite_branch(backbone, backbone.trunk(grey), width=width, dropout=dropout)
    return keras.Model(grey, outputs, name=f"lite{variant}_detector")


def lite_branch(
    backbone: EfficientNetLite, at_8: keras.KerasTensor, *, width: int, dropout: float
) -> dict[str, keras.KerasTensor]:
    """Return a detector's outputs for the features of a trunk at stride 8; several branches can share a trunk."""
    at_16 = backbone.stages(at_8, STRIDE_8 + 1, STRIDE_16)
    at_32 = backbone.stages(at_16, STRIDE_16 + 1, STRIDE_32)
    return head(at_16, at_32, width=width, dropout=dropout, prefix=backbone.prefix)


def residual_detector(size: tuple[int, int], *, width: int = 96, dropout: float = 0.3) -> keras.Model:
    """Return a detector on a residual network, with random weights; parameters as for `lite_detector`."""
    grey = keras.Input((*size, 1), name="grey")
    at_16, at_32 = residual_features(grey)
    return keras.Model(grey, head(at_16, at_32, width=width, dropout=dropout), name="residual_detector")


def head(
    at_16: keras.KerasTensor, at_32: keras.KerasTensor, *, width: int, dropout: float, prefix: str = ""
) -> dict[str, keras.KerasTensor]:
    """Return the outputs for a backbone's features at strides 16 and 32."""

    def convolution(name: str, filters: int, **options: object) -> keras.layers.Layer:
        return layout.Convolution(filters, 1, padding="same", name=f"{prefix}head_{name}", **options)

    coarse = keras.layers.UpSampling2D(2, interpolation="nearest")(convolution("coarse", width)(at_32))
    fused = keras.layers.ReLU(6.0)(keras.layers.Add()([convolution("fine", width)(at_16), coarse]))
    fused = layout.DepthwiseConvolution(3, padding="same", name=f"{prefix}head_depthwise")(fused)
    fused = keras.layers.ReLU(6.0)(convolution("mix", width)(fused))
    # Cells start out unlikely, as they are: without this the first steps are spent on learning that.
    scores = convolution("scores", 1, bias_initializer=keras.initializers.Constant(-4.0), dtype="float32")(fused)
    scores = layout.outward(scores)
    whole = keras.layers.GlobalAveragePooling2D()(at_32)
    most = keras.layers.GlobalMaxPooling2D()(fused)
    features = keras.layers.Dropout(dropout)(keras.layers.Concatenate()([whole, most]))
    by_features = keras.layers.Dense(1, name=f"{prefix}head_features", dtype="float32")(features)
    by_cells = BestCells(name=f"{prefix}head_cells", dtype="float32")(scores)
    return {LOGIT: keras.layers.Add(name=f"{prefix}logit", dtype="float32")([by_features, by_cells]), SCORES: scores}


@keras.saving.register_keras_serializable("osteon")
class BestCells(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Turn the cells' logits (n, rows, columns, 1) into one for the image (n, 1): scaled mean of the best ones.

    The mean is weighted by a softmax over the cells (attention by score): smoother than the maximum, so that more than
    one cell learns from the image's label.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer=keras.initializers.Constant(0.5))
        self.offset = self.add_weight(name="offset", shape=(), initializer="zeros")
        super().build(shape)

    def call(self, scores: keras.KerasTensor) -> keras.KerasTensor:
        flat = ops.reshape(scores, (-1, scores.shape[1] * scores.shape[2]))
        best = ops.sum(flat * ops.softmax(flat, axis=-1), axis=-1, keepdims=True)
        return self.scale * best + self.offset
