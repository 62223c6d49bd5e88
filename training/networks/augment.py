"""Augmentation: one Keras layer that turns, mirrors, scales and shifts a picture, and changes its greys.

The geometry is one affine map, drawn for each image and applied once, so that nothing is interpolated twice. Further
channels (the fracture boxes drawn as a mask) go through the same geometry, and keep their values.
"""

from __future__ import annotations

import math

import keras
from keras import ops


class Augmentation(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Change images, float32 (n, rows, columns, channels), at random when `training`, else leave them as they are.

    The first channel is grey 0 to 255, letterboxed with 0; geometry acts on every channel, greys on the first alone.

    Parameters
    ----------
    turn
        Largest angle in degrees, either way.
    zoom
        Largest change of scale, as a share: 0.2 draws between 1 / 1.2 and 1.2.
    shift
        Largest shift, as a share of the image's size.
    contrast
        Strength of the changes of gamma, contrast and brightness: 0 none, 1 gamma between 0.67 and 1.5.
    noise
        Largest standard deviation of added noise, in greys.
    flip
        Mirror left and right with probability one half. A left hand becomes a right one, and a fracture stays one.
    seed
        Of the draws. What was drawn so far is part of the layer's state.
    """

    def __init__(
        self,
        *,
        turn: float = 15.0,
        zoom: float = 0.15,
        shift: float = 0.08,
        contrast: float = 0.6,
        noise: float = 4.0,
        flip: bool = True,
        seed: int = 0,
        **options: object,
    ) -> None:
        super().__init__(**options)
        self.turn, self.zoom, self.shift = turn, zoom, shift
        self.contrast, self.noise, self.flip, self.seed = contrast, noise, flip, seed
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        if not training:
            return images
        images = self._moved(images)
        grey, others = images[..., :1], images[..., 1:]
        return ops.concatenate([self._recoloured(grey), others], axis=-1)

    def _uniform(self, count: int, low: float, high: float) -> keras.KerasTensor:
        return keras.random.uniform((count,), low, high, seed=self.random)

    def _moved(self, images: keras.KerasTensor) -> keras.KerasTensor:
        count, rows, columns = ops.shape(images)[0], images.shape[1], images.shape[2]
        angle = self._uniform(count, -self.turn, self.turn) * (math.pi / 180)
        scale = ops.exp(self._uniform(count, -1.0, 1.0) * math.log1p(self.zoom))
        mirror = ops.where(self._uniform(count, 0.0, 1.0) < (0.5 if self.flip else 0.0), -1.0, 1.0)
        across = self._uniform(count, -self.shift, self.shift) * columns
        down = self._uniform(count, -self.shift, self.shift) * rows
        # Output pixel (x, y) takes the input at: turn and scale about the centre, mirror, shift.
        cos, sin = ops.cos(angle) / scale, ops.sin(angle) / scale
        middle_x, middle_y = (columns - 1) / 2, (rows - 1) / 2
        a, b, d, e = mirror * cos, -mirror * sin, sin, cos
        c = middle_x + across - a * middle_x - b * middle_y
        f = middle_y + down - d * middle_x - e * middle_y
        return warped(images, ops.stack([a, b, c, d, e, f], axis=1))

    def _recoloured(self, grey: keras.KerasTensor) -> keras.KerasTensor:
        count = ops.shape(grey)[0]
        column = (count, 1, 1, 1)
        gamma = ops.exp(self._uniform(count, -1.0, 1.0) * (math.log(1.5) * self.contrast))
        gain = 1 + 0.25 * self.contrast * self._uniform(count, -1.0, 1.0)
        offset = 25.0 * self.contrast * self._uniform(count, -1.0, 1.0)
        spread = self._uniform(count, 0.0, self.noise)
        # Letterbox and unexposed film stay black, or the border's grey would tell which image was changed how.
        exposed = ops.cast(grey > 0.5, "float32")
        value = 255.0 * ops.power(ops.clip(grey / 255.0, 1e-4, 1.0), ops.reshape(gamma, column))
        value = (value - 128.0) * ops.reshape(gain, column) + 128.0 + ops.reshape(offset, column)
        value = value + ops.reshape(spread, column) * keras.random.normal(ops.shape(grey), seed=self.random)
        return ops.clip(value, 0.0, 255.0) * exposed

    def get_config(self) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("turn", "zoom", "shift", "contrast", "noise", "flip", "seed")}
        return {**super().get_config(), **own}


def warped(images: keras.KerasTensor, maps: keras.KerasTensor) -> keras.KerasTensor:
    """Return images (n, rows, columns, channels) whose pixel (x, y) is the input's at (a x + b y + c, d x + e y + f).

    `maps` holds a to f, shape (n, 6). Between pixels it is linear, outside the image 0. Keras's own does this well with
    TensorFlow; with PyTorch it gathers corner by corner and takes longer than the step of training (measured: 580 ms
    instead of 40 for 16 images of 384 × 384), so PyTorch's own is called there.
    """
    if keras.backend.backend() != "torch":
        transform = ops.pad(maps, ((0, 0), (0, 2)))
        return ops.image.affine_transform(
            images,
            transform,
            interpolation="bilinear",
            fill_mode="constant",
            fill_value=0.0,
            data_format="channels_last",
        )
    import torch

    rows, columns = images.shape[1], images.shape[2]
    a, b, c, d, e, f = maps.unbind(dim=1)
    # grid_sample counts from -1 to 1 between the outer pixels' centres.
    middle_x, middle_y = (columns - 1) / 2, (rows - 1) / 2
    across = torch.stack([a, b * (middle_y / middle_x), (a * middle_x + b * middle_y + c) / middle_x - 1], dim=1)
    down = torch.stack([d * (middle_x / middle_y), e, (d * middle_x + e * middle_y + f) / middle_y - 1], dim=1)
    grid = torch.nn.functional.affine_grid(
        torch.stack([across, down], dim=1), (len(images), images.shape[3], rows, columns), align_corners=True
    )
    moved = torch.nn.functional.grid_sample(images.permute(0, 3, 1, 2), grid, align_corners=True)
    return moved.permute(0, 2, 3, 1)
