"""Turns a run into a bundle: export, calibrate on the validation fold, measure once on the test split, write the card.

Calibration, thresholds and figures all come from the exported file read by the worker's own predictor, so that the card
describes the file that is served and not the network it came from.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dicom_node.pixels import PIPELINE_VERSION
from models.clock import now
from training import calibrate, data, evaluate
from training.fit import Settings, load_run
from worker.bundle import (
    CARD,
    MODEL,
    SUMS,
    Ages,
    Card,
    Code,
    Finding,
    InputSize,
    IntendedUse,
    Metrics,
    OperatingPoints,
    Platt,
    PlattParameters,
    TrainingData,
)
from worker.predictor import Predictor

TOLERANCE = 0.05
"""Largest difference of a logit between Keras and the exported file that is accepted: half precision keeps 11 bits of
each weight, and the sums here have up to 36,992 terms."""


def release(run: Path, bundle: Path, root: Path) -> None:
    """Write the bundle of the run in the folder `run` to the folder `bundle`, named NAME-VERSION.

    Raises ValueError when `bundle` exists already (a release is never overwritten), or when the exported file differs
    from the network by more than `TOLERANCE`.
    """
    if bundle.exists():
        raise ValueError(f"{bundle} exists; a released bundle is never overwritten.")
    name, _, number = bundle.name.rpartition("-")
    settings, network = load_run(run)
    parts = data.split(data.read_fracatlas(root), validation_fold=settings.validation_fold)
    model = exported(network)

    with tempfile.TemporaryDirectory() as scratch:
        unread = _finding(OperatingPoints(absent_below=0, present_from=1), _platt(1.0, 0.0))
        card = _card(name, number, settings, unread, _unmeasured())
        predictor = Predictor.load(_written(Path(scratch) / "raw", model, card))
        validation = evaluate.outcomes(predictor, parts.validation)
        difference = _difference(network, parts.validation, settings, validation)
        print(f"Keras and LiteRT differ by at most {difference:.4f} in a logit", flush=True)
        if not difference <= TOLERANCE:
            raise ValueError(f"The exported file differs from the network by {difference:.4f} in a logit.")

        calibration = calibrate.platt(validation.logits, validation.labels)
        probabilities = np.array([calibration.probability(float(logit)) for logit in validation.logits])
        finding = _finding(calibrate.operating_points(probabilities, validation.labels), calibration)
        card = card.model_copy(update={"findings": (finding,)})
        # Every choice is made: now, and only now, the test split.
        measured = evaluate.evaluate(_written(Path(scratch) / "calibrated", model, card), root)
    print(evaluate.table(measured), flush=True)
    _written(bundle, model, card.model_copy(update={"metrics": measured}))


def exported(network: keras.Model) -> bytes:
    """Return the network as a LiteRT file with a fixed input of one image and half-precision weights."""
    grey = keras.Input(batch_shape=(1, *network.input_shape[1:]), name="grey")
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(grey, network(grey, training=False)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def _difference(
    network: keras.Model, samples: tuple[data.Sample, ...], settings: Settings, served: evaluate.Outcomes
) -> float:
    inputs, _ = data.arrays(samples, settings.size)
    logits = network.predict(inputs.astype(np.float32), batch_size=64, verbose=0)[:, 0]
    return float(np.abs(logits - served.logits).max())


def _written(folder: Path, model: bytes, card: Card) -> Path:
    """Write a bundle: the files, then the sums as `sha256sum` writes them."""
    folder.mkdir(parents=True)
    contents = {CARD: (card.model_dump_json(indent=2) + "\n").encode(), MODEL: model}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    (folder / SUMS).write_text("".join(sums), encoding="ascii")
    return folder


# --- the words of the card --------------------------------------------------------------------------------------------


def _card(name: str, number: str, settings: Settings, finding: Finding, measured: Metrics) -> Card:
    return Card(
        schema_version=1,
        name=name,
        version=number,
        created=now().replace(microsecond=0),
        input=InputSize(rows=settings.rows, columns=settings.columns, pipeline_version=PIPELINE_VERSION),
        image_modalities=("CR", "DX"),
        findings=(finding,),
        intended_use=INTENDED_USE,
        training_data=(_fracatlas(settings),),
        metrics=measured,
        software={
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "ai-edge-litert", "numpy", "pillow")},
        },
    )


def _finding(points: OperatingPoints, calibration: Platt) -> Finding:
    return Finding(
        code=Code(value="125605004", scheme="SCT", meaning="Fracture of bone"),
        output=0,
        operating_points=points,
        calibration=calibration,
    )


def _platt(slope: float, intercept: float) -> Platt:
    return Platt(parameters=PlattParameters(slope=slope, intercept=intercept))


def _unmeasured() -> Metrics:
    return Metrics(dataset="not measured", images=0, positives=0, groups=0, interval="none", values={})


def _fracatlas(settings: Settings) -> TrainingData:
    return TrainingData(
        name="FracAtlas",
        citation=(
            "Abedeen I. et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of "
            "Musculoskeletal Radiographs, Scientific Data 10, 521 (2023); figshare, doi:10.6084/m9.figshare.22363012"
        ),
        licence="CC BY 4.0",
        attribution=(
            "FracAtlas by Abedeen et al., CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Changes: reduced "
            "to 512 px, contradictory labels and near-duplicates across splits left out."
        ),
        split=(
            f"Fitted on the training split without fold {settings.validation_fold}; epoch, calibration and operating "
            f"points chosen on fold {settings.validation_fold}; measured on the test split. Whole groups of "
            "neighbouring images throughout."
        ),
    )


INTENDED_USE = IntendedUse(
    statement=(
        "To show that a study travels the whole way through Osteon, and as the baseline for better models. It gives a "
        "second opinion on one radiograph of the limbs, hip or shoulder. Not for primary diagnosis, not to rule a "
        "fracture out, not a medical device."
    ),
    # Defined terms of PS3.16 Annex L for what FracAtlas shows (its "hand" reaches up to the humerus, its "leg" from the
    # thigh to the toes), then three forms that scanners send for the same.
    body_parts=(
        *("HAND", "FINGER", "THUMB", "WRIST", "RADIUS", "ULNA", "RADIUSULNA", "ELBOW", "ARM", "HUMERUS"),
        *("SHOULDER", "CLAVICLE", "SCAPULA"),
        *("HIP", "PELVIS", "FEMUR", "THIGH"),
        *("LEG", "KNEE", "PATELLA", "TIBIA", "FIBULA", "TIBIAFIBULA", "ANKLE", "CALCANEUS", "FOOT", "TOE"),
        "EXTREMITY",
        *("FOREARM", "LOWERLEG", "TIBFIB"),
    ),
    # Open growth plates look like fractures. FracAtlas holds children's images and does not say which they are, so that
    # no figure exists for them.
    ages=Ages(from_years=18),
    limits=(
        "A weak model: it misses fractures and calls sound bones broken; see the metrics and their intervals.",
        "It sees 150 × 150 pixels; the median fracture covers 0.5 % of its image, so fine fractures are mostly lost.",
        "One source (three hospitals of one country, published together); no other hospital's images were tried.",
        "Ages in the data are unknown, children among them: nothing was measured on children, whose open growth plates "
        "may look like fractures or hide them. Stated ages below 18 are not read; images without an age are.",
        "Nearly all training images with plates or screws are fractured: hardware alone raises the probability.",
        "Patients are not identified in the data; groups of neighbouring images stand in for them.",
        "The operating points were chosen on one fold of 550 images; on the test split they differ from their aims.",
        "It does not say where a fracture is, how old it is, or of what kind.",
        "Few images of hip and shoulder; skull, spine, ribs, chest and teeth are outside its use.",
        "Trained on 8-bit JPEG pictures; that DICOM images of the same radiographs are read alike was shown on copies "
        "of its own test pictures, not on images of a detector.",
    ),
)
