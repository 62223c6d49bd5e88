"""From logits to probabilities that mean what they say, and to the two operating points. All on the validation fold."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from worker.bundle import OperatingPoints, Platt, PlattParameters

_Values = npt.NDArray[np.float64]


def platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Platt:
    """Fit sigmoid(slope × logit + intercept) by maximum likelihood (Newton's method).

    The labels are softened as in Platt (1999), so that a separable set does not drive the slope to infinity. A
    temperature alone is not enough: the network is fitted with class weights, and the intercept takes them out again.

    Raises ValueError when one class is missing or when the logits order the images the wrong way round.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    positives, negatives = int(y.sum()), int((1 - y).sum())
    if positives == 0 or negatives == 0:
        raise ValueError("Calibration needs images of both classes.")
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    features = np.stack([x, np.ones_like(x)], axis=1)
    beta = np.array([0.0, math.log(positives / negatives)])
    for _ in range(100):
        p = sigmoid(features @ beta)
        gradient = features.T @ (p - target)
        curvature = (features * (p * (1 - p))[:, np.newaxis]).T @ features + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        beta -= step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    if not beta[0] > 0:
        raise ValueError("The model gives fractures lower logits than no fractures.")
    return Platt(parameters=PlattParameters(slope=float(beta[0]), intercept=float(beta[1])))


def operating_points(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, sensitivity: float = 0.90, specificity: float = 0.90
) -> OperatingPoints:
    """Choose the highest `absent_below` with this sensitivity, and the lowest `present_from` with this specificity.

    At `absent_below` a fracture counts as found when its probability is not below it; at `present_from` an image
    without a fracture counts as right when its probability is below it. Where the model is so good that the first lies
    above the second, both become their middle, which keeps both promises.

    Raises ValueError when one class is missing.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) == 1
    with_fracture, without = np.sort(p[y]), np.sort(p[~y])
    if not len(with_fracture) or not len(without):
        raise ValueError("Operating points need images of both classes.")
    # The (1 - sensitivity) lowest fractures may fall below the point; a guard against 0.9 × 10 being 8.999….
    missed = math.floor((1 - sensitivity) * len(with_fracture) + 1e-9)
    absent_below = float(with_fracture[min(missed, len(with_fracture) - 1)])
    right = math.ceil(specificity * len(without) - 1e-9)
    present_from = float(np.nextafter(without[max(right, 1) - 1], 1.0))
    if absent_below > present_from:
        absent_below = present_from = (absent_below + present_from) / 2
    return OperatingPoints(absent_below=absent_below, present_from=present_from)


def sigmoid(x: _Values) -> _Values:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))
