"""The model's maps as they are kept with a prediction, and laid over the image for people to see.

A map says for each cell of the model's input how much it speaks for a finding. It is kept as a small picture, together
with where the input lay on the source: both can still be drawn when the file and the bundle are gone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from dicom_node.pixels import ModelInput
from worker.regions import Scores

Geometry = Mapping[str, Sequence[float]]
"""See `models.tables.Prediction.geometry`."""


def geometry(source: ModelInput) -> dict[str, list[float]]:
    """Where the model looked, for the record."""
    return {"input": list(source.extent), "drawn": [float(edge) for edge in source.box]}


def keep(scores: Scores) -> bytes:
    """A map as a PNG of 8 bits: a step of a 255th is far below what the map's grid can show."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(scores.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def kept(png: bytes) -> Scores:
    """Read what `keep` wrote. Raises ValueError where it is something else."""
    try:
        with Image.open(io.BytesIO(png)) as picture:
            if picture.mode != "L":
                raise ValueError("a kept map is grey")
            return np.asarray(picture, dtype=np.float32) / np.float32(255)
    except OSError:
        raise ValueError("a kept map is a PNG") from None


def laid_over(scores: Scores, where: Geometry, source: tuple[int, int], size: tuple[int, int]) -> Scores:
    """Draw a map at the size of a picture of the whole source; 0 where the model did not look.

    Parameters
    ----------
    scores
        Shape (h, w), 0 to 1.
    where
        What `geometry` said of the model's input.
    source, size
        (rows, columns) of the source image and of the picture.
    """
    (rows, columns), (height, width) = source, size
    left, top, right, bottom = where["input"]
    across, down = scores.shape[1] / (right - left), scores.shape[0] / (bottom - top)
    # Pillow fades out half a cell before the edge of what it is given; a map's edge is as sure as its middle.
    padded = np.pad(scores.astype(np.float32), 1, mode="edge")
    box = (1 - left * across, 1 - top * down, 1 + (columns - left) * across, 1 + (rows - top) * down)
    drawn = Image.fromarray(padded).transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    over = np.array(drawn, dtype=np.float32).clip(0, 1)
    left, top, right, bottom = where["drawn"]
    x = (np.arange(width) + 0.5) * columns / width
    y = (np.arange(height) + 0.5) * rows / height
    over[(y < top) | (y > bottom)] = 0
    over[:, (x < left) | (x > right)] = 0
    return over
