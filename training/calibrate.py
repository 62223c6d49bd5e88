"""From logits to probabilities that mean what they say, and to the two operating points. All on held-out folds.

Two curves are fitted, temperature and Platt scaling, and the folds choose: by what a fold's images cost under the curve
that was fitted to the other folds. The operating points aim at a sensitivity and a specificity on the images to come,
not on those at hand, and so stand a little further out than these would need, see `operating_points`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.metrics import Draws, Values, draw
from worker.bundle import Calibration, OperatingPoints, Platt, PlattParameters, Temperature, TemperatureParameters

SENSITIVITY = 0.95
"""Of `absent_below`: what is called no fracture misses one fracture in twenty."""
SPECIFICITY = 0.95
"""Of `present_from`: what is called a fracture takes in one in twenty of the images without."""
CONFIDENCE = 0.90
"""How sure each operating point's promise is, see `operating_points`."""


# --- probabilities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The calibration that folds prefer, fitted to all images.

    Attributes
    ----------
    calibration
        For the card.
    costs
        Mean negative log likelihood of an image of a fold that the curve was not fitted to, by method.
    """

    calibration: Calibration
    costs: dict[str, float]


def chosen(logits: npt.ArrayLike, labels: npt.ArrayLike, folds: npt.ArrayLike) -> Chosen:
    """Choose between temperature and Platt scaling by cross-validated negative log likelihood.

    A temperature is one number and cannot overfit much, but it keeps a logit of 0 at one half: it fails where the
    network was fitted with class weights or to another share of fractures, and there Platt's intercept is worth its
    place. Whichever costs less wins, a tie goes to the temperature.

    Parameters
    ----------
    logits, labels
        Shape (n,); 1 is fractured. The logits come from networks that were not fitted to these images.
    folds
        Shape (n,): whole groups of images, at least two different ones, both classes outside of each.

    Raises ValueError as `platt` does, and when there are fewer than two folds.
    """
    x, y, fold = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64), np.asarray(folds)
    names = np.unique(fold)
    if len(names) < 2:
        raise ValueError("Choosing a calibration needs at least two folds.")
    costs = {}
    for name, fit in METHODS.items():
        held_out = [_costs(fit(x[fold != one], y[fold != one]), x[fold == one], y[fold == one]) for one in names]
        costs[name] = float(np.concatenate(held_out).mean())
    return Chosen(METHODS[min(costs, key=lambda name: costs[name])](x, y), costs)


def temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Temperature:
    """Fit sigmoid(logit / temperature) by maximum likelihood (Guo et al., ICML 2017), with labels softened as Platt's.

    Raises ValueError as `platt` does.
    """
    x, target = _softened(logits, labels)
    (slope,) = _most_likely(x[:, np.newaxis], target, np.array([0.0]))
    if not slope > 0:
        raise ValueError("The model gives fractures lower logits than no fractures.")
    return Temperature(parameters=TemperatureParameters(temperature=1 / slope))


def platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Platt:
    """Fit sigmoid(slope × logit + intercept) by maximum likelihood.

    The labels are softened as in Platt (1999), so that a separable set does not drive the slope to infinity.

    Raises ValueError when one class is missing or when the logits order the images the wrong way round.
    """
    x, target = _softened(logits, labels)
    share = float(target.mean())
    slope, intercept = _most_likely(
        np.stack([x, np.ones_like(x)], axis=1), target, np.array([0.0, math.log(share / (1 - share))])
    )
    if not slope > 0:
        raise ValueError("The model gives fractures lower logits than no fractures.")
    return Platt(parameters=PlattParameters(slope=slope, intercept=intercept))


METHODS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], Calibration]] = {"temperature": temperature, "platt": platt}
"""By the card's name of the method; the simpler first."""


def probabilities(calibration: Calibration, logits: npt.ArrayLike) -> Values:
    """Return the calibrated probability of each logit."""
    return np.array([calibration.probability(float(logit)) for logit in np.asarray(logits)], dtype=np.float64)


def _softened(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Values, Values]:
    """Return the logits, and targets that lie a little inside of 0 and 1."""
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    positives, negatives = int(y.sum()), int((1 - y).sum())
    if positives == 0 or negatives == 0:
        raise ValueError("Calibration needs images of both classes.")
    return x, np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _most_likely(features: Values, target: Values, start: Values) -> tuple[float, ...]:
    """Logistic regression by Newton's method, with steps of at most 2."""
    beta = start
    for _ in range(100):
        p = sigmoid(features @ beta)
        gradient = features.T @ (p - target)
        curvature = (features * (p * (1 - p))[:, np.newaxis]).T @ features + 1e-9 * np.eye(len(beta))
        step = np.linalg.solve(curvature, gradient)
        beta = beta - step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return tuple(float(one) for one in beta)


def _costs(calibration: Calibration, logits: Values, labels: Values) -> Values:
    """Negative log likelihood of each image."""
    p = probabilities(calibration, logits).clip(1e-12, 1 - 1e-12)
    return -np.log(np.where(labels == 1, p, 1 - p))


def sigmoid(x: Values) -> Values:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


# --- operating points -------------------------------------------------------------------------------------------------


def operating_points(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    sensitivity: float = SENSITIVITY,
    specificity: float = SPECIFICITY,
    confidence: float = CONFIDENCE,
) -> OperatingPoints:
    """Choose the highest `absent_below` with this sensitivity, and the lowest `present_from` with this specificity.

    At `absent_below` a fracture counts as found when its probability is not below it; at `present_from` an image
    without a fracture counts as right when its probability is below it. Where the model is so good that the first lies
    above the second, both become their middle, which keeps both promises.

    A point that just keeps its promise on these images breaks it on the next as often as not. The points are therefore
    tolerance limits (Wilks, 1941) by the bootstrap over groups: each is where `confidence` of the resamples keep the
    promise, and never further in than these images need. With 488 fractures that aims at 0.963 instead of 0.95, and
    further the more the images of a group are alike. It covers the sampling of these images and not that of a test: one
    of 100 fractures measures between 0.92 and 1.00 where the truth is 0.96.

    Parameters
    ----------
    probabilities, labels
        Shape (n,); calibrated; 1 is fractured.
    groups
        Which images belong together; None: every image stands alone.

    Raises ValueError when one class is missing.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) == 1
    if y.all() or not y.any():
        raise ValueError("Operating points need images of both classes.")
    draws = draw(np.arange(len(p)) if groups is None else groups)
    # The lowest fractures may fall below the one point, the highest images without a fracture may reach the other.
    lowest = _passed(draws, p, y, 1 - sensitivity)
    highest = -_passed(draws, -p, ~y, 1 - specificity)
    absent_below = min(lowest[0], float(np.nanquantile(lowest, 1 - confidence, method="lower")))
    present_from = max(highest[0], float(np.nanquantile(highest, confidence, method="higher")))
    present_from = min(float(np.nextafter(present_from, 2.0)), 1.0)
    if absent_below > present_from:
        absent_below = present_from = (absent_below + present_from) / 2
    return OperatingPoints(absent_below=absent_below, present_from=present_from)


def _passed(draws: Draws, values: Values, of: npt.NDArray[np.bool_], share: float) -> Values:
    """Return the lowest value that leaves at most `share` of the images `of` below it, for every resample."""
    order = np.flatnonzero(of)[np.argsort(values[of], kind="stable")]
    up_to = np.cumsum(draws.weights[:, draws.group_of[order]], axis=1)
    # A guard against 0.1 × 10 being 0.999….
    allowed = np.floor(share * up_to[:, -1] + 1e-9)
    first = np.argmax(up_to > allowed[:, np.newaxis], axis=1)
    return np.where(up_to[:, -1] > 0, values[order][first], np.nan)
