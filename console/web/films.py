"""Radiographs and the model's maps as the pictures that a browser shows."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_node.objects.heatmap import colour_map
from worker.regions import Scores

# Of a score, below which nothing of the map is drawn over the radiograph.
_FAINTEST = 0.08


def radiograph(grey: npt.NDArray[np.uint8]) -> bytes:
    """A grey picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def heat(scores: Scores) -> bytes:
    """A map as PNG: the higher a score, the lighter its colour and the less is seen through it."""
    level = np.clip(scores, 0, 1)
    strength = np.clip((level - _FAINTEST) / (1 - _FAINTEST), 0, 1)
    colours = colour_map()[np.rint(255 * level).astype(np.uint8)]
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([colours, np.rint(255 * strength).astype(np.uint8)])).save(
        buffer, "PNG", compress_level=3
    )
    return buffer.getvalue()
