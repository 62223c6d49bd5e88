"""A recipe names a network; the one that is fitted and the one that is exported take each other's weights."""

from __future__ import annotations

from typing import get_args

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training import networks
from training.networks.detector import LOGIT, SCORES
from training.recipe import Network, Recipe

EVERY = pytest.mark.parametrize("name", get_args(Network))


def recipe(name: Network, **changes: object) -> Recipe:
    return Recipe(**{"network": name, "rows": 64, "columns": 64, "head_width": 8, **changes})  # type: ignore[arg-type] # names checked by Recipe


def given(model: keras.Model) -> dict[str, npt.NDArray[np.float32]]:
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 1)).astype(np.float32)
    return {name: keras.ops.convert_to_numpy(value) for name, value in model(images).items()}


@EVERY
def test_every_network_takes_grey_and_gives_a_logit_and_a_detector_its_scores(name: Network) -> None:
    model = networks.build(recipe(name))
    assert model.input_shape == (None, 64, 64, 1)
    assert set(model.output) == ({LOGIT} if name == "published" else {LOGIT, SCORES})


def test_a_network_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="No network is called vgg"):
        networks.build(recipe("vgg"))  # type: ignore[arg-type] # that is the point


@pytest.mark.parametrize("name", ["lite0", "residual", "published"])
def test_what_was_fitted_is_exported_by_a_network_that_is_built_otherwise(name: Network) -> None:
    fitted, exported = networks.build(recipe(name), for_fitting=True), networks.build(recipe(name))
    weights = {variable.path: variable for variable in exported.weights}
    for variable in fitted.weights:
        weights.pop(variable.path).assign(variable.value)
    assert weights == {}
    expected, found = given(fitted), given(exported)
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=1e-4)


def test_fitting_begins_with_imagenet_where_there_is_one() -> None:
    once, twice = (networks.build(recipe("lite0"), for_fitting=True) for _ in range(2))
    for name in ("stem", "block7_expand", "block15_project"):
        one, other = (model.get_layer(name).get_weights() for model in (once, twice))
        assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))
    chance = networks.build(recipe("lite0")).get_layer("stem").get_weights()[0]
    assert not np.allclose(once.get_layer("stem").get_weights()[0], chance)


def test_depthwise_kernels_are_fitted_only_where_nothing_is_frozen() -> None:
    def fitted(frozen_until: int) -> bool:
        model = networks.build(recipe("lite0", frozen_until=frozen_until), for_fitting=True)
        return bool(model.get_layer("block12_depthwise").trainable_variables)

    assert fitted(-1)
    assert not fitted(2)


def test_the_recipe_decides_the_heads_width_and_dropout() -> None:
    model = networks.build(recipe("residual", head_width=24, dropout=0.45))
    assert model.get_layer("head_mix").filters == 24
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.45]
