"""The original EfficientNet-Lite's activations for one picture: what `make` writes and what the tests compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_name("efficientnet-lite.npz")
"""For "lite0", "lite1" and "lite2" float32 (layers, 352), layers being the stem and each block; "made_with", a text."""

VALUES = 352
"""Of each layer: as many as the widest has channels (Lite2's last block), so that every channel of each is seen."""

SIZE = (128, 96)
"""Rows and columns of the picture: different, so that turned axes show; 4 × 3 cells at stride 32."""


def picture() -> npt.NDArray[np.float32]:
    """Return the picture, float32 grey 0 to 255, shape (1, rows, columns, 1): a bright bone, cracked, with noise.

    It is made of whole numbers, and so is the same everywhere.
    """
    y, x = np.indices(SIZE)
    bone = np.where(abs(x - 40 - y // 8) < 14, 150, 30)
    crack = np.where((abs(y - x // 2 - 50) < 2) & (bone > 100), -90, 0)
    noise = (x * 37 + y * 91 + x * y * 13) % 61
    return (bone + crack + noise).astype(np.float32)[np.newaxis, :, :, np.newaxis]


def some_of(layer: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return `VALUES` values of a layer's output, (1, rows, columns, channels): all channels, at scattered pixels."""
    # The step is a prime that no layer's size is a multiple of: it comes by every channel once before it repeats one.
    return layer.reshape(-1)[np.arange(VALUES) * 7919 % layer.size].astype(np.float32)
