"""`python -m training presentations BUNDLE`: shows that a bundle reads the radiograph and not its file.

Every image of the FracAtlas test split is written as the DICOM objects that modalities send of it, in other sizes,
depths and presentations, and read as the node reads them. What differs from reading the picture itself is a fault of
the pixel pipeline, or a weakness of the model. Nothing is chosen by these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from dicom_node.objects.radiograph import Pixels, build_radiograph
from dicom_node.pixels import NotAnalysable, model_input
from training.data import Sample, prepared, read_fracatlas, split
from training.evaluate import auc
from worker.predictor import Predictor, decide

_Grey = npt.NDArray[np.float32]

LARGE = 2500
"""Longest side in pixels of the images that stand for those of a digital detector."""


@dataclass(frozen=True)
class Difference:
    """What a presentation changes.

    Attributes
    ----------
    name
        The presentation.
    auc, auc_change
        Area under the ROC curve on the images that were read, and the same less that of the pictures themselves.
    mean_change, largest_change
        Of the calibrated probability.
    same_decision
        Share of the images.
    refused
        Images that were not read, by reason.
    """

    name: str
    auc: float
    auc_change: float
    mean_change: float
    largest_change: float
    same_decision: float
    refused: dict[str, int]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `presentations` takes."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--every", type=int, default=1, help="read every n-th image only")


def run(options: argparse.Namespace) -> None:
    """Compare, and print the table."""
    print(table(compare(options.bundle, options.data, every=options.every)))


def compare(bundle: Path, root: Path, *, every: int = 1) -> list[Difference]:
    """Compare every presentation with the pictures, on every `every`-th image of the test split."""
    predictor = Predictor.load(bundle)
    test = split(read_fracatlas(root), validation_fold=0).test[::every]
    labels = np.array([float(sample.fractured) for sample in test])
    points = predictor.bundle.card.findings[0].operating_points
    reference = np.array([_probability(predictor, sample) for sample in test])
    found = []
    for name, present in PRESENTATIONS.items():
        probabilities, refused = _read(predictor, test, present)
        read = ~np.isnan(probabilities)
        change = np.abs(probabilities[read] - reference[read])
        same = [
            decide(float(one), points) == decide(float(other), points)
            for one, other in zip(probabilities[read], reference[read], strict=True)
        ]
        found.append(
            Difference(
                name=name,
                auc=auc(probabilities[read], labels[read]),
                auc_change=auc(probabilities[read], labels[read]) - auc(reference[read], labels[read]),
                mean_change=float(change.mean()),
                largest_change=float(change.max()),
                same_decision=float(np.mean(same)),
                refused=refused,
            )
        )
    return found


def table(found: Sequence[Difference]) -> str:
    """Return the differences as lines of text."""
    lines = [f"{'presentation':42}  AUC    change   probability: mean, largest change   same decision  refused"]
    for one in found:
        refused = ", ".join(f"{count} {reason}" for reason, count in one.refused.items()) or "-"
        lines.append(
            f"{one.name:42}  {one.auc:.3f}  {one.auc_change:+.4f}  {one.mean_change:17.4f} {one.largest_change:8.3f}"
            f"{one.same_decision:18.1%}     {refused}"
        )
    return "\n".join(lines)


# --- presentations ----------------------------------------------------------------------------------------------------


def _digital(
    grey: _Grey,
    *,
    bits: int = 12,
    windowed: bool = True,
    negative: bool = False,
    longest: int | None = None,
    noise: float = 0.0,
    border: float = 0.0,
) -> pydicom.Dataset:
    """Write grey (0 to 1) as Digital X-Ray For Presentation.

    `noise` is a standard deviation and `border` a share of the longest side, laid around the image and as bright as
    the densest bone.
    """
    if longest is not None:
        scale = longest / max(grey.shape)
        size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
        grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    if noise:
        grey = grey + np.random.default_rng(7).normal(0, noise, grey.shape).astype(np.float32)
    if border:
        grey = np.pad(grey, round(border * max(grey.shape)), constant_values=1.0)
    white = (1 << bits) - 1
    stored = np.rint(grey.clip(0, 1) * white).astype(np.uint16)
    pixels = Pixels(
        bits_stored=bits,
        photometric="MONOCHROME1" if negative else "MONOCHROME2",
        windows=((white / 2 + 0.5, white + 1),) if windowed else (),
    )
    return build_radiograph(white - stored if negative else stored, pixels=pixels)


PRESENTATIONS: dict[str, Callable[[_Grey], pydicom.Dataset]] = {
    "8 bits, window": lambda grey: _digital(grey, bits=8),
    "12 bits, window": lambda grey: _digital(grey),
    "12 bits, no window": lambda grey: _digital(grey, windowed=False),
    "12 bits MONOCHROME1, window": lambda grey: _digital(grey, negative=True),
    "12 bits MONOCHROME1, no window": lambda grey: _digital(grey, negative=True, windowed=False),
    f"{LARGE} px, 12 bits, window": lambda grey: _digital(grey, longest=LARGE),
    f"{LARGE} px, 12 bits MONOCHROME1, no window": lambda grey: _digital(
        grey, longest=LARGE, negative=True, windowed=False
    ),
    f"{LARGE} px, 12 bits, no window, noise 1 %": lambda grey: _digital(
        grey, longest=LARGE, windowed=False, noise=0.01
    ),
    "12 bits, no window, a white border of 8 %": lambda grey: _digital(grey, windowed=False, border=0.08),
}


def _read(
    predictor: Predictor, samples: Sequence[Sample], present: Callable[[_Grey], pydicom.Dataset]
) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
    """Return the calibrated probabilities, NaN for what was refused, and how often for which reason."""
    probabilities, refused = np.full(len(samples), np.nan), dict[str, int]()
    for at, sample in enumerate(samples):
        with Image.open(sample.path) as picture:
            grey = np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
        try:
            source = model_input(present(grey), predictor.size)
        except NotAnalysable as reason:
            refused[str(reason)] = refused.get(str(reason), 0) + 1
            continue
        probabilities[at] = predictor.read(source).findings[0].probability
    return probabilities, refused


def _probability(predictor: Predictor, sample: Sample) -> float:
    return predictor.read(prepared(sample, predictor.size)).findings[0].probability
