"""The reader that is released: what is frozen and what was fine-tuned, joined in one graph.

    grey and its mirror image ─ trunk (ImageNet, frozen, to stride 8) ─┬─ branches of the members ─┬─ logit
                                                                       │                           └─ map
                                                                       └─ frozen stages ─┬─ linear reader ─ logit
    grey at half size ─────────── trunk ───────────────────────────────── frozen stages ─┴─ distance (input gate)

A linear reader of frozen ImageNet features errs on other images than networks fine-tuned on few radiographs; together
they do better than either, and so does the mean over an image and its mirror image (measured on the folds:
docs/model.md). The frozen features also tell what the reader does not know, since nothing taught them that only
fractures matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from training.networks.detector import LOGIT, SCORES, lite_branch
from training.networks.efficientnet_lite import STRIDE_8, STRIDE_32, EfficientNetLite, load_imagenet
from training.recipe import Recipe

_Floats = npt.NDArray[np.float64]
FROZEN = "frozen_"


def frozen_features(grey: keras.KerasTensor, backbone: EfficientNetLite, at_8: keras.KerasTensor) -> keras.KerasTensor:
    """Return the frozen network's features (n, 4 × channels): mean and maximum at full size, then at half size."""
    half = keras.layers.AveragePooling2D(2, data_format="channels_last", name="half_size")(grey)
    return keras.layers.Concatenate(dtype="float32")(
        [
            pooling(dtype="float32")(backbone.stages(features, STRIDE_8 + 1, STRIDE_32))
            for features in (at_8, backbone.trunk(half))
            for pooling in (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
        ]
    )


def feature_network(size: tuple[int, int]) -> keras.Model:
    """Return the network that gives the frozen features of an image, with ImageNet weights."""
    grey = keras.Input((*size, 1), name="grey")
    backbone = EfficientNetLite(0, prefix=FROZEN, frozen_until=STRIDE_32, quick_backward=True)
    network = keras.Model(grey, frozen_features(grey, backbone, backbone.trunk(grey)), name="frozen_features")
    load_imagenet(network, 0, prefix=FROZEN)
    return network


@dataclass(frozen=True)
class Linear:
    """A logit from features: `(features - mean) / spread @ weights + bias`."""

    mean: _Floats
    spread: _Floats
    weights: _Floats
    bias: float

    def logits(self, features: npt.NDArray[np.floating]) -> _Floats:
        """Return (n,) for features (n, f)."""
        return ((features - self.mean) / self.spread) @ self.weights + self.bias


def fit_linear(features: npt.NDArray[np.floating], labels: npt.NDArray[np.floating], strength: float = 3e-3) -> Linear:
    """Fit logistic regression on standardised features, both classes weighing the same.

    `strength` is scikit-learn's C; it was chosen among 1e-4, 1e-3, 3e-3 and 1e-2 on the five folds.
    """
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    fitted.fit((features - mean) / spread, labels)
    return Linear(mean, spread, fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0]))


@dataclass(frozen=True)
class Familiar:
    """How far features lie from those of training: the Mahalanobis distance under probabilistic PCA.

    Along the `components` the variance is what was measured; across all others it is their mean (Tipping & Bishop,
    1999), so that a picture unlike any radiograph is far also where radiographs hardly differ.
    """

    mean: _Floats
    spread: _Floats
    components: _Floats
    """(f, k), orthonormal."""
    variances: _Floats
    """(k,)"""
    rest: float
    """Variance along every other direction."""

    def distances(self, features: npt.NDArray[np.floating]) -> _Floats:
        """Return (n,) for features (n, f): about 1 for images like training's, whatever the number of features."""
        standard = (features - self.mean) / self.spread
        along = standard @ self.components
        squares = (standard**2).sum(axis=1) / self.rest + (along**2 * (1 / self.variances - 1 / self.rest)).sum(axis=1)
        return np.asarray(np.sqrt(squares / features.shape[1]), dtype=np.float64)


def fit_familiar(features: npt.NDArray[np.floating], components: int = 64) -> Familiar:
    """Fit what is familiar on the features (n, f) of training's images, along at most half as many components."""
    components = min(components, len(features) // 2)  # with all of them nothing would be left for the rest
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    standard = (features - mean) / spread
    values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    kept = np.argsort(values)[::-1][:components]
    rest = float((values.sum() - values[kept].sum()) / (len(values) - components))
    return Familiar(mean, spread, vectors[:, kept], values[kept], rest)


@dataclass(frozen=True)
class Mix:
    """The image's logit: `offset + members · mean of the members' logits + linear · the linear reader's logit`."""

    offset: float
    members: float
    linear: float

    def logits(self, members: npt.NDArray[np.floating], linear: npt.NDArray[np.floating]) -> _Floats:
        """Return (n,) for the members' logits (members, n) and the linear reader's (n,)."""
        return np.asarray(self.offset + self.members * members.mean(axis=0) + self.linear * linear, dtype=np.float64)


def fit_mix(
    members: npt.NDArray[np.floating], linear: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]
) -> Mix:
    """Fit the mix on logits of images that neither the members nor the linear reader learnt from."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e3).fit(np.stack([members.mean(axis=0), linear], axis=1), labels)
    return Mix(float(fitted.intercept_[0]), *(float(weight) for weight in fitted.coef_[0]))


def joined(
    recipe: Recipe,
    members: Sequence[Mapping[str, npt.NDArray[np.float32]]],
    linear: Linear,
    familiar: Familiar,
    mix: Mix,
) -> keras.Model:
    """Return the reader as one network: `logits` (1, 1), `map` (1, rows / 16, columns / 16, 1) and `distance` (1, 1).

    Parameters
    ----------
    recipe
        Of the members: they differ in nothing but their seeds.
    members
        Weights by name, as `fit.weights_of` names them. Every weight is rounded to half precision, which is what the
        bundle keeps, so that this network and the exported one are the same.
    linear, familiar, mix
        See there.
    """
    grey = keras.Input(batch_shape=(1, *recipe.size, 1), name="grey")
    frozen = EfficientNetLite(0, prefix=FROZEN, frozen_until=STRIDE_32)
    at_8 = frozen.trunk(Mirrored(name="mirrored")(grey))
    branches = [
        lite_branch(EfficientNetLite(0, prefix=_prefix(at)), at_8, width=recipe.head_width, dropout=0.0)
        for at in range(len(members))
    ]
    features = frozen_features(grey, frozen, AsItIs()(at_8))
    logits = [ops.mean(branch[LOGIT], axis=0, keepdims=True) for branch in branches]
    maps = [ops.sigmoid(branch[SCORES]) for branch in branches]
    network = keras.Model(
        grey,
        {
            "logits": keras.layers.Add(name="logits")(
                [keras.layers.Rescaling(mix.members)(_mean(logits)), keras.layers.Dense(1, name="linear")(features)]
            ),
            "map": Unmirrored(name="map")(_mean(maps)),
            "distance": _Distance(familiar.components.shape[1], name="distance")(features),
        },
        name="reader",
    )
    load_imagenet(network, 0, prefix=FROZEN)
    for variable in network.weights:
        for at, member in enumerate(members):
            if variable.path.startswith(_prefix(at)):
                variable.assign(member[variable.path.removeprefix(_prefix(at))])
    # The mix stands in the weights: TensorFlow would multiply it in when it exports, and round once more.
    weights = mix.linear * linear.weights / linear.spread
    bias = mix.offset + mix.linear * linear.bias - float(linear.mean @ weights)
    network.get_layer("linear").set_weights([weights[:, np.newaxis], np.array([bias])])
    network.get_layer("distance").set_weights(_Distance.weights_for(familiar))
    for variable in network.weights:
        variable.assign(ops.convert_to_numpy(variable.value).astype(np.float16).astype(np.float32))
    return network


def _mean(tensors: list[keras.KerasTensor]) -> keras.KerasTensor:
    return keras.layers.Average()(tensors) if len(tensors) > 1 else tensors[0]


def _prefix(member: int) -> str:
    return f"member{member}_"


# --- layers that Keras does not have ----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("osteon")
class Mirrored(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """One image as two, (2, rows, columns, channels): as it is, and with left and right exchanged."""

    def call(self, image: keras.KerasTensor) -> keras.KerasTensor:
        return ops.concatenate([image, ops.flip(image, axis=2)], axis=0)


@keras.saving.register_keras_serializable("osteon")
class AsItIs(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """What was found in the image, without its mirror image's."""

    def call(self, pair: keras.KerasTensor) -> keras.KerasTensor:
        return pair[:1]


@keras.saving.register_keras_serializable("osteon")
class Unmirrored(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """The mean of what was found in an image and in its mirror image, in the place where the image shows it."""

    def call(self, pair: keras.KerasTensor) -> keras.KerasTensor:
        return (pair[:1] + ops.flip(pair[1:], axis=2)) / 2


@keras.saving.register_keras_serializable("osteon")
class _Distance(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """`Familiar.distances` as a layer."""

    def __init__(self, components: int, **options: object) -> None:
        super().__init__(**options)
        self._components = components

    def build(self, shape: tuple[int | None, ...]) -> None:
        features = shape[-1]
        self.mean = self.add_weight(name="mean", shape=(features,))
        self.scale = self.add_weight(name="scale", shape=(features,))
        self.along = self.add_weight(name="along", shape=(features, self._components))
        super().build(shape)

    @staticmethod
    def weights_for(known: Familiar) -> list[_Floats]:
        """Return what `set_weights` takes. Everything is scaled so that squares of order 1 are added up."""
        scale = 1 / np.sqrt(known.rest * len(known.mean))
        # The components' variances exceed the rest's, so that each takes something away.
        less = np.sqrt(1 - known.rest / known.variances)
        return [known.mean, scale / known.spread, known.components * less]

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        standard = (features - self.mean) * self.scale
        all_alike = ops.sum(standard**2, axis=-1, keepdims=True)
        less = ops.sum(ops.matmul(standard, self.along) ** 2, axis=-1, keepdims=True)
        return ops.sqrt(ops.maximum(all_alike - less, 0.0))

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "components": self._components}
