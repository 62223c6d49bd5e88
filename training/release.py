"""Turns the finalist's runs into a bundle: join, export, calibrate on the folds, measure once on the test split.

Every fold's reader is joined and exported exactly as the released one and read by the worker's own predictor: what
comes out for the fold it did not learn from gives the mix, the calibration, the operating points, the heatmap's regions
and the gate's limit, all before the test split is read.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from dicom_node.pixels import PIPELINE_VERSION, ModelInput
from models.clock import now
from training import calibrate, compare, data, evaluate, finalist, fit, negatives, plots, reader, words
from training.bundles import written
from training.evaluate import Outcomes
from training.export import exported
from training.recipe import Recipe
from worker.bundle import (
    Calibration,
    Card,
    Code,
    ComparedArchitecture,
    Finding,
    Gate,
    Heatmap,
    InputSize,
    Metrics,
    OperatingPoints,
    Temperature,
    TemperatureParameters,
)
from worker.predictor import Predictor
from worker.regions import Scores, locate

TOLERANCE = 1e-4
"""Largest difference accepted between Keras and the exported file, in the probability and in every score of the map."""
COMPARED = 100
"""So many images are read by both."""
REFUSED = 0.001
"""Share of the folds' images that the gate's limit refuses. One in 100 is allowed, and images to come lie further out:
a limit that refused 0.005 of the folds refused 0.012 of the test split."""
SHARES = tuple(round(0.05 * step, 2) for step in range(4, 20))
"""The regions' shares of the peak's score that are tried, see `Heatmap`."""
CROSS_VALIDATION = (
    "FracAtlas, training split: each fold read by the reader that did not learn from it. Calibration, operating "
    "points, the mix of the reader's parts and the gate's limit were fitted to these same readings"
)
FEATURES, KERAS_MODEL = "features.npz", "reader.keras"

_Floats = npt.NDArray[np.float64]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `release` takes."""
    parser.add_argument("reader", type=Path, help="folder of the reader, as cross-validate leaves it")
    parser.add_argument("bundle", type=Path, help="the new folder, e.g. worker/bundles/NAME-VERSION")
    parser.add_argument("--members", type=int, default=None, help="how many members to join (all that are fitted)")
    parser.add_argument("--comparison", type=Path, help="comparison.json of `compare`, for the card's table")
    parser.add_argument(
        "--test-reads",
        type=int,
        help="how often the test split was read to measure a release, this one included; without it the folds are "
        "measured, test is not read, and no bundle is written",
    )


def run(options: argparse.Namespace) -> None:
    """Measure the folds and, when told how often test was read, release."""
    if options.bundle.exists():
        raise SystemExit(f"{options.bundle} exists; a released bundle is never overwritten.")
    parts = Parts.read(options.reader, options.data, options.members)
    choices = choose(parts)
    print(evaluate.table(choices.measured), flush=True)
    print(f"Regions: cells from {choices.region_share:.0%} of the peak's score; gate: {choices.refuse_above:.3f}")
    if options.test_reads is None:
        print("Test was not read and nothing was released: give --test-reads.")
        return
    compared = () if options.comparison is None else compare.read(options.comparison)
    release(parts, choices, options.bundle, options.data, compared=compared, test_reads=options.test_reads)


# --- what is joined ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that a reader is joined from, for every fold and for the release.

    Attributes
    ----------
    folder
        Of the reader.
    recipe
        Of its members.
    members
        How many.
    samples
        The training split, in the manifest's order.
    features
        float32 (n, f): the frozen features of the samples.
    """

    folder: Path
    recipe: Recipe
    members: int
    samples: tuple[data.Sample, ...]
    features: npt.NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path, root: Path, members: int | None) -> Parts:
        """Read a reader's folder; the frozen features are computed once and kept there. Raises ValueError."""
        recipe = Recipe.read(folder / fit.RECIPE)
        samples = tuple(sample for sample in data.read_fracatlas(root) if sample.fold is not None)
        fitted = finalist.members_of(folder)
        return cls(folder, recipe, members or fitted, samples, features_of(samples, recipe.size, folder))

    @property
    def labels(self) -> _Floats:
        return data.labels(self.samples).astype(np.float64)

    @property
    def folds(self) -> npt.NDArray[np.intp]:
        return np.array([sample.fold for sample in self.samples], dtype=np.intp)

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        return np.array([sample.group for sample in self.samples], dtype=np.str_)

    def joined(self, fold: int | None, mix: reader.Mix) -> keras.Model:
        """Return the reader that did not learn from `fold`, or the one that learnt from all."""
        learnt = self.folds != (-1 if fold is None else fold)
        features, labels = self.features[learnt], self.labels[learnt]
        return reader.joined(
            self.recipe,
            [_weights(finalist.run_folder(self.folder, at, fold)) for at in range(self.members)],
            reader.fit_linear(features, labels),
            reader.fit_familiar(features),
            mix,
        )

    def linear_logits(self) -> _Floats:
        """Return what the linear reader says of each sample, fitted to the other folds."""
        logits = np.zeros(len(self.samples))
        for fold in finalist.FOLDS:
            held_out = self.folds == fold
            fitted = reader.fit_linear(self.features[~held_out], self.labels[~held_out])
            logits[held_out] = fitted.logits(self.features[held_out])
        return logits


def features_of(samples: Sequence[data.Sample], size: tuple[int, int], folder: Path) -> npt.NDArray[np.float32]:
    """Return the frozen features, float32 (n, f), from `folder`, or compute and keep them there."""
    of = hashlib.sha256(f"{size} {[sample.sha256 for sample in samples]}".encode()).hexdigest()
    if (folder / FEATURES).exists():
        with np.load(folder / FEATURES, allow_pickle=False) as kept:
            if str(kept["of"]) == of:
                return np.asarray(kept["features"])
    network = reader.feature_network(size)
    inputs = fit.examples_of(list(samples), size).inputs
    bar = keras.utils.Progbar(len(samples))
    features = []
    for start in range(0, len(samples), 32):
        features.append(np.asarray(network.predict_on_batch(inputs[start : start + 32].astype(np.float32))))
        bar.update(min(start + 32, len(samples)))
    found = np.concatenate(features).astype(np.float32)
    fit.write(folder / FEATURES, _npz(of=np.array(of), features=found))
    return found


def _weights(run: Path) -> dict[str, npt.NDArray[np.float32]]:
    with np.load(run / fit.WEIGHTS, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


# --- what the folds choose --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Choices:
    """What was chosen on the folds, and what the folds then measure."""

    mix: reader.Mix
    calibration: calibrate.Chosen
    points: OperatingPoints
    region_share: float
    refuse_above: float
    measured: Metrics
    outcomes: Outcomes


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """What the fold's reader says of one image: its members' logit, the map and the distance."""

    logit: float
    distance: float
    peak: tuple[float, float]
    overlaps: tuple[float, ...]
    """Of the region with the nearest fracture box (intersection over union), for each of `SHARES`; none without one."""
    milliseconds: float


def choose(parts: Parts) -> Choices:
    """Read every fold with the reader that did not learn from it, and choose."""
    rows: list[_HeldOut | None] = [None] * len(parts.samples)
    members_alone = reader.Mix(offset=0.0, members=1.0, linear=0.0)
    with tempfile.TemporaryDirectory() as scratch:
        for fold in finalist.FOLDS:
            card = _card("fold", str(fold), parts, _unmeasured())
            model = exported(parts.joined(fold, members_alone))
            predictor = Predictor.load(written(Path(scratch) / str(fold), model, card), num_threads=2)
            places = np.flatnonzero(parts.folds == fold)
            print(f"Reading fold {fold}", flush=True)
            bar = keras.utils.Progbar(len(places))
            for done, at in enumerate(places, 1):
                rows[at] = _held_out(predictor, parts.samples[at])
                bar.update(done)
    read = [row for row in rows if row is not None]
    labels, logits = parts.labels, np.array([row.logit for row in read])
    linear = parts.linear_logits()
    mix = reader.fit_mix(logits[np.newaxis], linear, labels)
    mixed = mix.logits(logits[np.newaxis], linear)
    calibration = calibrate.chosen(mixed, labels, parts.folds)
    probabilities = calibrate.probabilities(calibration.calibration, mixed)
    points = calibrate.operating_points(probabilities, labels, parts.groups)
    distances = np.array([row.distance for row in read])
    refuse_above = float(np.quantile(distances, 1 - REFUSED))
    outcomes = Outcomes.of(
        parts.samples,
        mixed,
        probabilities,
        peaks=[row.peak for row in read],
        fixed=evaluate.fixed_point(parts.samples),
        refused=distances > refuse_above,
        milliseconds=[row.milliseconds for row in read],
    )
    for name, part in (("members", logits), ("linear reader", linear), ("mixed", mixed)):
        each = [evaluate.auc(part[parts.folds == fold], labels[parts.folds == fold]) for fold in finalist.FOLDS]
        print(f"{name:15} AUC of each fold {' '.join(f'{one:.4f}' for one in each)}, mean {np.mean(each):.4f}")
    print(f"{mix}; {calibration}; {points}", flush=True)
    overlaps = np.array([row.overlaps for row in read if row.overlaps])
    return Choices(
        mix=mix,
        calibration=calibration,
        points=points,
        region_share=SHARES[int(overlaps.mean(axis=0).argmax())],
        refuse_above=refuse_above,
        measured=evaluate.metrics(outcomes, points, dataset=CROSS_VALIDATION),
        outcomes=outcomes,
    )


def _held_out(predictor: Predictor, sample: data.Sample) -> _HeldOut:
    image = data.prepared(sample, predictor.size)
    reading = predictor.read(image)
    finding = reading.findings[0]
    assert finding.peak is not None  # noqa: S101 (its card has a heatmap)
    assert reading.distance is not None  # noqa: S101 (its card has a gate)
    return _HeldOut(
        logit=finding.logit,
        distance=reading.distance,
        peak=(finding.peak.x / image.source_columns, finding.peak.y / image.source_rows),
        overlaps=_overlaps(reading.heatmaps[0], image, sample),
        milliseconds=reading.milliseconds,
    )


def _overlaps(scores: Scores, image: ModelInput, sample: data.Sample) -> tuple[float, ...]:
    width, height = image.source_columns, image.source_rows
    boxes = [(box.xmin * width, box.ymin * height, box.xmax * width, box.ymax * height) for box in sample.boxes]
    if not boxes:
        return ()
    regions = [locate(scores, image, share)[1].box for share in SHARES]
    return tuple(max(overlap(region, box) for box in boxes) for region in regions)


def overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Return the intersection over union of two boxes (xmin, ymin, xmax, ymax)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if sum(areas) > shared else 0.0


# --- the release ------------------------------------------------------------------------------------------------------


def release(
    parts: Parts,
    choices: Choices,
    bundle: Path,
    root: Path,
    *,
    compared: Sequence[ComparedArchitecture],
    test_reads: int,
) -> None:
    """Write the bundle, named NAME-VERSION, and beside the runs the Keras network it came from.

    Raises ValueError when the exported file differs from the network by more than `TOLERANCE`.
    """
    name, _, number = bundle.name.rpartition("-")
    network = parts.joined(None, choices.mix)
    network.save(parts.folder / KERAS_MODEL)
    model = exported(network)
    card = _card(name, number, parts, _unmeasured(), choices=choices).model_copy(
        update={"cross_validation": choices.measured, "comparison": tuple(compared)}
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = written(Path(scratch) / bundle.name, model, card)
        predictor = Predictor.load(folder, num_threads=2)
        difference, seconds = _compared(network, predictor, parts)
        print(f"Keras and LiteRT differ by at most {difference:.2e}")
        print(f"One image: Keras predict {seconds['keras'] * 1000:.1f} ms, LiteRT {seconds['litert'] * 1000:.1f} ms")
        if not difference <= TOLERANCE:
            raise ValueError(f"The exported file differs from the network by {difference:.2e}.")
        tried = tuple(negatives.refusals(predictor, choices.refuse_above))
        for negative in tried:
            print(f"{negative.name}: {negative.refused} of {negative.images} refused")
        # Every choice is made: now, and only now, the test split.
        test = evaluate.measure(folder, root, threads=2)
    refused = test.outcomes.refused
    assert refused is not None  # noqa: S101 (the bundle has a gate)
    gate = _gate(choices).model_copy(
        update={
            "negatives": tried,
            "false_refusals": test.metrics.values["share_refused"],
            "accepted_images": len(refused),
            "accepted_refused": int(refused.sum()),
        }
    )
    measured = test.metrics.model_copy(update={"test_reads": test_reads})
    print(evaluate.table(measured))
    print(evaluate.timing(test.outcomes), flush=True)
    pictures = parts.folder / "plots"
    drawn = plots.write(pictures, test.outcomes, measured, choices.points)
    card = card.model_copy(update={"gate": gate, "metrics": measured})
    written(bundle, model, card, {path.name: path.read_bytes() for path in drawn})
    plots.worst_mistakes(parts.folder / "worst-mistakes.png", Predictor.load(bundle), replace(test, metrics=measured))
    print(f"{bundle}: {sum(path.stat().st_size for path in bundle.iterdir()) / 1e6:.1f} MB")


def _compared(network: keras.Model, predictor: Predictor, parts: Parts) -> tuple[float, dict[str, float]]:
    """Return the largest difference in the probability and the map, and the median seconds of either."""
    calibration = predictor.bundle.card.findings[0].calibration
    largest, seconds = 0.0, {"keras": list[float](), "litert": list[float]()}
    for sample in parts.samples[:: max(1, len(parts.samples) // COMPARED)]:
        image = data.prepared(sample, predictor.size)
        inputs = image.pixels[np.newaxis, :, :, np.newaxis].astype(np.float32)
        begun = time.perf_counter()
        outputs = network.predict(inputs, verbose=0)
        seconds["keras"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        reading = predictor.read(image)
        seconds["litert"].append(time.perf_counter() - begun)
        differences = (
            abs(calibration.probability(float(outputs["logits"][0, 0])) - reading.findings[0].probability),
            float(np.abs(outputs["map"][0, :, :, 0] - reading.heatmaps[0]).max()),
        )
        largest = max(largest, *differences)
    return largest, {name: float(np.median(times)) for name, times in seconds.items()}


def _npz(**arrays: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type] # names, no options
    return file.getvalue()


# --- the card ---------------------------------------------------------------------------------------------------------


def _card(name: str, number: str, parts: Parts, measured: Metrics, *, choices: Choices | None = None) -> Card:
    """Return the card; without choices that of a fold's reader, which only has to be read."""
    rows, columns = parts.recipe.size
    return Card(
        schema_version=1,
        name=name,
        version=number,
        created=now().replace(microsecond=0),
        input=InputSize(rows=rows, columns=columns, pipeline_version=PIPELINE_VERSION),
        image_modalities=("CR", "DX"),
        findings=(
            _finding(OperatingPoints(absent_below=0, present_from=1), _UNCALIBRATED)
            if choices is None
            else _finding(choices.points, choices.calibration.calibration),
        ),
        intended_use=words.INTENDED_USE,
        training_data=words.TRAINING_DATA,
        metrics=measured,
        software={
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "ai-edge-litert", "numpy", "pillow")},
        },
        heatmap=Heatmap(
            rows=rows // 16, columns=columns // 16, region_share=1.0 if choices is None else choices.region_share
        ),
        gate=_NO_GATE if choices is None else _gate(choices),
    )


def _gate(choices: Choices) -> Gate:
    return Gate(
        refuse_above=choices.refuse_above,
        method=words.GATE_METHOD,
        negatives=(),
        accepted_images=0,
        accepted_refused=0,
    )


def _finding(points: OperatingPoints, calibration: Calibration) -> Finding:
    return Finding(
        code=Code(value="125605004", scheme="SCT", meaning="Fracture of bone"),
        output=0,
        operating_points=points,
        calibration=calibration,
    )


_UNCALIBRATED = Temperature(parameters=TemperatureParameters(temperature=1.0))
_NO_GATE = Gate(refuse_above=1e9, method="none", negatives=(), accepted_images=0, accepted_refused=0)


def _unmeasured() -> Metrics:
    return Metrics(dataset="not measured", images=0, positives=0, groups=0, interval="none", values={})
