"""A recipe names a network; the one that is fitted and the one that is exported take each other's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training import networks
from training.networks.detector import LOGIT, SCORES, lite_detector
from training.networks.efficientnet_lite import load_imagenet
from training.recipe import Network, Recipe

NAMES: tuple[Network, ...] = get_args(Network)
LITE = [name for name in NAMES if name.startswith("lite")]
SMALL = Recipe(rows=64, columns=96, head_width=16)


def computed(model: keras.Model) -> list[npt.NDArray[np.float32]]:
    images = np.random.default_rng(0).uniform(0, 255, (2, *SMALL.size, 1)).astype(np.float32)
    return [keras.ops.convert_to_numpy(value) for value in keras.tree.flatten(model(images))]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_built_into_the_network_it_names(name: Network) -> None:
    model = networks.build(replace(SMALL, network=name))
    assert model.input_shape == (None, 64, 96, 1)
    outputs = {LOGIT: (None, 1)} | ({} if name == "published" else {SCORES: (None, 4, 6, 1)})
    assert {output: tuple(tensor.shape) for output, tensor in model.output.items()} == outputs
    assert model.name == {"residual": "residual_detector", "published": "published_cnn"}.get(name, f"{name}_detector")


def test_a_name_that_is_no_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="No network is called lite9"):
        networks.build(replace(SMALL, network="lite9"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_fit_are_those_of_the_network_that_is_exported(name: Network) -> None:
    fitted = networks.build(replace(SMALL, network=name), for_fitting=True)
    exported = networks.build(replace(SMALL, network=name))
    assert [(one.path, one.shape) for one in exported.weights] == [(one.path, one.shape) for one in fitted.weights]
    exported.set_weights(fitted.get_weights())
    for one, other in zip(computed(exported), computed(fitted), strict=True):
        assert np.ptp(one) > 0
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", LITE)
def test_a_fit_begins_with_what_imagenet_taught(name: Network) -> None:
    model = networks.build(replace(SMALL, network=name), for_fitting=True)
    known = lite_detector(SMALL.size, int(name[-1]), width=16)
    load_imagenet(known, int(name[-1]))
    layers = [layer for layer in known.layers if layer.weights and not layer.name.startswith("head_")]
    assert len(layers) > 40
    for layer in layers:
        own = model.get_layer(layer.name).get_weights()
        assert all(np.array_equal(one, other) for one, other in zip(own, layer.get_weights(), strict=True))


def test_what_the_recipe_says_of_its_layers_is_done() -> None:
    def trained(**changes: object) -> set[str]:
        model = networks.build(replace(SMALL, **changes), for_fitting=True)  # type: ignore[arg-type]
        return {layer.name for layer in model.layers if layer.trainable_variables}

    assert "block0_project" in trained(frozen_until=-1)
    assert "block0_depthwise" in trained(frozen_until=-1)  # nothing is frozen: no depthwise kernel either
    assert "block5_project" in trained(frozen_until=2) - trained(frozen_until=4)
    assert not any(name.endswith("depthwise") for name in trained(frozen_until=2) if name.startswith("block"))
    for name in ("lite0", "residual"):
        model = networks.build(replace(SMALL, network=name, head_width=24, dropout=0.4))
        assert model.get_layer("head_mix").filters == 24
        assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.4]
