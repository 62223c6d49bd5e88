"""The detector gives one logit for the image and one for each cell of a map at stride 16."""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt
import pytest

from training.networks import layout
from training.networks.detector import (
    LOGIT,
    SCORES,
    BestCells,
    head,
    lite_branch,
    lite_detector,
    residual_detector,
)
from training.networks.efficientnet_lite import STRIDE_8, STRIDE_16, EfficientNetLite, load_imagenet

SIZE = (96, 64)

Floats = npt.NDArray[np.float32]


def detector(kind: str) -> keras.Model:
    if kind == "residual":
        return residual_detector(SIZE, width=16)
    model = lite_detector(SIZE, width=16)
    # With random weights and no normalisation, nothing of the picture would reach the outputs.
    load_imagenet(model, 0)
    return model


def greys(count: int = 2) -> Floats:
    return np.random.default_rng(0).uniform(0, 255, (count, *SIZE, 1)).astype(np.float32)


def given(x: object) -> Floats:
    return np.asarray(keras.ops.convert_to_numpy(x))


def computed(model: keras.Model, images: Floats, *, training: bool = False) -> dict[str, Floats]:
    return {name: keras.ops.convert_to_numpy(value) for name, value in model(images, training=training).items()}


KINDS = pytest.mark.parametrize("kind", ["lite", "residual"])


@KINDS
def test_outputs_are_a_logit_and_a_map_at_stride_16_by_name(kind: str) -> None:
    outputs = computed(detector(kind), greys())
    assert set(outputs) == {LOGIT, SCORES} == {"logit", "scores"}
    assert outputs["logit"].shape == (2, 1)
    assert outputs["scores"].shape == (2, SIZE[0] // 16, SIZE[1] // 16, 1)
    assert all(np.isfinite(values).all() for values in outputs.values())


@KINDS
def test_outputs_are_single_precision_whatever_is_computed_in(kind: str) -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = detector(kind)
    finally:
        keras.config.set_dtype_policy(policy)
    assert {str(output.dtype) for output in model.outputs} == {"float32"}
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers}


@KINDS
def test_a_new_detector_thinks_cells_unlikely(kind: str) -> None:
    # Random heads scatter the scores about the offset that they begin with, -4.
    assert np.median([computed(detector(kind), greys(1))[SCORES] for _ in range(8)]) == pytest.approx(-4, abs=1.5)


@KINDS
def test_an_image_is_read_the_same_whatever_else_is_in_its_batch(kind: str) -> None:
    model = detector(kind)
    images = greys(3)
    together = computed(model, images)
    for number, image in enumerate(images):
        alone = computed(model, image[np.newaxis])
        for name in (LOGIT, SCORES):
            np.testing.assert_allclose(alone[name][0], together[name][number], rtol=1e-4, atol=1e-4)


def test_a_cell_of_the_map_looks_at_its_own_place() -> None:
    # With what the stride-32 features say taken away, what changes in one corner shows in that corner's cells alone.
    at_16, at_32 = keras.Input((6, 4, 8)), keras.Input((3, 2, 8))
    model = keras.Model([at_16, at_32], head(layout.inward(at_16), layout.inward(at_32), width=16, dropout=0.0)[SCORES])
    fine, coarse = np.zeros((1, 6, 4, 8), np.float32), np.zeros((1, 3, 2, 8), np.float32)
    before = keras.ops.convert_to_numpy(model([fine, coarse]))
    fine[0, 5, 0] = 9.0
    assert cells_changed(before, keras.ops.convert_to_numpy(model([fine, coarse]))) == {(4, 0), (4, 1), (5, 0), (5, 1)}
    fine[0, 5, 0], coarse[0, 0, 1] = 0.0, 9.0
    of_coarse = cells_changed(before, keras.ops.convert_to_numpy(model([fine, coarse])))
    assert of_coarse == {(row, column) for row in range(3) for column in range(1, 4)}


def cells_changed(before: Floats, after: Floats) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for _, row, column, _ in zip(*np.nonzero(abs(after - before) > 1e-6), strict=True)}


def test_the_images_logit_rests_on_the_cells_and_on_the_features() -> None:
    model, images = detector("lite"), greys()
    before = computed(model, images)
    cells = model.get_layer("head_cells")
    scale, offset = cells.get_weights()
    cells.set_weights([scale * 0, offset + 3])
    by_features = computed(model, images)[LOGIT] - 3
    assert np.abs(by_features).min() > 0
    np.testing.assert_allclose(before[LOGIT] - by_features, best_cells(before[SCORES], 0.5, 0.0), rtol=1e-4, atol=1e-4)


def best_cells(scores: Floats, scale: float, offset: float) -> npt.NDArray[np.float64]:
    """What `BestCells` is said to give, by numpy, in double precision."""
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    weights = np.exp(flat - flat.max(axis=1, keepdims=True))
    means = (flat * weights).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    return np.asarray(scale * means + offset)


def test_the_best_cells_are_a_mean_weighted_by_a_softmax_then_scaled() -> None:
    layer = BestCells()
    scores = np.random.default_rng(1).normal(-4, 3, (3, 6, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(given(layer(scores)), best_cells(scores, 0.5, 0.0), rtol=1e-5)  # as it begins
    layer.set_weights([np.float32(1.5), np.float32(-0.25)])
    np.testing.assert_allclose(given(layer(scores)), best_cells(scores, 1.5, -0.25), rtol=1e-5)


@pytest.mark.parametrize("high", [5.0, 60.0, 1e4])
def test_one_cell_far_above_the_others_speaks_for_the_image(high: float) -> None:
    scores = np.full((1, 6, 4, 1), -40.0, np.float32)
    scores[0, 2, 3] = high
    layer = BestCells()
    assert float(given(layer(scores))[0, 0]) == pytest.approx(high / 2, rel=1e-5)


def test_dropout_hides_features_in_training_only() -> None:
    model = residual_detector(SIZE, width=16, dropout=0.5)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # takes its kept statistics, so that dropout alone makes a difference
    images = greys()
    quiet = computed(model, images)
    again, drawn, other = computed(model, images), *(computed(model, images, training=True) for _ in range(2))
    assert np.array_equal(again[LOGIT], quiet[LOGIT])
    assert not np.allclose(drawn[LOGIT], other[LOGIT], atol=1e-6)
    np.testing.assert_allclose(drawn[SCORES], quiet[SCORES], atol=1e-5)


def test_two_branches_share_a_trunk() -> None:
    grey = keras.Input((*SIZE, 1))
    shared, other = EfficientNetLite(0), EfficientNetLite(0, prefix="other_")
    trunk = shared.trunk(grey)
    branches = [lite_branch(backbone, trunk, width=16, dropout=0.0) for backbone in (shared, other)]
    model = keras.Model(grey, [branch[LOGIT] for branch in branches])
    both, alone = model.count_params(), lite_detector(SIZE, width=16).count_params()
    assert both == 2 * alone - keras.Model(grey, trunk).count_params()
    load_imagenet(model, 0)
    one, other = (given(logit) for logit in model(greys()))
    load_imagenet(model, 0, prefix="other_")
    again, changed = (given(logit) for logit in model(greys()))
    assert np.array_equal(one, again)
    assert not np.allclose(other, changed)


def test_what_is_frozen_and_how_its_gradients_are_found_is_the_backbones() -> None:
    def trained(**options: object) -> set[str]:
        return {layer.name for layer in lite_detector(SIZE, width=16, **options).layers if layer.trainable_variables}

    until_8, until_16 = trained(frozen_until=STRIDE_8), trained(frozen_until=STRIDE_16)
    assert {name for name in until_8 if name.startswith("head_")} == {name for name in until_16 if "head_" in name}
    assert len({name for name in until_16 if "head_" in name}) == 7
    assert "block5_expand" in until_8 - until_16
    assert until_8 - trained(frozen_until=STRIDE_8, quick_backward=True) == {
        f"block{number}_depthwise" for number in range(5, 16)
    }


@KINDS
def test_a_detector_is_made_again_from_its_configuration_and_weights(kind: str) -> None:
    model, images = detector(kind), greys()
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    for name, values in computed(again, images).items():
        np.testing.assert_allclose(values, computed(model, images)[name], atol=1e-6)
