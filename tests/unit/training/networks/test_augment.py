"""A picture and its boxes move together, greys change within their range, and nothing happens outside training."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training.networks.augment import Augmentation, warped

ROWS, COLUMNS = 64, 48
NOTHING = {"turn": 0.0, "zoom": 0.0, "shift": 0.0, "contrast": 0.0, "noise": 0.0, "flip": False}

Floats = npt.NDArray[np.float32]
Place = Callable[[Floats, Floats], tuple[Floats, Floats]]


def changed(images: Floats, seed: int = 0, **amounts: object) -> Floats:
    """What one layer makes of images in training; only what is named is changed."""
    layer = Augmentation(**{**NOTHING, **amounts}, seed=seed)
    return np.asarray(keras.ops.convert_to_numpy(layer(images, training=True)))


def greys(count: int = 16) -> Floats:
    """Pictures of smooth greys 20 to 235 without a letterbox."""
    y, x = np.indices((ROWS, COLUMNS))
    phase = np.arange(count)[:, np.newaxis, np.newaxis]
    return (127.5 + 107.5 * np.sin(x / 9 + phase) * np.cos(y / 11 - phase))[..., np.newaxis].astype(np.float32)


def boxed(count: int = 16) -> Floats:
    """Pictures that are bright where their mask, the second channel, is 1: an upright box off the middle."""
    images = np.zeros((count, ROWS, COLUMNS, 2), np.float32)
    images[:, 20:36, 26:34] = (200.0, 1.0)
    return images


def moments(mask: Floats) -> tuple[float, float, float, float]:
    """Of one mask (rows, columns): area, centre's column and row, and the angle of its long axis in radians."""
    y, x = np.indices(mask.shape)
    area = mask.sum()
    across, down = (x * mask).sum() / area, (y * mask).sum() / area
    xx, yy, xy = ((u * v * mask).sum() for u, v in ((x - across,) * 2, (y - down,) * 2, (x - across, y - down)))
    return float(area), float(across), float(down), 0.5 * math.atan2(2 * xy, yy - xx)


def boxes_of(images: Floats) -> list[tuple[float, float, float, float]]:
    return [moments(mask) for mask in images[..., 1]]


# --- Nothing ----------------------------------------------------------------------------------------------------------


def test_with_all_amounts_0_nothing_changes() -> None:
    images = np.concatenate([greys(), boxed()[..., 1:]], axis=-1)
    np.testing.assert_allclose(changed(images), images, atol=1e-3)


def test_outside_training_nothing_changes() -> None:
    layer, images = Augmentation(turn=90.0, contrast=1.0, noise=30.0), greys()
    for given in (layer(images), layer(images, training=False)):
        assert np.array_equal(given, images)
    assert not np.allclose(layer(images, training=True), images, atol=1)


# --- Geometry ---------------------------------------------------------------------------------------------------------


def test_a_box_in_the_mask_moves_with_the_picture() -> None:
    images = changed(boxed(), turn=40.0, zoom=0.3, shift=0.1, flip=True)
    np.testing.assert_allclose(images[..., 0], 200 * images[..., 1], atol=0.5)
    # It has moved, each one otherwise, and is still there.
    areas, across, down, _ = np.transpose(boxes_of(images))
    assert min(areas) > 16 * 8 / 1.3**2 * 0.9
    assert np.std(across) > 1
    assert np.std(down) > 1


def test_a_mask_keeps_its_values_whatever_happens_to_the_greys() -> None:
    images = boxed()
    np.testing.assert_allclose(changed(images, contrast=1.0, noise=30.0)[..., 1], images[..., 1], atol=1e-3)


def test_flipping_mirrors_left_and_right_half_of_the_pictures() -> None:
    images = greys(64)
    given = changed(images, flip=True)
    mirrored = np.array(
        [np.allclose(one, before[:, ::-1], atol=0.1) for one, before in zip(given, images, strict=True)]
    )
    kept = np.array([np.allclose(one, before, atol=0.1) for one, before in zip(given, images, strict=True)])
    assert np.all(mirrored ^ kept)
    assert 16 <= mirrored.sum() <= 48


def test_turning_draws_angles_either_way_up_to_the_largest() -> None:
    given = np.transpose(boxes_of(changed(boxed(64), turn=30.0)))
    degrees = np.degrees(given[3])
    assert 20 < degrees.max() < 31
    assert -31 < degrees.min() < -20
    np.testing.assert_allclose(given[0], 16 * 8, rtol=0.02)  # no larger, no smaller
    from_middle = np.hypot(given[1] - (COLUMNS - 1) / 2, given[2] - (ROWS - 1) / 2)
    np.testing.assert_allclose(from_middle, math.hypot(29.5 - 23.5, 27.5 - 31.5), atol=0.05)  # about the middle


def test_zooming_draws_scales_between_the_largest_and_its_inverse() -> None:
    scales = np.sqrt(np.transpose(boxes_of(changed(boxed(64), zoom=0.25)))[0] / (16 * 8))
    assert 1.15 < scales.max() < 1.26
    assert 1 / 1.26 < scales.min() < 1 / 1.15


def test_shifting_draws_boxes_of_the_pictures_height_and_width() -> None:
    _, across, down, angles = np.transpose(boxes_of(changed(boxed(64), shift=0.1)))
    assert 0.08 * COLUMNS < np.abs(across - 29.5).max() < 0.1 * COLUMNS + 0.01
    assert 0.08 * ROWS < np.abs(down - 27.5).max() < 0.1 * ROWS + 0.01
    assert np.abs(np.corrcoef(across, down)[0, 1]) < 0.5
    np.testing.assert_allclose(angles, 0, atol=0.01)


def test_what_comes_in_from_outside_is_black() -> None:
    white = np.full((8, ROWS, COLUMNS, 1), 255, np.float32)
    given = changed(white, turn=45.0)
    corners = given[:, :1, :1].max(axis=(1, 2, 3))
    assert np.sum(corners < 1) > 4  # all but those that are hardly turned
    np.testing.assert_allclose(given[:, ROWS // 2, COLUMNS // 2], 255, atol=0.01)


@pytest.mark.parametrize(
    ("map_", "expected"),
    [
        ((1, 0, 0, 0, 1, 0), lambda x, y: (x, y)),
        ((1, 0, 3, 0, 1, -2), lambda x, y: (x + 3, y - 2)),
        ((-1, 0, COLUMNS - 1, 0, 1, 0), lambda x, y: (COLUMNS - 1 - x, y)),
        ((0, 1, 0, 1, 0, 0), lambda x, y: (y, x)),
        ((0.5, 0.25, 4.5, -0.25, 0.75, 13.25), lambda x, y: (0.5 * x + 0.25 * y + 4.5, -0.25 * x + 0.75 * y + 13.25)),
    ],
    ids=["identity", "shift", "mirror", "turned axes", "any"],
)
def test_a_warped_pixel_is_the_inputs_at_the_place_its_map_names(map_: tuple[float, ...], expected: Place) -> None:
    # Greys that are linear in the place say where a pixel came from.
    y, x = np.indices((ROWS, COLUMNS)).astype(np.float32)
    images = np.stack([x + 1, y + 1], axis=-1)[np.newaxis]
    maps = keras.ops.convert_to_tensor(np.array([map_], np.float32))
    given = np.asarray(keras.ops.convert_to_numpy(warped(keras.ops.convert_to_tensor(images), maps)))[0]
    from_x, from_y = expected(x, y)
    inside = (from_x >= 0) & (from_x <= COLUMNS - 1) & (from_y >= 0) & (from_y <= ROWS - 1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(given[inside], np.stack([from_x + 1, from_y + 1], axis=-1)[inside], atol=1e-3)
    outside = (from_x <= -1) | (from_x >= COLUMNS) | (from_y <= -1) | (from_y >= ROWS)
    assert np.all(given[outside] == 0)


# --- Greys ------------------------------------------------------------------------------------------------------------


def test_greys_change_within_their_range_and_what_is_black_stays_black() -> None:
    images = greys()
    images[:, :20] = 0
    given = changed(images, contrast=1.0, noise=20.0)
    assert np.all(given[:, :20] == 0)
    assert given.min() >= 0
    assert given.max() <= 255
    assert np.abs(given - images)[:, 20:].mean() > 5


def test_contrast_keeps_the_order_of_greys_and_differs_between_pictures() -> None:
    ramp = np.tile(np.linspace(20, 235, COLUMNS, dtype=np.float32)[:, np.newaxis], (16, ROWS, 1, 1))
    given = changed(ramp, contrast=0.6)
    assert np.all(np.diff(given[:, 0, :, 0], axis=1) >= 0)
    assert np.array_equal(given[:, 0], given[:, -1])
    assert np.std(given[:, 0, COLUMNS // 2]) > 3
    assert np.abs(given - ramp).max() < 110


def test_noise_has_at_most_the_standard_deviation_named() -> None:
    grey = np.full((32, ROWS, COLUMNS, 1), 128, np.float32)
    spreads = changed(grey, noise=10.0).std(axis=(1, 2, 3))
    assert 8 < spreads.max() < 10.5
    assert spreads.min() < 3


# --- Draws ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    images = greys()
    amounts = {"turn": 15.0, "zoom": 0.15, "shift": 0.08, "contrast": 0.6, "noise": 4.0, "flip": True}
    assert np.array_equal(changed(images, seed=5, **amounts), changed(images, seed=5, **amounts))
    assert not np.allclose(changed(images, seed=5, **amounts), changed(images, seed=6, **amounts), atol=1)


def test_each_call_draws_anew() -> None:
    layer, images = Augmentation(), greys()
    assert not np.allclose(layer(images, training=True), layer(images, training=True), atol=1)


def test_each_picture_is_changed_otherwise() -> None:
    same = np.repeat(greys(1), 8, axis=0)
    given = changed(same, turn=15.0)
    assert all(not np.allclose(one, given[0], atol=1) for one in given[1:])


def test_a_layer_made_from_its_configuration_draws_the_same() -> None:
    layer = Augmentation(turn=7.0, zoom=0.1, shift=0.02, contrast=0.3, noise=2.0, flip=False, seed=11)
    again = Augmentation.from_config(layer.get_config())
    assert np.array_equal(layer(greys(), training=True), again(greys(), training=True))
