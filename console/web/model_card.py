"""A released model's card as people read it: what it is for, how well it does, on what, and its plots in words too."""

from __future__ import annotations

import streamlit as st

from console.web import look
from worker.bundle import Card, Metric, Metrics

FIGURES = {
    "auc": "Area under the ROC curve (AUC)",
    "auc_without_hardware": "AUC, without images with plates or screws",
    "auc_lost_without_hardware": "AUC that is lost without them",
    "auc_of_hardware_alone": "AUC of plates and screws alone",
    "average_precision": "Average precision",
    "sensitivity_at_present_from": "Sensitivity: fractures that it calls a fracture",
    "specificity_at_present_from": "Specificity: sound images that it does not call a fracture",
    "sensitivity_at_absent_below": "Fractures that it does not call “no fracture”",
    "specificity_at_absent_below": "Sound images that it calls “no fracture”",
    "share_undetermined": "Undetermined",
    "ppv_at_present_from": "Of those called a fracture, that are one (PPV)",
    "npv_at_absent_below": "Of those called “no fracture”, that have none (NPV)",
    "brier_score": "Brier score (lower is better)",
    "expected_calibration_error": "Expected calibration error (lower is better)",
    "pointing_inside": "Its map's highest place lies in the fracture's box",
    "pointing_within_5_percent": "… in it or within 5 % of the image",
    "share_refused": "Refused as unlike what it learned from",
}
"""What the figures of a card are called; one that is not named here goes by its own name."""
_OF_A_PART = ("auc", "sensitivity_at_present_from", "specificity_at_present_from", "sensitivity_at_absent_below")
_SHORT = ("AUC", "Sensitivity, fracture", "Specificity, fracture", "Fractures not called “no fracture”")


def draw(card: Card, plots: dict[str, bytes]) -> None:
    """Draw a card; `plots` are the bundle's PNG files by name."""
    left, right = st.columns(2, gap="large")
    left.html(look.block(look.heading("What it is for"), look.paragraph(card.intended_use.statement), _use(card)))
    left.html(look.block(look.heading("Its limits"), look.items(card.intended_use.limits)))
    right.html(look.block(look.heading("How well it does"), *_measured(card.metrics)))
    if plots:
        columns = st.columns(len(plots) if len(plots) < 4 else 2, gap="large")
        for number, (name, content) in enumerate(sorted(plots.items())):
            columns[number % len(columns)].html(look.block(_plot(name, content, card)))
    with st.expander("By body region, view and what is on the image"):
        st.html(look.block(_parts(card.metrics)))
    if card.cross_validation is not None:
        with st.expander("Across the folds of the training split"):
            st.html(look.block(*_measured(card.cross_validation), _parts(card.cross_validation)))
    if card.gate is not None:
        with st.expander("What it refuses to read"):
            st.html(look.block(*_gate(card)))
    with st.expander("What it learned from"):
        for data in card.training_data:
            facts: list[tuple[str, look.Cell]] = [
                ("Licence", data.licence),
                ("Attribution", data.attribution),
                ("Citation", data.citation),
                ("Split", data.split),
            ]
            st.html(look.block(look.heading(data.name), look.facts(facts)))


def described(name: str, card: Card) -> str:
    """Return what a plot of the bundle shows, in the card's own figures, for whoever cannot see it."""
    figures, on = card.metrics.values, f"on {card.metrics.images} images, {card.metrics.positives} with a fracture"

    def figure(key: str) -> str:
        return _with_interval(figures[key]) if key in figures else "not stated"

    points = card.findings[0].operating_points
    said = {
        "roc.png": f"ROC curve {on}: area {figure('auc')}. From a probability of {points.present_from:.3f} on, "
        f"where it calls a fracture, sensitivity {figure('sensitivity_at_present_from')} and specificity "
        f"{figure('specificity_at_present_from')}.",
        "precision-recall.png": f"Precision over recall {on}: average precision {figure('average_precision')}, "
        f"{_plain(card.metrics.baselines.get('average_precision'))} by chance. Of those called a fracture, "
        f"{figure('ppv_at_present_from')} are one.",
        "reliability.png": f"How often a probability comes true {on}: expected calibration error "
        f"{figure('expected_calibration_error')}, Brier score {figure('brier_score')}.",
        "confusion.png": f"Decisions over the truth {on}: of the fractures {figure('sensitivity_at_present_from')} are "
        f"called one, and {figure('sensitivity_at_absent_below')} are not called “no fracture”; of the sound "
        f"images {figure('specificity_at_present_from')} are not called a fracture; {figure('share_undetermined')} "
        "of all are undetermined.",
    }
    return said.get(name, f"The plot {name} of the bundle. Its card does not say in words what it shows.")


def _use(card: Card) -> look.Safe:
    ages = card.intended_use.ages
    until = "" if ages is None or ages.to_years is None else f", below {ages.to_years:g}"
    points = [
        (
            finding.code.meaning,
            f"present from {finding.operating_points.present_from:.3f}, absent below "
            f"{finding.operating_points.absent_below:.3f}, undetermined between",
        )
        for finding in card.findings
    ]
    facts: list[tuple[str, look.Cell]] = [
        ("Modality", ", ".join(card.image_modalities)),
        ("Ages", "any" if ages is None else f"from {ages.from_years:g} years{until}"),
        ("Body parts", ", ".join(part.capitalize() for part in card.intended_use.body_parts)),
        *points,
        ("Input", f"{card.input.rows} × {card.input.columns} pixels, pixel pipeline {card.input.pipeline_version}"),
        ("Made", f"{card.created:%Y-%m-%d}"),
    ]
    return look.facts(facts)


def _measured(metrics: Metrics) -> list[look.Safe]:
    names = [*metrics.values, *(name for name in metrics.baselines if name not in metrics.values)]
    rows = []
    for name in names:
        metric, baseline = metrics.values.get(name), metrics.baselines.get(name)
        value, interval = ("", "") if metric is None else (f"{metric.value:.3f}", _interval(metric))
        rows.append((_called(name), value, interval, "" if baseline is None else f"{baseline:.3f}"))
    reads = "" if metrics.test_reads is None else f" They were read {metrics.test_reads} times to measure a release."
    said = f"{metrics.dataset}: {metrics.images} images, {metrics.positives} with a fracture.{reads}"
    return [
        look.table("Figures", ("Figure", "Value", "Interval", "Without skill"), rows),
        look.paragraph(said, "quiet"),
        look.paragraph(f"Interval: {metrics.interval}.", "quiet"),
    ]


def _parts(metrics: Metrics) -> look.Safe:
    rows = []
    for part, group in metrics.subgroups.items():
        found = [group.values.get(name) for name in _OF_A_PART]
        figures = [None if metric is None else _with_interval(metric) for metric in found]
        rows.append((part.replace("_", " ").capitalize(), group.images, group.positives, *figures))
    if not rows:
        return look.paragraph("No parts were measured apart.", "quiet")
    return look.table("Parts of the images", ("Part", "Images", "With a fracture", *_SHORT), rows)


def _gate(card: Card) -> list[look.Safe]:
    gate = card.gate
    assert gate is not None  # noqa: S101 (asked before)
    refusals = "" if gate.false_refusals is None else f": {_with_interval(gate.false_refusals)}"
    tried = [(one.name, one.images, one.refused, one.refused_by_features, one.description) for one in gate.negatives]
    columns = ("Tried on", "Images", "Refused", "By its features alone", "What they are")
    return [
        look.paragraph(gate.method),
        look.paragraph(
            f"Of {gate.accepted_images} radiographs of the intended kind it refused {gate.accepted_refused}{refusals}."
        ),
        look.table("What the gate was tried on", columns, tried),
    ]


def _plot(name: str, content: bytes, card: Card) -> look.Safe:
    return look.Safe(
        look.plot(content, described(name, card)).html + look.paragraph(described(name, card), "quiet").html
    )


def _called(name: str) -> str:
    value, _, prevalence = name.partition("_prevalence_")
    where = f", were {prevalence.removesuffix('_percent')} % fractured" if prevalence else ""
    return FIGURES.get(value, value.replace("_", " ")) + where


def _interval(metric: Metric) -> str:
    return f"{metric.low:.3f} to {metric.high:.3f}"


def _with_interval(metric: Metric) -> str:
    return f"{metric.value:.3f} ({_interval(metric)})"


def _plain(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
