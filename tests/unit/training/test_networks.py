"""Every network that a recipe can name is built as said, and computes the same in either order of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training import networks
from training.networks import augmented, layout, published_cnn
from training.networks.detector import LOGIT, SCORES, lite_detector, residual_detector
from training.networks.efficientnet_lite import STRIDE_8, EfficientNetLite, load_imagenet
from training.networks.residual import residual_features
from training.recipe import Network, Recipe

NAMES: tuple[Network, ...] = get_args(Network)
LITE = [name for name in NAMES if name.startswith("lite")]
SMALL = Recipe(rows=64, columns=96, head_width=16)

Floats = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _order_of_axes_as_before() -> Iterator[None]:
    before = keras.config.image_data_format()
    yield
    keras.config.set_image_data_format(before)


def greys(rows: int = SMALL.rows, columns: int = SMALL.columns, count: int = 2) -> Floats:
    return np.random.default_rng(0).uniform(0, 255, (count, rows, columns, 1)).astype(np.float32)


def computed(model: keras.Model, images: Floats, *, training: bool = False) -> list[Floats]:
    given = keras.tree.flatten(model(images, training=training))
    return [keras.ops.convert_to_numpy(value) for value in given]


def of_kind(model: keras.Model, kind: type[keras.layers.Layer]) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


# --- Built by a recipe ------------------------------------------------------------------------------------------------


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
    for one, other in zip(computed(exported, greys()), computed(fitted, greys()), strict=True):
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
        assert [layer.rate for layer in of_kind(model, keras.layers.Dropout)] == [0.4]


# --- The published CNN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "weights"), [(3, 4_828_481), (1, 4_827_905)])
def test_the_published_cnn_has_the_layers_that_were_published(channels: int, weights: int) -> None:
    model = published_cnn((150, 150), channels)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == [
        "InputLayer",
        "Rescaling",
        *("Conv2D", "MaxPooling2D") * 3,
        "Flatten",
        "Dense",
        "Dropout",
        "Dense",
    ]
    convolutions = of_kind(model, keras.layers.Conv2D)
    assert [layer.filters for layer in convolutions] == [32, 64, 128]
    assert {(layer.kernel_size, layer.strides, layer.padding) for layer in convolutions} == {((3, 3), (1, 1), "valid")}
    hidden, last = of_kind(model, keras.layers.Dense)
    assert [layer.activation.__name__ for layer in (*convolutions, hidden, last)] == ["relu"] * 4 + ["linear"]
    assert (hidden.units, last.units, of_kind(model, keras.layers.Dropout)[0].rate) == (128, 1, 0.5)
    assert {layer.pool_size for layer in of_kind(model, keras.layers.MaxPooling2D)} == {(2, 2)}
    assert model.count_params() == weights  # by hand: 9·32·channels + 32, 18 496, 73 856, 17·17·128·128 + 128, 129


def test_the_published_cnn_scales_greys_to_1() -> None:
    model = published_cnn((32, 32))
    scaling = of_kind(model, keras.layers.Rescaling)[0]
    np.testing.assert_allclose(scaling(np.float32([0, 51, 255])), [0, 0.2, 1], atol=1e-6)


def test_the_published_cnn_is_augmented_in_training_only() -> None:
    model = published_cnn((32, 32), 3)
    of_kind(model, keras.layers.Dropout)[0].rate = 0.0
    behind = augmented(model)
    assert behind.input_shape == (None, 32, 32, 3)
    assert [one.path for one in behind.trainable_variables] == [one.path for one in model.trainable_variables]
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    (quiet,), (plain,) = computed(behind, images), computed(model, images)
    np.testing.assert_allclose(quiet, plain, atol=1e-6)
    assert not np.allclose(computed(behind, images, training=True)[0], plain, atol=1e-3)


def test_the_published_augmentation_turns_by_up_to_15_degrees_and_mirrors_and_does_nothing_else() -> None:
    moved = augmented(published_cnn((64, 64), 3)).get_layer("moved")
    images = np.zeros((64, 64, 64, 3), np.float32)
    images[:, 28:36, 44:48] = (200, 100, 50)  # to the right of the middle
    given = keras.ops.convert_to_numpy(moved(images, training=True))
    np.testing.assert_allclose(given[..., 0], 2 * given[..., 1], atol=2)  # every colour moves alike and is kept
    np.testing.assert_allclose(given[..., 1], 2 * given[..., 2], atol=2)
    assert given.max() < 201
    y, x = np.indices((64, 64)) - 31.5
    mass = given[..., 1].sum(axis=(1, 2))
    across, down = (given[..., 1] * x).sum(axis=(1, 2)) / mass, (given[..., 1] * y).sum(axis=(1, 2)) / mass
    assert 16 < (across < 0).sum() < 48
    np.testing.assert_allclose(np.hypot(across, down), 14, atol=0.1)
    degrees = np.degrees(np.arctan2(down, np.abs(across)))
    assert 10 < np.abs(degrees).max() < 15.5


# --- The residual network ---------------------------------------------------------------------------------------------


def test_the_residual_networks_features_are_at_strides_16_and_32() -> None:
    grey = keras.Input((64, 96, 1))
    at_16, at_32 = residual_features(grey)
    assert layout.outward(at_16).shape == (None, 4, 6, 128)
    assert layout.outward(at_32).shape == (None, 2, 3, 256)


def test_the_residual_network_costs_about_what_efficientnet_lite0_does() -> None:
    residual, lite = residual_detector((384, 384)), lite_detector((384, 384))
    assert residual.count_params() == pytest.approx(2.8e6, rel=0.02)
    assert multiplications(residual) == pytest.approx(1.26e9, rel=0.01)
    assert multiplications(lite) == pytest.approx(1.06e9, rel=0.01)


def multiplications(model: keras.Model) -> int:
    """Of all convolutions, for one image."""
    convolutions = [*of_kind(model, keras.layers.Conv2D), *of_kind(model, keras.layers.DepthwiseConv2D)]
    pixels = [int(np.prod(layout.outward(layer.output).shape[1:3])) for layer in convolutions]
    kernels = [int(np.prod(layer.kernel.shape)) for layer in convolutions]
    return sum(count * size for count, size in zip(pixels, kernels, strict=True))


def test_a_residual_block_adds_to_what_it_was_given() -> None:
    # Where a block's last convolution gives nothing, what comes in goes out.
    model = residual_detector(SMALL.size, width=16)
    for stage in range(4):
        last = model.get_layer(f"stage{stage}_second_2_convolution")
        last.set_weights([weight * 0 for weight in last.get_weights()])
    adds = of_kind(model, keras.layers.Add)[:8]
    through = keras.Model(model.inputs[0], [layer.output for layer in adds])
    outputs = computed(through, greys())
    for before, after in zip(outputs[::2], outputs[1::2], strict=True):
        assert np.abs(before).max() > 0
        assert np.array_equal(before, after)


# --- The order of axes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_tensors_turn_inward_and_outward_and_are_known_by_their_channels(order: str) -> None:
    keras.config.set_image_data_format(order)
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    within = layout.inward(keras.ops.convert_to_tensor(x))
    assert tuple(within.shape) == ((2, 3, 4, 6) if order == "channels_first" else x.shape)
    assert layout.channels(within) == 3
    assert np.array_equal(keras.ops.convert_to_numpy(layout.outward(within)), x)
    odd = keras.ops.convert_to_numpy(layout.outward(layout.every_second(within)))
    assert np.array_equal(odd, x[:, 1::2, 1::2])
    assert np.array_equal(keras.ops.convert_to_numpy(layout.InterleavedInMemory()(within)), within)


def test_the_quickest_order_is_the_backends() -> None:
    quickest = {"torch": "channels_first"}.get(keras.backend.backend(), "channels_last")
    keras.config.set_image_data_format("channels_last" if quickest == "channels_first" else "channels_first")
    layout.use_quickest()
    assert keras.config.image_data_format() == quickest


@pytest.mark.parametrize(
    ("own", "kerass", "options"),
    [
        (layout.Convolution, keras.layers.Conv2D, {"filters": 5, "kernel_size": 1}),
        (layout.Convolution, keras.layers.Conv2D, {"filters": 5, "kernel_size": 3, "activation": "relu"}),
        (layout.Convolution, keras.layers.Conv2D, {"filters": 5, "kernel_size": 3, "strides": 2}),
        (layout.DepthwiseConvolution, keras.layers.DepthwiseConv2D, {"kernel_size": 5}),
        (layout.DepthwiseConvolution, keras.layers.DepthwiseConv2D, {"kernel_size": 3, "strides": 2}),
    ],
)
def test_a_convolution_gives_what_kerass_gives(
    own: type[keras.layers.Layer], kerass: type[keras.layers.Layer], options: dict[str, object]
) -> None:
    layout.use_quickest()
    x = layout.inward(np.random.default_rng(0).normal(size=(2, 8, 6, 4)).astype(np.float32))
    one, other = own(padding="same", **options), kerass(padding="same", **options)
    one.build(x.shape)
    other.build(x.shape)
    weights = [np.random.default_rng(1).normal(size=weight.shape) for weight in one.get_weights()]
    one.set_weights(weights)
    other.set_weights(weights)
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(layer(x)) for layer in (one, other)), atol=1e-5)


def lite_in_part(size: tuple[int, int]) -> keras.Model:
    """The first four stages of EfficientNet-Lite0, which have all kinds of its layers."""
    grey = keras.Input((*size, 1))
    backbone = EfficientNetLite(0, quick_backward=True)
    at_16 = backbone.stages(backbone.trunk(grey), STRIDE_8 + 1, STRIDE_8 + 1)
    model = keras.Model(grey, layout.outward(at_16))
    load_imagenet(model, 0)
    return model


@pytest.mark.parametrize("made", [published_cnn, residual_detector, lite_in_part], ids=lambda made: made.__name__)
def test_a_network_computes_the_same_in_either_order_of_axes(made: Callable[[tuple[int, int]], keras.Model]) -> None:
    # No layer's output may have as many columns as channels: TensorFlow's Keras would add biases to the columns.
    rows, columns = 96, 160
    random = np.random.default_rng(2)
    outputs, weights = [], list[Floats]()
    for order in ("channels_last", "channels_first"):
        keras.config.set_image_data_format(order)
        model = made((rows, columns))
        # Biases and the like begin as all the same: then it would not show which one goes where.
        weights = weights or [
            weight + 0.1 * random.normal(size=weight.shape) if weight.ndim == 1 else weight
            for weight in model.get_weights()
        ]
        model.set_weights(weights)
        # TensorFlow computes with the channels first on a processor only when compiled.
        model.compile(jit_compile=keras.backend.backend() == "tensorflow")
        outputs.append(keras.tree.flatten(model.predict(greys(rows, columns), verbose=0)))
    for one, other in zip(*outputs, strict=True):
        tolerance = 1e-4 * np.abs(one).max()
        assert np.ptp(one) > 10 * tolerance
        np.testing.assert_allclose(one, other, atol=tolerance)
