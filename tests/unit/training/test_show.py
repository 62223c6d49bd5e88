"""What `show` draws: samples of both classes, augmented ones, counts; never a test image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.training import made
from training import show
from training.data import Sample, read_fracatlas

pytest.importorskip("keras")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return read_fracatlas(made.fracatlas(tmp_path / "data"))


def test_grids_counts_and_augmented_samples_are_written_as_pictures(tmp_path: Path, samples: list[Sample]) -> None:
    written = show.show(samples, tmp_path / "shown")
    assert [path.name for path in written] == [
        "samples-fractured.png",
        "samples-not-fractured.png",
        "counts.png",
        "augmented.png",
    ]
    for path in written:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert np.ptp(np.asarray(picture.convert("L"))) > 150


def test_images_of_the_test_split_are_counted_and_not_shown(tmp_path: Path, samples: list[Sample]) -> None:
    for sample in samples:
        if sample.split == "test":
            sample.path.unlink()  # whoever opened it would fail
    show.show(samples, tmp_path / "shown")
    counts = {kind.name: (kind.images, kind.fractured) for kind in show.counted(samples)["split"]}
    assert counts == {"train": (20, 10), "test": (4, 2)}


def test_an_image_counts_in_every_kind_that_it_shows(samples: list[Sample]) -> None:
    counted = show.counted(samples)
    assert {kind.name: (kind.images, kind.fractured) for kind in counted["region"]} == {"hand": (12, 6), "leg": (12, 6)}
    assert [(kind.name, kind.images) for kind in counted["fold"]] == [(str(fold), 4) for fold in range(5)]
    assert {kind.name: kind.images for kind in counted["shows"]} == {"fracture boxes": 12, "hardware": 3}


def test_the_same_seed_shows_the_same_samples(samples: list[Sample]) -> None:
    one, same, other = (show.choice(samples, 6, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert one == sorted(one, key=samples.index)
    assert show.choice(samples[:3], 6, np.random.default_rng(1)) == samples[:3]


def test_boxes_move_with_the_augmented_picture(samples: list[Sample]) -> None:
    given: list[np.ndarray] = []

    def mirrored(batch: np.ndarray, *, training: bool) -> np.ndarray:
        assert training
        given.append(batch)
        return batch[:, :, ::-1]

    figure = show.augmented(samples[:2], mirrored)
    before, after = figure.axes[0], figure.axes[1]
    assert np.array_equal(before.images[0].get_array()[:, ::-1], after.images[0].get_array())
    assert given[0].shape == (show.CHANGED, *show.SIZE, 2)
    assert len(before.collections) == len(after.collections) == 1  # the outline of the box, in both
    sound = figure.axes[1 + show.CHANGED]
    assert len(sound.collections) == 0
