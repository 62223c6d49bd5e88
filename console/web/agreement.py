"""How reviewers agree with the model, drawn: by week, with intervals, and what follows for sensitivity and specificity.

Each version has a shape of its own beside its colour; what the plot shows stands in a table too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from html import escape

import streamlit as st

from console.web import look, state
from models import clock
from worker.agreement import Reviewed, Week, by_week, reviewed
from worker.shares import Share

WEEKS = 52
"""As many are shown."""
BIASED = (
    "Only what somebody reviewed is counted (verification bias): people review what the model called a fracture, or "
    "what surprised them, more often than the rest, so that these shares say how it did on what was reviewed, and not "
    "how it does. The truth is what the reviewer's last word makes of it: a “fracture” agreed with is a true positive, "
    "disagreed with a false positive; “no fracture” agreed with a true negative, disagreed with a false negative."
)
_COLOURS = ("#9ccbea", "#ffd479", "#8fd3a8", "#ff9d8a")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 52, 14, 34, 40


def draw() -> None:
    """Draw what there is."""
    since = (clock.now() - timedelta(weeks=WEEKS)).date()
    said, weeks = _read(str(state.database().engine.url), since)
    if not said:
        st.html(
            look.block(look.paragraph("Nobody has reviewed a prediction yet: reviewers do on a study's page.", "quiet"))
        )
        return
    names = {one.model_version_id: _named(one) for one in said}
    left, right = st.columns([3, 4], gap="large")
    if weeks:
        left.html(look.block(plot(weeks, names)))
    right.html(look.block(_table(said), look.paragraph("95 % intervals (Wilson). " + BIASED, "quiet")))
    if weeks:
        with left.expander("The plot as a table"):
            st.html(look.block(_weeks(weeks, names)))


@st.cache_data(ttl=60, max_entries=4, show_spinner="Counting reviews")
def _read(record: str, since: date) -> tuple[list[Reviewed], list[Week]]:
    """What the record holds, asked anew each minute at most: one review changes little, and there may be many."""
    assert record  # noqa: S101 (only a part of what is remembered it by)
    with state.database().read() as session:
        return reviewed(session), by_week(session, since=datetime.combine(since, time(), UTC))


def _table(said: Sequence[Reviewed]) -> look.Safe:
    """A row for each figure, a column for each model version."""
    shares: list[tuple[str, Callable[[Reviewed], Share]]] = [
        ("Agree, of all verdicts", lambda one: one.agreed),
        ("Sensitivity, from reviews", lambda one: one.sensitivity),
        ("Specificity, from reviews", lambda one: one.specificity),
        ("Agree where the model said ◆ fracture", lambda one: one.agreed_where("fracture")),
        ("Agree where it said ○ no fracture", lambda one: one.agreed_where("no_fracture")),
        ("Agree where it said ◐ undetermined", lambda one: one.agreed_where("undetermined")),
    ]
    counts: list[look.Cell] = [f"{one.verdicts} on {one.predictions} images" for one in said]
    contested: list[look.Cell] = [one.contested for one in said]
    rows: list[list[look.Cell]] = [["Verdicts", *counts], ["Images on which reviewers disagree", *contested]]
    for name, share in shares:
        rows.append([name, *(_share(share(one)) for one in said)])
    return look.table("What reviewers say, by model version", ("Figure", *(_named(one) for one in said)), rows)


def _named(one: Reviewed) -> str:
    return f"{one.name} ({one.bundle_sha256[:8]})"


def _weeks(weeks: Sequence[Week], names: dict[int, str]) -> look.Safe:
    rows = [(f"{week.monday}", names.get(week.model_version_id), _share(week.agreed)) for week in reversed(weeks)]
    return look.table("Agreement by week", ("Week from (Monday, UTC)", "Model", "Agree"), rows)


def _share(share: Share) -> look.Safe:
    """A share with its interval, and of how many it is one."""
    if share.value is None:
        return look.span("none reviewed", "quiet")
    low, high = share.interval
    return look.Safe(
        f'<b>{share.value:.1%}</b> ({low:.1%} to {high:.1%}), <span class="quiet">{share.count} of {share.of}</span>'
    )


# --- the plot ---------------------------------------------------------------------------------------------------------


def plot(weeks: Sequence[Week], names: dict[int, str]) -> look.Safe:
    """Agreement by week as a picture."""
    return look.drawing(svg(weeks, names), _in_words(weeks, names))


def svg(weeks: Sequence[Week], names: dict[int, str]) -> str:
    """A mark and its 95 % interval for each week and version."""
    versions = sorted({week.model_version_id for week in weeks})
    first, last = weeks[0].monday, weeks[-1].monday
    parts = [_axes(first, last)]
    for week in weeks:
        number = versions.index(week.model_version_id)
        # Two versions that were reviewed in the same week stand beside each other.
        x = _x(week.monday, first, last) + 7 * (number - (len(versions) - 1) / 2)
        low, high = week.agreed.interval
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<path d="M{x:.1f} {_y(low):.1f}V{_y(high):.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(_mark(number, x, _y(week.agreed.value or 0)))
    for number, version in enumerate(versions):
        x = _LEFT + number * 220
        parts.append(_mark(number, x + 6, 13))
        parts.append(f'<text x="{x + 18}" y="18">{escape(names.get(version, "?"))}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="13" fill="#e4e8ec">{"".join(parts)}</svg>'
    )


def _axes(first: date, last: date) -> str:
    lines = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#36404a"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#a9b4bf">{percent} %</text>')
    shown = {first, last} if (last - first).days < 8 * 7 else {first, last, first + (last - first) / 2}
    for day in sorted(shown):
        x = _x(day, first, last)
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - 18}" text-anchor="middle" fill="#a9b4bf">{day}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" text-anchor="end" fill="#a9b4bf">week from</text>')
    return "".join(lines)


def _mark(number: int, x: float, y: float) -> str:
    """A version's shape: circle, diamond, square, triangle."""
    colour = _COLOURS[number % len(_COLOURS)]
    shapes = (
        f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
        f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7Z",
        f"M{x - 5:.1f} {y - 5:.1f}h10v10h-10Z",
        f"M{x:.1f} {y - 6:.1f}l6.5 11h-13Z",
    )
    return f'<path d="{shapes[number % len(shapes)]}" fill="{colour}" stroke="#101418"/>'


def _x(day: date, first: date, last: date) -> float:
    """A single week stands in the middle."""
    days = (last - first).days
    inner = _WIDTH - _LEFT - _RIGHT - 90
    return _LEFT + 45 + inner * ((day - first).days / days if days else 0.5)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _in_words(weeks: Sequence[Week], names: dict[int, str]) -> str:
    newest = weeks[-1]
    low, high = newest.agreed.interval
    return (
        f"Agreement of reviewers with the model by week, {weeks[0].monday} to {newest.monday}, with 95 % intervals. In "
        f"the last week {newest.agreed.count} of {newest.agreed.of} verdicts on "
        f"{names.get(newest.model_version_id, 'the model')} agree: {newest.agreed.value or 0:.0%} ({low:.0%} to "
        f"{high:.0%}). The table below has every week."
    )
