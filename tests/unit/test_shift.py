"""What is called a shift, and what is not: chance and another share of fractures are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bundles import shipped_spread
from worker.shift import LARGE, Band, Rate, Spread, Verdict, fitted_prevalence, shift

BAND = Band(0.1, 0.05, 0.2)
SPREAD = Spread((2, 8, 30, 60), (300, 120, 60, 20), 160)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 1000, 0.0002, 0.0056), (0, 0, 0, 1)],
)
def test_the_interval_of_a_rate_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    assert Rate(count, of).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("count", "of", "verdict"),
    [
        (49, 49, Verdict.FEW),
        (50, 50, Verdict.ABOVE),
        (0, 200, Verdict.BELOW),
        (50, 200, Verdict.WITHIN),  # 0.25 lies above the band, its interval touches it
        (60, 200, Verdict.ABOVE),
        (10, 100, Verdict.WITHIN),
    ],
)
def test_a_rate_is_flagged_only_where_its_whole_interval_lies_outside_the_band(
    count: int, of: int, verdict: Verdict
) -> None:
    assert Rate(count, of).against(BAND) is verdict


def test_without_a_baseline_nothing_is_flagged() -> None:
    assert not Rate(50, 50).against(None).is_flagged


def test_another_share_of_fractures_alone_is_no_shift_and_is_told() -> None:
    for prevalence in (0.02, 0.1, 0.4):
        counts = [round(10_000 * share) for share in SPREAD.mixed(prevalence)]
        found = shift(counts, SPREAD)
        assert found.prevalence == pytest.approx(prevalence, abs=0.02)
        assert found.index < 0.01
        assert found.verdict is Verdict.WITHIN


def test_scores_that_no_mixture_explains_are_a_shift_where_there_are_enough_of_them() -> None:
    moved = [60, 600, 300, 40]
    found = shift(moved, SPREAD)
    assert found.verdict is Verdict.SHIFTED
    assert found.index > max(LARGE, found.chance)
    few = shift([count // 25 for count in moved], SPREAD)
    assert few.verdict is Verdict.FEW
    assert shift([0, 0, 0, 0], SPREAD).verdict is Verdict.FEW


def test_all_scores_in_one_bin_are_a_finite_number() -> None:
    for at in range(4):
        found = shift([1000 if bin_ == at else 0 for bin_ in range(4)], SPREAD)
        assert math.isfinite(found.index)
        assert 0 <= fitted_prevalence([1000 if bin_ == at else 0 for bin_ in range(4)], SPREAD) <= 1


def test_chance_alone_hardly_ever_exceeds_its_limit_and_is_never_called_a_shift() -> None:
    spread = shipped_spread()
    random = np.random.default_rng(7)
    for images in (60, 300, 3000):
        found = [shift(random.multinomial(images, spread.mixed(0.1)).tolist(), spread) for _ in range(200)]
        assert np.mean([one.index > one.chance for one in found]) < 0.05
        assert not any(one.verdict is Verdict.SHIFTED for one in found)
