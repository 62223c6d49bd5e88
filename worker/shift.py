"""How far counts lie from what was measured for the release: intervals, bands and one measure of shift.

What a hospital sees differs from the test set in one way that is no fault: in how many images show a fracture. So a
rate is compared with a band that allows for that, and the scores with the mixture of the test set's two distributions,
with and without a fracture, that fits them best (maximum likelihood by EM; Saerens et al., Neural Computation 14,
2002). What remains is told as population stability index, whose limits 0.1 and 0.25 are conventions and no more
(Siddiqi, Credit Risk Scorecards, 2006). Of few images it is large by chance: without any shift it is distributed about
as chi-squared with one degree of freedom less than there are bins, times 1/n + 1/m (Yurdakul and Naranjo, Journal of
Risk Model Validation 14, 2020). Only what exceeds both is called a shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.shares import Share

LEAST = 50
"""Of fewer images nothing is said."""
MODERATE, LARGE = 0.1, 0.25
"""Conventions, see above."""
LEAST_EXPECTED = 0.05
"""Bins are joined until so large a share is expected in each: a logarithm of next to nothing decides nothing."""


class Verdict(StrEnum):
    """What is said of a rate or of the scores."""

    FEW = "few"
    WITHIN = "within"
    ABOVE = "above"
    BELOW = "below"
    SHIFTED = "shifted"
    NO_BASELINE = "no_baseline"

    @property
    def is_flagged(self) -> bool:
        """Whether somebody should look at it."""
        return self in (Verdict.ABOVE, Verdict.BELOW, Verdict.SHIFTED)


@dataclass(frozen=True)
class Band:
    """A share of the release, 0 to 1, and from where to where it is nothing to speak of."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate(Share):
    """A share of images, against that of the release."""

    def against(self, band: Band | None) -> Verdict:
        """Say where the whole interval lies; within also where the two merely touch."""
        if band is None:
            return Verdict.NO_BASELINE
        if self.of < LEAST:
            return Verdict.FEW
        low, high = self.interval
        return Verdict.ABOVE if low > band.high else Verdict.BELOW if high < band.low else Verdict.WITHIN


@dataclass(frozen=True)
class Spread:
    """How the release's scores are spread, between edges, for images with and without the finding.

    `images` is of how many independent ones it is worth: neighbours in the test set resemble each other.
    """

    with_finding: tuple[int, ...]
    without_finding: tuple[int, ...]
    images: float

    @property
    def prevalence(self) -> float:
        """The share of its images with the finding."""
        found = sum(self.with_finding)
        return found / (found + sum(self.without_finding))

    def mixed(self, prevalence: float) -> list[float]:
        """Return the share of each bin where this share of images has the finding."""
        found, sound = sum(self.with_finding), sum(self.without_finding)
        return [
            prevalence * one / found + (1 - prevalence) * other / sound
            for one, other in zip(self.with_finding, self.without_finding, strict=True)
        ]


@dataclass(frozen=True)
class Shift:
    """How scores differ from the release's.

    Attributes
    ----------
    index
        The population stability index against the mixture that fits best.
    chance
        What it does not exceed in 95 of 100 periods without any shift.
    prevalence
        The share of images with the finding in that mixture. No count of fractures: it is what explains most.
    """

    images: int
    index: float
    chance: float
    prevalence: float

    @property
    def verdict(self) -> Verdict:
        """Whether this is a shift."""
        if self.images < LEAST:
            return Verdict.FEW
        return Verdict.SHIFTED if self.index >= LARGE and self.index > self.chance else Verdict.WITHIN


def shift(counts: Sequence[int], spread: Spread) -> Shift:
    """Compare the counts of a period, between the same edges, with the release's."""
    n = sum(counts)
    if not n:
        return Shift(0, 0.0, math.inf, spread.prevalence)
    prevalence = fitted_prevalence(counts, spread)
    expected, seen = _joined(spread.mixed(prevalence), counts)
    # Half an image more in each bin, so that an empty one has a logarithm.
    shares = [(one + 0.5) / (n + 0.5 * len(seen)) for one in seen]
    index = sum((share - one) * math.log(share / one) for share, one in zip(shares, expected, strict=True))
    chance = _chi_squared_95(max(len(expected) - 1, 1)) * (1 / n + 1 / spread.images)
    return Shift(n, index, chance, prevalence)


def fitted_prevalence(counts: Sequence[int], spread: Spread) -> float:
    """Return the share of images with the finding by which the counts are likeliest."""
    found, sound = sum(spread.with_finding), sum(spread.without_finding)
    # Half an image more in each bin: none of them is impossible.
    bins = len(counts)
    here = [(one + 0.5) / (found + 0.5 * bins) for one in spread.with_finding]
    there = [(one + 0.5) / (sound + 0.5 * bins) for one in spread.without_finding]
    share, n = spread.prevalence, sum(counts)
    for _ in range(200):
        ours = [share * a / (share * a + (1 - share) * b) for a, b in zip(here, there, strict=True)]
        after = sum(count * one for count, one in zip(counts, ours, strict=True)) / n
        if abs(after - share) < 1e-6:
            return after
        share = min(max(after, 1e-6), 1 - 1e-6)
    return share


def _joined(expected: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Join neighbouring bins until enough is expected in each; what is left over goes to the last."""
    shares, seen = [0.0], [0]
    for share, count in zip(expected, counts, strict=True):
        if shares[-1] >= LEAST_EXPECTED:
            shares.append(0.0)
            seen.append(0)
        shares[-1] += share
        seen[-1] += count
    if len(shares) > 1 and shares[-1] < LEAST_EXPECTED:
        last, some = shares.pop(), seen.pop()
        shares[-1] += last
        seen[-1] += some
    return shares, seen


def _chi_squared_95(degrees: int) -> float:
    """The 95th percentile, to within a percent (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + 1.644854 * math.sqrt(part)) ** 3)
