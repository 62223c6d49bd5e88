"""Measures a bundle as it is served: its own file, through the worker's predictor, on images nothing was chosen on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Sample, prepared, read_fracatlas, split
from worker.bundle import Metric, Metrics, OperatingPoints
from worker.predictor import Predictor

_Values = npt.NDArray[np.float64]

RESAMPLES = 2000
INTERVAL = f"95%, percentiles of {RESAMPLES} bootstrap resamples of whole groups"


@dataclass(frozen=True)
class Outcomes:
    """What a bundle said about some images, and the truth; arrays of one length.

    Attributes
    ----------
    logits, probabilities
        float64; the probabilities are calibrated.
    labels
        float64; 1 is fractured.
    groups
        Which images belong together.
    hardware
        Which images show plates, screws or the like.
    """

    logits: _Values
    probabilities: _Values
    labels: _Values
    groups: npt.NDArray[np.str_]
    hardware: npt.NDArray[np.bool_]

    def only(self, kept: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Outcomes:
        """Return the outcomes of some of the images."""
        return Outcomes(
            self.logits[kept], self.probabilities[kept], self.labels[kept], self.groups[kept], self.hardware[kept]
        )


def outcomes(predictor: Predictor, samples: Sequence[Sample]) -> Outcomes:
    """Read every picture with the predictor, as the worker would."""
    readings = [predictor.read(prepared(sample, predictor.size)).findings[0] for sample in samples]
    return Outcomes(
        logits=np.array([reading.logit for reading in readings]),
        probabilities=np.array([reading.probability for reading in readings]),
        labels=np.array([float(sample.fractured) for sample in samples]),
        groups=np.array([sample.group for sample in samples]),
        hardware=np.array([sample.hardware for sample in samples]),
    )


def evaluate(bundle: Path, root: Path) -> Metrics:
    """Measure the bundle in the folder `bundle` on the FracAtlas test split. Raises BundleError."""
    predictor = Predictor.load(bundle)
    test = split(read_fracatlas(root), validation_fold=0).test
    return metrics(outcomes(predictor, test), predictor.bundle.card.findings[0].operating_points)


def metrics(measured: Outcomes, points: OperatingPoints) -> Metrics:
    """Return every figure of the card with its interval."""
    figures = _figures(points)
    return Metrics(
        dataset="FracAtlas, test split (whole groups), used after every choice was made",
        images=len(measured.labels),
        positives=int(measured.labels.sum()),
        groups=len(np.unique(measured.groups)),
        interval=INTERVAL,
        values=with_intervals(measured, figures),
    )


def _figures(points: OperatingPoints) -> dict[str, Callable[[Outcomes], float]]:
    low, high = points.absent_below, points.present_from
    return {
        "auc": lambda o: auc(o.probabilities, o.labels),
        "auc_without_hardware": lambda o: auc(o.probabilities[~o.hardware], o.labels[~o.hardware]),
        "sensitivity_at_absent_below": lambda o: _share(o.probabilities >= low, o.labels == 1),
        "specificity_at_absent_below": lambda o: _share(o.probabilities < low, o.labels == 0),
        "sensitivity_at_present_from": lambda o: _share(o.probabilities >= high, o.labels == 1),
        "specificity_at_present_from": lambda o: _share(o.probabilities < high, o.labels == 0),
        "share_undetermined": lambda o: float(((o.probabilities >= low) & (o.probabilities < high)).mean()),
        "brier_score": lambda o: float(((o.probabilities - o.labels) ** 2).mean()),
        "expected_calibration_error": lambda o: expected_calibration_error(o.probabilities, o.labels),
    }


def with_intervals(
    measured: Outcomes, figures: Mapping[str, Callable[[Outcomes], float]], *, resamples: int = RESAMPLES, seed: int = 1
) -> dict[str, Metric]:
    """Return each figure with its 95 % bootstrap interval.

    Whole groups are drawn, not images: neighbours resemble each other, and drawing them singly would make the interval
    too narrow. Draws on which a figure is not defined (no fracture drawn) do not count for it.
    """
    random = np.random.default_rng(seed)
    names, group_of = np.unique(measured.groups, return_inverse=True)
    members = [np.flatnonzero(group_of == at) for at in range(len(names))]
    drawn: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(resamples):
        chosen = random.integers(0, len(members), len(members))
        resample = measured.only(np.concatenate([members[at] for at in chosen]))
        for name, figure in figures.items():
            drawn[name].append(figure(resample))
    result = {}
    for name, figure in figures.items():
        value = figure(measured)
        low, high = np.nanpercentile(drawn[name], [2.5, 97.5])
        # A biased figure (calibration error grows with resampling) may lie outside its percentiles.
        result[name] = Metric(value=round(value, 4), low=round(min(low, value), 4), high=round(max(high, value), 4))
    return result


def auc(scores: _Values, labels: _Values) -> float:
    """Area under the ROC curve: how often a fracture scores above no fracture, ties half. NaN without both classes."""
    positives, negatives = scores[labels == 1], np.sort(scores[labels == 0])
    if not len(positives) or not len(negatives):
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left")
    up_to = np.searchsorted(negatives, positives, side="right")
    return float((below + up_to).mean() / 2 / len(negatives))


def expected_calibration_error(probabilities: _Values, labels: _Values, bins: int = 10) -> float:
    """Mean distance between what was said and what was true, over bins of equal size (Naeini et al., AAAI 2015)."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(float(probabilities[part].mean() - labels[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(probabilities)


def _share(right: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float:
    return float(right[of].mean()) if of.any() else float("nan")


def table(measured: Metrics) -> str:
    """Return the figures as lines of text."""
    head = f"{measured.images} images, {measured.positives} with a fracture, {measured.groups} groups"
    lines = [f"{name:32} {m.value:.3f}  [{m.low:.3f}, {m.high:.3f}]" for name, m in measured.values.items()]
    return "\n".join([head, *lines, f"Intervals: {measured.interval}."])
