"""Pictures of a model's figures: ROC, precision-recall, reliability, confusion, training curves, the worst mistakes.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart. Each picture states its numbers in its
title, so that it can be read alone. Pictures of figures may be published; the sheet of mistakes shows radiographs and
stays where it is written.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from dicom_node.pixels import ModelInput
from training.data import Sample, prepared
from training.evaluate import Evaluation, Outcomes
from training.metrics import BINS, Values, draw, interval
from worker.bundle import Metric, Metrics, OperatingPoints
from worker.predictor import Predictor, decide

BLUE, GREEN, ORANGE, VERMILLION, GREY = "#0072B2", "#009E73", "#E69F00", "#D55E00", "#777777"
_DOTS = 100
"""Per inch: a picture is looked at at its own size."""

ROC, PRECISION_RECALL, RELIABILITY, CONFUSION = "roc.png", "precision-recall.png", "reliability.png", "confusion.png"
WORST = 6
"""So many missed fractures and so many false alarms are shown."""


def write(folder: Path, measured: Outcomes, figures: Metrics, points: OperatingPoints) -> tuple[Path, ...]:
    """Write ROC, precision-recall, reliability and confusion as PNG into `folder`, and return their paths.

    They hold numbers only and may go into a bundle.
    """
    known = measured.only(measured.read)
    drawn = {
        ROC: roc(known, figures, points),
        PRECISION_RECALL: precision_recall(known, figures, points),
        RELIABILITY: reliability(known, figures),
        CONFUSION: confusion(known, points),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        save(figure, folder / name)
    return tuple(folder / name for name in drawn)


# --- what a score is worth --------------------------------------------------------------------------------------------


def roc(measured: Outcomes, figures: Metrics, points: OperatingPoints) -> Figure:
    """Sensitivity over the share of false alarms, with both operating points and their intervals."""
    labels = measured.labels[np.argsort(-measured.probabilities, kind="stable")]
    ends = _ends_of_ties(measured.probabilities)
    found = np.append(0.0, np.cumsum(labels)[ends] / labels.sum())
    false = np.append(0.0, np.cumsum(1 - labels)[ends] / (1 - labels).sum())
    figure, axes = _one(f"ROC: AUC {_text(figures.values.get('auc'))}", _counts(measured))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.plot(false, found, color=BLUE, linewidth=2)
    for name, text, colour in _points(points):
        sensitivity, specificity = figures.values.get(f"sensitivity_{name}"), figures.values.get(f"specificity_{name}")
        if sensitivity is not None and specificity is not None:
            label = f"{text}: sensitivity {sensitivity.value:.2f}, specificity {specificity.value:.2f}"
            _cross(axes, _turned(specificity), sensitivity, colour, label)
    axes.set(xlabel="1 − specificity (share of false alarms)", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005))
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def precision_recall(measured: Outcomes, figures: Metrics, points: OperatingPoints) -> Figure:
    """PPV over sensitivity, with what chance reaches and where the operating points lie."""
    p, y = measured.probabilities, measured.labels
    labels, ends = y[np.argsort(-p, kind="stable")], _ends_of_ties(p)
    found, called = np.cumsum(labels)[ends], ends + 1
    title = f"Precision and recall: average precision {_text(figures.values.get('average_precision'))}"
    figure, axes = _one(title, _counts(measured))
    axes.axhline(y.mean(), color=GREY, linewidth=1, linestyle=":", label=f"chance: {y.mean():.2f}")
    axes.step(found / labels.sum(), found / called, where="pre", color=BLUE, linewidth=2)
    for point, words, colour in (
        (points.absent_below, "not absent", GREEN),
        (points.present_from, "present", VERMILLION),
    ):
        above = p >= point
        if above.any():
            recall, precision = float(above[y == 1].mean()), float(y[above].mean())
            label = f"{words}, from {point:.3f}: PPV {precision:.2f}"
            axes.plot(recall, precision, "o", color=colour, markersize=8, label=label)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def reliability(measured: Outcomes, figures: Metrics) -> Figure:
    """What was said against what was true, in bins of equal count, and how often each probability was said."""
    p, y = measured.probabilities, measured.labels
    draws = draw(measured.groups)
    figure = new_figure(f"Calibration: ECE {_text(figures.values.get('expected_calibration_error'))}", height=5.6)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    axes.set_title(f"Brier score {_text(figures.values.get('brier_score'))}; {_counts(measured)}", fontsize=9)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="said = true")
    for bin_ in np.array_split(np.argsort(p, kind="stable"), BINS):
        inside = np.zeros(len(p), dtype=np.bool_)
        inside[bin_] = True
        bounds = interval(draws.share(y == 1, of=inside)) if len(bin_) else None
        if bounds is not None:
            value, low, high = bounds
            axes.errorbar(
                float(p[inside].mean()), value, [[value - low], [high - value]], color=BLUE, fmt="o", capsize=2
            )
    axes.set(ylabel="share with a fracture", ylim=(-0.02, 1.02), xlim=(0, 1))
    axes.text(0.02, 0.95, f"{BINS} bins of {len(p) / BINS:.0f} images, 95 % intervals", va="top", fontsize=9)
    edges = np.linspace(0, 1, 21)
    for values, colour, name in ((p[y == 0], GREY, "no fracture"), (p[y == 1], VERMILLION, "fracture")):
        below.hist(values, edges, color=colour, label=name, histtype="step", linewidth=1.5)
    below.set(xlabel="calibrated probability", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.7)
    below.legend(loc="upper right", frameon=False, fontsize=9)
    quiet(axes, below)
    return figure


def confusion(measured: Outcomes, points: OperatingPoints) -> Figure:
    """How many images of each label were given each decision."""
    decisions = ("no_fracture", "undetermined", "fracture")
    given = np.array([decide(float(one), points) for one in measured.probabilities])
    counts = np.array([[int(np.sum((given == one) & (measured.labels == y))) for one in decisions] for y in (0, 1)])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = f"{counts[1, 0]} of {counts[1].sum()} fractures called absent, {counts[0, 2]} false alarms"
    figure, axes = _one(f"Decisions: {wrong}", _counts(measured), height=3.4)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.6
        text = f"{count}\n{shares[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", fontsize=13, color="white" if dark else "black")
    low, high = f"below {points.absent_below:.3f}", f"from {points.present_from:.3f}"
    axes.set_xticks(range(3), [f"no fracture\n{low}", "undetermined\nbetween", f"fracture\n{high}"])
    axes.set_yticks(range(2), ["no fracture\nin truth", "fracture\nin truth"])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


# --- training ---------------------------------------------------------------------------------------------------------

_HELD_OUT = ("val_", "held_out_")


def curves(history: Path, picture: Path) -> None:
    """Draw a run's `history.csv` to the PNG `picture`: one panel for each figure, training and held-out together.

    Any columns will do: a column is a figure of every epoch, "val_…" or "held_out_…" is the same on held-out images.
    Nothing is written while no epoch is done.
    """
    with history.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0] if name}
    columns.pop("seconds", None)
    epochs = columns.pop("epoch", np.arange(1, len(rows) + 1, dtype=np.float64))
    panels = list(dict.fromkeys(_without_prefix(name) for name in columns))
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    down = -(-len(panels) // max(across, 1))
    figure = new_figure(f"Training: {len(rows)} epochs", width=3.4 * across, height=0.6 + 2.4 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for at, panel in zip(axes, panels, strict=False):
        for name in (one for one in columns if _without_prefix(one) == panel):
            held_out, values = name.startswith(_HELD_OUT), columns[name]
            label = f"{'held out' if held_out else 'training'}, last {values[-1]:.3g}"
            colour, marker = VERMILLION if held_out else BLUE, "o" if len(rows) == 1 else ""
            at.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, label=label)
        at.set_title(panel.replace("_", " "), fontsize=10)
        at.xaxis.set_major_locator(MaxNLocator(integer=True))
        at.legend(frameon=False, fontsize=8)
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    for at in axes[max(len(panels) - across, 0) : len(panels)]:
        at.set_xlabel("epoch")
    quiet(*axes)
    save(figure, picture)


def _without_prefix(name: str) -> str:
    for prefix in _HELD_OUT:
        name = name.removeprefix(prefix)
    return name


# --- the worst mistakes -----------------------------------------------------------------------------------------------


def worst_mistakes(picture: Path, predictor: Predictor, measured: Evaluation) -> None:
    """Draw the fractures of lowest probability and the false alarms of highest, each beside its heatmap, as PNG.

    The picture shows radiographs: it stays with who may see them, and never goes into a bundle.
    """
    p, y = measured.outcomes.probabilities, measured.outcomes.labels
    missed = [at for at in np.argsort(p, kind="stable") if y[at] == 1 and np.isfinite(p[at])][:WORST]
    alarms = [at for at in np.argsort(-p, kind="stable") if y[at] == 0 and np.isfinite(p[at])][:WORST]
    chosen = [measured.samples[at] for at in (*missed, *alarms)]
    pairs = 3
    down = -(-len(missed) // pairs) + -(-len(alarms) // pairs)
    figure = new_figure(
        f"{len(missed)} fractures of the lowest probability, then {len(alarms)} false alarms of the highest\n"
        f"called absent below {measured.points.absent_below:.3f}, present from {measured.points.present_from:.3f}"
        " · orange: fracture box · cross: peak of the heatmap, which is scaled to it",
        width=13.2,
        height=0.8 + 2.75 * down,
    )
    rows = figure.subplots(down, 2 * pairs, squeeze=False)
    for one in rows.ravel():
        one.set_axis_off()
    places = [*range(len(missed)), *range(pairs * -(-len(missed) // pairs), 10**6)]
    for sample, place in zip(chosen, places, strict=False):
        _pair(rows[place // pairs, 2 * (place % pairs) :][:2], predictor, sample)
    save(figure, picture, few_colours=False)


def _pair(axes: npt.NDArray[np.object_], predictor: Predictor, sample: Sample) -> None:
    """The picture as the model sees it, and again with heatmap, boxes and peak; all in source pixels."""
    image = prepared(sample, predictor.size)
    reading = predictor.read(image)
    finding = reading.findings[0]
    for one in axes:
        one.imshow(image.pixels, cmap="gray", vmin=0, vmax=255, extent=_extent(image))
        one.set_xlim(image.box.left, image.box.right)
        one.set_ylim(image.box.bottom, image.box.top)
    axes[0].set_title(f"{sample.path.stem}: {'fracture' if sample.fractured else 'no fracture'}", fontsize=9)
    axes[1].set_title(f"said p = {finding.probability:.3f}: {finding.decision.replace('_', ' ')}", fontsize=9)
    if reading.heatmaps:
        scores = reading.heatmaps[0] / max(float(reading.heatmaps[0].max()), 1e-6)
        axes[1].imshow(scores, cmap="viridis", vmin=0, vmax=1, alpha=0.6 * scores, extent=_extent(image))
    for box in sample.boxes:
        corner = box.xmin * image.source_columns, box.ymin * image.source_rows
        size = (box.xmax - box.xmin) * image.source_columns, (box.ymax - box.ymin) * image.source_rows
        axes[1].add_patch(Rectangle(corner, *size, fill=False, edgecolor=ORANGE, linewidth=1.5))
    if finding.peak is not None:
        axes[1].plot(*finding.peak, "+", color="white", markersize=11, markeredgewidth=3)
        axes[1].plot(*finding.peak, "+", color=VERMILLION, markersize=10, markeredgewidth=1.5)


def _extent(image: ModelInput) -> tuple[float, float, float, float]:
    """Where the model's input lies in source pixels: left, right, bottom, top, as `imshow` wants them."""
    rows, columns = image.pixels.shape
    left, top = image.box.left - image.left / image.scale, image.box.top - image.top / image.scale
    return left, left + columns / image.scale, top + rows / image.scale, top


# --- helpers ----------------------------------------------------------------------------------------------------------


def save(figure: Figure, picture: Path, *, few_colours: bool = True) -> None:
    """Write a figure as PNG. 256 colours take a third of the bytes, but radiographs would leave none for the rest."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DOTS)
    with Image.open(drawn) as image:
        kept = image.convert("RGB")
    if few_colours:
        kept = kept.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    kept.save(picture, format="PNG", optimize=True)


def new_figure(title: str, *, width: float = 6.4, height: float = 4.8) -> Figure:
    """Return an empty figure, in inches, that has no part in pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def _one(title: str, subtitle: str, *, height: float = 4.8) -> tuple[Figure, Axes]:
    figure = new_figure(title, height=height)
    axes = figure.subplots()
    axes.set_title(subtitle, fontsize=9)
    quiet(axes)
    return figure, axes


def quiet(*all_axes: Axes) -> None:
    """Take away what says nothing."""
    for axes in all_axes:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def _counts(measured: Outcomes) -> str:
    return f"{len(measured.labels)} images, {int(measured.labels.sum())} with a fracture"


def _text(metric: Metric | None) -> str:
    return "not defined" if metric is None else f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _points(points: OperatingPoints) -> Sequence[tuple[str, str, str]]:
    """Name among the figures, words and colour of both operating points."""
    return (
        ("at_absent_below", f"absent below {points.absent_below:.3f}", GREEN),
        ("at_present_from", f"present from {points.present_from:.3f}", VERMILLION),
    )


def _cross(axes: Axes, x: Metric, y: Metric, colour: str, label: str) -> None:
    across, up = [[x.value - x.low], [x.high - x.value]], [[y.value - y.low], [y.high - y.value]]
    axes.errorbar(x.value, y.value, up, across, fmt="o", color=colour, capsize=3, label=label)


def _turned(one: Metric) -> Metric:
    """Of a share, that of the others."""
    return Metric(value=1 - one.value, low=1 - one.high, high=1 - one.low)


def _ends_of_ties(scores: Values) -> npt.NDArray[np.intp]:
    """Return where in descending order the last image of each score stands: images of one score are called together."""
    ordered = -np.sort(-scores)
    return np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
