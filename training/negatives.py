"""Pictures that are no radiographs of limbs, on which the input gate is tried: what packages carry, and what is drawn.

None of them teaches the gate anything; its limit comes from radiographs alone. Whatever is not in this list was not
tried, and the card says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydicom.data import get_testdata_file

from dicom_node.pixels import NotAnalysable, model_input_from_picture
from worker.bundle import Negative
from worker.predictor import Predictor


@dataclass(frozen=True)
class Group:
    """Pictures of one kind."""

    name: str
    description: str
    pictures: list[Image.Image]


def groups() -> Iterator[Group]:
    """Yield every group of negatives."""
    photographs = _shipped("skimage.data", PHOTOGRAPHS)
    photographs += _shipped("sklearn.datasets.images", ("china.jpg", "flower.jpg"))
    yield Group("photographs in colour", "of scikit-image and scikit-learn", photographs)
    yield Group("grey photographs", "the same in grey, whole and as a quarter", _quartered(_grey(photographs)))
    yield Group(
        "textures and science in grey",
        "of scikit-image: " + ", ".join(Path(name).stem for name in SCIENCE),
        _grey(_shipped("skimage.data", SCIENCE)),
    )
    yield Group("text", "drawn pages, black on white and white on black, and scans of scikit-image", _pages())
    yield Group("noise and gradients", "normal, uniform and coarse noise; linear and round gradients", _patterns())
    yield Group("chest radiographs", "RG1 of pydicom-data (NEMA WG04), whole, mirrored and halved, no header", _chest())
    yield Group(
        "CT, MR, ultrasound and others",
        "of pydicom-data, as pictures without a header: " + ", ".join(Path(name).stem for name in OTHER_MODALITIES),
        _other_modalities(),
    )


PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "color.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
SCIENCE = (
    "brick.png",
    "cell.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "retina.jpg",
)
OTHER_MODALITIES = (
    "693_UNCR.dcm",
    "CT_small.dcm",
    "MR2_UNCR.dcm",
    "MR_small.dcm",
    "US1_UNCR.dcm",
    "OBXXXX1A.dcm",
    "eCT_Supplemental.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "rtdose_1frame.dcm",
    "vlut_04.dcm",
    "mlut_18.dcm",
)


def _shipped(package: str, names: Sequence[str]) -> list[Image.Image]:
    found = []
    for name in names:
        with as_file(files(package) / name) as path, Image.open(path) as picture:
            found.append(picture.convert("RGB"))
    return found


def _grey(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [picture.convert("L") for picture in pictures]


def _quartered(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    quarters = [picture.crop((0, 0, picture.width // 2, picture.height // 2)) for picture in pictures]
    return [*pictures, *quarters]


def _pages() -> list[Image.Image]:
    pages = _grey(_shipped("skimage.data", ("page.png", "text.png")))
    random = np.random.default_rng(4)
    for size, ink, paper in ((12, 0, 255), (18, 20, 235), (28, 0, 255), (18, 255, 0), (40, 230, 20)):
        page = Image.new("L", (600, 800), paper)
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
        for line in range(20, 780, int(size * 1.5)):
            words = ["".join(map(chr, random.integers(97, 123, random.integers(2, 9)))) for _ in range(14)]
            draw.text((30, line), " ".join(words), fill=ink, font=font)
        pages.append(page)
    return pages


def _patterns() -> list[Image.Image]:
    random = np.random.default_rng(5)
    shape = (480, 400)
    y, x = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    few = Image.fromarray(random.integers(0, 256, (24, 20), dtype=np.uint8))
    coarse = few.resize(shape[::-1], Image.Resampling.BICUBIC)
    planes = (
        random.normal(128, 40, shape),
        random.normal(128, 10, shape),
        random.uniform(0, 255, shape),
        255 * x,
        255 * (x + y) / 2,
        255 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.1),
        255 * (np.hypot(x - 0.5, y - 0.5) < 0.35),
        np.full(shape, 128.0) + random.normal(0, 2, shape),
    )
    return [coarse, *(Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8)) for plane in planes)]


def _chest() -> list[Image.Image]:
    whole = _displayed("RG1_UNCR.dcm")
    upper = whole.crop((0, 0, whole.width, whole.height // 2))
    left = whole.crop((0, 0, whole.width // 2, whole.height))
    return [whole, ImageOps.mirror(whole), upper, left]


def _other_modalities() -> list[Image.Image]:
    return [_displayed(name) for name in OTHER_MODALITIES]


def _displayed(name: str) -> Image.Image:
    """Return the first frame of one of pydicom's files, its values spread from the 0.5th to the 99.5th percentile."""
    dataset = pydicom.dcmread(str(get_testdata_file(name)), force=True)
    values = dataset.pixel_array.astype(np.float64)
    while values.ndim > 2:
        values = values.mean(axis=-1) if values.shape[-1] == 3 else values[0]
    low, high = np.percentile(values, (0.5, 99.5))
    grey = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
    picture = Image.fromarray(grey.astype(np.uint8))
    return ImageOps.invert(picture) if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else picture


def refusals(predictor: Predictor, limit: float) -> list[Negative]:
    """Return how many of each group the pixels' rules or the distance refuse."""
    counted = []
    for group in groups():
        by_rules = by_features = 0
        for picture in group.pictures:
            try:
                distance = predictor.read(model_input_from_picture(picture, predictor.size)).distance
            except NotAnalysable:
                by_rules += 1
                continue
            by_features += distance is not None and distance > limit
        refused = by_rules + by_features
        counted.append(
            Negative(
                name=group.name,
                description=group.description,
                images=len(group.pictures),
                refused=refused,
                refused_by_features=by_features,
            )
        )
    return counted
