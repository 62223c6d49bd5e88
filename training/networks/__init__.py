"""The networks. Each takes float32 grey 0 to 255, shape (n, rows, columns, 1); scaling is in the graph."""

from __future__ import annotations

import keras

from training.networks import layout
from training.networks.detector import LOGIT, lite_detector, residual_detector
from training.networks.efficientnet_lite import load_imagenet
from training.networks.published import augmented, published_cnn
from training.recipe import Recipe

__all__ = ["augmented", "build", "layout", "published_cnn"]


def build(recipe: Recipe, *, for_fitting: bool = False) -> keras.Model:
    """Return the network a recipe names: one that starts from what is known, or one to give weights and export."""
    if recipe.network in ("lite0", "lite1", "lite2"):
        variant = int(recipe.network[-1])
        network = lite_detector(
            recipe.size,
            variant,
            frozen_until=recipe.frozen_until,
            width=recipe.head_width,
            dropout=recipe.dropout,
            quick_backward=for_fitting and recipe.frozen_until >= 0,
        )
        if for_fitting:
            load_imagenet(network, variant)
        return network
    if recipe.network == "residual":
        return residual_detector(recipe.size, width=recipe.head_width, dropout=recipe.dropout)
    if recipe.network == "published":
        network = published_cnn(recipe.size)
        return keras.Model(network.inputs[0], {LOGIT: network.outputs[0]}, name=network.name)
    raise ValueError(f"No network is called {recipe.network}.")
