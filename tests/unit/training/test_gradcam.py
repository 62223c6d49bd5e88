"""Grad-CAM shows what spoke for a fracture, and nothing where nothing did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

keras = pytest.importorskip("keras")

from training.gradcam import grad_cam, sheet  # noqa: E402 (it needs Keras)
from training.networks import published_cnn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def bright_is_a_fracture(sign: float = 1.0) -> keras.Model:
    """A network whose logit is the brightness of the picture, times `sign`."""
    grey = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(1, 4, strides=4, use_bias=False, kernel_initializer="ones", name="cells")(grey)
    network = keras.Model(
        grey,
        keras.layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(sign))(
            keras.layers.Flatten()(x)
        ),
    )
    assert network.output_shape == (None, 1)
    return network


@pytest.fixture
def pictures() -> np.ndarray:
    shown = np.zeros((2, 32, 32, 1), np.float32)
    shown[0, 4:8, 20:24] = 200
    shown[1, 24:28, 0:4] = 50
    return shown


def test_the_map_is_highest_where_the_evidence_is_in_each_picture(pictures: np.ndarray) -> None:
    maps = grad_cam(bright_is_a_fracture(), pictures)
    assert maps.shape == (2, 8, 8)
    assert np.argwhere(maps == 1).tolist() == [[0, 1, 5], [1, 6, 0]]
    assert maps.sum() == pytest.approx(2)


def test_what_speaks_against_a_fracture_is_not_shown(pictures: np.ndarray) -> None:
    assert not grad_cam(bright_is_a_fracture(-1.0), pictures).any()


def test_the_layer_is_the_last_convolution_unless_told() -> None:
    network = published_cnn((64, 64), 3)
    shown = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    convolutions = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert np.array_equal(grad_cam(network, shown), grad_cam(network, shown, layer=convolutions[-1]))
    assert grad_cam(network, shown, layer=convolutions[0]).shape == (1, 62, 62)
    with pytest.raises(ValueError, match="No such layer"):
        grad_cam(network, shown, layer="nowhere")
    with pytest.raises(ValueError, match="has no convolution"):
        grad_cam(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), np.zeros((1, 2), np.float32))


def test_the_sheet_shows_every_picture_above_its_map(tmp_path: Path, pictures: np.ndarray) -> None:
    grey = np.repeat(pictures, 3, axis=-1).astype(np.uint8)
    sheet(tmp_path / "one.png", grey, np.zeros((2, 8, 8), np.float32), ["a", "b"], columns=2)
    sheet(tmp_path / "two.png", grey, grad_cam(bright_is_a_fracture(), pictures), ["a", "b"], columns=2)
    written = [Image.open(tmp_path / name).convert("RGB") for name in ("one.png", "two.png")]
    plain, mapped = (np.asarray(picture, dtype=np.int16) for picture in written)
    assert plain.shape == mapped.shape
    assert np.ptp(plain, axis=2).max() < 10  # greys alone
    changed = np.abs(plain - mapped).max(axis=(1, 2))
    half = len(changed) // 2
    assert changed[half:].max() > 50
    assert changed[:half].max() == 0
