"""Whether a bundle can be used here: its sums, its card, and its model run on two images whose answers must exist.

What it answers is not judged: that is what evaluation is for. A bundle that passes loads and speaks on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_node.pixels import ModelInput, model_input_from_picture
from worker.bundle import MODEL, Bundle, BundleError
from worker.predictor import Predictor, Reading


@dataclass(frozen=True)
class Verified:
    """A bundle that can be used, and what its model said of a drawn limb and of an empty image."""

    bundle: Bundle
    limb: Reading
    empty: Reading


def verify(path: Path, *, num_threads: int = 1) -> Verified:
    """Check the bundle in the folder `path` and run it. Raises BundleError, which names the file and what is wrong."""
    predictor = Predictor.load(path, num_threads=num_threads)
    limb = model_input_from_picture(Image.fromarray(drawn_limb()), predictor.size)
    empty = replace(limb, pixels=np.zeros_like(limb.pixels))
    return Verified(predictor.bundle, _read(predictor, limb, "a drawn limb"), _read(predictor, empty, "an empty image"))


def drawn_limb(rows: int = 480, columns: int = 320) -> npt.NDArray[np.uint8]:
    """Draw two bones with a joint in soft tissue, brightest 255: a radiograph of nobody."""
    y = (np.arange(rows)[:, None] + 0.5) / rows
    x = (np.arange(columns)[None, :] + 0.5) / columns
    tissue = np.clip(1 - ((x - 0.5) / 0.32) ** 2, 0, None) * 0.45
    shaft = np.clip(1 - ((x - 0.5) / (0.09 + 0.08 * np.abs(y - 0.55))) ** 2, 0, None)
    joint = 1 - 0.8 * np.exp(-(((y - 0.55 - 0.1 * (x - 0.5)) / 0.02) ** 2))
    grey = 0.03 + 0.03 * x + tissue + 0.5 * shaft * joint
    drawn: npt.NDArray[np.uint8] = (grey / grey.max() * 255).round().astype(np.uint8)
    return drawn


def _read(predictor: Predictor, image: ModelInput, words: str) -> Reading:
    try:
        return predictor.read(image)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise BundleError(f"{MODEL}: cannot read {words}: {error}") from None
