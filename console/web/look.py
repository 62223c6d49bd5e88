"""How the console looks: the words, the shapes and the colours of its own HTML. Whatever it is given is escaped here.

A decision is a shape and a word before it is a colour. Colours have a contrast of 4.5 and more on the ground (WCAG 2.2,
1.4.3).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

DECISIONS = {
    "fracture": ("◆", "Fracture"),
    "no_fracture": ("○", "No fracture"),
    "undetermined": ("◐", "Undetermined"),
    "not_analysed": ("–", "Not analysed"),
}
STATES = {
    "receiving": "Receiving",
    "complete": "Complete",
    "reported": "Reported",
    "needs_attention": "Needs attention",
}

CSS = """<style>
[data-testid="stMainBlockContainer"] { padding-left: 2rem; padding-right: 2rem; max-width: 110rem }
.osteon { font-size: .95rem; line-height: 1.4; color: #e4e8ec }
.osteon h2 { font-size: 1.05rem; font-weight: 600; margin: .2rem 0 .5rem; padding: 0; color: #e4e8ec }
.osteon p { margin: 0 0 .5rem }
.osteon .quiet { color: #a9b4bf }
.osteon table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
.osteon th { text-align: left; font-weight: 600; color: #a9b4bf; font-size: .82rem; padding: .35rem .6rem;
  border-bottom: 1px solid #4a5663; white-space: nowrap }
.osteon td { padding: .34rem .6rem; border-bottom: 1px solid #262e36; vertical-align: top }
.osteon tbody tr:hover { background: #1a2027 }
.osteon td.number, .osteon th.number { text-align: right }
.osteon .wide { overflow-x: auto }
.osteon a { color: #9ccbea; text-decoration: underline; text-underline-offset: 3px }
.osteon a:focus-visible { outline: 3px solid #ffd479; outline-offset: 2px }
.osteon .decision { white-space: nowrap; font-weight: 600 }
.osteon .decision .shape { display: inline-block; width: 1.3em; text-align: center }
.osteon .fracture { color: #ff9d8a } .osteon .no_fracture { color: #8fd3a8 }
.osteon .undetermined { color: #ffd479 } .osteon .not_analysed { color: #b9c3cd }
.osteon .urgent { border: 1px solid #ffd479; color: #ffd479; border-radius: 3px; padding: 0 .3em; font-size: .8rem }
.osteon code { font-size: .9em; color: #c9d3dd; background: #1a2027; padding: .05em .3em; border-radius: 3px }
.osteon .standing { white-space: nowrap; font-weight: 600 } .osteon .moment { white-space: nowrap }
.osteon .ok { color: #8fd3a8 } .osteon .warning { color: #ffd479 } .osteon .wrong { color: #ff9d8a }
.osteon .answer { font-size: 1.6rem; line-height: 1.25 }
.osteon .scale { position: relative; height: 4.4rem; margin: .6rem .2rem 0 }
.osteon .scale .bar { position: absolute; top: 1.5rem; height: .7rem; width: 100%; display: flex; border-radius: 3px;
  overflow: hidden }
.osteon .scale .bar span { height: 100% }
.osteon .scale .below { background: #3f7a56 } .osteon .scale .between { background: #8a6d1f }
.osteon .scale .above { background: #a34a3c }
.osteon .scale .mark { position: absolute; top: 0; transform: translateX(-50%); white-space: nowrap; font-weight: 600 }
.osteon .scale .needle { position: absolute; top: 1.25rem; width: 3px; height: 1.2rem; background: #fff;
  transform: translateX(-50%); outline: 1px solid #101418 }
.osteon .scale .point { position: absolute; top: 2.4rem; font-size: .8rem; color: #a9b4bf; white-space: nowrap;
  transform: translateX(-50%) }
.osteon .facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 !important;
  padding: 0 }
.osteon .facts dt { color: #a9b4bf; font-weight: 400; margin: 0 }
.osteon .facts dd { margin: 0 !important; overflow-wrap: anywhere }
.osteon .films { position: relative; background: #000; display: inline-block; max-width: 100%; line-height: 0 }
.osteon .films img { display: block; max-width: 100%; max-height: 64vh }
.osteon .films .heat { position: absolute; inset: 0; width: 100%; height: 100%; max-height: none }
.osteon .notice { border-left: 4px solid #ffd479; padding: .5rem .8rem; background: #1a2027; margin: 0 0 .6rem }
.osteon .legend { height: .6rem; border-radius: 3px; margin: .2rem 0 }
.osteon .person { display: flex; justify-content: flex-end; gap: 1rem; font-size: .88rem; color: #a9b4bf }
.osteon ul { margin: 0; padding-left: 1.2rem } .osteon li { margin: .15rem 0 }
.osteon img.plot { display: block; max-width: 100%; filter: invert(.93) hue-rotate(180deg); border-radius: 3px }
.osteon img.drawing { display: block; max-width: 100%; height: auto }
.osteon .well { border-left: 4px solid #8fd3a8; padding: .5rem .8rem; background: #1a2027; margin: 0 0 .6rem }
.osteon .standing { font-weight: 600; margin: .5rem 0 .2rem }
.osteon .broken { border-left: 4px solid #ff9d8a; padding: .5rem .8rem; background: #1a2027; margin: 0 0 .6rem }
.osteon .tree { font-size: .9rem } .osteon .tree ul { list-style: none; padding-left: 1.1rem;
  border-left: 1px solid #36404a }
</style>"""

SIGN_IN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Osteon</title><style>
body {{ background: #101418; color: #e4e8ec; font: 16px/1.45 "Source Sans", system-ui, sans-serif; margin: 0;
  min-height: 100vh; display: grid; place-items: center }}
main {{ width: min(22rem, 90vw) }} h1 {{ font-size: 1.5rem; margin: 0 0 .2rem }}
.quiet {{ color: #a9b4bf; margin: 0 0 1.4rem; font-size: .92rem }}
label {{ display: block; margin: 0 0 .9rem }}
input {{ display: block; width: 100%; box-sizing: border-box; margin-top: .25rem; padding: .55rem .6rem; font: inherit;
  color: inherit; background: #1a2027; border: 1px solid #6b7885; border-radius: 4px }}
button, .provider {{ width: 100%; box-sizing: border-box; padding: .6rem; font: inherit; font-weight: 600;
  color: #0b1116; background: #9ccbea; border: 0; border-radius: 4px; cursor: pointer }}
.provider {{ display: block; text-align: center; text-decoration: none }}
.or {{ color: #a9b4bf; font-size: .92rem; margin: 1.4rem 0 .8rem; padding-top: 1rem; border-top: 1px solid #4a5663 }}
.or ~ form button {{ color: #e4e8ec; background: #2b3640; border: 1px solid #6b7885 }}
input:focus-visible, button:focus-visible, .provider:focus-visible {{ outline: 3px solid #ffd479; outline-offset: 2px }}
.trouble {{ border-left: 4px solid #ff9d8a; background: #1a2027; padding: .5rem .8rem }}
</style></head><body><main>
<h1>Osteon</h1><p class="quiet">Fracture detection on bone X-rays. AI results, not for primary diagnosis.</p>
{trouble}{ways}
<p class="quiet" style="margin-top:1.4rem">Version {version}</p></main></body></html>"""

SIGN_IN_FORM = """<form method="post" action="/sign-in">
<label>Name<input name="name" autocomplete="username" autocapitalize="none" required {focus}maxlength="64"></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required maxlength="256"></label>
<button>Sign in</button></form>"""

SIGN_IN_LINK = '<a class="provider" href="{address}">Sign in with {name}</a>'
SIGN_IN_OR = '<p class="or">Or with an account of this console</p>'

# A page of our own that goes on by itself: a cookie that other sites cannot send is not sent on a way that began there.
SIGNED_IN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0;url=/"><title>Osteon</title><style>
body { background: #101418; color: #e4e8ec; font: 16px/1.45 "Source Sans", system-ui, sans-serif; margin: 0;
  min-height: 100vh; display: grid; place-items: center }
a { color: #9ccbea }
</style></head><body><main><h1>Osteon</h1><p>You are signed in. <a href="/">Continue</a></p></main></body></html>"""

THEME = {
    "primaryColor": "#7fb3d5",
    "backgroundColor": "#101418",
    "secondaryBackgroundColor": "#1a2027",
    "textColor": "#e4e8ec",
    "linkColor": "#9ccbea",
    "borderColor": "#36404a",
}

SHELL_STYLE = """<style>
html { background: #101418 } #shell { color: #a9b4bf; font: 16px/1.45 "Source Sans", system-ui, sans-serif;
  margin: 0; min-height: 100vh; display: grid; place-items: center }
</style>"""


@dataclass(frozen=True)
class Safe:
    """HTML that was made here."""

    html: str


Cell = str | int | Safe | None


def block(*parts: Safe, kind: str = "") -> str:
    """Return HTML for `st.html`."""
    return f'<div class="osteon {kind}">{"".join(part.html for part in parts)}</div>'


def decision(name: str | None, *, large: bool = False) -> Safe:
    """A decision as shape and word."""
    if name not in DECISIONS:
        return Safe('<span class="quiet">–</span>')
    shape, word = DECISIONS[name]
    size = " answer" if large else ""
    return Safe(
        f'<span class="decision {name}{size}"><span class="shape" aria-hidden="true">{shape}</span> {word}</span>'
    )


def paragraph(text: str, kind: str = "") -> Safe:
    """One paragraph."""
    return Safe(f'<p class="{kind}">{escape(text)}</p>')


def span(text: str, kind: str = "") -> Safe:
    """Some words within a line."""
    return Safe(f'<span class="{kind}">{escape(text)}</span>')


def heading(text: str) -> Safe:
    """A heading below the page's."""
    return Safe(f"<h2>{escape(text)}</h2>")


def items(texts: Iterable[str]) -> Safe:
    """A list."""
    return Safe("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")


def facts(pairs: Iterable[tuple[str, Cell]]) -> Safe:
    """What is known of something, by name."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{_cell(value)}</dd>" for name, value in pairs)
    return Safe(f'<dl class="facts">{rows}</dl>')


def link(text: str, address: str) -> Safe:
    """A link within the console."""
    return Safe(f'<a href="{escape(address)}">{escape(text)}</a>')


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Safe:
    """A table; `caption` is what a screen reader calls it. Scrolls by itself where it is wider than the window."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    named = escape(caption)
    return Safe(
        f'<div class="wide" tabindex="0" role="region" aria-label="{named}"><table aria-label="{named}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def scale(probability: float, absent_below: float, present_from: float) -> Safe:
    """Where a probability lies between the operating points."""
    below, above = 100 * absent_below, 100 * (1 - present_from)
    said = (
        f"Calibrated probability {probability:.1%}. No fracture below {absent_below:.1%}, fracture from "
        f"{present_from:.1%}, undetermined between."
    )
    # The words at the ends stay within the scale.
    mark = min(max(100 * probability, 5), 95)
    first, second = min(max(below, 13), 40), min(max(100 - above, 45), 88)
    return Safe(
        f'<div class="scale" role="img" aria-label="{said}">'
        f'<span class="bar"><span class="below" style="width:{below:.2f}%"></span>'
        f'<span class="between" style="width:{100 - below - above:.2f}%"></span>'
        f'<span class="above" style="width:{above:.2f}%"></span></span>'
        f'<span class="mark" style="left:{mark:.2f}%">{probability:.1%}</span>'
        f'<span class="needle" style="left:{100 * probability:.2f}%"></span>'
        f'<span class="point" style="left:{first:.2f}%">absent below {absent_below:.1%}</span>'
        f'<span class="point" style="left:{second:.2f}%">present from {present_from:.1%}</span></div>'
    )


def tree(lines: Iterable[tuple[int, str]]) -> Safe:
    """Lines with their depths (`dicom_node.objects.tree`) as nested lists."""
    made, deep = [], -1
    for depth, line in lines:
        made.append("<ul><li>" * (depth - deep) if depth > deep else "</li></ul>" * (deep - depth) + "</li><li>")
        made.append(escape(line))
        deep = depth
    return Safe(f'<div class="tree">{"".join(made)}{"</li></ul>" * (deep + 1)}</div>')


def films(radiograph: bytes, heat: bytes | None, name: str) -> Safe:
    """A radiograph (JPEG), and what the model looked at (PNG with transparency) over it."""
    shown = f'<img src="{_data("jpeg", radiograph)}" alt="{escape(name)}">'
    if heat is not None:
        shown += f'<img class="heat" src="{_data("png", heat)}" alt="The model\'s map over the radiograph">'
    return Safe(f'<div class="films">{shown}</div>')


def plot(content: bytes, said: str) -> Safe:
    """A plot that was drawn on white (PNG), turned to the console's ground; `said` is what it shows, in words."""
    return Safe(f'<img class="plot" src="{_data("png", content)}" alt="{escape(said)}">')


def drawing(svg: str, said: str) -> Safe:
    """A plot that was drawn here, for the console's ground; `said` is what it shows, in words."""
    return Safe(f'<img class="drawing" src="{_data("svg+xml", svg.encode())}" alt="{escape(said)}">')


def opacity(share: float) -> str:
    """How much of the maps is seen, for `st.html`."""
    return f"<style>.osteon .films .heat {{ opacity: {share:.2f} }}</style>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _cell(value: Cell) -> str:
    if isinstance(value, Safe):
        return value.html
    return '<span class="quiet">–</span>' if value in (None, "") else escape(str(value))
