"""The order of axes within a network is its backend's; what is computed is the same in both."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training.networks import layout, published_cnn
from training.networks.detector import residual_detector
from training.networks.efficientnet_lite import STRIDE_8, EfficientNetLite, load_imagenet

Floats = npt.NDArray[np.float32]

EACH_ORDER = pytest.mark.parametrize("order", ["channels_last", "channels_first"])
KERNELS = pytest.mark.parametrize("kernel", [1, 3, 5, (3, 5), 2])
STRIDES = pytest.mark.parametrize("stride", [1, 2])


def images(rows: int = 6, columns: int = 4, channels: int = 3) -> Floats:
    return np.random.default_rng(0).normal(0, 1, (2, rows, columns, channels)).astype(np.float32)


def given(x: object) -> Floats:
    return np.asarray(keras.ops.convert_to_numpy(x))


@pytest.mark.parametrize(("backend", "order"), [("tensorflow", "channels_last"), ("torch", "channels_first")])
def test_the_quickest_order_is_the_one_that_the_backend_computes_in(
    backend: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    layout.use_quickest()
    assert keras.config.image_data_format() == order


@EACH_ORDER
def test_what_goes_inward_comes_outward_as_it_was(order: str) -> None:
    keras.config.set_image_data_format(order)
    within = layout.inward(images())
    assert within.shape == ((2, 6, 4, 3) if order == "channels_last" else (2, 3, 6, 4))
    assert layout.channels(within) == 3
    assert within.shape[layout.channel_axis()] == 3
    assert np.array_equal(given(layout.outward(within)), images())


@EACH_ORDER
def test_every_second_row_and_column_begins_with_the_second(order: str) -> None:
    keras.config.set_image_data_format(order)
    taken = given(layout.outward(layout.every_second(layout.inward(images()))))
    assert np.array_equal(taken, images()[:, 1::2, 1::2])


@pytest.mark.parametrize("kernel", [3, 5])
def test_every_second_value_without_a_stride_is_what_a_stride_of_two_gives(kernel: int) -> None:
    x = layout.inward(images(rows=12, columns=8))
    strided = layout.DepthwiseConvolution(kernel, strides=2, padding="same")
    every = layout.DepthwiseConvolution(kernel, padding="same")
    expected = given(strided(x))
    every.build(x.shape)
    every.set_weights(strided.get_weights())
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(given(layout.every_second(every(x))), expected, atol=1e-5)


@KERNELS
@STRIDES
def test_a_convolution_is_kerass(kernel: int | tuple[int, int], stride: int) -> None:
    options = {"strides": stride, "padding": "same", "activation": "tanh", "bias_initializer": "normal"}
    own, keras_own = layout.Convolution(8, kernel, **options), keras.layers.Conv2D(8, kernel, **options)
    assert_alike(own, keras_own)


@KERNELS
@STRIDES
def test_a_depthwise_convolution_is_kerass(kernel: int | tuple[int, int], stride: int) -> None:
    options = {"strides": stride, "padding": "same", "activation": "tanh", "bias_initializer": "normal"}
    if isinstance(kernel, tuple) and keras.backend.backend() == "tensorflow" and stride == 2:
        pytest.skip("TensorFlow has no such kernel")
    assert_alike(layout.DepthwiseConvolution(kernel, **options), keras.layers.DepthwiseConv2D(kernel, **options))


def assert_alike(own: keras.layers.Layer, keras_own: keras.layers.Layer) -> None:
    x = layout.inward(images(rows=7, columns=9))
    keras_own.build(x.shape)
    own.build(x.shape)
    own.set_weights(keras_own.get_weights())
    assert any(np.ptp(weights) > 0 for weights in own.get_weights()[1:])  # the bias is of use
    np.testing.assert_allclose(given(own(x)), given(keras_own(x)), atol=1e-5)


@pytest.mark.parametrize("layer", [layout.InterleavedInMemory(), layout.Convolution(4, 3, padding="same")])
def test_layers_are_made_again_from_what_a_file_keeps_of_them(layer: keras.layers.Layer) -> None:
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


def test_interleaving_changes_no_value() -> None:
    x = layout.inward(images())
    assert np.array_equal(given(layout.InterleavedInMemory()(x)), given(x))


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
    # A dark and a light image, or what a fresh network says of the two would hardly differ.
    shades = random.uniform(0, 1, (2, rows, columns, 1)).astype(np.float32) * np.float32([60, 255]).reshape(2, 1, 1, 1)
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
        outputs.append(keras.tree.flatten(model.predict(shades, verbose=0)))
    for one, other in zip(*outputs, strict=True):
        tolerance = 1e-4 * np.abs(one).max()
        assert np.ptp(one) > 10 * tolerance
        np.testing.assert_allclose(one, other, atol=tolerance)
