"""Cached inputs are what the pixel pipeline gives, and are made again when anything that decides them changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import made
from training import cache
from training.data import Box, Sample, prepared, read_fracatlas

SIZE = (64, 64)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return read_fracatlas(made.fracatlas(tmp_path / "data", in_fold=2, in_test=0))


def test_inputs_are_the_pictures_as_the_worker_would_see_them(tmp_path: Path, samples: list[Sample]) -> None:
    inputs = cache.cached_inputs(samples, SIZE, tmp_path)
    assert inputs.shape == (len(samples), *SIZE, 1)
    for sample, pixels in zip(samples, inputs, strict=True):
        assert np.array_equal(pixels[..., 0], prepared(sample, SIZE).pixels)


def test_masks_cover_the_boxes_where_the_input_shows_them(tmp_path: Path, samples: list[Sample]) -> None:
    masks = cache.cached_masks(samples, SIZE, tmp_path)
    for sample, mask in zip(samples, masks[..., 0], strict=True):
        assert mask.any() == sample.fractured
        if not sample.fractured:
            continue
        image = prepared(sample, SIZE)
        ((left, top, right, bottom),) = cache.boxes_in_input(sample, image)
        down, across = np.nonzero(mask)
        assert (across.min(), down.min()) == (int(left), int(top))
        assert (across.max() + 1, down.max() + 1) == (int(np.ceil(right)), int(np.ceil(bottom)))
        # The drawn fracture is the darkest part of the bone.
        middle = image.pixels[int(top) + 2 : int(bottom) - 1, int((left + right) / 2)]
        assert middle.min() < image.pixels[int(top) - 3, int((left + right) / 2)] / 2


def test_what_is_there_is_not_made_again_and_what_has_changed_is(tmp_path: Path, samples: list[Sample]) -> None:
    cache.cached_masks(samples, SIZE, tmp_path)
    (kept,) = tmp_path.glob("masks-*.npy")
    made_at = kept.stat().st_mtime_ns
    cache.cached_masks(samples, SIZE, tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("masks-*")] == [made_at]
    moved = [replace(samples[0], boxes=(Box(0.1, 0.1, 0.2, 0.2),)), *samples[1:]]
    assert not np.array_equal(cache.cached_masks(moved, SIZE, tmp_path), cache.cached_masks(samples, SIZE, tmp_path))
    cache.cached_masks(samples, (96, 96), tmp_path)
    cache.cached_masks(samples[:-1], SIZE, tmp_path)
    assert len(list(tmp_path.glob("masks-*.npy"))) == 4


def test_a_picture_that_cannot_be_read_leaves_no_cache_behind(tmp_path: Path, samples: list[Sample]) -> None:
    samples[2].path.write_bytes(b"no picture")
    with pytest.raises(Exception, match=r"."):
        cache.cached_inputs(samples, SIZE, tmp_path)
    assert list(tmp_path.glob("*.npy")) == []
