"""Measures a bundle as it is served: its own file, through the worker's predictor, on images nothing was chosen on.

`python -m training evaluate BUNDLE` prints every figure with its interval and writes them with plots and a sheet of the
worst mistakes into a folder. The test split is read once for a release; while choosing, `--split fold-N` reads a fold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_node.pixels import NotAnalysable
from training.data import REGIONS, VIEWS, Sample, prepared, read_fracatlas
from training.metrics import (
    INTERVAL,
    NEAR,
    RESAMPLES,
    Draws,
    Flags,
    Share,
    Values,
    auc,
    distance_to_boxes,
    draw,
    expected_calibration_error,
    interval,
    mean_centre,
    npv,
    ppv,
)
from worker.bundle import Code, FindingScores, Metric, Metrics, OperatingPoints, ScoreDistribution, Subgroup
from worker.predictor import Predictor, Reading

__all__ = [
    "Evaluation",
    "Outcomes",
    "auc",
    "configure",
    "evaluate",
    "expected_calibration_error",
    "fixed_point",
    "measure",
    "metrics",
    "outcomes",
    "run",
    "score_distribution",
    "table",
    "with_intervals",
]

PREVALENCES = (2, 5, 10, 20)
"""In percent of the images: where PPV and NPV are stated. That of FracAtlas, 17 %, is nobody's in particular."""

EDGES = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
"""Between these scores are counted. Round numbers, chosen before any were counted, and closer where most scores are: in
bins of one width half of all images would lie in the first."""

TEST = "FracAtlas, test split (whole groups), used after every choice was made"
FOLD = "FracAtlas, fold {} of the training split: nothing may be claimed where the model was fitted or chosen on it"


# --- what was said, and the truth -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a model said about some images, and the truth; arrays of one length. `Outcomes.of` makes it of samples.

    Attributes
    ----------
    logits, probabilities
        float64; the probabilities are calibrated. NaN where the pixel pipeline refused the image.
    labels
        float64; 1 is fractured.
    groups
        Which images belong together.
    hardware, multiscan
        Which images show plates, screws or the like; which show more than one exposure.
    regions, views
        Which images show a region of the body, and in which views; an image may be in several.
    distances, fixed_distances
        float64: how far the heatmap's peak, and a point that is always the same, lie from the nearest fracture box, see
        `metrics.distance_to_boxes`. NaN where there is no box or no heatmap.
    refused
        Which images the gate refused, by their pixels or by their features. Where a probability is known in spite of
        that, the image counts in every figure: refusing the difficult ones must not make a figure better.
    milliseconds
        float64: the time for one image with peak and region, without reading the file and preparing its pixels.
    """

    logits: Values
    probabilities: Values
    labels: Values
    groups: npt.NDArray[np.str_]
    hardware: Flags
    multiscan: Flags | None = None
    regions: Mapping[str, Flags] = field(default_factory=dict)
    views: Mapping[str, Flags] = field(default_factory=dict)
    distances: Values | None = None
    fixed_distances: Values | None = None
    refused: Flags | None = None
    milliseconds: Values | None = None

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        logits: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        *,
        peaks: npt.ArrayLike | None = None,
        fixed: tuple[float, float] | None = None,
        refused: npt.ArrayLike | None = None,
        milliseconds: npt.ArrayLike | None = None,
    ) -> Self:
        """Join what was said about samples with what the manifest says of them.

        Parameters
        ----------
        peaks
            Shape (n, 2): x, y of each heatmap's peak as fractions of the picture's width and height.
        fixed
            The point that is always the same, see `fixed_point`.
        """
        points = None if peaks is None else np.asarray(peaks, dtype=np.float64)
        return cls(
            logits=np.asarray(logits, dtype=np.float64),
            probabilities=np.asarray(probabilities, dtype=np.float64),
            labels=np.array([sample.fractured for sample in samples], dtype=np.float64),
            groups=np.array([sample.group for sample in samples], dtype=np.str_),
            hardware=np.array([sample.hardware for sample in samples], dtype=np.bool_),
            multiscan=np.array([sample.multiscan for sample in samples], dtype=np.bool_),
            regions={name: np.array([name in sample.regions for sample in samples]) for name in REGIONS},
            views={name: np.array([name in sample.views for sample in samples]) for name in VIEWS},
            distances=None if points is None else _distances(samples, points),
            fixed_distances=None if fixed is None else _distances(samples, np.tile(fixed, (len(samples), 1))),
            refused=None if refused is None else np.asarray(refused, dtype=np.bool_),
            milliseconds=None if milliseconds is None else np.asarray(milliseconds, dtype=np.float64),
        )

    def only(self, kept: Flags | npt.NDArray[np.intp]) -> Self:
        """Return the outcomes of some of the images."""
        changed: dict[str, object] = {}
        for one in fields(self):
            held = getattr(self, one.name)
            if isinstance(held, Mapping):
                changed[one.name] = {name: flags[kept] for name, flags in held.items()}
            elif held is not None:
                changed[one.name] = held[kept]
        return replace(self, **changed)  # type: ignore[arg-type]  # the names are its own fields'

    @property
    def read(self) -> Flags:
        """Which images the model said something about."""
        return np.isfinite(self.probabilities)


def fixed_point(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the mean centre of all fracture boxes of the training split, as fractions of width and height.

    The baseline of the pointing game: whoever always points there knows where radiographs show fractures, and has seen
    none of them.
    """
    return mean_centre(corners for sample in samples if sample.split == "train" for corners in _corners(sample))


def _distances(samples: Sequence[Sample], points: Values) -> Values:
    return np.array([_distance(sample, point) for sample, point in zip(samples, points, strict=True)])


def _distance(sample: Sample, point: Values) -> float:
    if not sample.boxes or not np.isfinite(point).all():
        return float("nan")
    with Image.open(sample.path) as picture:
        size = picture.size
    return distance_to_boxes((float(point[0]), float(point[1])), _corners(sample), size)


def _corners(sample: Sample) -> list[tuple[float, float, float, float]]:
    return [(box.xmin, box.ymin, box.xmax, box.ymax) for box in sample.boxes]


# --- reading images with a bundle -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A bundle measured on a split: the figures, and what they were computed from."""

    metrics: Metrics
    outcomes: Outcomes
    samples: tuple[Sample, ...]
    points: OperatingPoints


def measure(bundle: Path, root: Path, *, part: str = "test", threads: int = 1) -> Evaluation:
    """Measure the bundle in the folder `bundle` on a split of FracAtlas: "test", or a fold, "fold-0" to "fold-4".

    Raises BundleError, and ValueError for another split.
    """
    everything = read_fracatlas(root)
    samples = samples_of(everything, part)
    predictor = Predictor.load(bundle, num_threads=threads)
    points = predictor.bundle.card.findings[0].operating_points
    measured = outcomes(predictor, samples, fixed=fixed_point(everything))
    text = TEST if part == "test" else FOLD.format(part.removeprefix("fold-"))
    spread = score_distribution(measured, points, predictor.bundle.card.findings[0].code)
    found = metrics(measured, points, dataset=text).model_copy(update={"score_distribution": spread})
    return Evaluation(found, measured, samples, points)


def evaluate(bundle: Path, root: Path) -> Metrics:
    """Measure the bundle in the folder `bundle` on the FracAtlas test split. Raises BundleError."""
    return measure(bundle, root).metrics


def samples_of(samples: Sequence[Sample], part: str) -> tuple[Sample, ...]:
    """Return the images of a split, in the manifest's order. Raises ValueError when there is none of that name."""
    kept = tuple(sample for sample in samples if part == ("test" if sample.fold is None else f"fold-{sample.fold}"))
    if not kept:
        raise ValueError(f"There is no split {part}; there are test and fold-0 to fold-4.")
    return kept


def outcomes(predictor: Predictor, samples: Sequence[Sample], *, fixed: tuple[float, float] | None = None) -> Outcomes:
    """Read every picture with the predictor, as the worker would."""
    blank = float("nan")
    rows = [_outcome(predictor, sample) for sample in samples]
    first = [None if row is None else row.reading.findings[0] for row in rows]
    pointed = bool(predictor.bundle.card.heatmap)
    return Outcomes.of(
        samples,
        logits=[blank if one is None else one.logit for one in first],
        probabilities=[blank if one is None else one.probability for one in first],
        peaks=[(blank, blank) if row is None else row.peak for row in rows] if pointed else None,
        fixed=fixed,
        refused=[row is None or row.reading.unfamiliar for row in rows],
        milliseconds=[blank if row is None else row.reading.milliseconds for row in rows],
    )


@dataclass(frozen=True, eq=False)
class _Row:
    reading: Reading
    peak: tuple[float, float]
    """As fractions of the picture's width and height; NaN without a heatmap."""


def _outcome(predictor: Predictor, sample: Sample) -> _Row | None:
    """Return None for what the pixel pipeline refuses."""
    try:
        image = prepared(sample, predictor.size)
    except NotAnalysable:
        return None
    reading = predictor.read(image)
    peak = reading.findings[0].peak
    where = (float("nan"),) * 2 if peak is None else (peak.x / image.source_columns, peak.y / image.source_rows)
    return _Row(reading, where)


# --- figures ----------------------------------------------------------------------------------------------------------


def metrics(
    measured: Outcomes, points: OperatingPoints, *, dataset: str = TEST, test_reads: int | None = None
) -> Metrics:
    """Return every figure of the card with its interval, for all images and for parts of them.

    Sensitivity at `absent_below` is the share of fractures that are not called absent, specificity at `present_from`
    the share of images without one that are not called present. NPV is that of "absent" and PPV that of "present", as
    counted and for stated prevalences. `pointing_inside` is the share of images with fracture boxes whose heatmap has
    its peak in a box, `pointing_within_5_percent` that of those with the peak at most 5 % of the longer side from one.
    """
    draws = draw(measured.groups)
    return Metrics(
        dataset=dataset,
        images=len(measured.labels),
        positives=int(measured.labels.sum()),
        groups=len(np.unique(measured.groups)),
        interval=INTERVAL,
        values=_with_intervals(_figures(draws, measured, points)),
        subgroups={
            name: Subgroup(
                images=int(part.sum()),
                positives=int(measured.labels[part].sum()),
                values=_with_intervals(_figures_of_a_part(draws, measured, points, part & measured.read)),
            )
            for name, part in _parts(measured).items()
            if part.any()
        },
        baselines=_baselines(draws, measured),
        test_reads=test_reads,
    )


def _figures(draws: Draws, measured: Outcomes, points: OperatingPoints) -> dict[str, Values | Share]:
    """Every figure of all images."""
    p, y, read = measured.probabilities, measured.labels, measured.read
    decided = _decisions(draws, measured, points, read)
    low = decided["sensitivity_at_absent_below"].drawn, decided["specificity_at_absent_below"].drawn
    high = decided["sensitivity_at_present_from"].drawn, decided["specificity_at_present_from"].drawn
    whole, bare = draws.auc(p, y, of=read), draws.auc(p, y, of=read & ~measured.hardware)
    figures: dict[str, Values | Share] = {
        "auc": whole,
        "auc_without_hardware": bare,
        "auc_lost_without_hardware": whole - bare,
        "average_precision": draws.average_precision(p, y, of=read),
        **decided,
        "ppv_at_present_from": draws.share(y == 1, of=read & (p >= points.present_from)),
        "npv_at_absent_below": draws.share(y == 0, of=read & (p < points.absent_below)),
        **{f"ppv_at_present_from_prevalence_{at}_percent": ppv(*high, at / 100) for at in PREVALENCES},
        **{f"npv_at_absent_below_prevalence_{at}_percent": npv(*low, at / 100) for at in PREVALENCES},
        "brier_score": draws.mean((p - y) ** 2, of=read),
        "expected_calibration_error": draws.calibration_error(p, y, of=read),
        **_pointing(draws, measured.distances, read),
    }
    if measured.refused is not None:
        figures["share_refused"] = draws.share(measured.refused)
    return figures


def _figures_of_a_part(
    draws: Draws, measured: Outcomes, points: OperatingPoints, of: Flags
) -> dict[str, Values | Share]:
    p, y = measured.probabilities, measured.labels
    figures: dict[str, Values | Share] = {
        **_decisions(draws, measured, points, of),
        **_pointing(draws, measured.distances, of),
    }
    # The precision among fractures alone is 1 and means nothing.
    if 0 < y[of].sum() < of.sum():
        ranked = {"auc": draws.auc(p, y, of=of), "average_precision": draws.average_precision(p, y, of=of)}
        return {**ranked, **figures}
    return figures


def _decisions(draws: Draws, measured: Outcomes, points: OperatingPoints, of: Flags) -> dict[str, Share]:
    p, y = measured.probabilities, measured.labels
    fractured, sound = of & (y == 1), of & (y == 0)
    return {
        "sensitivity_at_absent_below": draws.share(p >= points.absent_below, of=fractured),
        "specificity_at_absent_below": draws.share(p < points.absent_below, of=sound),
        "sensitivity_at_present_from": draws.share(p >= points.present_from, of=fractured),
        "specificity_at_present_from": draws.share(p < points.present_from, of=sound),
        "share_undetermined": draws.share((p >= points.absent_below) & (p < points.present_from), of=of),
    }


def _pointing(draws: Draws, distances: Values | None, of: Flags) -> dict[str, Share]:
    if distances is None:
        return {}
    boxed = of & np.isfinite(distances)
    return {
        "pointing_inside": draws.share(distances <= 0, of=boxed),
        # A rounding error must not decide about a peak at exactly 5 %.
        "pointing_within_5_percent": draws.share(distances <= NEAR + 1e-9, of=boxed),
    }


def _parts(measured: Outcomes) -> dict[str, Flags]:
    """Parts of the images by name; an image may be in several."""
    parts = {f"region_{name}": flags for name, flags in measured.regions.items()}
    parts |= {f"view_{name}": flags for name, flags in measured.views.items()}
    parts |= {"without_hardware": ~measured.hardware, "hardware_only": measured.hardware}
    if measured.multiscan is not None:
        parts |= {"without_multiscan": ~measured.multiscan, "multiscan_only": measured.multiscan}
    return parts


def _baselines(draws: Draws, measured: Outcomes) -> dict[str, float]:
    """What readers without skill reach: one sees only plates and screws, one says the same of all, one never moves."""
    y, read = measured.labels, measured.read
    if not read.any():
        return {}
    share = float(y[read].mean())
    figures = {
        "auc_of_hardware_alone": float(draws.auc(measured.hardware.astype(np.float64), y, of=read)[0]),
        "average_precision": share,
        "brier_score": share * (1 - share),
        **{name: float(one.drawn[0]) for name, one in _pointing(draws, measured.fixed_distances, read).items()},
    }
    return {name: round(value, 4) for name, value in figures.items() if np.isfinite(value)}


def _with_intervals(figures: Mapping[str, Values | Share]) -> dict[str, Metric]:
    """Leave out what the data does not define, as an AUC without a fracture."""
    found = {name: interval(figure) for name, figure in figures.items()}
    return {
        name: Metric(value=round(one[0], 4), low=round(one[1], 4), high=round(one[2], 4))
        for name, one in found.items()
        if one is not None
    }


def with_intervals(
    measured: Outcomes, figures: Mapping[str, Callable[[Outcomes], float]], *, resamples: int = RESAMPLES, seed: int = 1
) -> dict[str, Metric]:
    """Return figures that `metrics.Draws` does not know, with intervals; slow, since every resample is gathered."""
    draws = draw(measured.groups, resamples=resamples, seed=seed)
    drawn: dict[str, list[float]] = {name: [] for name in figures}
    for weights in draws.weights:
        resample = measured.only(np.repeat(np.arange(len(measured.labels)), weights[draws.group_of].astype(np.intp)))
        for name, figure in figures.items():
            drawn[name].append(figure(resample))
    return _with_intervals({name: np.array(values, dtype=np.float64) for name, values in drawn.items()})


def score_distribution(measured: Outcomes, points: OperatingPoints, code: Code) -> ScoreDistribution | None:
    """Count the calibrated probabilities of the images that the gate let pass: what a node's own are compared with.

    The shares are of these images, since a node decides nothing of the others; `metrics` counts those too, lest a gate
    that refuses what is difficult makes a figure better. None where there are not images of both kinds.
    """
    p, refused = measured.probabilities, measured.refused
    passed = measured.read if refused is None else measured.read & ~refused
    draws = draw(measured.groups)
    shares = _with_intervals(
        {
            "present": draws.share(p >= points.present_from, of=passed),
            "undetermined": draws.share((p >= points.absent_below) & (p < points.present_from), of=passed),
            "refused": draws.share(~passed),
        }
    )
    if len(np.unique(measured.labels[passed])) < 2:
        return None
    counts = [np.histogram(p[passed & (measured.labels == label)], EDGES)[0] for label in (1, 0)]
    return ScoreDistribution(
        edges=EDGES,
        findings=(
            FindingScores(
                code=code,
                with_finding=tuple(int(count) for count in counts[0]),
                without_finding=tuple(int(count) for count in counts[1]),
                present=shares["present"],
                undetermined=shares["undetermined"],
            ),
        ),
        refused=shares["refused"],
    )


# --- the command ------------------------------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle, e.g. worker/bundles/NAME-VERSION")
    parser.add_argument("--split", default="test", help="test (for a release only), or fold-0 to fold-4")
    parser.add_argument("--output", type=Path, help="folder to write to (runs/evaluations/BUNDLE-SPLIT)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the interpreter; the worker uses one")


def run(options: argparse.Namespace) -> None:
    """Measure, print, and write the figures with plots and the sheet of worst mistakes."""
    from training import plots  # matplotlib takes a second, and --help does without it

    measured = measure(options.bundle, options.data, part=options.split, threads=options.threads)
    print(table(measured.metrics))
    print(timing(measured.outcomes))
    folder = options.output or Path("runs", "evaluations", f"{options.bundle.name}-{options.split}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(measured.metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")
    plots.write(folder, measured.outcomes, measured.metrics, measured.points)
    plots.worst_mistakes(folder / "worst-mistakes.png", Predictor.load(options.bundle), measured)
    print(f"Figures, plots and the worst mistakes: {folder}")


def table(measured: Metrics) -> str:
    """Return the figures as lines of text: all of them for all images, the most important for the parts."""
    lines = [
        measured.dataset,
        f"{measured.images} images, {measured.positives} with a fracture, {measured.groups} groups",
        *(_line(name, one, measured.baselines) for name, one in measured.values.items()),
        *(_line(name, None, measured.baselines) for name in measured.baselines if name not in measured.values),
    ]
    shown = [name for name in _OF_PARTS if any(name in part.values for part in measured.subgroups.values())]
    if measured.subgroups:
        lines += ["", f"{'':20}{'images':>8}{'fractured':>11}" + "".join(f"{_OF_PARTS[name]:>26}" for name in shown)]
    for name, part in measured.subgroups.items():
        cells = "".join(f"{_cell(part.values.get(figure)):>26}" for figure in shown)
        lines.append(f"{name:20}{part.images:8}{part.positives:11}{cells}")
    return "\n".join([*lines, "", f"Intervals: {measured.interval}."])


_WIDTH = 42
_OF_PARTS = {
    "auc": "AUC",
    "sensitivity_at_absent_below": "sensitivity, low point",
    "specificity_at_present_from": "specificity, high point",
    "share_undetermined": "undetermined",
    "pointing_inside": "peak in a box",
}
"""What the table shows of parts of the images, with the heads of its columns."""


def _line(name: str, one: Metric | None, baselines: Mapping[str, float]) -> str:
    value = " " * 22 if one is None else f"{one.value:6.3f}  [{one.low:.3f}, {one.high:.3f}]"
    beside = f"without skill {baselines[name]:.3f}" if name in baselines else ""
    return f"{name:{_WIDTH}} {value:24}  {beside}".rstrip()


def _cell(one: Metric | None) -> str:
    return "–" if one is None else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def timing(measured: Outcomes) -> str:
    """Return how many images were refused and how long one takes, as lines of text."""
    refused = 0 if measured.refused is None else int(measured.refused.sum())
    lines = [f"{refused} of {len(measured.labels)} images refused by the gate, {int((~measured.read).sum())} unread"]
    if measured.milliseconds is not None and measured.read.any():
        median, late = np.nanpercentile(measured.milliseconds, [50, 95])
        lines.append(f"Reading one image: median {median:.1f} ms, 95th percentile {late:.1f} ms")
    return "\n".join(lines)
