"""Bars for a row of numbers, in HTML: Streamlit cleans drawings in SVG away. What they show is said in words too."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from console.web.look import Safe

_NAMED_EVERY = 6


def bars(title: str, names: Sequence[str], values: Sequence[int]) -> Safe:
    """Return a bar for each value, under its name for every sixth; the title says what is counted."""
    most = max(values, default=0)
    busiest = f", most in the hour from {names[values.index(most)]}: {most:,}" if most else ""
    told = f"{sum(values):,} in all{busiest}"
    drawn = "".join(
        f'<span title="{escape(name)}: {value:,}" style="flex:1; height:{_height(value, most):.1f}%; '
        'background:#7fb3d5; border-radius:1px 1px 0 0"></span>'
        for name, value in zip(names, values, strict=True)
    )
    below = "".join(f'<span style="flex:1">{escape(name)}</span>' for name in names[::_NAMED_EVERY])
    return Safe(
        f'<h2>{escape(title)}</h2><p class="quiet">{escape(told)}</p>'
        f'<div role="img" aria-label="{escape(title)}: {escape(told)}">'
        '<div style="display:flex; align-items:flex-end; gap:2px; height:4.2rem; border-bottom:1px solid #4a5663">'
        f'{drawn}</div><div class="quiet" style="display:flex; font-size:.8rem">{below}</div></div>'
    )


def _height(value: int, most: int) -> float:
    """In percent; what is not nothing is seen."""
    return 0.0 if not value else max(3.0, 100 * value / most)
