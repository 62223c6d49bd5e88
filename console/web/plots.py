"""Small plots as SVG of our own: quiet lines on the dark ground, named for screen readers, shapes before colours.

Each is a picture in the page itself: of SVG as such, Streamlit leaves nothing in the HTML that a page gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from console.web.look import Safe, drawing

WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 34
_INK, _QUIET, _LINE, _BAND, _BLUE, _ALERT = "#e4e8ec", "#a9b4bf", "#36404a", "#24405a", "#9ccbea", "#ffd479"


@dataclass(frozen=True)
class Point:
    """A share, 0 to 1, with its interval; `label` stands on the axis. None: there is nothing to draw."""

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    flagged: bool = False
    faint: bool = False
    """Of too few images to say anything: drawn without its interval."""


def over_time(title: str, points: Sequence[Point], band: tuple[float, float, float] | None, said: str) -> Safe:
    """Shares one after another; `band` is (value, low, high) of what they are compared with, `said` what they show."""
    drawn = [one.high for one in points if one.value is not None and not one.faint]
    top = _rounded_up(max([*drawn, *(band[1:] if band else ()), 0.01]))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(points), 1)
    parts = list(_shares(top))
    if band is not None:
        value, low, high = (_y(one, top) for one in band)
        parts.insert(0, _rectangle(_LEFT, high, WIDTH - _LEFT - _RIGHT, max(low - high, 1), _BAND))
        parts.append(_path(f"M{_LEFT} {value:.1f}H{WIDTH - _RIGHT}", _BLUE, "4 4", 1))
    every = max(1, -(-len(points) // 5))
    for at, one in enumerate(points):
        x = _LEFT + step * (at + 0.5)
        if (len(points) - 1 - at) % every == 0:
            parts.append(_text(x, HEIGHT - 12, one.label, "middle"))
        if one.value is not None:
            parts += _mark(x, one, top)
    return _figure(title, parts, said)


def bars(
    title: str,
    seen: Sequence[float],
    expected: Sequence[float] | None,
    edges: Sequence[float],
    marks: Sequence[float],
    said: str,
) -> Safe:
    """Shares between each edge and the next, drawn equally wide; a line for what is expected, a rule at each mark."""
    top = _rounded_up(max([*seen, *(expected or ()), 0.01]))
    step = (WIDTH - _LEFT - _RIGHT) / len(seen)
    parts = list(_shares(top))
    for at, share in enumerate(seen):
        y = _y(share, top)
        parts.append(_rectangle(_LEFT + step * at + 1, y, step - 2, HEIGHT - _BOTTOM - y, "#4d7fa6"))
    if expected is not None:
        steps = "".join(f"V{_y(share, top):.1f}h{step:.2f}" for share in expected)
        parts.append(_path(f"M{_LEFT} {HEIGHT - _BOTTOM}{steps}V{HEIGHT - _BOTTOM}", _INK, "", 2))
    for mark in marks:
        x = _LEFT + step * _place(mark, edges)
        parts.append(_path(f"M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}", _ALERT, "2 4", 1.5))
    every = max(1, -(-len(edges) // 10))
    parts += [
        _text(_LEFT + step * at, HEIGHT - 12, f"{100 * edges[at]:g}", "middle") for at in range(0, len(edges), every)
    ]
    return _figure(title, parts, said)


def grid(figures: Iterable[Safe]) -> Safe:
    """Figures beside each other, as many as there is room for."""
    inside = "".join(figure.html for figure in figures)
    return Safe(
        '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(21rem,1fr));gap:.6rem 1.6rem;'
        f'margin:.4rem 0 .8rem">{inside}</div>'
    )


def _place(value: float, edges: Sequence[float]) -> float:
    """Where a value lies when all bins are equally wide."""
    at = max(index for index, edge in enumerate(edges[:-1]) if value >= edge)
    return at + (value - edges[at]) / (edges[at + 1] - edges[at])


def _rounded_up(share: float) -> float:
    return next(one for one in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if share <= one or one == 1.0)


def _y(share: float, top: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(share / top, 1))


def _shares(top: float) -> Iterable[str]:
    for part in (0.0, 0.5, 1.0):
        y = _y(part * top, top)
        yield _path(f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}", _LINE, "", 1)
        yield _text(_LEFT - 6, y + 4, f"{100 * part * top:g} %", "end")


def _mark(x: float, one: Point, top: float) -> Iterable[str]:
    assert one.value is not None  # noqa: S101 (asked before)
    y = _y(one.value, top)
    if one.faint:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="none" stroke="{_QUIET}"/>'
        return
    colour = _ALERT if one.flagged else _INK
    yield _path(f"M{x:.1f} {_y(one.low, top):.1f}V{_y(one.high, top):.1f}", colour, "", 1.5)
    if one.flagged:
        yield f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{colour}"/>'
    else:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


def _figure(title: str, parts: Iterable[str], said: str) -> Safe:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="Source Sans 3, Source Sans Pro, sans-serif">{"".join(parts)}</svg>'
    )
    return Safe(
        f'<div><h2 style="margin-bottom:.1rem">{escape(title)}</h2>'
        f'<p class="quiet" style="font-size:.85rem;margin:0;min-height:5.6em">{escape(said)}</p>'
        f"{drawing(svg, f'{title}. {said}').html}</div>"
    )


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _path(way: str, colour: str, dashes: str, width: float) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" fill="{_QUIET}">{escape(text)}</text>'
