"""Drift: whether the active model's answers change, by week and scanner, beside those of its release."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import streamlit as st
from sqlalchemy import select

from console.access import Action
from console.drift import RATES, said_rate, standing_out
from console.web import look, plots, state, who
from models.tables import ModelActivation, ModelVersion
from worker.activation import ACTIVE, active_version
from worker.drift import LONGEST_WEEKS, PREVALENCES, Counts, Drift, Judged, drift
from worker.shift import LARGE, LEAST, MODERATE, Verdict

COUNTED_AGAIN = timedelta(minutes=5)
PERIODS = (4, 13, LONGEST_WEEKS)
ALL = "All scanners"
_VERDICTS = {
    Verdict.FEW: ("·", f"fewer than {LEAST}", "quiet"),
    Verdict.WITHIN: ("", "", ""),
    Verdict.NO_BASELINE: ("", "", ""),
    Verdict.ABOVE: ("▲", "above", "undetermined"),
    Verdict.BELOW: ("▼", "below", "undetermined"),
    Verdict.SHIFTED: ("◆", "shifted", "undetermined"),
}


def page() -> None:
    """Draw the page."""
    who.require(Action.VIEW_DRIFT)
    with state.database().read() as session:
        versions = _versions(session.scalars(select(ModelVersion).order_by(ModelVersion.id.desc())).all())
        active = active_version(session)
    if active is None or not versions:
        st.html(look.block(look.paragraph("No model has read anything here yet.", "quiet")))
        return
    columns = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
    names = {version.id: f"{version.name} {version.version}" for version in versions}
    chosen = active.id
    if len(names) > 1:
        chosen = columns[2].selectbox("Model", names, index=list(names).index(active.id), format_func=names.__getitem__)
    findings = _counted(chosen)
    if not findings:
        st.html(look.block(look.paragraph("This model has read nothing yet.", "quiet")))
        return
    found = findings[0]
    if len(findings) > 1:
        found = columns[3].selectbox("Finding", findings, format_func=lambda one: one.finding)
    scanner = columns[0].selectbox("Scanner", [None, *found.by_scanner], format_func=_scanner)
    weeks = columns[1].selectbox("Period", PERIODS, index=1, format_func=lambda count: f"Last {count} weeks")
    _draw(found, scanner, weeks)


def _versions(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """Those whose answers were ever sent."""
    with state.database().read() as session:
        sent = set(session.scalars(select(ModelActivation.model_version_id).where(ModelActivation.role == ACTIVE)))
    return [version for version in versions if version.id in sent]


@st.cache_data(ttl=COUNTED_AGAIN, max_entries=8, show_spinner="Counting")
def _counted(version_id: int) -> list[Drift]:
    """All weeks of a model version: to count a million answers takes seconds, which not every look should cost."""
    with state.database().read() as session:
        return drift(session, session.get_one(ModelVersion, version_id))


def _draw(found: Drift, scanner: str | None, weeks: int) -> None:
    counts = found.of(scanner, weeks)
    judged = found.judged(counts)
    st.html(look.block(*_said(found, scanner, weeks), _about(found)))
    st.html(look.block(plots.grid([*_rates(found, counts), _scores(found, judged)])))
    st.html(look.block(look.heading("Scanners in this period"), _scanners(found, weeks)))
    with st.expander("The figures by week"):
        st.html(look.block(_weeks(found, counts)))


def _scanner(name: str | None) -> str:
    return ALL if name is None else name or "Not on record"


# --- in words ---------------------------------------------------------------------------------------------------------


def _said(found: Drift, scanner: str | None, weeks: int) -> list[look.Safe]:
    """What somebody should look at, or that there is nothing; where no scanner was chosen, of each of them."""
    named = [scanner] if scanner is not None else [None, *found.by_scanner]
    judged = {name: found.judged(found.of(name, weeks)) for name in named}
    notices = [
        look.paragraph(f"◆ {_scanner(name)}: {standing_out(one)}", "notice")
        for name, one in judged.items()
        if one.flagged
    ]
    if notices:
        return notices
    counts = judged[scanner].counts
    if counts.read + counts.refused < LEAST:
        return [look.paragraph(f"Fewer than {LEAST} images in this period: nothing is said of them.", "quiet")]
    if found.baseline is None:
        return [look.paragraph("The card of this model has no figures to compare with.", "notice")]
    return [look.paragraph("Nothing stands out in this period.", "")]


def _about(found: Drift) -> look.Safe:
    if found.baseline is None:
        return look.paragraph(f"Counted at {found.counted_at:%H:%M:%S} UTC.", "quiet")
    low, high = (f"{100 * share:.0f}" for share in PREVALENCES)
    older = " Its card is older than the counts of scores: only rates are compared." * (found.baseline.spread is None)
    return look.paragraph(
        f"{found.model}. Band and dashed line: the release's test set. More or fewer fractures among the patients move "
        f"these rates too, so the band allows for {low} to {high} % of images with one (test set "
        f"{100 * found.baseline.prevalence:.0f} %).{older} Counted at {found.counted_at:%H:%M:%S} UTC, and anew after "
        f"{COUNTED_AGAIN.seconds // 60} minutes.",
        "quiet",
    )


# --- plots ------------------------------------------------------------------------------------------------------------


def _rates(found: Drift, counts: Sequence[Counts]) -> list[look.Safe]:
    bands = found.baseline.bands if found.baseline is not None else {}
    weeks = found.weeks[-len(counts) :]
    figures = []
    for name, title in RATES.items():
        band = bands.get(name)
        points = []
        for monday, week in zip(weeks, counts, strict=True):
            rate = week.rates[name]
            low, high = rate.interval
            flagged = rate.against(band).is_flagged
            points.append(plots.Point(f"{monday:%m-%d}", rate.value, low, high, flagged, rate.of < LEAST))
        outside = sum(point.flagged for point in points)
        said = "Share of images by week, with 95 % intervals"
        if band is not None:
            said += f"; release {100 * band.value:.1f} %, band {100 * band.low:.1f} to {100 * band.high:.1f} %"
            said += f"; {outside} of {len(points)} weeks outside."
        figures.append(
            plots.over_time(title, points, None if band is None else (band.value, band.low, band.high), said)
        )
    return figures


def _scores(found: Drift, judged: Judged) -> look.Safe:
    scores, compared = judged.counts.scores, judged.shift
    total = sum(scores)
    seen = [count / total for count in scores] if total else [0.0] * (len(found.edges) - 1)
    spread = found.baseline.spread if found.baseline is not None else None
    expected = None
    said = f"Calibrated probability in % of {total} images; dotted: operating points"
    if spread is not None:
        expected = spread.mixed(compared.prevalence if compared is not None else spread.prevalence)
    if compared is not None:
        said += (
            f"; line: release, with the share of fractures that fits best ({100 * compared.prevalence:.0f} %). "
            f"Population stability index {compared.index:.2f} (by convention small below {MODERATE}, large from "
            f"{LARGE}; by chance up to {compared.chance:.2f})."
        )
    marks = [mark for mark in (found.absent_below, found.present_from) if mark is not None]
    return plots.bars("Scores", seen, expected, found.edges, marks, said)


# --- tables -----------------------------------------------------------------------------------------------------------


def _scanners(found: Drift, weeks: int) -> look.Safe:
    rows: list[list[look.Cell]] = []
    for scanner in (None, *found.by_scanner):
        judged = found.judged(found.of(scanner, weeks))
        if judged.counts.read + judged.counts.refused:
            rows.append([_scanner(scanner), judged.counts.read, *_cells(judged), _index(judged)])
    columns = ("Scanner", "Read", *RATES.values(), "Scores: stability index")
    return look.table("Scanners", columns, rows) if rows else look.paragraph("No image in this period.", "quiet")


def _cells(judged: Judged) -> list[look.Cell]:
    return [_judged(said_rate(judged.counts.rates[name]), judged.rates[name]) for name in RATES]


def _index(judged: Judged) -> look.Cell:
    if judged.shift is None:
        return None
    return _judged(f"{judged.shift.index:.2f}", judged.shift.verdict)


def _judged(text: str, verdict: Verdict) -> look.Cell:
    shape, word, kind = _VERDICTS[verdict]
    return look.Safe(look.span(text).html + (" " + look.span(f"{shape} {word}", kind).html if word else ""))


def _weeks(found: Drift, counts: Sequence[Counts]) -> look.Safe:
    rows: list[list[look.Cell]] = []
    for monday, week in reversed(list(zip(found.weeks[-len(counts) :], counts, strict=True))):
        judged = found.judged([week])
        rows.append([_week(monday), week.read, week.refused, *_cells(judged), _index(judged)])
    columns = ("Week", "Read", "Refused", *RATES.values(), "Scores: stability index")
    total = found.judged(counts).counts.scores or (0,) * (len(found.edges) - 1)
    scores: list[list[look.Cell]] = [
        [f"{100 * low:g} to {100 * high:g} %", images]
        for images, low, high in zip(total, found.edges, found.edges[1:], strict=False)
    ]
    return look.Safe(
        look.table("Rates by week", columns, rows).html
        + look.heading("Scores of the period").html
        + look.table("Scores", ("Calibrated probability", "Images"), scores).html
    )


def _week(monday: date) -> str:
    year, week, _ = monday.isocalendar()
    return f"{year}-W{week:02} from {monday:%Y-%m-%d}"
