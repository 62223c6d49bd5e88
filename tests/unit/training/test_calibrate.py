"""Probabilities mean what they say, the folds choose how they are made, and operating points keep their promises."""

from __future__ import annotations

import numpy as np
import pytest

from training import calibrate
from training.metrics import Flags, Values
from worker.bundle import Platt, Temperature


def drawn(count: int, slope: float, intercept: float, seed: int = 5) -> tuple[Values, Values, np.ndarray]:
    """Logits, labels drawn from sigmoid(slope × logit + intercept), and five folds."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, count)
    labels = random.random(count) < 1 / (1 + np.exp(-(slope * logits + intercept)))
    return logits, labels.astype(np.float64), np.arange(count) % 5


def test_the_temperature_is_the_one_the_labels_were_drawn_with() -> None:
    logits, labels, _ = drawn(20_000, 1 / 1.8, 0.0)
    assert calibrate.temperature(logits, labels).parameters.temperature == pytest.approx(1.8, abs=0.08)


def test_a_temperature_stays_finite_when_the_classes_are_separate() -> None:
    fitted = calibrate.temperature([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1])
    assert 0.1 < fitted.parameters.temperature < 10


@pytest.mark.parametrize("fit", calibrate.METHODS.values(), ids=calibrate.METHODS)
def test_what_cannot_be_calibrated_is_refused(fit: object) -> None:
    assert callable(fit)
    with pytest.raises(ValueError, match="both classes"):
        fit([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="lower logits"):
        fit([3.0, 2.0, -2.0, -3.0], [0, 0, 1, 1])


def test_the_folds_keep_an_intercept_that_matters() -> None:
    found = calibrate.chosen(*drawn(2000, 0.6, -1.2))
    assert isinstance(found.calibration, Platt)
    assert found.costs["platt"] < found.costs["temperature"]


def test_the_folds_prefer_one_number_when_an_intercept_only_fits_the_noise() -> None:
    kinds = [type(calibrate.chosen(*drawn(400, 0.6, 0.0, seed)).calibration) for seed in range(20)]
    assert kinds.count(Temperature) > 10


def test_a_calibration_is_judged_on_folds_it_was_not_fitted_to() -> None:
    """Each fold leans to another side: an intercept learnt on one is worse than none on the other."""
    first, second = drawn(500, 1.0, 2.0), drawn(500, 1.0, -2.0)
    logits, labels = (np.concatenate([first[at], second[at]]) for at in (0, 1))
    found = calibrate.chosen(logits, labels, np.repeat([0, 1], 500))
    assert isinstance(found.calibration, Temperature)
    assert found.costs["platt"] > found.costs["temperature"] + 0.3


def test_one_fold_cannot_choose() -> None:
    logits, labels, _ = drawn(50, 1.0, 0.0)
    with pytest.raises(ValueError, match="two folds"):
        calibrate.chosen(logits, labels, np.zeros(50))


def population(random: np.random.Generator, groups: int) -> tuple[Values, Flags, np.ndarray]:
    """Images in groups of 25 that resemble each other."""
    group = np.repeat(np.arange(groups), 25)
    labels = random.random(len(group)) < 0.2
    logits = random.normal(0, 0.8, groups)[group] + np.where(labels, 1.5, -1.5) + random.normal(0, 1, len(group))
    return np.asarray(calibrate.sigmoid(logits)), labels, group


def test_operating_points_keep_their_promises_on_what_comes_next_and_not_only_on_what_they_were_chosen_on() -> None:
    random = np.random.default_rng(8)
    p_all, y_all, _ = population(random, 8000)
    kept, bare = [], []
    for _ in range(30):
        p, y, group = population(random, 60)
        for confidence, results in ((calibrate.CONFIDENCE, kept), (0.5, bare)):
            points = calibrate.operating_points(p, y, group, confidence=confidence)
            results.append(np.mean(p_all[y_all] >= points.absent_below) >= calibrate.SENSITIVITY)
            results.append(np.mean(p_all[~y_all] < points.present_from) >= calibrate.SPECIFICITY)
    assert np.mean(kept) >= 0.8
    assert np.mean(bare) <= 0.65


def test_more_confidence_means_points_further_out() -> None:
    p, y, group = population(np.random.default_rng(4), 40)
    points = [calibrate.operating_points(p, y, group, confidence=confidence) for confidence in (0.5, 0.9, 0.99)]
    assert points[0].absent_below > points[1].absent_below > points[2].absent_below
    assert points[0].present_from < points[1].present_from < points[2].present_from


def test_images_that_resemble_each_other_are_trusted_less() -> None:
    p, y, group = population(np.random.default_rng(4), 200)
    together, alone = calibrate.operating_points(p, y, group), calibrate.operating_points(p, y)
    assert together.absent_below < alone.absent_below
    assert together.present_from > alone.present_from


def test_operating_points_of_a_good_model_meet_in_the_middle() -> None:
    points = calibrate.operating_points([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    assert points.absent_below == points.present_from == pytest.approx(0.5)
