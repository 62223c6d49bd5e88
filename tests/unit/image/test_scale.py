"""Resampling averages over areas and keeps images in the middle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.image.scale import drawn_length, overview, resampled


@given(st.integers(1, 5000), st.integers(1, 1024), st.integers(1, 5000))
def test_a_drawn_length_fits_lies_in_the_middle_and_is_off_by_one_at_most(length: int, room: int, other: int) -> None:
    factor = min(room / length, room / other)
    drawn = drawn_length(length, factor, room)
    assert 1 <= drawn <= room
    assert (room - drawn) % 2 == 0
    assert abs(drawn - length * factor) <= 1 or drawn == 2 - room % 2


def test_the_longest_side_takes_all_of_its_room() -> None:
    assert drawn_length(2500, 384 / 2500, 384) == 384
    assert drawn_length(373, 150 / 373, 150) == 150


@pytest.mark.parametrize("size", [(97, 111), (384, 300), (13, 5)])
def test_a_mean_stays_what_it_was(size: tuple[int, int]) -> None:
    levels = np.random.default_rng(1).integers(0, 65_536, (500, 400)).astype(np.uint16)
    assert resampled(levels, *size).mean() == pytest.approx(levels.mean(), rel=0.01)


def test_fine_stripes_are_averaged_instead_of_aliased() -> None:
    stripes = np.zeros((1000, 1000), np.uint16)
    stripes[:, ::2] = 65_535
    drawn = resampled(stripes, 150, 150)
    assert drawn.min() > 0.47 * 65_535
    assert drawn.max() < 0.53 * 65_535


@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 300))
def test_an_overview_is_never_larger_than_asked_nor_than_the_image(rows: int, columns: int, longest: int) -> None:
    found = overview(np.full((rows, columns), 7, np.uint16), longest)
    assert max(found.shape) <= max(longest, 1)
    assert found.shape[0] <= rows
    assert found.shape[1] <= columns
    assert np.allclose(found, 7)


def test_an_overview_shows_means_and_not_samples() -> None:
    stripes = np.zeros((1200, 900), np.uint16)
    stripes[::3] = 900
    assert np.allclose(overview(stripes, 400), 300, atol=1)
