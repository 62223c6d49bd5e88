"""The published CNN, layer by layer as it is published, and its augmentation."""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training.networks import augmented, published_cnn

PUBLISHED = (150, 150)
SMALL = (38, 38)


def images(size: tuple[int, int], channels: int = 1, count: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0, 255, (count, *size, channels)).astype(np.float32)


def given(x: object) -> npt.NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(x))


def test_the_layers_are_the_published_ones_in_their_order() -> None:
    model = published_cnn(PUBLISHED, channels=3)
    said = [type(layer).__name__ for layer in model.layers if type(layer).__name__ not in ("InputLayer", "Transpose")]
    assert said == [
        "Rescaling",
        *(["Conv2D", "MaxPooling2D"] * 3),
        "Flatten",
        "Dense",
        "Dropout",
        "Dense",
    ]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(layer.filters, layer.kernel_size, layer.padding) for layer in convolutions] == [
        (filters, (3, 3), "valid") for filters in (32, 64, 128)
    ]
    assert [layer.pool_size for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)] == [(2, 2)] * 3
    dense, logit = (layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    assert (dense.units, logit.units) == (128, 1)
    rectified = [layer.activation for layer in (*convolutions, dense)]
    assert rectified == [keras.activations.relu] * 4
    assert logit.activation is keras.activations.linear
    (dropout,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    assert dropout.rate == 0.5


@pytest.mark.parametrize(("channels", "name"), [(1, "grey"), (3, "colours")])
def test_it_has_as_many_weights_as_the_published_one_and_gives_one_logit(channels: int, name: str) -> None:
    model = published_cnn(PUBLISHED, channels)
    of_convolutions = (9 * channels * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128)
    assert model.count_params() == of_convolutions + (17 * 17 * 128 * 128 + 128) + (128 + 1)
    assert model.input_shape == (None, *PUBLISHED, channels)
    assert model.inputs[0].name == name
    assert model.output_shape == (None, 1)


def test_pixels_are_divided_by_255() -> None:
    model = published_cnn(SMALL)
    scaled = next(layer.output for layer in model.layers if isinstance(layer, keras.layers.Rescaling))
    x = images(SMALL)
    np.testing.assert_allclose(given(keras.Model(model.inputs[0], scaled)(x)).reshape(x.shape), x / 255, atol=1e-6)


def test_the_published_augmentation_turns_by_up_to_15_degrees_and_mirrors_and_does_nothing_else() -> None:
    moved = augmented(published_cnn((64, 64), 3)).get_layer("moved")
    images = np.zeros((64, 64, 64, 3), np.float32)
    images[:, 28:36, 44:48] = (200, 100, 50)  # to the right of the middle
    after = given(moved(images, training=True))
    np.testing.assert_allclose(after[..., 0], 2 * after[..., 1], atol=2)  # every colour moves alike and is kept
    np.testing.assert_allclose(after[..., 1], 2 * after[..., 2], atol=2)
    assert after.max() < 201
    y, x = np.indices((64, 64)) - 31.5
    mass = after[..., 1].sum(axis=(1, 2))
    across, down = (after[..., 1] * x).sum(axis=(1, 2)) / mass, (after[..., 1] * y).sum(axis=(1, 2)) / mass
    assert 16 < (across < 0).sum() < 48
    np.testing.assert_allclose(np.hypot(across, down), 14, atol=0.1)
    degrees = np.degrees(np.arctan2(down, np.abs(across)))
    assert 10 < np.abs(degrees).max() < 15.5


def test_augmentation_acts_in_training_only_and_adds_no_weights() -> None:
    network = published_cnn(SMALL)
    model, x = augmented(network), images(SMALL)
    assert model.weights == network.weights
    assert np.array_equal(given(model(x)), given(network(x)))
    moved = keras.Model(model.inputs[0], model.get_layer("moved").output)
    assert np.array_equal(given(moved(x)), x)
    assert not np.allclose(given(moved(x, training=True)), x, atol=1)


def test_the_seed_decides_what_is_drawn() -> None:
    x = images(SMALL, count=8)

    def drawn(seed: int) -> npt.NDArray[np.float32]:
        model = augmented(published_cnn(SMALL), seed=seed)
        return given(keras.Model(model.inputs[0], model.get_layer("moved").output)(x, training=True))

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.allclose(drawn(1), drawn(2), atol=1)
