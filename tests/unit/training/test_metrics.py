"""Figures are what they are called, also in every resample, and intervals know that neighbours resemble each other."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics
from training.metrics import Values


def some_data(count: int = 120, groups: int = 15, seed: int = 3) -> tuple[Values, Values, np.ndarray]:
    """Scores that tell fractures a little, with ties; labels; groups of unequal size."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.35).astype(np.float64)
    scores = np.clip((0.25 * labels + random.random(count) * 0.7).round(2), 0, 1)
    return scores, labels, random.integers(0, groups, count)


def images_of(draws: metrics.Draws, row: int) -> np.ndarray:
    """The images of one resample, each as often as it was drawn."""
    return np.repeat(np.arange(len(draws.group_of)), draws.weights[row][draws.group_of].astype(int))


@pytest.mark.parametrize("figure", ["auc", "average_precision"])
def test_a_figure_of_a_resample_is_that_of_the_images_that_were_drawn(figure: str) -> None:
    scores, labels, groups = some_data()
    draws = metrics.draw(groups, resamples=40)
    drawn = getattr(draws, figure)(scores, labels)
    for row in range(41):
        images = images_of(draws, row)
        assert drawn[row] == pytest.approx(getattr(metrics, figure)(scores[images], labels[images]), abs=1e-12)


def test_the_calibration_error_of_a_resample_is_that_of_the_images_that_were_drawn() -> None:
    scores, labels, groups = some_data()
    scores = scores + np.random.default_rng(1).random(len(scores)) / 1e3
    draws = metrics.draw(groups, resamples=40)
    drawn = draws.calibration_error(scores, labels)
    for row in range(41):
        images = images_of(draws, row)
        again = metrics.expected_calibration_error(scores[images], labels[images])
        assert drawn[row] == pytest.approx(again, abs=1e-12)


def test_a_mean_of_a_resample_is_that_of_the_images_that_were_drawn() -> None:
    scores, labels, groups = some_data()
    draws = metrics.draw(groups, resamples=40)
    drawn = draws.mean(scores, of=labels == 1)
    for row in range(41):
        images = images_of(draws, row)
        assert drawn[row] == pytest.approx(scores[images][labels[images] == 1].mean())


@pytest.mark.parametrize("figure", ["auc", "average_precision", "calibration_error", "mean"])
def test_images_left_out_change_nothing_whatever_they_hold(figure: str) -> None:
    scores, labels, groups = some_data()
    kept = np.arange(len(scores)) % 3 > 0
    arguments = (scores,) if figure == "mean" else (scores, labels)
    blank = tuple(np.where(kept, values, np.nan) for values in arguments)
    draws = metrics.draw(groups, resamples=20)
    assert np.array_equal(getattr(draws, figure)(*arguments, of=kept), getattr(draws, figure)(*blank, of=kept))
    assert not np.allclose(getattr(draws, figure)(*arguments, of=kept), getattr(draws, figure)(*arguments))


def test_the_area_under_the_curve_counts_pairs_and_ties_half() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    assert metrics.auc(scores, labels) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(metrics.auc(scores, np.zeros(4)))
    assert np.isnan(metrics.auc(scores, np.ones(4)))


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_turning_the_scores_over_turns_the_area_over(images: list[tuple[int, bool]]) -> None:
    scores, labels = np.array(images, dtype=np.float64).T
    area = metrics.auc(scores, labels)
    if 0 < labels.sum() < len(labels):
        assert metrics.auc(-scores, labels) == pytest.approx(1 - area)
    else:
        assert np.isnan(area)


def test_average_precision_takes_the_precision_at_every_fracture() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    assert metrics.average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_average_precision_of_one_score_for_all_is_the_share_of_fractures() -> None:
    assert metrics.average_precision(np.full(8, 0.3), np.array([1.0, 0, 0, 0, 1, 0, 0, 0])) == pytest.approx(0.25)


def test_the_calibration_error_is_nought_for_honest_probabilities_and_large_for_boasts() -> None:
    labels = np.array([0.0, 1.0] * 50)
    assert metrics.expected_calibration_error(np.full(100, 0.5), labels) < 1e-9
    assert metrics.expected_calibration_error(np.full(100, 1.0), labels) == pytest.approx(0.5)


def test_the_calibration_error_does_not_depend_on_the_order_of_images_of_one_probability() -> None:
    probabilities = np.full(40, 0.5)
    sorted_labels = np.repeat([0.0, 1.0], 20)
    assert metrics.expected_calibration_error(probabilities, sorted_labels) < 1e-9


def test_the_calibration_error_is_a_mean_over_bins_of_equal_count() -> None:
    random = np.random.default_rng(2)
    probabilities = random.random(103)
    labels = (random.random(103) < probabilities**2).astype(np.float64)
    parts = np.array_split(np.argsort(probabilities), 10)
    gaps = [abs(probabilities[part].mean() - labels[part].mean()) * len(part) for part in parts]
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(sum(gaps) / 103)


def test_predictive_values_follow_from_bayes() -> None:
    # 1,000 people, 20 with a fracture: 19 found; of 980 without, 98 called.
    sensitivity, specificity = np.array([0.95]), np.array([0.9])
    assert metrics.ppv(sensitivity, specificity, 0.02) == pytest.approx(19 / (19 + 98))
    assert metrics.npv(sensitivity, specificity, 0.02) == pytest.approx(882 / (882 + 1))
    assert np.isnan(metrics.ppv(np.array([0.0]), np.array([1.0]), 0.1)).all()


def test_predictive_values_at_the_datas_own_prevalence_are_those_counted() -> None:
    scores, labels, groups = some_data()
    draws = metrics.draw(groups, resamples=10)
    called = scores >= 0.5
    sensitivity, specificity = draws.mean(called, of=labels == 1), draws.mean(~called, of=labels == 0)
    assert metrics.ppv(sensitivity, specificity, labels.mean())[0] == pytest.approx(labels[called].mean())
    assert metrics.npv(sensitivity, specificity, labels.mean())[0] == pytest.approx(1 - labels[~called].mean())


def test_a_draw_holds_as_many_groups_as_there_are_and_is_the_same_every_time() -> None:
    draws = metrics.draw(["a", "b", "b", "c", "d"], resamples=50)
    assert draws.weights.shape == (51, 4)
    assert np.array_equal(draws.weights[0], np.ones(4))
    assert np.array_equal(draws.weights.sum(axis=1), np.full(51, 4))
    assert np.array_equal(draws.weights, metrics.draw(["a", "b", "b", "c", "d"], resamples=50).weights)
    assert not np.array_equal(draws.weights, metrics.draw(["a", "b", "b", "c", "d"], resamples=50, seed=2).weights)


def test_images_that_come_in_large_groups_give_wide_intervals() -> None:
    labels = np.repeat([0.0, 1.0], 100)
    widths = []
    for size in (1, 50):
        found = metrics.interval(metrics.draw(np.arange(200) // size, resamples=300).mean(labels))
        assert found is not None
        widths.append(found[2] - found[1])
    assert widths[1] > 3 * widths[0]


def test_an_interval_holds_its_value_and_skips_draws_that_do_not_define_it() -> None:
    assert metrics.interval(np.array([0.9, np.nan, 0.2, 0.4])) == (0.9, pytest.approx(0.205), 0.9)
    assert metrics.interval(np.array([np.nan, 0.2, 0.4])) is None
    assert metrics.interval(np.array([0.5, np.nan])) == (0.5, 0.5, 0.5)


def test_all_of_a_few_does_not_mean_always() -> None:
    draws = metrics.draw(np.arange(13))
    assert metrics.interval(draws.share(np.ones(13, bool))) == (1.0, pytest.approx(0.753, abs=1e-3), 1.0)
    assert metrics.interval(draws.share(np.zeros(13, bool))) == (0.0, 0.0, pytest.approx(0.247, abs=1e-3))
    few = metrics.interval(draws.share(np.zeros(13, bool), of=np.arange(13) < 4))
    assert few == (0.0, 0.0, pytest.approx(0.602, abs=1e-3))
    assert metrics.interval(draws.share(np.ones(13, bool), of=np.zeros(13, bool))) is None


BOX = (0.2, 0.4, 0.3, 0.6)


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((0.25, 0.5), 0.0),
        ((0.2, 0.4), 0.0),
        ((0.1, 0.5), 0.05),  # a tenth of the width, which is half as long as the height
        ((0.25, 0.7), 0.1),
        ((0.36, 0.64), 0.05),  # past the corner: 0.03 and 0.04 of the longer side
    ],
)
def test_the_distance_to_a_box_is_counted_in_the_longer_side(point: tuple[float, float], distance: float) -> None:
    assert metrics.distance_to_boxes(point, [BOX], (200, 400)) == pytest.approx(distance)


def test_the_nearest_of_several_boxes_counts() -> None:
    far = (0.8, 0.8, 0.9, 0.9)
    assert metrics.distance_to_boxes((0.25, 0.5), [far, BOX], (100, 100)) == 0
    assert np.isnan(metrics.distance_to_boxes((0.25, 0.5), [], (100, 100)))


def test_the_fixed_point_is_the_mean_centre_of_the_boxes() -> None:
    assert metrics.mean_centre([(0, 0, 0.2, 0.4), (0.4, 0.4, 1.0, 1.0)]) == pytest.approx((0.4, 0.45))
    with pytest.raises(ValueError, match="no box"):
        metrics.mean_centre([])


def test_two_thousand_resamples_of_a_test_split_take_a_second_and_not_minutes() -> None:
    scores, labels, groups = some_data(600, 28)
    start = time.process_time()
    draws = metrics.draw(groups)
    for figure in (draws.auc, draws.average_precision, draws.calibration_error):
        assert len(figure(scores, labels)) == 2001
    assert time.process_time() - start < 3.0
