"""What a bundle is said to reach is what it reached: all images count, parts are what they are called."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import litert
from training import evaluate
from training.data import Box, Sample, prepared
from training.evaluate import Outcomes
from training.metrics import Flags, Values
from worker.bundle import Code, Metric, Metrics, OperatingPoints

POINTS = OperatingPoints(absent_below=0.35, present_from=0.5)


def outcomes(count: int = 200, *, seed: int = 11) -> Outcomes:
    """Images in groups of five; every tenth with hardware, nearly all of those with a fracture."""
    random = np.random.default_rng(seed)
    hardware = np.arange(count) % 10 == 0
    labels = (random.random(count) < np.where(hardware, 0.9, 0.3)).astype(np.float64)
    probabilities = np.clip(0.3 * labels + random.random(count) * 0.6, 0, 1)
    return Outcomes(
        logits=np.log(probabilities / (1 - probabilities)),
        probabilities=probabilities,
        labels=labels,
        groups=np.array([str(n // 5) for n in range(count)]),
        hardware=hardware,
        multiscan=np.arange(count) % 7 == 0,
        regions={"hand": np.arange(count) < count // 2, "leg": np.arange(count) >= count // 2, "hip": labels > 2},
        views={"frontal": np.arange(count) % 2 == 0},
        distances=np.where(labels == 1, random.random(count) * 0.1 - 0.02, np.nan).clip(0),
        fixed_distances=np.where(labels == 1, 0.2, np.nan),
        refused=np.arange(count) < 2,
        milliseconds=np.full(count, 7.0),
    )


def measured(of: Outcomes) -> Metrics:
    return evaluate.metrics(of, POINTS, dataset="drawn")


def test_figures_are_those_of_their_names() -> None:
    of = outcomes()
    p, fractured = of.probabilities, of.labels == 1
    values = {name: metric.value for name, metric in measured(of).values.items()}
    assert values["sensitivity_at_absent_below"] == pytest.approx(np.mean(p[fractured] >= 0.35), abs=1e-4)
    assert values["specificity_at_absent_below"] == pytest.approx(np.mean(p[~fractured] < 0.35), abs=1e-4)
    assert values["sensitivity_at_present_from"] == pytest.approx(np.mean(p[fractured] >= 0.5), abs=1e-4)
    assert values["specificity_at_present_from"] == pytest.approx(np.mean(p[~fractured] < 0.5), abs=1e-4)
    assert values["share_undetermined"] == pytest.approx(np.mean((p >= 0.35) & (p < 0.5)), abs=1e-4)
    assert values["ppv_at_present_from"] == pytest.approx(np.mean(fractured[p >= 0.5]), abs=1e-4)
    assert values["npv_at_absent_below"] == pytest.approx(np.mean(~fractured[p < 0.35]), abs=1e-4)
    assert values["brier_score"] == pytest.approx(np.mean((p - of.labels) ** 2), abs=1e-4)
    assert values["share_refused"] == pytest.approx(0.01)
    assert values["pointing_inside"] == pytest.approx(np.mean(of.distances[fractured] == 0), abs=1e-4)
    assert values["pointing_within_5_percent"] == pytest.approx(np.mean(of.distances[fractured] <= 0.05), abs=1e-4)


def test_every_figure_lies_in_its_interval_and_is_the_same_every_time() -> None:
    found = measured(outcomes())
    assert all(one.low <= one.value <= one.high for one in found.values.values())
    assert all(one.low < one.high for one in found.values.values())
    assert found == measured(outcomes())


def test_predictive_values_fall_and_rise_with_the_prevalence() -> None:
    values = measured(outcomes()).values
    ppv = [values[f"ppv_at_present_from_prevalence_{share}_percent"].value for share in (2, 5, 10, 20)]
    npv = [values[f"npv_at_absent_below_prevalence_{share}_percent"].value for share in (2, 5, 10, 20)]
    assert ppv == sorted(ppv)
    assert npv == sorted(npv, reverse=True)
    assert ppv[0] < 0.5 * ppv[-1]


def test_parts_are_measured_by_themselves_and_empty_ones_are_left_out() -> None:
    of = outcomes()
    found = measured(of)
    assert set(found.subgroups) == {
        *("region_hand", "region_leg", "view_frontal"),
        *("without_hardware", "hardware_only", "without_multiscan", "multiscan_only"),
    }
    alone = measured(of.only(of.regions["hand"]))
    hand = found.subgroups["region_hand"]
    assert (hand.images, hand.positives) == (alone.images, alone.positives)
    assert {name: one.value for name, one in hand.values.items()} == {
        name: alone.values[name].value for name in hand.values
    }
    assert found.subgroups["without_hardware"].values["auc"].value == found.values["auc_without_hardware"].value


def test_a_part_without_one_of_the_classes_has_no_area_under_a_curve_and_no_invented_number() -> None:
    of = outcomes()
    part = measured(replace(of, regions={"hand": of.labels == 1})).subgroups["region_hand"]
    assert "auc" not in part.values
    assert "average_precision" not in part.values
    assert "specificity_at_present_from" not in part.values
    assert part.values["sensitivity_at_present_from"].value > 0


def test_a_reader_that_lives_on_hardware_is_found_out() -> None:
    of = outcomes()
    honest = measured(of).values
    random = np.random.default_rng(0).random(len(of.labels))
    crutch = measured(replace(of, probabilities=np.where(of.hardware, 0.9, 0.5 * random))).values
    assert honest["auc_lost_without_hardware"].value < 0.05
    assert crutch["auc_lost_without_hardware"].value > 0.08
    assert crutch["auc_without_hardware"].value == pytest.approx(0.5, abs=0.1)
    loss = honest["auc"].value - honest["auc_without_hardware"].value
    assert honest["auc_lost_without_hardware"].value == pytest.approx(loss, abs=2e-4)


def test_the_scores_that_the_gate_lets_pass_are_counted_apart_by_the_truth() -> None:
    of = outcomes()
    assert of.refused is not None
    found = evaluate.score_distribution(of, POINTS, Code(value="1", scheme="SCT", meaning="Fracture"))
    assert found is not None
    (one,) = found.findings
    passed, broken = ~of.refused, of.labels == 1
    assert sum(one.with_finding) == (passed & broken).sum()
    assert sum(one.without_finding) == (passed & ~broken).sum()
    at = found.edges.index(0.5)
    assert one.with_finding[at] == (passed & broken & (of.probabilities >= 0.5) & (of.probabilities < 0.6)).sum() > 0
    assert one.present.value == pytest.approx(np.mean(of.probabilities[passed] >= 0.5), abs=1e-4)
    assert one.present.low < one.present.value < one.present.high
    assert found.refused.value == pytest.approx(0.01)
    sound = of.only(of.labels == 0)
    assert evaluate.score_distribution(sound, POINTS, one.code) is None


def test_readers_without_skill_stand_beside_the_figures() -> None:
    of = outcomes()
    baselines = measured(of).baselines
    share = of.labels.mean()
    assert baselines["average_precision"] == pytest.approx(share, abs=1e-4)
    assert baselines["brier_score"] == pytest.approx(share * (1 - share), abs=1e-4)
    assert 0.5 < baselines["auc_of_hardware_alone"] < 0.75
    assert baselines["pointing_inside"] == 0
    assert baselines["pointing_within_5_percent"] == 0


def test_refusing_the_difficult_images_does_not_make_a_figure_better() -> None:
    of = outcomes()
    wrong: Flags = (of.probabilities > 0.5) != (of.labels == 1)
    refusing = measured(replace(of, refused=wrong)).values
    assert refusing["auc"] == measured(of).values["auc"]
    assert refusing["share_refused"].value == pytest.approx(wrong.mean(), abs=1e-4)


def test_images_that_no_number_is_known_of_are_counted_as_refused_and_in_no_other_figure() -> None:
    of = outcomes()
    unread: Flags = np.arange(200) % 20 == 3
    blank: Values = np.where(unread, np.nan, of.probabilities)
    found = measured(replace(of, logits=blank, probabilities=blank, refused=unread))
    known = measured(of.only(~unread))
    assert found.images == 200
    assert found.values["share_refused"].value == pytest.approx(0.05)
    for name in ("auc", "average_precision", "share_undetermined", "expected_calibration_error", "brier_score"):
        assert found.values[name].value == known.values[name].value
    assert found.subgroups["region_leg"].values["auc"].value == known.subgroups["region_leg"].values["auc"].value


def test_a_model_without_a_heatmap_has_no_figures_of_pointing() -> None:
    found = measured(replace(outcomes(), distances=None))
    assert "pointing_inside" not in found.values
    assert found.baselines["pointing_inside"] == 0


def test_arrays_alone_can_be_measured() -> None:
    of = outcomes()
    bare = Outcomes(of.logits, of.probabilities, of.labels, of.groups, of.hardware)
    assert measured(bare).values["auc"] == measured(of).values["auc"]
    assert "share_refused" not in measured(bare).values


def test_the_table_names_every_figure_and_every_part_and_the_baseline_beside_the_figure() -> None:
    found = measured(outcomes())
    text = evaluate.table(found)
    assert all(name in text for name in (*found.values, *found.subgroups, *found.baselines))
    (line,) = (line for line in text.splitlines() if line.startswith("pointing_inside"))
    assert line.endswith("without skill 0.000")
    assert f"{found.values['pointing_inside'].value:.3f}" in line


def test_a_table_of_a_card_without_parts_and_baselines_can_be_read() -> None:
    bare = Metrics(
        dataset="d", images=3, positives=1, groups=2, interval="i", values={"auc": Metric(value=0.5, low=0, high=1)}
    )
    assert "auc" in evaluate.table(bare)


def test_the_time_of_an_image_is_told_as_median_and_95th_percentile() -> None:
    of = replace(outcomes(), milliseconds=np.linspace(0, 100, 200))
    text = evaluate.timing(of)
    assert "2 of 200 images refused" in text
    assert "median 50.0 ms, 95th percentile 95.0 ms" in text


def test_the_command_takes_a_bundle_a_split_and_a_folder() -> None:
    parser = argparse.ArgumentParser()
    evaluate.configure(parser)
    options = parser.parse_args(["bundles/a-1", "--split", "fold-3", "--output", "out"])
    assert (options.bundle.name, options.split, options.output.name) == ("a-1", "fold-3", "out")
    assert parser.parse_args(["a-1"]).split == "test"


# --- through the worker's predictor -----------------------------------------------------------------------------------

SQUARE = (120, 240, 160, 280)


def sample(path: Path, picture: Image.Image, *boxes: Box, **said: object) -> Sample:
    """Write a picture of 240 × 480 and say what it shows."""
    picture.save(path)
    kept: dict[str, object] = {"fold": 0, "hardware": False, "group": path.stem, "fractured": bool(boxes)}
    return Sample(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        boxes=boxes,
        **{**kept, **said},  # type: ignore[arg-type] # a test's own words
    )


def box(left: float, top: float, right: float, bottom: float) -> Box:
    """A box in pixels of such a picture."""
    return Box(left / 240, top / 480, right / 240, bottom / 480)


def test_what_the_worker_would_say_is_measured_and_the_peak_is_looked_for_in_the_boxes(tmp_path: Path) -> None:
    pictures = [
        sample(tmp_path / "hit.png", litert.white_square(SQUARE), box(*SQUARE), hardware=True, multiscan=True),
        sample(tmp_path / "miss.png", litert.white_square(SQUARE), box(20, 260, 44, 300), regions=frozenset({"hip"})),
        sample(tmp_path / "none.png", litert.white_square(SQUARE), views=frozenset({"lateral"})),
    ]
    predictor = litert.predictor(tmp_path / "bundle")
    found = evaluate.outcomes(predictor, pictures, fixed=(0.5, 0.5))
    assert found.labels.tolist() == [1, 1, 0]
    assert found.groups.tolist() == ["hit", "miss", "none"]
    assert found.hardware.tolist() == [True, False, False]
    assert found.multiscan.tolist() == [True, False, False]
    assert found.regions["hip"].tolist() == [False, True, False]
    assert found.views["lateral"].tolist() == [False, False, True]
    again = predictor.read(prepared(pictures[0], predictor.size)).findings[0]
    assert (found.logits[0], found.probabilities[0]) == (again.logit, again.probability)
    assert found.distances[0] == 0
    # From the square's middle, x = 140, to the box's edge, x = 44, in units of 480.
    assert found.distances[1] == pytest.approx((140 - 44) / 480, abs=0.02)
    assert np.isnan(found.distances[2])
    assert found.fixed_distances[:2].tolist() == pytest.approx([0.0, np.hypot(120 - 44, 260 - 240) / 480])
    assert (found.milliseconds > 0).all()
    assert not found.refused.any()


def test_what_the_gate_or_the_pixel_pipeline_refuses_is_counted_and_does_not_end_the_evaluation(tmp_path: Path) -> None:
    bright = litert.white_square((20, 20, 220, 460))
    pictures = [
        sample(tmp_path / "good.png", litert.white_square(SQUARE), box(*SQUARE)),
        sample(tmp_path / "bright.png", bright, box(*SQUARE)),
        sample(tmp_path / "blank.png", Image.new("L", (240, 480), 90)),
    ]
    found = evaluate.outcomes(litert.predictor(tmp_path / "bundle"), pictures)
    assert found.refused.tolist() == [False, True, True]
    assert found.read.tolist() == [True, True, False]
    assert measured(found).values["share_refused"].value == pytest.approx(2 / 3, abs=1e-4)


def test_a_bundle_without_a_heatmap_points_nowhere(tmp_path: Path) -> None:
    predictor = litert.predictor(tmp_path / "bundle", model={"outputs": ("logits",)}, heatmap=None, gate=None)
    picture = sample(tmp_path / "a.png", litert.white_square(SQUARE), box(*SQUARE))
    assert evaluate.outcomes(predictor, [picture]).distances is None


def test_the_fixed_point_is_learnt_from_the_training_split_alone(tmp_path: Path) -> None:
    picture = litert.white_square(SQUARE)
    train = sample(tmp_path / "a.png", picture, Box(0.2, 0.2, 0.4, 0.6))
    test = sample(tmp_path / "b.png", picture, Box(0.8, 0.8, 1.0, 1.0), split="test", fold=None)
    assert evaluate.fixed_point([train, test]) == pytest.approx((0.3, 0.4))


def test_a_split_is_the_test_split_or_one_fold_and_nothing_else(tmp_path: Path) -> None:
    picture = litert.white_square(SQUARE)
    one = sample(tmp_path / "a.png", picture, fold=1)
    test = sample(tmp_path / "b.png", picture, split="test", fold=None)
    assert evaluate.samples_of([one, test], "fold-1") == (one,)
    assert evaluate.samples_of([one, test], "test") == (test,)
    with pytest.raises(ValueError, match="no split fold-7"):
        evaluate.samples_of([one, test], "fold-7")
