"""The residual network: pre-activated blocks whose shortcut carries what came before, at strides 4 to 32."""

from __future__ import annotations

import math

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training.networks import layout
from training.networks.detector import lite_detector, residual_detector
from training.networks.residual import WIDTHS, residual_features

SIZE = (96, 128)


def network(size: tuple[int, int] = SIZE) -> keras.Model:
    grey = keras.Input((*size, 1))
    return keras.Model(grey, [layout.outward(features) for features in residual_features(grey)])


def given(model: keras.Model, images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(model(images))]


def test_features_are_at_strides_16_and_32_with_their_channels() -> None:
    assert network().output_shape == [
        (None, SIZE[0] // 16, SIZE[1] // 16, WIDTHS[2]),
        (None, SIZE[0] // 32, SIZE[1] // 32, WIDTHS[3]),
    ]


def test_two_blocks_stand_at_each_stride_of_two_convolutions_3_by_3() -> None:
    kernels = {layer.name: layer for layer in network().layers if isinstance(layer, keras.layers.Conv2D)}
    blocks = [f"stage{at}_{part}" for at in range(4) for part in ("first", "second")]
    assert {name.removesuffix("_convolution") for name in kernels} == {
        "stem",
        *(f"{block}_{number}" for block in blocks for number in (1, 2)),
        *(f"{block}_shortcut" for block in blocks if block.endswith("first")),
    }
    for name, layer in kernels.items():
        assert layer.kernel_size == ((1, 1) if "shortcut" in name else (3, 3))
        halves = name in ("stem_convolution",) or "first_1" in name or "shortcut" in name
        assert layer.strides == ((2, 2) if halves else (1, 1))


def test_a_block_that_adds_nothing_hands_on_what_it_was_given() -> None:
    model = network()
    last = model.get_layer("stage1_second_2_convolution")
    last.set_weights([weights * 0 for weights in last.get_weights()])
    before = model.get_layer("stage1_second_1_normalisation").input
    after = model.get_layer("stage2_first_1_normalisation").input
    images = np.random.default_rng(0).uniform(0, 255, (1, *SIZE, 1)).astype(np.float32)
    one, other = given(keras.Model(model.inputs[0], [before, after]), images)
    assert np.abs(one).max() > 0.1
    assert np.array_equal(one, other)


def test_what_changes_in_a_place_changes_the_features_there() -> None:
    model = network()
    images = np.full((2, *SIZE, 1), 127, np.float32)
    images[1, 52:60, 84:92] = 255  # in the middle of cell (3, 5) of 16 pixels, (1, 2) of 32
    for features, cell in zip(given(model, images), ((3, 5), (1, 2)), strict=True):
        changed = np.abs(features[1] - features[0]).sum(axis=-1)
        at = np.unravel_index(int(changed.argmax()), changed.shape)
        assert max(abs(at[0] - cell[0]), abs(at[1] - cell[1])) <= 1
        assert changed.max() > 0


def test_with_its_head_it_costs_about_what_efficientnet_lite0_does() -> None:
    residual, lite = residual_detector((384, 384)), lite_detector((384, 384))
    assert residual.count_params() == pytest.approx(2.8e6, rel=0.02)
    assert multiplications(residual) == pytest.approx(1.26e9, rel=0.01)
    assert multiplications(lite) == pytest.approx(1.06e9, rel=0.01)


def multiplications(model: keras.Model) -> int:
    """Of all convolutions, for one image."""
    convolutions = [
        layer for layer in model.layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
    ]
    pixels = [math.prod(layout.outward(layer.output).shape[1:3]) for layer in convolutions]
    kernels = [math.prod(layer.kernel.shape) for layer in convolutions]
    return sum(count * size for count, size in zip(pixels, kernels, strict=True))
