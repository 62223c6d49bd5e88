"""Figures of a reader and their 95 % intervals: area under the curve, precision, calibration, and where it points.

Intervals come from a bootstrap over whole groups: neighbours resemble each other, and drawing them singly would make an
interval too narrow. A resample is a row of weights, how often each group was drawn, and every figure is computed for
all rows at once, so that thousands of resamples of dozens of figures take about a second. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

RESAMPLES = 2000
INTERVAL = (
    f"95%, percentiles of {RESAMPLES} bootstrap resamples of whole groups; where a share is 0 or 1, which no resample "
    "changes, the exact binomial bound of its images"
)
BINS = 10
"""Of the calibration error."""
NEAR = 0.05
"""A peak is near a box when at most this far from its nearest edge, in units of the picture's longer side."""

_ROWS_AT_ONCE = 256
"""Bounds the memory of the figures that need every image in every resample."""


@dataclass(frozen=True, eq=False)
class Share:
    """How often something holds: `drawn` as every figure of `Draws`, and of how many images it is the share."""

    drawn: Values
    images: int


@dataclass(frozen=True, eq=False)
class Draws:
    """The data and its resamples. A figure is float64 (1 + resamples,): that of the data itself comes first.

    A figure is NaN in a resample on which it is not defined (no fracture drawn). `of` leaves images out.

    Attributes
    ----------
    weights
        float64 (1 + resamples, groups): how often each group was drawn; all 1 in row 0.
    group_of
        intp (n,): the group of each image.
    """

    weights: Values
    group_of: npt.NDArray[np.intp]

    def share(self, holds: Flags, of: Flags | None = None) -> Share:
        """Share of the images `of` for which it holds."""
        return Share(self.mean(holds, of), int(self._kept(of).sum()))

    def mean(self, values: Values | Flags, of: Flags | None = None) -> Values:
        """Mean of the values of the images `of`."""
        kept = self._kept(of)
        total = self.weights @ self._by_group(np.where(kept, values, 0.0))
        return _divided(total, self.weights @ self._by_group(kept.astype(np.float64)))

    def auc(self, scores: Values, labels: Values, of: Flags | None = None) -> Values:
        """Area under the ROC curve, see `auc`.

        A resample's area is a sum over pairs of groups, so that the pairs of images are counted only once.
        """
        kept = self._kept(of)
        levels = _Levels.of(scores, kept)
        positives, negatives = (self._by_level(levels, kept & (labels == label)) for label in (1, 0))
        won = positives @ (np.cumsum(negatives, axis=1) - negatives / 2).T
        pairs = (self.weights @ positives.sum(axis=1)) * (self.weights @ negatives.sum(axis=1))
        return _divided(((self.weights @ won) * self.weights).sum(axis=1), pairs)

    def average_precision(self, scores: Values, labels: Values, of: Flags | None = None) -> Values:
        """Precision at every fracture found, averaged over the fractures, see `average_precision`."""
        kept = self._kept(of)
        levels = _Levels.of(-scores, kept)
        positives = self._by_level(levels, kept & (labels == 1))
        images = self._by_level(levels, kept)

        def of_some(weights: Values) -> Values:
            found = weights @ positives
            precision = _divided(np.cumsum(found, axis=1), np.cumsum(weights @ images, axis=1))
            return _divided((found * np.nan_to_num(precision)).sum(axis=1), found.sum(axis=1))

        return self._in_parts(of_some)

    def calibration_error(self, probabilities: Values, labels: Values, of: Flags | None = None) -> Values:
        """Expected calibration error, see `expected_calibration_error`."""
        kept = self._kept(of)
        levels = _Levels.of(probabilities, kept)
        images = self._by_level(levels, kept)
        claimed = images * levels.values - self._by_level(levels, kept & (labels == 1))

        def of_some(weights: Values) -> Values:
            # Along the images, the least probable first: how many were passed, and how much too much was claimed.
            passed, excess = (np.pad(np.cumsum(weights @ part, axis=1), ((0, 0), (1, 0))) for part in (images, claimed))
            errors = [_binned(one, other) for one, other in zip(passed, excess, strict=True)]
            return np.array(errors, dtype=np.float64)

        return self._in_parts(of_some)

    def _kept(self, of: Flags | None) -> Flags:
        return np.ones(len(self.group_of), dtype=np.bool_) if of is None else of

    def _by_group(self, values: Values) -> Values:
        summed = np.bincount(self.group_of, values, minlength=self.weights.shape[1])
        return summed.astype(np.float64, copy=False)

    def _by_level(self, levels: _Levels, counted: Flags) -> Values:
        """Count the images of each group on each level: float64 (groups, levels)."""
        shape = (self.weights.shape[1], len(levels.values))
        cell = self.group_of[counted] * shape[1] + levels.of_image[counted]
        return np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

    def _in_parts(self, figure: Callable[[Values], Values]) -> Values:
        starts = range(0, len(self.weights), _ROWS_AT_ONCE)
        return np.concatenate([figure(self.weights[start : start + _ROWS_AT_ONCE]) for start in starts])


def draw(groups: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 1) -> Draws:
    """Draw as many groups as there are, with replacement, `resamples` times. The same seed draws the same."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    chosen = np.random.default_rng(seed).integers(0, max(count, 1), (resamples if count else 0, count))
    cell = chosen + np.arange(len(chosen))[:, np.newaxis] * count
    drawn = np.bincount(cell.ravel(), minlength=chosen.size).reshape(chosen.shape)
    return Draws(np.concatenate([np.ones((1, count)), drawn]), group_of.astype(np.intp))


def interval(figure: Values | Share) -> tuple[float, float, float] | None:
    """Return a figure and its 95 % percentile interval; None where the data does not define it.

    Resamples that do not define it do not count. A biased figure (the calibration error grows with resampling) may lie
    outside its percentiles: the interval is then widened to hold it. Where nothing or everything is a share, so that
    every resample agrees, the other end is that of Clopper and Pearson (1934), as if images were independent: 13 of 13
    does not mean that a miss is impossible.
    """
    drawn = figure.drawn if isinstance(figure, Share) else figure
    value = float(drawn[0])
    if not np.isfinite(value):
        return None
    resampled = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (value, value)
    low, high = min(float(low), value), max(float(high), value)
    if isinstance(figure, Share) and value in (0.0, 1.0):
        unseen = 1 - 0.025 ** (1 / figure.images)
        low, high = (0.0, unseen) if value == 0.0 else (1 - unseen, 1.0)
    return value, low, high


# --- figures of the data alone ----------------------------------------------------------------------------------------


def auc(scores: Values, labels: Values) -> float:
    """Area under the ROC curve: how often a fracture scores above no fracture, ties half. NaN without both classes."""
    return float(_undrawn(len(scores)).auc(scores, labels)[0])


def average_precision(scores: Values, labels: Values) -> float:
    """Area under the precision-recall curve as a sum of steps, without interpolation. NaN without a fracture.

    Images of one score are found together. The share of fractures is what chance reaches.
    """
    return float(_undrawn(len(scores)).average_precision(scores, labels)[0])


def expected_calibration_error(probabilities: Values, labels: Values) -> float:
    """Mean distance between what was said and what was true, over ten bins of equal count (Naeini et al., AAAI 2015).

    Where a bin ends among images of one probability, they are shared out evenly, so that their order does not matter.
    """
    return float(_undrawn(len(labels)).calibration_error(probabilities, labels)[0])


def brier_score(probabilities: Values, labels: Values) -> float:
    """Mean squared distance of the probability from the truth; 0 is best."""
    return float(((probabilities - labels) ** 2).mean())


# --- what a decision is worth at another prevalence -------------------------------------------------------------------


def ppv(sensitivity: Values, specificity: Values, prevalence: float) -> Values:
    """Share of fractures among what is called a fracture, where `prevalence` of the images show one (Bayes)."""
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return _divided(true, true + false)


def npv(sensitivity: Values, specificity: Values, prevalence: float) -> Values:
    """Share without a fracture among what is called none, where `prevalence` of the images show one (Bayes)."""
    true, false = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    return _divided(true, true + false)


# --- the pointing game ------------------------------------------------------------------------------------------------


def distance_to_boxes(
    point: tuple[float, float], boxes: Iterable[tuple[float, float, float, float]], size: tuple[float, float]
) -> float:
    """Distance from a point to the nearest edge of the nearest box, in units of the picture's longer side; 0 inside.

    Parameters
    ----------
    point
        x, y as fractions of the picture's width and height.
    boxes
        xmin, ymin, xmax, ymax as such fractions.
    size
        Width and height, in any unit.

    Returns NaN when there is no box.
    """
    width, height = size[0] / max(size), size[1] / max(size)
    nearest = float("nan")
    for xmin, ymin, xmax, ymax in boxes:
        across = max(xmin - point[0], 0.0, point[0] - xmax) * width
        down = max(ymin - point[1], 0.0, point[1] - ymax) * height
        nearest = float(np.fmin(nearest, np.hypot(across, down)))
    return nearest


def mean_centre(boxes: Iterable[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Return the mean centre of boxes: the point that one would always guess. Raises ValueError without a box."""
    corners = np.array([tuple(box) for box in boxes], dtype=np.float64)
    if not len(corners):
        raise ValueError("There is no box to point at.")
    x, y = (corners[:, :2] + corners[:, 2:]).mean(axis=0) / 2
    return float(x), float(y)


# --- helpers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Levels:
    """The distinct values of the images that are kept, in order, and the place of each image among them."""

    values: Values
    of_image: npt.NDArray[np.intp]

    @classmethod
    def of(cls, values: Values, kept: Flags) -> _Levels:
        levels, places = np.unique(values[kept], return_inverse=True)
        of_image = np.zeros(len(values), dtype=np.intp)
        of_image[kept] = places
        return cls(levels.astype(np.float64), of_image)


def _undrawn(count: int) -> Draws:
    """The data as one group, without resamples."""
    return Draws(np.ones((1, 1)), np.zeros(count, dtype=np.intp))


def _binned(passed: Values, excess: Values, bins: int = BINS) -> float:
    """The calibration error of one resample; the bins' sizes are those of `numpy.array_split`."""
    count = round(passed[-1])
    if count == 0:
        return float("nan")
    ends = [at * (count // bins) + min(at, count % bins) for at in range(bins + 1)]
    return float(np.abs(np.diff(np.interp(ends, passed, excess))).sum() / count)


def _divided(above: Values, below: Values) -> Values:
    """NaN where nothing is divided by nothing."""
    divided: Values = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
    return divided
